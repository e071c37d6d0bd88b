//! signals.ebpfscaler.io/v1alpha1: what workloads and pods do now, as objects to get, list and watch, and as
//! the tables that kubectl prints. Read only; nothing is stored, and nothing computed that nobody asks for.

mod answer;
pub mod board;
mod group;
mod item;
mod object;
mod request;
mod snapshot;
mod table;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ebpf_scaler_crds::signals::{GROUP, VERSION};

use self::answer::Answerer;
use self::board::{Board, Topic};
pub use self::group::group;
use self::item::Resource;
use self::request::Wanted;
use super::api::{Caller, not_found};
use super::hub::Hub;
use super::media::{Form, negotiate};
use super::options::Options;
use super::reviews::{Access, Action};
use super::status::Failure;

/// A list may be this old: several clients share what is computed.
const FRESH: Duration = Duration::from_millis(500);

/// The routes of the objects.
pub fn router() -> Router<Arc<Hub>> {
    let base = format!("/apis/{GROUP}/{VERSION}");
    let namespace = format!("{base}/namespaces/{{namespace}}");
    Router::new()
        .route(&format!("{base}/{{resource}}"), get(serve))
        .route(&format!("{namespace}/{{resource}}"), get(serve))
        .route(&format!("{namespace}/{{resource}}/{{name}}"), get(serve))
}

/// Whose objects are asked for: the parts of the path.
#[derive(serde::Deserialize)]
struct Target {
    namespace: Option<String>,
    resource: String,
    name: Option<String>,
}

async fn serve(
    State(hub): State<Arc<Hub>>,
    target: Result<Path<Target>, PathRejection>,
    request: Request,
) -> Response {
    let began = Instant::now();
    let target = match target {
        Ok(Path(target)) => target,
        Err(error) => return Failure::new(400, error.body_text()).into_response(),
    };
    let label = Resource::from_plural(&target.resource).map_or("unknown", Resource::plural);
    let result = answer(&hub, target, &request.into()).await;
    let code = result.as_ref().map_or_else(|f| f.code, |_| 200);
    hub.metrics.query(label, code, began.elapsed());
    result.unwrap_or_else(IntoResponse::into_response)
}

/// The right to do something with our objects.
fn access(verb: &'static str, resource: &str, namespace: &str, name: &str) -> Action {
    Action::Access(Box::new(Access {
        verb,
        group: GROUP,
        version: VERSION,
        namespace: namespace.to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        subresource: String::new(),
    }))
}

async fn answer(hub: &Arc<Hub>, target: Target, caller: &Caller) -> Result<Response, Failure> {
    let known = Resource::from_plural(&target.resource);
    let options = Options::read(&caller.uri);
    let verb = match (&target.name, &options) {
        (Some(_), _) => "get",
        (None, Ok(options)) if options.watch() => "watch",
        _ => "list",
    };
    let single = target.name.is_some();
    let wanted = options.and_then(|o| known.map(|r| Wanted::read(r, &o, single)).transpose());
    // Kubernetes takes a list of one name for a question about that object.
    let by_field = wanted
        .as_ref()
        .ok()
        .and_then(|w| w.as_ref()?.name.as_deref());
    let name = target.name.as_deref().or(by_field).unwrap_or_default();
    let namespace = target.namespace.as_deref().unwrap_or_default();
    // Rights come first: who may not ask learns nothing of what there is.
    let needed = access(verb, &target.resource, namespace, name);
    hub.authorize(&caller.user, &needed).await?;
    let (Some(resource), Some(wanted)) = (known, wanted?) else {
        return Err(not_found(caller.uri.path()));
    };
    let form = negotiate(&caller.headers, &[Form::Plain, Form::Table])?;
    let sees_all = access("list", Resource::Pods.plural(), "", "");
    let sees_all = hub.reviews.access(&caller.user, &sees_all).await;
    let topic = Topic {
        resource,
        window: wanted.window,
        namespace: target.namespace.clone(),
    };
    let watch = wanted.watch.clone();
    let answerer = Answerer {
        hub: hub.clone(),
        resource,
        wanted,
        form,
        names_all: matches!(sees_all, Ok(Ok(()))),
    };
    if let Some(options) = watch {
        return watch::respond(hub.clone(), topic, answerer, options).await;
    }
    let snapshot = Board::snapshot(hub, &topic, FRESH).await?;
    let (Some(namespace), Some(name)) = (&target.namespace, &target.name) else {
        return Ok(answerer.list(&snapshot));
    };
    let entry = snapshot.find(namespace, name).ok_or_else(|| {
        let plural = resource.plural();
        Failure::new(404, format!("{plural}.{GROUP} {name:?} not found"))
    })?;
    Ok(answerer.one(entry))
}
