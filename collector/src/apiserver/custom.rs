//! custom.metrics.k8s.io: the same signals for each pod and for the objects that own pods, as HPAs of type Pods
//! and Object ask for them. Leaves out pods without a value: what that means, the HPA decides.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::WARNING;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ebpf_scaler_measure::query::RESERVED_PREFIX;
use ebpf_scaler_measure::selector::{Operator, Requirement, Selector};
use ebpf_scaler_measure::{Answer, Metric, Query, Window, WindowValue};
use serde_json::{Value, json};

use super::api::Caller;
use super::external::{timestamp, unknown_metric, warning};
use super::hub::Hub;
use super::media::{Form, negotiate};
use super::options::Options;
use super::quantity::quantity;
use super::reviews::{Access, Action};
use super::status::{Failure, json_response};
use super::table::{Column, Row, table};

mod group;

pub use group::group;

/// The group's name.
pub const GROUP: &str = "custom.metrics.k8s.io";
/// Its versions, the preferred one first. HPAs take the preferred one; older clients know the other only.
const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// Objects that own pods: their resource, kind, apiVersion, and the reserved key that picks their pods.
const OWNERS: [(&str, &str, &str, &str); 5] = [
    ("deployments.apps", "Deployment", "apps/v1", "deployment"),
    ("statefulsets.apps", "StatefulSet", "apps/v1", "statefulset"),
    ("daemonsets.apps", "DaemonSet", "apps/v1", "daemonset"),
    ("replicasets.apps", "ReplicaSet", "apps/v1", "replicaset"),
    ("jobs.batch", "Job", "batch/v1", "job"),
];

/// The routes.
pub fn router() -> Router<Arc<Hub>> {
    let mut router = Router::new();
    for version in VERSIONS {
        let namespace = format!("/apis/{GROUP}/{version}/namespaces/{{namespace}}");
        let of_object = get(
            async move |State(hub): State<Arc<Hub>>, path: Names<4>, request: Request| {
                let names = path.map(|Path([namespace, resource, name, metric])| Asked {
                    version,
                    namespace,
                    resource,
                    name,
                    metric,
                });
                answer(&hub, names, &request.into()).await
            },
        );
        let of_namespace = get(
            async move |State(hub): State<Arc<Hub>>, path: Names<2>, request: Request| {
                let names = path.map(|Path([namespace, metric])| Asked {
                    version,
                    name: namespace.clone(),
                    namespace,
                    resource: NAMESPACE.to_owned(),
                    metric,
                });
                answer(&hub, names, &request.into()).await
            },
        );
        router = router
            .route(
                &format!("{namespace}/{{resource}}/{{name}}/{{metric}}"),
                of_object,
            )
            .route(&format!("{namespace}/metrics/{{metric}}"), of_namespace);
    }
    router
}

type Names<const N: usize> = Result<Path<[String; N]>, PathRejection>;

/// What stands in the path for the namespace itself.
const NAMESPACE: &str = "metrics";

/// What a path names.
struct Asked {
    version: &'static str,
    namespace: String,
    resource: String,
    name: String,
    metric: String,
}

async fn answer(hub: &Hub, asked: Result<Asked, PathRejection>, caller: &Caller) -> Response {
    let began = Instant::now();
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => return Failure::new(400, error.body_text()).into_response(),
    };
    let metric = Metric::from_name(&asked.metric);
    let result = values(hub, &asked, metric, caller).await;
    let code = result.as_ref().map_or_else(|f| f.code, |_| 200);
    let label = metric.map_or("unknown", Metric::as_str);
    hub.metrics.query(label, code, began.elapsed());
    result.unwrap_or_else(IntoResponse::into_response)
}

