//! Records every change of a Deployment's replicas as it happens, by a watch, with the time at which it was seen.

use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use kube_runtime::watcher;

use crate::unix_micros;

/// What was asked for, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Wall clock when the watch delivered it.
    pub unix_micros: u64,
    /// `spec.replicas`.
    pub replicas: u32,
}

/// A running watch; it ends when this is dropped.
#[derive(Debug)]
pub struct Recorder {
    changes: Arc<Mutex<Vec<Change>>>,
    ready: Arc<Mutex<u32>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    /// Begins to watch a Deployment.
    pub fn start(client: &Client, namespace: &str, deployment: &str) -> Self {
        let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={deployment}"));
        let changes = Arc::new(Mutex::new(Vec::new()));
        let ready = Arc::new(Mutex::new(0));
        let (seen, seen_ready) = (Arc::clone(&changes), Arc::clone(&ready));
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(api, config));
            while let Some(event) = events.next().await {
                let (Ok(watcher::Event::Apply(object)) | Ok(watcher::Event::InitApply(object))) =
                    event
                else {
                    continue;
                };
                let now = unix_micros();
                let of = |count: Option<i32>| u32::try_from(count.unwrap_or(0)).unwrap_or(0);
                let replicas = of(object.spec.and_then(|spec| spec.replicas));
                *lock(&seen_ready) = of(object.status.and_then(|status| status.ready_replicas));
                let mut seen = lock(&seen);
                if seen
                    .last()
                    .is_none_or(|last: &Change| last.replicas != replicas)
                {
                    seen.push(Change {
                        unix_micros: now,
                        replicas,
                    });
                }
            }
        });
        Self {
            changes,
            ready,
            task,
        }
    }

    /// Every value so far, the one at the start first.
    pub fn changes(&self) -> Vec<Change> {
        lock(&self.changes).clone()
    }

    /// What is asked for now.
    pub fn current(&self) -> u32 {
        lock(&self.changes)
            .last()
            .map_or(0, |change| change.replicas)
    }

    /// How many are ready now.
    pub fn ready(&self) -> u32 {
        *lock(&self.ready)
    }

    /// The most that was asked for so far.
    pub fn most(&self) -> u32 {
        lock(&self.changes)
            .iter()
            .map(|change| change.replicas)
            .max()
            .unwrap_or(0)
    }

    /// When at least this many were first asked for, not looking at what was before `since`.
    pub fn reached(&self, replicas: u32, since: u64) -> Option<u64> {
        let changes = lock(&self.changes);
        let mut later = changes.iter().filter(|change| change.unix_micros >= since);
        later
            .find(|change| change.replicas >= replicas)
            .map(|change| change.unix_micros)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
