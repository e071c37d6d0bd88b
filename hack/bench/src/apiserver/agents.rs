//! Agents that report what they make up, as real ones do: a stream each over a TLS connection of its own, every pod
//! when it opens, then the active ones every 250 ms.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use ebpf_scaler_common::histogram;
use ebpf_scaler_proto as proto;
use ebpf_scaler_proto::collector_client::CollectorClient;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::kubernetes::{node, pod_of, uid};
use super::pki::{NAME, Pki};
use super::replica::Replica;
use super::{ACTIVE_OF_TEN, PODS_OF_A_NODE};

const TICK: Duration = Duration::from_millis(250);
/// Agents that connect and bring their history at once.
const AT_ONCE: usize = 32;
/// How often an agent tries to open its stream, and how long it waits in between.
const ATTEMPTS: usize = 10;
const AGAIN: Duration = Duration::from_secs(1);
/// Requests of an active pod in a tick.
const REQUESTS: u64 = 25;

/// Agents of all nodes; they end with this value.
pub struct Agents {
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    report: SocketAddr,
    tls: ClientTlsConfig,
    nodes: usize,
    pods: usize,
    reporting: AtomicUsize,
    sent: AtomicU64,
    failed: OnceLock<String>,
    joining: Semaphore,
}

impl Agents {
    /// Starts an agent for each node.
    pub fn start(nodes: usize, pods: usize, replica: &Replica, pki: &Pki) -> anyhow::Result<Self> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&pki.ca))
            .domain_name(NAME);
        let shared = Arc::new(Shared {
            report: replica.report,
            tls,
            nodes,
            pods,
            reporting: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            failed: OnceLock::new(),
            joining: Semaphore::new(AT_ONCE),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        for number in 0..nodes {
            let shared = shared.clone();
            runtime.spawn(async move {
                if let Err(error) = agent(&shared, number).await {
                    let _ = shared.failed.set(format!("{}: {error:#}", node(number)));
                }
            });
        }
        Ok(Self {
            shared,
            runtime: Some(runtime),
        })
    }

    /// Agents that have brought their history and report now.
    pub fn reporting(&self) -> usize {
        self.shared.reporting.load(Ordering::Relaxed)
    }

    /// Current reports sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// An error if one has failed.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.shared.failed.get() {
            Some(why) => anyhow::bail!("an agent failed: {why}"),
            None => Ok(()),
        }
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An agent's stream: what it sends, and what it is told.
type Stream = (mpsc::Sender<proto::ReportRequest>, Streaming<proto::Want>);

async fn open(shared: &Shared, number: usize) -> anyhow::Result<Stream> {
    let endpoint = Endpoint::from_shared(format!("https://{}", shared.report))?;
    let channel: Channel = endpoint.tls_config(shared.tls.clone())?.connect().await?;
    let (sender, outbound) = mpsc::channel(4);
    let mut request = tonic::Request::new(ReceiverStream::new(outbound));
    let token = format!("Bearer {}", node(number));
    request
        .metadata_mut()
        .insert("authorization", token.parse()?);
    let hello = proto::ReportRequest {
        hello: Some(proto::Hello {
            node: node(number),
            agent_epoch: 1,
            ..proto::Hello::default()
        }),
        ..proto::ReportRequest::default()
    };
    sender.send(hello).await?;
    let wants = CollectorClient::new(channel).report(request).await?;
    Ok((sender, wants.into_inner()))
}

async fn agent(shared: &Shared, number: usize) -> anyhow::Result<()> {
    let joining = shared.joining.acquire().await?;
    let mut opened = open(shared, number).await;
    for _ in 1..ATTEMPTS {
        if opened.is_ok() {
            break;
        }
        // As real agents do: on a busy machine a review of their token may come too late.
        tokio::time::sleep(AGAIN).await;
        opened = open(shared, number).await;
    }
    let (sender, mut wants) = opened?;
    let mut node = Node::new(number, shared);
    // A replica keeps five minutes: as coarse as it would be by now where it is old.
    for (ticks, step) in [(49, 5_000_000), (50, 1_000_000)] {
        for _ in 0..ticks {
            sender.send(node.next(step, true)).await?;
        }
    }
    sender.send(node.next(1_000_000, false)).await?;
    drop(joining);
    shared.reporting.fetch_add(1, Ordering::Relaxed);

    // Agents do not tick together.
    tokio::time::sleep(TICK.mul_f64(number as f64 * 0.618 % 1.0)).await;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                sender.send(node.next(TICK.as_micros() as u64, false)).await.context("the stream ended")?;
                shared.sent.fetch_add(1, Ordering::Relaxed);
            }
            want = wants.message() => {
                want.context("the stream failed")?.context("the stream was ended")?;
            }
        }
    }
}

