//! One client's subscriptions: answers are pushed as soon as a report has changed them, and at least once a
//! second. Every subscription is authorized like the same query over HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_scaler_measure::{Metric, Query, Window};
use ebpf_scaler_proto as proto;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::hub::Hub;
use super::identity::User;
use super::metrics::Counted;
use super::reviews::Action;
use super::sessions::{Credential, Session};
use super::status::Failure;

/// Answers are looked at this often even if no report comes: silence changes them too.
const TICK: Duration = Duration::from_millis(250);
/// Agents report about the same time; what comes within this is looked at together.
const GATHER: Duration = Duration::from_millis(5);
/// With many agents reports come all the time; answers are not looked at more often than this, and looking
/// takes no more than a fifth of the time.
const PAUSE: Duration = Duration::from_millis(25);
/// An answer that does not change is repeated, so that the client knows it is still true.
const REPEAT: Duration = Duration::from_millis(950);
/// What one client may subscribe to.
const MAX_SUBSCRIPTIONS: usize = 20_000;
/// Bytes of the names and selectors in them.
const MAX_SUBSCRIBED: usize = 16 << 20;
/// Subscriptions that its user may not have, before the stream ends: anybody can get a token of our audience, and
/// should not keep us busy with refusals.
const MAX_FORBIDDEN: usize = 100;
/// Answers in one message.
const CHUNK: usize = 500;

type Outbound = mpsc::Sender<Result<proto::WatchResponse, Status>>;

/// Serves the stream of `user` until it ends.
pub fn run(
    hub: Arc<Hub>,
    (credential, session): (Credential, Session),
    inbound: Streaming<proto::WatchRequest>,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<proto::WatchResponse, Status>> + Send {
    let (answers, outbound) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut client = Client {
            hub: hub.clone(),
            user: credential.user.clone(),
            subscriptions: BTreeMap::new(),
            bytes: 0,
            forbidden: 0,
        };
        let ended = tokio::select! {
            ended = client.converse(inbound, &answers) => ended,
            status = credential.ended(&hub) => Err(status),
            () = session.superseded.cancelled() => Ok(()),
            () = shutdown.cancelled() => Err(Status::unavailable("this replica is shutting down")),
        };
        if let Err(status) = ended {
            // The client may be gone already.
            let _ = answers.try_send(Err(status));
        }
    });
    ReceiverStream::new(outbound)
}

struct Client {
    hub: Arc<Hub>,
    user: User,
    subscriptions: BTreeMap<String, Subscription>,
    /// Of all subscriptions.
    bytes: usize,
    /// Subscriptions that were refused for who asked.
    forbidden: usize,
}

struct Subscription {
    asked: Result<Asked, Failure>,
    sent: Option<(Instant, proto::Answer)>,
    bytes: usize,
    _counted: Counted,
}

/// A subscription that has been understood and allowed.
struct Asked {
    namespace: String,
    metric: Metric,
    query: Query,
    windows: Vec<Window>,
}

