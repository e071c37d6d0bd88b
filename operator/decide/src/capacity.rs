//! What a pod can take: a curve of latency over load per pod, learned from what was seen, in bounded memory. Never
//! decides, and never says more than it saw: beyond the largest load seen there is no capacity.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Time;

/// Points of a curve, a tenth of the load apart: they reach over a tenfold load.
const POINTS: usize = 24;
/// The width of a point: its loads differ by a tenth.
const WIDTH: f64 = 1.1;
/// A point remembers about so many windows, so that a new version of a workload is learned in as many.
const MEMORY: f64 = 20.0;
/// Without being seen again, knowledge halves in this time: longer than a weekend.
const HALF_LIFE: Duration = Duration::from_secs(3 * 24 * 3600);
/// What was too slow is forgotten so many times as fast, in a day or two: pods get it again then, and may have become
/// faster.
const LIMIT_AGES: f64 = 12.0;
/// What is left of less than this much of a window is forgotten.
const FORGOTTEN: f64 = 0.1;
/// Latency does not fall with load, and at the same load it is the same. Where a window says otherwise by more than this
/// (in logarithms, 28 %) and the scatter of its quantile, the workload may have changed, and what was seen before keeps
/// this share of its weight: ...
const CONTRADICTION: f64 = 0.25;
/// ... where pods are slower than that, ...
const SLOWER: f64 = 0.5;
/// ... where they are faster, of which it is no harm to be sure later, ...
const FASTER: f64 = 0.8;
/// ... and at larger loads, where they are faster at the same one: they may take more than any did before.
const CHANGED: f64 = 0.5;
/// Windows for half the confidence; with it, replicas are computed from what was learned.
const HALF: f64 = 5.0;
/// Confidence that a decision needs.
pub(crate) const ENOUGH: f64 = 0.5;
/// In a steady window no short part is further from the mean than this share, and four deviations.
const STEADY: f64 = 0.25;
/// Below this share of the capacity, latency above target that comes with no more waiting for a CPU than was usual
/// there has a cause that replicas do not take away.
const WELL_BELOW: f64 = 0.8;
/// For so many windows; after that it is taken for what the workload is like now.
const UNEXPLAINED: u32 = 10;
/// Loads per pod and second, and latencies in microseconds, beyond these are not believed.
const LOADS: (f64, f64) = (1e-6, 1e9);
const LATENCIES: (f64, f64) = (1.0, 1e12);

/// What is known of a workload at one load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Requests per second and pod.
    pub load: f64,
    /// The quantile of latency there, in microseconds.
    pub latency: f64,
    /// How much it varies: the deviation of its natural logarithm.
    pub spread: f64,
    /// Threads that wait for a CPU, per pod, if that is measured.
    pub waiting: Option<f64>,
    /// How many windows that rests on; older ones count less.
    pub weight: f64,
}

impl Point {
    /// The logarithm of the latency, with a deviation on top.
    fn upper(&self) -> f64 {
        self.latency.ln() + self.spread
    }
}

/// What was learned, as a decision used it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// Requests per second that a pod can take within the target, as far as was seen; none if that is not known.
    pub capacity: Option<f64>,
    /// From 0 to 1; replicas are computed from the capacity from 0.5 on.
    pub confidence: f64,
    /// The least and the largest load per pod seen, in requests per second.
    pub seen: Option<(f64, f64)>,
    /// Whether more than the capacity was seen to be too much; otherwise pods may be able to take more.
    pub limit_seen: bool,
    /// Where the largest load seen is within target: the latency there as a share of the target.
    pub room: Option<f64>,
    /// Requests per second of the whole workload that replicas were computed from, and in which window; none if they
    /// were not computed from it.
    pub load: Option<(f64, Duration)>,
}

impl Learned {
    /// Whether replicas may be computed from it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.capacity.is_some() && self.confidence >= ENOUGH
    }
}

/// One look at a workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Requests per second and pod, in the stable window.
    pub load: f64,
    /// The same in the burst window, and its length.
    pub short: (f64, Duration),
    /// Replicas that share the load.
    pub pods: f64,
    /// In microseconds, in the stable window.
    pub latency: f64,
    /// The same in the burst window, if that says something.
    pub latest: Option<f64>,
    /// Requests beyond that quantile.
    pub tail: f64,
    /// What it should be.
    pub target: f64,
    /// Threads that wait for a CPU, per pod.
    pub waiting: Option<f64>,
}

/// Since when, the least and the largest before that, and those since.
type Extremes = (Time, (f64, f64), (f64, f64));

/// What was seen of a workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Capacity {
    /// By load.
    points: Vec<Point>,
    /// Of the load of all pods, in the last window and this one.
    extremes: Option<Extremes>,
    /// Since when pods are at rest and nothing was learned.
    since: Option<Time>,
    /// When a window was last too slow.
    slow: Option<Time>,
    /// Until when weights have been lowered.
    aged: Option<Time>,
    /// How many windows in a row were above target for no reason that replicas take away.
    unexplained: u32,
}

