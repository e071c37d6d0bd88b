//! external.metrics.k8s.io/v1beta1: the list of a metric's values, as HPAs and kube-apiserver's aggregation
//! ask for it. Computes nothing itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::HeaderValue;
use axum::http::header::WARNING;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ebpf_scaler_measure::{Answer, Metric, Query, Window, WindowValue};
use serde_json::{Value, json};

use super::api::Caller;
use super::discovery::{Group, Resource, Version};
use super::hub::Hub;
use super::media::{Form, negotiate};
use super::openapi::{Operation, list_schema};
use super::options::Options;
use super::quantity::quantity;
use super::reviews::Action;
use super::status::{Failure, json_response};
use super::table::{Column, Row, table};

/// The group's name.
pub const GROUP: &str = "external.metrics.k8s.io";
/// The group's version.
pub const VERSION: &str = "v1beta1";

const VALUE: &str = "io.k8s.metrics.pkg.apis.external_metrics.v1beta1.ExternalMetricValue";
const LIST: &str = "io.k8s.metrics.pkg.apis.external_metrics.v1beta1.ExternalMetricValueList";

/// The routes.
pub fn router() -> Router<Arc<Hub>> {
    let path = format!("/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/{{metric}}");
    Router::new().route(&path, get(list))
}

/// The group as clients see it. Only `get` is told, though the verb that RBAC sees is `list`: it keeps garbage
/// collection and namespace deletion from asking for these "objects".
pub fn group() -> Group {
    let resources = Metric::ALL.iter().map(|metric| Resource {
        name: metric.as_str().to_owned(),
        namespaced: true,
        kind: "ExternalMetricValueList",
        verbs: &["get"],
        ..Resource::default()
    });
    let metrics = Metric::ALL.iter().map(|metric| metric.as_str()).collect();
    Group {
        name: GROUP,
        versions: vec![Version {
            name: VERSION,
            resources: resources.collect(),
            schemas: schemas(),
            operations: vec![Operation {
                path: format!("/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/{{metric}}"),
                id: "listExternalMetricsV1beta1NamespacedMetric".to_owned(),
                summary: "values of a metric over the pods that a selector picks; one item, unless grouped",
                action: "list",
                kind: "ExternalMetricValueList",
                schema: LIST,
                choices: vec![("metric", metrics)],
                query: &[(
                    "labelSelector",
                    "string",
                    "picks pods by their labels; keys under ebpfscaler.io/ pick by owner and shape the answer",
                )],
            }],
        }],
    }
}

/// As in k8s.io/metrics; types of other groups are spelled out, so as not to clash with kube-apiserver's own.
fn schemas() -> Vec<(&'static str, Value)> {
    let value = json!({
        "description": "a metric value of one metric name and one set of metric labels",
        "type": "object",
        "required": ["metricName", "metricLabels", "timestamp", "value"],
        "properties": {
            "metricName": {"type": "string", "description": "the metric's name"},
            "metricLabels": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": "what the value rests on: pods expected, covered, estimated; silent nodes",
            },
            "timestamp": {"type": "string", "format": "date-time", "description": "of the least recent report behind it"},
            "window": {"type": "integer", "format": "int64", "description": "seconds before the timestamp that the value is of"},
            "value": {"type": "string", "description": "a quantity in the unit that the metric's name tells"},
        },
    });
    vec![
        (VALUE, value),
        (LIST, list_schema("values of a metric", VALUE)),
    ]
}

