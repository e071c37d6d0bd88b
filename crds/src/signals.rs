//! The objects of signals.ebpfscaler.io/v1alpha1, which the collector's API server computes and serves: what
//! workloads and pods do now. For servers and clients alike; they are stored nowhere, so there is no CRD of them.
//!
//! Rates and numbers of things are quantities (`80`, `1500m`), as in the metrics APIs; times are whole
//! microseconds. What is not known is absent, and `missing` says why.

use std::borrow::Cow;

use kube::Resource;
use kube::core::{NamespaceResourceScope, ObjectMeta};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Quantity;

mod values;

pub use values::{SignalValues, field_name};

/// The group's name.
pub const GROUP: &str = "signals.ebpfscaler.io";
/// Its version.
pub const VERSION: &str = "v1alpha1";
/// Group and version, as in `apiVersion`.
pub const API_VERSION: &str = "signals.ebpfscaler.io/v1alpha1";

/// What the pods of one workload do, together: a Deployment, StatefulSet, DaemonSet, Job, or whatever owns
/// pods at the top; a pod that nothing owns is its own workload. There is one as long as the workload has a
/// pod that has not ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSignals {
    /// signals.ebpfscaler.io/v1alpha1
    #[serde(default)]
    pub api_version: String,
    /// WorkloadSignals
    #[serde(default)]
    pub kind: String,
    /// Name and namespace of the workload, and the labels that all of its pods have. Where workloads of several
    /// kinds in a namespace share a name, the name of all but one ends in `.` and the kind: `web.job`.
    #[schemars(schema_with = "metadata_schema")]
    pub metadata: ObjectMeta,
    /// Which workload.
    pub workload: WorkloadReference,
    /// The seconds over which values are taken: 1, 3, 10, 30, 60 or 300.
    pub window_seconds: u32,
    /// When the newest of the reports behind it came, RFC 3339 in microseconds. Absent without any report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// How many pods it rests on.
    pub coverage: Coverage,
    /// The values.
    pub signals: SignalValues,
    /// What threads waited for when they waited for a CPU. Absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runqueue: Option<RunQueue>,
    /// Which of `signals` are absent, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// What one pod does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSignals {
    /// signals.ebpfscaler.io/v1alpha1
    #[serde(default)]
    pub api_version: String,
    /// PodSignals
    #[serde(default)]
    pub kind: String,
    /// Name, namespace and labels of the pod.
    #[schemars(schema_with = "metadata_schema")]
    pub metadata: ObjectMeta,
    /// The pod's UID: a pod that is made again under its name is another.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Where it runs. Absent until it is scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Whether it is ready, as its condition says.
    pub ready: bool,
    /// The workload that it belongs to.
    pub workload: WorkloadReference,
    /// The seconds over which values are taken: 1, 3, 10, 30, 60 or 300.
    pub window_seconds: u32,
    /// When the newest of the reports behind it came, RFC 3339 in microseconds. Absent without any report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Whether the pod is measured: of no or one pod.
    pub coverage: Coverage,
    /// The values.
    pub signals: SignalValues,
    /// What threads waited for when they waited for a CPU. Absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runqueue: Option<RunQueue>,
    /// Which of `signals` are absent, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// A workload, by kind and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadReference {
    /// Its kind, such as Deployment; Pod for a pod that nothing owns.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// How many pods values rest on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// Pods that have to be measured: running on their node for 2 s, and not being deleted.
    pub expected_pods: u32,
    /// Of these, pods whose agents are heard and measure everything that has a value.
    pub covered_pods: u32,
    /// Pods of silent nodes, which count with their last known values; for 15 s at most.
    pub estimated_pods: u32,
    /// Nodes of these pods whose agents are not heard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent_nodes: Vec<String>,
}

/// What threads waited for when they waited for a CPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunQueue {
    /// What they waited for, the most first. Empty if nobody waited.
    #[serde(default)]
    pub causes: Vec<WaitCause>,
    /// Who had the CPUs that they waited for in the last seconds, the most first, at most five.
    #[serde(default)]
    pub preemptors: Vec<Preemptor>,
}

/// How much was waited for one thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitCause {
    /// OwnPod: other threads of the pod had the CPU. OtherPods: threads of other pods. System: threads outside
    /// the pods, the kernel's and the node's. Throttled: the pod's own CPU limit. Idle: nobody, its CPU was
    /// idle and it was being woken or moved.
    pub cause: String,
    /// Threads that waited for it, on average over the window.
    #[schemars(with = "String")]
    pub waiting_threads: Quantity,
    /// Its share of all that was waited, in percent, rounded.
    pub percent: u32,
}

/// Who had a CPU while threads waited for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preemptor {
    /// Pod: the pod named here. HiddenPod: a pod of another namespace; it is named to those who may list
    /// podsignals in all namespaces. UnknownPod: one that is not known any more. Node: the node itself.
    #[serde(rename = "type")]
    pub kind: String,
    /// The pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The workload that the pod belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadReference>,
    /// Threads that waited behind it, on average over the last seconds.
    #[schemars(with = "String")]
    pub waiting_threads: Quantity,
}

/// Signals without a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// NoPods: no pod has to be measured. MissingPods: too many pods are not measured, or one for too long.
    /// NoEvents: nothing happened whose time could have been taken.
    pub reason: String,
    /// For people: which nodes or pods, and why.
    pub message: String,
    /// Names of the fields of `signals`.
    pub signals: Vec<String>,
}

/// Clients know what an ObjectMeta is; its definition is long and not ours.
fn metadata_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object"})
}

macro_rules! resource {
    ($type:ident, $plural:literal) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                stringify!($type).into()
            }
            fn group((): &()) -> Cow<'_, str> {
                GROUP.into()
            }
            fn version((): &()) -> Cow<'_, str> {
                VERSION.into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(WorkloadSignals, "workloadsignals");
resource!(PodSignals, "podsignals");

/// The schemas of both kinds, as JSON Schema without references, by kind.
#[must_use]
pub fn schemas() -> [(&'static str, serde_json::Value); 2] {
    let mut settings = schemars::generate::SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let generator = settings.into_generator();
    let mut schemas = [
        (
            "WorkloadSignals",
            generator
                .clone()
                .into_root_schema_for::<WorkloadSignals>()
                .to_value(),
        ),
        (
            "PodSignals",
            generator.into_root_schema_for::<PodSignals>().to_value(),
        ),
    ];
    for (_, schema) in &mut schemas {
        crate::tidy(schema);
        if let Some(map) = schema.as_object_mut() {
            map.remove("$schema");
            map.remove("title");
        }
    }
    schemas
}
