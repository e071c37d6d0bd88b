//! The HPA's arithmetic: what a metric proposes, from replica_calculator.go of Kubernetes 1.34
//! (GetExternalMetricReplicas, GetExternalPerPodMetricReplicas), in whole thousandths; and what all of
//! them ask for, from horizontal.go. Never looks at bounds, policies or the past.

use std::time::Duration;

use crate::{Basis, Observation, Outcome, Policy, Proposal, Target};

/// Thousandths, rounded up as `Quantity.MilliValue` does; a cast of a float saturates.
fn milli(value: f64) -> i64 {
    // 1.1 * 1000 is a little more than 1100 in binary; what is that near was meant.
    let scaled = value * 1000.0;
    let near = scaled.round();
    if (scaled - near).abs() <= near.abs() * 1e-12 {
        near as i64
    } else {
        scaled.ceil() as i64
    }
}

/// What the HPA would propose for this value.
pub(crate) fn propose(
    value: f64,
    window: Duration,
    target: Target,
    observation: &Observation,
    policy: &Policy,
) -> Proposal {
    let within =
        |ratio: f64| 1.0 - policy.tolerance_down <= ratio && ratio <= 1.0 + policy.tolerance_up;
    let mut usage = milli(value) as f64;
    let (replicas, inside) = match target {
        Target::Value(target) => {
            let ratio = usage / milli(target) as f64;
            if observation.spec_replicas == 0 {
                (ratio.ceil() as i32, false)
            } else if within(ratio) {
                (observation.spec_replicas, true)
            } else if observation.status_replicas.max(observation.ready_replicas) <= 0 {
                return Proposal::missing("no pods exist");
            } else {
                (
                    (ratio * f64::from(observation.ready_replicas)).ceil() as i32,
                    false,
                )
            }
        }
        Target::Average(target) => {
            let target = milli(target) as f64;
            if usage < 0.0 {
                // Taken for a sum that overflowed.
                usage = i64::MAX as f64;
            }
            let ratio = usage / (target * f64::from(observation.status_replicas));
            if within(ratio) {
                (observation.status_replicas, true)
            } else {
                ((usage / target).ceil() as i32, false)
            }
        }
    };
    Proposal {
        outcome: Outcome::Replicas(replicas),
        basis: if inside {
            Basis::WithinTolerance
        } else {
            Basis::Stable
        },
        value: Some(value),
        window,
        triggers_burst: false,
        learned: None,
    }
}

/// What proposals that could be made, in the metrics' order, ask for together. Only a negative one,
/// of a negative value, gives way to a smaller one.
pub(crate) fn top(proposals: impl Iterator<Item = (usize, i32)>) -> Option<(usize, i32)> {
    proposals.reduce(|top, next| {
        if top.1 == 0 || next.1 > top.1 {
            next
        } else {
            top
        }
    })
}
