//! One agent's stream: its batches go into the state, what is wanted goes back. What an agent sends counts
//! only for the node that its token names.

use std::sync::Arc;
use std::time::Duration;

use ebpf_scaler_common::Counters;
use ebpf_scaler_measure::narrow::{Key, PartSample};
use ebpf_scaler_measure::node::{Batch, Hello};
use ebpf_scaler_measure::quantile::Sparse;
use ebpf_scaler_measure::series::{MAX_PREEMPTORS, Preemptor, Sample};
use ebpf_scaler_proto as proto;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::demand::{Demand, from_proto};
use super::hub::Hub;
use super::metrics::Counted;
use super::pace::Pace;
use super::sessions::{Credential, Session};

/// Agents send each 250 ms; one that is quiet for so long is gone.
const QUIET: Duration = Duration::from_secs(15);
/// What is wanted is repeated, for it lapses.
const REPEAT: Duration = Duration::from_secs(15);

/// What an agent may send: a message costs 1, and each sample in it a hundredth. A full node takes 45 a second; a
/// minute of its history, when it connects, takes 700.
const PACE: f64 = 100.0;
const BURST: f64 = 1000.0;
/// UIDs have 36 characters, static pods' 32; more than this is not one.
const MAX_UID: usize = 64;
/// Container ids have 64 characters.
const MAX_CONTAINER_ID: usize = 128;
/// What is kept of an agent's reason why it can not measure something, bytes.
const MAX_REASON: usize = 512;

