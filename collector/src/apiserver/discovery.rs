//! What there is, for kube-apiserver's aggregation and kubectl: groups, versions and resources, from one list
//! that every group adds itself to. No list is ever empty, for some clients take that for an error.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Bytes;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::delegate::Name;
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

/// What is told of all groups. It changes only where another provider has a part in one.
pub struct Catalogue {
    groups: Vec<Group>,
    /// Names of other providers, by group and version.
    others: Mutex<BTreeMap<(&'static str, String), Vec<Name>>>,
    told: ArcSwap<Told>,
}

/// All documents, made at once: the group and its versions never contradict each other for long.
struct Told {
    root: Root,
    by_path: BTreeMap<String, Bytes>,
}

impl Catalogue {
    /// Of what we have ourselves.
    pub fn new(groups: Vec<Group>) -> Self {
        let told = ArcSwap::from_pointee(Told::of(&groups));
        Self {
            groups,
            others: Mutex::default(),
            told,
        }
    }

    /// From now on another provider has these names in a version of a group; those that we have too are ours.
    pub fn set(&self, group: &'static str, version: &str, names: &[Name]) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.insert((group, version.to_owned()), names.to_vec());
        let mut groups = self.groups.clone();
        for group in &mut groups {
            for version in &mut group.versions {
                if let Some(names) = others.get(&(group.name, version.name.to_owned())) {
                    version.add(names);
                }
            }
        }
        self.told.store(Told::of(&groups).into());
    }
}

impl Told {
    fn of(groups: &[Group]) -> Self {
        let mut by_path = BTreeMap::new();
        for group in groups {
            let path = format!("/apis/{}", group.name);
            for version in &group.versions {
                let document = version.document(group.name).to_string();
                by_path.insert(format!("{path}/{}", version.name), document.into());
            }
            by_path.insert(path, group.document().to_string().into());
        }
        Self {
            root: Root::new(groups),
            by_path,
        }
    }
}

/// The routes that tell of a catalogue's groups.
pub fn router(catalogue: &Arc<Catalogue>) -> Router<Arc<Hub>> {
    let all = catalogue.clone();
    let mut router = Router::new()
        .route(
            "/apis",
            get(async move |headers| all.told.load().root.answer(&headers)),
        )
        .route("/version", get(async || json_response(&version())));
    for path in catalogue.told.load().by_path.keys() {
        let (catalogue, at) = (catalogue.clone(), path.clone());
        let answer =
            get(
                async move |headers: HeaderMap| match negotiate(&headers, &[Form::Plain]) {
                    Ok(_) => json_bytes(catalogue.told.load().by_path.get(&at).cloned()),
                    Err(failure) => failure.into_response(),
                },
            );
        router = router.route(path, answer);
    }
    router.merge(openapi::router(&catalogue.groups))
}

fn json_bytes(body: Option<Bytes>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], body.unwrap_or_default()).into_response()
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
    /// Adds what another provider has. Whatever it says of that, nothing but reading can be done with values.
    fn add(&mut self, names: &[Name]) {
        let Some(kind) = self.resources.first().map(|first| first.kind) else {
            return;
        };
        let ours: HashSet<_> = self.resources.iter().map(|r| r.name.clone()).collect();
        let theirs = names.iter().filter(|name| !ours.contains(&name.name));
        self.resources.extend(theirs.map(|name| Resource {
            name: name.name.clone(),
            namespaced: name.namespaced,
            kind,
            verbs: &["get"],
            ..Resource::default()
        }));
    }

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
        let mut places: HashMap<&str, usize> = HashMap::new();
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
            let place = *places.entry(name).or_insert_with(|| {
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

/// A document with the tag by which clients keep it.
#[derive(Clone, Debug)]
pub struct Document {
    body: Bytes,
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
