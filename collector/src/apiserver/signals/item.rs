//! One object of the API as it is kept between being computed and being written: what was measured, under
//! the name it has in the API. Made into an object only when somebody is sent it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ebpf_scaler_measure::selector::Selector;
use ebpf_scaler_measure::signals::{PodSignals, Signals, WorkloadRef, WorkloadSignals};

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Of workloads
    Workloads,
    /// Of pods
    Pods,
}

impl Resource {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Workloads, Self::Pods];

    /// In paths.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Workloads => "workloadsignals",
            Self::Pods => "podsignals",
        }
    }

    /// For kubectl. No well-known resource has these.
    pub const fn short_names(self) -> &'static [&'static str] {
        match self {
            Self::Workloads => &["wsig"],
            Self::Pods => &["psig"],
        }
    }

    /// Kind of one.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Workloads => "WorkloadSignals",
            Self::Pods => "PodSignals",
        }
    }

    /// The resource of this name.
    pub fn from_plural(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.plural() == name)
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub enum Measured {
    /// A workload
    Workload(WorkloadSignals),
    /// A pod
    Pod(PodSignals),
}

/// One object at one version.
#[derive(Clone, Debug)]
pub struct Item {
    /// metadata.name
    pub name: String,
    /// The version in which it became what it is
    pub version: u64,
    /// What it says
    pub measured: Measured,
}

impl Item {
    /// metadata.namespace
    pub fn namespace(&self) -> &Arc<str> {
        match &self.measured {
            Measured::Workload(w) => &w.namespace,
            Measured::Pod(p) => &p.namespace,
        }
    }

    /// By what objects are ordered and found.
    pub fn key(&self) -> (&str, &str) {
        (self.namespace(), &self.name)
    }

    /// The values.
    pub fn signals(&self) -> &Signals {
        match &self.measured {
            Measured::Workload(w) => &w.signals,
            Measured::Pod(p) => &p.signals,
        }
    }

    /// metadata.labels
    pub fn labels(&self) -> &BTreeMap<String, String> {
        match &self.measured {
            Measured::Workload(w) => &w.labels,
            Measured::Pod(p) => &p.labels,
        }
    }

    /// The workload that it is, or belongs to.
    pub fn workload(&self) -> &WorkloadRef {
        match &self.measured {
            Measured::Workload(w) => &w.workload,
            Measured::Pod(p) => &p.workload,
        }
    }

    /// Whether it is of the same thing as another object of this name, and not of one made again.
    pub fn is_of_the_same(&self, other: &Self) -> bool {
        match (&self.measured, &other.measured) {
            (Measured::Workload(a), Measured::Workload(b)) => a.workload == b.workload,
            (Measured::Pod(a), Measured::Pod(b)) => a.uid == b.uid,
            _ => false,
        }
    }

    /// Whether it says the same as another, whenever both were sampled.
    pub fn is_same(&self, other: &Self) -> bool {
        let facts = match (&self.measured, &other.measured) {
            (Measured::Pod(a), Measured::Pod(b)) => (a.ready, &a.node) == (b.ready, &b.node),
            _ => true,
        };
        facts
            && self.is_of_the_same(other)
            && self.workload() == other.workload()
            && self.labels() == other.labels()
            && self.signals().is_same(other.signals())
    }

    /// Whether a selector picks it, by its labels and by what reserved keys mean for it.
    pub fn is_picked_by(&self, selector: &Selector) -> bool {
        selector.matches(|key| self.label(key))
    }

    fn label(&self, key: &str) -> Option<&str> {
        let Some(reserved) = key.strip_prefix(ebpf_scaler_measure::query::RESERVED_PREFIX) else {
            return self.labels().get(key).map(String::as_str);
        };
        let workload = self.workload();
        let of_kind = |kind: &str| (workload.kind == kind).then_some(workload.name.as_str());
        match (reserved, &self.measured) {
            ("workload", _) => Some(&workload.name),
            ("deployment", _) => of_kind("Deployment"),
            ("statefulset", _) => of_kind("StatefulSet"),
            ("daemonset", _) => of_kind("DaemonSet"),
            ("job", _) => of_kind("Job"),
            ("pod", Measured::Pod(pod)) => Some(&pod.name),
            ("node", Measured::Pod(pod)) => pod.node.as_deref(),
            _ => None,
        }
    }
}

/// Which of several workloads of one name has it to itself: the kinds in this order, then by the alphabet.
const KINDS: [&str; 4] = ["Deployment", "StatefulSet", "DaemonSet", "Job"];

/// A namespace's workloads as items, with names that no two share, in their order.
pub fn workloads(found: Vec<WorkloadSignals>, version: u64) -> Vec<Item> {
    let mut found = found;
    let rank = |kind: &str| KINDS.iter().position(|k| *k == kind);
    found.sort_by_cached_key(|w| {
        let rank = rank(&w.workload.kind).unwrap_or(KINDS.len());
        (rank, w.workload.kind.clone(), w.workload.name.clone())
    });
    let mut taken = BTreeSet::new();
    let mut items: Vec<_> = found
        .into_iter()
        .map(|workload| {
            let mut name = workload.workload.name.clone();
            while !taken.insert(name.clone()) {
                name = format!("{name}.{}", workload.workload.kind.to_lowercase());
            }
            Item {
                name,
                version,
                measured: Measured::Workload(workload),
            }
        })
        .collect();
    items.sort_by(|a, b| a.name.cmp(&b.name));
    items
}

/// A namespace's pods as items.
pub fn pods(found: Vec<PodSignals>, version: u64) -> Vec<Item> {
    let items = found.into_iter().map(|pod| Item {
        name: pod.name.clone(),
        version,
        measured: Measured::Pod(pod),
    });
    items.collect()
}
