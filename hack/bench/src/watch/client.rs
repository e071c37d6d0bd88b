//! A few requests to kube-apiserver, many at once where there are many. Not a general client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::SendRequest;
use serde_json::Value;

use super::control_plane::TOKEN;
use crate::apiserver::pki::{NAME, Pki};
use crate::apiserver::queries::connect;

/// Requests on their way.
const AT_ONCE: usize = 32;
/// Lists of ten thousand pods, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects as the administrator.
    pub fn connect(address: SocketAddr, pki: &Pki) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let tls = Arc::new(pki.anybody()?);
        let sender = runtime.block_on(connect(address, tls))?;
        Ok(Self { runtime, sender })
    }

    /// The answer to a GET.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.runtime
            .block_on(one(self.sender.clone(), "GET", path, None))
    }

    /// Creates objects; the path of each kind comes with it.
    pub fn create(&self, objects: impl Iterator<Item = (String, Value)>) -> anyhow::Result<()> {
        let creations = objects.map(|(path, object)| {
            let sender = self.sender.clone();
            async move { one(sender, "POST", &path, Some(&object)).await.map(drop) }
        });
        self.runtime.block_on(async {
            let mut creations = futures::stream::iter(creations).buffer_unordered(AT_ONCE);
            while let Some(created) = creations.next().await {
                created?;
            }
            Ok(())
        })
    }
}

async fn one(
    mut sender: SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let body = body.map(|body| Bytes::from(body.to_string()));
    let request = http::Request::builder()
        .method(method)
        .uri(format!("https://{NAME}{path}"))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json")
        .body(Full::new(body.unwrap_or_default()))?;
    let answer = async {
        let response = sender.send_request(request).await.context("a request")?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, body))
    };
    let Ok(answered) = tokio::time::timeout(PATIENCE, answer).await else {
        bail!("{method} {path} was not answered");
    };
    let (status, body) = answered?;
    let text = String::from_utf8_lossy(&body);
    ensure!(
        status.is_success(),
        "{method} {path} was answered with {status}: {text}"
    );
    Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
}
