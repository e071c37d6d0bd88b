//! What was seen: the target's replicas and each metric, in windows, with the events behind it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Time, proposal::FULL};

/// What was seen of a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Replicas that the target asks for.
    pub spec_replicas: i32,
    /// Replicas that exist, with surge pods during a rollout.
    pub status_replicas: i32,
    /// Replicas that are ready.
    pub ready_replicas: i32,
    /// One for each metric of the policy, in its order.
    pub metrics: Vec<Reading>,
    /// What is seen beside metrics whose capacity is learned.
    #[serde(default)]
    pub beside: Vec<Beside>,
}

/// What is seen beside a latency, to learn from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// The latency's place among the metrics.
    pub metric: usize,
    /// Requests per second of the same workload, in the same windows and a second.
    pub load: Reading,
    /// Its threads that wait for a CPU. A node may not be able to measure that; then it is done without.
    pub waiting: Reading,
}

impl Beside {
    pub(crate) fn load(&self) -> Option<&Sample> {
        match &self.load {
            Reading::Known(sample) => Some(sample),
            Reading::Missing(_) => None,
        }
    }

    pub(crate) fn waiting_threads(&self) -> Option<f64> {
        let Reading::Known(sample) = &self.waiting else {
            return None;
        };
        let longest = sample.windows.iter().max_by_key(|w| w.window)?;
        (sample.is_whole() && longest.value.is_finite()).then(|| longest.value.max(0.0))
    }
}

impl Observation {
    pub(crate) fn beside(&self, metric: usize) -> Option<&Beside> {
        self.beside.iter().find(|b| b.metric == metric)
    }
}

/// A metric, if it could be seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reading {
    /// It could.
    Known(Sample),
    /// It could not, and why. Missing is not zero.
    Missing(String),
}

/// A metric as it was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When, by the clock of who measured it; only differences count.
    pub sampled: Time,
    /// In each window.
    pub windows: Vec<WindowSample>,
    /// Share of the expected pods behind the values.
    pub coverage: f64,
    /// Whether some pods contribute an old value.
    pub estimated: bool,
}

impl Sample {
    /// The value in a window of this length.
    #[must_use]
    pub fn window(&self, length: Duration) -> Option<&WindowSample> {
        self.windows.iter().find(|w| w.window == length)
    }

    /// Whether all pods are behind it, now.
    pub(crate) fn is_whole(&self) -> bool {
        !self.estimated && self.coverage >= FULL
    }

    /// The shortest window.
    #[must_use]
    pub fn shortest(&self) -> Option<&WindowSample> {
        self.windows.iter().min_by_key(|w| w.window)
    }
}

/// A metric in one window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowSample {
    /// Its length.
    pub window: Duration,
    /// In the metric's unit.
    pub value: f64,
    /// Events behind the value, if known.
    pub events: Option<u64>,
    /// How much of the window has really been seen.
    pub covered: Duration,
}
