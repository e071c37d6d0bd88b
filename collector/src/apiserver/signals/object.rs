//! An item as the object that clients get. Hides from those who may not know it which pods of other
//! namespaces had the CPU.

use ebpf_scaler_crds::Quantity;
use ebpf_scaler_crds::signals::{
    API_VERSION, Coverage, Missing, PodSignals, Preemptor, RunQueue, SignalValues, WaitCause,
    WorkloadReference, WorkloadSignals, field_name,
};
use ebpf_scaler_measure::Time;
use ebpf_scaler_measure::metric::{Metric, Window};
use ebpf_scaler_measure::signals::{Blame, Gap, Signals, Who, WorkloadRef};
use kube::core::ObjectMeta;
use serde_json::Value;

use super::item::{Item, Measured};
use super::snapshot::Entry;
use crate::apiserver::clock::Clock;

/// How objects are written for one request.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// Over which window
    pub window: Window,
    /// Whether pods of other namespaces may be named
    pub names_all: bool,
    /// For time stamps
    pub clock: Clock,
}

impl Writer {
    /// The object, as JSON.
    pub fn object(&self, entry: &Entry) -> Result<Value, serde_json::Error> {
        let item = &*entry.item;
        let signals = item.signals();
        let own = item.namespace();
        let timestamp = entry.sampled.map(|at| self.timestamp(at));
        let runqueue = signals
            .value(Metric::RunQueueWaitingThreads)
            .map(|_| self.runqueue(signals, own));
        let (api_version, metadata) = (API_VERSION.to_owned(), metadata(item));
        let (kind, workload) = (self.kind(item), reference(item.workload()));
        let (coverage, values) = (coverage(signals), values(signals));
        let missing = signals.gaps.iter().map(missing).collect();
        let window_seconds = self.window.seconds();
        match &item.measured {
            Measured::Workload(_) => serde_json::to_value(WorkloadSignals {
                api_version,
                kind,
                metadata,
                workload,
                window_seconds,
                timestamp,
                coverage,
                signals: values,
                runqueue,
                missing,
            }),
            Measured::Pod(pod) => serde_json::to_value(PodSignals {
                api_version,
                kind,
                metadata,
                pod_uid: pod.uid.to_string(),
                node_name: pod.node.as_deref().map(str::to_owned),
                ready: pod.ready,
                workload,
                window_seconds,
                timestamp,
                coverage,
                signals: values,
                runqueue,
                missing,
            }),
        }
    }

    fn kind(&self, item: &Item) -> String {
        match &item.measured {
            Measured::Workload(_) => "WorkloadSignals".to_owned(),
            Measured::Pod(_) => "PodSignals".to_owned(),
        }
    }

    fn timestamp(&self, at: Time) -> String {
        let at = jiff::Timestamp::from_microsecond(self.clock.unix_micros(at));
        format!("{:.6}", at.unwrap_or_default())
    }

    fn runqueue(&self, signals: &Signals, own: &str) -> RunQueue {
        let causes = signals.causes().into_iter().map(|w| WaitCause {
            cause: w.cause.as_str().to_owned(),
            waiting_threads: Quantity::from(w.threads),
            percent: percent(w.share),
        });
        RunQueue {
            causes: causes.collect(),
            preemptors: signals
                .blamed
                .iter()
                .map(|blame| self.preemptor(blame, own))
                .collect(),
        }
    }

    fn preemptor(&self, blame: &Blame, own: &str) -> Preemptor {
        let mut preemptor = Preemptor {
            kind: String::new(),
            namespace: None,
            pod: None,
            workload: None,
            waiting_threads: Quantity::from(blame.waiting_threads),
        };
        preemptor.kind = match &blame.who {
            Who::Pod {
                namespace,
                name,
                workload,
            } if self.names_all || **namespace == *own => {
                preemptor.namespace = Some(namespace.to_string());
                preemptor.pod = Some(name.clone());
                preemptor.workload = Some(reference(workload));
                "Pod"
            }
            Who::Pod { .. } => "HiddenPod",
            Who::UnknownPod => "UnknownPod",
            Who::Node => "Node",
        }
        .to_owned();
        preemptor
    }
}

/// A share in whole percent.
pub fn percent(share: f64) -> u32 {
    (share * 100.0).round() as u32
}

/// The object's metadata. It has no UID: it is stored nowhere.
pub fn metadata(item: &Item) -> ObjectMeta {
    let labels = item.labels();
    ObjectMeta {
        name: Some(item.name.clone()),
        namespace: Some(item.namespace().to_string()),
        labels: (!labels.is_empty()).then(|| labels.clone()),
        resource_version: Some(item.version.to_string()),
        ..ObjectMeta::default()
    }
}

fn reference(workload: &WorkloadRef) -> WorkloadReference {
    WorkloadReference {
        kind: workload.kind.clone(),
        name: workload.name.clone(),
    }
}

fn coverage(signals: &Signals) -> Coverage {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Coverage {
        expected_pods: count(signals.expected),
        covered_pods: count(signals.covered),
        estimated_pods: count(signals.estimated),
        silent_nodes: signals.silent_nodes.clone(),
    }
}

fn values(signals: &Signals) -> SignalValues {
    let mut values = SignalValues::default();
    for metric in Metric::ALL {
        values.set(metric.as_str(), signals.value(*metric));
    }
    values
}

fn missing(gap: &Gap) -> Missing {
    Missing {
        reason: gap.reason.as_str().to_owned(),
        message: gap.message.clone(),
        signals: gap.metrics.iter().map(|m| field_name(m.as_str())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_field() {
        for metric in Metric::ALL {
            let mut values = SignalValues::default();
            assert!(values.set(metric.as_str(), Some(2.0)), "{metric}");
            assert_eq!(values.get(metric.as_str()), Some(2.0), "{metric}");
            let json = serde_json::to_value(&values).unwrap_or_default();
            assert!(!json[field_name(metric.as_str())].is_null(), "{json}");
        }
    }
}
