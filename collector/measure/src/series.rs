//! What one pod did, as cumulative counters at points in time by its node's monotonic clock, kept in
//! bounded memory: resolution falls with age. Answers what was added in a window; never mixes epochs.

use std::collections::VecDeque;
use std::sync::Arc;

use ebpf_scaler_common::Counters;

use crate::metric::Distribution;
use crate::packed::{DISTRIBUTIONS, Growth, Packed};
use crate::quantile::{Merged, Sparse};
use crate::totals::{Amounts, Total, Totals};

/// What an agent says of one pod at one time: everything cumulative since `epoch` began, but for
/// `counters.requests_in_flight`, which is a gauge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Counters of another epoch have nothing to do with these
    pub epoch: u64,
    /// The counters
    pub counters: Counters,
    /// Request latencies, cumulative
    pub request_latency: Sparse,
    /// Run-queue latencies, cumulative
    pub runqueue_latency: Sparse,
    /// Samples of TCP round-trip times, cumulative
    pub tcp_rtt: Sparse,
    /// Behind whom the pod's threads waited most in the last seconds, the largest first
    pub preemptors: Vec<Preemptor>,
}

/// Somebody that had a CPU while threads of a pod waited for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Preemptor {
    /// A pod's UID; none: the node itself, its kernel's threads and services
    pub pod_uid: Option<Arc<str>>,
    /// Threads that waited behind it, on average over the last seconds
    pub waiting_threads: f64,
}

/// At most this many of a pod's preemptors are kept.
pub const MAX_PREEMPTORS: usize = 3;

/// How long each resolution is kept, and how coarse it is: microseconds.
const TIERS: [(u64, u64); 3] = [
    // Agents read every 250 ms; a little less, so that jitter never merges two regular readings.
    (10_500_000, 200_000),
    (61_000_000, 1_000_000),
    // The longest window and one cell more.
    (306_000_000, 5_000_000),
];

/// One reading: what had been added by `at`, by what happened after `since`.
#[derive(Clone, Debug)]
struct Point {
    at: u64,
    since: u64,
    added: Packed,
}

impl Point {
    /// Takes in the point that follows; what happened in both is then known less finely.
    fn absorb(&mut self, next: &Self) {
        let mut growth = self.added.growth();
        growth.add(&next.added.growth());
        self.at = next.at;
        self.added = Packed::new(&growth);
    }

    /// Roughly the bytes it takes, the allocator's own included.
    fn size(&self) -> usize {
        size_of::<Self>() + self.added.size() + size_of::<usize>()
    }
}

/// What was added in a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Added {
    /// The counters' growth
    pub amounts: Amounts,
    /// How much of the span has been seen, microseconds
    pub covered: u64,
}

/// Average requests in flight over a span, found in two ways that have nothing in common but the truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Concurrency {
    /// The level (starts - ends), integrated over time. Sees requests that are not answered yet, or never; drifts
    /// if an end is missed.
    pub by_level: f64,
    /// Little's law: the latencies of what was answered, per time. Can not drift; is late by what is in flight at
    /// the span's edges, and blind to requests that are cut off.
    pub by_latency: f64,
}

impl Concurrency {
    /// Whether the ways agree. `edges` is the largest number that was in flight at either end of a span in which
    /// latencies were up to `longest` microseconds: what the two can differ by without anything being wrong.
    pub fn agrees(&self, edges: f64, longest: u64, span: u64, tolerance: f64) -> bool {
        let slack = 2.0 * edges * longest as f64 / span.max(1) as f64;
        (self.by_level - self.by_latency).abs()
            <= slack + tolerance * self.by_level.max(self.by_latency)
    }
}

impl Added {
    /// The average number of requests in flight; none if nothing of the span has been seen.
    pub fn concurrency(&self) -> Option<Concurrency> {
        let per_time = |total| self.amounts.get(total) / self.covered as f64;
        (self.covered != 0).then(|| Concurrency {
            by_level: per_time(Total::InFlightMicros),
            by_latency: per_time(Total::LatencyMicros),
        })
    }
}