impl Capacity {
    /// What was kept elsewhere, `age` ago. Points that make no sense are left out.
    pub(crate) fn restore(points: &[Point], age: Duration, now: Time) -> Self {
        let mut capacity = Self::default();
        let left = half(age);
        for p in points.iter().take(POINTS) {
            let sane = within(p.load, LOADS)
                && within(p.latency, LATENCIES)
                && within(p.spread, (0.0, 10.0))
                && within(p.weight, (FORGOTTEN, MEMORY));
            if sane {
                capacity.points.push(Point {
                    weight: p.weight * left,
                    waiting: p.waiting.filter(|w| within(*w, (0.0, 1e9))),
                    ..*p
                });
            }
        }
        capacity.tidy();
        capacity.aged = Some(now);
        capacity
    }

    /// What is to be kept elsewhere.
    pub(crate) fn points(&self, now: Time) -> Vec<Point> {
        let left = self.left(now);
        let points = self.points.iter().map(|p| Point {
            weight: p.weight * left,
            ..*p
        });
        points.collect()
    }

    /// Whether anything is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Nothing can be learned from now; a window has to begin again.
    pub(crate) fn interrupt(&mut self) {
        self.extremes = None;
        self.since = None;
    }

    /// Takes a look in; what it sees is learned once a whole window has passed with pods at rest.
    pub(crate) fn look(&mut self, look: &Look, at_rest: bool, window: Duration, now: Time) {
        let sane = within(look.load, LOADS)
            && within(look.latency, LATENCIES)
            && look.short.0.is_finite()
            && look.pods.is_finite();
        if !sane {
            return self.interrupt();
        }
        let steady = self.is_steady(look, window, now);
        if !at_rest {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert(now);
        // What is too slow is learned at once: pods will be added, and the window never ends. A queue that is a
        // remainder of something else has gone from the last moments.
        let slow = look.latency > look.target
            && look.latest.is_some_and(|l| l > look.target)
            && self.slow.is_none_or(|t| now.since(t) >= window);
        if !slow && (now.since(since) < window || look.latency > look.target) {
            return;
        }
        // What was too slow while the load moved was too slow at a load that nobody can tell. What was fast enough
        // was so at the mean all the more.
        if slow && !steady {
            return;
        }
        self.since = Some(now);
        if slow {
            self.slow = Some(now);
        }
        if look.latency > look.target
            && self.has_another_cause(look.target, look.load, look.waiting, now)
        {
            self.unexplained = self.unexplained.saturating_add(1);
            return;
        }
        if look.latency <= look.target {
            self.unexplained = 0;
        }
        self.age(look.target, now);
        self.learn(look);
    }

    /// Whether the load has been near its mean for a window or more; also while pods come and go.
    fn is_steady(&mut self, look: &Look, window: Duration, now: Time) -> bool {
        let (short, length) = look.short;
        let short = short * look.pods;
        let widen = |(low, high): (f64, f64)| (low.min(short), high.max(short));
        let anything = (f64::NEG_INFINITY, f64::INFINITY);
        let (since, before, after) = match self.extremes {
            Some((since, before, after)) if since <= now && now.since(since) < window => {
                (since, before, widen(after))
            }
            Some((since, _, after)) if since <= now => (now, after, (short, short)),
            _ => (now, anything, (short, short)),
        };
        self.extremes = Some((since, before, after));
        let mean = look.load * look.pods;
        let chance = 4.0 * mean / (mean * length.as_secs_f64()).max(1.0).sqrt();
        let tolerated = mean * STEADY + chance;
        before.1.max(after.1) - mean <= tolerated && mean - before.0.min(after.0) <= tolerated
    }

    fn learn(&mut self, look: &Look) {
        let ln = look.latency.ln();
        let key = key(look.load);
        // A quantile of few scatters.
        let difference = CONTRADICTION + 2.0 / look.tail.max(1.0).sqrt();
        let faster = |p: &Point| {
            let expected = p.latency.ln() - 2.0 * p.spread;
            self::key(p.load) == key && expected > ln + difference
        };
        let faster = self.points.iter().any(faster);
        for p in &mut self.points {
            let (at, other) = (self::key(p.load), p.latency.ln());
            if at >= key && other + difference < ln {
                p.weight *= SLOWER;
            } else if other > ln + difference && at <= key {
                p.weight *= FASTER;
            } else if other > ln + difference && faster {
                p.weight *= CHANGED;
            }
        }
        match self.points.iter_mut().find(|p| self::key(p.load) == key) {
            Some(p) => {
                p.weight = (p.weight + 1.0).min(MEMORY);
                let share = (1.0 / p.weight).min(1.0);
                let off = ln - p.latency.ln();
                p.latency = (p.latency.ln() + share * off).exp();
                let variance = (1.0 - share) * (p.spread * p.spread + share * off * off);
                p.spread = variance.sqrt();
                p.load += share * (look.load - p.load);
                p.waiting = match (p.waiting, look.waiting) {
                    (Some(old), Some(new)) => Some(old + share * (new - old)),
                    (old, new) => new.or(old),
                };
            }
            None => self.points.push(Point {
                load: look.load,
                latency: look.latency,
                spread: 0.0,
                waiting: look.waiting,
                weight: 1.0,
            }),
        }
        self.tidy();
    }

    /// In order, without what is forgotten, and no more than there is room for.
    fn tidy(&mut self) {
        self.points.retain(|p| p.weight >= FORGOTTEN);
        self.points.sort_by(|a, b| a.load.total_cmp(&b.load));
        while self.points.len() > POINTS {
            let weights = self.points.iter().enumerate();
            let least = weights.min_by(|(_, a), (_, b)| a.weight.total_cmp(&b.weight));
            let Some((least, _)) = least else { return };
            self.points.remove(least);
        }
    }

    fn left(&self, now: Time) -> f64 {
        self.aged.map_or(1.0, |t| half(now.since(t)))
    }

    fn age(&mut self, target: f64, now: Time) {
        let left = self.left(now);
        for p in &mut self.points {
            p.weight *= if p.upper() > target.ln() {
                left.powf(LIMIT_AGES)
            } else {
                left
            };
        }
        self.aged = Some(now);
    }

    /// What a pod can take within `target` microseconds, as far as was seen.
    pub(crate) fn estimate(&self, target: f64, now: Time) -> Learned {
        let left = self.left(now);
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return Learned::default();
        };
        let mut learned = Learned {
            seen: Some((first.load, last.load)),
            ..Learned::default()
        };
        let line = target.ln();
        let curve = self.rising();
        let good = curve.iter().take_while(|(_, ln)| *ln <= line).count();
        learned.limit_seen = good < curve.len();
        // What was fast enough at some load says the same of every lesser one, so the evidence adds up downwards; the
        // largest load with enough of it is what a pod can take.
        let mut weight = 0.0;
        let points = self.points.iter().zip(&curve).enumerate().take(good);
        for (i, (point, (load, ln))) in points.rev() {
            weight += point.weight * left;
            learned.capacity = Some(*load).filter(|c| c.is_finite() && *c > 0.0);
            learned.room = (!learned.limit_seen).then(|| (ln - line).exp());
            learned.confidence = weight / (weight + HALF);
            if learned.confidence >= ENOUGH {
                if let Some((beyond, above)) = curve.get(i + 1).filter(|_| i + 1 == good) {
                    // Between two loads that were seen, the curve is taken for straight.
                    let share = ((line - ln) / (above - ln)).clamp(0.0, 1.0);
                    learned.capacity = Some(load + share * (beyond - load));
                }
                break;
            }
        }
        learned
    }

