//! The real server on loopback before a fake cluster, with real TLS, HTTP and gRPC clients.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, StatusCode};
use clap::Parser;
use ebpf_scaler_collector::apiserver::{Args, Running, start};
use ebpf_scaler_proto as proto;
use ebpf_scaler_proto::collector_client::CollectorClient;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Status, Streaming};

use super::cluster::Cluster;
use super::pki::{Ca, Leaf};

#[derive(Parser)]
// What a test says comes last.
#[command(args_override_self = true)]
struct Flags {
    #[command(flatten)]
    args: Args,
}

const BASE: [&str; 6] = [
    "apiserver",
    "--address=127.0.0.1:0",
    "--report-address=127.0.0.1:0",
    "--admin-address=127.0.0.1:0",
    "--shutdown-delay=1500ms",
    "--agents-timeout=300ms",
];

pub struct World {
    pub cluster: Cluster,
    pub serving_ca: Arc<Ca>,
    pub proxy_ca: Arc<Ca>,
    pub client_ca: Arc<Ca>,
    pub running: Running,
    pub shutdown: CancellationToken,
}

/// What a request brings along.
#[derive(Default, Clone)]
pub struct Identity {
    pub certificate: Option<Leaf>,
    pub headers: Vec<(&'static str, String)>,
}

impl Identity {
    pub fn token(token: &str) -> Self {
        Self {
            headers: vec![("authorization", format!("Bearer {token}"))],
            ..Self::default()
        }
    }

