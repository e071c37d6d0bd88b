//! Watches pods and what owns them, trims them to the facts that answers need, and feeds the index. Keeps no
//! object.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ebpf_scaler_measure::index::{Container, OwnerRef, Phase, PodFacts};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{Config, Event, watcher};

use super::hub::Hub;

/// A static pod's mirror names the UID that the cgroup carries.
const MIRROR: &str = "kubernetes.io/config.hash";

/// Feeds the index with pods until the process ends; `synced` is set after the first full listing.
pub async fn pods(client: kube::Client, hub: Arc<Hub>, synced: Arc<AtomicBool>) {
    let stream = watcher(Api::<Pod>::all(client), Config::default()).default_backoff();
    tokio::pin!(stream);
    let mut listed: HashSet<Arc<str>> = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                let facts = facts(pod);
                listed.insert(facts.uid.clone());
                let (mut state, now) = hub.change();
                state.index.apply(facts, true, now);
            }
            Ok(Event::InitDone) => {
                let (mut state, now) = hub.change();
                state.index.retain(&std::mem::take(&mut listed), now);
                if !synced.swap(true, Ordering::Relaxed) {
                    tracing::info!(pods = state.index.len(), "pods are known");
                }
            }
            Ok(Event::Apply(pod)) => {
                let (mut state, now) = hub.change();
                state.index.apply(facts(pod), false, now);
            }
            Ok(Event::Delete(pod)) => {
                let (mut state, now) = hub.change();
                state.index.delete(&pod.uid().unwrap_or_default(), now);
            }
            Err(error) => tracing::warn!(%error, "can not watch pods"),
        }
    }
}

/// Feeds the index with the owners of ReplicaSets.
pub async fn replica_sets(client: kube::Client, hub: Arc<Hub>) {
    let api: Api<PartialObjectMeta<ReplicaSet>> = Api::all(client);
    let stream = watcher(api, Config::default()).default_backoff();
    tokio::pin!(stream);
    let mut listed: HashSet<Arc<str>> = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(set)) => {
                let uid: Arc<str> = set.uid().unwrap_or_default().into();
                listed.insert(uid.clone());
                hub.change()
                    .0
                    .index
                    .apply_owner(uid, controller(set.owner_references()));
            }
            Ok(Event::InitDone) => {
                let (mut state, now) = hub.change();
                state.index.retain_owners(&std::mem::take(&mut listed), now);
            }
            Ok(Event::Apply(set)) => {
                let uid = set.uid().unwrap_or_default().into();
                hub.change()
                    .0
                    .index
                    .apply_owner(uid, controller(set.owner_references()));
            }
            Ok(Event::Delete(set)) => {
                let (mut state, now) = hub.change();
                state
                    .index
                    .delete_owner(&set.uid().unwrap_or_default(), now);
            }
            Err(error) => tracing::warn!(%error, "can not watch ReplicaSets"),
        }
    }
}

fn controller(owners: &[OwnerReference]) -> Option<OwnerRef> {
    let owner = owners.iter().find(|o| o.controller == Some(true))?;
    Some(OwnerRef {
        kind: owner.kind.clone(),
        name: owner.name.clone(),
        uid: owner.uid.as_str().into(),
    })
}

/// What is kept of a pod.
fn facts(pod: Pod) -> PodFacts {
    let meta = pod.metadata;
    let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
    let mirror = meta.annotations.as_ref().and_then(|a| a.get(MIRROR));
    let ready =
        |c: &k8s_openapi::api::core::v1::PodCondition| c.type_ == "Ready" && c.status == "True";
    PodFacts {
        uid: meta.uid.unwrap_or_default().into(),
        namespace: meta.namespace.unwrap_or_default().into(),
        name: meta.name.unwrap_or_default(),
        owner: controller(meta.owner_references.as_deref().unwrap_or_default()),
        mirror_hash: mirror.map(|hash| hash.as_str().into()),
        labels: meta.labels.unwrap_or_default(),
        containers: containers(&spec, &status),
        node: spec.node_name.map(Into::into),
        phase: match status.phase.as_deref() {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some("Unknown") => Phase::Unknown,
            _ => Phase::Pending,
        },
        ready: status.conditions.unwrap_or_default().iter().any(ready),
        started: status.start_time.map(|t| t.0.as_second()),
        deleting: meta.deletion_timestamp.is_some(),
    }
}

/// The containers by the spec, which has them from the start, with what the kubelet says of them.
fn containers(spec: &PodSpec, status: &PodStatus) -> Vec<Container> {
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.name);
    let init = spec.init_containers.iter().flatten().map(|c| &c.name);
    let names = spec.containers.iter().map(|c| &c.name);
    let statuses = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let statuses = || statuses.into_iter().flatten().flatten();
    let container = |name: &String| {
        let status = statuses().find(|s: &&ContainerStatus| s.name == *name);
        // As "containerd://<id>"; of the last run while the next one waits to start.
        let id = status.and_then(|s| Some(s.container_id.as_ref()?.split_once("://")?.1));
        let state = status.and_then(|s| s.state.as_ref());
        Container {
            name: name.as_str().into(),
            id: id.filter(|id| !id.is_empty()).map(Into::into),
            running: state.is_some_and(|state| state.running.is_some()),
        }
    };
    names.chain(init).chain(ephemeral).map(container).collect()
}
