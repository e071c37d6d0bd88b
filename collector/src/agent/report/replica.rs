//! One replica: connects, sends the snapshot, then every batch; reconnects for ever with backoff. Never
//! keeps more than the shared queue of batches.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_scaler_proto::collector_client::CollectorClient;
use ebpf_scaler_proto::{Hello, ReportRequest, Want};
use prost::Message;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::credentials::{self, Credentials};
use super::{Options, Wanted};
use crate::agent::metrics::ReportMetrics;
use crate::agent::sample;
use crate::agent::store::{Snapshot, Store};

/// More pods than a node has; a wrong replica must not fill our memory.
const MAX_DIVISIONS: usize = 1024;
const CONNECT: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_LAST: Duration = Duration::from_secs(10);
/// A stream that lived so long was good: the next failure starts with the shortest wait.
const GOOD: Duration = Duration::from_secs(30);
/// A new CA bundle renews the streams within so long, not all at once.
const CA_SPREAD: Duration = Duration::from_secs(5);
/// After the shutdown began: the last batch is on its way within this.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    #[error("can not connect: {}", chain(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    #[error("the replica ended the stream")]
    Closed,
    #[error("renewing the credentials")]
    Renew,
}

impl Ended {
    fn label(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "credentials",
            Self::Connect(_) => "connect",
            Self::Refused(_) => "refused",
            Self::Closed => "closed",
            Self::Renew => "renew",
        }
    }
}

/// The outermost message of a transport error says only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

/// One replica and all that a stream to it needs.
pub struct Replica {
    pub(super) address: SocketAddr,
    pub(super) options: Options,
    pub(super) credentials: Credentials,
    pub(super) store: Store,
    pub(super) metrics: ReportMetrics,
    pub(super) wanted: mpsc::Sender<Wanted>,
    pub(super) ca_version: watch::Receiver<Option<u64>>,
}

impl Replica {
    /// Streams until `shutdown`, or until the task is ended because the replica is gone.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut wait = BACKOFF_FIRST;
        let mut last_error = String::new();
        while !shutdown.is_cancelled() {
            let start = Instant::now();
            let stream = self.stream(&shutdown);
            let ended = tokio::select! {
                ended = stream => ended,
                () = async { shutdown.cancelled().await; tokio::time::sleep(FAREWELL).await } => return,
            };
            let Err(ended) = ended else {
                return;
            };
            self.metrics
                .disconnects
                .get_or_create(&ended.label().into())
                .inc();
            if matches!(ended, Ended::Renew) {
                tracing::debug!(replica = %self.address, "renewing the stream");
                continue;
            }
            if start.elapsed() >= GOOD {
                wait = BACKOFF_FIRST;
                last_error.clear();
            }
            // A replica that is down says the same thing for long.
            let error = ended.to_string();
            if error == last_error {
                tracing::debug!(replica = %self.address, %error, "not reporting");
            } else {
                tracing::warn!(replica = %self.address, %error, "not reporting");
                last_error = error;
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(wait)) => {}
                () = shutdown.cancelled() => return,
            }
            wait = (wait * 2).min(BACKOFF_LAST);
        }
    }

    /// One stream, from connecting to its end; `Ok` after a shutdown.
    async fn stream(&mut self, shutdown: &CancellationToken) -> Result<(), Ended> {
        self.ca_version.mark_unchanged();
        let token = self.credentials.token()?;
        let channel = self.connect().await?;
        let (messages, outgoing) = mpsc::channel(2);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert("authorization", token.header);
        // The server may answer only after the first message: both must go on at once.
        let feeder = AbortOnDropHandle::new(tokio::spawn(feed(
            self.store.clone(),
            self.hello(),
            messages,
            self.metrics.clone(),
            shutdown.clone(),
        )));
        let mut client = CollectorClient::new(channel);
        let refused = |status| Ended::Refused(Box::new(status));
        let mut wants = client.report(request).await.map_err(refused)?.into_inner();
        tracing::info!(replica = %self.address, "reporting");
        let _connected = Connected::new(&self.metrics);
        let renew = tokio::time::sleep(jittered_down(token.renew_after));
        let new_ca = async {
            match self.ca_version.changed().await {
                Ok(()) => tokio::time::sleep(jittered(CA_SPREAD)).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::pin!(renew, new_ca, feeder);
        loop {
            tokio::select! {
                want = wants.message() => match want.map_err(refused)? {
                    Some(want) => want_of(self.address, &self.wanted, &want),
                    None => return Err(Ended::Closed),
                },
                _ = &mut feeder => {
                    return if shutdown.is_cancelled() { Ok(()) } else { Err(Ended::Closed) };
                }
                () = &mut renew => return Err(Ended::Renew),
                () = &mut new_ca => return Err(Ended::Renew),
            }
        }
    }

    async fn connect(&self) -> Result<Channel, Ended> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(self.credentials.ca()?)
            .domain_name(&self.options.server_name)
            .timeout(CONNECT);
        // The address says where, the server name says who: the certificate is checked against the latter.
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))?
            .tls_config(tls)?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .user_agent(concat!("ebpf-scaler-agent/", env!("CARGO_PKG_VERSION")))?;
        Ok(endpoint.connect().await?)
    }

    fn hello(&self) -> Hello {
        Hello {
            node: self.options.node.clone(),
            agent_epoch: self.options.agent_epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            degraded: Vec::new(),
        }
    }
}