async fn values(
    hub: &Hub,
    asked: &Asked,
    metric: Option<Metric>,
    caller: &Caller,
) -> Result<Response, Failure> {
    let action = Action::Access(Box::new(asked.access()));
    hub.authorize(&caller.user, &action).await?;
    let form = negotiate(&caller.headers, &[Form::Plain, Form::Table])?;
    let options = Options::read(&caller.uri)?;
    options.only_list(&format!("{}.{GROUP}", asked.resource))?;
    let object = asked.object()?;
    let metric = metric.ok_or_else(|| unknown_metric(&asked.metric, &asked.resource))?;
    let bad = |message: String| Failure::new(400, message).because("BadSelector");
    let shape = Shape::read(options.get("metricLabelSelector")).map_err(bad)?;
    let query = object
        .query(asked, options.get("labelSelector"), &shape)
        .map_err(bad)?;
    let windows = [query.window.unwrap_or(Window::DEFAULT)];
    let answer = match object {
        Object::Pods => hub.answer_each(&asked.namespace, metric, &query, &windows)?,
        _ => hub.answer(&asked.namespace, metric, &query, &windows)?,
    };
    let items = items(hub, asked, object, metric, &answer, &shape);
    let body = match form {
        Form::Table => table(
            &COLUMNS,
            rows(asked, metric, items),
            options.get("includeObject"),
        ),
        _ => json!({
            "kind": "MetricValueList",
            "apiVersion": format!("{GROUP}/{}", asked.version),
            "metadata": {},
            "items": items,
        }),
    };
    let mut response = json_response(&body);
    if let Some(warning) = warning(&answer) {
        response.headers_mut().insert(WARNING, warning);
    }
    Ok(response)
}

/// What is described.
#[derive(Clone, Copy)]
enum Object {
    /// Each pod on its own
    Pods,
    /// All pods of an owner: its kind, apiVersion and reserved key
    Owner(&'static str, &'static str, &'static str),
    /// All pods of the namespace
    Namespace,
}

impl Asked {
    /// As kube-apiserver sees the request, which asks before it lets us.
    fn access(&self) -> Access {
        let (name, subresource) = match self.resource.as_str() {
            NAMESPACE => (&self.metric, ""),
            _ => (&self.name, self.metric.as_str()),
        };
        Access {
            verb: "get",
            group: GROUP,
            version: self.version,
            namespace: self.namespace.clone(),
            resource: self.resource.clone(),
            name: name.clone(),
            subresource: subresource.to_owned(),
        }
    }

    fn object(&self) -> Result<Object, Failure> {
        match self.resource.as_str() {
            "pods" => return Ok(Object::Pods),
            NAMESPACE => return Ok(Object::Namespace),
            _ => {}
        }
        let owner = OWNERS.iter().find(|(r, ..)| *r == self.resource);
        let Some((_, kind, api_version, key)) = owner else {
            let known: Vec<_> = OWNERS.iter().map(|(resource, ..)| *resource).collect();
            let message = format!(
                "the server could not find metrics of {}; there are those of pods and {}",
                self.resource,
                known.join(", ")
            );
            return Err(Failure::new(404, message));
        };
        if self.name == "*" {
            let message = format!(
                "only pods can be asked for as *; name one of the {}",
                self.resource
            );
            return Err(Failure::new(400, message));
        }
        Ok(Object::Owner(kind, api_version, key))
    }
}

impl Object {
    fn query(self, asked: &Asked, labels: &str, shape: &Shape) -> Result<Query, String> {
        let mut query = Query::parse(labels).map_err(|e| e.to_string())?;
        if query.by_pod {
            return Err(
                "values come for each pod or for one object; there is nothing to group".into(),
            );
        }
        let is = |key: &str| Requirement {
            key: format!("{RESERVED_PREFIX}{key}"),
            operator: Operator::In,
            values: vec![asked.name.clone()],
        };
        match self {
            Self::Pods if asked.name == "*" => {}
            Self::Pods => query.selector.requirements.push(is("pod")),
            Self::Owner(..) | Self::Namespace if !labels.is_empty() => {
                return Err(format!(
                    "labelSelector picks pods; {} is picked by its name",
                    asked.name
                ));
            }
            Self::Owner(_, _, key) => query.selector.requirements.push(is(key)),
            Self::Namespace => {}
        }
        query.window = shape.query.window.or(query.window);
        Ok(query)
    }

