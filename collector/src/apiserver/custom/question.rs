//! What a path of custom.metrics.k8s.io and its selectors ask for. Answers nothing.

use ebpf_scaler_measure::query::RESERVED_PREFIX;
use ebpf_scaler_measure::selector::{Operator, Requirement, Selector};
use ebpf_scaler_measure::{Metric, Query};
use serde_json::{Value, json};

use super::GROUP;
use crate::apiserver::external::unknown_metric;
use crate::apiserver::reviews::Access;
use crate::apiserver::status::Failure;

/// Objects that own pods: their resource, kind, apiVersion, and the reserved key that picks their pods.
pub const OWNERS: [(&str, &str, &str, &str); 5] = [
    ("deployments.apps", "Deployment", "apps/v1", "deployment"),
    ("statefulsets.apps", "StatefulSet", "apps/v1", "statefulset"),
    ("daemonsets.apps", "DaemonSet", "apps/v1", "daemonset"),
    ("replicasets.apps", "ReplicaSet", "apps/v1", "replicaset"),
    ("jobs.batch", "Job", "batch/v1", "job"),
];

/// What a path names.
pub struct Asked {
    /// The group's version
    pub version: &'static str,
    /// The namespace
    pub namespace: String,
    /// What is described
    pub target: Target,
    /// The metric's name, whether there is one or not
    pub metric: String,
}

/// What a path describes.
pub enum Target {
    /// By resource and name
    Object(String, String),
    /// The namespace itself
    Namespace,
    /// Something outside namespaces, by resource and name
    ClusterObject(String, String),
}

/// What is described.
#[derive(Clone, Copy)]
pub enum Object<'a> {
    /// Each pod that a selector picks
    Pods,
    /// One pod by its name
    Pod(&'a str),
    /// All pods of an owner
    Owner {
        kind: &'static str,
        api_version: &'static str,
        /// The reserved key that picks its pods
        key: &'static str,
        name: &'a str,
    },
    /// All pods of the namespace
    Namespace,
}

impl Asked {
    /// The resource in the path.
    pub fn resource(&self) -> &str {
        match &self.target {
            Target::Object(resource, _) | Target::ClusterObject(resource, _) => resource,
            Target::Namespace => "metrics",
        }
    }

    /// As kube-apiserver sees the request, which asks before it lets us.
    pub fn access(&self) -> Access {
        let (name, subresource) = match &self.target {
            Target::Object(_, name) | Target::ClusterObject(_, name) => {
                (name, self.metric.as_str())
            }
            Target::Namespace => (&self.metric, ""),
        };
        Access {
            verb: "get",
            group: GROUP,
            version: self.version,
            namespace: self.namespace.clone(),
            resource: self.resource().to_owned(),
            name: name.clone(),
            subresource: subresource.to_owned(),
        }
    }

    /// What is described; none if we know no such objects.
    pub fn object(&self) -> Result<Option<Object<'_>>, Failure> {
        let (resource, name) = match &self.target {
            Target::Namespace => return Ok(Some(Object::Namespace)),
            Target::Object(resource, name) => (resource.as_str(), name.as_str()),
            Target::ClusterObject(..) => return Ok(None),
        };
        match (resource, name) {
            ("pods", "*") => return Ok(Some(Object::Pods)),
            ("pods", name) => return Ok(Some(Object::Pod(name))),
            _ => {}
        }
        let owner = OWNERS.iter().find(|(r, ..)| *r == resource);
        let Some((_, kind, api_version, key)) = owner else {
            return Ok(None);
        };
        // Of a metric that is not ours, others may make sense of it.
        if Metric::from_name(&self.metric).is_some() && name == "*" {
            let message = format!("only pods can be asked for as *; name one of the {resource}");
            return Err(Failure::new(400, message));
        }
        Ok(Some(Object::Owner {
            kind,
            api_version,
            key,
            name,
        }))
    }

    /// That there is nothing of the kind: neither we nor anybody else has it.
    pub fn nothing(&self) -> Failure {
        let resource = self.resource();
        if matches!(self.object(), Ok(None)) {
            let known: Vec<_> = OWNERS.iter().map(|(resource, ..)| *resource).collect();
            let message = format!(
                "the server could not find metrics of {resource}; there are those of pods and {}",
                known.join(", ")
            );
            return Failure::new(404, message);
        }
        unknown_metric(&self.metric, resource)
    }
}

