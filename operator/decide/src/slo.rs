//! What a latency asks for whose capacity is learned: replicas for the load, as far as was seen what a pod can take, and
//! otherwise bounded steps. Never lowers on what was not seen.

use crate::{
    Basis, Learned, Metric, Objective, Outcome, Proposal, Sample, Target,
    capacity::{Capacity, Look},
    observation::Beside,
    proposal::{TAIL, View, replicas},
};

/// While the largest load seen leaves so much of the target, pods are given more than was seen ...
const ROOM: f64 = 0.6;
/// ... by this factor at most; ...
const REACH: f64 = 1.25;
/// ... or, if it leaves far more, by this.
const FAR: (f64, f64) = (0.35, 2.0);
/// Requests in a short window below which its latency says nothing.
const FEW: u64 = 50;

/// What `view`'s latency and the load beside it ask for.
pub(crate) fn propose(
    view: &View<'_>,
    beside: Option<&Beside>,
    target: f64,
    share: f64,
) -> Proposal {
    let by_latency = view.latency(target, share);
    let capacity = view.history.capacity(&view.metric.name);
    let mut learned = capacity.map_or_else(Learned::default, |c| c.estimate(target, view.now));
    let load = beside.and_then(Beside::load);
    let mut proposal = match (load, learned.capacity.filter(|_| learned.is_known())) {
        (Some(load), Some(each)) => {
            let both = Both {
                view,
                load,
                by_latency,
                waiting: beside.and_then(Beside::waiting_threads),
                capacity,
                target,
                share,
            };
            both.propose(each, &mut learned)
        }
        _ => by_latency,
    };
    // Without the load nothing is known of what fewer pods would have to take.
    let seen = load.is_some_and(Sample::is_whole);
    if !seen && proposal.replicas().is_some_and(|n| n < view.current) {
        proposal.outcome = Outcome::Replicas(view.current);
        proposal.basis = Basis::PartialCoverage;
        learned.load = None;
    }
    proposal.learned = Some(learned);
    proposal
}

struct Both<'a> {
    view: &'a View<'a>,
    load: &'a Sample,
    by_latency: Proposal,
    waiting: Option<f64>,
    capacity: Option<&'a Capacity>,
    target: f64,
    share: f64,
}

