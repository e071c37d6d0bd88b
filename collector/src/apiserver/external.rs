//! external.metrics.k8s.io/v1beta1 over HTTP: discovery and the list of a metric's values, as HPAs and
//! kube-apiserver's aggregation ask for them. Computes nothing itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, Query as UrlQuery, Request, State};
use axum::http::header::{AUTHORIZATION, WARNING};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ebpf_scaler_measure::{Answer, Metric, Query, Window, WindowValue};
use serde_json::{Value, json};

use super::discovery;
use super::hub::Hub;
use super::identity::{Peer, User};
use super::quantity::quantity;
use super::reviews::Action;
use super::status::{Failure, json_response};
use crate::admin::Readiness;

/// The group's name.
pub const GROUP: &str = "external.metrics.k8s.io";
/// The group's version.
pub const VERSION: &str = "v1beta1";

/// All routes of the API port.
pub fn router(hub: Arc<Hub>, readiness: Readiness) -> Router {
    let ready = move || async move {
        match readiness.reason() {
            None => "ok".into_response(),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason.to_string()).into_response(),
        }
    };
    Router::new()
        .route(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}",
            get(list),
        )
        .merge(discovery::router())
        .layer(middleware::from_fn_with_state(hub.clone(), authenticate))
        // Health needs no identity: kubelets and load balancers ask.
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .fallback(|request: Request| async move { not_found(request.uri().path()) })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!("{} is not supported here, only GET", request.method());
            Failure::new(405, message)
        })
        .with_state(hub)
}

fn not_found(path: &str) -> Failure {
    Failure::new(
        404,
        format!("the server could not find the requested resource ({path})"),
    )
}

/// Finds out who asks, and for paths that are no resource whether they may; the metric's own route asks
/// about the metric.
async fn authenticate(State(hub): State<Arc<Hub>>, mut request: Request, next: Next) -> Response {
    let peer = request
        .extensions()
        .get::<Peer>()
        .cloned()
        .unwrap_or_default();
    let user = match identify(&hub, &peer, request.headers()).await {
        Ok(user) => user,
        Err(failure) => return failure.into_response(),
    };
    let path = request.uri().path();
    if !path.contains("/namespaces/") && request.method() == Method::GET {
        let action = Action::GetPath(path.to_owned());
        if let Err(failure) = hub.authorize(&user, &action).await {
            return failure.into_response();
        }
    }
    request.extensions_mut().insert(user);
    next.run(request).await
}

async fn identify(hub: &Hub, peer: &Peer, headers: &HeaderMap) -> Result<User, Failure> {
    if let Some(user) = hub
        .trust
        .load()
        .as_ref()
        .and_then(|t| t.user(peer, headers))
    {
        return Ok(user);
    }
    let unauthorized = |reason| {
        hub.metrics.deny(reason);
        Failure::new(401, "Unauthorized")
    };
    let bearer = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let bearer = bearer.and_then(|v| v.split_once(' '));
    let Some((_, token)) = bearer.filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer")) else {
        return Err(unauthorized("no_identity"));
    };
    match hub.reviews.token(token.trim(), "").await {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(unauthorized("bad_token")),
        Err(error) => {
            tracing::warn!(%error, "can not authenticate");
            Err(Failure::new(500, error.to_string()))
        }
    }
}

