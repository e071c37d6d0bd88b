//! Asking kube-apiserver who a token belongs to and what a user may do, with a short memory for both. Never
//! decides by itself, but for `system:masters`, who may do everything.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::identity::User;
use super::memory::Memory;

/// As in k8s.io/apiserver's delegating options.
const REMEMBER: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Reviews of each kind that are on their way at once: who floods us with tokens must not make us flood
/// kube-apiserver, and tokens of strangers must not hold up the questions about users we know.
const AT_ONCE: usize = 64;
/// What is kept of an authorizer's reason, bytes.
const MAX_REASON: usize = 1024;

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
    // Keys are digests: no memory holds a token, and a path or name of any length costs 32 bytes.
    tokens: Memory<Option<User>>,
    access: Memory<Result<(), String>>,
    token_permits: Semaphore,
    access_permits: Semaphore,
}

impl Reviews {
    /// Asks through `client`.
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            tokens: Memory::new(REMEMBER),
            access: Memory::new(REMEMBER),
            token_permits: Semaphore::new(AT_ONCE),
            access_permits: Semaphore::new(AT_ONCE),
        }
    }

    /// Whose token it is; `None` if it is nobody's or not meant for `audience` (empty: the API server's own).
    pub async fn token(&self, token: &str, audience: &str) -> Result<Option<User>, Error> {
        if let Some(known) = self.tokens.get(&token_key(token, audience)) {
            return Ok(known);
        }
        self.token_now(token, audience).await
    }

    /// The same, asked anew: for a stream that has been open for long.
    pub async fn token_now(&self, token: &str, audience: &str) -> Result<Option<User>, Error> {
        let audiences = (!audience.is_empty()).then(|| vec![audience.to_owned()]);
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences,
            },
            ..TokenReview::default()
        };
        let reviewed = create(&self.client, &self.token_permits, "TokenReview", &review).await?;
        let status = reviewed.status;
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
        self.tokens.put(token_key(token, audience), user.clone());
        Ok(user)
    }

    /// Whether the user may; a "no" comes with the authorizer's reason.
    pub async fn access(&self, user: &User, action: &Action) -> Result<Result<(), String>, Error> {
        if user.groups.iter().any(|g| g == "system:masters") {
            return Ok(Ok(()));
        }
        let key = access_key(user, action);
        if let Some(known) = self.access.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: spec(user, action),
            ..SubjectAccessReview::default()
        };
        let what = "SubjectAccessReview";
        let reviewed = create(&self.client, &self.access_permits, what, &review).await?;
        let verdict = match reviewed.status {
            Some(s) if s.allowed => Ok(()),
            Some(s) => Err(shortened(s.reason.unwrap_or_default())),
            None => Err(String::new()),
        };
        self.access.put(key, verdict.clone());
        Ok(verdict)
    }
}

fn token_key(token: &str, audience: &str) -> [u8; 32] {
    // Neither can contain a line break: a token is a header's value, an audience ours.
    Sha256::digest(format!("{audience}\n{token}")).into()
}

fn access_key(user: &User, action: &Action) -> [u8; 32] {
    // Debug escapes what could make two different questions look alike.
    Sha256::digest(format!("{user:?} {action:?}")).into()
}

fn shortened(mut text: String) -> String {
    let end = (0..=MAX_REASON).rev().find(|i| text.is_char_boundary(*i));
    text.truncate(end.unwrap_or_default());
    text
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

async fn create<K>(
    client: &kube::Client,
    permits: &Semaphore,
    what: &'static str,
    review: &K,
) -> Result<K, Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + serde::Serialize,
    K: std::fmt::Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let params = PostParams::default();
    let ask = async {
        // It is never closed.
        let _permit = permits.acquire().await;
        api.create(&params, review).await
    };
    match tokio::time::timeout(TIMEOUT, ask).await {
        Ok(Ok(reviewed)) => Ok(reviewed),
        Ok(Err(error)) => Err(Error::Api {
            what,
            message: error.to_string(),
        }),
        Err(_) => Err(Error::Timeout(what)),
    }
}
