//! The other end of an agent's stream: takes reports as an API server replica does, keeps each pod's newest
//! counters and nothing else.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ebpf_scaler_proto::collector_server::{Collector, CollectorServer};
use ebpf_scaler_proto::{Counters, Family, ReportRequest, Want, WatchRequest, WatchResponse};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// The name in the certificate.
pub const NAME: &str = "sink.bench";
/// How long a demand lasts: longer than any bench.
const DEMAND_SECONDS: u32 = 86_400;

/// Newest counters by pod UID and epoch.
type Pods = HashMap<(String, u64), Counters>;

/// A replica on loopback.
pub struct Sink {
    /// Where agents report.
    pub address: SocketAddr,
    /// The certificate of the CA that agents are to believe.
    pub ca_file: PathBuf,
    /// A token to present; nobody looks at it.
    pub token_file: PathBuf,
    pods: Arc<Mutex<Pods>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Sink {
    /// Serves in this thread's network namespace, asking agents for these families beside what they measure anyway.
    pub fn start(directory: &Path, families: &[Family]) -> anyhow::Result<Sink> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &ca)?;
        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        let (ca_file, token_file) = (directory.join("ca.crt"), directory.join("token"));
        std::fs::write(&ca_file, ca.pem())?;
        std::fs::write(&token_file, "bench")?;

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let pods = Arc::new(Mutex::new(Pods::new()));
        let replica = Replica {
            pods: Arc::clone(&pods),
            families: families.iter().map(|&family| family.into()).collect(),
        };
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))?
            .add_service(CollectorServer::new(replica))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(server);
        Ok(Sink {
            address,
            ca_file,
            token_file,
            pods,
            runtime: Some(runtime),
        })
    }

    /// Requests of every pod, over all its epochs.
    pub fn all_requests(&self) -> u64 {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.values().map(|counters| counters.requests).sum()
    }

    /// Pods that were ever reported.
    pub fn pods(&self) -> usize {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.len()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Replica {
    pods: Arc<Mutex<Pods>>,
    families: Vec<i32>,
}

#[tonic::async_trait]
impl Collector for Replica {
    type ReportStream = ReceiverStream<Result<Want, Status>>;
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let want = Want {
            divide: Vec::new(),
            families: self.families.clone(),
            ttl_seconds: DEMAND_SECONDS,
            tls_pods: Vec::new(),
        };
        let _ = sender.try_send(Ok(want));
        let pods = Arc::clone(&self.pods);
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            // The stream down is open as long as the one up.
            let _open = sender;
            while let Ok(Some(message)) = incoming.message().await {
                // What a replay brings is older than what is there.
                if !message.replay {
                    keep(
                        &mut pods.lock().unwrap_or_else(PoisonError::into_inner),
                        message,
                    );
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn watch(
        &self,
        _: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("the bench's sink answers nobody"))
    }
}

fn keep(pods: &mut Pods, message: ReportRequest) {
    for sample in message.samples {
        if let Some(counters) = sample.counters {
            pods.insert((sample.pod_uid, sample.epoch), counters);
        }
    }
}
