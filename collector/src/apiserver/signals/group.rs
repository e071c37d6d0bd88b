//! The group as discovery and OpenAPI tell of it, so that kubectl finds the resources by their short names and
//! `kubectl explain` has something to say.

use ebpf_scaler_crds::signals::{GROUP, VERSION, schemas};

use super::item::Resource;
use crate::apiserver::discovery::{self, Group, Version};
use crate::apiserver::openapi::{Operation, list_schema};

const QUERY: [(&str, &str, &str); 9] = [
    (
        "labelSelector",
        "string",
        "by labels of the objects; keys under ebpfscaler.io/ pick by owner, and the window",
    ),
    (
        "fieldSelector",
        "string",
        "by metadata.name and metadata.namespace; window=3s picks the window",
    ),
    ("limit", "integer", "taken, but lists are always whole"),
    ("resourceVersion", "string", "of a watch: from when on"),
    (
        "resourceVersionMatch",
        "string",
        "NotOlderThan, which every list is",
    ),
    ("watch", "boolean", "events instead of a list"),
    (
        "allowWatchBookmarks",
        "boolean",
        "of a watch: whether versions are told when nothing changes",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "of a watch: whether it begins with all that is there",
    ),
    (
        "timeoutSeconds",
        "integer",
        "of a watch: for how long, at most 1800",
    ),
];

/// Names of the types: of an object and of a list.
const fn types(resource: Resource) -> (&'static str, &'static str) {
    match resource {
        Resource::Workloads => (
            "io.ebpfscaler.signals.v1alpha1.WorkloadSignals",
            "io.ebpfscaler.signals.v1alpha1.WorkloadSignalsList",
        ),
        Resource::Pods => (
            "io.ebpfscaler.signals.v1alpha1.PodSignals",
            "io.ebpfscaler.signals.v1alpha1.PodSignalsList",
        ),
    }
}

/// The group.
pub fn group() -> Group {
    let resources = Resource::ALL.map(|r| discovery::Resource {
        name: r.plural().to_owned(),
        singular: r.plural(),
        short_names: r.short_names(),
        namespaced: true,
        kind: r.kind(),
        // Without delete: garbage collection and the deletion of namespaces keep away.
        verbs: &["get", "list", "watch"],
    });
    let objects = schemas().map(|(kind, schema)| {
        let resource = Resource::ALL.into_iter().find(|r| r.kind() == kind);
        (types(resource.unwrap_or(Resource::Pods)).0, schema)
    });
    let lists = Resource::ALL.map(|r| (types(r).1, list_schema("a list of them", types(r).0)));
    Group {
        name: GROUP,
        versions: vec![Version {
            name: VERSION,
            resources: resources.into(),
            schemas: objects.into_iter().chain(lists).collect(),
            operations: Resource::ALL.into_iter().flat_map(operations).collect(),
        }],
    }
}

fn operations(resource: Resource) -> [Operation; 3] {
    let (object, list) = types(resource);
    let (plural, kind) = (resource.plural(), resource.kind());
    let base = format!("/apis/{GROUP}/{VERSION}");
    let operation = |action: &'static str, what: &str, path: String| Operation {
        path,
        id: format!("{action}SignalsV1alpha1{what}{kind}"),
        summary: match action {
            "get" => "one of them",
            _ => "all of them, or what changes, once a second at most",
        },
        action,
        kind,
        schema: if action == "get" { object } else { list },
        choices: Vec::new(),
        query: &QUERY,
    };
    [
        operation("list", "AllNamespaces", format!("{base}/{plural}")),
        operation(
            "list",
            "Namespaced",
            format!("{base}/namespaces/{{namespace}}/{plural}"),
        ),
        operation(
            "get",
            "Namespaced",
            format!("{base}/namespaces/{{namespace}}/{plural}/{{name}}"),
        ),
    ]
}
