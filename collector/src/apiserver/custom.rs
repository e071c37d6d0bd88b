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
use ebpf_scaler_measure::{Answer, Metric, Window, WindowValue};
use serde_json::{Value, json};

use super::api::{Caller, not_found};
use super::external::{timestamp, warning};
use super::hub::Hub;
use super::media::{Form, negotiate};
use super::options::Options;
use super::quantity::quantity;
use super::reviews::Action;
use super::status::{Failure, json_response};
use super::table::{Column, Row, table};

mod group;
mod question;

pub use group::group;
use question::{Asked, Object, Shape, Target};

/// The group's name.
pub const GROUP: &str = "custom.metrics.k8s.io";
/// Its versions, the preferred one first. HPAs take the preferred one; older clients know the other only.
pub const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// The routes; if another provider has a part in the group, also those of things outside namespaces, of which we
/// measure none.
pub fn router(shared: bool) -> Router<Arc<Hub>> {
    let mut router = Router::new();
    for version in VERSIONS {
        let namespace = format!("/apis/{GROUP}/{version}/namespaces/{{namespace}}");
        let of_object = get(
            async move |State(hub): State<Arc<Hub>>, path: Names<4>, request: Request| {
                let names = path.map(|Path([namespace, resource, name, metric])| Asked {
                    version,
                    namespace,
                    target: Target::Object(resource, name),
                    metric,
                });
                answer(&hub, names, &request.into()).await
            },
        );
        let of_namespace = get(
            async move |State(hub): State<Arc<Hub>>, path: Names<2>, request: Request| {
                let names = path.map(|Path([namespace, metric])| Asked {
                    version,
                    namespace,
                    target: Target::Namespace,
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
        if shared {
            let of_cluster = get(
                async move |State(hub): State<Arc<Hub>>, path: Names<3>, request: Request| {
                    // By Kubernetes' rules that is a list in a namespace, which nobody has.
                    if matches!(&path, Ok(Path([resource, ..])) if resource == "namespaces") {
                        return not_found(request.uri().path()).into_response();
                    }
                    let names = path.map(|Path([resource, name, metric])| Asked {
                        version,
                        namespace: String::new(),
                        target: Target::ClusterObject(resource, name),
                        metric,
                    });
                    answer(&hub, names, &request.into()).await
                },
            );
            let path = format!("/apis/{GROUP}/{version}/{{resource}}/{{name}}/{{metric}}");
            router = router.route(&path, of_cluster);
        }
    }
    router
}

type Names<const N: usize> = Result<Path<[String; N]>, PathRejection>;

async fn answer(hub: &Hub, asked: Result<Asked, PathRejection>, caller: &Caller) -> Response {
    let began = Instant::now();
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => return Failure::new(400, error.body_text()).into_response(),
    };
    let metric = Metric::from_name(&asked.metric);
    let result = values(hub, &asked, metric, caller).await;
    // What is another provider's is counted there.
    if let (Ok(None), Some(delegate)) = (&result, hub.delegates.get(GROUP)) {
        let answer = delegate.forward(caller).await;
        return answer.unwrap_or_else(IntoResponse::into_response);
    }
    let result = result.and_then(|answer| answer.ok_or_else(|| asked.nothing()));
    let code = result.as_ref().map_or_else(|f| f.code, |_| 200);
    let label = metric.map_or("unknown", Metric::as_str);
    hub.metrics.query(label, code, began.elapsed());
    result.unwrap_or_else(IntoResponse::into_response)
}

/// The values for a user who may ask; none if the object or the metric is not ours.
async fn values(
    hub: &Hub,
    asked: &Asked,
    metric: Option<Metric>,
    caller: &Caller,
) -> Result<Option<Response>, Failure> {
    let action = Action::Access(Box::new(asked.access()));
    hub.authorize(&caller.user, &action).await?;
    let options = Options::read(&caller.uri)?;
    options.only_list(&format!("{}.{GROUP}", asked.resource()))?;
    let (Some(object), Some(metric)) = (asked.object()?, metric) else {
        return Ok(None);
    };
    let form = negotiate(&caller.headers, &[Form::Plain, Form::Table])?;
    let bad = |message: String| Failure::new(400, message).because("BadSelector");
    let shape = Shape::read(options.get("metricLabelSelector")).map_err(bad)?;
    let query = object
        .query(options.get("labelSelector"), &shape)
        .map_err(bad)?;
    query.check(metric).map_err(|e| bad(e.to_string()))?;
    let windows = [query.window.unwrap_or(Window::DEFAULT)];
    let answer = match object {
        Object::Pods | Object::Pod(_) => {
            hub.answer_each(&asked.namespace, metric, &query, &windows)?
        }
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
    Ok(Some(response))
}

fn items(
    hub: &Hub,
    asked: &Asked,
    object: Object<'_>,
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
        Object::Pods | Object::Pod(_) => {
            let pods = answer.pods.iter();
            let pods = pods.flat_map(|pod| pod.windows.iter().map(move |value| (pod, value)));
            pods.map(|(pod, value)| {
                item(
                    object.described(&asked.namespace, &pod.pod),
                    pod.sampled,
                    value,
                )
            })
            .collect()
        }
        _ => {
            let values = answer.windows.iter();
            values
                .map(|value| {
                    item(
                        object.described(&asked.namespace, ""),
                        answer.sampled,
                        value,
                    )
                })
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
