//! Reads and writes scale subresources, and writes status and histories. Never decides what.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ebpf_scaler_crds::{EbpfScaler, ScalingHistory};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    autoscaling::v1::Scale,
    core::v1::ObjectReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{
    leader::Leadership,
    scaler::{Addition, load::merged},
};

/// Who we are in managedFields.
pub const MANAGER: &str = "ebpf-scaler-operator";
/// How often a write is tried again while only the version, but not the replicas, changed.
const CONFLICTS: usize = 4;

/// What is scaled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetKey {
    /// Namespace.
    pub namespace: String,
    /// API version, such as apps/v1.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}

impl TargetKey {
    /// The API group, empty for the core.
    #[must_use]
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(g, _)| g)
    }

    fn version(&self) -> &str {
        self.api_version
            .split_once('/')
            .map_or(self.api_version.as_str(), |(_, v)| v)
    }

    /// Whether its replicas are watched; others are read again and again.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.api_version == "apps/v1" && matches!(self.kind.as_str(), "Deployment" | "StatefulSet")
    }
}

/// A target's replicas as they were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Replicas asked for.
    pub spec: i32,
    /// Replicas that exist.
    pub status: i32,
    /// Replicas that are ready, if that is known.
    pub ready: Option<i32>,
    /// Selector of its pods.
    pub selector: String,
    /// Version of the object.
    pub version: String,
    /// Who wrote the replicas last, if that is known.
    pub manager: Option<String>,
}

impl Target {
    fn of(scale: &Scale) -> Self {
        let spec = scale.spec.clone().unwrap_or_default();
        let status = scale.status.clone().unwrap_or_default();
        Self {
            spec: spec.replicas.unwrap_or(0),
            status: status.replicas,
            ready: None,
            selector: status.selector.unwrap_or_default(),
            version: scale.metadata.resource_version.clone().unwrap_or_default(),
            manager: None,
        }
    }
}

/// How a write of replicas ended.
#[derive(Clone, Debug)]
pub enum Written {
    /// Accepted.
    Accepted(Target),
    /// Somebody else changed the replicas first.
    Foreign(Target),
    /// Refused or not possible.
    Failed(String),
    /// We may not write any more.
    NotLeading,
}

/// Access to scale subresources and status.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    leadership: Leadership,
    timeout: Duration,
    kinds: Arc<Mutex<HashMap<(String, String), ApiResource>>>,
}

impl Applier {
    /// Access by this client, while we lead.
    #[must_use]
    pub fn new(client: Client, leadership: Leadership, timeout: Duration) -> Self {
        Self {
            client,
            leadership,
            timeout,
            kinds: Arc::default(),
        }
    }

    async fn api(&self, key: &TargetKey) -> Result<Api<DynamicObject>, String> {
        let resource = match (key.api_version.as_str(), key.kind.as_str()) {
            ("apps/v1", "Deployment") => ApiResource::erase::<Deployment>(&()),
            ("apps/v1", "StatefulSet") => ApiResource::erase::<StatefulSet>(&()),
            _ => self.discover(key).await?,
        };
        Ok(Api::namespaced_with(
            self.client.clone(),
            &key.namespace,
            &resource,
        ))
    }

    async fn discover(&self, key: &TargetKey) -> Result<ApiResource, String> {
        let id = (key.api_version.clone(), key.kind.clone());
        let mut kinds = self.kinds.lock().await;
        if let Some(known) = kinds.get(&id) {
            return Ok(known.clone());
        }
        let gvk = GroupVersionKind::gvk(key.group(), key.version(), &key.kind);
        let (resource, _) = kube::discovery::pinned_kind(&self.client, &gvk)
            .await
            .map_err(|e| format!("no kind {} in {}: {e}", key.kind, key.api_version))?;
        kinds.insert(id, resource.clone());
        Ok(resource)
    }

    /// The target's replicas now; an error says why they cannot be read.
    ///
    /// # Errors
    /// When the kind or the object does not exist, has no scale subresource, or cannot be read.
    pub async fn read(&self, key: &TargetKey) -> Result<Target, String> {
        let api = self.api(key).await?;
        match tokio::time::timeout(self.timeout, api.get_scale(&key.name)).await {
            Ok(Ok(scale)) => Ok(Target::of(&scale)),
            Ok(Err(e)) => Err(text(&e)),
            Err(_) => Err("reading the scale subresource timed out".into()),
        }
    }

