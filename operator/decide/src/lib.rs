//! Decides replicas: an observation, a policy and a history to a decision with its reason. Never
//! reads a clock, talks to anything or draws a random number; every input has a defined answer.

mod behavior;
mod capacity;
mod decision;
mod evidence;
mod explain;
mod history;
mod hpa;
mod observation;
mod policy;
mod proposal;
mod slo;
mod time;

pub use capacity::{Learned, Point};
pub use decision::{Basis, Decision, Limited, Outcome, Proposal, Reason};
pub use history::History;
pub use observation::{Beside, Observation, Reading, Sample, WindowSample};
pub use policy::{
    Fallback, Floor, Limit, Metric, Mode, Objective, Pause, Policy, Profile, Rules, Select, Target,
    Unit,
};
pub use time::Time;

/// Decides what `observation` asks for at `now`, under `policy` and after `history`.
///
/// To go on, pass the decision to [`History::record`], and what was really written to
/// [`History::scaled`].
#[must_use]
pub fn decide(
    observation: &Observation,
    policy: &Policy,
    history: &History,
    now: Time,
) -> Decision {
    let mut decision = unpaused(observation, policy, history, now);
    // What the metrics ask for is told all the same. A target that somebody scaled to zero stays there.
    if let Some(pause) = policy.pause
        && decision.current > 0
    {
        decision.replicas = pause.replicas.unwrap_or(decision.current).max(0);
        decision.reason = Reason::Paused;
        decision.limited = None;
    }
    decision
}

fn unpaused(observation: &Observation, policy: &Policy, history: &History, now: Time) -> Decision {
    let current = observation.spec_replicas.max(0);
    let mut decision = Decision::hold(current, Reason::WithinTolerance);
    let (min, max) = policy.bounds();
    decision.metrics = policy
        .metrics
        .iter()
        .enumerate()
        .map(|(i, metric)| match observation.metrics.get(i) {
            Some(Reading::Known(sample)) => proposal::propose(
                metric,
                sample,
                observation.beside(i),
                observation,
                policy,
                history,
                now,
            ),
            Some(Reading::Missing(why)) => Proposal::missing(why),
            None => Proposal::missing("not observed"),
        })
        .collect();

    if current == 0 && min > 0 {
        decision.reason = Reason::ScalingDisabled;
        return decision;
    }
    // Bounds come before everything else, and no policy slows them down.
    if current > max {
        decision.replicas = max;
        decision.reason = Reason::AboveMaximum;
        return decision;
    }
    if current < min {
        decision.replicas = min;
        decision.reason = Reason::BelowMinimum;
        return decision;
    }
    demand(&mut decision, policy, history, now);
    decision
}

/// From each metric's proposal to what all of them ask for, and from there to what may be done.
fn demand(decision: &mut Decision, policy: &Policy, history: &History, now: Time) {
    let current = decision.current;
    let hpa = policy.profile == Profile::Hpa;
    let proposals = decision.metrics.iter().enumerate();
    let proposals = proposals.filter_map(|(i, p)| Some((i, p.replicas()?)));
    let missing = decision.metrics.len() - proposals.clone().count();
    let best = if hpa {
        hpa::top(proposals)
    } else {
        // Of equal ones the first.
        proposals.reduce(|top, next| if next.1 > top.1 { next } else { top })
    };
    let Some((top, asked)) = best else {
        decision.reason = Reason::NoMetrics;
        // The HPA forgets that it held; we count holding as a recommendation to stay.
        decision.recommendation = (!hpa).then_some(current);
        fall_back(decision, policy, history, now);
        return;
    };
    decision.top = Some(top);
    if missing > 0 && asked < current {
        decision.reason = Reason::SomeMetricsMissing;
        decision.recommendation = (!hpa).then_some(current);
        return;
    }
    let asked = asked.max(0);
    decision.recommendation = Some(asked);
    let basis = decision.metrics.get(top).map(|p| p.basis);
    decision.reason = match asked.cmp(&current) {
        std::cmp::Ordering::Greater if basis == Some(Basis::Burst) => Reason::BurstAboveTarget,
        std::cmp::Ordering::Greater => Reason::MetricAboveTarget,
        std::cmp::Ordering::Less if basis == Some(Basis::Probing) => Reason::Probing,
        std::cmp::Ordering::Less => Reason::AllMetricsBelowTarget,
        std::cmp::Ordering::Equal => match basis {
            Some(Basis::Settling) => Reason::Settling,
            Some(Basis::NotSignificant) => Reason::NotSignificant,
            Some(Basis::PartialCoverage) => Reason::PartialCoverage,
            Some(Basis::NotFromLoad) => Reason::LatencyNotFromLoad,
            _ => Reason::WithinTolerance,
        },
    };
    if decision.metrics.iter().any(|p| p.triggers_burst) {
        decision.burst_until = Some(now.after(policy.stable_window()));
    } else {
        decision.burst_until = history.burst_until(now);
    }

    let mut wanted = asked;
    let (min, _) = policy.bounds();
    // At the minimum there is nothing to hold back.
    if !hpa && wanted < current && current > min {
        if decision.burst_until.is_some() {
            wanted = current;
            decision.reason = Reason::Bursting;
        } else if current > 1 && !history.has_seen(policy.stable_window(), now) {
            wanted = current;
            decision.reason = Reason::Starting;
        }
    }
    behavior::limit(decision, wanted, policy, history, now);
}

/// Without any metric for long enough: at least the fallback's replicas, never fewer than now.
fn fall_back(decision: &mut Decision, policy: &Policy, history: &History, now: Time) {
    let Some(fallback) = &policy.fallback else {
        return;
    };
    let failing = history.failing_for(now);
    if failing.is_some_and(|d| d >= fallback.after) && fallback.replicas > decision.current {
        decision.reason = Reason::Fallback;
        behavior::limit(decision, fallback.replicas, policy, history, now);
    } else if failing.is_some_and(|d| d >= fallback.after) {
        decision.reason = Reason::Fallback;
    }
}
