//! OpenAPI documents of the groups, version 2 and 3: kube-apiserver merges the first into its own and passes
//! requests for the second on to us. Both say the same and are made once, at the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::RawQuery;
use axum::http::header::{CACHE_CONTROL, EXPIRES, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use serde_json::{Map, Value, json};

use super::discovery::{Document, Group};
use super::hub::Hub;
use super::media::{Form, negotiate};

/// What a reference to another schema begins with.
const REF: &str = "#/components/schemas/";
/// The same in version 2.
const REF_V2: &str = "#/definitions/";
const JSON: &str = "application/json";

/// The schema of a list of what is called `of`.
pub fn list_schema(description: &str, of: &str) -> Value {
    json!({
        "description": description,
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "items": {"type": "array", "items": {"$ref": format!("{REF}{of}")}},
        },
    })
}

/// A question that can be asked by GET.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Path with `{parameters}`
    pub path: String,
    /// Unique name
    pub id: String,
    /// What it is for
    pub summary: &'static str,
    /// `list`, `get` or `watch`
    pub action: &'static str,
    /// Kind of the answer
    pub kind: &'static str,
    /// Name of the answer's schema
    pub schema: &'static str,
    /// Values that a path parameter can have, where they are known
    pub choices: Vec<(&'static str, Vec<&'static str>)>,
    /// Parameters of the query: name, JSON type, description
    pub query: &'static [(&'static str, &'static str, &'static str)],
}

/// The routes of the documents.
pub fn router(groups: &[Group]) -> Router<Arc<Hub>> {
    let mut router = Router::new().route("/openapi/v2", document(version2(groups), String::new()));
    let mut paths = Map::new();
    for group in groups {
        for version in &group.versions {
            let path = format!("apis/{}/{}", group.name, version.name);
            let route = format!("/openapi/v3/{path}");
            let spec = Document::new(&version3(group.name, version));
            let url = format!("{route}?hash={}", spec.hash);
            paths.insert(path, json!({"serverRelativeURL": url}));
            router = router.route(&route, document(spec, url));
        }
    }
    let root = Document::new(&json!({"paths": paths}));
    router.route("/openapi/v3", document(root, String::new()))
}

/// A document at a route. `current` is its address with the hash of what it says now: under that it may be
/// kept for ever, and an address with another hash leads there.
fn document(document: Document, current: String) -> MethodRouter<Arc<Hub>> {
    let document = Arc::new(document);
    get(async move |RawQuery(query): RawQuery, headers: HeaderMap| {
        if let Err(failure) = negotiate(&headers, &[Form::Plain]) {
            return failure.into_response();
        }
        let mut asked = query.iter().flat_map(|q| q.split('&'));
        let Some(hash) = asked.find_map(|p| p.strip_prefix("hash=")) else {
            return document.answer(&headers);
        };
        if !current.is_empty() && hash != document.hash {
            return moved(&current);
        }
        let mut response = document.answer(&headers);
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
        let expires = expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        if let Ok(expires) = HeaderValue::from_str(&expires) {
            headers.insert(EXPIRES, expires);
        }
        response
    })
}

fn moved(url: &str) -> Response {
    let mut response = StatusCode::MOVED_PERMANENTLY.into_response();
    if let Ok(url) = HeaderValue::from_str(url) {
        response.headers_mut().insert(LOCATION, url);
    }
    response
}

fn version3(group: &str, version: &super::discovery::Version) -> Value {
    let mut paths: BTreeMap<&str, Value> = BTreeMap::new();
    for operation in &version.operations {
        let parameters: Vec<_> = operation
            .parameters()
            .into_iter()
            .map(|p| {
                json!({
                    "name": p.name,
                    "in": p.place,
                    "description": p.what,
                    "required": p.place == "path",
                    "schema": p.schema(),
                })
            })
            .collect();
        let mut get = operation.common(group, version.name);
        get["parameters"] = parameters.into();
        let schema = json!({"$ref": format!("{REF}{}", operation.schema)});
        get["responses"] = json!({
            "200": {"description": "OK", "content": {JSON: {"schema": schema}}},
            "401": {"description": "Unauthorized"},
        });
        paths.insert(&operation.path, json!({"get": get}));
    }
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schemas(group, version)},
    })
}