    fn described(self, asked: &Asked, pod: &str) -> Value {
        let (kind, api_version, name) = match self {
            Self::Pods => ("Pod", "v1", pod),
            Self::Owner(kind, api_version, _) => (kind, api_version, asked.name.as_str()),
            Self::Namespace => {
                return json!({"kind": "Namespace", "name": asked.name, "apiVersion": "v1"});
            }
        };
        json!({"kind": kind, "namespace": asked.namespace, "name": name, "apiVersion": api_version})
    }
}

/// What `metricLabelSelector` says: our metrics have no labels of their own, so only reserved keys that shape a
/// value can be in it. One that we would have to ignore is refused, for the value would be another metric's.
struct Shape {
    query: Query,
    /// As a metav1.LabelSelector, which answers repeat
    selector: Value,
}

impl Shape {
    fn read(text: &str) -> Result<Self, String> {
        let query = Query::parse(text).map_err(|e| e.to_string())?;
        if query.by_pod || !query.selector.requirements.is_empty() {
            return Err(format!(
                "metricLabelSelector {text:?} is not supported: these metrics have no labels; \
                 {RESERVED_PREFIX}window can be in it"
            ));
        }
        let parsed = Selector::parse(text).map_err(|e| e.to_string())?;
        let labels = parsed.requirements.into_iter();
        let labels: serde_json::Map<_, _> = labels
            .filter_map(|r| Some((r.key, Value::from(r.values.into_iter().next()?))))
            .collect();
        let selector = if labels.is_empty() {
            Value::Null
        } else {
            json!({"matchLabels": labels})
        };
        Ok(Self { query, selector })
    }
}

fn items(
    hub: &Hub,
    asked: &Asked,
    object: Object,
    metric: Metric,
    answer: &Answer,
    shape: &Shape,
) -> Vec<Value> {
    let item = |described: Value, sampled, value: &WindowValue| {
        let mut item = json!({
            "describedObject": described,
            "timestamp": timestamp(hub.clock.unix_micros(sampled)),
            "value": quantity(value.value).unwrap_or_else(|| "0".to_owned()),
        });
        if asked.version == "v1beta1" {
            item["metricName"] = metric.as_str().into();
            item["selector"] = shape.selector.clone();
            item["window"] = value.window.seconds().into();
        } else {
            item["metric"] = json!({"name": metric.as_str(), "selector": shape.selector});
            item["windowSeconds"] = value.window.seconds().into();
        }
        item
    };
    match object {
        Object::Pods => {
            let pods = answer.pods.iter();
            let pods = pods.flat_map(|pod| pod.windows.iter().map(move |value| (pod, value)));
            pods.map(|(pod, value)| item(object.described(asked, &pod.pod), pod.sampled, value))
                .collect()
        }
        _ => {
            let values = answer.windows.iter();
            values
                .map(|value| item(object.described(asked, ""), answer.sampled, value))
                .collect()
        }
    }
}

const COLUMNS: [Column; 6] = [
    Column {
        name: "Name",
        kind: "string",
        what: "the object's name",
        wide: false,
    },
    Column {
        name: "Kind",
        kind: "string",
        what: "the object's kind",
        wide: true,
    },
    Column {
        name: "Metric",
        kind: "string",
        what: "the metric's name",
        wide: false,
    },
    Column {
        name: "Value",
        kind: "string",
        what: "in the unit that the metric's name tells",
        wide: false,
    },
    Column {
        name: "Window",
        kind: "string",
        what: "the span that the value is of",
        wide: false,
    },
    Column {
        name: "Time",
        kind: "string",
        what: "of the report behind it",
        wide: true,
    },
];

fn rows(asked: &Asked, metric: Metric, items: Vec<Value>) -> Vec<Row> {
    let rows = items.into_iter().map(|mut item| {
        let window = if item["window"].is_null() {
            &item["windowSeconds"]
        } else {
            &item["window"]
        };
        let object = &item["describedObject"];
        let cells = vec![
            object["name"].clone(),
            object["kind"].clone(),
            metric.as_str().into(),
            item["value"].clone(),
            format!("{window}s").into(),
            item["timestamp"].clone(),
        ];
        let name = object["name"].as_str().unwrap_or_default().to_owned();
        item["kind"] = "MetricValue".into();
        item["apiVersion"] = format!("{GROUP}/{}", asked.version).into();
        Row {
            cells,
            namespace: asked.namespace.clone(),
            name,
            object: item,
        }
    });
    rows.collect()
}
