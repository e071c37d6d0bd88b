use std::sync::Arc;

use ebpf_scaler_common::Counters;
use proptest::prelude::*;

use super::*;
use crate::index::PodFacts;
use crate::metric::Family;
use crate::node::{Batch, Hello, Received};
use crate::quantile::Sparse;
use crate::series::Sample;

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
fn a_metric_that_is_not_measured_is_not_zero() {
    let error = shop().ask(Metric::TcpRttP50, Window::S30).unwrap_err();
    assert_eq!((error.code(), error.reason()), (404, "NotMeasured"));
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
fn a_restart_of_the_agent_gives_no_jump_and_no_hole() {
    let mut world = shop();
    world.hello("n2", 2);
    // The new run counts from zero, under the same load; the first second its predecessor stands in.
    for tick in 0..40u64 {
        world.tick(&[("n1", "a", 25)]);
        let mut anew = requests(tick * 25);
        anew.epoch = 2;
        world.report("n2", 2, &[("b", anew)]);
        for window in [Window::S3, Window::S30] {
            let answer = world.ask(Metric::RequestsPerSecond, window).unwrap();
            let value = answer.windows[0].value;
            assert!((value - 200.0).abs() < 1.0, "{tick} {window}: {value}");
            assert_eq!(answer.estimated, usize::from(tick < 4), "{tick}");
        }
    }
    let answer = world.ask(Metric::RequestsPerSecond, Window::S30).unwrap();
    assert!(
        answer.windows[0].covered_seconds < 21.0,
        "the old epoch is not mixed in"
    );
    // What the old run sends late is not taken.
    assert!(world.report("n2", 1, &[("b", requests(9999))]).late);
}

#[test]
fn a_step_from_five_to_fifty_pods_never_exceeds_the_true_sum() {
    let mut world = World::new();
    world.hello("n1", 1);
    let old: Vec<String> = (0..5).map(|i| format!("old{i}")).collect();
    let new: Vec<String> = (0..45).map(|i| format!("new{i}")).collect();
    for pod in &old {
        world.pod(pod, "n1");
    }
    let mut counts = vec![0u64; 50];
    world.report("n1", 1, &[]);
    // 500 requests/s in all, shared by whoever is there; the 45 come at 40 s.
    for tick in 0..320u64 {
        world.now = world.now.plus(TICK);
        let scaled = tick >= 160;
        if tick == 160 {
            for pod in &new {
                let facts = World::facts(pod, "n1");
                world.state.index.apply(facts, false, world.now);
            }
        }
        let pods: Vec<_> = if scaled {
            old.iter().chain(&new).collect()
        } else {
            old.iter().collect()
        };
        let each = 125 / pods.len() as u64;
        let batch: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(i, pod)| {
                let extra = u64::from((i as u64) < 125 % pods.len() as u64);
                counts[i] += each + extra;
                (pod.as_str(), requests(counts[i]))
            })
            .collect();
        world.report("n1", 1, &batch);
        if tick >= 150 {
            for window in [Window::S3, Window::S10, Window::S30] {
                let value = world.rate(window);
                assert!((value - 500.0).abs() <= 5.0, "{tick} {window}: {value}");
            }
        }
    }
}

#[test]
fn a_rolling_update_keeps_the_sum_while_pods_come_and_go() {
    let mut world = shop();
    // b ends, c takes over on the same node at the same rate.
    world.state.index.delete("b", world.now);
    let facts = World::facts("c", "n2");
    world.state.index.apply(facts, false, world.now);
    for tick in 0..40 {
        world.tick(&[("n1", "a", 25), ("n2", "c", 25)]);
        for window in [Window::S3, Window::S30] {
            let value = world.rate(window);
            assert!((value - 200.0).abs() < 1.0, "{tick} {window}: {value}");
        }
    }
}

#[test]
fn a_pod_that_left_a_dead_node_fades_out_of_the_window() {
    let mut world = shop();
    world.state.index.delete("b", world.now);
    world.run(3, &[("n1", "a", 25)]);
    assert_eq!(world.rate(Window::S3), 100.0);
}

