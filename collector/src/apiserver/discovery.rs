//! What there is, for kube-apiserver's aggregation and kubectl: groups, versions and resources, from one list
//! that every group adds itself to. No list is ever empty, for some clients take that for an error.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::hub::Hub;
use super::media::{Form, negotiate};
use super::openapi::{self, Operation};
use super::status::json_response;

/// An API group as it is told to clients.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name
    pub name: &'static str,
    /// Its versions, the preferred one first
    pub versions: Vec<Version>,
}

/// A version of a group.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its name
    pub name: &'static str,
    /// What it has
    pub resources: Vec<Resource>,
    /// The types of its objects for OpenAPI: name and JSON schema; references begin with [`openapi::REF`]
    pub schemas: Vec<(&'static str, Value)>,
    /// What can be asked, for OpenAPI
    pub operations: Vec<Operation>,
}

/// A resource, or, if its name has a slash, a subresource.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// Plural name
    pub name: String,
    /// Singular name, if it has one
    pub singular: &'static str,
    /// Abbreviations that kubectl takes
    pub short_names: &'static [&'static str],
    /// Whether its objects lie in namespaces
    pub namespaced: bool,
    /// Kind of its objects
    pub kind: &'static str,
    /// What can be done. With neither delete nor list and watch, garbage collection and the deletion of
    /// namespaces keep away from it
    pub verbs: &'static [&'static str],
}

/// The routes that tell of `groups`.
pub fn router(groups: &[Group]) -> Router<Arc<Hub>> {
    let root = Arc::new(Root::new(groups));
    let mut router = Router::new()
        .route("/apis", get(async move |headers| root.answer(&headers)))
        .route("/version", get(async || json_response(&version())));
    for group in groups {
        let path = format!("/apis/{}", group.name);
        router = router.route(&path, plain(group.document()));
        for version in &group.versions {
            let path = format!("{path}/{}", version.name);
            router = router.route(&path, plain(version.document(group.name)));
        }
    }
    router.merge(openapi::router(groups))
}

fn plain(document: Value) -> axum::routing::MethodRouter<Arc<Hub>> {
    let document = Arc::new(document);
    get(
        async move |headers: HeaderMap| match negotiate(&headers, &[Form::Plain]) {
            Ok(_) => json_response(&document),
            Err(failure) => failure.into_response(),
        },
    )
}

impl Group {
    fn document(&self) -> Value {
        let versions: Vec<_> = self
            .versions
            .iter()
            .map(
                |v| json!({"groupVersion": format!("{}/{}", self.name, v.name), "version": v.name}),
            )
            .collect();
        json!({
            "kind": "APIGroup",
            "apiVersion": "v1",
            "name": self.name,
            "preferredVersion": versions.first(),
            "versions": versions,
        })
    }

    fn aggregated(&self) -> Value {
        let versions = self.versions.iter().map(
            |v| json!({"version": v.name, "freshness": "Current", "resources": v.aggregated()}),
        );
        json!({"metadata": {"name": self.name}, "versions": versions.collect::<Vec<_>>()})
    }
}

