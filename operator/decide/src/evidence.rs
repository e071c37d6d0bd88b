//! How sure a rate is: counts of independent events scatter with the square root of their number
//! (Poisson), and more if they come in clumps. Never decides; it gives lower bounds and distances.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Sample, Time, WindowSample};

/// Short readings kept for each metric; at 4 a second, the last two seconds and a little.
const KEPT: usize = 12;
/// Nodes report once in this time, each at a phase of its own: only between readings that are whole
/// periods apart has every node's window moved by as much as the time that passed.
const PERIOD: u64 = 250;
/// Of what a part of the window gained, at least this share must be gained over the load before.
const CAUGHT_UP: f64 = 0.5;
/// How exactly nodes keep that time, in milliseconds.
const JITTER: u64 = 40;
/// A reading says something about clumping only if so many events are behind two of them.
const FEW: f64 = 10.0;
/// How many pairs of readings the clumping is averaged over.
const PAIRS: f64 = 32.0;
/// A real step of load looks like a clump; one counts no more than this.
const CLUMP: f64 = 6.0;

/// The short end of a sample: events in the shortest window, and the rate before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Short {
    pub sampled: Time,
    pub window: Duration,
    /// Events in `window`.
    pub events: f64,
    /// Events per second in the burst window.
    pub rate: f64,
}

impl Short {
    /// The short end of a sample that counts events.
    pub(crate) fn of(sample: &Sample, burst_window: Duration) -> Option<Self> {
        let short = sample.shortest()?;
        let burst = sample.window(burst_window)?;
        // Neither a window that reaches back before the measurement, nor one without events known.
        if short.covered < short.window || short.window.is_zero() {
            return None;
        }
        let seconds = burst.covered.min(burst.window).as_secs_f64();
        let rate = burst.events? as f64 / seconds;
        Some(Self {
            sampled: sample.sampled,
            window: short.window,
            events: short.events? as f64,
            rate: if rate.is_finite() { rate } else { 0.0 },
        })
    }
}

/// The last short readings of a metric, and how much it clumps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recent {
    shorts: VecDeque<Short>,
    clumping: Option<f64>,
    /// The reading that the next one is compared with.
    mark: Option<Short>,
}

impl Recent {
    pub(crate) fn push(&mut self, short: Short) {
        match self.shorts.back() {
            Some(last) if last.sampled == short.sampled => return,
            // The measuring clock went back: what was kept cannot be compared any more.
            Some(last) if last.sampled > short.sampled => {
                self.shorts.clear();
                self.mark = None;
            }
            _ => {}
        }
        if self.shorts.len() == KEPT {
            self.shorts.pop_front();
        }
        self.shorts.push_back(short);
        self.clump(short);
    }

    /// Two windows that do not overlap differ by their Poisson scatter, unless events clump.
    fn clump(&mut self, short: Short) {
        let Some(mark) = self.mark else {
            self.mark = Some(short);
            return;
        };
        if mark.window != short.window {
            self.mark = Some(short);
        } else if short.sampled.since(mark.sampled) >= short.window {
            self.mark = Some(short);
            let sum = short.events + mark.events;
            if sum >= FEW {
                let difference = short.events - mark.events;
                let x = (difference * difference / sum).min(CLUMP);
                let old = self.clumping.unwrap_or(1.0);
                self.clumping = Some(old + (x - old) / PAIRS);
            }
        }
    }

    /// Variance of a count over its mean: 1 for independent events, never less here.
    pub(crate) fn dispersion(&self) -> f64 {
        self.clumping.unwrap_or(1.0).max(1.0)
    }

    /// Events per second in the last part of the shortest window, as far back as each kept reading:
    /// (seconds, events in them, their variance). The part's events are what the window gained,
    /// plus what it lost at its other end, where the load was as before.
    pub(crate) fn fresh(&self, now: Short) -> impl Iterator<Item = (f64, f64, f64)> + '_ {
        let before = self
            .shorts
            .iter()
            .rev()
            .find(|s| now.sampled.since(s.sampled) >= now.window.mul_f64(0.9))
            .filter(|s| s.window == now.window)
            .map(|s| s.rate);
        self.shorts.iter().rev().filter_map(move |s| {
            let before = before?;
            let d = now.sampled.since(s.sampled);
            let (periods, off) = apart(now, *s);
            // Two nodes may report within the jitter of each other: a reading between them has the one's
            // new load and not the other's. Of several, the one that is nearest to whole periods counts.
            let nearest = self.shorts.iter().all(|other| {
                let (p, o) = apart(now, *other);
                p != periods || o >= off
            });
            if s.window != now.window
                || periods == 0
                || off > JITTER
                || !nearest
                || d < Duration::from_millis(200)
                || d >= now.window.mul_f64(0.85)
            {
                return None;
            }
            // Work that stood still for a moment and is caught up with is no new load: it fills a hole
            // in the window, and the window as a whole has gained less.
            let gained = now.events - s.events;
            if now.events - before * now.window.as_secs_f64() < CAUGHT_UP * gained {
                return None;
            }
            let d = d.as_secs_f64();
            let lost = before * d;
            // The part is a part: it holds no more events than the whole window.
            let events = (gained + lost).min(now.events);
            (events > 0.0).then_some((d, events, events + lost))
        })
    }
}

/// How many periods lie between two readings, and by how many milliseconds they are not whole.
fn apart(now: Short, then: Short) -> (u64, u64) {
    let d = now
        .sampled
        .as_millis()
        .saturating_sub(then.sampled.as_millis());
    let periods = (d + PERIOD / 2) / PERIOD;
    (periods, d.abs_diff(periods * PERIOD))
}

/// A value and the events behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub value: f64,
    events: Option<f64>,
    seconds: f64,
    dispersion: f64,
    /// Whether the value is events per second, so that none at all still says how many at most.
    counts: bool,
}

impl Measured {
    pub(crate) fn of(w: &WindowSample, counts: bool, dispersion: f64) -> Self {
        let seconds = w.covered.min(w.window).as_secs_f64();
        Self {
            value: w.value.max(0.0),
            events: w.events.map(|e| e as f64),
            seconds: if seconds > 0.0 {
                seconds
            } else {
                w.window.as_secs_f64()
            },
            dispersion,
            counts,
        }
    }

    /// How many standard deviations the value lies above `line` (below: negative). Square roots of
    /// Poisson counts have a standard deviation of one half, whatever the mean.
    pub(crate) fn distance(&self, line: f64) -> f64 {
        let Some(events) = self.events else {
            // Nothing is known of the scatter: take the value at its word.
            return match self.value.total_cmp(&line) {
                std::cmp::Ordering::Less => f64::NEG_INFINITY,
                std::cmp::Ordering::Equal => 0.0,
                std::cmp::Ordering::Greater => f64::INFINITY,
            };
        };
        let expected = if self.counts {
            line * self.seconds
        } else if self.value > 0.0 {
            events * line / self.value
        } else {
            return f64::NEG_INFINITY;
        };
        2.0 * (events.sqrt() - expected.max(0.0).sqrt()) / self.dispersion.sqrt()
    }

    /// The value, less (or more, if negative) so many standard deviations.
    pub(crate) fn bound(&self, deviations: f64) -> f64 {
        let Some(events) = self.events else {
            return self.value;
        };
        let root = (events.sqrt() - deviations * 0.5 * self.dispersion.sqrt()).max(0.0);
        let bounded = root * root;
        if self.counts {
            bounded / self.seconds
        } else if events > 0.0 {
            self.value * bounded / events
        } else {
            self.value
        }
    }
}