fn version2(groups: &[Group]) -> Document {
    let mut paths: BTreeMap<&str, Value> = BTreeMap::new();
    let mut definitions = Map::new();
    for group in groups {
        for version in &group.versions {
            for operation in &version.operations {
                let parameters: Vec<_> = operation
                    .parameters()
                    .into_iter()
                    .map(|p| {
                        let mut parameter = p.schema();
                        parameter["name"] = p.name.into();
                        parameter["in"] = p.place.into();
                        parameter["description"] = p.what.into();
                        if p.place == "path" {
                            parameter["required"] = true.into();
                        }
                        parameter["uniqueItems"] = true.into();
                        parameter
                    })
                    .collect();
                let mut get = operation.common(group.name, version.name);
                get["parameters"] = parameters.into();
                get["produces"] = json!([JSON]);
                get["schemes"] = json!(["https"]);
                let schema = json!({"$ref": format!("{REF_V2}{}", operation.schema)});
                get["responses"] = json!({
                    "200": {"description": "OK", "schema": schema},
                    "401": {"description": "Unauthorized"},
                });
                paths.insert(&operation.path, json!({"get": get}));
            }
            definitions.extend(schemas(group.name, version));
        }
    }
    let mut definitions = Value::Object(definitions);
    point_to_definitions(&mut definitions);
    Document::new(&json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": definitions,
    }))
}

fn info() -> Value {
    json!({"title": "ebpf-scaler", "version": concat!("v", env!("CARGO_PKG_VERSION"))})
}

/// The schemas of a version; those of kinds say which.
fn schemas(group: &str, version: &super::discovery::Version) -> Map<String, Value> {
    let all = version.schemas.iter().map(|(name, schema)| {
        let mut schema = schema.clone();
        let kind = name.rsplit('.').next().unwrap_or(name);
        if schema["properties"].get("apiVersion").is_some() {
            let gvk = json!([{"group": group, "version": version.name, "kind": kind}]);
            schema["x-kubernetes-group-version-kind"] = gvk;
        }
        ((*name).to_owned(), schema)
    });
    all.collect()
}

/// Turns references of version 3 into those of version 2.
fn point_to_definitions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get_mut("$ref")
                && let Some(name) = target.strip_prefix(REF)
            {
                *target = format!("{REF_V2}{name}");
            }
            map.values_mut().for_each(point_to_definitions);
        }
        Value::Array(all) => all.iter_mut().for_each(point_to_definitions),
        _ => {}
    }
}

struct Parameter<'a> {
    name: &'a str,
    place: &'static str,
    kind: &'static str,
    what: &'static str,
    choices: &'a [&'static str],
}

impl Parameter<'_> {
    fn schema(&self) -> Value {
        let mut schema = json!({"type": self.kind});
        if !self.choices.is_empty() {
            schema["enum"] = json!(self.choices);
        }
        schema
    }
}

impl Operation {
    fn common(&self, group: &str, version: &str) -> Value {
        json!({
            "description": self.summary,
            "operationId": self.id,
            "tags": [format!("{}_{version}", group.replace('.', "_"))],
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": self.kind},
        })
    }

    fn parameters(&self) -> Vec<Parameter<'_>> {
        let names = self.path.split('/').filter_map(|part| {
            let name = part.strip_prefix('{')?;
            name.strip_suffix('}')
        });
        let in_path = names.map(|name| Parameter {
            name,
            place: "path",
            kind: "string",
            what: "part of the path",
            choices: self
                .choices
                .iter()
                .find(|(of, _)| *of == name)
                .map_or(&[], |(_, choices)| choices),
        });
        let in_query = self.query.iter().map(|(name, kind, what)| Parameter {
            name,
            place: "query",
            kind,
            what,
            choices: &[],
        });
        in_path.chain(in_query).collect()
    }
}
