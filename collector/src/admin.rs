//! What both roles offer to whoever runs them, over plain HTTP: /metrics, /healthz and /readyz, and the
//! signals that end a process. Never serves measurements of pods: those have an API of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::extract;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The media type of prometheus-client's text, which is OpenMetrics and not Prometheus' older format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long connections may take to finish after the shutdown began; scrapers reconnect anyway.
const DRAIN: Duration = Duration::from_secs(2);

/// Why the admin server could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can not be listened on.
    #[error(
        "can not listen on {addr} for /metrics and probes: {source}; choose another --admin-address"
    )]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The listener died.
    #[error("the server for /metrics and probes failed: {0}")]
    Serve(#[from] std::io::Error),
}

/// Whether this process can do its work, shared by the parts that know and the one that answers.
/// Starts as not ready; clones share the state.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<State>);

#[derive(Debug)]
struct State {
    reason: ArcSwapOption<String>,
    has_been: AtomicBool,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new("starting")
    }
}

impl Readiness {
    /// Not ready, for `reason`, until told otherwise.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(Arc::new(State {
            reason: ArcSwapOption::from_pointee(reason.into()),
            has_been: AtomicBool::new(false),
        }))
    }

    /// From now on /readyz answers 200.
    pub fn set_ready(&self) {
        self.0.has_been.store(true, Ordering::Relaxed);
        if self.0.reason.swap(None).is_some() {
            tracing::info!("ready");
        }
    }

    /// From now on /readyz answers 503 with `reason`, a sentence for a person.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        let reason = reason.into();
        let new = Some(Arc::new(reason.clone()));
        if self.0.reason.swap(new).is_none_or(|old| *old != reason) {
            tracing::warn!(%reason, "not ready");
        }
    }

    /// `None` when ready, otherwise the reason.
    pub fn reason(&self) -> Option<Arc<String>> {
        self.0.reason.load_full()
    }

    /// Whether /readyz answers 200.
    pub fn is_ready(&self) -> bool {
        self.0.reason.load().is_none()
    }

    /// Whether it was ready once: who is told to end is not ready any more, but can do its work.
    pub fn has_been_ready(&self) -> bool {
        self.0.has_been.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Admin {
    registry: Arc<Registry>,
    readiness: Readiness,
}

/// The routes, for tests and for a server that has its own listener.
pub fn router(registry: Arc<Registry>, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Admin {
            registry,
            readiness,
        })
}

/// Listens on `addr` and serves until `shutdown`.
pub async fn serve(
    addr: SocketAddr,
    registry: Registry,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|source| Error::Bind { addr, source })?;
    tracing::info!(%addr, "serving /metrics, /healthz and /readyz");
    let server = axum::serve(listener, router(Arc::new(registry), readiness))
        .with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        result = server => Ok(result?),
        () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

/// A token that SIGTERM or SIGINT cancels. The first signal asks for an orderly end; a second one ends
/// the process at once, for a person who does not want to wait.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let cancel = token.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for first in [true, false] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if !first {
                tracing::warn!(signal = name, "second signal, ending at once");
                std::process::exit(1);
            }
            tracing::info!(signal = name, "shutting down");
            cancel.cancel();
        }
    });
    Ok(token)
}

async fn metrics(extract::State(admin): extract::State<Admin>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &admin.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("can not encode the metrics: {error}\n"),
        )
            .into_response(),
    }
}

async fn readyz(extract::State(admin): extract::State<Admin>) -> Response {
    match admin.readiness.reason() {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    async fn get(router: &Router, path: &str) -> (StatusCode, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let kind = response
            .headers()
            .get(CONTENT_TYPE)
            .map_or("", |v| v.to_str().unwrap())
            .to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_is_answered_with_its_reason() {
        let readiness = Readiness::default();
        let router = router(Arc::new(Registry::default()), readiness.clone());
        assert_eq!(get(&router, "/healthz").await.0, StatusCode::OK);
        let (status, _, body) = get(&router, "/readyz").await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
        );
        readiness.set_ready();
        assert_eq!(get(&router, "/readyz").await.0, StatusCode::OK);
        readiness.set_not_ready("no kubepods cgroup");
        assert_eq!(get(&router, "/readyz").await.2, "no kubepods cgroup\n");
    }

    #[tokio::test]
    async fn metrics_are_open_metrics_text() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("batches", "Batches sent", counter.clone());
        counter.inc();
        let router = router(Arc::new(registry), Readiness::default());
        let (status, kind, body) = get(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(kind, OPENMETRICS);
        assert!(
            body.contains("batches_total 1\n") && body.ends_with("# EOF\n"),
            "{body}"
        );
    }

    #[tokio::test]
    async fn serving_ends_with_the_shutdown() {
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(
            "127.0.0.1:0".parse().unwrap(),
            Registry::default(),
            Readiness::default(),
            shutdown.clone(),
        ));
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(1), serving)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
