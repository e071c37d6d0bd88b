//! One Watch subscription to every replica of the collector: resolves them, keeps the streams, and
//! passes answers on. Never judges an answer (see `answers`).

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ebpf_scaler_proto::{Answer, Subscription, WatchRequest, collector_client::CollectorClient};
use hickory_resolver::TokioResolver;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tracing::{debug, info, warn};

use crate::{args::CollectorArgs, metrics::Metrics, translate::Query};

const CONNECT: Duration = Duration::from_secs(2);
/// A stream that says nothing for so long is dead: an answer comes at least once a second for each
/// subscription, and keep-alives besides.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const BACKOFF: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// Subscriptions in one message.
const CHUNK: usize = 500;

/// What a stream tells.
#[derive(Debug)]
pub enum Told {
    /// Answers of a replica.
    Answers(SocketAddr, Vec<Answer>),
    /// Its stream is up or down.
    Connected(SocketAddr, bool),
}

/// What is asked for, by id.
pub type Wanted = Arc<BTreeMap<String, Query>>;

/// Everything that a stream needs.
pub struct Streams {
    /// Addresses, names and files.
    pub args: CollectorArgs,
    /// The bundle that verifies the collector.
    pub bundle: watch::Receiver<Option<String>>,
    /// What is asked for.
    pub wanted: watch::Receiver<Wanted>,
    /// Where answers go.
    pub out: mpsc::Sender<Told>,
    /// Where to count.
    pub metrics: Arc<Metrics>,
}

impl Streams {
    /// Keeps a stream to every replica until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let mut running: HashMap<SocketAddr, CancellationToken> = HashMap::new();
        let mut resolver = None;
        loop {
            match this.addresses(&mut resolver).await {
                Ok(found) => {
                    running.retain(|address, token| {
                        let keep = found.contains(address) && !token.is_cancelled();
                        if !keep {
                            token.cancel();
                        }
                        keep
                    });
                    for address in found {
                        running.entry(address).or_insert_with(|| {
                            let token = stop.child_token();
                            tokio::spawn(this.clone().keep(address, token.clone()));
                            token
                        });
                    }
                }
                Err(error) => debug!(%error, "cannot resolve the collector's service"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(this.args.collector_resolve_period) => {}
            }
        }
    }

    async fn addresses(
        &self,
        resolver: &mut Option<TokioResolver>,
    ) -> Result<Vec<SocketAddr>, String> {
        if !self.args.collector_addresses.is_empty() {
            return Ok(self.args.collector_addresses.clone());
        }
        if resolver.is_none() {
            let mut builder = TokioResolver::builder_tokio().map_err(|e| e.to_string())?;
            // Replicas come and go: a cached answer is a stale one.
            builder.options_mut().cache_size = 0;
            *resolver = Some(builder.build().map_err(|e| e.to_string())?);
        }
        let Some(resolver) = resolver else {
            return Ok(Vec::new());
        };
        let found = resolver
            .lookup_ip(self.args.collector_service.as_str())
            .await
            .map_err(|e| e.to_string())?;
        let port = self.args.collector_port;
        Ok(found.iter().map(|ip: IpAddr| (ip, port).into()).collect())
    }

    /// Keeps the stream to one replica.
    async fn keep(self: Arc<Self>, address: SocketAddr, stop: CancellationToken) {
        let mut failures = 0usize;
        while !stop.is_cancelled() {
            let mut was_up = false;
            let ended = tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = self.one(address, &mut was_up) => ended,
            };
            if was_up {
                failures = 0;
                self.metrics.streams.dec();
                let _ = self.out.send(Told::Connected(address, false)).await;
            }
            if stop.is_cancelled() {
                return;
            }
            self.metrics.stream_errors.inc();
            let wait = BACKOFF[failures.min(BACKOFF.len() - 1)];
            match ended {
                Ok(()) => info!(%address, "the collector closed the stream"),
                Err(error) => {
                    // The first failure is news; a replica that is away for long is not.
                    if failures < 2 {
                        warn!(%address, error, "no stream to this replica of the collector");
                    }
                }
            }
            failures += 1;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<Channel, String> {
        let bundle = self.bundle.borrow().clone();
        let bundle = bundle.ok_or("no CA bundle yet")?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(bundle))
            .domain_name(self.args.collector_server_name.clone());
        let endpoint = Endpoint::from_shared(format!("https://{address}"))
            .map_err(|e| e.to_string())?
            .tls_config(tls)
            .map_err(|e| e.to_string())?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        endpoint.connect().await.map_err(|e| causes(&e))
    }