    pub fn with(mut self, header: &'static str, value: &str) -> Self {
        self.headers.push((header, value.to_owned()));
        self
    }
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub body: Value,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}, &[]).await
    }

    /// `prepare` fills the cluster before the server starts.
    pub async fn with(prepare: impl FnOnce(&Cluster), flags: &[&str]) -> Self {
        let cluster = Cluster::new();
        let (serving_ca, proxy_ca, client_ca) = (
            Ca::new("ebpf-scaler"),
            Ca::new("front-proxy"),
            Ca::new("kubernetes"),
        );
        serve_with(&cluster, &serving_ca);
        trust(&cluster, &proxy_ca, &client_ca);
        cluster.apply(
            "ReplicaSet",
            json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": "web-5f7", "namespace": "shop", "uid": "uid-rs", "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "uid-d", "controller": true,
                }]},
            }),
        );
        prepare(&cluster);
        let cas = [serving_ca, proxy_ca, client_ca].map(Arc::new);
        Self::start(cluster, cas, flags).await
    }

    /// Another replica before the same cluster.
    pub async fn beside(&self) -> Self {
        self.beside_with(&[]).await
    }

    /// The same with flags.
    pub async fn beside_with(&self, flags: &[&str]) -> Self {
        let cas = [&self.serving_ca, &self.proxy_ca, &self.client_ca].map(Arc::clone);
        Self::start(self.cluster.clone(), cas, flags).await
    }

    /// What a server that does not start says of its flags.
    pub async fn try_flags(flags: &[&str]) -> String {
        let flags = Flags::parse_from(BASE.iter().chain(flags));
        let client = Cluster::new().client().await;
        let started = start(flags.args, client, CancellationToken::new()).await;
        started.err().map_or_else(String::new, |e| e.to_string())
    }

    async fn start(cluster: Cluster, cas: [Arc<Ca>; 3], flags: &[&str]) -> Self {
        let world = Self::starting(cluster, cas, flags).await;
        eventually("ready", || async { world.running.readiness.is_ready() }).await;
        world
    }

    /// A replica that is not ready yet.
    pub async fn starting(cluster: Cluster, cas: [Arc<Ca>; 3], flags: &[&str]) -> Self {
        let [serving_ca, proxy_ca, client_ca] = cas;
        let flags = Flags::parse_from(BASE.iter().chain(flags));
        let shutdown = CancellationToken::new();
        let client = cluster.client().await;
        let running = start(flags.args, client, shutdown.clone()).await.unwrap();
        Self {
            cluster,
            serving_ca,
            proxy_ca,
            client_ca,
            running,
            shutdown,
        }
    }

    /// The front proxy, speaking for somebody.
    pub fn proxy(&self, user: &str) -> Identity {
        Identity {
            certificate: Some(self.proxy_ca.client("front-proxy-client", "")),
            headers: vec![("x-remote-user", user.to_owned())],
        }
    }

    pub async fn get(&self, identity: &Identity, path: &str) -> Reply {
        self.request("GET", identity, path).await.unwrap()
    }

    pub async fn request(
        &self,
        method: &str,
        identity: &Identity,
        path: &str,
    ) -> Result<Reply, Box<dyn std::error::Error>> {
        let (parts, body) = self.exchange(method, identity, path).await?;
        Ok(Reply {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        })
    }

    /// What is served until it ends, as text.
    pub async fn text(&self, identity: &Identity, path: &str) -> String {
        let (parts, body) = self.exchange("GET", identity, path).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(parts.status, StatusCode::OK, "{text}");
        text
    }

    async fn exchange(
        &self,
        method: &str,
        identity: &Identity,
        path: &str,
    ) -> Result<(http::response::Parts, Bytes), Box<dyn std::error::Error>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(
            self.serving_ca.pem.as_bytes(),
        )?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &identity.certificate {
            Some(leaf) => config.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes())?],
                PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())?,
            )?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(self.running.api).await?;
        let name = ServerName::try_from("ebpf-scaler-apiserver.ebpf-scaler.svc")?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"));
        for (name, value) in &identity.headers {
            request = request.header(*name, value);
        }
        let response = sender
            .send_request(request.body(Full::<Bytes>::default())?)
            .await?;
        let (parts, body) = response.into_parts();
        Ok((parts, body.collect().await?.to_bytes()))
    }

    /// A line of /metrics, by all that stands before the value.
    pub async fn own_metric(&self, name: &str) -> Option<String> {
        let stream = tokio::net::TcpStream::connect(self.running.admin)
            .await
            .unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::get("/metrics").header("host", "localhost");
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(str::to_owned)
    }

    /// The client that Rust programs use, for a user with a token.
    pub fn client(&self, user: &str) -> kube::Client {
        self.cluster.token(user, &[], json!({"username": user}));
        let uri = format!("https://{}", self.running.api);
        let mut config = kube::Config::new(uri.parse().unwrap());
        let ca = CertificateDer::from_pem_slice(self.serving_ca.pem.as_bytes()).unwrap();
        config.root_cert = Some(vec![ca.to_vec()]);
        config.tls_server_name = Some("ebpf-scaler-apiserver.ebpf-scaler.svc".into());
        config.auth_info.token = Some(user.to_owned().into());
        kube::Client::try_from(config).unwrap()
    }

    /// Asks for a metric of namespace shop as a user who may.
    pub async fn metric(&self, metric: &str, selector: &str) -> Reply {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/{metric}?labelSelector={selector}"
        );
        self.get(&self.proxy("hpa"), &path).await
    }

    pub async fn grpc(&self) -> CollectorClient<Channel> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.serving_ca.pem))
            .domain_name("ebpf-scaler-report.ebpf-scaler.svc");
        let uri = format!("https://{}", self.running.report);
        let channel = Endpoint::from_shared(uri).unwrap().tls_config(tls).unwrap();
        CollectorClient::new(channel.connect().await.unwrap())
    }

    /// Connects as the agent of a node.
    pub async fn agent(&self, node: &str) -> Agent {
        let token = format!("agent-of-{node}");
        self.cluster.agent_token(&token, node);
        Agent::connect(self, &token, node, 1).await.unwrap()
    }
}

pub fn serve_with(cluster: &Cluster, ca: &Ca) {
    let leaf = ca.server(&[
        "localhost",
        "ebpf-scaler-apiserver.ebpf-scaler.svc",
        "ebpf-scaler-report.ebpf-scaler.svc",
    ]);
    let encode = |text: &str| {
        let bytes = k8s_openapi::ByteString(text.as_bytes().to_vec());
        serde_json::to_value(bytes).unwrap()
    };
    cluster.apply(
        "Secret",
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "ebpf-scaler-apiserver-tls", "namespace": "ebpf-scaler"},
            "data": {"tls.crt": encode(&leaf.cert), "tls.key": encode(&leaf.key)},
        }),
    );
}

pub fn trust(cluster: &Cluster, proxy_ca: &Ca, client_ca: &Ca) {
    trust_bundles(cluster, &proxy_ca.pem, &client_ca.pem);
}