impl Object<'_> {
    /// Which pods, and how: by `labelSelector` and `metricLabelSelector`.
    pub fn query(self, labels: &str, shape: &Shape) -> Result<Query, String> {
        let mut picked = Query::parse(labels).map_err(|e| e.to_string())?;
        let selector = std::mem::take(&mut picked.selector);
        if picked != Query::default() {
            return Err(
                "labelSelector picks pods; what shapes a value belongs into metricLabelSelector"
                    .into(),
            );
        }
        let mut query = shape.query.clone();
        query.selector = selector;
        let is = |key: &str, name: &str| Requirement {
            key: format!("{RESERVED_PREFIX}{key}"),
            operator: Operator::In,
            values: vec![name.to_owned()],
        };
        match self {
            Self::Pods => {}
            Self::Pod(name) => query.selector.requirements.push(is("pod", name)),
            _ if !labels.is_empty() => {
                return Err("labelSelector picks pods; other objects are picked by name".into());
            }
            Self::Owner { key, name, .. } => query.selector.requirements.push(is(key, name)),
            Self::Namespace => {}
        }
        Ok(query)
    }

    /// A reference to the object, or to `pod` of those.
    pub fn described(self, namespace: &str, pod: &str) -> Value {
        let (kind, api_version, name) = match self {
            Self::Pods | Self::Pod(_) => ("Pod", "v1", pod),
            Self::Owner {
                kind,
                api_version,
                name,
                ..
            } => (kind, api_version, name),
            Self::Namespace => {
                return json!({"kind": "Namespace", "name": namespace, "apiVersion": "v1"});
            }
        };
        json!({"kind": kind, "namespace": namespace, "name": name, "apiVersion": api_version})
    }
}

/// What `metricLabelSelector` says: our metrics have no labels of their own, so only reserved keys that shape a
/// value can be in it. One that we would have to ignore is refused, for the value would be another metric's.
pub struct Shape {
    query: Query,
    /// As a metav1.LabelSelector, which answers repeat
    pub selector: Value,
}

impl Shape {
    /// Reads it.
    pub fn read(text: &str) -> Result<Self, String> {
        let query = Query::parse(text).map_err(|e| e.to_string())?;
        if query.by_pod || !query.selector.requirements.is_empty() {
            return Err(format!(
                "metricLabelSelector {text:?} is not supported: these metrics have no labels; \
                 {RESERVED_PREFIX}window can be in it"
            ));
        }
        let parsed = Selector::parse(text).map_err(|e| e.to_string())?;
        let selector = label_selector(&parsed);
        Ok(Self { query, selector })
    }
}

/// A selector as a metav1.LabelSelector; null if it picks everything.
fn label_selector(selector: &Selector) -> Value {
    let mut out = Value::Null;
    for requirement in &selector.requirements {
        let operator = match (requirement.operator, &requirement.values[..]) {
            (Operator::In, [one]) => {
                out["matchLabels"][&requirement.key] = one.as_str().into();
                continue;
            }
            (Operator::In, _) => "In",
            (Operator::NotIn, _) => "NotIn",
            (Operator::Exists, _) => "Exists",
            (Operator::DoesNotExist, _) => "DoesNotExist",
            // A LabelSelector can not say these.
            (Operator::GreaterThan | Operator::LessThan, _) => continue,
        };
        let expression =
            json!({"key": requirement.key, "operator": operator, "values": requirement.values});
        match out["matchExpressions"].as_array_mut() {
            Some(all) => all.push(expression),
            None => out["matchExpressions"] = json!([expression]),
        }
    }
    out
}
