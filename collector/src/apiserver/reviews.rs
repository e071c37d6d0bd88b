//! Asking kube-apiserver who a token belongs to and what a user may do, with a short memory for both. Never
//! decides by itself, but for `system:masters`, who may do everything.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};

use super::identity::User;

/// As in k8s.io/apiserver's delegating options.
const REMEMBER: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Entries kept at most; beyond, the memory is emptied.
const CAPACITY: usize = 4096;

/// Why a review could not be had; never a "no".
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or is not there.
    #[error("{what} failed: {message}")]
    Api {
        /// TokenReview or SubjectAccessReview
        what: &'static str,
        /// What the client says
        message: String,
    },
    /// It did not answer in time.
    #[error("{0} was not answered within 10 s")]
    Timeout(&'static str),
}

/// What a user wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// `list` a metric of a namespace in external.metrics.k8s.io
    ListMetric {
        /// The namespace
        namespace: String,
        /// The metric's name, whether we have it or not
        metric: String,
    },
    /// Something with a resource of another group
    Access(Box<Access>),
    /// `get` a path that is no resource: discovery
    GetPath(String),
}

/// What RBAC is asked about a resource. Empty is what is not named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// As Kubernetes derives it from method and path: `get` with a name, `list` or `watch` without
    pub verb: &'static str,
    /// The API group
    pub group: &'static str,
    /// Its version
    pub version: &'static str,
    /// The namespace; none: all of them
    pub namespace: String,
    /// The resource
    pub resource: String,
    /// The object's name
    pub name: String,
    /// The subresource
    pub subresource: String,
}

/// The reviews of one API server.
pub struct Reviews {
    client: kube::Client,
    tokens: Memory<(String, [u8; 32]), Option<User>>,
    access: Memory<(User, Action), Result<(), String>>,
}

impl Reviews {
    /// Asks through `client`.
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            tokens: Memory::default(),
            access: Memory::default(),
        }
    }

    /// Whose token it is; `None` if it is nobody's or not meant for `audience` (empty: the API server's own).
    pub async fn token(&self, token: &str, audience: &str) -> Result<Option<User>, Error> {
        // Only a digest is kept, so that no memory holds a token.
        let key = (audience.to_owned(), Sha256::digest(token.as_bytes()).into());
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let audiences = (!audience.is_empty()).then(|| vec![audience.to_owned()]);
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences,
            },
            ..TokenReview::default()
        };
        let status = create(&self.client, "TokenReview", &review).await?.status;
        let user = status.filter(|s| {
            let meant = s
                .audiences
                .as_ref()
                .is_some_and(|a| a.iter().any(|a| a == audience));
            s.authenticated == Some(true) && (audience.is_empty() || meant)
        });
        let user = user.and_then(|s| s.user).map(|u| {
            User::new(
                u.username.unwrap_or_default(),
                u.uid.unwrap_or_default(),
                u.groups.unwrap_or_default(),
                u.extra.unwrap_or_default(),
            )
        });
        self.tokens.put(key, user.clone());
        Ok(user)
    }

    /// Whether the user may; a "no" comes with the authorizer's reason.
    pub async fn access(&self, user: &User, action: &Action) -> Result<Result<(), String>, Error> {
        if user.groups.iter().any(|g| g == "system:masters") {
            return Ok(Ok(()));
        }
        let key = (user.clone(), action.clone());
        if let Some(known) = self.access.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: spec(user, action),
            ..SubjectAccessReview::default()
        };
        let status = create(&self.client, "SubjectAccessReview", &review)
            .await?
            .status;
        let verdict = match status {
            Some(s) if s.allowed => Ok(()),
            Some(s) => Err(s.reason.unwrap_or_default()),
            None => Err(String::new()),
        };
        self.access.put(key, verdict.clone());
        Ok(verdict)
    }
}

fn spec(user: &User, action: &Action) -> SubjectAccessReviewSpec {
    let extra: BTreeMap<_, _> = user.extra.clone();
    let mut spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
        groups: Some(user.groups.clone()),
        extra: (!extra.is_empty()).then_some(extra),
        ..SubjectAccessReviewSpec::default()
    };
    match action {
        Action::ListMetric { namespace, metric } => {
            spec.resource_attributes = Some(ResourceAttributes {
                verb: Some("list".into()),
                group: Some("external.metrics.k8s.io".into()),
                version: Some("v1beta1".into()),
                resource: Some(metric.clone()),
                namespace: Some(namespace.clone()),
                ..ResourceAttributes::default()
            });
        }
        Action::Access(access) => {
            let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            spec.resource_attributes = Some(ResourceAttributes {
                verb: named(access.verb),
                group: named(access.group),
                version: named(access.version),
                namespace: named(&access.namespace),
                resource: named(&access.resource),
                name: named(&access.name),
                subresource: named(&access.subresource),
                ..ResourceAttributes::default()
            });
        }
        Action::GetPath(path) => {
            spec.non_resource_attributes = Some(NonResourceAttributes {
                verb: Some("get".into()),
                path: Some(path.clone()),
            });
        }
    }
    spec
}

async fn create<K>(client: &kube::Client, what: &'static str, review: &K) -> Result<K, Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + serde::Serialize,
    K: std::fmt::Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let params = PostParams::default();
    match tokio::time::timeout(TIMEOUT, api.create(&params, review)).await {
        Ok(Ok(reviewed)) => Ok(reviewed),
        Ok(Err(error)) => Err(Error::Api {
            what,
            message: error.to_string(),
        }),
        Err(_) => Err(Error::Timeout(what)),
    }
}

/// A bounded memory that forgets after [`REMEMBER`].
struct Memory<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, V: Clone> Memory<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, value) = map.get(key)?;
        (since.elapsed() < REMEMBER).then(|| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= CAPACITY {
            map.retain(|_, (since, _)| since.elapsed() < REMEMBER);
            if map.len() >= CAPACITY {
                map.clear();
            }
        }
        map.insert(key, (Instant::now(), value));
    }
}
