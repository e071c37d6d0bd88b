//! What of the past later decisions need, in bounded memory. Never longer than the longest window
//! that a user can ask for.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Beside, Decision, Metric, Objective, Observation, Point, Policy, Profile, Reading, Rules,
    Sample, Time,
    capacity::Capacity,
    evidence::{Recent, Short},
    slo,
};

/// The longest stabilization window and the longest policy period that a spec can have.
const LONGEST: Duration = Duration::from_secs(3600);

/// What of the past counts. `default()` is that of a scaler never seen before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    started: Option<Time>,
    /// Recommendations that a later, larger one does not make irrelevant: values fall.
    highs: VecDeque<(Time, i32)>,
    /// The same for small ones: values rise.
    lows: VecDeque<(Time, i32)>,
    ups: VecDeque<(Time, i32)>,
    downs: VecDeque<(Time, i32)>,
    /// In the HPA profile, the longest period of the policies up and down: an older change may be
    /// forgotten, though the other direction's policies may have longer periods.
    forget_after: Option<(Duration, Duration)>,
    burst_until: Option<Time>,
    /// When the burst that is on began.
    burst_since: Option<Time>,
    failing_since: Option<Time>,
    last_scale: Option<Time>,
    /// Since when as many replicas are ready as are asked for.
    ready_since: Option<Time>,
    recent: Vec<(String, Recent)>,
    /// Of each metric whose capacity is learned.
    #[serde(default)]
    capacities: Vec<(String, Capacity)>,
}

impl History {
    /// Remembers a decision, changed or not. Call it once for each, in the order of time.
    pub fn record(
        &mut self,
        observation: &Observation,
        policy: &Policy,
        decision: &Decision,
        now: Time,
    ) {
        let keep = (policy.up.stabilization.max(policy.down.stabilization)).max(LONGEST);
        if self.started.is_none() {
            self.started = Some(now);
            // As the HPA: the replicas found are a recommendation, so a restart lowers nothing.
            self.recommend(decision.current, keep, now);
        }
        if let Some(n) = decision.recommendation {
            self.recommend(n, keep, now);
        }
        let longest = |rules: &Rules| rules.policies.iter().map(|p| p.period).max();
        self.forget_after = (policy.profile == Profile::Hpa).then(|| {
            (
                longest(&policy.up).unwrap_or_default(),
                longest(&policy.down).unwrap_or_default(),
            )
        });
        if decision.burst_until.is_none() {
            self.burst_since = None;
        } else if self.burst_until(now).is_none() || self.burst_since.is_none() {
            self.burst_since = Some(now);
        }
        self.burst_until = decision.burst_until;
        let all_missing = !observation.metrics.is_empty()
            && observation
                .metrics
                .iter()
                .all(|m| matches!(m, Reading::Missing(_)));
        self.failing_since = match (all_missing, self.failing_since) {
            (false, _) => None,
            (true, since) => since.or(Some(now)),
        };
        let ready = observation.ready_replicas >= observation.spec_replicas;
        self.ready_since = match (ready, self.ready_since) {
            (false, _) => None,
            (true, since) => since.or(Some(now)),
        };
        for (i, (metric, reading)) in policy.metrics.iter().zip(&observation.metrics).enumerate() {
            match (metric.objective, reading) {
                (Objective::LearnedLatency { share }, _) => {
                    self.learn(i, metric, share, observation, now);
                }
                (_, Reading::Known(sample)) => {
                    self.remember(&metric.name, metric.burst_window, sample);
                }
                (_, Reading::Missing(_)) => {}
            }
        }
        self.capacities
            .retain(|(name, _)| policy.metrics.iter().any(|m| m.name == *name));
        self.recent
            .retain(|(name, _)| policy.metrics.iter().any(|m| m.name == *name));
    }

    /// Learns what a pod can take, where pods and load have been steady for long enough.
    fn learn(
        &mut self,
        i: usize,
        metric: &Metric,
        share: f64,
        observation: &Observation,
        now: Time,
    ) {
        let beside = observation.beside(i);
        if let Some(load) = beside.and_then(Beside::load) {
            self.remember(&metric.name, metric.burst_window, load);
        }
        let at_rest = self.settled(metric.stable_window, now)
            && observation.ready_replicas == observation.spec_replicas
            && observation.status_replicas == observation.spec_replicas;
        let look = match (observation.metrics.get(i), beside) {
            (Some(Reading::Known(sample)), Some(beside)) => {
                slo::look(metric, sample, beside, share, observation.ready_replicas)
            }
            _ => None,
        };
        let capacity = match self.capacities.iter().position(|(n, _)| *n == metric.name) {
            Some(at) => self.capacities.get_mut(at),
            None => {
                self.capacities
                    .push((metric.name.clone(), Capacity::default()));
                self.capacities.last_mut()
            }
        };
        let Some((_, capacity)) = capacity else {
            return;
        };
        match look {
            Some(look) => capacity.look(&look, at_rest, metric.stable_window, now),
            None => capacity.interrupt(),
        }
    }

    /// What was learned for the metric of this name, to be kept elsewhere.
    #[must_use]
    pub fn learned(&self, name: &str, now: Time) -> Vec<Point> {
        self.capacity(name)
            .map(|c| c.points(now))
            .unwrap_or_default()
    }

    /// Takes in what was learned before a restart, `age` ago. What has been learned since counts more.
    pub fn restore(&mut self, name: &str, points: &[Point], age: Duration, now: Time) {
        if self.capacity(name).is_none_or(Capacity::is_empty) {
            self.capacities.retain(|(n, _)| n != name);
            self.capacities
                .push((name.to_owned(), Capacity::restore(points, age, now)));
        }
    }

