//! What is kept of the objects that are watched. Never talks to anything.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
    },
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
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
        manager: manager(metadata.managed_fields.as_deref().unwrap_or_default()),
        version: metadata.resource_version.unwrap_or_default(),
    };
    TargetObject { key, target }
}

/// Who wrote `spec.replicas` last, by the managed fields.
fn manager(fields: &[ManagedFieldsEntry]) -> Option<String> {
    let owners = fields.iter().filter(|entry| {
        let owned = entry.fields_v1.as_ref();
        owned.is_some_and(|f| f.0.pointer("/f:spec/f:replicas").is_some())
    });
    let last = owners.max_by_key(|entry| entry.time.as_ref().map(|t| t.0))?;
    last.manager.clone()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_writer_of_replicas_is_named() {
        let fields: Vec<ManagedFieldsEntry> = serde_json::from_value(json!([
            {"manager": "kubectl-client-side-apply", "operation": "Update", "time": "2026-03-01T12:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {}}}},
            {"manager": "kubectl", "operation": "Update", "subresource": "scale", "time": "2026-03-01T12:05:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
            {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status", "time": "2026-03-01T12:06:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:replicas": {}}}},
        ]))
        .unwrap();
        assert_eq!(manager(&fields).as_deref(), Some("kubectl"));
        assert_eq!(manager(&fields[2..]), None);
    }
}