/// Lists a metric's values: one item for all pods that the selector picks.
async fn list(
    State(hub): State<Arc<Hub>>,
    Path((namespace, name)): Path<(String, String)>,
    UrlQuery(parameters): UrlQuery<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    let began = Instant::now();
    let user = request
        .extensions()
        .get::<User>()
        .cloned()
        .unwrap_or_default();
    let metric = Metric::from_name(&name);
    let result = answer(&hub, &user, &namespace, (&name, metric), &parameters).await;
    let code = result.as_ref().map_or_else(|f| f.code, |_| 200);
    let label = metric.map_or("unknown", Metric::as_str);
    hub.metrics.query(label, code, began.elapsed());
    result.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(
    hub: &Hub,
    user: &User,
    namespace: &str,
    (name, metric): (&str, Option<Metric>),
    parameters: &BTreeMap<String, String>,
) -> Result<Response, Failure> {
    let action = Action::ListMetric {
        namespace: namespace.to_owned(),
        metric: name.to_owned(),
    };
    hub.authorize(user, &action).await?;
    // As Kubernetes reads booleans in a URL: anything but 0 and false is true.
    let watches = |v: &String| v != "0" && !v.eq_ignore_ascii_case("false");
    if parameters.get("watch").is_some_and(watches) {
        return Err(Failure::new(
            405,
            "watch is not supported on resources of kind \"externalmetrics\"",
        ));
    }
    if parameters
        .get("fieldSelector")
        .is_some_and(|f| !f.is_empty())
    {
        return Err(Failure::new(
            400,
            "external metrics have no fields to select by",
        ));
    }
    let Some(metric) = metric else {
        let names: Vec<_> = Metric::ALL.iter().map(|metric| metric.as_str()).collect();
        let message = format!(
            "the server could not find the metric {name} for namespaces; there are: {}",
            names.join(", ")
        );
        return Err(Failure::new(404, message).because("UnknownMetric"));
    };
    let selector = parameters.get("labelSelector").map_or("", String::as_str);
    let query = Query::parse(selector)
        .map_err(|e| Failure::new(400, e.to_string()).because("BadSelector"))?;
    let window = query.window.unwrap_or(Window::DEFAULT);
    let answer = hub.answer(namespace, metric, &query, &[window])?;
    let timestamp = timestamp(hub.clock.unix_micros(answer.sampled));
    let items = items(metric, &query, &answer, &timestamp);
    let mut response = json_response(&json!({
        "kind": "ExternalMetricValueList",
        "apiVersion": "external.metrics.k8s.io/v1beta1",
        "metadata": {},
        "items": items,
    }));
    if let Some(warning) = warning(&answer) {
        response.headers_mut().insert(WARNING, warning);
    }
    Ok(response)
}

fn items(metric: Metric, query: &Query, answer: &Answer, timestamp: &str) -> Vec<Value> {
    let item = |value: &WindowValue, labels: BTreeMap<&str, String>| {
        json!({
            "metricName": metric.as_str(),
            "metricLabels": labels,
            "timestamp": timestamp,
            "window": value.window.seconds(),
            "value": quantity(value.value).unwrap_or_else(|| "0".to_owned()),
        })
    };
    if query.by_pod {
        let pods = answer
            .pods
            .iter()
            .flat_map(|pod| pod.windows.iter().map(move |v| (pod, v)));
        return pods
            .map(|(pod, value)| {
                item(
                    value,
                    BTreeMap::from([("pod", pod.pod.clone()), ("node", pod.node.clone())]),
                )
            })
            .collect();
    }
    let labels = labels(answer);
    answer
        .windows
        .iter()
        .map(|value| item(value, labels.clone()))
        .collect()
}

/// What the answer rests on goes with it: the list's type has no other place for it.
fn labels(answer: &Answer) -> BTreeMap<&'static str, String> {
    let mut labels = BTreeMap::from([
        ("ebpfscaler.io/pods-expected", answer.expected.to_string()),
        ("ebpfscaler.io/pods-covered", answer.covered.to_string()),
    ]);
    if answer.estimated > 0 {
        labels.insert("ebpfscaler.io/pods-estimated", answer.estimated.to_string());
    }
    if !answer.silent_nodes.is_empty() {
        labels.insert("ebpfscaler.io/silent-nodes", answer.silent_nodes.join(","));
    }
    labels
}

/// An RFC 7234 warning, which kubectl and client-go show.
fn warning(answer: &Answer) -> Option<HeaderValue> {
    if answer.covered == answer.expected {
        return None;
    }
    let text = format!(
        "299 - \"{} of {} pods are measured now; {} count with their last known values; silent nodes: {}\"",
        answer.covered,
        answer.expected,
        answer.estimated,
        answer.silent_nodes.join(" "),
    );
    HeaderValue::from_str(&text).ok()
}

/// RFC 3339 in whole seconds, as metav1.Time.
fn timestamp(unix_micros: i64) -> String {
    jiff::Timestamp::from_second(unix_micros / 1_000_000)
        .unwrap_or_default()
        .to_string()
}