#[test]
fn samples_of_pods_on_other_nodes_are_refused_and_of_unknown_ones_kept() {
    let mut world = shop();
    let received = world.report("n1", 1, &[("b", requests(1_000_000)), ("new", requests(7))]);
    assert_eq!((received.foreign, received.accepted), (1, 1));
    assert_eq!(world.rate(Window::S3), 200.0);
    // The watch was behind: the pod becomes known, its first seconds count.
    world.run(3, &[("n1", "a", 25), ("n2", "b", 25)]);
    world.state.sweep(world.now);
    world.pod("new", "n1");
    assert!(world.rate(Window::S10) > 200.0);
}

#[test]
fn a_pod_known_late_does_not_count_its_whole_past() {
    let mut world = shop();
    world.report("n1", 1, &[("new", requests(1_000_000))]);
    let rates = [("n1", "a", 25), ("n2", "b", 25)];
    world.run(12, &rates);
    world.state.sweep(world.now);
    world.pod("new", "n1");
    world.run(1, &rates);
    world.report("n1", 1, &[("new", requests(1_000_010))]);
    let value = world.rate(Window::S30);
    assert!(value < 211.0, "{value}");
}

#[test]
fn a_new_replica_answers_every_window_from_the_replay() {
    let mut world = World::new();
    world.pod("a", "n1");
    world.hello("n1", 1);
    let batch = |at: u64, n: u64, replay: bool| Batch {
        replay,
        at,
        samples: vec![(Arc::from("a"), requests(n))],
        families: if replay {
            vec![]
        } else {
            vec![Family::Requests]
        },
        ..Batch::default()
    };
    for second in 0..60u64 {
        let replayed = batch((1000 + second) * SECOND, 5000 + second * 100, true);
        world.state.report("n1", 1, replayed, world.now);
    }
    assert!(
        world.ask(Metric::RequestsPerSecond, Window::S3).is_err(),
        "not yet heard"
    );
    let live = batch(1060 * SECOND, 11_000, false);
    world.state.report("n1", 1, live, world.now);
    for window in [Window::S3, Window::S10, Window::S30, Window::S60] {
        assert_eq!(world.rate(window), 100.0, "{window}");
    }
    let answer = world.ask(Metric::RequestsPerSecond, Window::M5).unwrap();
    assert_eq!(answer.windows[0].value, 100.0);
    assert_eq!(answer.windows[0].covered_seconds, 60.0);
}

#[test]
fn a_snapshot_in_parts_is_one_reading() {
    let mut world = World::new();
    for pod in ["a", "b"] {
        world.pod(pod, "n1");
    }
    world.hello("n1", 1);
    for pod in ["a", "b"] {
        world.report("n1", 1, &[(pod, requests(1_000_000))]);
    }
    for tick in 1..=40u64 {
        world.now = world.now.plus(TICK);
        for pod in ["a", "b"] {
            world.report("n1", 1, &[(pod, requests(1_000_000 + tick * 25))]);
        }
    }
    assert_eq!(world.rate(Window::S3), 200.0);
    assert_eq!(world.rate(Window::S30), 200.0);
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

proptest! {
    /// Whatever is lost or repeated on the way of one node, once a reading has come the longest window
    /// holds exactly what the counters say.
    #[test]
    fn totals_survive_any_loss(fates in prop::collection::vec((0u8..4, 0u64..50), 8..400)) {
        let mut world = World::new();
        world.pod("a", "n1");
        world.hello("n1", 1);
        world.report("n1", 1, &[("a", requests(0))]);
        let mut total = 0;
        for (fate, events) in fates {
            world.now = world.now.plus(TICK);
            total += events;
            for _ in 0..fate {
                world.report("n1", 1, &[("a", requests(total))]);
            }
        }
        world.now = world.now.plus(TICK);
        world.report("n1", 1, &[("a", requests(total))]);
        let answer = world.ask(Metric::RequestsPerSecond, Window::M5).unwrap();
        prop_assert_eq!(answer.windows[0].events, total);
    }
}