fn want_of(replica: SocketAddr, wanted: &mpsc::Sender<Wanted>, want: &Want) {
    let wanted = wanted.try_send(Wanted {
        replica,
        families: want
            .families
            .iter()
            .copied()
            .filter_map(sample::wanted)
            .collect(),
        divide: want
            .divide
            .iter()
            .map(sample::division)
            .take(MAX_DIVISIONS)
            .collect(),
        tls_pods: want.tls_pods.clone(),
        ttl: Duration::from_secs(want.ttl_seconds.into()),
    });
    if wanted.is_err() {
        // It is repeated long before it lapses.
        tracing::debug!(%replica, "dropped a demand");
    }
}

/// Sends the snapshot and then each batch as it comes; ends when nobody listens, or after the last batch.
async fn feed(
    store: Store,
    hello: Hello,
    messages: mpsc::Sender<ReportRequest>,
    metrics: ReportMetrics,
    shutdown: CancellationToken,
) {
    let (snapshot, mut batches) = store.subscribe();
    if !send_all(snapshot, &hello, &messages, &metrics).await {
        return;
    }
    loop {
        let batch = tokio::select! {
            biased;
            batch = batches.recv() => batch,
            () = shutdown.cancelled() => last(&mut batches).await,
        };
        let sent = match batch {
            Ok(batch) => {
                let mut message = (*batch).clone();
                // What is degraded has changed: the batch says what, and this says who.
                message.hello = message.hello.map(|news| Hello {
                    degraded: news.degraded,
                    ..hello.clone()
                });
                send(message, &messages, &metrics).await
            }
            Err(RecvError::Lagged(skipped)) => {
                // Totals are cumulative, so what was skipped is in the current ones.
                metrics.batches_dropped.inc_by(skipped);
                let current = store.current(&mut batches);
                send_all(current, &hello, &messages, &metrics).await
            }
            Err(RecvError::Closed) => false,
        };
        if !sent {
            return;
        }
    }
}

/// The batches that the sampling loop still publishes while it ends.
async fn last(
    batches: &mut broadcast::Receiver<Arc<ReportRequest>>,
) -> Result<Arc<ReportRequest>, RecvError> {
    tokio::time::timeout(FAREWELL / 2, batches.recv())
        .await
        .unwrap_or(Err(RecvError::Closed))
}

async fn send_all(
    mut snapshot: Snapshot,
    hello: &Hello,
    messages: &mpsc::Sender<ReportRequest>,
    metrics: &ReportMetrics,
) -> bool {
    let mut hello = Some(Hello {
        degraded: std::mem::take(&mut snapshot.degraded),
        ..hello.clone()
    });
    for mut message in snapshot {
        message.hello = hello.take();
        if !send(message, messages, metrics).await {
            return false;
        }
    }
    true
}

async fn send(
    message: ReportRequest,
    messages: &mpsc::Sender<ReportRequest>,
    metrics: &ReportMetrics,
) -> bool {
    let (bytes, samples) = (message.encoded_len(), message.samples.len());
    let sent = messages.send(message).await.is_ok();
    if sent {
        metrics.batches_sent.inc();
        metrics.samples_sent.inc_by(samples as u64);
        metrics.bytes_sent.inc_by(bytes as u64);
    }
    sent
}

/// Counts a stream as connected for as long as it exists.
struct Connected(ReportMetrics);

impl Connected {
    fn new(metrics: &ReportMetrics) -> Self {
        metrics.connected.inc();
        Self(metrics.clone())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connected.dec();
    }
}

/// Between half of a wait and all of it: agents that lost the same replica do not come back together.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + random() / 2.0)
}

/// Up to a tenth earlier, never later.
fn jittered_down(wait: Duration) -> Duration {
    wait.mul_f64(1.0 - random() / 10.0)
}

/// From 0 to 1. The standard library seeds each `RandomState` from the system's randomness.
fn random() -> f64 {
    let bits = RandomState::new().hash_one(Instant::now());
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_bounds() {
        let wait = Duration::from_secs(10);
        for _ in 0..1000 {
            assert!((wait / 2..=wait).contains(&jittered(wait)));
            assert!((wait * 9 / 10..=wait).contains(&jittered_down(wait)));
        }
    }
}
