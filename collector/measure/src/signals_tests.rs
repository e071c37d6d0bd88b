use std::sync::Arc;

use ebpf_scaler_common::Counters;
use proptest::prelude::*;

use super::*;
use crate::index::{OwnerRef, Phase, PodFacts};
use crate::node::{Batch, Hello};
use crate::quantile::Sparse;
use crate::query::Query;
use crate::series::{Preemptor, Sample};

const TICK: u64 = 250_000;
const SECOND: u64 = 1_000_000;

struct World {
    state: State,
    now: Time,
}

fn facts(name: &str, owner: &str, node: &str) -> PodFacts {
    let owner = (!owner.is_empty()).then(|| OwnerRef {
        kind: "StatefulSet".into(),
        name: owner.into(),
        uid: owner.into(),
    });
    PodFacts {
        uid: format!("uid-{name}").into(),
        namespace: "shop".into(),
        name: name.into(),
        labels: [
            ("app".to_owned(), "web".to_owned()),
            ("pod".to_owned(), name.to_owned()),
        ]
        .into(),
        owner,
        node: Some(node.into()),
        phase: Phase::Running,
        ready: true,
        ..PodFacts::default()
    }
}

/// What a pod has done after `n` steps of its own.
fn sample(n: u64) -> Sample {
    Sample {
        epoch: 1,
        counters: Counters {
            requests: n,
            responses_2xx: n - n / 4,
            responses_5xx: n / 4,
            requests_in_flight: n % 5,
            receive_bytes: n * 700,
            transmit_bytes: n * 2100,
            receive_packets: n * 3,
            transmit_packets: n * 4,
            tcp_retransmits: n / 3,
            connections_opened: n / 2,
            runqueue_waits: n * 2,
            runqueue_wait_nanos: n * 5_000_000,
            runqueue_wait_self_nanos: n * 1_000_000,
            runqueue_wait_other_pods_nanos: n * 3_000_000,
            runqueue_wait_system_nanos: n * 1_000_000,
            cpu_throttled_micros: n * 1000,
            ..Counters::default()
        },
        request_latency: Sparse::from_pairs([(60, n), (200, n / 10)]).0,
        runqueue_latency: Sparse::from_pairs([(40, n * 2)]).0,
        tcp_rtt: Sparse::from_pairs([(80, n / 2)]).0,
        preemptors: Vec::new(),
    }
}

impl World {
    fn new() -> Self {
        Self {
            state: State::default(),
            now: Time(3600 * SECOND),
        }
    }

    fn hello(&mut self, node: &str) {
        let hello = Hello {
            agent_epoch: 1,
            ..Hello::default()
        };
        self.state.hello(node, &hello);
    }

    fn report(&mut self, node: &str, families: &[Family], pods: &[(&str, Sample)]) {
        let clock = u64::from(node.bytes().last().unwrap()) * 1_000_000_007;
        let batch = Batch {
            at: clock + self.now.0,
            samples: pods
                .iter()
                .map(|(pod, sample)| (format!("uid-{pod}").into(), sample.clone()))
                .collect(),
            families: families.to_vec(),
            ..Batch::default()
        };
        self.state.report(node, 1, batch, self.now);
    }

    fn workload(&self, name: &str, window: Window) -> WorkloadSignals {
        let all = self.state.workload_signals("shop", window, self.now);
        all.into_iter().find(|w| w.workload.name == name).unwrap()
    }
}

/// Three pods of web and one without an owner on two nodes, which measure everything, for 40 s at 20 steps a
/// second and pod.
fn shop() -> World {
    let mut world = World::new();
    let pods = [
        ("web-0", "n1"),
        ("web-1", "n1"),
        ("web-2", "n2"),
        ("lone", "n2"),
    ];
    for (pod, node) in pods {
        let owner = if pod == "lone" { "" } else { "web" };
        world
            .state
            .index
            .apply(facts(pod, owner, node), true, world.now);
    }
    world.hello("n1");
    world.hello("n2");
    run(&mut world, 0..160, &["n1", "n2"]);
    world
}

fn run(world: &mut World, ticks: std::ops::Range<u64>, nodes: &[&str]) {
    for tick in ticks {
        world.now = world.now.plus(TICK);
        for node in nodes {
            let pods = if *node == "n1" {
                ["web-0", "web-1"]
            } else {
                ["web-2", "lone"]
            };
            world.report(node, &Family::ALL, &pods.map(|pod| (pod, sample(tick * 5))));
        }
    }
}

