use std::sync::Arc;

use ebpf_scaler_common::Counters;

use super::*;
use crate::index::PodFacts;
use crate::metric::Family;
use crate::node::{Batch, Hello, Received};
use crate::quantile::Sparse;
use crate::series::Sample;

/// What changes while it is measured: agents, pods, replicas.
#[path = "answer_tests/changes.rs"]
mod changes;
/// What an agent could do to us, had somebody else got hold of it.
#[path = "answer_tests/hostile.rs"]
mod hostile;
/// Ports and containers.
#[path = "answer_tests/narrow.rs"]
mod narrow;
/// The rules of docs/truth.md that no story of another file tells.
#[path = "answer_tests/truth.rs"]
mod truth;

const SECOND: u64 = 1_000_000;
const TICK: u64 = 250_000;

/// A cluster whose time is ours. Node clocks have nothing to do with it, or with each other.
struct World {
    state: State,
    now: Time,
    /// Each pod's requests so far.
    counts: std::collections::HashMap<String, u64>,
}

fn clock_of(node: &str) -> u64 {
    u64::from(node.bytes().last().unwrap()) * 1_000_000_007
}

fn requests(n: u64) -> Sample {
    Sample {
        epoch: 1,
        counters: Counters {
            requests: n,
            requests_redis: n / 5,
            ..Counters::default()
        },
        request_latency: Sparse::from_pairs([(60, n)]).0,
        ..Sample::default()
    }
}

impl World {
    fn new() -> Self {
        Self {
            state: State::default(),
            now: Time(3600 * SECOND),
            counts: Default::default(),
        }
    }

    fn facts(name: &str, node: &str) -> PodFacts {
        PodFacts {
            uid: name.into(),
            namespace: "shop".into(),
            name: name.into(),
            node: Some(node.into()),
            phase: Phase::Running,
            ..PodFacts::default()
        }
    }

    fn pod(&mut self, name: &str, node: &str) {
        self.state
            .index
            .apply(Self::facts(name, node), true, self.now);
    }

    fn hello(&mut self, node: &str, agent_epoch: u64) {
        let hello = Hello {
            agent_epoch,
            ..Hello::default()
        };
        self.state.hello(node, &hello);
    }

    fn report(&mut self, node: &str, epoch: u64, pods: &[(&str, Sample)]) -> Received {
        let batch = Batch {
            at: clock_of(node) + self.now.0,
            samples: pods
                .iter()
                .map(|(p, s)| (Arc::from(*p), s.clone()))
                .collect(),
            families: vec![Family::Requests, Family::Network],
            ..Batch::default()
        };
        self.state.report(node, epoch, batch, self.now)
    }

    /// One tick in which each pod has its requests, and its node's agent reports.
    fn tick(&mut self, rates: &[(&str, &str, u64)]) {
        self.now = self.now.plus(TICK);
        for (node, pod, rate) in rates {
            let count = self.counts.entry((*pod).to_owned()).or_default();
            *count += rate;
            let sample = requests(*count);
            self.report(node, 1, &[(pod, sample)]);
        }
    }

    fn run(&mut self, seconds: u64, rates: &[(&str, &str, u64)]) {
        for _ in 0..seconds * 4 {
            self.tick(rates);
        }
    }

    fn ask(&self, metric: Metric, window: Window) -> Result<Answer, AnswerError> {
        self.state
            .answer("shop", metric, &Query::default(), &[window], self.now)
    }

    fn rate(&self, window: Window) -> f64 {
        self.ask(Metric::RequestsPerSecond, window).unwrap().windows[0].value
    }
}

/// Two nodes with a pod each at 100 requests/s, for 40 s.
fn shop() -> World {
    let mut world = World::new();
    for (node, pod) in [("n1", "a"), ("n2", "b")] {
        world.pod(pod, node);
        world.hello(node, 1);
        world.report(node, 1, &[(pod, requests(0))]);
    }
    world.run(40, &[("n1", "a", 25), ("n2", "b", 25)]);
    world
}

#[test]
fn the_sum_over_pods_whatever_their_nodes_clocks_say() {
    let world = shop();
    let answer = world.ask(Metric::RequestsPerSecond, Window::S30).unwrap();
    assert_eq!(answer.windows[0].value, 200.0);
    assert_eq!(answer.windows[0].events, 6000);
    assert_eq!(answer.windows[0].covered_seconds, 30.0);
    assert_eq!(
        (answer.expected, answer.covered, answer.estimated),
        (2, 2, 0)
    );
    assert_eq!(answer.coverage(), 1.0);
    let p99 = world.ask(Metric::RequestLatencyP99, Window::S3).unwrap();
    assert_eq!(p99.windows[0].events, 600);
    assert!(p99.windows[0].value > 0.0);
}

#[test]
fn a_protocol_narrows_the_sum_to_its_own_requests() {
    let world = shop();
    for (protocol, rate) in [("redis", 40.0), ("http1", 160.0), ("postgresql", 0.0)] {
        let query = Query::parse(&format!("ebpfscaler.io/protocol={protocol}")).unwrap();
        let metric = Metric::RequestsPerSecond;
        let windows = [Window::S30];
        let answer = world
            .state
            .answer("shop", metric, &query, &windows, world.now)
            .unwrap();
        assert_eq!(answer.windows[0].value, rate, "{protocol}");
    }
}