/// One pod's readings in one epoch.
#[derive(Clone, Debug)]
pub struct Series {
    epoch: u64,
    /// The time from which everything is known.
    seen_from: u64,
    /// The totals at and before the first point.
    base: Totals,
    tiers: [VecDeque<Point>; TIERS.len()],
    latest: [Sparse; DISTRIBUTIONS],
    in_flight: u64,
    last_at: u64,
    last: Totals,
    /// Bytes of the points.
    points_size: usize,
}

impl Series {
    /// Starts with a pod whose earlier counts are not ours to judge: `sample` is where counting starts.
    /// `seen_from` is the time from which it is known not to have changed until `at`.
    pub fn from_reading(sample: &Sample, seen_from: u64, at: u64) -> Self {
        let mut series = Self::empty(sample.epoch, seen_from);
        series.base = Totals::new(&sample.counters);
        series.last = series.base;
        series.latest = [
            sample.request_latency.clone(),
            sample.runqueue_latency.clone(),
            sample.tcp_rtt.clone(),
        ];
        series.in_flight = sample.counters.requests_in_flight;
        series.last_at = at;
        series
    }

    /// Starts with a pod that was not there at `since` and has done what `sample` says by `at`; before
    /// `since` it is known to have done nothing, from `seen_from` on.
    pub fn from_birth(sample: &Sample, seen_from: u64, since: u64, at: u64) -> Self {
        let mut series = Self::empty(sample.epoch, seen_from);
        series.last_at = since;
        series.push(sample, since, at);
        series
    }

    fn empty(epoch: u64, seen_from: u64) -> Self {
        Self {
            epoch,
            seen_from,
            base: Totals::default(),
            tiers: Default::default(),
            latest: Default::default(),
            in_flight: 0,
            last_at: seen_from,
            last: Totals::default(),
            points_size: 0,
        }
    }

    /// The epoch of its counters.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The time from which everything is known.
    pub fn seen_from(&self) -> u64 {
        self.seen_from
    }

    /// When its counters last changed.
    pub fn last_at(&self) -> u64 {
        self.last_at
    }

    /// The counters as last reported, and the requests in flight then.
    pub fn last(&self) -> (Totals, u64) {
        (self.last, self.in_flight)
    }

    /// Adds a reading of the same epoch taken at `at`; `since` is the reading of the node before, when
    /// the pod still was as last reported. A reading that is not newer changes nothing.
    pub fn push(&mut self, sample: &Sample, since: u64, at: u64) {
        if at <= self.last_at {
            return;
        }
        let mut totals = Totals::new(&sample.counters);
        totals.set(Total::InFlightMicros, self.in_flight_until(at));
        let totals = totals.max(&self.last);
        let now = [
            &sample.request_latency,
            &sample.runqueue_latency,
            &sample.tcp_rtt,
        ];
        let added = std::array::from_fn(|i| now[i].since(&self.latest[i]));
        for (latest, now) in self.latest.iter_mut().zip(now) {
            latest.raise(now);
        }
        let growth = Growth {
            totals: totals.minus(&self.last),
            added,
        };
        let since = since.clamp(self.last_at, at);
        self.in_flight = sample.counters.requests_in_flight;
        self.last_at = at;
        self.last = totals;
        self.keep(Point {
            at,
            since,
            added: Packed::new(&growth),
        });
    }

    /// Drops the readings, keeping only where counting stands: for pods that nobody knows.
    pub fn forget_history(&mut self) {
        self.base = self.last;
        self.seen_from = self.last_at;
        self.tiers = Default::default();
        self.points_size = 0;
    }

    /// Roughly how many bytes it holds.
    pub fn size(&self) -> usize {
        let pairs = |s: &Sparse| size_of_val(s.pairs());
        size_of::<Self>() + self.latest.iter().map(pairs).sum::<usize>() + self.points_size
    }