impl Both<'_> {
    fn propose(&self, capacity: f64, learned: &mut Learned) -> Proposal {
        let (view, current) = (self.view, self.view.current);
        let ratio = view.stable.value.max(0.0) / self.target;
        let most = self.reach(capacity, learned);
        let tolerated = 1.0 + view.policy.tolerance_up;
        // Replicas change when the load leaves the tolerance: sized so, a pod then has its capacity and no more.
        let (Some(up), Some(down)) = (
            self.by_load(most / tolerated),
            self.by_load(capacity / tolerated),
        ) else {
            return self.by_latency.clone();
        };
        let bursts = up.triggers_burst;
        let wanted = |p: &Proposal| p.replicas().unwrap_or(current);
        let mut chosen = if ratio > tolerated {
            let latency = if self.has_another_cause() {
                view.stay(Basis::NotFromLoad)
            } else {
                self.by_latency.clone()
            };
            if wanted(&up) > wanted(&latency).max(current) {
                self.told(&up, learned)
            } else {
                latency
            }
        } else if wanted(&up) > current {
            let mut more = self.told(&up, learned);
            if !learned.limit_seen && self.is_calm(ratio) {
                // Pods take more than was seen, and well: nothing says yet that they need help.
                more.outcome = Outcome::Replicas(current);
                more.basis = Basis::Probing;
            }
            more
        } else if ratio > 1.0 {
            view.stay(Basis::WithinTolerance)
        } else if wanted(&down) < current {
            self.told(&down, learned)
        } else {
            // With more on each pod than was seen, fewer would do: that is nothing to act on, except step by step.
            let mut staying = self.told(&up, learned);
            staying.outcome = Outcome::Replicas(current);
            let over = learned
                .load
                .is_some_and(|(load, _)| load > most * f64::from(current));
            if let Some(fewer) = self.probe(ratio, most / (1.0 + view.policy.tolerance_up / 2.0)) {
                staying.outcome = Outcome::Replicas(fewer);
                let beyond = learned
                    .load
                    .is_some_and(|(load, _)| load > capacity * f64::from(fewer));
                staying.basis = if beyond {
                    Basis::Probing
                } else {
                    Basis::Stable
                };
            } else if !over {
                staying.basis = Basis::WithinTolerance;
            }
            staying
        };
        chosen.triggers_burst = bursts;
        chosen
    }

    /// The most that a pod is given: the capacity, and more only while nothing was too much and much is left.
    fn reach(&self, capacity: f64, learned: &Learned) -> f64 {
        match learned.room {
            Some(room) if room <= FAR.0 => capacity * FAR.1,
            Some(room) if room <= ROOM => capacity * REACH,
            _ => capacity,
        }
    }

    /// Whether latency leaves much of the target, now and in the last moments.
    fn is_calm(&self, ratio: f64) -> bool {
        let view = self.view;
        let short = view.metric.burst_window.and_then(|w| view.sample.window(w));
        let calm = |w: &crate::WindowSample| {
            w.covered >= w.window
                && w.events.is_some_and(|e| e >= FEW)
                && w.value <= ROOM * self.target
        };
        ratio <= ROOM && short.is_some_and(calm)
    }

    /// What the load asks for with `each` requests per second on a pod.
    fn by_load(&self, each: f64) -> Option<Proposal> {
        let metric = Metric {
            name: self.view.metric.name.clone(),
            objective: Objective::Count,
            target: Target::Average(each),
            ..*self.view.metric
        };
        let stable = *self.load.window(metric.stable_window)?;
        if !(stable.value.is_finite() && each.is_finite() && each > 0.0) {
            return None;
        }
        let view = View {
            metric: &metric,
            sample: self.load,
            stable,
            ..*self.view
        };
        let proposal = view.shared(each);
        // A window that is not full says nothing about less.
        if !view.is_full() && proposal.replicas().is_some_and(|n| n < view.current) {
            return Some(view.stay(Basis::PartialCoverage));
        }
        Some(proposal)
    }

    /// The load's proposal with the latency as its value, and the load beside it.
    fn told(&self, by_load: &Proposal, learned: &mut Learned) -> Proposal {
        learned.load = by_load.value.map(|v| (v, by_load.window));
        Proposal {
            value: Some(self.view.stable.value),
            window: self.view.stable.window,
            ..by_load.clone()
        }
    }

    /// A tenth fewer, if that puts no more than `each` on a pod, and latency allows it.
    fn probe(&self, ratio: f64, each: f64) -> Option<i32> {
        let view = self.view;
        let enough = view.tail(self.share) >= TAIL;
        if ratio > ROOM || !enough || !view.settled() {
            return None;
        }
        let load = self.load.window(view.metric.stable_window)?.value;
        let step = (view.current / 10).max(1);
        let fewer = (view.current - step).max(replicas(load, each)).max(1);
        (fewer < view.current).then_some(fewer)
    }

    fn has_another_cause(&self) -> bool {
        let (Some(capacity), Some(load)) = (
            self.capacity,
            self.load.window(self.view.metric.stable_window),
        ) else {
            return false;
        };
        let pods = f64::from(self.view.ready.max(1));
        let waiting = self.waiting.map(|w| w / pods);
        capacity.has_another_cause(self.target, load.value / pods, waiting, self.view.now)
    }
}

/// One look for the learner, if what is seen says what a pod can take.
pub(crate) fn look(
    metric: &Metric,
    sample: &Sample,
    beside: &Beside,
    share: f64,
    pods: i32,
) -> Option<Look> {
    let (Target::Value(target) | Target::Average(target)) = metric.target;
    let load = beside.load()?;
    if !sample.is_whole() || !load.is_whole() || pods < 1 {
        return None;
    }
    let latency = sample.window(metric.stable_window)?;
    let stable = load.window(metric.stable_window)?;
    let short = load.window(metric.burst_window?)?;
    let full = |w: &crate::WindowSample| w.covered >= w.window.mul_f64(0.9);
    let tail = latency.events? as f64 * (1.0 - share.clamp(0.0, 1.0));
    let whole = full(latency) && full(stable);
    if !(whole && tail >= TAIL && target.is_finite() && target > 0.0) {
        return None;
    }
    let pods = f64::from(pods);
    Some(Look {
        load: stable.value / pods,
        short: (short.value / pods, short.window),
        pods,
        latency: latency.value,
        latest: metric
            .burst_window
            .and_then(|w| sample.window(w))
            .filter(|w| w.events.is_some_and(|e| e >= FEW))
            .map(|w| w.value),
        tail,
        target,
        waiting: beside.waiting_threads().map(|w| w / pods),
    })
}
