//! The agents' and operators' streams.

use std::time::Duration;

use ebpf_scaler_proto as proto;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::world::*;

/// An operator's stream.
pub struct Operator {
    sender: mpsc::Sender<proto::WatchRequest>,
    answers: Streaming<proto::WatchResponse>,
}

impl Operator {
    pub async fn connect(world: &World) -> Self {
        let user = "system:serviceaccount:ebpf-scaler:ebpf-scaler-operator";
        world.cluster.token(
            "operator",
            &["ebpf-scaler-collector"],
            json!({"username": user}),
        );
        Self::with_token(world, "operator").await.unwrap()
    }

    async fn with_token(world: &World, token: &str) -> Result<Self, Status> {
        let (sender, outbound) = mpsc::channel(16);
        let mut request = tonic::Request::new(ReceiverStream::new(outbound));
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answers = world.grpc().await.watch(request).await?.into_inner();
        Ok(Self { sender, answers })
    }

    pub async fn subscribe(&self, id: &str, metric: &str, selector: &str, windows: &[u32]) {
        self.ask(id, metric, selector, windows, false).await;
    }

    async fn ask(&self, id: &str, metric: &str, selector: &str, windows: &[u32], tls: bool) {
        let subscription = proto::Subscription {
            id: id.into(),
            namespace: "shop".into(),
            metric: metric.into(),
            selector: selector.into(),
            window_seconds: windows.to_vec(),
            tls,
        };
        let request = proto::WatchRequest {
            subscribe: vec![subscription],
            unsubscribe: vec![],
        };
        self.sender.send(request).await.unwrap();
    }

    /// The next answer to a subscription that `picks`.
    pub async fn next(
        &mut self,
        id: &str,
        picks: impl Fn(&proto::Answer) -> bool,
    ) -> proto::Answer {
        let found = async {
            loop {
                let response = self.answers.message().await.unwrap().unwrap();
                let mut answers = response.answers.into_iter();
                if let Some(answer) = answers.find(|a| a.id == id && picks(a)) {
                    return answer;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), found)
            .await
            .expect("an answer within 5 s")
    }
}

#[tokio::test]
async fn answers_are_pushed_as_they_change_with_all_windows() {
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &[]).await;
    let mut operator = Operator::connect(&world).await;
    operator
        .subscribe("w", "requests_per_second", "app=web", &[3, 30])
        .await;
    // Before the agent is there: an error as over HTTP.
    let early = operator
        .next("w", |a| a.error.is_some())
        .await
        .error
        .unwrap();
    assert_eq!((early.code, early.reason.as_str()), (503, "MissingPods"));
    assert!(
        early.message.contains("no agent reports from node n1"),
        "{}",
        early.message
    );

    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    let answer = operator
        .next("w", |a| a.error.is_none() && a.windows[0].events == 120)
        .await;
    assert_eq!(
        (answer.pods_expected, answer.pods_covered, answer.coverage),
        (1, 1, 1.0)
    );
    let windows: Vec<_> = answer
        .windows
        .iter()
        .map(|w| (w.window_seconds, w.value))
        .collect();
    assert_eq!(windows, [(3, 40.0), (30, 40.0)]);
    assert_eq!(answer.windows[1].covered_seconds, 10.0);
    assert!(
        (answer.sampled_unix_micros - jiff::Timestamp::now().as_microsecond()).abs() < 5_000_000
    );

    // A step is pushed at once, not at the next tick.
    let before = std::time::Instant::now();
    agent.report(&[("web-1", 1000)]).await;
    operator.next("w", |a| a.windows[0].value > 200.0).await;
    let took = before.elapsed();
    assert!(took < Duration::from_millis(150), "{took:?}");

    // Without news it is repeated within a second.
    agent.report(&[("web-1", 1000)]).await;
    operator.next("w", |_| true).await;
    let before = std::time::Instant::now();
    operator.next("w", |_| true).await;
    assert!(before.elapsed() < Duration::from_millis(1300));
}

