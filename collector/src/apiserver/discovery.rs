//! What there is, for kube-apiserver's aggregation and kubectl: groups, versions and the names of the
//! metrics. The list is never empty, for some clients take that for an error.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use axum::routing::get;
use ebpf_scaler_measure::Metric;
use serde_json::{Value, json};

use super::external::{GROUP, VERSION};
use super::hub::Hub;
use super::status::json_response;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The routes.
pub fn router() -> Router<Arc<Hub>> {
    Router::new()
        .route("/apis", get(groups))
        .route(
            "/apis/external.metrics.k8s.io",
            get(|| async { json_response(&group()) }),
        )
        .route(
            "/apis/external.metrics.k8s.io/v1beta1",
            get(|| async { json_response(&resources()) }),
        )
        .route("/version", get(|| async { json_response(&version()) }))
}

fn group() -> Value {
    let version = json!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
    json!({
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": GROUP,
        "versions": [version],
        "preferredVersion": version,
    })
}

/// Only `get` is told, though the verb that RBAC sees is `list`: it keeps garbage collection and namespace
/// deletion from asking for these "objects".
fn resources() -> Value {
    let resources: Vec<_> = Metric::ALL
        .iter()
        .map(|metric| {
            json!({
                "name": metric.as_str(),
                "singularName": "",
                "namespaced": true,
                "kind": "ExternalMetricValueList",
                "verbs": ["get"],
            })
        })
        .collect();
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": resources,
    })
}

/// In aggregated form (apidiscovery.k8s.io/v2) if it is asked for.
async fn groups(headers: HeaderMap) -> Response {
    let accepts = headers
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let wants_aggregated = accepts.split(',').any(|media| {
        let has = |part: &str| media.split(';').any(|p| p.trim() == part);
        has("as=APIGroupDiscoveryList") && has("v=v2") && has("application/json")
    });
    if !wants_aggregated {
        return json_response(&json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [group()],
        }));
    }
    let mut response = json_response(&aggregated());
    let content_type = HeaderValue::from_static(AGGREGATED);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn aggregated() -> Value {
    let resources: Vec<_> = Metric::ALL
        .iter()
        .map(|metric| {
            json!({
                "resource": metric.as_str(),
                "responseKind": {"group": "", "version": "", "kind": "ExternalMetricValueList"},
                "scope": "Namespaced",
                "singularResource": "",
                "verbs": ["get"],
            })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [{
            "metadata": {"name": GROUP},
            "versions": [{"version": VERSION, "freshness": "Current", "resources": resources}],
        }],
    })
}

fn version() -> Value {
    json!({"major": "0", "minor": "1", "gitVersion": concat!("v", env!("CARGO_PKG_VERSION"))})
}
