//! What is told of custom.metrics.k8s.io: its versions, resources, questions and types.

use ebpf_scaler_measure::Metric;
use serde_json::{Value, json};

use super::question::OWNERS;
use super::{GROUP, VERSIONS};
use crate::apiserver::discovery::{Group, Resource, Version};
use crate::apiserver::openapi::{Operation, list_schema};

/// The group as clients see it.
pub fn group() -> Group {
    let versions = VERSIONS.map(|version| {
        let owners = OWNERS.iter().map(|(resource, ..)| (*resource, true));
        let objects = [("pods", true)].into_iter().chain(owners);
        let resources =
            objects
                .chain([("namespaces", false)])
                .flat_map(|(resource, namespaced)| {
                    Metric::ALL.iter().map(move |metric| Resource {
                        name: format!("{resource}/{metric}"),
                        namespaced,
                        kind: "MetricValueList",
                        verbs: &["get"],
                        ..Resource::default()
                    })
                });
        Version {
            name: version,
            resources: resources.collect(),
            schemas: schemas(version),
            operations: operations(version),
        }
    });
    Group {
        name: GROUP,
        versions: versions.into(),
    }
}

const QUERY: [(&str, &str, &str); 2] = [
    (
        "labelSelector",
        "string",
        "picks pods by their labels, where the name is *",
    ),
    (
        "metricLabelSelector",
        "string",
        "shapes the value: ebpfscaler.io/window=10s",
    ),
];

fn operations(version: &'static str) -> Vec<Operation> {
    let metrics: Vec<_> = Metric::ALL.iter().map(|metric| metric.as_str()).collect();
    let owners = OWNERS.iter().map(|(resource, ..)| *resource);
    let resources = ["pods"].into_iter().chain(owners).collect();
    let namespace = format!("/apis/{GROUP}/{version}/namespaces/{{namespace}}");
    let id = |what| {
        let (head, tail) = version.split_at(1);
        format!("listCustomMetrics{}{tail}{what}", head.to_uppercase())
    };
    let operation = |path, id, summary, choices, query| Operation {
        path,
        id,
        summary,
        action: "get",
        kind: "MetricValueList",
        schema: names(version).1,
        choices,
        query,
    };
    vec![
        operation(
            format!("{namespace}/{{resource}}/{{name}}/{{metric}}"),
            id("NamespacedObject"),
            "a metric of a pod, of each of several pods (*), or of an object over its pods",
            vec![("resource", resources), ("metric", metrics.clone())],
            &QUERY,
        ),
        operation(
            format!("{namespace}/metrics/{{metric}}"),
            id("Namespace"),
            "a metric over all pods of a namespace",
            vec![("metric", metrics)],
            &QUERY[1..],
        ),
    ]
}

/// Names of the schemas of a value and of the list.
fn names(version: &str) -> (&'static str, &'static str) {
    match version {
        "v1beta1" => (
            "io.k8s.metrics.pkg.apis.custom_metrics.v1beta1.MetricValue",
            "io.k8s.metrics.pkg.apis.custom_metrics.v1beta1.MetricValueList",
        ),
        _ => (
            "io.k8s.metrics.pkg.apis.custom_metrics.v1beta2.MetricValue",
            "io.k8s.metrics.pkg.apis.custom_metrics.v1beta2.MetricValueList",
        ),
    }
}

fn schemas(version: &str) -> Vec<(&'static str, Value)> {
    let text = || json!({"type": "string"});
    let selector = json!({"type": "object", "description": "the selector that the question had"});
    let window = json!({"type": "integer", "format": "int64", "description": "seconds before the timestamp that the value is of"});
    let mut value = json!({
        "description": "a metric's value for some object",
        "type": "object",
        "required": ["describedObject", "timestamp", "value"],
        "properties": {
            "describedObject": {
                "type": "object",
                "properties": {"kind": text(), "namespace": text(), "name": text(), "apiVersion": text()},
            },
            "timestamp": {"type": "string", "format": "date-time", "description": "of the report behind it"},
            "value": {"type": "string", "description": "a quantity in the unit that the metric's name tells"},
        },
    });
    let properties = &mut value["properties"];
    if version == "v1beta1" {
        properties["metricName"] = text();
        properties["selector"] = selector;
        properties["window"] = window;
    } else {
        properties["metric"] =
            json!({"type": "object", "properties": {"name": text(), "selector": selector}});
        properties["windowSeconds"] = window;
    }
    let (value_name, list_name) = names(version);
    let list = list_schema("values of a metric for some set of objects", value_name);
    vec![(value_name, value), (list_name, list)]
}
