//! Carries out what scalers ask for: each write is a task of its own, whose end comes back as an
//! input. Never waits for one.

use ebpf_scaler_crds::EbpfScaler;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube_runtime::events::{self, Recorder};
use tracing::debug;

use super::{Engine, Input};
use crate::{
    apply::TargetKey,
    scaler::{Addition, Effect, Event, Scaler},
    status,
    watch::Key,
};

impl Engine {
    pub(super) fn carry_out(
        &self,
        key: &Key,
        target: TargetKey,
        reference: &ObjectReference,
        effects: Vec<Effect>,
    ) {
        for effect in effects {
            match effect {
                Effect::Scale {
                    seen,
                    to,
                    sampled,
                    why,
                } => {
                    let (applier, out) = (self.parts.applier.clone(), self.input.clone());
                    let (key, target) = (key.clone(), target.clone());
                    self.tasks.spawn(async move {
                        let written = applier.scale(&target, &seen, to).await;
                        let input = Input::Written {
                            key,
                            target,
                            from: seen.spec,
                            to,
                            sampled,
                            why,
                            written,
                        };
                        let _ = out.send(input).await;
                    });
                }
                Effect::Status(status) => {
                    let (applier, out, key) =
                        (self.parts.applier.clone(), self.input.clone(), key.clone());
                    self.tasks.spawn(async move {
                        let patch = status::patch(&status);
                        let result = applier.status(&key.0, &key.1, patch).await;
                        let _ = out.send(Input::Reported(key, result)).await;
                    });
                }
                Effect::History(addition) => self.record(key, reference, addition),
                Effect::Event(event) => self.publish(event, reference.clone()),
            }
        }
    }

    pub(super) fn record(&self, key: &Key, reference: &ObjectReference, addition: Addition) {
        let (applier, out, key) = (self.parts.applier.clone(), self.input.clone(), key.clone());
        let (owner, most) = (reference.clone(), self.parts.history_entries);
        self.tasks.spawn(async move {
            let load = addition.load.clone();
            let result = applier.record(&owner, addition, most).await;
            let _ = out.send(Input::Recorded(key, load, result)).await;
        });
    }

    fn publish(&self, event: Event, reference: ObjectReference) {
        // A recorder folds events that differ in their notes only into the first one. That is right for
        // trouble that repeats; but each change of replicas has a reason of its own, to be read later.
        let recorder = if event.warning {
            self.recorder.clone()
        } else {
            Recorder::new(self.parts.client.clone(), self.reporter.clone())
        };
        let metrics = self.parts.metrics.clone();
        self.tasks.spawn(async move {
            let event = events::Event {
                type_: if event.warning {
                    events::EventType::Warning
                } else {
                    events::EventType::Normal
                },
                reason: event.reason.into(),
                // The API allows 1024 bytes.
                note: Some(event.note.chars().take(1000).collect()),
                action: "Scale".into(),
                secondary: None,
            };
            match recorder.publish(&event, &reference).await {
                Ok(()) => metrics.write("event", "ok"),
                Err(error) => {
                    metrics.write("event", "error");
                    debug!(%error, "cannot publish an event");
                }
            }
        });
    }
}

pub(super) fn reference(scaler: &Scaler) -> ObjectReference {
    ObjectReference {
        api_version: Some(EbpfScaler::api_version(&()).into_owned()),
        kind: Some(EbpfScaler::kind(&()).into_owned()),
        namespace: Some(scaler.object.key.0.clone()),
        name: Some(scaler.object.key.1.clone()),
        uid: Some(scaler.object.uid.clone()),
        ..ObjectReference::default()
    }
}