/// Lists a metric's values: one item for all pods that the selector picks.
async fn list(
    State(hub): State<Arc<Hub>>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Response {
    let began = Instant::now();
    let (namespace, name) = match path {
        Ok(Path(names)) => names,
        Err(error) => return Failure::new(400, error.body_text()).into_response(),
    };
    let metric = Metric::from_name(&name);
    let caller = request.into();
    let result = answer(&hub, &caller, &namespace, (&name, metric)).await;
    // What is another provider's is counted there.
    if let (Ok(None), Some(delegate)) = (&result, hub.delegates.get(GROUP)) {
        let answer = delegate.forward(&caller).await;
        return answer.unwrap_or_else(IntoResponse::into_response);
    }
    let result =
        result.and_then(|answer| answer.ok_or_else(|| unknown_metric(&name, "namespaces")));
    let code = result.as_ref().map_or_else(|f| f.code, |_| 200);
    let label = metric.map_or("unknown", Metric::as_str);
    hub.metrics.query(label, code, began.elapsed());
    result.unwrap_or_else(IntoResponse::into_response)
}

/// The answer to a user who may ask; none if the metric is not ours.
async fn answer(
    hub: &Hub,
    caller: &Caller,
    namespace: &str,
    (name, metric): (&str, Option<Metric>),
) -> Result<Option<Response>, Failure> {
    let action = Action::ListMetric {
        namespace: namespace.to_owned(),
        metric: name.to_owned(),
    };
    hub.authorize(&caller.user, &action).await?;
    let options = Options::read(&caller.uri)?;
    options.only_list(&format!("{name}.{GROUP}"))?;
    let Some(metric) = metric else {
        return Ok(None);
    };
    let form = negotiate(&caller.headers, &[Form::Plain, Form::Table])?;
    let query = Query::parse(options.get("labelSelector"))
        .and_then(|query| query.check(metric).map(|()| query))
        .map_err(|e| Failure::new(400, e.to_string()).because("BadSelector"))?;
    let window = query.window.unwrap_or(Window::DEFAULT);
    let answer = hub.answer(namespace, metric, &query, &[window])?;
    let timestamp = timestamp(hub.clock.unix_micros(answer.sampled));
    let items = items(metric, &query, &answer, &timestamp);
    let body = match form {
        Form::Table => table(
            &columns(query.by_pod),
            rows(items, namespace),
            options.get("includeObject"),
        ),
        _ => json!({
            "kind": "ExternalMetricValueList",
            "apiVersion": "external.metrics.k8s.io/v1beta1",
            "metadata": {},
            "items": items,
        }),
    };
    let mut response = json_response(&body);
    if let Some(warning) = warning(&answer) {
        response.headers_mut().insert(WARNING, warning);
    }
    Ok(Some(response))
}

/// There is no metric of this name; the answer lists those that there are.
pub fn unknown_metric(name: &str, of: &str) -> Failure {
    let names: Vec<_> = Metric::ALL.iter().map(|metric| metric.as_str()).collect();
    let message = format!(
        "the server could not find the metric {name} for {of}; there are: {}",
        names.join(", ")
    );
    Failure::new(404, message).because("UnknownMetric")
}

/// The metric's name is a column, because kubectl takes all resources of one kind for the same: asked for one of
/// them by name it may get another.
fn columns(by_pod: bool) -> [Column; 6] {
    let column = |name, kind, what, wide| Column {
        name,
        kind,
        what,
        wide,
    };
    [
        column("Metric", "string", "the metric's name", false),
        column("Value", "string", "in the unit that the name tells", false),
        column("Window", "string", "the span that the value is of", false),
        column(
            "Covered",
            "string",
            "pods measured now, of those that should be",
            by_pod,
        ),
        column("Pod", "string", "the pod, if grouped by pod", !by_pod),
        column(
            "Time",
            "string",
            "of the least recent report behind it",
            true,
        ),
    ]
}

fn rows(items: Vec<Value>, namespace: &str) -> Vec<Row> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = items.into_iter().map(|mut item| {
        let labels = &item["metricLabels"];
        let label = |name: &str| text(&labels[name]);
        let covered = match label("ebpfscaler.io/pods-expected") {
            expected if expected.is_empty() => String::new(),
            expected => format!("{}/{expected}", label("ebpfscaler.io/pods-covered")),
        };
        let cells = vec![
            item["metricName"].clone(),
            item["value"].clone(),
            format!("{}s", item["window"]).into(),
            covered.into(),
            label("pod").into(),
            item["timestamp"].clone(),
        ];
        let name = text(&item["metricName"]);
        item["kind"] = "ExternalMetricValue".into();
        item["apiVersion"] = format!("{GROUP}/{VERSION}").into();
        Row {
            cells,
            namespace: namespace.to_owned(),
            name,
            object: item,
        }
    });
    rows.collect()
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
pub fn warning(answer: &Answer) -> Option<HeaderValue> {
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
pub fn timestamp(unix_micros: i64) -> String {
    jiff::Timestamp::from_second(unix_micros / 1_000_000)
        .unwrap_or_default()
        .to_string()
}