#[test]
fn an_idle_pod_that_is_seen_is_a_true_zero() {
    let mut world = shop();
    world.run(40, &[("n1", "a", 0), ("n2", "b", 0)]);
    assert_eq!(world.rate(Window::S30), 0.0);
    let p99 = world.ask(Metric::RequestLatencyP99, Window::S30).unwrap();
    assert_eq!((p99.windows[0].value, p99.windows[0].events), (0.0, 0));
}

#[test]
fn a_silent_nodes_last_values_stand_in_for_fifteen_seconds_and_then_there_is_no_answer() {
    let mut world = shop();
    world.run(10, &[("n1", "a", 25)]);
    let answer = world.ask(Metric::RequestsPerSecond, Window::S3).unwrap();
    assert_eq!(answer.windows[0].value, 200.0);
    assert_eq!((answer.covered, answer.estimated), (1, 1));
    assert_eq!(answer.silent_nodes, ["n2"]);
    world.run(6, &[("n1", "a", 25)]);
    let error = world
        .ask(Metric::RequestsPerSecond, Window::S3)
        .unwrap_err();
    assert_eq!(error.code(), 503);
    assert!(
        error.to_string().contains("node n2 is silent for 16 s"),
        "{error}"
    );
    // It comes back, and with it the answer; what happened meanwhile is spread over the gap.
    world.report("n2", 1, &[("b", requests(4000 + 1600))]);
    let rate = world.rate(Window::S3);
    assert!((rate - 200.0).abs() < 1.0, "{rate}");
}

#[test]
fn below_half_coverage_there_is_no_answer_at_once() {
    let mut world = shop();
    world.pod("c", "n2");
    world.report("n2", 1, &[("b", requests(4000)), ("c", requests(0))]);
    world.run(2, &[("n1", "a", 25)]);
    match world.ask(Metric::RequestsPerSecond, Window::S3) {
        Err(AnswerError::Missing {
            covered: 1,
            expected: 3,
            silent_nodes,
            ..
        }) => {
            assert_eq!(silent_nodes, ["n2"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_that_never_had_an_agent_lowers_coverage_and_then_ends_the_answers() {
    let mut world = shop();
    let rates = [("n1", "a", 25), ("n2", "b", 25)];
    world
        .state
        .index
        .apply(World::facts("c", "n3"), false, world.now);
    world.run(3, &rates);
    let answer = world.ask(Metric::RequestsPerSecond, Window::S3).unwrap();
    assert_eq!(
        (answer.expected, answer.covered, answer.estimated),
        (3, 2, 0)
    );
    assert_eq!(answer.windows[0].value, 200.0);
    world.run(15, &rates);
    let error = world
        .ask(Metric::RequestsPerSecond, Window::S3)
        .unwrap_err();
    assert!(
        error.to_string().contains("no agent reports from node n3"),
        "{error}"
    );
}

#[test]
fn a_live_agent_that_does_not_see_a_pod_does_not_cover_it() {
    let mut world = shop();
    world.pod("ghost", "n1");
    world.run(20, &[("n1", "a", 25), ("n2", "b", 25)]);
    let error = world
        .ask(Metric::RequestsPerSecond, Window::S3)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("agent of node n1 does not see pod ghost"),
        "{error}"
    );
}

#[test]
fn no_pods_is_no_measurement_and_says_what_there_is_instead() {
    let mut world = World::new();
    let ask = |world: &World| {
        world
            .ask(Metric::RequestsPerSecond, Window::S30)
            .unwrap_err()
    };
    assert_eq!(ask(&world).reason(), "NoPods");
    let mut pending = World::facts("a", "n1");
    pending.phase = Phase::Pending;
    world.state.index.apply(pending, false, world.now);
    let error = ask(&world);
    assert_eq!(error.code(), 404);
    assert!(error.to_string().contains("1 match, 1 pending"), "{error}");
}

#[test]
fn a_family_that_is_off_is_asked_for_and_not_zero() {
    let world = shop();
    let error = world
        .ask(Metric::RunQueueWaitingThreads, Window::S30)
        .unwrap_err();
    assert!(
        error.to_string().contains("does not measure runqueue yet"),
        "{error}"
    );
}

#[test]
fn each_pod_can_have_an_item_of_its_own() {
    let world = shop();
    let query = Query::parse("ebpfscaler.io/group-by=pod").unwrap();
    let metric = Metric::RequestsPerSecond;
    let answer = world
        .state
        .answer("shop", metric, &query, &[Window::S3], world.now)
        .unwrap();
    let pods: Vec<_> = answer
        .pods
        .iter()
        .map(|p| (p.pod.as_str(), p.windows[0].value))
        .collect();
    assert_eq!(pods, [("a", 100.0), ("b", 100.0)]);
}
