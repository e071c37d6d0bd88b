//! Queries as kube-apiserver sends them on for HPAs: over kept connections, with the front proxy's certificate. They
//! come at a steady rate, whether the last one has been answered or not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use super::kubernetes::{PODS_OF_A_WORKLOAD, place};
use super::pki::{NAME, Pki};
use super::replica::Replica;

/// Queries a second: 750 HPAs at their 15 s, with two metrics each.
const RATE: u64 = 100;
const CONNECTIONS: usize = 3;
const METRICS: [&str; 4] = [
    "requests_per_second",
    "request_latency_p99_microseconds",
    "network_bytes_per_second",
    "requests_in_flight",
];
const WINDOWS: [&str; 3] = ["3s", "30s", "5m"];

/// What came of the queries.
#[derive(Debug, Default)]
pub struct Answers {
    /// How long each took, whatever it said.
    pub latencies: Vec<Duration>,
    /// Answers that say that too many agents are silent: of a machine that can not drive them in time.
    pub incomplete: usize,
}

/// Queries on their way.
pub struct Queries {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Answers>>,
}

impl Queries {
    /// Asks from a thread of its own, so that the agents' work delays it as little as may be.
    pub fn start(pods: usize, replica: &Replica, pki: &Pki) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tls, api) = (Arc::new(pki.front_proxy()?), replica.api);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let until = stop.clone();
        let thread = std::thread::spawn(move || runtime.block_on(ask(pods, api, tls, until)));
        Ok(Self { stop, thread })
    }

    /// Stops.
    pub fn finish(self) -> anyhow::Result<Answers> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("the queries panicked"))?
    }
}

async fn ask(
    pods: usize,
    api: SocketAddr,
    tls: Arc<ClientConfig>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Answers> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(connect(api, tls.clone()).await?);
    }
    let workloads = pods.div_ceil(PODS_OF_A_WORKLOAD);
    let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut asked = tokio::task::JoinSet::new();
    for n in 0.. {
        tick.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // Coprime steps, so that every metric meets every window and workloads far apart.
        let (namespace, workload) = place(n * 7919 % workloads * PODS_OF_A_WORKLOAD);
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}?labelSelector=app%3D{workload}%2C\
             ebpfscaler.io%2Fwindow%3D{}",
            METRICS[n % METRICS.len()],
            WINDOWS[n % WINDOWS.len()],
        );
        let sender = connections[n % CONNECTIONS].clone();
        asked.spawn(async move { one(sender, &path).await });
    }
    let mut answers = Answers::default();
    while let Some(answered) = asked.join_next().await {
        let (took, status) = answered??;
        answers.latencies.push(took);
        answers.incomplete += usize::from(status == 503);
    }
    answers.latencies.sort_unstable();
    Ok(answers)
}

async fn one(mut sender: SendRequest<Empty<Bytes>>, path: &str) -> anyhow::Result<(Duration, u16)> {
    let request = http::Request::builder()
        .uri(format!("https://{NAME}{path}"))
        .header("x-remote-user", "system:serviceaccount:kube-system:hpa")
        .header("x-remote-group", "system:serviceaccounts")
        .body(Empty::new())?;
    let began = Instant::now();
    let response = sender.send_request(request).await.context("a query")?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&body);
    let expected = status == 200 || (status == 503 && text.contains("MissingPods"));
    ensure!(expected, "{path} was answered with {status}: {text}");
    Ok((took, status))
}

/// HTTP/2 over TLS; `B` is what requests have for a body.
pub async fn connect<B>(api: SocketAddr, tls: Arc<ClientConfig>) -> anyhow::Result<SendRequest<B>>
where
    B: hyper::body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = tokio::net::TcpStream::connect(api).await?;
    stream.set_nodelay(true)?;
    let connector = tokio_rustls::TlsConnector::from(tls);
    let stream = connector
        .connect(ServerName::try_from(NAME)?, stream)
        .await?;
    let io = TokioIo::new(stream);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    Ok(sender)
}
