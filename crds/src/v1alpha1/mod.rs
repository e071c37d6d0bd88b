//! EbpfScaler v1alpha1: the spec and the rules between its fields. What a rule refuses, its message
//! names the field and what would be right.

#![allow(
    clippy::duplicated_attributes,
    reason = "each printer column repeats the keys of the one before"
)]

mod behavior;
mod history;
mod metric;
mod schedule;
mod status;

pub use behavior::{Behavior, PolicyType, ScalingPolicy, ScalingRules, SelectPolicy};
pub use history::{DecisionMetric, LoadSeries, Outcome, ScalingDecision, ScalingHistory};
pub use metric::{
    AverageTarget, Direction, ExternalMetric, ExternalSource, ExternalTarget, ExternalTargetType,
    LatencyStrategy, MetricSpec, MetricType, NetworkThroughput, Percentile, QuantileMetric,
    RateMetric, RequestMetric, Window, selector_text,
};
pub use schedule::{Pause, Schedule};
pub use status::{CapacityPoint, EbpfScalerStatus, LastDecision, LearnedCapacity, MetricStatus};

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::HumanDuration;

/// Scales a workload on what its pods really do, as the kernel sees it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "ebpfscaler.io",
    version = "v1alpha1",
    kind = "EbpfScaler",
    plural = "ebpfscalers",
    namespaced,
    status = "EbpfScalerStatus",
    shortname = "ebs",
    category = "autoscaling",
    derive = "PartialEq",
    printcolumn(
        name = "Target",
        json_path = ".spec.scaleTargetRef.name",
        type_ = "string"
    ),
    printcolumn(name = "Min", json_path = ".spec.minReplicas", type_ = "integer"),
    printcolumn(name = "Max", json_path = ".spec.maxReplicas", type_ = "integer"),
    printcolumn(
        name = "Current",
        json_path = ".status.currentReplicas",
        type_ = "integer"
    ),
    printcolumn(
        name = "Desired",
        json_path = ".status.desiredReplicas",
        type_ = "integer"
    ),
    printcolumn(
        name = "Metric",
        json_path = ".status.topMetric",
        type_ = "string",
        description = "the metric that asks for most, as current/target"
    ),
    printcolumn(
        name = "Reason",
        json_path = ".status.lastDecision.reason",
        type_ = "string"
    ),
    printcolumn(
        name = "Learned",
        json_path = ".status.learned[0].capacityPerPod",
        type_ = "string",
        priority = 1,
        description = "requests per second that a pod can take within its latency target, as far as was seen"
    ),
    printcolumn(
        name = "Age",
        json_path = ".metadata.creationTimestamp",
        type_ = "date"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas")
        .message("spec.minReplicas must be at most spec.maxReplicas")
        .field_path(".minReplicas"),
    validation = Rule::new("!has(self.fallback) || (self.fallback.replicas >= self.minReplicas && self.fallback.replicas <= self.maxReplicas)")
        .message("spec.fallback.replicas must be from spec.minReplicas to spec.maxReplicas")
        .field_path(".fallback"),
    validation = Rule::new("self.profile != 'HPA' || self.metrics.all(m, !has(m.requestLatency) || !has(m.requestLatency.strategy) || m.requestLatency.strategy != 'LearnedCapacity')")
        .message("spec.metrics[].requestLatency.strategy can not be LearnedCapacity if spec.profile is HPA")
        .field_path(".metrics"),
    validation = Rule::new("!has(self.schedules) || self.schedules.all(s, s.minReplicas <= self.maxReplicas)")
        .message("spec.schedules[].minReplicas must be at most spec.maxReplicas")
        .field_path(".schedules"),
    validation = Rule::new("self.metrics.all(m, self.metrics.filter(n, n.type == m.type && (n.type == 'RequestRate' && has(n.requestRate) && has(m.requestRate) ? (has(n.requestRate.port) ? n.requestRate.port : 0) == (has(m.requestRate.port) ? m.requestRate.port : 0) && (has(n.requestRate.container) ? n.requestRate.container : '') == (has(m.requestRate.container) ? m.requestRate.container : '') : n.type == 'RequestsInFlight' && has(n.requestsInFlight) && has(m.requestsInFlight) ? (has(n.requestsInFlight.port) ? n.requestsInFlight.port : 0) == (has(m.requestsInFlight.port) ? m.requestsInFlight.port : 0) && (has(n.requestsInFlight.container) ? n.requestsInFlight.container : '') == (has(m.requestsInFlight.container) ? m.requestsInFlight.container : '') : n.type == 'RequestLatency' && has(n.requestLatency) && has(m.requestLatency) ? n.requestLatency.percentile == m.requestLatency.percentile && (has(n.requestLatency.port) ? n.requestLatency.port : 0) == (has(m.requestLatency.port) ? m.requestLatency.port : 0) && (has(n.requestLatency.container) ? n.requestLatency.container : '') == (has(m.requestLatency.container) ? m.requestLatency.container : '') : n.type == 'RunQueueLatency' && has(n.runQueueLatency) && has(m.runQueueLatency) ? n.runQueueLatency.percentile == m.runQueueLatency.percentile && (has(n.runQueueLatency.container) ? n.runQueueLatency.container : '') == (has(m.runQueueLatency.container) ? m.runQueueLatency.container : '') : n.type == 'RunQueueWaitingThreads' && has(n.runQueueWaitingThreads) && has(m.runQueueWaitingThreads) ? (has(n.runQueueWaitingThreads.container) ? n.runQueueWaitingThreads.container : '') == (has(m.runQueueWaitingThreads.container) ? m.runQueueWaitingThreads.container : '') : n.type == 'NetworkThroughput' && has(n.networkThroughput) && has(m.networkThroughput) ? n.networkThroughput.direction == m.networkThroughput.direction && (has(n.networkThroughput.port) ? n.networkThroughput.port : 0) == (has(m.networkThroughput.port) ? m.networkThroughput.port : 0) && (has(n.networkThroughput.container) ? n.networkThroughput.container : '') == (has(m.networkThroughput.container) ? m.networkThroughput.container : '') : n.type == 'External' && has(n.external) && has(m.external) ? n.external.metric == m.external.metric : true)).size() == 1)")
        .message("spec.metrics lists the same metric twice: keep one entry per metric (the same type may repeat only with another port, container, percentile, direction or external metric)")
        .field_path(".metrics")
)]
pub struct EbpfScalerSpec {
    /// What to scale: anything with a scale subresource, in this namespace.
    pub scale_target_ref: ScaleTargetRef,
    /// Never fewer replicas than this.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10000))]
    pub min_replicas: i32,
    /// Never more replicas than this.
    #[schemars(range(min = 1, max = 10000))]
    pub max_replicas: i32,
    /// Enforce writes replicas; Observe decides and reports but never writes.
    #[serde(default)]
    pub mode: Mode,
    /// `Default` adds significance, bursting and bounded steps to the HPA's rules; `HPA` is exactly HPA v2.
    #[serde(default)]
    pub profile: Profile,
    /// Whether the metrics made of requests (rate, in flight, latency) have those inside TLS in them. `Probe` counts them
    /// by probes in the TLS libraries of the pods, which costs the pods CPU time with each read and write, and needs
    /// agents that are allowed to (config/tls): where they are not, the metrics are unavailable, and so are those with a
    /// `port`, which is not known inside TLS.
    #[serde(default)]
    pub tls_requests: TlsRequests,
    /// What to scale on; the metric that asks for most replicas wins.
    #[schemars(length(min = 1, max = 10))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub metrics: Vec<MetricSpec>,
    /// How fast to scale, in the shape of HPA v2's `behavior`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
    /// What to ask for when no metric has been available for some time. It never lowers replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Times at which `minReplicas` is higher, such as before a known rush. The highest of those that are on counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub schedules: Vec<Schedule>,
    /// While this is set nothing is scaled, but everything is measured, decided and reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

fn one() -> i32 {
    1
}

/// Names the object whose scale subresource is written.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct ScaleTargetRef {
    /// API version of the target, such as `apps/v1`.
    #[serde(default = "apps_v1")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^([a-z0-9.-]+/)?v[a-z0-9]+$")
    )]
    pub api_version: String,
    /// Kind of the target, such as `Deployment`.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name of the target.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

fn apps_v1() -> String {
    "apps/v1".into()
}

/// Whether decisions are carried out.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Decide, write, report.
    #[default]
    Enforce,
    /// Decide and report only.
    Observe,
}

/// Which rules decide.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// The HPA's rules, and in addition significance, bursting and bounded steps.
    #[default]
    Default,
    /// Exactly the HPA's rules, once in 15 seconds.
    #[serde(rename = "HPA")]
    Hpa,
}

/// What becomes of requests inside TLS.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsRequests {
    /// They are bytes and connections.
    #[default]
    Ignore,
    /// They are requests.
    Probe,
}

/// What to do without metrics.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// How long all metrics must have been unavailable.
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('24h')").message("spec.fallback.after must be from 10s to 24h"))]
    pub after: HumanDuration,
    /// Replicas to ask for then, if there are fewer.
    #[schemars(range(min = 1, max = 10000))]
    pub replicas: i32,
}
