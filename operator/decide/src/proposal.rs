//! What one metric asks for, in the default profile. Never looks at the other metrics, at bounds or
//! at policies.

use std::time::Duration;

use crate::{
    Basis, History, Metric, Objective, Observation, Outcome, Policy, Profile, Proposal, Sample,
    Target, Time, WindowSample,
    evidence::{Measured, Recent, Short},
    hpa,
    observation::Beside,
    slo,
};

/// Deviations that a stable window must leave the tolerance by. It is looked at some 240 times an
/// hour independently.
const STABLE: f64 = 2.33;
/// The same for a shorter window, which is looked at far more often.
const BURST: f64 = 4.0;
/// The same once a burst is on: that the load has changed is known, only how far is not. The whole
/// burst window needs less than a part of it, of which many are looked at.
const FOLLOW: f64 = 0.5;
const FOLLOW_SHORT: f64 = 2.0;
/// While a burst is this young, its first step was taken on part of a window, and shorter windows
/// than the burst window are as good as it: they are looked at only a few times.
const YOUNG: Duration = Duration::from_secs(2);
/// For so many burst windows a burst is followed on that little: by then a whole one holds the new load and
/// has been acted on. A load that goes on rising after that has to be seen as any other change: by the
/// burst window as by a stable one, and by a part of it as a burst of its own.
const FOLLOWED: u32 = 2;
/// Replicas are for what the load is at least, with this many deviations of doubt.
const DOUBT: f64 = 0.7;
/// The same for a part of the shortest window, of which there are several to choose from.
const FRESH_DOUBT: f64 = 1.7;
/// Events beyond a quantile below which the quantile itself says nothing.
pub(crate) const TAIL: f64 = 5.0;
/// A latency's step is at most this share of the replicas.
const STEP_UP: f64 = 0.5;
/// A latency this far below its target allows a step down of a tenth.
const RELAXED: f64 = 0.5;
/// Pods may be missing from a value by rounding only.
pub(crate) const FULL: f64 = 0.999;

/// What `metric` asks for.
pub(crate) fn propose(
    metric: &Metric,
    sample: &Sample,
    beside: Option<&Beside>,
    observation: &Observation,
    policy: &Policy,
    history: &History,
    now: Time,
) -> Proposal {
    let Some(stable) = sample
        .window(metric.stable_window)
        .or_else(|| sample.windows.iter().max_by_key(|w| w.window))
    else {
        return Proposal::missing("no window answered");
    };
    let mut stable = *stable;
    if stable.value.is_nan() && stable.events == Some(0) {
        // A quantile of nothing.
        stable.value = 0.0;
    }
    if !stable.value.is_finite() {
        return Proposal::missing("the value is not a number");
    }
    let target = match metric.target {
        Target::Average(t) | Target::Value(t) => t,
    };
    if !(target.is_finite() && target > 0.0) {
        return Proposal::missing("the target is not above zero");
    }
    if policy.profile == Profile::Hpa {
        return hpa::propose(
            stable.value,
            stable.window,
            metric.target,
            observation,
            policy,
        );
    }
    let view = View {
        metric,
        sample,
        stable,
        current: observation.spec_replicas.max(0),
        ready: observation.ready_replicas.max(0),
        policy,
        history,
        now,
    };
    let mut proposal = match (metric.objective, metric.target) {
        (Objective::Latency { share }, Target::Value(t) | Target::Average(t)) => {
            view.latency(t, share)
        }
        (Objective::LearnedLatency { share }, Target::Value(t) | Target::Average(t)) => {
            slo::propose(&view, beside, t, share)
        }
        (_, Target::Value(t)) => view.whole(t),
        (_, Target::Average(t)) => view.shared(t),
    };
    let unseen = !sample.is_whole() || !view.is_full();
    if unseen && matches!(proposal.outcome, Outcome::Replicas(n) if n < view.current) {
        proposal.outcome = Outcome::Replicas(view.current);
        proposal.basis = Basis::PartialCoverage;
    }
    proposal
}