    /// Load and logarithm of latency, with a deviation on top, made to rise: neighbours that fall are taken together
    /// by weight (the pool-adjacent-violators algorithm of isotonic regression).
    fn rising(&self) -> Vec<(f64, f64)> {
        // Sum of weight times value, sum of weights, points in it.
        let mut pools: Vec<(f64, f64, usize)> = Vec::with_capacity(self.points.len());
        for p in &self.points {
            let mut pool = (p.weight * p.upper(), p.weight, 1);
            while let Some(before) = pools.last().copied()
                && before.0 / before.1 >= pool.0 / pool.1
            {
                pool = (pool.0 + before.0, pool.1 + before.1, pool.2 + before.2);
                pools.pop();
            }
            pools.push(pool);
        }
        let values = pools
            .iter()
            .flat_map(|(sum, weight, n)| std::iter::repeat_n(sum / weight, *n));
        self.points.iter().map(|p| p.load).zip(values).collect()
    }

    /// Whether a latency above target at this load would come from elsewhere: such a load was well within what pods
    /// can take, and their threads wait for a CPU no more than was usual there.
    pub(crate) fn has_another_cause(
        &self,
        target: f64,
        load: f64,
        waiting: Option<f64>,
        now: Time,
    ) -> bool {
        let Some(waiting) = waiting else { return false };
        let learned = self.estimate(target, now);
        let within = learned.is_known() && learned.capacity.is_some_and(|c| load <= WELL_BELOW * c);
        if !within || self.unexplained >= UNEXPLAINED {
            return false;
        }
        let near = self.points.iter().filter(|p| p.load <= load * 1.25);
        let usual = near.filter_map(|p| p.waiting).reduce(f64::max);
        // With no lesser load seen, the least one tells how much there may be.
        let usual = usual.or_else(|| self.points.first().and_then(|p| p.waiting));
        usual.is_some_and(|usual| waiting <= 2.0 * usual + 0.1)
    }
}

fn within(x: f64, (least, most): (f64, f64)) -> bool {
    x >= least && x <= most
}

/// Of which point a load is.
fn key(load: f64) -> i64 {
    (load.ln() / WIDTH.ln()).floor() as i64
}

/// What is left of knowledge of this age.
fn half(age: Duration) -> f64 {
    0.5f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
}