impl Client {
    async fn converse(
        &mut self,
        mut inbound: Streaming<proto::WatchRequest>,
        answers: &Outbound,
    ) -> Result<(), Status> {
        let mut ingested = self.hub.ingested.subscribe();
        let (mut due, mut earliest) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let Some(message) = message? else { return Ok(()) };
                    self.change(message).await?;
                    due = earliest;
                }
                changed = ingested.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    due = due.min((Instant::now() + GATHER).max(earliest));
                }
                () = tokio::time::sleep_until(due.into()) => {
                    if answers.is_closed() {
                        return Ok(());
                    }
                    let began = Instant::now();
                    self.push(answers);
                    let ended = Instant::now();
                    earliest = ended + PAUSE.max((ended - began) * 4);
                    due = ended + TICK.max(earliest - ended);
                }
            }
        }
    }

    async fn change(&mut self, message: proto::WatchRequest) -> Result<(), Status> {
        for id in message.unsubscribe {
            self.remove(&id);
        }
        for wanted in message.subscribe {
            self.remove(&wanted.id);
            let bytes = [
                &wanted.id,
                &wanted.namespace,
                &wanted.metric,
                &wanted.selector,
            ];
            let bytes = bytes.iter().map(|text| text.len()).sum();
            self.bytes += bytes;
            if self.subscriptions.len() >= MAX_SUBSCRIPTIONS || self.bytes > MAX_SUBSCRIBED {
                let message = format!(
                    "more than {MAX_SUBSCRIPTIONS} subscriptions, or {MAX_SUBSCRIBED} bytes of them"
                );
                return Err(Status::resource_exhausted(message));
            }
            let asked = self.understand(&wanted).await;
            if asked.as_ref().is_err_and(|failure| failure.code == 403) {
                self.forbidden += 1;
                if self.forbidden > MAX_FORBIDDEN {
                    let message = format!("{} may not have what it subscribes to", self.user.name);
                    return Err(Status::permission_denied(message));
                }
            }
            let subscription = Subscription {
                asked,
                sent: None,
                bytes,
                _counted: Counted::new(&self.hub.metrics.subscriptions),
            };
            self.subscriptions.insert(wanted.id, subscription);
        }
        Ok(())
    }

    fn remove(&mut self, id: &str) {
        if let Some(removed) = self.subscriptions.remove(id) {
            self.bytes -= removed.bytes;
        }
    }

    async fn understand(&self, wanted: &proto::Subscription) -> Result<Asked, Failure> {
        let action = Action::ListMetric {
            namespace: wanted.namespace.clone(),
            metric: wanted.metric.clone(),
        };
        self.hub.authorize(&self.user, &action).await?;
        let metric = Metric::from_name(&wanted.metric).ok_or_else(|| {
            let message = format!("the server could not find the metric {}", wanted.metric);
            Failure::new(404, message).because("UnknownMetric")
        })?;
        let bad = |message: String| Failure::new(400, message).because("BadSelector");
        let mut query = Query::parse(&wanted.selector).map_err(|e| bad(e.to_string()))?;
        query.tls = wanted.tls && metric.is_found_inside_tls();
        query.check(metric).map_err(|e| bad(e.to_string()))?;
        let windows = wanted.window_seconds.iter().map(|seconds| {
            Window::from_seconds(*seconds).ok_or_else(|| {
                bad(format!(
                    "window {seconds} s is not one of 1, 3, 10, 30, 60, 300"
                ))
            })
        });
        let mut windows = windows.collect::<Result<Vec<_>, _>>()?;
        if windows.is_empty() {
            windows.push(query.window.unwrap_or(Window::DEFAULT));
        }
        windows.truncate(Window::ALL.len());
        Ok(Asked {
            namespace: wanted.namespace.clone(),
            metric,
            query,
            windows,
        })
    }

    /// Sends what has changed or has to be repeated; a client that is slow to read misses a tick.
    fn push(&mut self, answers: &Outbound) {
        let mut due = Vec::new();
        for (id, subscription) in &mut self.subscriptions {
            let answer = answer(&self.hub, id, &subscription.asked);
            let news = subscription
                .sent
                .as_ref()
                .is_none_or(|(when, old)| when.elapsed() >= REPEAT || !is_same(old, &answer));
            if news {
                due.push((subscription, answer));
            }
        }
        let mut due = due.into_iter().peekable();
        while due.peek().is_some() {
            let Ok(permit) = answers.try_reserve() else {
                return;
            };
            let chunk = due.by_ref().take(CHUNK).map(|(subscription, answer)| {
                subscription.sent = Some((Instant::now(), answer.clone()));
                answer
            });
            let answers = chunk.collect();
            permit.send(Ok(proto::WatchResponse { answers }));
        }
    }
}

/// Whether two answers say the same, whenever they were sampled.
fn is_same(old: &proto::Answer, new: &proto::Answer) -> bool {
    let mut old = old.clone();
    old.sampled_unix_micros = new.sampled_unix_micros;
    old == *new
}

fn answer(hub: &Hub, id: &str, asked: &Result<Asked, Failure>) -> proto::Answer {
    let answered = match asked {
        Ok(a) => hub.answer(&a.namespace, a.metric, &a.query, &a.windows),
        Err(failure) => Err(failure.clone()),
    };
    let id = id.to_owned();
    match answered {
        Ok(a) => proto::Answer {
            id,
            sampled_unix_micros: hub.clock.unix_micros(a.sampled),
            coverage: a.coverage(),
            pods_expected: count(a.expected),
            pods_covered: count(a.covered),
            pods_estimated: count(a.estimated),
            windows: a.windows.iter().map(window_value).collect(),
            silent_nodes: a.silent_nodes,
            error: None,
        },
        Err(failure) => proto::Answer {
            id,
            sampled_unix_micros: hub.clock.unix_micros(hub.clock.now()),
            error: Some(proto::AnswerError {
                code: failure.code.into(),
                reason: failure.cause.unwrap_or(failure.reason).to_owned(),
                message: failure.message,
            }),
            ..proto::Answer::default()
        },
    }
}

fn window_value(value: &ebpf_scaler_measure::WindowValue) -> proto::WindowValue {
    proto::WindowValue {
        window_seconds: value.window.seconds(),
        value: value.value,
        events: value.events,
        covered_seconds: value.covered_seconds,
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
