//! Another provider of a metrics API, as `--delegate` meets one: the same wire contract over TLS with a CA of its own,
//! and every way in which it can fail to keep it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use futures::{StreamExt, stream};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::pki::{Ca, Leaf};

/// What it does with a question for a value.
#[derive(Clone)]
pub enum Manner {
    Answer(u16, &'static str, &'static str),
    /// Ends the connection before TLS
    Down,
    /// Does not answer before it is told another manner
    Hang,
    /// A byte now and then, without end
    Drip,
    /// Answers without end, as fast as it can
    Flood,
    /// Ends in the middle of the body that it has announced
    Break,
}

/// A question as it arrived.
#[derive(Clone)]
pub struct Seen {
    pub uri: String,
    pub headers: HeaderMap,
}

struct Inner {
    manner: watch::Sender<Manner>,
    names: Mutex<Value>,
    seen: Mutex<Vec<Seen>>,
    serving: Mutex<Arc<ServerConfig>>,
    connections: Mutex<JoinSet<()>>,
}

pub struct Upstream {
    inner: Arc<Inner>,
    port: u16,
    /// The files that our side reads
    pub files: TempDir,
}

pub const VALUES: &str = r#"{ "kind":"ExternalMetricValueList", "apiVersion":"external.metrics.k8s.io/v1beta1","metadata":{}, "items":[ {"metricName":"s0-cron","metricLabels":null,"timestamp":"2026-01-01T00:00:00Z","value":"1e3"} ] }"#;

impl Upstream {
    pub async fn start() -> Self {
        let ca = Ca::new("other-provider");
        let inner = Arc::new(Inner {
            manner: watch::Sender::new(Manner::Answer(200, "application/json", VALUES)),
            names: Mutex::new(names(&["externalmetrics"])),
            seen: Mutex::default(),
            serving: Mutex::new(serving(&ca.server(&["127.0.0.1"]))),
            connections: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(accept(listener, inner.clone()));
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), "our-token").unwrap();
        let upstream = Self { inner, port, files };
        upstream.trust(&ca.pem);
        upstream
    }

    /// What our side is told to believe.
    pub fn trust(&self, pem: &str) {
        std::fs::write(self.files.path().join("ca.crt"), pem).unwrap();
    }

    /// From now on it shows a certificate of this CA; what is connected ends.
    pub fn serve_with(&self, ca: &Ca) {
        *self.inner.serving.lock().unwrap() = serving(&ca.server(&["127.0.0.1"]));
        self.inner.connections.lock().unwrap().abort_all();
    }

    /// The flags that make it the delegate of `group`.
    pub fn flags(&self, group: &str) -> Vec<String> {
        self.patient_flags(group, "2s")
    }

    /// The same with a limit of time.
    pub fn patient_flags(&self, group: &str, timeout: &str) -> Vec<String> {
        let file = |name| self.files.path().join(name).display().to_string();
        vec![
            format!("--delegate={group}=https://127.0.0.1:{}", self.port),
            format!("--delegate-ca-file={}", file("ca.crt")),
            format!("--delegate-token-file={}", file("token")),
            "--delegate-discovery-period=100ms".to_owned(),
            format!("--delegate-timeout={timeout}"),
        ]
    }

    pub fn set(&self, manner: Manner) {
        self.inner.manner.send_replace(manner);
    }

    pub fn has(&self, document: Value) {
        *self.inner.names.lock().unwrap() = document;
    }

    /// All questions for values so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }
}

/// The discovery document with these names.
pub fn names(names: &[&str]) -> Value {
    let resources = names.iter().map(|name| {
        json!({
            "name": name, "singularName": "", "namespaced": true, "kind": "Anything",
            // More than is good for the cluster.
            "verbs": ["get", "list", "watch", "delete", "deletecollection"],
        })
    });
    json!({"kind": "APIResourceList", "apiVersion": "v1", "resources": resources.collect::<Vec<_>>()})
}

fn serving(leaf: &Leaf) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

async fn accept(listener: TcpListener, inner: Arc<Inner>) {
    while let Ok((stream, _)) = listener.accept().await {
        if matches!(*inner.manner.borrow(), Manner::Down) {
            continue;
        }
        let acceptor = TlsAcceptor::from(inner.serving.lock().unwrap().clone());
        let serves = inner.clone();
        inner.connections.lock().unwrap().spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service =
                hyper::service::service_fn(move |request| answer(serves.clone(), request));
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    inner: Arc<Inner>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path();
    let discovery = path.split('/').count() == 4;
    let mut manner = inner.manner.borrow().clone();
    if discovery && !matches!(manner, Manner::Down) {
        let names = inner.names.lock().unwrap().to_string();
        return Ok(response(200, "application/json", names.into()));
    }
    inner.seen.lock().unwrap().push(Seen {
        uri: request.uri().to_string(),
        headers: request.headers().clone(),
    });
    let endless = |byte: Bytes, pause: Duration| {
        let more = stream::repeat(byte).then(move |byte| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, Infallible>(byte)
        });
        response(200, "application/json", Body::from_stream(more))
    };
    if matches!(manner, Manner::Hang) {
        let mut told = inner.manner.subscribe();
        let other = told
            .wait_for(|manner| !matches!(manner, Manner::Hang))
            .await;
        manner = other.unwrap().clone();
    }
    match manner {
        Manner::Hang => unreachable!("waited"),
        Manner::Answer(status, media, body) => Ok(response(status, media, body.into())),
        Manner::Drip => Ok(endless(Bytes::from_static(b" "), Duration::from_millis(50))),
        Manner::Flood => Ok(endless(vec![b' '; 1 << 20].into(), Duration::ZERO)),
        Manner::Break => {
            let pieces = [
                Ok(Bytes::from_static(b"{\"kind\":")),
                Err(std::io::Error::other("end")),
            ];
            let body = Body::from_stream(stream::iter(pieces));
            Ok(response(200, "application/json", body))
        }
        // A connection from before.
        Manner::Down => Err(std::io::Error::other("down")),
    }
}

fn response(status: u16, media: &str, body: Body) -> Response<Body> {
    let response = Response::builder().status(status);
    let response = response
        .header("content-type", media)
        .header("warning", "299 - \"careful\"")
        .header("x-private", "internal");
    response.body(body).unwrap()
}