impl Version {
    fn document(&self, group: &str) -> Value {
        let resources = self.resources.iter().map(|r| {
            let mut resource = json!({
                "name": r.name,
                "singularName": r.singular,
                "namespaced": r.namespaced,
                "kind": r.kind,
                "verbs": r.verbs,
            });
            if !r.short_names.is_empty() {
                resource["shortNames"] = json!(r.short_names);
            }
            resource
        });
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": format!("{group}/{}", self.name),
            "resources": resources.collect::<Vec<_>>(),
        })
    }

    /// Subresources lie under their resource here. One that only its subresources stand for has an empty kind
    /// and no verbs, as k8s.io/apiserver has it.
    fn aggregated(&self) -> Vec<Value> {
        let kind = |kind: &str| json!({"group": "", "version": "", "kind": kind});
        let mut resources: Vec<Value> = Vec::new();
        for resource in &self.resources {
            let (name, subresource) = match resource.name.split_once('/') {
                Some((name, subresource)) => (name, Some(subresource)),
                None => (resource.name.as_str(), None),
            };
            let scope = if resource.namespaced {
                "Namespaced"
            } else {
                "Cluster"
            };
            let place = resources.iter().position(|r| r["resource"] == name);
            let place = place.unwrap_or_else(|| {
                resources.push(json!({
                    "resource": name,
                    "responseKind": kind(""),
                    "scope": scope,
                    "singularResource": "",
                    "verbs": [],
                }));
                resources.len() - 1
            });
            let entry = &mut resources[place];
            let Some(subresource) = subresource else {
                entry["responseKind"] = kind(resource.kind);
                entry["singularResource"] = resource.singular.into();
                entry["verbs"] = json!(resource.verbs);
                if !resource.short_names.is_empty() {
                    entry["shortNames"] = json!(resource.short_names);
                }
                continue;
            };
            let subresource = json!({
                "subresource": subresource,
                "responseKind": kind(resource.kind),
                "verbs": resource.verbs,
            });
            match entry["subresources"].as_array_mut() {
                Some(all) => all.push(subresource),
                None => entry["subresources"] = json!([subresource]),
            }
        }
        resources
    }
}

/// `/apis` in each of its forms.
struct Root {
    plain: Document,
    v2: Document,
    v2_beta1: Document,
}

impl Root {
    fn new(groups: &[Group]) -> Self {
        let list = json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": groups.iter().map(Group::document).collect::<Vec<_>>(),
        });
        let items: Vec<_> = groups.iter().map(Group::aggregated).collect();
        let aggregated = |version: &str| {
            json!({
                "kind": "APIGroupDiscoveryList",
                "apiVersion": format!("apidiscovery.k8s.io/{version}"),
                "metadata": {},
                "items": items,
            })
        };
        Self {
            plain: Document::new(&list),
            v2: Document::new(&aggregated("v2")),
            v2_beta1: Document::new(&aggregated("v2beta1")),
        }
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let form = match negotiate(
            headers,
            &[Form::Plain, Form::Discovery, Form::DiscoveryBeta],
        ) {
            Ok(form) => form,
            Err(failure) => return failure.into_response(),
        };
        let mut response = match form {
            Form::Discovery => self.v2.answer(headers),
            Form::DiscoveryBeta => self.v2_beta1.answer(headers),
            Form::Plain | Form::Table => self.plain.answer(headers),
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
        response
    }
}

/// A document that does not change while we run, with the tag by which clients keep it.
#[derive(Clone, Debug)]
pub struct Document {
    body: axum::body::Bytes,
    /// Hexadecimal digest of the body
    pub hash: String,
    tag: HeaderValue,
}

impl Document {
    /// Of a JSON value.
    pub fn new(value: &Value) -> Self {
        let body = value.to_string();
        let digest = Sha256::digest(body.as_bytes());
        let hash: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        // Digits and letters are a valid header.
        let tag = HeaderValue::from_str(&format!("\"{hash}\""));
        Self {
            body: body.into(),
            hash,
            tag: tag.unwrap_or(HeaderValue::from_static("\"\"")),
        }
    }

    /// The document, or 304 if the client has it.
    pub fn answer(&self, headers: &HeaderMap) -> Response {
        let known = headers.get_all(IF_NONE_MATCH).iter();
        let known = known.filter_map(|v| v.to_str().ok());
        let mut known = known.flat_map(|v| v.split(',')).map(str::trim);
        let is_known =
            known.any(|tag| tag.trim_start_matches("W/").as_bytes() == self.tag.as_bytes());
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.body.clone().into_response()
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ETAG, self.tag.clone());
        headers.insert(VARY, HeaderValue::from_static("Accept"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
        response
    }
}

fn version() -> Value {
    json!({"major": "0", "minor": "1", "gitVersion": concat!("v", env!("CARGO_PKG_VERSION"))})
}