#[test]
fn a_workload_is_the_sum_of_its_pods_and_says_how_many() {
    let world = shop();
    let web = world.workload("web", Window::S30);
    assert_eq!(
        (&*web.namespace, &*web.workload.kind),
        ("shop", "StatefulSet")
    );
    let s = &web.signals;
    assert_eq!(s.value(Metric::RequestsPerSecond), Some(60.0));
    assert_eq!(
        s.value(Metric::NetworkReceiveBytesPerSecond),
        Some(42_000.0)
    );
    assert_eq!((s.expected, s.covered, s.estimated), (3, 3, 0));
    assert_eq!(s.gaps, []);
    assert_eq!(s.sampled, Some(world.now));
    let labels: Vec<_> = web.labels.keys().collect();
    assert_eq!(labels, ["app"], "only what all pods have in common");
    let lone = world.workload("lone", Window::S30);
    assert_eq!(lone.workload.kind, "Pod");
    assert_eq!(lone.signals.value(Metric::RequestsPerSecond), Some(20.0));
}

#[test]
fn pods_have_values_of_their_own() {
    let world = shop();
    let pods = world.state.pod_signals("shop", Window::S3, world.now);
    let found: Vec<_> = pods
        .iter()
        .map(|p| {
            (
                &*p.name,
                &*p.workload.name,
                p.signals.value(Metric::RequestsPerSecond),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("lone", "lone", Some(20.0)),
            ("web-0", "web", Some(20.0)),
            ("web-1", "web", Some(20.0)),
            ("web-2", "web", Some(20.0)),
        ]
    );
    assert_eq!(pods[3].node.as_deref(), Some("n2"));
}

#[test]
fn waits_have_causes_and_those_who_caused_them_have_names() {
    let mut world = shop();
    let mut batch = facts("batch-7", "batch", "n1");
    batch.namespace = "jobs".into();
    world.state.index.apply(batch, true, world.now);
    for (pod, node, threads) in [
        ("web-0", "n1", 0.5),
        ("web-1", "n1", 0.25),
        ("web-2", "n2", 0.1),
    ] {
        let mut blamed = sample(900);
        let by = |uid: Option<&str>, waiting_threads| Preemptor {
            pod_uid: uid.map(Arc::from),
            waiting_threads,
        };
        blamed.preemptors = vec![
            by(Some("uid-batch-7"), threads),
            by(None, threads / 10.0),
            by(Some("uid-gone"), threads / 100.0),
        ];
        world.now = world.now.plus(TICK);
        world.report(node, &Family::ALL, &[(pod, blamed)]);
    }
    let signals = world.workload("web", Window::S30).signals;
    let causes: Vec<_> = signals
        .causes()
        .into_iter()
        .map(|w| (w.cause, (w.share * 100.0).round()))
        .collect();
    assert_eq!(
        causes,
        [
            (Cause::OtherPods, 60.0),
            (Cause::OwnPod, 20.0),
            (Cause::System, 20.0)
        ]
    );
    let blamed: Vec<_> = signals
        .blamed
        .iter()
        .map(|b| (&b.who, (b.waiting_threads * 1000.0).round()))
        .collect();
    let batch = Who::Pod {
        namespace: "jobs".into(),
        name: "batch-7".into(),
        workload: WorkloadRef {
            kind: "StatefulSet".into(),
            name: "batch".into(),
        },
    };
    assert_eq!(
        blamed,
        [(&batch, 850.0), (&Who::Node, 85.0), (&Who::UnknownPod, 9.0)]
    );
}

#[test]
fn what_is_not_known_is_absent_with_its_reason_and_never_zero() {
    let mut world = World::new();
    world
        .state
        .index
        .apply(facts("web-0", "web", "n1"), true, world.now);
    let mut pending = facts("new-0", "new", "n1");
    pending.phase = Phase::Pending;
    world.state.index.apply(pending, false, world.now);
    world.hello("n1");
    for _ in 0..40 {
        world.now = world.now.plus(TICK);
        let families = [Family::Requests, Family::Network];
        world.report("n1", &families, &[("web-0", sample(0))]);
    }
    let web = world.workload("web", Window::S3).signals;
    assert_eq!(
        web.value(Metric::RequestsPerSecond),
        Some(0.0),
        "seen and idle is a true zero"
    );
    for metric in [
        Metric::RequestLatencyP99,
        Metric::TcpRttP50,
        Metric::RunQueueWaitingThreads,
    ] {
        assert_eq!(web.value(metric), None, "{metric}");
    }
    let reasons: Vec<_> = web.gaps.iter().map(|g| (g.family, g.reason)).collect();
    assert_eq!(
        reasons,
        [
            (Family::Requests, GapReason::NoEvents),
            (Family::Network, GapReason::NoEvents),
            (Family::RunQueue, GapReason::MissingPods),
        ]
    );
    let says = &web.gaps[2].message;
    assert!(
        says.contains("node n1 does not measure runqueue yet"),
        "{says}"
    );
    assert!(web.blamed.is_empty() && web.causes().is_empty());
    assert_eq!(
        (web.expected, web.covered),
        (1, 1),
        "what has values is covered"
    );

    let new = world.workload("new", Window::S3).signals;
    assert!(Metric::ALL.iter().all(|m| new.value(*m).is_none()));
    assert!(new.gaps.iter().all(|g| g.reason == GapReason::NoPods));
    assert!(new.gaps[0].message.contains("1 pending"), "{:?}", new.gaps);
    assert_eq!(new.sampled, None);
}

#[test]
fn a_silent_node_is_declared_and_then_ends_the_values() {
    let mut world = shop();
    run(&mut world, 160..180, &["n1"]);
    let web = world.workload("web", Window::S3).signals;
    assert_eq!((web.expected, web.covered, web.estimated), (3, 2, 1));
    assert_eq!(web.silent_nodes, ["n2"]);
    assert_eq!(web.value(Metric::RequestsPerSecond), Some(60.0));
    run(&mut world, 180..240, &["n1"]);
    let web = world.workload("web", Window::S3).signals;
    assert_eq!(web.value(Metric::RequestsPerSecond), None);
    assert!(
        web.gaps[0].message.contains("node n2 is silent for 20 s"),
        "{:?}",
        web.gaps
    );
    // The pods on the other node are known on their own.
    let pods = world.state.pod_signals("shop", Window::S3, world.now);
    let known: Vec<_> = pods.iter().map(|p| p.signals.covered).collect();
    assert_eq!(known, [0, 1, 1, 0]);
}

#[test]
fn what_is_over_is_not_listed_but_told_for_a_while() {
    let mut world = shop();
    let before = world.now;
    world.now = world.now.plus(SECOND);
    world.state.index.delete("uid-lone", world.now);
    let mut done = facts("web-2", "web", "n2");
    done.phase = Phase::Succeeded;
    world.state.index.apply(done, false, world.now);
    let names = |found: Vec<WorkloadSignals>| -> Vec<String> {
        found.into_iter().map(|w| w.workload.name).collect()
    };
    let all = world.state.workload_signals("shop", Window::S3, world.now);
    assert_eq!(names(all), ["web"]);
    assert_eq!(names(world.state.workloads_over("shop", before)), ["lone"]);
    assert_eq!(world.state.workloads_over("shop", world.now.plus(1)), []);
    let over = world.state.pods_over("shop", before);
    let mut over: Vec<_> = over.iter().map(|p| &*p.name).collect();
    over.sort_unstable();
    assert_eq!(over, ["lone", "web-2"]);
}

#[test]
fn what_is_only_sampled_later_is_the_same() {
    let mut world = shop();
    run(&mut world, 160..161, &["n1", "n2"]);
    let before = world.workload("web", Window::S3).signals;
    run(&mut world, 161..162, &["n1", "n2"]);
    let after = world.workload("web", Window::S3).signals;
    assert!(
        before.sampled < after.sampled && before.is_same(&after),
        "{before:?} {after:?}"
    );
    run(&mut world, 500..501, &["n1", "n2"]);
    assert!(!before.is_same(&world.workload("web", Window::S3).signals));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, both ways of asking say the same.
    #[test]
    fn every_value_is_what_answer_gives(
        ticks in prop::collection::vec((0u64..4, 0u8..8, 0u8..16, 0usize..5), 20..120),
        window in prop::sample::select(Window::ALL.to_vec()),
    ) {
        let mut world = World::new();
        let pods = [
            ("a-0", "a", "n1"), ("a-1", "a", "n2"), ("a-2", "a", "n3"),
            ("b-0", "b", "n1"), ("b-1", "b", "n3"), ("lone", "", "n2"),
        ];
        for node in ["n1", "n2", "n3"] {
            world.hello(node);
        }
        let mut counts = [0u64; 6];
        let mut known = 0;
        for (i, (step, silent, event, which)) in ticks.iter().enumerate() {
            world.now = world.now.plus(TICK);
            match event {
                // Pods come, at first all but one at once.
                _ if known < 5 && i == 0 => known = 5,
                1 if known < 6 => known = 6,
                2 => world.state.index.delete(&format!("uid-{}", pods[*which].0), world.now),
                _ => {}
            }
            for (i, (pod, owner, node)) in pods.iter().enumerate().take(known) {
                let uid = format!("uid-{pod}");
                if world.state.index.by_cgroup_uid(&uid).is_none() {
                    world.state.index.apply(facts(pod, owner, node), known == 5, world.now);
                }
                if *event == 3 && i == *which {
                    let mut ending = facts(pod, owner, node);
                    ending.deleting = true;
                    world.state.index.apply(ending, false, world.now);
                }
                counts[i] += step * i as u64;
            }
            for (n, node) in ["n1", "n2", "n3"].into_iter().enumerate() {
                // A node is silent in stretches.
                if i > 30 && usize::from(*silent) == n {
                    world.now = world.now.plus(SECOND);
                    continue;
                }
                let families = if n == 2 && i % 40 < 20 { &Family::ALL[..2] } else { &Family::ALL[..] };
                let own: Vec<_> = pods.iter().zip(counts).take(known)
                    .filter(|((_, _, of), _)| *of == node)
                    .map(|((pod, ..), count)| (*pod, sample(count)))
                    .collect();
                world.report(node, families, &own);
            }
        }
        let now = world.now;
        let mut all: Vec<(String, Signals)> = Vec::new();
        for w in world.state.workload_signals("shop", window, now) {
            let key = if w.workload.kind == "Pod" { "pod" } else { "workload" };
            all.push((format!("ebpfscaler.io/{key}={}", w.workload.name), w.signals));
        }
        for p in world.state.pod_signals("shop", window, now) {
            all.push((format!("ebpfscaler.io/pod={}", p.name), p.signals));
        }
        for (selector, signals) in all {
            let query = Query::parse(&selector).unwrap();
            for metric in Metric::ALL {
                let answer = world.state.answer("shop", *metric, &query, &[window], now);
                let gap = signals.gaps.iter().find(|g| g.metrics.contains(metric)).map(|g| g.reason);
                let quantile = matches!(metric.aggregation(), Aggregation::Quantile(..));
                match answer {
                    Ok(a) if quantile && a.windows[0].events == 0 => {
                        prop_assert_eq!(gap, Some(GapReason::NoEvents));
                        prop_assert_eq!(signals.value(*metric), None);
                    }
                    Ok(a) => {
                        prop_assert_eq!(gap, None);
                        prop_assert_eq!(signals.value(*metric), Some(a.windows[0].value), "{} {}", selector, metric);
                        prop_assert_eq!((signals.expected, &signals.silent_nodes), (a.expected, &a.silent_nodes));
                        prop_assert!(signals.covered <= a.covered && signals.estimated >= a.estimated);
                    }
                    Err(e) => prop_assert_eq!(gap.map(GapReason::as_str), Some(e.reason())),
                }
            }
        }
    }
}

/// The time it takes is printed; what is asserted leaves room for a debug build on a slow machine.
#[test]
fn ten_thousand_pods_are_gone_through_in_a_moment() {
    let mut world = World::new();
    let nodes: Vec<String> = (0..334).map(|i| format!("n{i}")).collect();
    let mut on: Vec<Vec<String>> = vec![Vec::new(); nodes.len()];
    for i in 0..10_000 {
        let (pod, node) = (format!("p{i}"), i % nodes.len());
        let facts = facts(&pod, &format!("w{}", i / 10), &nodes[node]);
        world.state.index.apply(facts, true, world.now);
        on[node].push(pod);
    }
    for node in &nodes {
        world.hello(node);
    }
    for tick in 0..44 {
        world.now = world.now.plus(TICK);
        for (node, pods) in nodes.iter().zip(&on) {
            let active = pods
                .iter()
                .enumerate()
                .filter(|(i, _)| i % 5 == 0 || tick == 0);
            let samples: Vec<_> = active
                .map(|(_, pod)| (pod.as_str(), sample(tick * 5)))
                .collect();
            world.report(node, &Family::ALL, &samples);
        }
    }
    for (what, count) in [("workloads", 1000), ("pods", 10_000)] {
        let began = std::time::Instant::now();
        let found = match what {
            "workloads" => world
                .state
                .workload_signals("shop", Window::S30, world.now)
                .len(),
            _ => world
                .state
                .pod_signals("shop", Window::S30, world.now)
                .len(),
        };
        let took = began.elapsed();
        println!("signals of {found} {what} of 10,000 pods: {took:?}");
        assert_eq!(found, count);
        assert!(took.as_secs() < 10, "{took:?}");
    }
}