#[tokio::test]
async fn every_subscription_is_authorized_and_understood_for_itself() {
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &[]).await;
    let mut operator = Operator::connect(&world).await;
    for (id, metric, selector, windows, code) in [
        ("unknown", "no_such_metric", "", vec![3], 404),
        ("selector", "requests_per_second", "a b", vec![3], 400),
        ("window", "requests_per_second", "", vec![7], 400),
        ("empty", "requests_per_second", "app=none", vec![3], 404),
    ] {
        operator.subscribe(id, metric, selector, &windows).await;
        let error = operator.next(id, |_| true).await.error.unwrap();
        assert_eq!(error.code, code, "{id}: {}", error.message);
    }
    // The operator's right was asked for like an HPA's.
    let asked = world.cluster.access_reviews();
    assert!(
        asked
            .iter()
            .any(|spec| spec["resourceAttributes"]["resource"] == "no_such_metric")
    );

    world.cluster.token(
        "eve",
        &["ebpf-scaler-collector"],
        json!({"username": "eve"}),
    );
    world.cluster.deny("eve");
    let mut eve = Operator::with_token(&world, "eve").await.unwrap();
    eve.subscribe("w", "requests_per_second", "", &[3]).await;
    assert_eq!(eve.next("w", |_| true).await.error.unwrap().code, 403);
    let denied = Operator::with_token(&world, "nobody").await.err().unwrap();
    assert_eq!(denied.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn samples_of_another_nodes_pods_count_nowhere() {
    let world = World::with(
        |cluster| {
            cluster.pod("web-1", "n1", |_| {});
            cluster.pod("web-2", "n2", |_| {});
        },
        &[],
    )
    .await;
    let (mut first, mut second) = (world.agent("n1").await, world.agent("n2").await);
    // The first node claims that the other's pod is overloaded.
    for tick in 0..=12 {
        first
            .report(&[("web-1", 0), ("web-2", tick * 100_000)])
            .await;
        second.report(&[("web-2", tick * 10)]).await;
    }
    eventually("both nodes", || async {
        let reply = world
            .metric("requests_per_second", "ebpfscaler.io%2Fwindow%3D3s")
            .await;
        reply.status == 200 && reply.body["items"][0]["value"] == "40"
    })
    .await;
}

#[tokio::test]
async fn requests_inside_tls_are_wanted_of_the_nodes_that_have_the_pods() {
    let world = World::with(
        |cluster| {
            cluster.pod("web-1", "n1", |_| {});
            cluster.pod("web-2", "n2", |_| {});
            cluster.pod("db-1", "n1", |pod| {
                pod["metadata"]["labels"]["app"] = json!("db")
            });
        },
        &[],
    )
    .await;
    let (mut first, mut second) = (world.agent("n1").await, world.agent("n2").await);
    first.steady(&["web-1", "db-1"], 10).await;
    second.steady(&["web-2"], 10).await;
    first.stay();
    second.stay();
    let mut operator = Operator::connect(&world).await;
    operator
        .ask("w", "requests_per_second", "app=web", &[30], true)
        .await;
    let bytes = "network_bytes_per_second";
    operator.ask("b", bytes, "app=db", &[30], true).await;
    let here = |want: &proto::Want| !want.tls_pods.is_empty();
    assert_eq!(first.wanted(here).await.tls_pods, ["uid-web-1"]);
    assert_eq!(second.wanted(here).await.tls_pods, ["uid-web-2"]);
    // What is counted outside TLS is not passed off as all.
    let error = operator
        .next("w", |a| a.error.is_some())
        .await
        .error
        .unwrap();
    assert_eq!(error.code, 503);
    let says = "node n1 does not measure tls yet; it has been asked to";
    assert!(error.message.contains(says), "{}", error.message);
    let port = "app=web,ebpfscaler.io/port=443";
    operator
        .ask("port", "requests_per_second", port, &[30], true)
        .await;
    let error = operator.next("port", |a| a.error.is_some()).await.error;
    let error = error.unwrap();
    assert_eq!((error.code, error.reason.as_str()), (400, "BadSelector"));
    assert!(error.message.contains("inside TLS"), "{}", error.message);
    operator
        .subscribe("plain", "requests_per_second", "app=web", &[30])
        .await;
    operator.next("plain", |a| a.error.is_none()).await;
    let (mut first, mut second) = (first.with_tls(), second.with_tls());
    first.steady(&["web-1", "db-1"], 10).await;
    second.steady(&["web-2"], 10).await;
    let answer = operator.next("w", |a| a.error.is_none()).await;
    assert_eq!((answer.pods_expected, answer.pods_covered), (2, 2));
}

#[tokio::test]
async fn an_oversized_message_ends_its_stream_and_nothing_else() {
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &[]).await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    world.cluster.agent_token("other", "n2");
    let mut big = Agent::connect(&world, "other", "n2", 1).await.unwrap();
    let mut monster = sample("web-9", 1);
    monster.pod_uid = "x".repeat(9 * 1024 * 1024);
    big.send(vec![monster]).await;
    let ended = loop {
        match big.wants.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break Code::Ok,
            Err(status) => break status.code(),
        }
    };
    assert_ne!(ended, Code::Ok);
    agent.report(&[("web-1", 400)]).await;
    eventually("the other agent", || async {
        world.metric("requests_per_second", "").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn shutting_down_finishes_what_runs_and_tells_the_streams() {
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &[]).await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    world.shutdown.cancel();
    eventually("not ready", || async {
        !world.running.readiness.is_ready()
    })
    .await;
    // Still served for the shutdown delay.
    assert_eq!(
        world.get(&Identity::default(), "/healthz").await.status,
        200
    );
    let ended = loop {
        match agent.wants.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
    drop(agent);
    tokio::time::timeout(Duration::from_secs(30), world.running.finished())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_replica_that_has_just_started_answers_every_window_like_the_one_beside_it() {
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &[]).await;
    let mut agent = world.agent("n1").await;
    // 60 s at 40 requests/s.
    for tick in 0..=240 {
        agent.report(&[("web-1", tick * 10)]).await;
    }
    agent.stay();
    let beside = world.beside().await;
    let replayed = Agent::connect(&beside, "agent-of-n1", "n1", 1)
        .await
        .unwrap();
    for second in 0..=60u64 {
        let checkpoint = proto::ReportRequest {
            replay: second < 60,
            monotonic_micros: 1_000_000_000 + TICK + second * 1_000_000,
            samples: vec![sample("web-1", second * 40)],
            families: if second < 60 { vec![] } else { vec![1, 2] },
            ..proto::ReportRequest::default()
        };
        replayed.sender.send(checkpoint).await.unwrap();
    }
    for window in ["1s", "3s", "10s", "30s", "60s", "5m"] {
        let selector = format!("ebpfscaler.io%2Fwindow%3D{window}");
        eventually("the same answer from both", || async {
            let mut values = Vec::new();
            for replica in [&world, &beside] {
                let reply = replica.metric("requests_per_second", &selector).await;
                values.push(reply.body["items"][0]["value"].clone());
            }
            values[0] == values[1] && values[0] == "40"
        })
        .await;
    }
}

#[tokio::test]
async fn an_agent_that_restarts_is_estimated_until_its_new_run_has_been_seen() {
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &[]).await;
    world.cluster.pod("web-2", "n2", |_| {});
    let (mut first, mut second) = (world.agent("n1").await, world.agent("n2").await);
    first.steady(&["web-1"], 10).await;
    second.steady(&["web-2"], 10).await;
    second.stay();
    let value = |reply: &Reply| reply.body["items"][0]["value"].clone();
    let window = "ebpfscaler.io%2Fwindow%3D3s";
    eventually("both", || async {
        value(&world.metric("requests_per_second", window).await) == "80"
    })
    .await;
    drop(first);
    let mut anew = Agent::connect(&world, "agent-of-n1", "n1", 2)
        .await
        .unwrap();
    anew.at = 2_000_000_000;
    anew.report(&[("web-1", 3)]).await;
    eventually("the old run stands in", || async {
        let reply = world.metric("requests_per_second", window).await;
        let estimated = &reply.body["items"][0]["metricLabels"]["ebpfscaler.io/pods-estimated"];
        value(&reply) == "80" && estimated == "1"
    })
    .await;
    for tick in 1..=8 {
        anew.report(&[("web-1", 3 + tick * 20)]).await;
    }
    anew.stay();
    eventually("the new run alone", || async {
        let reply = world.metric("requests_per_second", window).await;
        value(&reply) == "120" && !reply.headers.contains_key("warning")
    })
    .await;
}
