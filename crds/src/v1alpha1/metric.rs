//! The metrics of an EbpfScaler: one block per type, and exactly the block that matches the type.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{HumanDuration, Quantity};

/// One metric and its target.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'RequestRate') == has(self.requestRate)").message("requestRate must be set if type is RequestRate, and only then").field_path(".requestRate"),
    validation = Rule::new("(self.type == 'RequestsInFlight') == has(self.requestsInFlight)").message("requestsInFlight must be set if type is RequestsInFlight, and only then").field_path(".requestsInFlight"),
    validation = Rule::new("(self.type == 'RequestLatency') == has(self.requestLatency)").message("requestLatency must be set if type is RequestLatency, and only then").field_path(".requestLatency"),
    validation = Rule::new("(self.type == 'RunQueueLatency') == has(self.runQueueLatency)").message("runQueueLatency must be set if type is RunQueueLatency, and only then").field_path(".runQueueLatency"),
    validation = Rule::new("(self.type == 'RunQueueWaitingThreads') == has(self.runQueueWaitingThreads)").message("runQueueWaitingThreads must be set if type is RunQueueWaitingThreads, and only then").field_path(".runQueueWaitingThreads"),
    validation = Rule::new("(self.type == 'NetworkThroughput') == has(self.networkThroughput)").message("networkThroughput must be set if type is NetworkThroughput, and only then").field_path(".networkThroughput"),
    validation = Rule::new("!has(self.runQueueLatency) || !has(self.runQueueLatency.port)").message("runQueueLatency.port can not be set: threads have no port; runQueueLatency.container can").field_path(".runQueueLatency.port"),
    validation = Rule::new("!has(self.runQueueLatency) || !has(self.runQueueLatency.strategy)").message("runQueueLatency.strategy can not be set: what a pod can take is learned from requests").field_path(".runQueueLatency.strategy"),
    validation = Rule::new("(self.type == 'External') == has(self.external)").message("external must be set if type is External, and only then").field_path(".external")
)]
pub struct MetricSpec {
    /// Which block below is set.
    #[serde(rename = "type")]
    pub type_: MetricType,
    /// Requests per second, per pod: HTTP/1, HTTP/2, gRPC, Redis commands, PostgreSQL queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_rate: Option<RequestMetric>,
    /// Requests in flight, per pod: HTTP/1 requests until they are answered, HTTP/2 requests until they have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_in_flight: Option<RequestMetric>,
    /// A quantile of request latency over all pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_latency: Option<QuantileMetric>,
    /// A quantile of the time a runnable thread waits for a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_queue_latency: Option<QuantileMetric>,
    /// Threads waiting for a CPU on average, per pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_queue_waiting_threads: Option<RateMetric>,
    /// Bytes per second, per pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_throughput: Option<NetworkThroughput>,
    /// Any metric of the external metrics API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalSource>,
}

/// The types of metrics.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is documented at its block in MetricSpec")]
pub enum MetricType {
    RequestRate,
    RequestsInFlight,
    RequestLatency,
    RunQueueLatency,
    RunQueueWaitingThreads,
    NetworkThroughput,
    External,
}

impl MetricType {
    /// The name as in the resource.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestRate => "RequestRate",
            Self::RequestsInFlight => "RequestsInFlight",
            Self::RequestLatency => "RequestLatency",
            Self::RunQueueLatency => "RunQueueLatency",
            Self::RunQueueWaitingThreads => "RunQueueWaitingThreads",
            Self::NetworkThroughput => "NetworkThroughput",
            Self::External => "External",
        }
    }
}

/// The time over which a metric is taken; the collector serves exactly these.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Window {
    #[serde(rename = "1s")]
    S1,
    #[serde(rename = "3s")]
    S3,
    #[serde(rename = "10s")]
    S10,
    #[serde(rename = "30s")]
    S30,
    #[serde(rename = "60s")]
    S60,
    #[serde(rename = "5m")]
    M5,
}

impl Window {
    /// Its length.
    #[must_use]
    pub fn get(self) -> Duration {
        Duration::from_secs(match self {
            Self::S1 => 1,
            Self::S3 => 3,
            Self::S10 => 10,
            Self::S30 => 30,
            Self::S60 => 60,
            Self::M5 => 300,
        })
    }

    /// What steady decisions look at unless said otherwise.
    #[must_use]
    pub fn stable() -> Self {
        Self::S30
    }

    /// What sudden load is seen in unless said otherwise.
    #[must_use]
    pub fn burst() -> Self {
        Self::S3
    }
}

/// A target per pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AverageTarget {
    /// What one pod should have.
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('0')) > 0").message("target.averageValue must be a quantity above zero"))]
    pub average_value: Quantity,
}

/// A linear metric of requests.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.stableWindow) > duration(self.burstWindow)").message("stableWindow must be longer than burstWindow").field_path(".stableWindow"))]
pub struct RequestMetric {
    /// What one pod should have.
    pub target: AverageTarget,
    /// Count only requests to this port of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Count only what this container of the pod does, by its name; init containers that go on count too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub container: Option<String>,
    /// What steady decisions look at.
    #[serde(default = "Window::stable")]
    pub stable_window: Window,
    /// What sudden load is seen in.
    #[serde(default = "Window::burst")]
    pub burst_window: Window,
}

