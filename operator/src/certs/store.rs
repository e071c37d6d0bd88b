//! Reads and writes the objects that hold our certificates. Never decides (see `plan`); every write
//! carries the resourceVersion that was read, so a concurrent writer is noticed, not overwritten.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    plan::{self, ApiService, Ca, CaCert, Leaf, State, Unix},
    x509::{self, Pair},
};

const PUBLISHED: &str = "ebpfscaler.io/published";
const NEXT_PUBLISHED: &str = "ebpfscaler.io/next-published";
const PROMOTED: &str = "ebpfscaler.io/promoted";

/// Names of the objects.
#[derive(Clone, Debug)]
pub struct Names {
    /// Where all but the APIServices live.
    pub namespace: String,
    /// Secret of the CA.
    pub ca_secret: String,
    /// Secret of the serving certificate.
    pub tls_secret: String,
    /// ConfigMap of the bundle, key `ca.crt`.
    pub bundle: String,
    /// The APIServices that may be ours.
    pub api_services: Vec<String>,
    /// The Service that an APIService must point to.
    pub service: String,
    /// What the serving certificate must name.
    pub dns_names: Vec<String>,
}

/// The objects as they were read, to be written back.
#[derive(Default)]
pub struct Raw {
    ca: Option<Secret>,
    tls: Option<Secret>,
    bundle: Option<ConfigMap>,
    api_services: Vec<Option<APIService>>,
}

impl Raw {
    /// The CA that cert-manager says has signed the serving certificate.
    pub(crate) fn issuer(&self) -> Option<String> {
        text(self.tls.as_ref()?, "ca.crt").filter(|pem| !pem.is_empty())
    }

    /// The field manager that wrote an APIService's caBundle last.
    pub(crate) fn bundle_writer(&self, name: &str) -> Option<String> {
        let mut objects = self.api_services.iter().flatten();
        let object = objects.find(|o| o.metadata.name.as_deref() == Some(name))?;
        let mut managers = object.metadata.managed_fields.iter().flatten();
        let writer = managers.find(|entry| {
            let fields = entry.fields_v1.as_ref();
            fields.is_some_and(|f| f.0["f:spec"].get("f:caBundle").is_some())
        });
        writer?.manager.clone()
    }
}

/// Access to the objects.
pub struct Store {
    secrets: Api<Secret>,
    configmaps: Api<ConfigMap>,
    api_services: Api<APIService>,
    names: Names,
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    String::from_utf8(bytes.clone()).ok()
}

fn stamp(secret: &Secret, key: &str) -> Option<Unix> {
    let annotations = secret.metadata.annotations.as_ref()?;
    annotations.get(key)?.parse().ok()
}

fn ca_cert(pem: String, published: Unix) -> Option<CaCert> {
    let (not_before, not_after) = x509::times(&pem).ok()?;
    Some(CaCert {
        pem,
        not_before,
        not_after,
        published,
    })
}

/// The pair of the CA that signs and, if there is one, of the next.
fn pairs(secret: &Secret) -> Option<(Pair, Option<Pair>)> {
    let pair = |cert: &str, key: &str| {
        let pair = Pair {
            cert: text(secret, cert)?,
            key: text(secret, key)?,
        };
        x509::fits(&pair).then_some(pair)
    };
    Some((pair("ca.crt", "ca.key")?, pair("next.crt", "next.key")))
}

fn read_ca(secret: &Secret, now: Unix) -> Option<Ca> {
    let (current, next) = pairs(secret)?;
    // A lost time stamp counts as "just now": it delays a rotation and breaks nothing.
    let published = stamp(secret, PUBLISHED).unwrap_or(now);
    let next_published = stamp(secret, NEXT_PUBLISHED).unwrap_or(now);
    Some(Ca {
        current: ca_cert(current.cert, published)?,
        next: next.and_then(|n| ca_cert(n.cert, next_published)),
        previous: text(secret, "previous.crt")
            .map(|b| x509::split(&b, published, now))
            .unwrap_or_default(),
        promoted: stamp(secret, PROMOTED).unwrap_or(published),
    })
}