#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub metric: &'a Metric,
    pub sample: &'a Sample,
    pub stable: WindowSample,
    pub current: i32,
    pub ready: i32,
    pub policy: &'a Policy,
    pub history: &'a History,
    pub now: Time,
}

/// Replicas for a load; a cast of a float saturates, and what is not a number asks for nothing.
pub(crate) fn replicas(load: f64, each: f64) -> i32 {
    // 300.0000001 requests on 100 each are three pods' work.
    (load / each - 1e-9).ceil().max(0.0) as i32
}

impl View<'_> {
    fn proposal(&self, replicas: i32, basis: Basis, value: f64, window: Duration) -> Proposal {
        Proposal {
            outcome: Outcome::Replicas(replicas),
            basis,
            value: Some(value),
            window,
            triggers_burst: false,
            learned: None,
        }
    }

    pub(crate) fn stay(&self, basis: Basis) -> Proposal {
        self.proposal(self.current, basis, self.stable.value, self.stable.window)
    }

    /// Whether the stable window reaches back as far as it should.
    pub(crate) fn is_full(&self) -> bool {
        self.stable.covered >= self.stable.window.mul_f64(0.9)
    }

    fn counts(&self) -> bool {
        self.metric.objective == Objective::Count
    }

    /// Load that replicas share.
    pub(crate) fn shared(&self, each: f64) -> Proposal {
        let recent = self.history.recent(&self.metric.name);
        let dispersion = recent.map_or(1.0, Recent::dispersion);
        let capacity = each * f64::from(self.current);
        let stable = self.steady(each, capacity, dispersion);
        match self.burst(each, capacity, recent, dispersion) {
            Some(burst) if burst.replicas() > stable.replicas() => burst,
            Some(_) => Proposal {
                triggers_burst: true,
                ..stable
            },
            None => stable,
        }
    }

    fn steady(&self, each: f64, capacity: f64, dispersion: f64) -> Proposal {
        let measured = Measured::of(&self.stable, self.counts(), dispersion);
        let (value, window) = (measured.value, self.stable.window);
        let (upper, lower) = (
            capacity * (1.0 + self.policy.tolerance_up),
            capacity * (1.0 - self.policy.tolerance_down),
        );
        if value > upper {
            // Until it is full it is a shorter window, and looked at as often.
            let sure = if self.is_full() { STABLE } else { BURST };
            if measured.distance(upper) < sure {
                return self.stay(Basis::NotSignificant);
            }
            let n = replicas(measured.bound(DOUBT), each).max(self.current);
            return self.proposal(n, Basis::Stable, value, window);
        }
        if value < lower {
            if measured.distance(lower) > -STABLE {
                return self.stay(Basis::NotSignificant);
            }
            let n = replicas(measured.bound(-DOUBT), each).min(self.current);
            return self.proposal(n, Basis::Stable, value, window);
        }
        self.stay(Basis::WithinTolerance)
    }

    /// What windows shorter than the stable one ask for, if they are sure that it is more.
    fn burst(
        &self,
        each: f64,
        capacity: f64,
        recent: Option<&Recent>,
        dispersion: f64,
    ) -> Option<Proposal> {
        let burst_window = self.metric.burst_window?;
        let on = self.history.burst_until(self.now).is_some();
        let young = self.history.burst_is_young(YOUNG, self.now);
        let tolerated = capacity * (1.0 + self.policy.tolerance_up);
        let followed = self
            .history
            .burst_is_young(burst_window * FOLLOWED, self.now);
        let (threshold, deviations, short_deviations) = if followed {
            (tolerated, FOLLOW, FOLLOW_SHORT)
        } else if on {
            (tolerated, STABLE, BURST)
        } else {
            let threshold = capacity * self.policy.burst_threshold;
            (threshold.max(tolerated), BURST, BURST)
        };
        let mut best: Option<(f64, f64, Duration)> = None;
        let mut consider = |least: f64, value: f64, window: Duration| {
            if best.is_none_or(|(b, ..)| least > b) {
                best = Some((least, value, window));
            }
        };
        for w in &self.sample.windows {
            if w.window > burst_window || !w.value.is_finite() || w.covered < w.window {
                continue;
            }
            let measured = Measured::of(w, self.counts(), dispersion);
            let deviations = if w.window < burst_window && !young {
                short_deviations
            } else {
                deviations
            };
            if measured.value > threshold && measured.distance(tolerated) >= deviations {
                consider(measured.bound(DOUBT), measured.value, w.window);
            }
        }
        if let (Some(recent), Some(short)) = (recent, Short::of(self.sample, burst_window))
            && matches!(self.metric.objective, Objective::Count | Objective::Flow)
            && let Some(worth) = self.worth(&short)
        {
            for (seconds, events, variance) in recent.fresh(short) {
                let deviation = (variance * dispersion).sqrt();
                let value = events / seconds * worth;
                let expected = tolerated / worth * seconds;
                if value > threshold && events - expected >= short_deviations * deviation {
                    let least = (events - FRESH_DOUBT * deviation) / seconds * worth;
                    consider(least, value, Duration::from_secs_f64(seconds));
                }
            }
        }
        let (least, value, window) = best?;
        let n = replicas(least, each).max(self.current);
        Some(Proposal {
            triggers_burst: true,
            ..self.proposal(n, Basis::Burst, value, window)
        })
    }

    /// What one event per second adds to the value: 1 for a count, a packet's bytes for a flow.
    fn worth(&self, short: &Short) -> Option<f64> {
        if self.counts() {
            return Some(1.0);
        }
        let value = self.sample.window(short.window)?.value;
        let worth = value / (short.events / short.window.as_secs_f64());
        (worth.is_finite() && worth > 0.0).then_some(worth)
    }

    /// A value of the whole workload that replicas bring down, nobody knows how fast: in proportion
    /// to those that are ready, and not again before the effect is seen.
    fn whole(&self, target: f64) -> Proposal {
        let (value, window) = (self.stable.value.max(0.0), self.stable.window);
        let ratio = value / target;
        if ratio > 1.0 + self.policy.tolerance_up {
            if !self.settled() {
                return self.stay(Basis::Settling);
            }
            let n = replicas(ratio * f64::from(self.ready), 1.0).max(self.current);
            return self.proposal(n, Basis::Stable, value, window);
        }
        if ratio < 1.0 - self.policy.tolerance_down {
            if !self.settled() {
                return self.stay(Basis::Settling);
            }
            let n = replicas(ratio * f64::from(self.current), 1.0).min(self.current);
            return self.proposal(n, Basis::Stable, value, window);
        }
        self.stay(Basis::WithinTolerance)
    }

    /// A latency: bounded steps, each after the effect of the last.
    pub(crate) fn latency(&self, target: f64, share: f64) -> Proposal {
        let (value, window) = (self.stable.value.max(0.0), self.stable.window);
        let ratio = value / target;
        if ratio > 1.0 + self.policy.tolerance_up {
            if self.tail(share) < TAIL {
                return self.stay(Basis::NotSignificant);
            }
            if !self.settled() {
                return self.stay(Basis::Settling);
            }
            let step = (f64::from(self.current) * (ratio - 1.0).min(STEP_UP)).ceil() as i32;
            let n = self.current.saturating_add(step.max(1));
            return self.proposal(n, Basis::Stable, value, window);
        }
        if ratio < RELAXED {
            if !self.settled() {
                return self.stay(Basis::Settling);
            }
            let n = self
                .current
                .saturating_sub((self.current / 10).max(1))
                .max(0);
            return self.proposal(n, Basis::Stable, value, window);
        }
        self.stay(Basis::WithinTolerance)
    }

    /// Events beyond the quantile.
    pub(crate) fn tail(&self, share: f64) -> f64 {
        self.stable
            .events
            .map_or(f64::INFINITY, |e| e as f64 * (1.0 - share.clamp(0.0, 1.0)))
    }

    pub(crate) fn settled(&self) -> bool {
        self.history.settled(self.metric.stable_window, self.now)
    }
}
