//! What a user asks for: metrics with targets, bounds, and how fast to go.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which rules decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// The HPA's rules, and in addition significance, bursting, bounded steps and holds.
    #[default]
    Default,
    /// Exactly HPA v2.
    Hpa,
}

/// Whether decisions are carried out. The engine decides the same; it is part of the policy so that
/// a decision log says which it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// They are.
    #[default]
    Enforce,
    /// They are only reported.
    Observe,
}

/// All that a user asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Which rules decide.
    pub profile: Profile,
    /// Whether decisions are carried out.
    pub mode: Mode,
    /// Never fewer replicas.
    pub min: i32,
    /// Never more replicas.
    pub max: i32,
    /// How far above 1 a ratio to the target may be without a change.
    pub tolerance_up: f64,
    /// How far below 1.
    pub tolerance_down: f64,
    /// How far above its target a metric must be in a short window to start a burst; 1.25 is 25 %.
    pub burst_threshold: f64,
    /// What to look at.
    pub metrics: Vec<Metric>,
    /// Rules for adding replicas.
    pub up: Rules,
    /// Rules for removing them.
    pub down: Rules,
    /// Whether the user gave `behavior`; the HPA's rules differ even from giving its defaults.
    pub behavior_given: bool,
    /// What to do when nothing can be seen.
    pub fallback: Option<Fallback>,
    /// A higher minimum that counts just now.
    pub floor: Option<Floor>,
    /// Set while nothing may be scaled.
    pub pause: Option<Pause>,
}

impl Policy {
    /// A policy of the default profile with the default rules.
    #[must_use]
    pub fn new(min: i32, max: i32, metrics: Vec<Metric>) -> Self {
        Self {
            profile: Profile::Default,
            mode: Mode::Enforce,
            min,
            max,
            tolerance_up: 0.1,
            tolerance_down: 0.1,
            burst_threshold: 1.25,
            metrics,
            up: Rules::scale_up(),
            down: Rules::scale_down(),
            behavior_given: false,
            fallback: None,
            floor: None,
            pause: None,
        }
    }

    /// A policy of the HPA profile without `behavior`.
    #[must_use]
    pub fn hpa(min: i32, max: i32, metrics: Vec<Metric>) -> Self {
        Self {
            profile: Profile::Hpa,
            up: Rules::hpa_scale_up(),
            ..Self::new(min, max, metrics)
        }
    }

    /// Lower and upper bound in an order that holds even for a spec that slipped through validation.
    #[must_use]
    pub fn bounds(&self) -> (i32, i32) {
        let min = self.min.max(0);
        let max = self.max.max(min);
        let floor = self.floor.as_ref().map_or(min, |f| f.replicas);
        (floor.clamp(min, max), max)
    }

    /// The floor, if it is what makes the lower bound.
    pub(crate) fn raised(&self) -> Option<&Floor> {
        self.floor.as_ref().filter(|f| f.replicas > self.min.max(0))
    }

    /// The longest stable window of all metrics.
    #[must_use]
    pub fn stable_window(&self) -> Duration {
        self.metrics
            .iter()
            .map(|m| m.stable_window)
            .max()
            .unwrap_or(Duration::from_secs(30))
    }
}

/// A metric and where it should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Unique among the metrics of a policy; the history goes by it.
    pub name: String,
    /// How the metric answers to replicas.
    pub objective: Objective,
    /// Where it should be.
    pub target: Target,
    /// What steady decisions look at.
    pub stable_window: Duration,
    /// What sudden load is seen in; none for metrics that come in one window only.
    pub burst_window: Option<Duration>,
}

/// How a metric answers to replicas.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Objective {
    /// Its sum is the load, which replicas share; `value` is events per second.
    Count,
    /// Its sum is the load, which replicas share, and events carry it (bytes in packets).
    Flow,
    /// Its sum is the load, but it is a level, not a flow (requests in flight).
    Level,
    /// A quantile of a latency, which does not fall in proportion: `share` of events are below it.
    Latency {
        /// Such as 0.99.
        share: f64,
    },
    /// The same, with replicas computed from the load as soon as what a pod can take within the target was learned.
    /// [`Observation::beside`](crate::Observation) has the load.
    LearnedLatency {
        /// Such as 0.99.
        share: f64,
    },
    /// Whatever an external metric means: no events are known.
    External,
}

impl Objective {
    /// Of a latency, the share of events that are below it.
    #[must_use]
    pub const fn share(self) -> Option<f64> {
        match self {
            Self::Latency { share } | Self::LearnedLatency { share } => Some(share),
            _ => None,
        }
    }
}

/// Where a metric should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// What each replica should have of the sum.
    Average(f64),
    /// What the value should be, whatever the number of replicas.
    Value(f64),
}

/// How fast to go in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Recommendations of this long ago still restrain a change.
    pub stabilization: Duration,
    /// Which policy counts.
    pub select: Select,
    /// How much may change in which time.
    pub policies: Vec<Limit>,
}

impl Rules {
    /// Up, by default: to where the demand is, at most tenfold in 15 seconds.
    #[must_use]
    pub fn scale_up() -> Self {
        Self {
            stabilization: Duration::ZERO,
            select: Select::Max,
            policies: vec![Limit {
                unit: Unit::Percent,
                value: 900,
                period: Duration::from_secs(15),
            }],
        }
    }

    /// Up, as the HPA: +4 pods or +100 % in 15 seconds, whichever is more.
    #[must_use]
    pub fn hpa_scale_up() -> Self {
        let period = Duration::from_secs(15);
        Self {
            stabilization: Duration::ZERO,
            select: Select::Max,
            policies: vec![
                Limit {
                    unit: Unit::Pods,
                    value: 4,
                    period,
                },
                Limit {
                    unit: Unit::Percent,
                    value: 100,
                    period,
                },
            ],
        }
    }

    /// Down, by default and as the HPA: all of it in 15 seconds, stabilized over 300 seconds.
    #[must_use]
    pub fn scale_down() -> Self {
        Self {
            stabilization: Duration::from_secs(300),
            select: Select::Max,
            policies: vec![Limit {
                unit: Unit::Percent,
                value: 100,
                period: Duration::from_secs(15),
            }],
        }
    }
}

/// Which of several policies counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Select {
    /// The one that allows most change.
    #[default]
    Max,
    /// The one that allows least.
    Min,
    /// No change in this direction.
    Disabled,
}

/// A limit on change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Of what.
    pub unit: Unit,
    /// How much.
    pub value: i32,
    /// In which time.
    pub period: Duration,
}

/// The unit of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Pods.
    Pods,
    /// Per cent of the replicas when the period began.
    Percent,
}

/// What to do when nothing can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// For so long.
    pub after: Duration,
    /// At least so many replicas; it never lowers.
    pub replicas: i32,
}

/// A minimum that counts for some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// At least so many replicas, as far as the maximum allows.
    pub replicas: i32,
    /// Who asks for them, for the message.
    pub name: String,
}

/// Nothing is scaled meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// What to hold, whatever the bounds; without it, what there is.
    pub replicas: Option<i32>,
}