impl Store {
    /// Access by this client.
    #[must_use]
    pub fn new(client: Client, names: Names) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &names.namespace),
            configmaps: Api::namespaced(client.clone(), &names.namespace),
            api_services: Api::all(client),
            names,
        }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn read(&self, now: Unix) -> kube::Result<(State, Raw)> {
        let names = self.names.api_services.iter();
        let api_services = names.map(|name| self.api_services.get_opt(name));
        let (ca, tls, bundle, api_services) = tokio::try_join!(
            self.secrets.get_opt(&self.names.ca_secret),
            self.secrets.get_opt(&self.names.tls_secret),
            self.configmaps.get_opt(&self.names.bundle),
            futures::future::try_join_all(api_services),
        )?;
        let raw = Raw {
            ca,
            tls,
            bundle,
            api_services,
        };
        Ok((self.state(&raw, now), raw))
    }

    fn state(&self, raw: &Raw, now: Unix) -> State {
        let ca = raw.ca.as_ref().and_then(|s| read_ca(s, now));
        let bundle = raw
            .bundle
            .as_ref()
            .and_then(|c| c.data.as_ref()?.get("ca.crt").cloned());
        let names = &self.names.dns_names;
        let leaf = raw.tls.as_ref().and_then(|secret| {
            let pair = Pair {
                cert: text(secret, "tls.crt")?,
                key: text(secret, "tls.key")?,
            };
            let (not_before, not_after) = x509::times(&pair.cert).ok()?;
            let by =
                |roots: &str| x509::fits(&pair) && x509::accepted(&pair.cert, roots, names, now);
            Some(Leaf {
                not_before,
                not_after,
                by_current: ca.as_ref().is_some_and(|ca| by(&ca.current.pem)),
                by_bundle: ca.as_ref().is_some_and(|ca| by(&plan::bundle(ca))),
            })
        });
        let names = self.names.api_services.iter().cloned();
        let found = raw
            .api_services
            .iter()
            .map(|o| self.api_service(o.as_ref()));
        State {
            bundle_certs: bundle
                .as_deref()
                .map(|b| x509::split(b, now, now))
                .unwrap_or_default(),
            ca,
            leaf,
            bundle,
            api_services: names.zip(found).collect(),
        }
    }

    fn api_service(&self, object: Option<&APIService>) -> ApiService {
        let Some(object) = object else {
            return ApiService::Absent;
        };
        let spec = object.spec.clone().unwrap_or_default();
        let service = spec.service.unwrap_or_default();
        let namespace = service.namespace.unwrap_or_default();
        let name = service.name.unwrap_or_default();
        if namespace == self.names.namespace && name == self.names.service {
            let bytes = spec.ca_bundle.unwrap_or_default().0;
            ApiService::Ours(String::from_utf8(bytes).unwrap_or_default())
        } else {
            ApiService::Foreign(format!("{namespace}/{name}"))
        }
    }

    fn metadata(&self, name: &str, old: Option<&ObjectMeta>) -> ObjectMeta {
        let mut labels = old.and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert("app.kubernetes.io/name".into(), "ebpf-scaler".into());
        labels.insert(
            "app.kubernetes.io/managed-by".into(),
            "ebpf-scaler-operator".into(),
        );
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some(self.names.namespace.clone()),
            labels: Some(labels),
            annotations: old.and_then(|m| m.annotations.clone()),
            resource_version: old.and_then(|m| m.resource_version.clone()),
            ..ObjectMeta::default()
        }
    }

    async fn write_secret(&self, old: Option<&Secret>, secret: Secret) -> kube::Result<()> {
        let params = PostParams::default();
        match old {
            None => self.secrets.create(&params, &secret).await?,
            Some(_) => {
                let name = secret.metadata.name.clone().unwrap_or_default();
                self.secrets.replace(&name, &params, &secret).await?
            }
        };
        Ok(())
    }

    /// Writes the CA's Secret: the pair that signs, the next, and those still published.
    async fn write_ca(
        &self,
        raw: &Raw,
        current: (&Pair, Unix),
        next: Option<(&Pair, Unix)>,
        previous: &[CaCert],
        promoted: Unix,
    ) -> kube::Result<()> {
        let old = raw.ca.as_ref();
        let mut metadata = self.metadata(&self.names.ca_secret, old.map(|s| &s.metadata));
        let mut stamps = metadata.annotations.take().unwrap_or_default();
        stamps.insert(PUBLISHED.into(), current.1.to_string());
        stamps.insert(PROMOTED.into(), promoted.to_string());
        stamps.remove(NEXT_PUBLISHED);
        let mut data = BTreeMap::new();
        let mut put = |key: &str, value: &str| {
            data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
        };
        put("ca.crt", &current.0.cert);
        put("ca.key", &current.0.key);
        if let Some((pair, published)) = next {
            put("next.crt", &pair.cert);
            put("next.key", &pair.key);
            stamps.insert(NEXT_PUBLISHED.into(), published.to_string());
        }
        if !previous.is_empty() {
            let pems: String = previous.iter().map(|c| c.pem.as_str()).collect();
            put("previous.crt", &pems);
        }
        metadata.annotations = Some(stamps);
        let secret = Secret {
            metadata,
            data: Some(data),
            type_: Some("Opaque".into()),
            ..Secret::default()
        };
        self.write_secret(old, secret).await
    }

    /// Carries out one action on what `read` returned.
    ///
    /// # Errors
    /// When a certificate cannot be made or a write is refused.
    pub async fn apply(
        &self,
        action: &plan::Action,
        state: &State,
        raw: &Raw,
        lifetimes: &plan::Lifetimes,
        now: Unix,
    ) -> Result<(), super::Error> {
        use plan::Action;
        match action {
            Action::CreateCa { keep } => {
                let pair = x509::make_ca(now, lifetimes.ca)?;
                self.write_ca(raw, (&pair, now), None, keep, now).await?;
            }
            Action::IntroduceNext | Action::Promote | Action::DropPrevious => {
                let (Some(ca), Some((current, next))) =
                    (&state.ca, raw.ca.as_ref().and_then(pairs))
                else {
                    return Err(super::Error::Gone);
                };
                let signs = (&current, ca.current.published);
                match (action, next, &ca.next) {
                    (Action::IntroduceNext, ..) => {
                        let pair = x509::make_ca(now, lifetimes.ca)?;
                        let next = Some((&pair, now));
                        self.write_ca(raw, signs, next, &ca.previous, ca.promoted)
                            .await?;
                    }
                    (Action::Promote, Some(pair), Some(next)) => {
                        let mut previous = vec![ca.current.clone()];
                        previous.extend(ca.previous.iter().cloned());
                        self.write_ca(raw, (&pair, next.published), None, &previous, now)
                            .await?;
                    }
                    (_, pair, next) => {
                        let next = pair.as_ref().zip(next.as_ref().map(|n| n.published));
                        self.write_ca(raw, signs, next, &[], ca.promoted).await?;
                    }
                }
            }
            Action::PublishBundle(bundle) => self.publish(raw, bundle).await?,
            Action::PatchApiService { name, bundle } => {
                self.patch_api_service(raw, name, bundle).await?;
            }
            Action::IssueLeaf(_) => {
                let Some((ca, _)) = raw.ca.as_ref().and_then(pairs) else {
                    return Err(super::Error::Gone);
                };
                let pair = x509::issue(&ca, &self.names.dns_names, now, lifetimes.leaf)?;
                self.write_leaf(raw, pair).await?;
            }
        }
        Ok(())
    }

    async fn write_leaf(&self, raw: &Raw, pair: Pair) -> kube::Result<()> {
        let old = raw.tls.as_ref();
        let data = BTreeMap::from([
            ("tls.crt".to_owned(), ByteString(pair.cert.into_bytes())),
            ("tls.key".to_owned(), ByteString(pair.key.into_bytes())),
        ]);
        let secret = Secret {
            metadata: self.metadata(&self.names.tls_secret, old.map(|s| &s.metadata)),
            data: Some(data),
            type_: Some("kubernetes.io/tls".into()),
            ..Secret::default()
        };
        self.write_secret(old, secret).await
    }

    async fn publish(&self, raw: &Raw, bundle: &str) -> kube::Result<()> {
        let old = raw.bundle.as_ref();
        let object = ConfigMap {
            metadata: self.metadata(&self.names.bundle, old.map(|c| &c.metadata)),
            data: Some(BTreeMap::from([("ca.crt".to_owned(), bundle.to_owned())])),
            ..ConfigMap::default()
        };
        let params = PostParams::default();
        match old {
            None => self.configmaps.create(&params, &object).await?,
            Some(_) => {
                self.configmaps
                    .replace(&self.names.bundle, &params, &object)
                    .await?
            }
        };
        Ok(())
    }

    async fn patch_api_service(&self, raw: &Raw, name: &str, bundle: &str) -> kube::Result<()> {
        let mut objects = raw.api_services.iter().flatten();
        let object = objects.find(|o| o.metadata.name.as_deref() == Some(name));
        let version = object.and_then(|o| o.metadata.resource_version.clone());
        let patch = json!({
            "metadata": { "resourceVersion": version },
            "spec": { "caBundle": ByteString(bundle.as_bytes().to_vec()), "insecureSkipTLSVerify": null },
        });
        self.api_services
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }
}
