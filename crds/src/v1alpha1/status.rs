//! What the operator reports: what it sees, what it decided and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What the operator reports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EbpfScalerStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Replicas that the target asks for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_replicas: Option<i32>,
    /// Replicas that the last decision asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// When replicas were last written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<Time>,
    /// The metric that asks for most replicas, as current/target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_metric: Option<String>,
    /// The last decision and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<LastDecision>,
    /// Every metric, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub metrics: Vec<MetricStatus>,
    /// What was learned for each metric with the strategy LearnedCapacity. A new leader goes on from here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub learned: Vec<LearnedCapacity>,
    /// Ready, ScalingActive, AbleToScale, ScalingLimited, MetricsAvailable, Bursting, Conflict, ExternallyModified; with
    /// the strategy LearnedCapacity also CapacityLearned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A decision as a person reads it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastDecision {
    /// One word; the same as in events and metrics.
    pub reason: String,
    /// A sentence with the numbers.
    pub message: String,
    /// When this reason or the desired replicas last changed.
    pub time: Time,
}

/// One metric as it is now.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// As in the spec.
    #[serde(rename = "type")]
    pub type_: String,
    /// The name of the metric in the external metrics API.
    pub name: String,
    /// The value per pod, or of the whole workload where the target is of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// What it should be.
    pub target: String,
    /// The value of the whole workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<String>,
    /// Replicas that this metric alone asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposal: Option<i32>,
    /// The window behind the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Share of the pods that the value covers, such as 1 or 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<String>,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What pods can take within a latency's target, as far as was seen.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LearnedCapacity {
    /// The metric's name, as in `metrics`.
    pub name: String,
    /// Requests per second that a pod can take; absent while none is known to be within the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_per_pod: Option<String>,
    /// From 0 to 1; replicas are computed from the capacity from 0.5 on.
    pub confidence: String,
    /// The least requests per second and pod that were seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_load_seen: Option<String>,
    /// The most. The capacity is never larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_load_seen: Option<String>,
    /// Whether more than the capacity was seen to be too much; if not, pods may be able to take more.
    pub limit_seen: bool,
    /// When this was true.
    pub time: Time,
    /// What was seen, by load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub curve: Vec<CapacityPoint>,
}

/// What was seen at one load.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CapacityPoint {
    /// Requests per second and pod.
    pub load: String,
    /// The quantile of latency, in microseconds.
    pub latency_microseconds: String,
    /// How much that varies: the deviation of its natural logarithm.
    pub spread: String,
    /// Threads that wait for a CPU, per pod; absent where that is not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_threads: Option<String>,
    /// How many windows that rests on; old ones count less.
    pub weight: String,
}
