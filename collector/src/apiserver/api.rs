//! The API port: which groups are served on it, who asks, and what is said where there is nothing. Answers no
//! question about a metric itself.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::discovery::{Catalogue, Group};
use super::hub::Hub;
use super::identity::{Peer, User};
use super::reviews::Action;
use super::status::Failure;
use super::{custom, discovery, external, signals};
use crate::admin::Readiness;

/// What is served; with custom.metrics.k8s.io if `custom_metrics`. Where another provider has a part in a group,
/// OpenAPI does not say which names there are, for it is made once.
pub fn groups(hub: &Hub, custom_metrics: bool) -> Vec<Group> {
    let custom = custom_metrics.then(custom::group);
    let mut groups: Vec<_> = [external::group()].into_iter().chain(custom).collect();
    groups.push(signals::group());
    for group in &mut groups {
        if hub.delegates.get(group.name).is_some() {
            let versions = group.versions.iter_mut();
            let operations = versions.flat_map(|version| &mut version.operations);
            operations.for_each(|operation| operation.choices.clear());
        }
    }
    groups
}

/// All routes of the API port, as `groups` made them.
pub fn router(
    hub: Arc<Hub>,
    readiness: Readiness,
    custom_metrics: bool,
    catalogue: &Arc<Catalogue>,
) -> Router {
    let health = readiness.clone();
    let ready = move || async move {
        match health.reason() {
            None => "ok".into_response(),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason.to_string()).into_response(),
        }
    };
    let mut resources = external::router().merge(signals::router());
    if custom_metrics {
        let shared = hub.delegates.get(custom::GROUP).is_some();
        resources = resources.merge(custom::router(shared));
    }
    // Every resource asks for its own right; what is no resource asks for that of its path.
    let paths = discovery::router(catalogue)
        .fallback(async |request: Request| not_found(request.uri().path()))
        .layer(middleware::from_fn_with_state(hub.clone(), authorize_path));
    Router::new()
        .merge(resources)
        .merge(paths)
        .method_not_allowed_fallback(async |request: Request| {
            let message = format!("{} is not supported here, only GET", request.method());
            Failure::new(405, message)
        })
        .layer(middleware::from_fn_with_state(hub.clone(), authenticate))
        .layer(middleware::from_fn_with_state(readiness, wait))
        // Health needs no identity: kubelets and load balancers ask.
        .route("/healthz", get(async || "ok"))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(hub)
}

/// What a path gets at which nothing is served.
pub fn not_found(path: &str) -> Failure {
    Failure::new(
        404,
        format!("the server could not find the requested resource ({path})"),
    )
}

/// Puts off whoever asks before we can know the answer: kube-apiserver sends queries to a replica that has crashed and is
/// back until it has heard that it is not ready. The HPA controller's client asks again by itself when it is told to.
async fn wait(State(readiness): State<Readiness>, request: Request, next: Next) -> Response {
    if readiness.has_been_ready() {
        return next.run(request).await;
    }
    let reason = readiness.reason().unwrap_or_default();
    let message = format!("this replica is starting: {reason}");
    Failure::new(503, message).passing().into_response()
}

/// Finds out who asks.
async fn authenticate(State(hub): State<Arc<Hub>>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let peer = peer.cloned().unwrap_or_default();
    match identify(&hub, &peer, request.headers()).await {
        Ok(user) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}

/// Whether the user may see a path that is no resource.
async fn authorize_path(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    let action = Action::GetPath(request.uri().path().to_owned());
    let user = request.extensions().get::<User>();
    let user = user.cloned().unwrap_or_default();
    match hub.authorize(&user, &action).await {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

/// A request without its body, which nobody reads: who asks, and how.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who asks; nobody if the request has not been authenticated
    pub user: User,
    /// In which form
    pub headers: HeaderMap,
    /// For what
    pub uri: Uri,
}

impl From<Request> for Caller {
    fn from(request: Request) -> Self {
        let (mut parts, _) = request.into_parts();
        Self {
            user: parts.extensions.remove::<User>().unwrap_or_default(),
            headers: parts.headers,
            uri: parts.uri,
        }
    }
}

async fn identify(hub: &Hub, peer: &Peer, headers: &HeaderMap) -> Result<User, Failure> {
    if let Some(user) = hub
        .trust
        .load()
        .as_ref()
        .and_then(|t| t.user(peer, headers))
    {
        return Ok(user);
    }
    let unauthorized = |reason| {
        hub.metrics.deny(reason);
        Failure::new(401, "Unauthorized")
    };
    let bearer = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let bearer = bearer.and_then(|v| v.split_once(' '));
    let Some((_, token)) = bearer.filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer")) else {
        return Err(unauthorized("no_identity"));
    };
    match hub.reviews.token(token.trim(), "").await {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(unauthorized("bad_token")),
        Err(error) => {
            tracing::warn!(%error, "can not authenticate");
            Err(Failure::new(500, error.to_string()))
        }
    }
}