/// A linear metric.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.stableWindow) > duration(self.burstWindow)").message("stableWindow must be longer than burstWindow").field_path(".stableWindow"))]
pub struct RateMetric {
    /// What one pod should have.
    pub target: AverageTarget,
    /// Count only what this container of the pod does, by its name; init containers that go on count too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub container: Option<String>,
    /// What steady decisions look at.
    #[serde(default = "Window::stable")]
    pub stable_window: Window,
    /// What sudden load is seen in.
    #[serde(default = "Window::burst")]
    pub burst_window: Window,
}

/// A latency that should stay below a target. It does not fall in proportion to replicas, so steps
/// are bounded and wait for the effect of the last one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.strategy) || self.strategy != 'LearnedCapacity' || duration(self.stableWindow) >= duration('10s')").message("stableWindow must be 10s or longer if strategy is LearnedCapacity").field_path(".stableWindow"))]
pub struct QuantileMetric {
    /// Which quantile.
    pub percentile: Percentile,
    /// What it should not exceed.
    #[x_kube(validation = Rule::new("duration(self) > duration('0s')").message("target must be a duration above zero, such as 50ms"))]
    pub target: HumanDuration,
    /// Count only requests to this port of the pod; not for the run queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Count only what this container of the pod does, by its name; init containers that go on count too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub container: Option<String>,
    /// What decisions look at.
    #[serde(default = "Window::stable")]
    pub stable_window: Window,
    /// How replicas follow from the latency; bounded steps if it is left out. Not for the run queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<LatencyStrategy>,
}

/// How replicas follow from a latency.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LatencyStrategy {
    /// Half more or a tenth fewer at a time, each after the effect of the last.
    BoundedSteps,
    /// Requests per second that a pod can take within the target are learned from what is seen, and replicas are computed
    /// from the load; in bounded steps until enough is known. `status.learned` shows what is.
    LearnedCapacity,
}

/// The quantiles that are served.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Percentile {
    P50,
    P90,
    P99,
}

impl Percentile {
    /// As in the metrics' names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
        }
    }

    /// As a share of all events.
    #[must_use]
    pub fn share(self) -> f64 {
        match self {
            Self::P50 => 0.5,
            Self::P90 => 0.9,
            Self::P99 => 0.99,
        }
    }
}

/// Bytes on the pods' sockets.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.stableWindow) > duration(self.burstWindow)").message("stableWindow must be longer than burstWindow").field_path(".stableWindow"))]
pub struct NetworkThroughput {
    /// Which bytes count.
    pub direction: Direction,
    /// What one pod should have.
    pub target: AverageTarget,
    /// Count only what comes to and goes from this port of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Count only what this container of the pod does, by its name; init containers that go on count too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub container: Option<String>,
    /// What steady decisions look at.
    #[serde(default = "Window::stable")]
    pub stable_window: Window,
    /// What sudden load is seen in.
    #[serde(default = "Window::burst")]
    pub burst_window: Window,
}

/// Seen from the pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Direction {
    Receive,
    Transmit,
    Both,
}

/// A metric of the external metrics API, and its target, in HPA v2's shape.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExternalSource {
    /// Which metric.
    pub metric: ExternalMetric,
    /// What to hold it at.
    pub target: ExternalTarget,
}

/// Names an external metric.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExternalMetric {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[^/%]+$"))]
    pub name: String,
    /// Which of its series; all of them are summed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bounded_selector")]
    pub selector: Option<LabelSelector>,
}

/// The target of an external metric.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'Value') == has(self.value)").message("target.value must be set if target.type is Value, and only then").field_path(".value"),
    validation = Rule::new("(self.type == 'AverageValue') == has(self.averageValue)").message("target.averageValue must be set if target.type is AverageValue, and only then").field_path(".averageValue")
)]
pub struct ExternalTarget {
    /// Which of the two below is set.
    #[serde(rename = "type")]
    pub type_: ExternalTargetType,
    /// What the whole workload should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('0')) > 0").message("target.value must be a quantity above zero"))]
    pub value: Option<Quantity>,
    /// What one pod should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('0')) > 0").message("target.averageValue must be a quantity above zero"))]
    pub average_value: Option<Quantity>,
}

/// HPA v2's two kinds of targets for external metrics.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at the fields they select")]
pub enum ExternalTargetType {
    Value,
    AverageValue,
}

/// apimachinery's LabelSelector with bounds, without which comparing two of them exceeds the API
/// server's budget for validation rules.
fn bounded_selector(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "nullable": true,
        "description": "Which of its series; all of them are summed.",
        "properties": {
            "matchLabels": {
                "type": "object",
                "maxProperties": 16,
                "additionalProperties": { "type": "string", "maxLength": 253 }
            },
            "matchExpressions": {
                "type": "array",
                "maxItems": 16,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string", "maxLength": 317 },
                        "operator": { "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"] },
                        "values": { "type": "array", "maxItems": 16, "items": { "type": "string", "maxLength": 253 } }
                    }
                }
            }
        }
    })
}

/// A selector in the form of a query parameter ("a=b,c in (d,e)").
#[must_use]
pub fn selector_text(selector: &LabelSelector) -> String {
    let mut parts: Vec<String> = selector
        .match_labels
        .iter()
        .flat_map(BTreeMap::iter)
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    for e in selector.match_expressions.iter().flatten() {
        let values = e.values.as_deref().unwrap_or_default().join(",");
        parts.push(match e.operator.as_str() {
            "In" => format!("{} in ({values})", e.key),
            "NotIn" => format!("{} notin ({values})", e.key),
            "Exists" => e.key.clone(),
            _ => format!("!{}", e.key),
        });
    }
    parts.join(",")
}
