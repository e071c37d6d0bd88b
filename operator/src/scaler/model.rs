//! What a scaler is made from and what it asks for. Never does anything.

use ebpf_scaler_crds::{
    EbpfScaler, EbpfScalerSpec, EbpfScalerStatus,
    v1alpha1::{LoadSeries, ScalingDecision},
};
use k8s_openapi::jiff::Timestamp;

use crate::{
    apply::{Target, TargetKey},
    watch::Key,
};

/// An EbpfScaler as it is watched.
#[derive(Debug)]
pub struct Object {
    /// Namespace and name.
    pub key: Key,
    /// For events.
    pub uid: String,
    /// Of the spec.
    pub generation: Option<i64>,
    /// The older of two wins.
    pub created: Option<Timestamp>,
    /// The spec.
    pub spec: EbpfScalerSpec,
    /// The status as found.
    pub status: EbpfScalerStatus,
}

impl Object {
    /// Keeps of an object what counts.
    #[must_use]
    pub fn trim(object: EbpfScaler) -> Self {
        Self {
            key: crate::watch::key(&object),
            uid: object.metadata.uid.unwrap_or_default(),
            generation: object.metadata.generation,
            created: object.metadata.creation_timestamp.map(|t| t.0),
            spec: object.spec,
            status: object.status.unwrap_or_default(),
        }
    }

    /// What it scales.
    #[must_use]
    pub fn target(&self) -> TargetKey {
        let r = &self.spec.scale_target_ref;
        TargetKey {
            namespace: self.key.0.clone(),
            api_version: r.api_version.clone(),
            kind: r.kind.clone(),
            name: r.name.clone(),
        }
    }
}

/// Something to be done.
#[derive(Debug)]
pub enum Effect {
    /// Write replicas.
    Scale {
        /// Over what was seen.
        seen: Target,
        /// To this.
        to: i32,
        /// When the newest sample behind it was taken.
        sampled: Option<i64>,
        /// The reason, for the event.
        why: String,
    },
    /// Write the status.
    Status(Box<EbpfScalerStatus>),
    /// Write this into the history.
    History(Addition),
    /// Publish an event.
    Event(Event),
}

/// What a history lacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Addition {
    /// To be put before the others, the newest first.
    pub decisions: Vec<ScalingDecision>,
    /// To be put behind what is there.
    pub load: Option<LoadSeries>,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whether something is wrong.
    pub warning: bool,
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub note: String,
}