    /// One stream, from connecting to its end.
    async fn one(&self, address: SocketAddr, was_up: &mut bool) -> Result<(), String> {
        let file = &self.args.collector_token_file;
        let token = tokio::fs::read_to_string(file)
            .await
            .map_err(|e| format!("cannot read the token {}: {e}", file.display()))?;
        let bearer = MetadataValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|e| e.to_string())?;
        let channel = self.connect(address).await?;
        let mut client = CollectorClient::new(channel).max_decoding_message_size(64 << 20);

        let (requests, outbound) = mpsc::channel::<WatchRequest>(8);
        let mut wanted = self.wanted.clone();
        let first = wanted.borrow_and_update().clone();
        let mut sent: Wanted = Arc::default();
        // The server answers the call itself only after it has seen a message.
        let greeting = difference(&sent, &first);
        sent = first;
        let feed = async {
            for message in greeting {
                if requests.send(message).await.is_err() {
                    return;
                }
            }
            while wanted.changed().await.is_ok() {
                let now = wanted.borrow_and_update().clone();
                for message in difference(&sent, &now) {
                    if requests.send(message).await.is_err() {
                        return;
                    }
                }
                sent = now;
            }
        };
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(outbound));
        request.metadata_mut().insert("authorization", bearer);
        let read = async {
            let response = tokio::time::timeout(CONNECT, client.watch(request))
                .await
                .map_err(|_| "the collector does not answer".to_owned())?
                .map_err(|e| e.message().to_owned())?;
            let mut answers = response.into_inner();
            *was_up = true;
            self.metrics.streams.inc();
            info!(%address, "stream to this replica of the collector is up");
            let _ = self.out.send(Told::Connected(address, true)).await;
            while let Some(message) = answers
                .message()
                .await
                .map_err(|e| e.message().to_owned())?
            {
                self.metrics.answers.inc_by(message.answers.len() as u64);
                let told = Told::Answers(address, message.answers);
                if self.out.send(told).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        tokio::select! {
            () = feed => Ok(()),
            ended = read => ended,
        }
    }
}

/// An error with the errors behind it: tonic's own text is only "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}

/// The messages that bring a stream from one set of subscriptions to another.
fn difference(old: &BTreeMap<String, Query>, new: &BTreeMap<String, Query>) -> Vec<WatchRequest> {
    let gone: Vec<String> = old
        .keys()
        .filter(|id| !new.contains_key(*id))
        .cloned()
        .collect();
    let added: Vec<Subscription> = new
        .iter()
        .filter(|(id, _)| !old.contains_key(*id))
        .map(|(id, q)| Subscription {
            id: id.clone(),
            namespace: q.namespace.clone(),
            metric: q.metric.clone(),
            selector: q.selector.clone(),
            window_seconds: q.windows.clone(),
            tls: q.tls,
        })
        .collect();
    let mut messages: Vec<WatchRequest> = added
        .chunks(CHUNK)
        .map(|c| WatchRequest {
            subscribe: c.to_vec(),
            unsubscribe: Vec::new(),
        })
        .collect();
    match messages.first_mut() {
        Some(first) => first.unsubscribe = gone,
        None => messages.push(WatchRequest {
            subscribe: Vec::new(),
            unsubscribe: gone,
        }),
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(metric: &str) -> (String, Query) {
        let q = Query {
            namespace: "shop".into(),
            metric: metric.into(),
            selector: "app=web".into(),
            windows: vec![30, 3],
            tls: false,
        };
        (q.id(), q)
    }

    #[test]
    fn only_what_changed_is_sent_and_large_sets_in_parts() {
        let old: BTreeMap<_, _> = [query("a"), query("b")].into();
        let new: BTreeMap<_, _> = [query("b"), query("c")].into();
        let messages = difference(&old, &new);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].unsubscribe, [query("a").0]);
        assert_eq!(messages[0].subscribe.len(), 1);
        assert_eq!(messages[0].subscribe[0].metric, "c");
        let many: BTreeMap<_, _> = (0..1200).map(|i| query(&format!("m{i}"))).collect();
        let sizes: Vec<usize> = difference(&BTreeMap::new(), &many)
            .iter()
            .map(|m| m.subscribe.len())
            .collect();
        assert_eq!(sizes, [500, 500, 200]);
    }
}