    pub(crate) fn capacity(&self, name: &str) -> Option<&Capacity> {
        let mut named = self.capacities.iter();
        named.find(|(n, _)| n == name).map(|(_, c)| c)
    }

    fn remember(&mut self, name: &str, burst_window: Option<Duration>, sample: &Sample) {
        let Some(burst_window) = burst_window else {
            return;
        };
        let Some(short) = Short::of(sample, burst_window) else {
            return;
        };
        match self.recent.iter_mut().find(|(n, _)| n == name) {
            Some((_, recent)) => recent.push(short),
            None => {
                let mut recent = Recent::default();
                recent.push(short);
                self.recent.push((name.to_owned(), recent));
            }
        }
    }

    fn recommend(&mut self, n: i32, keep: Duration, now: Time) {
        while self.highs.back().is_some_and(|(_, v)| *v <= n) {
            self.highs.pop_back();
        }
        self.highs.push_back((now, n));
        while self.lows.back().is_some_and(|(_, v)| *v >= n) {
            self.lows.pop_back();
        }
        self.lows.push_back((now, n));
        for queue in [&mut self.highs, &mut self.lows] {
            while queue.front().is_some_and(|(t, _)| now.since(*t) > keep) {
                queue.pop_front();
            }
        }
    }

    /// Remembers that replicas were really written.
    pub fn scaled(&mut self, from: i32, to: i32, now: Time) {
        let change = to.saturating_sub(from);
        if change == 0 {
            return;
        }
        let (queue, forget_after) = if change > 0 {
            (&mut self.ups, self.forget_after.map(|(up, _)| up))
        } else {
            (&mut self.downs, self.forget_after.map(|(_, down)| down))
        };
        remember(queue, change.saturating_abs(), forget_after, now);
        self.last_scale = Some(now);
        self.ready_since = None;
        for queue in [&mut self.ups, &mut self.downs] {
            while queue.front().is_some_and(|(t, _)| now.since(*t) > LONGEST) {
                queue.pop_front();
            }
        }
    }

    /// The largest recommendation after `now - window` (or exactly then, if `inclusive`).
    pub(crate) fn highest(&self, window: Duration, inclusive: bool, now: Time) -> Option<i32> {
        newest_from(&self.highs, window, inclusive, now)
    }

    /// The smallest recommendation after `now - window`.
    pub(crate) fn lowest(&self, window: Duration, now: Time) -> Option<i32> {
        newest_from(&self.lows, window, false, now)
    }

    /// Whether nothing has been recorded yet.
    pub(crate) fn is_new(&self) -> bool {
        self.started.is_none()
    }

    /// Replicas added and removed within `period`.
    pub(crate) fn changes(&self, period: Duration, now: Time) -> (i32, i32) {
        let sum = |q: &VecDeque<(Time, i32)>| {
            q.iter()
                .filter(|(t, _)| t.within(period, now))
                .fold(0i32, |a, (_, n)| a.saturating_add(*n))
        };
        (sum(&self.ups), sum(&self.downs))
    }

    /// The end of a burst that is still on.
    pub(crate) fn burst_until(&self, now: Time) -> Option<Time> {
        self.burst_until.filter(|t| *t > now)
    }

    /// Whether a burst is on that began less than this ago.
    pub(crate) fn burst_is_young(&self, age: Duration, now: Time) -> bool {
        self.burst_until(now).is_some() && self.burst_since.is_some_and(|t| t.within(age, now))
    }

    pub(crate) fn failing_for(&self, now: Time) -> Option<Duration> {
        self.failing_since.map(|t| now.since(t))
    }

    /// Whether a window of this length lies after the first decision.
    pub(crate) fn has_seen(&self, window: Duration, now: Time) -> bool {
        self.started.is_some_and(|t| now.since(t) >= window)
    }

    /// Whether the effect of the last step can be seen in a window of this length.
    pub(crate) fn settled(&self, window: Duration, now: Time) -> bool {
        let after = |t: Option<Time>| t.is_none_or(|t| now.since(t) >= window);
        match self.last_scale {
            None => self.has_seen(window, now),
            Some(_) => {
                after(self.last_scale) && self.ready_since.is_some() && after(self.ready_since)
            }
        }
    }

    pub(crate) fn recent(&self, name: &str) -> Option<&Recent> {
        self.recent.iter().find(|(n, _)| n == name).map(|(_, r)| r)
    }

    /// When replicas were last written.
    #[must_use]
    pub fn last_scale(&self) -> Option<Time> {
        self.last_scale
    }
}

/// Adds a change. As the HPA does it (storeScaleEvent), it takes the place of the last one that is
/// older than `forget_after`; the order is then no longer that of time.
fn remember(
    queue: &mut VecDeque<(Time, i32)>,
    change: i32,
    forget_after: Option<Duration>,
    now: Time,
) {
    let old = |(t, _): &(Time, i32)| forget_after.is_some_and(|d| now.since(*t) > d);
    match queue.iter().rposition(old).and_then(|i| queue.get_mut(i)) {
        Some(place) => *place = (now, change),
        None => queue.push_back((now, change)),
    }
}

/// In a queue whose values fall (or rise), the first that is young enough is the extreme.
fn newest_from(
    queue: &VecDeque<(Time, i32)>,
    window: Duration,
    inclusive: bool,
    now: Time,
) -> Option<i32> {
    let young = |t: Time| {
        let age = now.since(t);
        age < window || (inclusive && age == window)
    };
    let first = queue.partition_point(|(t, _)| !young(*t));
    queue.get(first).map(|(_, n)| *n)
}
