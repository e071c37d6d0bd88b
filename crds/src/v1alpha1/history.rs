//! ScalingHistory v1alpha1: what the operator decided for one EbpfScaler lately, and what came of it. A record: it has no
//! spec, nobody but the operator writes it, and it goes with its EbpfScaler.

use std::borrow::Cow;

use k8s_openapi::{
    NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
};
use kube::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The latest decisions for the EbpfScaler of the same name.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingHistory {
    /// Name and namespace are the EbpfScaler's, which owns it.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The newest first, as many as the operator's `--history-entries`.
    #[serde(default)]
    pub decisions: Vec<ScalingDecision>,
    /// What the workload had to do in the last day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadSeries>,
}

/// A load over time, as the scaler saw it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LoadSeries {
    /// Its name in the external metrics API: the first metric of the spec that is shared out among the pods.
    pub metric: String,
    /// When the first stretch began.
    pub start: Time,
    /// Length of a stretch.
    pub step_seconds: i32,
    /// The mean of each stretch over the whole workload, in the unit of that name, as a decimal number; empty where nothing
    /// could be seen.
    pub values: Vec<String>,
}

/// What became of a decision.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The replicas were written.
    Applied,
    /// The write was refused or did not end; `error` says why. It is tried again.
    Failed,
    /// Somebody else changed the replicas first; it is decided again from theirs.
    Superseded,
    /// Mode Observe: this would have been written.
    Observed,
    /// Not written because of somebody else: see the conditions Conflict and ExternallyModified.
    Withheld,
    /// The replicas stay as they are; what keeps them is the reason.
    Held,
}

/// One decision.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingDecision {
    /// When it was made.
    pub time: MicroTime,
    /// Replicas that the target asked for.
    pub from: i32,
    /// Replicas that it should ask for.
    pub to: i32,
    /// Replicas that were ready.
    pub ready: i32,
    /// What became of it.
    pub outcome: Outcome,
    /// One word; the same as in conditions, events and metrics.
    pub reason: String,
    /// A sentence with the numbers.
    pub message: String,
    /// Why it was not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What each metric asked for, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<DecisionMetric>,
}

/// One metric's part in a decision.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DecisionMetric {
    /// Its name in the external metrics API.
    pub name: String,
    /// The value of the whole workload in the unit of that name, as a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Its target as in the spec.
    pub target: String,
    /// Replicas that it alone asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposal: Option<i32>,
    /// What that rested on: WithinTolerance, NotSignificant, Stable, Burst, Settling, PartialCoverage, Missing.
    pub basis: String,
    /// The window behind the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Share of the pods that the value covers, such as 1 or 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<String>,
    /// Why there was no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Resource for ScalingHistory {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "ScalingHistory".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "ebpfscaler.io".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "scalinghistories".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
