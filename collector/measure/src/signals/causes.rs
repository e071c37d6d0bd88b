//! What threads waited for when they waited for a CPU, and behind whom: from the parts of the waiting time and
//! the preemptors that agents report. Judges nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::WorkloadRef;
use crate::metric::Metric;
use crate::series::Preemptor;
use crate::state::State;

/// What a thread waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Other threads of its own pod had the CPU
    OwnPod,
    /// Threads of other pods had it
    OtherPods,
    /// Threads outside the pods had it: the kernel's, the node's services
    System,
    /// The pod's own CPU limit
    Throttled,
    /// Nothing: its CPU was idle, and it was being woken or moved
    Idle,
}

impl Cause {
    /// Each with the metric that tells how many threads waited for it.
    const ALL: [(Self, Metric); 5] = [
        (Self::OwnPod, Metric::RunQueueWaitingThreadsSelf),
        (Self::OtherPods, Metric::RunQueueWaitingThreadsOtherPods),
        (Self::System, Metric::RunQueueWaitingThreadsSystem),
        (Self::Throttled, Metric::RunQueueWaitingThreadsThrottled),
        (Self::Idle, Metric::RunQueueWaitingThreadsIdle),
    ];

    /// The cause as one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OwnPod => "OwnPod",
            Self::OtherPods => "OtherPods",
            Self::System => "System",
            Self::Throttled => "Throttled",
            Self::Idle => "Idle",
        }
    }
}

/// One cause's part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waiting {
    /// The cause
    pub cause: Cause,
    /// Threads that waited for it, on average over the window
    pub threads: f64,
    /// Its share of all waiting whose cause is known, 0 to 1
    pub share: f64,
}

/// Less than this many waiting threads would be served as 0, so there is no cause to tell.
const NOBODY: f64 = 0.0005;

pub(super) fn waiting(value: impl Fn(Metric) -> Option<f64>) -> Vec<Waiting> {
    let parts = Cause::ALL.map(|(cause, metric)| (cause, value(metric).unwrap_or(0.0)));
    let all: f64 = parts.iter().map(|(_, threads)| threads).sum();
    let mut found: Vec<_> = parts
        .into_iter()
        .filter(|(_, threads)| *threads >= NOBODY)
        .map(|(cause, threads)| Waiting {
            cause,
            threads,
            share: threads / all,
        })
        .collect();
    found.sort_by(|a, b| b.threads.total_cmp(&a.threads));
    found
}

/// Whoever had a CPU while threads waited for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A pod
    Pod {
        /// Its namespace
        namespace: Arc<str>,
        /// Its name
        name: String,
        /// What owns it
        workload: WorkloadRef,
    },
    /// A pod that is not known (any more)
    UnknownPod,
    /// The node itself: its kernel's threads and services
    Node,
}

/// How much somebody made others wait.
#[derive(Clone, Debug, PartialEq)]
pub struct Blame {
    /// Who
    pub who: Who,
    /// Threads that waited behind it, on average over the last seconds
    pub waiting_threads: f64,
}

/// Adds up preemptors of several pods.
#[derive(Default)]
pub(super) struct Blamed(BTreeMap<Option<Arc<str>>, f64>);

impl Blamed {
    pub(super) fn add(&mut self, preemptors: &[Preemptor]) {
        for p in preemptors {
            *self.0.entry(p.pod_uid.clone()).or_default() += p.waiting_threads;
        }
    }

    /// The largest, with their names.
    pub(super) fn name(self, state: &State, most: usize) -> Vec<Blame> {
        let mut all: Vec<_> = self.0.into_iter().filter(|(_, w)| *w >= NOBODY).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        let named = all
            .into_iter()
            .take(most)
            .map(|(uid, waiting_threads)| Blame {
                who: who(state, uid.as_deref()),
                waiting_threads,
            });
        named.collect()
    }
}

fn who(state: &State, uid: Option<&str>) -> Who {
    let Some(uid) = uid else { return Who::Node };
    let Some(pod) = state.index.by_cgroup_uid(uid) else {
        return Who::UnknownPod;
    };
    let (kind, name) = state.owner(pod);
    Who::Pod {
        namespace: pod.facts.namespace.clone(),
        name: pod.facts.name.clone(),
        workload: WorkloadRef {
            kind: kind.to_owned(),
            name: name.to_owned(),
        },
    }
}