pub fn trust_bundles(cluster: &Cluster, proxy: &str, client: &str) {
    cluster.apply(
        "ConfigMap",
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": {
                "client-ca-file": client,
                "requestheader-client-ca-file": proxy,
                "requestheader-username-headers": "[\"X-Remote-User\"]",
                "requestheader-group-headers": "[\"X-Remote-Group\"]",
                "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
                "requestheader-allowed-names": "[\"front-proxy-client\"]",
            },
        }),
    );
}

/// An agent that reports what it is told to.
pub struct Agent {
    pub sender: mpsc::Sender<proto::ReportRequest>,
    pub wants: Streaming<proto::Want>,
    pub at: u64,
    families: Vec<i32>,
}

/// Time between an agent's readings, microseconds.
pub const TICK: u64 = 250_000;

impl Agent {
    pub async fn connect(
        world: &World,
        token: &str,
        node: &str,
        epoch: u64,
    ) -> Result<Self, Status> {
        let (sender, outbound) = mpsc::channel(64);
        let hello = proto::ReportRequest {
            hello: Some(proto::Hello {
                node: node.into(),
                agent_epoch: epoch,
                ..proto::Hello::default()
            }),
            ..proto::ReportRequest::default()
        };
        sender.send(hello).await.unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(outbound));
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        let wants = world.grpc().await.report(request).await?.into_inner();
        let families = vec![
            proto::Family::Requests.into(),
            proto::Family::Network.into(),
        ];
        Ok(Self {
            sender,
            wants,
            at: 1_000_000_000,
            families,
        })
    }

    /// Also measures the run queue from now on.
    pub fn with_run_queue(mut self) -> Self {
        self.families.push(proto::Family::Runqueue.into());
        self
    }

    /// Also counts requests inside TLS from now on.
    pub fn with_tls(mut self) -> Self {
        self.families.push(proto::Family::Tls.into());
        self
    }

    /// The next demand that `picks`.
    pub async fn wanted(&mut self, picks: impl Fn(&proto::Want) -> bool) -> proto::Want {
        let found = async {
            loop {
                let want = self.wants.message().await.unwrap().unwrap();
                if picks(&want) {
                    return want;
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(10), found).await;
        found.expect("a demand within 10 s")
    }

    /// Sends one reading: each pod's requests so far.
    pub async fn report(&mut self, pods: &[(&str, u64)]) {
        let samples = pods
            .iter()
            .map(|(pod, requests)| sample(pod, *requests))
            .collect();
        self.send(samples).await;
    }

    pub async fn send(&mut self, samples: Vec<proto::PodSample>) {
        self.at += TICK;
        let report = proto::ReportRequest {
            monotonic_micros: self.at,
            samples,
            families: self.families.clone(),
            ..proto::ReportRequest::default()
        };
        self.sender.send(report).await.unwrap();
    }

    /// Says again and again what it said last, so that it stays live while its clock stands still.
    pub fn stay(&self) {
        let report = proto::ReportRequest {
            monotonic_micros: self.at,
            families: self.families.clone(),
            ..proto::ReportRequest::default()
        };
        let sender = self.sender.clone();
        tokio::spawn(async move {
            while sender.send(report.clone()).await.is_ok() {
                tokio::time::sleep(Duration::from_micros(TICK)).await;
            }
        });
    }

    /// Ten seconds of a steady rate a tick on each pod, in no time: its clock is its own.
    pub async fn steady(&mut self, pods: &[&str], rate: u64) {
        for tick in 0..=40 {
            let pods: Vec<_> = pods.iter().map(|p| (*p, tick * rate)).collect();
            self.report(&pods).await;
        }
    }
}

pub fn sample(pod: &str, requests: u64) -> proto::PodSample {
    proto::PodSample {
        pod_uid: format!("uid-{pod}"),
        epoch: 1,
        counters: Some(proto::Counters {
            requests,
            responses_2xx: requests,
            ..proto::Counters::default()
        }),
        request_latency: Some(proto::Histogram {
            index: vec![ebpf_scaler_common::histogram::index(1000) as u32],
            count: vec![requests],
        }),
        ..proto::PodSample::default()
    }
}

/// Waits until something holds, at most five seconds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl FnMut() -> F) {
    eventually_within(Duration::from_secs(5), what, holds).await;
}

/// Waits until something holds.
pub async fn eventually_within<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> F,
) {
    let began = std::time::Instant::now();
    while began.elapsed() < limit {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}
