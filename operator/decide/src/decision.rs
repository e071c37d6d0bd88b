//! The outcome: replicas, why, and what each metric asked for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Learned, Time};

/// Why the replicas are what they are. Condition, event, metric label and message come from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// Every metric is near enough to its target.
    WithinTolerance,
    /// The top metric asks for more.
    MetricAboveTarget,
    /// The top metric asks for more, and the short window says so.
    BurstAboveTarget,
    /// Every metric asks for less.
    AllMetricsBelowTarget,
    /// A metric is off its target, but too few events say so.
    NotSignificant,
    /// Less is asked for while a burst may not be over.
    Bursting,
    /// Less is asked for, but a stable window has not been seen yet.
    Starting,
    /// A latency is off its target, and the last step's effect is not yet seen.
    Settling,
    /// Less is asked for, but some pods cannot be seen.
    PartialCoverage,
    /// One pod in ten fewer, to learn what pods can take: more than any was seen with.
    Probing,
    /// A latency is off its target at a load that was well within it, and no more threads wait for a CPU.
    LatencyNotFromLoad,
    /// Less is asked for, but a recent recommendation was higher.
    ScaleDownStabilized,
    /// More is asked for, but a recent recommendation was lower.
    ScaleUpStabilized,
    /// More is asked for, but a scale-up policy allows nothing now.
    ScaleUpLimit,
    /// Less is asked for, but a scale-down policy allows nothing now.
    ScaleDownLimit,
    /// More is asked for than the maximum, which is reached.
    TooManyReplicas,
    /// Less is asked for than the minimum, which is reached.
    TooFewReplicas,
    /// There were more replicas than the maximum.
    AboveMaximum,
    /// There were fewer replicas than the minimum.
    BelowMinimum,
    /// No metric can be seen: hold.
    NoMetrics,
    /// Some metrics cannot be seen and the others ask for less: hold.
    SomeMetricsMissing,
    /// No metric could be seen for so long that the fallback counts.
    Fallback,
    /// The target is scaled to zero by somebody else.
    ScalingDisabled,
    /// The user has paused scaling.
    Paused,
}

impl Reason {
    /// As in conditions, events and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WithinTolerance => "WithinTolerance",
            Self::MetricAboveTarget => "MetricAboveTarget",
            Self::BurstAboveTarget => "BurstAboveTarget",
            Self::AllMetricsBelowTarget => "AllMetricsBelowTarget",
            Self::NotSignificant => "NotSignificant",
            Self::Bursting => "Bursting",
            Self::Starting => "Starting",
            Self::Settling => "Settling",
            Self::PartialCoverage => "PartialCoverage",
            Self::Probing => "Probing",
            Self::LatencyNotFromLoad => "LatencyNotFromLoad",
            Self::ScaleDownStabilized => "ScaleDownStabilized",
            Self::ScaleUpStabilized => "ScaleUpStabilized",
            Self::ScaleUpLimit => "ScaleUpLimit",
            Self::ScaleDownLimit => "ScaleDownLimit",
            Self::TooManyReplicas => "TooManyReplicas",
            Self::TooFewReplicas => "TooFewReplicas",
            Self::AboveMaximum => "AboveMaximum",
            Self::BelowMinimum => "BelowMinimum",
            Self::NoMetrics => "NoMetrics",
            Self::SomeMetricsMissing => "SomeMetricsMissing",
            Self::Fallback => "Fallback",
            Self::ScalingDisabled => "ScalingDisabled",
            Self::Paused => "Paused",
        }
    }
}

/// What kept the replicas from going where the metrics point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Limited {
    /// The maximum.
    TooManyReplicas,
    /// The minimum.
    TooFewReplicas,
    /// A scale-up policy.
    ScaleUpLimit,
    /// A scale-down policy.
    ScaleDownLimit,
    /// A higher recommendation in the scale-down window.
    ScaleDownStabilized,
    /// A lower recommendation in the scale-up window.
    ScaleUpStabilized,
}

/// What a metric's proposal rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Basis {
    /// Near enough to the target.
    WithinTolerance,
    /// Off the target, but too few events say so.
    NotSignificant,
    /// The stable window.
    Stable,
    /// A shorter window.
    Burst,
    /// Waits for the effect of the last step.
    Settling,
    /// Would go down, but some pods cannot be seen.
    PartialCoverage,
    /// Puts more on a pod than was seen, to learn.
    Probing,
    /// Off the target for a cause that replicas do not take away.
    NotFromLoad,
    /// There is no value.
    Missing,
}

/// What a metric asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Replicas.
    Replicas(i32),
    /// Nothing, as it cannot be seen, and why.
    Missing(String),
}

/// A metric's part in a decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// What it asks for.
    pub outcome: Outcome,
    /// What that rests on.
    pub basis: Basis,
    /// The value that counted, in the metric's unit, of the whole workload.
    pub value: Option<f64>,
    /// The window it was taken in.
    pub window: Duration,
    /// Whether it starts or prolongs a burst.
    pub triggers_burst: bool,
    /// What was learned of the workload, if that is asked for.
    #[serde(default)]
    pub learned: Option<Learned>,
}

impl Proposal {
    pub(crate) fn missing(why: &str) -> Self {
        Self {
            outcome: Outcome::Missing(why.to_owned()),
            basis: Basis::Missing,
            value: None,
            window: Duration::ZERO,
            triggers_burst: false,
            learned: None,
        }
    }

    /// Replicas asked for, if the metric could be seen.
    #[must_use]
    pub fn replicas(&self) -> Option<i32> {
        match self.outcome {
            Outcome::Replicas(n) => Some(n),
            Outcome::Missing(_) => None,
        }
    }
}

/// What to do and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Replicas that the target asked for.
    pub current: i32,
    /// Replicas that it should ask for.
    pub replicas: i32,
    /// Why.
    pub reason: Reason,
    /// What the metrics asked for, before stabilization and limits; kept for later stabilization.
    pub recommendation: Option<i32>,
    /// What kept it from going there.
    pub limited: Option<Limited>,
    /// Until when it does not go down, if a burst is on.
    pub burst_until: Option<Time>,
    /// The metric that asks for most.
    pub top: Option<usize>,
    /// Each metric's part, in the policy's order.
    pub metrics: Vec<Proposal>,
}

impl Decision {
    pub(crate) fn hold(current: i32, reason: Reason) -> Self {
        Self {
            current,
            replicas: current,
            reason,
            recommendation: None,
            limited: None,
            burst_until: None,
            top: None,
            metrics: Vec::new(),
        }
    }

    /// Whether there is something to write.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.replicas != self.current
    }
}
