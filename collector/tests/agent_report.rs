//! The agent's streams against real gRPC servers over TLS: snapshots, reconnects, several replicas, rotated
//! credentials, slow replicas, demand.

mod agent_support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_support::FakeKernel;
use ebpf_scaler_collector::agent::cgroup::Kubepods;
use ebpf_scaler_collector::agent::probes::Family;
use ebpf_scaler_collector::agent::report::{self, Wanted};
use ebpf_scaler_collector::agent::sampler::{self, Sampler};
use ebpf_scaler_collector::agent::store::Store;
use ebpf_scaler_collector::agent::{metrics, store};
use ebpf_scaler_proto::collector_server::{Collector, CollectorServer};
use ebpf_scaler_proto::{
    self as proto, PodSample, ReportRequest, Want, WatchRequest, WatchResponse,
};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

const NAME: &str = "ebpf-scaler-report.ebpf-scaler.svc";
const PATIENCE: Duration = Duration::from_secs(20);

/// A CA and what it signs.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn identity(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }
}

/// One stream as the replica saw it.
#[derive(Default)]
struct Stream {
    token: String,
    messages: Vec<ReportRequest>,
}

impl Stream {
    /// The newest count of a pod among the messages that are not history.
    fn requests(&self, uid: &str) -> Option<u64> {
        let live = self.messages.iter().filter(|m| !m.replay);
        let mut samples = live.flat_map(|m| &m.samples).filter(|s| s.pod_uid == uid);
        Some(samples.next_back()?.counters?.requests)
    }
}

#[derive(Clone, Default)]
struct Replica {
    streams: Arc<Mutex<Vec<Stream>>>,
    want: Arc<Mutex<Option<Want>>>,
    stalled: Arc<AtomicBool>,
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
    async fn serve(&self, address: SocketAddr, ca: &Ca) -> (SocketAddr, CancellationToken) {
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

    fn streams(&self) -> usize {
        self.streams.lock().unwrap().len()
    }

    fn last<T>(&self, look: impl FnOnce(&Stream) -> T) -> T {
        let streams = self.streams.lock().unwrap();
        look(streams.last().expect("a stream"))
    }
}

/// An agent's reporting half, fed by hand.
struct Reporter {
    dir: tempfile::TempDir,
    store: Store,
    wanted: mpsc::Receiver<Wanted>,
    shutdown: CancellationToken,
    seconds: u64,
    registry: Registry,
}

impl Reporter {
    fn start(addresses: &[SocketAddr], ca: &Ca) -> Self {
        Self::start_with(Store::default(), addresses, ca)
    }

    fn start_with(store: Store, addresses: &[SocketAddr], ca: &Ca) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files: [PathBuf; 2] = ["token", "ca.crt"].map(|f| dir.path().join(f));
        std::fs::write(&files[0], "first").unwrap();
        std::fs::write(&files[1], ca.0.pem()).unwrap();
        let (sender, wanted) = mpsc::channel(8);
        let shutdown = CancellationToken::new();
        let mut registry = Registry::default();
        let (_, metrics) = metrics::register(&mut registry);
        for address in addresses {
            let options = report::Options {
                node: "node-1".to_owned(),
                agent_epoch: 7,
                address: address.to_string(),
                server_name: NAME.to_owned(),
                token_file: files[0].clone(),
                ca_file: files[1].clone(),
            };
            let (store, sender) = (store.clone(), sender.clone());
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            tokio::spawn(async move {
                report::run(options, store, metrics, sender, shutdown)
                    .await
                    .unwrap();
            });
        }
        Self {
            dir,
            store,
            wanted,
            shutdown,
            seconds: 100,
            registry,
        }
    }

    /// A second passes; these are the counts of the pods that changed in it.
    fn second(&mut self, pods: &[(&str, u64)]) {
        self.seconds += 1;
        self.publish(pods, &[]);
    }

    fn publish(&self, pods: &[(&str, u64)], gone: &[&str]) {
        self.store.publish(batch(self.seconds, pods, gone));
    }

    fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        // A labelled counter appears with its first count.
        line.map_or(0, |value| value.parse().unwrap())
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn batch(second: u64, pods: &[(&str, u64)], gone: &[&str]) -> ReportRequest {
    let sample = |(uid, requests): &(&str, u64)| PodSample {
        pod_uid: (*uid).to_owned(),
        epoch: 1,
        counters: Some(proto::Counters {
            requests: *requests,
            ..Default::default()
        }),
        ..Default::default()
    };
    ReportRequest {
        monotonic_micros: second * 1_000_000,
        wall_unix_micros: second as i64 * 1_000_000,
        samples: pods.iter().map(sample).collect(),
        gone: gone.iter().map(|uid| (*uid).to_owned()).collect(),
        ..Default::default()
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn a_replica_gets_the_last_minute_then_everything_then_what_comes() {
    let ca = Ca::new();
    let replica = Replica::default();
    let (address, _kill) = replica.serve(any_port(), &ca).await;
    let store = Store::default();
    store.publish(batch(1, &[("idle", 3), ("busy", 1)], &[]));
    for count in 2..=90 {
        store.publish(batch(count, &[("busy", count)], &[]));
    }
    store.publish(batch(91, &[], &[]));
    let agent = Reporter::start_with(store, &[address], &ca);
    until("connected", || replica.streams() == 1).await;
    until("current", || replica.last(|s| s.requests("idle").is_some())).await;
    replica.last(|stream| {
        assert_eq!(stream.token, "Bearer first");
        let hello = stream.messages[0].hello.clone().unwrap();
        assert_eq!((hello.node.as_str(), hello.agent_epoch), ("node-1", 7));
        assert!(stream.messages[1..].iter().all(|m| m.hello.is_none()));
        let replayed: Vec<&ReportRequest> = stream.messages.iter().filter(|m| m.replay).collect();
        // Oldest first, a minute of them, and the first has what was idle since before.
        assert!(replayed.is_sorted_by_key(|m| m.monotonic_micros));
        assert!((60..=62).contains(&replayed.len()), "{}", replayed.len());
        assert!(replayed[0].samples.iter().any(|s| s.pod_uid == "idle"));
        assert!(replayed[1..].iter().all(|m| m.samples.len() == 1));
        assert_eq!(
            (stream.requests("idle"), stream.requests("busy")),
            (Some(3), Some(90))
        );
    });
    agent.store.publish(batch(92, &[("busy", 91)], &["idle"]));
    until("live", || replica.last(|s| s.requests("busy") == Some(91))).await;
    replica.last(|s| assert_eq!(s.messages.last().unwrap().gone, ["idle"]));
}

#[tokio::test]
async fn every_replica_gets_everything_and_a_restarted_one_gets_it_again() {
    let ca = Ca::new();
    let (one, two) = (Replica::default(), Replica::default());
    let (first, _kill) = one.serve(any_port(), &ca).await;
    let (second, kill) = two.serve(any_port(), &ca).await;
    let mut agent = Reporter::start(&[first, second], &ca);
    until("both", || one.streams() == 1 && two.streams() == 1).await;
    agent.second(&[("a", 10)]);
    for replica in [&one, &two] {
        until("a batch", || replica.last(|s| s.requests("a") == Some(10))).await;
    }
    kill.cancel();
    agent.second(&[("a", 20), ("b", 1)]);
    agent.second(&[("a", 30)]);
    two.serve(second, &ca).await;
    until("again", || two.streams() == 2).await;
    until("caught up", || two.last(|s| s.requests("b") == Some(1))).await;
    two.last(|s| {
        assert!(s.messages[0].hello.is_some() && s.messages[0].replay);
        assert_eq!(s.requests("a"), Some(30));
    });
    assert_eq!(one.streams(), 1, "the other one's stream never ended");
    assert_eq!(one.last(|s| s.requests("a")), Some(30));
}

#[tokio::test]
async fn a_rotated_ca_and_token_are_taken_up_without_a_restart() {
    let (old, new) = (Ca::new(), Ca::new());
    let replica = Replica::default();
    let (address, _kill) = replica.serve(any_port(), &new).await;
    let agent = Reporter::start(&[address], &old);
    until("refused", || {
        agent.metric("ebpf_scaler_agent_report_disconnects_total{reason=\"connect\"}") >= 1
    })
    .await;
    assert_eq!(
        replica.streams(),
        0,
        "another CA's certificate was believed"
    );
    std::fs::write(agent.dir.path().join("token"), "second").unwrap();
    // Both CAs, as during a rotation with overlap.
    let bundle = format!("{}{}", old.0.pem(), new.0.pem());
    std::fs::write(agent.dir.path().join("ca.crt"), bundle).unwrap();
    until("connected", || replica.streams() == 1).await;
    assert_eq!(replica.last(|s| s.token.clone()), "Bearer second");
    // When the old CA is taken away, the stream is renewed on the new bundle.
    std::fs::write(agent.dir.path().join("ca.crt"), new.0.pem()).unwrap();
    until("renewed", || replica.streams() == 2).await;
}

#[tokio::test]
async fn a_slow_replica_skips_batches_and_still_ends_with_the_right_totals() {
    let ca = Ca::new();
    let replica = Replica::default();
    let (address, _kill) = replica.serve(any_port(), &ca).await;
    let mut agent = Reporter::start(&[address], &ca);
    until("connected", || replica.streams() == 1).await;
    replica.stalled.store(true, Ordering::SeqCst);
    // Batches so large that flow control stops the stream long before the last.
    let names: Vec<String> = (0..2000).map(|i| format!("pod-{i:032}")).collect();
    agent.second(&[("once", 5)]);
    for count in 1..=60 {
        let pods: Vec<(&str, u64)> = names.iter().map(|n| (n.as_str(), count)).collect();
        agent.second(&pods);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.publish(&[], &["once"]);
    replica.stalled.store(false, Ordering::SeqCst);
    until("caught up", || {
        replica.last(|s| names.iter().all(|n| s.requests(n) == Some(60)))
    })
    .await;
    until("told who is gone", || {
        replica.last(|s| s.messages.iter().any(|m| m.gone == ["once"]))
    })
    .await;
    assert!(agent.metric("ebpf_scaler_agent_report_batches_dropped_total") > 0);
    assert_eq!(replica.streams(), 1, "slowness alone ends no stream");
    replica.last(|s| assert!(s.messages.len() < 200, "{}", s.messages.len()));
}

#[tokio::test]
async fn a_want_reaches_the_loop_with_its_replica_and_its_end() {
    let ca = Ca::new();
    let replica = Replica::default();
    let families = vec![proto::Family::Runqueue as i32, 77];
    *replica.want.lock().unwrap() = Some(Want {
        families,
        ttl_seconds: 600,
    });
    let (address, _kill) = replica.serve(any_port(), &ca).await;
    let mut agent = Reporter::start(&[address], &ca);
    let wanted = tokio::time::timeout(PATIENCE, agent.wanted.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(wanted.replica, address);
    // A family that this agent does not know yet is left out.
    assert_eq!(wanted.families, [Family::RunQueue]);
    assert_eq!(wanted.ttl, Duration::from_secs(600));
}

#[tokio::test]
async fn the_loop_follows_directories_demand_and_its_end() {
    let uid = "7a0bd1f5-3c65-4a25-9d1c-0a1b2c3d4e5f";
    let kubepods = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new(8);
    let store = store::Store::default();
    let mut registry = Registry::default();
    let (metrics, _) = metrics::register(&mut registry);
    let options = sampler::Options {
        kubepods: Kubepods {
            dir: kubepods.path().into(),
            cpu_v1: None,
        },
        interval: Duration::from_millis(50),
        max_pods: 8,
        first_epoch: 500,
        families: BTreeSet::from([Family::Requests]),
    };
    let (sampler, watcher) = Sampler::new(kernel.clone(), options, store.clone(), metrics);
    let (wants, wanted) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(sampler.run(watcher.unwrap(), wanted, shutdown.clone()));
    let (_, mut batches) = store.subscribe();
    let mut next = async |holds: &dyn Fn(&ReportRequest) -> bool| loop {
        let batch = tokio::time::timeout(PATIENCE, batches.recv())
            .await
            .unwrap()
            .unwrap();
        if holds(&batch) {
            break batch;
        }
    };

    // Idle, the time still goes on.
    let (a, b) = (next(&|_| true).await, next(&|_| true).await);
    assert!(a.monotonic_micros < b.monotonic_micros && b.samples.is_empty());

    let container = kubepods
        .path()
        .join(format!("burstable/pod{uid}/0123456789abcdef"));
    std::fs::create_dir_all(&container).unwrap();
    let new = next(&|b| !b.samples.is_empty()).await;
    assert_eq!(
        (new.samples[0].pod_uid.as_str(), new.samples[0].epoch),
        (uid, 500)
    );
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&container).unwrap());
    kernel.serve(id, 4);
    let counted = next(&|b| !b.samples.is_empty()).await;
    assert_eq!(counted.samples[0].counters.unwrap().requests, 4);

    assert_eq!(kernel.wanted(), BTreeSet::from([Family::Requests]));
    kernel.break_family(Family::RunQueue);
    let families = vec![Family::Network, Family::RunQueue];
    let replica = any_port();
    wants
        .send(Wanted {
            replica,
            families,
            ttl: Duration::from_secs(60),
        })
        .await
        .unwrap();
    let active = [
        proto::Family::Requests as i32,
        proto::Family::Network as i32,
    ];
    let told = next(&|b| b.families == active).await;
    let degraded = told.hello.clone().unwrap().degraded;
    assert_eq!(degraded[0].family, proto::Family::Runqueue as i32);
    assert_eq!(store.subscribe().0.degraded, degraded);

    std::fs::remove_dir(&container).unwrap();
    std::fs::remove_dir(container.parent().unwrap()).unwrap();
    next(&|b| b.gone == [uid]).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
