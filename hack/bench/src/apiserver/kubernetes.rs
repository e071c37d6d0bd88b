//! As much of the Kubernetes API as the role asks for, with any number of pods, made up as they are listed. Nothing
//! ever changes in it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::PODS_OF_A_NODE;
use super::pki::Pki;

/// Pods of a Deployment, and Deployments of a namespace.
pub const PODS_OF_A_WORKLOAD: usize = 30;
pub const WORKLOADS_OF_A_NAMESPACE: usize = 10;

/// Where a pod of this number is: its namespace, its workload's name.
pub fn place(pod: usize) -> (String, String) {
    let workload = pod / PODS_OF_A_WORKLOAD;
    let namespace = workload / WORKLOADS_OF_A_NAMESPACE;
    (format!("team-{namespace}"), format!("web-{workload}"))
}

/// A pod's UID, as long as real ones.
pub fn uid(pod: usize) -> String {
    format!("{pod:08x}-0000-4000-8000-000000000000")
}

/// The node with this number.
pub fn node(number: usize) -> String {
    format!("node-{number:05}")
}

/// The number of a pod that is the `slot`th of a node. A workload's pods are on as many nodes.
pub fn pod_of(node: usize, slot: usize, nodes: usize) -> usize {
    slot * nodes + node
}

/// The stand-in; it ends with this value.
pub struct Kubernetes {
    pub address: SocketAddr,
    nodes: usize,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Cluster {
    pods: usize,
    nodes: usize,
    trust: Value,
}

impl Kubernetes {
    /// Serves a cluster of so many pods on loopback.
    pub fn start(pods: usize, pki: &Pki) -> anyhow::Result<Self> {
        let nodes = pods.div_ceil(PODS_OF_A_NODE);
        let cluster = Arc::new(Cluster {
            pods,
            nodes,
            trust: json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {
                    "name": "extension-apiserver-authentication", "namespace": "kube-system",
                    "resourceVersion": "1",
                },
                "data": {
                    "requestheader-client-ca-file": pki.ca,
                    "requestheader-allowed-names": "[\"front-proxy-client\"]",
                },
            }),
        });
        let router = Router::new()
            .route("/api/v1/pods", get(pods_page))
            .route("/apis/apps/v1/replicasets", get(replica_sets))
            .route("/api/v1/namespaces/kube-system/configmaps", get(trust))
            .route(
                "/apis/authentication.k8s.io/v1/tokenreviews",
                post(token_review),
            )
            .route(
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                post(access_review),
            )
            .with_state(cluster);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            nodes,
            runtime: Some(runtime),
        })
    }

    /// For its client.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
             clusters: [{{name: bench, cluster: {{server: \"http://{}\"}}}}]\n\
             users: [{{name: bench, user: {{}}}}]\n\
             contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]\n",
            self.address
        )
    }

    /// Nodes of the cluster.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type Parameters = Query<BTreeMap<String, String>>;

/// A watch in which nothing happens, or else a list.
fn list(parameters: &Parameters, kind: &str, next: Option<usize>, items: Vec<Value>) -> Response {
    if parameters.contains_key("watch") {
        let silence = tokio_stream::pending::<Result<Bytes, Infallible>>();
        return Response::new(Body::from_stream(silence));
    }
    let next = next.map(|n| n.to_string());
    let body = json!({
        "apiVersion": "v1", "kind": kind,
        "metadata": {"resourceVersion": "1", "continue": next.unwrap_or_default()},
        "items": items,
    });
    Json(body).into_response()
}

fn number(parameters: &Parameters, key: &str) -> Option<usize> {
    parameters.get(key)?.parse().ok()
}

async fn pods_page(State(cluster): State<Arc<Cluster>>, parameters: Parameters) -> Response {
    if parameters.contains_key("watch") {
        return list(&parameters, "PodList", None, Vec::new());
    }
    let from = number(&parameters, "continue").unwrap_or(0);
    let limit = number(&parameters, "limit").unwrap_or(cluster.pods);
    let to = cluster.pods.min(from.saturating_add(limit));
    let items = (from..to).map(|n| pod(n, cluster.nodes)).collect();
    let next = (to < cluster.pods).then_some(to);
    list(&parameters, "PodList", next, items)
}

/// A pod that runs.
pub fn pod(number: usize, nodes: usize) -> Value {
    let (namespace, workload) = place(number);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{workload}-5f7d8c9b4-{number:05x}"),
            "namespace": namespace,
            "uid": uid(number),
            "labels": {
                "app": workload,
                "app.kubernetes.io/name": workload,
                "app.kubernetes.io/part-of": namespace,
                "pod-template-hash": "5f7d8c9b4",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{workload}-5f7d8c9b4"),
                "uid": set_uid(&workload), "controller": true,
            }],
        },
        "spec": {"nodeName": node(number % nodes), "containers": [{
            "name": "web", "image": "registry.example/web:1",
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        }]},
        "status": {
            "phase": "Running",
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn set_uid(workload: &str) -> String {
    format!("set-of-{workload}")
}

async fn replica_sets(State(cluster): State<Arc<Cluster>>, parameters: Parameters) -> Response {
    let workloads = cluster.pods.div_ceil(PODS_OF_A_WORKLOAD);
    let items = (0..workloads).map(|n| {
        let (namespace, workload) = place(n * PODS_OF_A_WORKLOAD);
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {
                "name": format!("{workload}-5f7d8c9b4"), "namespace": namespace, "uid": set_uid(&workload),
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "Deployment", "name": workload,
                    "uid": format!("of-{workload}"), "controller": true,
                }],
            },
        })
    });
    list(&parameters, "ReplicaSetList", None, items.collect())
}

async fn trust(State(cluster): State<Arc<Cluster>>, parameters: Parameters) -> Response {
    list(
        &parameters,
        "ConfigMapList",
        None,
        vec![cluster.trust.clone()],
    )
}

/// An agent's token is its node's name.
async fn token_review(Json(mut review): Json<Value>) -> Json<Value> {
    let node = review["spec"]["token"].clone();
    review["status"] = json!({
        "authenticated": true,
        "audiences": review["spec"]["audiences"],
        "user": {
            "username": "system:serviceaccount:ebpf-scaler:ebpf-scaler-agent",
            "extra": {"authentication.kubernetes.io/node-name": [node]},
        },
    });
    Json(review)
}

async fn access_review(Json(mut review): Json<Value>) -> Json<Value> {
    review["status"] = json!({"allowed": true});
    Json(review)
}