/// What an agent knows.
struct Node {
    at: u64,
    ticks: u64,
    pods: Vec<proto::PodSample>,
    told: bool,
}

impl Node {
    fn new(number: usize, shared: &Shared) -> Self {
        let slots = (0..PODS_OF_A_NODE).map(|slot| pod_of(number, slot, shared.nodes));
        let pods = slots.filter(|pod| *pod < shared.pods).map(|pod| {
            // A service's latencies spread over an octave or so, each pod's over its own.
            let middle = histogram::index(1_000 << (pod % 6)) as u32;
            proto::PodSample {
                pod_uid: uid(pod),
                epoch: 1,
                counters: Some(proto::Counters::default()),
                request_latency: Some(buckets(middle, 12)),
                tcp_rtt: Some(buckets(histogram::index(200) as u32, 4)),
                ..proto::PodSample::default()
            }
        });
        Self {
            at: 1_000_000_000,
            ticks: 0,
            pods: pods.collect(),
            told: false,
        }
    }

    /// The next reading: all pods in the first that is current, and otherwise the active ones.
    fn next(&mut self, step: u64, replay: bool) -> proto::ReportRequest {
        self.at += step;
        self.ticks += 1;
        let active = (self.pods.len() * ACTIVE_OF_TEN).div_ceil(10);
        for (i, sample) in self.pods.iter_mut().take(active).enumerate() {
            grow(sample, self.ticks.wrapping_mul(31).wrapping_add(i as u64));
        }
        let all = !replay && !std::mem::replace(&mut self.told, !replay);
        let samples = if all { self.pods.len() } else { active };
        proto::ReportRequest {
            replay,
            monotonic_micros: self.at,
            samples: self.pods[..samples].to_vec(),
            families: vec![
                proto::Family::Requests.into(),
                proto::Family::Network.into(),
            ],
            ..proto::ReportRequest::default()
        }
    }
}

fn buckets(first: u32, number: u32) -> proto::Histogram {
    proto::Histogram {
        index: (first..first + number).collect(),
        count: vec![0; number as usize],
    }
}

/// A tick of a pod that serves; `noise` makes ticks differ.
fn grow(sample: &mut proto::PodSample, noise: u64) {
    let requests = REQUESTS + noise % 7;
    if let Some(c) = &mut sample.counters {
        c.requests += requests;
        c.responses_2xx += requests - u64::from(noise.is_multiple_of(5));
        c.responses_5xx += u64::from(noise.is_multiple_of(5));
        c.request_latency_sum_micros += requests * (1_500 + noise % 400);
        c.requests_in_flight = noise % 4;
        c.receive_bytes += requests * 700 + noise % 900;
        c.transmit_bytes += requests * 4_200 + noise % 9_000;
        c.receive_packets += requests * 3;
        c.transmit_packets += requests * 5;
        c.connections_opened += noise % 3;
        c.connections_closed += noise % 3;
        c.cpu_throttled_micros += noise % 2_000;
    }
    spread(&mut sample.request_latency, requests, noise);
    spread(&mut sample.tcp_rtt, requests / 2, noise);
}

fn spread(histogram: &mut Option<proto::Histogram>, events: u64, noise: u64) {
    let Some(h) = histogram else { return };
    let buckets = h.count.len() as u64;
    for event in 0..events {
        // Most in the middle.
        let far = (event * 7 + noise) % buckets;
        let near = (event * 3 + noise) % buckets;
        if let Some(count) = h.count.get_mut(((far + near) / 2) as usize) {
            *count += 1;
        }
    }
}
