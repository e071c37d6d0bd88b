//! Stabilization, policies and bounds: HPA v2's arithmetic, from horizontal.go of Kubernetes 1.34
//! (stabilizeRecommendationWithBehaviors, calculateScaleUpLimitWithScalingRules and their
//! siblings). Never looks at a metric.

use std::time::Duration;

use crate::{Decision, History, Limited, Policy, Profile, Reason, Rules, Select, Time, Unit};

/// Takes `wanted` through stabilization, policies and bounds into `decision`.
pub(crate) fn limit(
    decision: &mut Decision,
    wanted: i32,
    policy: &Policy,
    history: &History,
    now: Time,
) {
    let (min, max) = policy.bounds();
    let plain = policy.profile == Profile::Hpa && !policy.behavior_given;
    let (stable, stabilized) = if plain {
        stabilize_plain(decision.current, wanted, policy, history, now)
    } else {
        stabilize(decision.current, wanted, policy, history, now)
    };
    let (replicas, limited) = if plain {
        bound_plain(decision.current, stable, min, max)
    } else {
        bound(decision.current, stable, policy, history, now)
    };
    decision.replicas = replicas;
    decision.limited = limited.or(stabilized);
    // At a bound, the bound is what stops it, whatever else would.
    if policy.profile == Profile::Default && replicas == decision.current {
        if wanted < min && decision.current == min {
            decision.limited = Some(Limited::TooFewReplicas);
        } else if wanted > max && decision.current == max {
            decision.limited = Some(Limited::TooManyReplicas);
        }
    }
    // If nothing changes although something was wanted, what stopped it is the reason.
    if replicas == decision.current
        && wanted != decision.current
        && let Some(limited) = decision.limited
    {
        decision.reason = match limited {
            Limited::TooManyReplicas => Reason::TooManyReplicas,
            Limited::TooFewReplicas => Reason::TooFewReplicas,
            Limited::ScaleUpLimit => Reason::ScaleUpLimit,
            Limited::ScaleDownLimit => Reason::ScaleDownLimit,
            Limited::ScaleDownStabilized => Reason::ScaleDownStabilized,
            Limited::ScaleUpStabilized => Reason::ScaleUpStabilized,
        };
    }
}

/// The replicas that the first decision finds count as a recommendation made at that moment.
fn initial(history: &History, current: i32, window: Duration) -> Option<i32> {
    (history.is_new() && !window.is_zero()).then_some(current)
}

fn stabilize_plain(
    current: i32,
    wanted: i32,
    policy: &Policy,
    history: &History,
    now: Time,
) -> (i32, Option<Limited>) {
    let window = policy.down.stabilization;
    let highest = history
        .highest(window, true, now)
        .max(history.is_new().then_some(current));
    let stable = highest.map_or(wanted, |h| h.max(wanted));
    (
        stable,
        (stable > wanted).then_some(Limited::ScaleDownStabilized),
    )
}

fn stabilize(
    current: i32,
    wanted: i32,
    policy: &Policy,
    history: &History,
    now: Time,
) -> (i32, Option<Limited>) {
    let lowest = [
        history.lowest(policy.up.stabilization, now),
        initial(history, current, policy.up.stabilization),
    ];
    let up = lowest.into_iter().flatten().fold(wanted, i32::min);
    let highest = [
        history.highest(policy.down.stabilization, false, now),
        initial(history, current, policy.down.stabilization),
    ];
    let down = highest.into_iter().flatten().fold(wanted, i32::max);
    let stable = current.max(up).min(down);
    let limited = match stable.cmp(&wanted) {
        std::cmp::Ordering::Greater => Some(Limited::ScaleDownStabilized),
        std::cmp::Ordering::Less => Some(Limited::ScaleUpStabilized),
        std::cmp::Ordering::Equal => None,
    };
    (stable, limited)
}

/// Without `behavior` the HPA allows max(2x, 4) a reconciliation, with no period.
fn bound_plain(current: i32, stable: i32, min: i32, max: i32) -> (i32, Option<Limited>) {
    let up_limit = current.saturating_mul(2).max(4);
    let (allowed, why) = if max > up_limit {
        (up_limit, Limited::ScaleUpLimit)
    } else {
        (max, Limited::TooManyReplicas)
    };
    if stable < min {
        (min, Some(Limited::TooFewReplicas))
    } else if stable > allowed {
        (allowed, Some(why))
    } else {
        (stable, None)
    }
}

fn bound(
    current: i32,
    stable: i32,
    policy: &Policy,
    history: &History,
    now: Time,
) -> (i32, Option<Limited>) {
    let (min, max) = policy.bounds();
    if stable > current {
        let limit = up_limit(current, &policy.up, history, now).max(current);
        let (allowed, why) = if max > limit {
            (limit, Limited::ScaleUpLimit)
        } else {
            (max, Limited::TooManyReplicas)
        };
        if stable > allowed {
            return (allowed, Some(why));
        }
    } else if stable < current {
        let limit = down_limit(current, &policy.down, history, now).min(current);
        let (allowed, why) = if min < limit {
            (limit, Limited::ScaleDownLimit)
        } else {
            (min, Limited::TooFewReplicas)
        };
        if stable < allowed {
            return (allowed, Some(why));
        }
    }
    (stable, None)
}

/// Replicas when a policy's period began: now, without what the period added, with what it removed.
fn at_start(current: i32, period: Duration, history: &History, now: Time) -> i32 {
    let (added, removed) = history.changes(period, now);
    current.saturating_sub(added).saturating_add(removed)
}

fn up_limit(current: i32, rules: &Rules, history: &History, now: Time) -> i32 {
    let proposals = rules.policies.iter().map(|policy| {
        let start = at_start(current, policy.period, history, now);
        match policy.unit {
            Unit::Pods => start.saturating_add(policy.value),
            // Rounded up, or 1 would never grow by 10 %. A cast of a float saturates.
            Unit::Percent => {
                (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32
            }
        }
    });
    match rules.select {
        Select::Disabled => current,
        Select::Min => proposals.min().unwrap_or(i32::MAX),
        Select::Max => proposals.max().unwrap_or(i32::MIN),
    }
}

fn down_limit(current: i32, rules: &Rules, history: &History, now: Time) -> i32 {
    let proposals = rules.policies.iter().map(|policy| {
        let start = at_start(current, policy.period, history, now);
        match policy.unit {
            Unit::Pods => start.saturating_sub(policy.value),
            // Truncated as in Go: 90 % of 100 leaves 9, for 1 - 0.9 is less than 0.1 in binary.
            Unit::Percent => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
        }
    });
    match rules.select {
        Select::Disabled => current,
        // The least change is the largest number.
        Select::Min => proposals.max().unwrap_or(i32::MIN),
        Select::Max => proposals.min().unwrap_or(i32::MAX),
    }
}
