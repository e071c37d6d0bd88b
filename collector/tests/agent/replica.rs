//! A replica of the API server role: keeps what agents send it, can be stalled and killed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebpf_scaler_proto::collector_server::{Collector, CollectorServer};
use ebpf_scaler_proto::{ReportRequest, Want, WatchRequest, WatchResponse};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::NAME;

/// A CA and what it signs.
pub struct Ca(pub CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn identity(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }
}

/// One stream as the replica saw it.
#[derive(Default)]
pub struct Stream {
    pub token: String,
    pub messages: Vec<ReportRequest>,
}

impl Stream {
    /// The newest count of a pod among the messages that are not history.
    pub fn requests(&self, uid: &str) -> Option<u64> {
        let live = self.messages.iter().filter(|m| !m.replay);
        let mut samples = live.flat_map(|m| &m.samples).filter(|s| s.pod_uid == uid);
        Some(samples.next_back()?.counters?.requests)
    }
}

#[derive(Clone, Default)]
pub struct Replica {
    streams: Arc<Mutex<Vec<Stream>>>,
    pub want: Arc<Mutex<Option<Want>>>,
    pub stalled: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl Collector for Replica {
    type ReportStream = ReceiverStream<Result<Want, Status>>;
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let token = request
            .metadata()
            .get("authorization")
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let index = {
            let mut streams = self.streams.lock().unwrap();
            streams.push(Stream {
                token,
                messages: Vec::new(),
            });
            streams.len() - 1
        };
        let (sender, receiver) = mpsc::channel(1);
        if let Some(want) = self.want.lock().unwrap().clone() {
            sender.try_send(Ok(want)).unwrap();
        }
        let replica = self.clone();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            let _open = sender;
            loop {
                while replica.stalled.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let Ok(Some(message)) = incoming.message().await else {
                    return;
                };
                replica.streams.lock().unwrap()[index]
                    .messages
                    .push(message);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn watch(
        &self,
        _: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

impl Replica {
    /// Serves on `address` until the token is cancelled; connections end at once, as a killed pod's do.
    pub async fn serve(&self, address: SocketAddr, ca: &Ca) -> (SocketAddr, CancellationToken) {
        let listener = loop {
            match tokio::net::TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let kill = CancellationToken::new();
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(ca.identity()))
            .unwrap()
            .add_service(CollectorServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        // A runtime of its own takes its connections with it when it ends.
        let killed = kill.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                tokio::select! {
                    result = server => result.unwrap(),
                    () = killed.cancelled() => {}
                }
            });
            runtime.shutdown_background();
        });
        (address, kill)
    }

    pub fn streams(&self) -> usize {
        self.streams.lock().unwrap().len()
    }

    pub fn last<T>(&self, look: impl FnOnce(&Stream) -> T) -> T {
        let streams = self.streams.lock().unwrap();
        look(streams.last().expect("a stream"))
    }
}