    /// Writes replicas over what was seen. A version that changed while the replicas did not (the
    /// target's own status) is no conflict; the write is repeated on the new version.
    pub async fn scale(&self, key: &TargetKey, seen: &Target, to: i32) -> Written {
        let api = match self.api(key).await {
            Ok(api) => api,
            Err(e) => return Written::Failed(e),
        };
        let mut version = seen.version.clone();
        for _ in 0..CONFLICTS {
            if !self.leadership.holds() {
                return Written::NotLeading;
            }
            let patch = json!({
                "metadata": { "resourceVersion": version },
                "spec": { "replicas": to },
            });
            let params = PatchParams {
                field_manager: Some(MANAGER.into()),
                ..PatchParams::default()
            };
            let patch = Patch::Merge(patch);
            let write = api.patch_scale(&key.name, &params, &patch);
            match tokio::time::timeout(self.timeout, write).await {
                Ok(Ok(scale)) => return Written::Accepted(Target::of(&scale)),
                Ok(Err(kube::Error::Api(e))) if e.code == 409 => match self.read(key).await {
                    Ok(now) if now.spec == seen.spec => version = now.version,
                    Ok(now) => return Written::Foreign(now),
                    Err(e) => return Written::Failed(e),
                },
                Ok(Err(e)) => return Written::Failed(text(&e)),
                Err(_) => return Written::Failed("writing the scale subresource timed out".into()),
            }
        }
        Written::Failed("the target's version changes faster than it can be written".into())
    }

    /// Adds to the history of the EbpfScaler `owner`, and keeps the `most` latest decisions.
    ///
    /// # Errors
    /// When it is refused, or we no longer lead.
    pub async fn record(
        &self,
        owner: &ObjectReference,
        addition: Addition,
        most: usize,
    ) -> Result<(), String> {
        if !self.leadership.holds() {
            return Err("no longer the leader".into());
        }
        let namespace = owner.namespace.as_deref().unwrap_or_default();
        let (name, uid) = (owner.name.as_deref().unwrap_or_default(), &owner.uid);
        let api: Api<ScalingHistory> = Api::namespaced(self.client.clone(), namespace);
        let write = async {
            // One of a former EbpfScaler of that name is not continued.
            let ours = |h: &ScalingHistory| {
                h.owner_references()
                    .iter()
                    .any(|o| Some(&o.uid) == uid.as_ref())
            };
            let found = api.get_opt(name).await?.filter(ours).unwrap_or_default();
            let mut decisions = addition.decisions;
            decisions.extend(found.decisions);
            decisions.truncate(most);
            let mut history = json!({
                "apiVersion": ScalingHistory::api_version(&()),
                "kind": ScalingHistory::kind(&()),
                // The API server does not take them from the URL of an apply.
                "metadata": {"name": name, "namespace": namespace, "ownerReferences": [{
                    "apiVersion": owner.api_version,
                    "kind": owner.kind,
                    "name": name,
                    "uid": uid,
                    "controller": true,
                }]},
                "decisions": decisions,
            });
            if let Some(load) = merged(found.load, addition.load) {
                history["load"] = json!(load);
            }
            let params = PatchParams::apply(MANAGER).force();
            api.patch(name, &params, &Patch::Apply(&history)).await
        };
        match tokio::time::timeout(self.timeout, write).await {
            Ok(Ok(_)) => Ok(()),
            // The namespace goes, and the scaler with it: there is nothing to remember.
            Ok(Err(kube::Error::Api(e))) if e.code == 404 && e.message.contains("namespaces") => {
                Ok(())
            }
            Ok(Err(e)) => Err(text(&e)),
            Err(_) => Err("writing the history timed out".into()),
        }
    }

    /// Writes a status.
    ///
    /// # Errors
    /// When it is refused, or we no longer lead.
    pub async fn status(&self, namespace: &str, name: &str, status: Value) -> Result<(), String> {
        if !self.leadership.holds() {
            return Err("no longer the leader".into());
        }
        let api: Api<EbpfScaler> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(json!({
            "apiVersion": EbpfScaler::api_version(&()),
            "kind": EbpfScaler::kind(&()),
            "status": status,
        }));
        let params = PatchParams {
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        };
        let write = api.patch_status(name, &params, &patch);
        match tokio::time::timeout(self.timeout, write).await {
            Ok(Ok(_)) => Ok(()),
            // It was deleted meanwhile: nothing to report to.
            Ok(Err(kube::Error::Api(e))) if e.code == 404 => Ok(()),
            Ok(Err(e)) => Err(text(&e)),
            Err(_) => Err("writing the status timed out".into()),
        }
    }
}

fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
