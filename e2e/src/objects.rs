//! Objects as JSON: builders of the few shapes that tests need, and applying, reading and deleting any kind.

use anyhow::Context;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::{Scope, pinned_kind},
};
use serde_json::{Value, json};

/// Who we are to server-side apply.
const MANAGER: &str = "ebpf-scaler-e2e";

/// Creates or changes an object; its namespace is in its metadata.
pub async fn apply(client: &Client, object: &Value) -> anyhow::Result<DynamicObject> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let api = api_of(client, object).await?;
    let params = PatchParams::apply(MANAGER).force();
    let applied = api.patch(name, &params, &Patch::Apply(object)).await;
    applied.with_context(|| format!("cannot apply {} {name}", object["kind"]))
}

async fn api_of(client: &Client, object: &Value) -> anyhow::Result<Api<DynamicObject>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, version) = split(&text(&object["apiVersion"]));
    let gvk = GroupVersionKind::gvk(&group, &version, &text(&object["kind"]));
    let (resource, capabilities) = pinned_kind(client, &gvk)
        .await
        .with_context(|| format!("the cluster does not know {gvk:?}"))?;
    let namespace = text(&object["metadata"]["namespace"]);
    Ok(match capabilities.scope {
        Scope::Namespaced => Api::namespaced_with(client.clone(), &namespace, &resource),
        Scope::Cluster => Api::all_with(client.clone(), &resource),
    })
}

fn split(api_version: &str) -> (String, String) {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    (group.to_owned(), version.to_owned())
}

/// EbpfScalers of a namespace, without depending on their Rust types: the tests see what any client sees.
pub fn scalers(client: &Client, namespace: &str) -> Api<DynamicObject> {
    ours(client, namespace, "EbpfScaler", "ebpfscalers")
}

/// What the operator remembers of its decisions, as [`scalers`].
pub fn histories(client: &Client, namespace: &str) -> Api<DynamicObject> {
    ours(client, namespace, "ScalingHistory", "scalinghistories")
}

fn ours(client: &Client, namespace: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "ebpfscaler.io".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "ebpfscaler.io/v1alpha1".to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// A container that runs the sample program.
pub fn sample_container(name: &str, args: &[&str]) -> Value {
    json!({
        "name": name,
        "image": "ebpf-scaler/sample:dev",
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532,
            "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

/// A Deployment of pods with these containers, labelled `app: NAME`.
pub fn deployment(namespace: &str, name: &str, replicas: u32, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 20,
                    "containers": containers,
                },
            },
        },
    })
}

/// A container that serves at port 8080 and is ready when it answers.
pub fn web_container(args: &[&str]) -> Value {
    let mut all = vec!["serve"];
    all.extend(args);
    let mut container = sample_container("web", &all);
    container["ports"] = json!([{"containerPort": 8080}]);
    container["readinessProbe"] = json!({
        "httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1,
    });
    container
}

/// A Service in front of the pods labelled `app: NAME`, from port 80 to `target_port`.
pub fn service(namespace: &str, name: &str, target_port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": target_port}],
        },
    })
}

/// An EbpfScaler of a Deployment of the same name, with a short scale-down so that a test ends soon.
pub fn scaler(namespace: &str, name: &str, min: u32, max: u32, metrics: Value) -> Value {
    json!({
        "apiVersion": "ebpfscaler.io/v1alpha1", "kind": "EbpfScaler",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": min, "maxReplicas": max, "mode": "Enforce",
            "metrics": metrics,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 3}},
        },
    })
}

/// Requests a second and pod, over windows as short as they can be.
pub fn request_rate(per_pod: u32) -> Value {
    json!([{
        "type": "RequestRate",
        "requestRate": {
            "target": {"averageValue": per_pod.to_string()},
            "stableWindow": "10s", "burstWindow": "3s",
        },
    }])
}

/// An ordinary HPA of a Deployment of the same name, on our external metric over a window.
pub fn hpa(namespace: &str, name: &str, min: u32, max: u32, window: &str, per_pod: u32) -> Value {
    let metric = json!({"type": "External", "external": {
        "metric": {
            "name": "requests_per_second",
            "selector": {"matchLabels": {
                "ebpfscaler.io/deployment": name, "ebpfscaler.io/window": window,
            }},
        },
        "target": {"type": "AverageValue", "averageValue": per_pod.to_string()},
    }});
    hpa_on(namespace, name, min, max, &metric)
}

/// The same on the requests of each of its own pods.
pub fn hpa_pods(namespace: &str, name: &str, min: u32, max: u32, per_pod: u32) -> Value {
    let metric = json!({"type": "Pods", "pods": {
        "metric": short_request_rate(),
        "target": {"type": "AverageValue", "averageValue": per_pod.to_string()},
    }});
    hpa_on(namespace, name, min, max, &metric)
}

/// The same on the requests of another Deployment, one replica for each `per_replica` of them.
pub fn hpa_object(namespace: &str, name: &str, of: &str, max: u32, per_replica: u32) -> Value {
    let metric = json!({"type": "Object", "object": {
        "describedObject": {"apiVersion": "apps/v1", "kind": "Deployment", "name": of},
        "metric": short_request_rate(),
        "target": {"type": "AverageValue", "averageValue": per_replica.to_string()},
    }});
    hpa_on(namespace, name, 1, max, &metric)
}

fn short_request_rate() -> Value {
    json!({
        "name": "requests_per_second",
        "selector": {"matchLabels": {"ebpfscaler.io/window": "3s"}},
    })
}

fn hpa_on(namespace: &str, name: &str, min: u32, max: u32, metric: &Value) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": min, "maxReplicas": max,
            "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 3}},
        },
    })
}