/// Serves the stream of `node`'s agent until it ends.
pub fn run(
    hub: Arc<Hub>,
    node: Arc<str>,
    (credential, session): (Credential, Session),
    inbound: Streaming<proto::ReportRequest>,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<proto::Want, Status>> + Send {
    let (wants, outbound) = mpsc::channel(4);
    tokio::spawn(async move {
        let _counted = Counted::new(&hub.metrics.agents_connected);
        tracing::info!(%node, "agent connected");
        let ended = tokio::select! {
            ended = converse(&hub, &node, inbound, &wants) => ended,
            status = credential.ended(&hub) => Err(status),
            () = session.superseded.cancelled() => {
                Err(Status::aborted("the node's agent has opened newer streams"))
            }
            () = shutdown.cancelled() => Err(Status::unavailable("this replica is shutting down")),
        };
        tracing::info!(%node, reason = ?ended.as_ref().err().map(Status::message), "agent disconnected");
        if let Err(status) = ended {
            // The agent may be gone already.
            let _ = wants.try_send(Err(status));
        }
    });
    ReceiverStream::new(outbound)
}

async fn converse(
    hub: &Hub,
    node: &Arc<str>,
    mut inbound: Streaming<proto::ReportRequest>,
    wants: &mpsc::Sender<Result<proto::Want, Status>>,
) -> Result<(), Status> {
    let mut wanted = hub.demand.watch();
    let mut repeat = tokio::time::interval(REPEAT);
    let (mut agent_epoch, mut told) = (None, None);
    let mut pace = Pace::new(PACE, BURST);
    let quiet = tokio::time::sleep(QUIET);
    tokio::pin!(quiet);
    loop {
        tokio::select! {
            message = inbound.message() => {
                let Some(message) = message? else { return Ok(()) };
                let samples = message.samples.len() + message.parts.len();
                let cost = 1.0 + samples as f64 / 100.0;
                agent_epoch = Some(receive(hub, node, agent_epoch, message)?);
                let wait = pace.take(cost);
                if !wait.is_zero() {
                    hub.metrics.refuse("slowed_down", 1);
                    tokio::time::sleep(wait).await;
                }
                quiet.as_mut().reset(tokio::time::Instant::now() + QUIET);
            }
            _ = wanted.changed() => {
                let want = Demand::message(&wanted.borrow_and_update(), node);
                // What changes is mostly about other nodes.
                if told.as_ref() != Some(&want) {
                    told = Some(want.clone());
                    tell(want, wants);
                }
            }
            _ = repeat.tick() => tell(Demand::message(&wanted.borrow(), node), wants),
            () = &mut quiet => return Err(Status::deadline_exceeded("nothing was reported for 15 s")),
        }
    }
}

fn tell(want: proto::Want, wants: &mpsc::Sender<Result<proto::Want, Status>>) {
    // An agent that does not read gets the next one; the channel never holds us up.
    let _ = wants.try_send(Ok(want));
}

/// Takes in one message; returns the agent's epoch.
fn receive(
    hub: &Hub,
    node: &Arc<str>,
    epoch: Option<u64>,
    message: proto::ReportRequest,
) -> Result<u64, Status> {
    let mut epoch = epoch;
    if let Some(hello) = &message.hello {
        if hello.node != **node {
            hub.metrics.deny("another_node");
            return Err(Status::permission_denied(format!(
                "the token is bound to node {node}, not to {}",
                hello.node
            )));
        }
        epoch = Some(hello.agent_epoch);
        hub.change().0.hello(node, &self::hello(hello));
    }
    let Some(epoch) = epoch else {
        return Err(Status::failed_precondition(
            "the first message has to say hello",
        ));
    };
    if message.monotonic_micros == 0 {
        // The agent has not read anything yet.
        return Ok(epoch);
    }
    let (batch, malformed) = batch(message);
    let (mut state, now) = hub.change();
    let received = state.report(node, epoch, batch, now);
    drop(state);
    hub.ingested.send_replace(());
    let m = &hub.metrics;
    m.batches.inc();
    m.samples.inc_by(received.accepted as u64);
    m.refuse("late_batch", received.late.into());
    m.refuse("pod_of_another_node", received.foreign);
    m.refuse("too_many_pods", received.overflow);
    m.refuse("too_much_history", received.heavy);
    m.refuse("malformed", malformed);
    Ok(epoch)
}

fn hello(hello: &proto::Hello) -> Hello {
    let degraded = hello.degraded.iter();
    Hello {
        agent_epoch: hello.agent_epoch,
        degraded: degraded
            .filter_map(|d| {
                let reason = d.reason.chars().take(MAX_REASON).collect();
                Some((from_proto(d.family)?, reason))
            })
            .collect(),
    }
}

/// A message as the state takes it, and how many pods and buckets in it can not exist.
fn batch(mut message: proto::ReportRequest) -> (Batch, usize) {
    let possible = |uid: &str| !uid.is_empty() && uid.len() <= MAX_UID;
    let before = message.samples.len() + message.parts.len();
    message.samples.retain(|s| possible(&s.pod_uid));
    message.parts.retain(|s| possible(&s.pod_uid));
    let mut malformed = before - message.samples.len() - message.parts.len();
    let mut histogram = |h: Option<proto::Histogram>| {
        let h = h.unwrap_or_default();
        let (sparse, unknown) = Sparse::from_pairs(h.index.into_iter().zip(h.count));
        malformed += unknown;
        sparse
    };
    let mut read = |s: proto::PodSample| {
        let sample = Sample {
            epoch: s.epoch,
            counters: counters(&s.counters.unwrap_or_default()),
            request_latency: histogram(s.request_latency),
            runqueue_latency: histogram(s.runqueue_latency),
            tcp_rtt: histogram(s.tcp_rtt),
            preemptors: s
                .preemptors
                .into_iter()
                .filter(|p| p.pod_uid.len() <= MAX_UID)
                .take(MAX_PREEMPTORS)
                .map(preemptor)
                .collect(),
        };
        (s.pod_uid.into(), sample)
    };
    let mut parts = Vec::with_capacity(message.parts.len());
    for mut s in message.parts {
        let Some(part) = s.part.take().and_then(part) else {
            continue;
        };
        let (uid, sample) = read(s);
        parts.push(PartSample {
            uid,
            sample,
            ..part
        });
    }
    let samples = message.samples.into_iter().map(read).collect();
    let batch = Batch {
        replay: message.replay,
        at: message.monotonic_micros,
        samples,
        parts,
        gone: message.gone.into_iter().map(Into::into).collect(),
        families: message
            .families
            .into_iter()
            .filter_map(from_proto)
            .collect(),
    };
    (batch, malformed)
}

/// Which part it is; none if it is none that there can be.
fn part(part: proto::Part) -> Option<PartSample> {
    let port = u16::try_from(part.port).ok()?;
    if part.container_id.len() > MAX_CONTAINER_ID {
        return None;
    }
    let key = Key {
        container: (!part.container_id.is_empty()).then(|| part.container_id.into()),
        port: (port != 0).then_some(port),
    };
    (key != Key::default()).then(|| PartSample {
        key,
        from_birth: part.from_birth,
        ended: part.ended,
        gone: part.gone,
        ..PartSample::default()
    })
}

fn preemptor(p: proto::Preemptor) -> Preemptor {
    Preemptor {
        pod_uid: (!p.pod_uid.is_empty()).then(|| p.pod_uid.into()),
        waiting_threads: p.waiting_threads,
    }
}

fn counters(c: &proto::Counters) -> Counters {
    Counters {
        requests: c.requests,
        responses_1xx: c.responses_1xx,
        responses_2xx: c.responses_2xx,
        responses_3xx: c.responses_3xx,
        responses_4xx: c.responses_4xx,
        responses_5xx: c.responses_5xx,
        requests_aborted: c.requests_aborted,
        request_latency_sum_micros: c.request_latency_sum_micros,
        requests_in_flight: c.requests_in_flight,
        requests_probe: c.requests_probe,
        requests_excluded_port: c.requests_excluded_port,
        requests_loopback: c.requests_loopback,
        receive_bytes: c.receive_bytes,
        transmit_bytes: c.transmit_bytes,
        receive_packets: c.receive_packets,
        transmit_packets: c.transmit_packets,
        connections_opened: c.connections_opened,
        connections_closed: c.connections_closed,
        tcp_retransmits: c.tcp_retransmits,
        runqueue_wait_nanos: c.runqueue_wait_nanos,
        runqueue_waits: c.runqueue_waits,
        cpu_throttled_micros: c.cpu_throttled_micros,
        runqueue_wait_self_nanos: c.runqueue_wait_self_nanos,
        runqueue_wait_other_pods_nanos: c.runqueue_wait_other_pods_nanos,
        runqueue_wait_system_nanos: c.runqueue_wait_system_nanos,
        runqueue_wait_throttled_nanos: c.runqueue_wait_throttled_nanos,
        runqueue_wait_idle_nanos: c.runqueue_wait_idle_nanos,
        requests_http2: c.requests_http2,
        requests_redis: c.requests_redis,
        requests_postgresql: c.requests_postgresql,
        tls_turns: c.tls_turns,
    }
}