    /// Requests in flight integrated up to `at`, the last reported number holding since then.
    fn in_flight_until(&self, at: u64) -> u64 {
        let since = at.saturating_sub(self.last_at);
        self.last
            .get(Total::InFlightMicros)
            .saturating_add(self.in_flight.saturating_mul(since))
    }

    fn keep(&mut self, point: Point) {
        let now = point.at;
        let mut moving = VecDeque::from([point]);
        for ((keep, cell), tier) in TIERS.into_iter().zip(&mut self.tiers) {
            for point in moving.drain(..) {
                match tier.back_mut() {
                    Some(back) if back.at / cell == point.at / cell => {
                        self.points_size -= back.size();
                        back.absorb(&point);
                        self.points_size += back.size();
                    }
                    _ => {
                        self.points_size += point.size();
                        tier.push_back(point);
                    }
                }
            }
            while let Some(old) = tier.pop_front_if(|p| p.at.saturating_add(keep) < now) {
                self.points_size -= old.size();
                moving.push_back(old);
            }
        }
        for gone in moving {
            self.base = self.base.plus(&gone.added.totals());
            self.seen_from = self.seen_from.max(gone.at);
        }
    }

    /// Newest first: short windows touch few points.
    fn points(&self) -> impl Iterator<Item = &Point> {
        self.tiers.iter().flat_map(|tier| tier.iter().rev())
    }

    /// What was added by a time since the oldest reading that is kept, linear inside the span in which a
    /// reading's events happened.
    fn amounts_at(&self, at: u64) -> Amounts {
        // Back from now to the first reading after the time; `totals` are those before it.
        let (mut totals, mut before_at) = (self.last, self.seen_from);
        let mut next = None;
        for point in self.points() {
            if point.at <= at {
                before_at = point.at;
                break;
            }
            next = Some((point, totals));
            totals = totals.minus(&point.added.totals());
        }
        let Some((next, after)) = next else {
            totals.set(Total::InFlightMicros, self.in_flight_until(at));
            return totals.since(&self.base);
        };
        let share =
            |from: u64| at.saturating_sub(from) as f64 / next.at.saturating_sub(from).max(1) as f64;
        let (from, to) = (totals.since(&self.base), after.since(&self.base));
        let mut amounts = from.toward(&to, share(next.since));
        // In flight is a level, not events: it grows all the time between two readings.
        let level = from.toward(&to, share(before_at));
        amounts.set(Total::InFlightMicros, level.get(Total::InFlightMicros));
        amounts
    }

    /// What was added in `(end - window, end]`, as far as that has been seen; nothing before `not_before`.
    pub fn added(&self, end: u64, window: u64, not_before: u64) -> Added {
        let start = self.start(end, window, not_before);
        Added {
            amounts: self.amounts_at(end).since(&self.amounts_at(start)),
            covered: end.saturating_sub(start),
        }
    }

    /// Merges the latencies of `(end - window, end]` into `into`, as far as that has been seen.
    pub fn merge(
        &self,
        which: Distribution,
        (end, window, not_before): (u64, u64, u64),
        into: &mut Merged,
    ) {
        let start = self.start(end, window, not_before);
        let which = match which {
            Distribution::RequestLatency => 0,
            Distribution::RunQueueLatency => 1,
            Distribution::TcpRtt => 2,
        };
        for point in self.points() {
            if point.at <= start {
                break;
            }
            if point.since >= end {
                continue;
            }
            let (from, to) = (point.since.max(start), point.at.min(end));
            let counts = point.added.distribution(which);
            into.add_share(counts, to - from, point.at - point.since);
        }
    }

    fn start(&self, end: u64, window: u64, not_before: u64) -> u64 {
        end.saturating_sub(window)
            .max(self.seen_from)
            .max(not_before)
            .min(end)
    }
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
