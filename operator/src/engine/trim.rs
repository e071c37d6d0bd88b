//! What is kept of the objects that are watched. Never talks to anything.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;

use crate::{
    apply::{Target, TargetKey},
    watch::{self, Key},
};

/// A watched target.
#[derive(Debug)]
pub struct TargetObject {
    pub(super) key: TargetKey,
    pub(super) target: Target,
}

/// A HorizontalPodAutoscaler's target.
#[derive(Debug)]
pub struct HpaObject {
    pub(super) key: Key,
    pub(super) target: TargetKey,
}

pub(super) fn deployment(object: Deployment) -> TargetObject {
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or(0);
    let replicas = status.replicas.unwrap_or(0);
    target_object::<Deployment>(object.metadata, spec.replicas, replicas, ready)
}

pub(super) fn stateful_set(object: StatefulSet) -> TargetObject {
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or(0);
    target_object::<StatefulSet>(object.metadata, spec.replicas, status.replicas, ready)
}

fn target_object<K: Resource<DynamicType = ()>>(
    metadata: ObjectMeta,
    spec: Option<i32>,
    status: i32,
    ready: i32,
) -> TargetObject {
    let key = TargetKey {
        namespace: metadata.namespace.unwrap_or_default(),
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: metadata.name.unwrap_or_default(),
    };
    let target = Target {
        // The API server fills in 1 where it is left out.
        spec: spec.unwrap_or(1),
        status,
        ready: Some(ready),
        selector: format!("ebpfscaler.io/{}={}", key.kind.to_lowercase(), key.name),
        version: metadata.resource_version.unwrap_or_default(),
    };
    TargetObject { key, target }
}

pub(super) fn hpa(object: HorizontalPodAutoscaler) -> HpaObject {
    let key = watch::key(&object);
    let r = object.spec.unwrap_or_default().scale_target_ref;
    HpaObject {
        target: TargetKey {
            namespace: key.0.clone(),
            api_version: r.api_version.unwrap_or_default(),
            kind: r.kind,
            name: r.name,
        },
        key,
    }
}
