//! Ports and containers: missing until they are counted apart, then told apart, and summed without gap or overlap.

use super::*;
use crate::index::Container;
use crate::narrow::{Divisions, Key, PartSample};

const RPS: Metric = Metric::RequestsPerSecond;

fn query(text: &str) -> Query {
    Query::parse(text).unwrap()
}

fn part(container: &str, port: u16, count: u64) -> PartSample {
    PartSample {
        uid: "a".into(),
        key: Key {
            container: (!container.is_empty()).then(|| container.into()),
            port: (port != 0).then_some(port),
        },
        sample: requests(count),
        ..PartSample::default()
    }
}

fn container(name: &str, id: &str, running: bool) -> Container {
    Container {
        name: name.into(),
        id: (!id.is_empty()).then(|| id.into()),
        running,
    }
}

impl World {
    /// A pod of two containers on n1, whose agent has reported for a minute.
    fn divided() -> Self {
        let mut world = Self::new();
        world.containers(vec![
            container("app", "app-1", true),
            container("proxy", "proxy-1", true),
        ]);
        world.hello("n1", 1);
        for tick in 0..240 {
            world.parts(tick * 20, vec![]);
        }
        world
    }

    fn containers(&mut self, containers: Vec<Container>) {
        let facts = PodFacts {
            containers,
            ..Self::facts("a", "n1")
        };
        self.state.index.apply(facts, true, self.now);
    }

    /// A tick later the agent has counted so many requests of the pod, and of its parts.
    fn parts(&mut self, pod: u64, parts: Vec<PartSample>) {
        self.now = self.now.plus(TICK);
        let batch = Batch {
            at: clock_of("n1") + self.now.0,
            samples: vec![("a".into(), requests(pod))],
            parts,
            families: vec![Family::Requests, Family::Network],
            ..Batch::default()
        };
        assert_eq!(self.state.report("n1", 1, batch, self.now).overflow, 0);
    }

    fn narrowed(&self, metric: Metric, text: &str) -> Result<Answer, AnswerError> {
        let (query, window) = (query(text), [Window::S10]);
        self.state.answer("shop", metric, &query, &window, self.now)
    }

    fn rate_of(&self, text: &str) -> f64 {
        self.narrowed(RPS, text).unwrap().windows[0].value
    }
}

#[test]
fn a_port_is_missing_until_it_has_been_counted_apart_for_a_second() {
    let mut world = World::divided();
    let text = "ebpfscaler.io/port=80";
    let missing = |world: &World| {
        let error = world.narrowed(RPS, text).unwrap_err();
        assert_eq!((error.code(), error.reason()), (503, "MissingPods"));
        error.to_string()
    };
    let message = missing(&world);
    assert!(
        message.contains("does not count port 80 of pod a apart yet"),
        "{message}"
    );
    for tick in 0..4 {
        world.parts(4800 + tick * 20, vec![part("", 80, 1000 + tick * 5)]);
        let message = missing(&world);
        assert!(
            message.contains("just begun to count port 80 of pod a apart"),
            "{message}"
        );
    }
    world.parts(4880, vec![part("", 80, 1020)]);
    let answer = world.narrowed(RPS, text).unwrap();
    let value = answer.windows[0];
    assert_eq!((answer.expected, answer.covered), (1, 1));
    assert_eq!(
        (value.value, value.events, value.covered_seconds),
        (20.0, 20, 1.0)
    );
    // The whole pod is what it was.
    assert_eq!(world.rate_of(""), 80.0);
    // Another port is still missing, and so are both together.
    for text in ["ebpfscaler.io/port=81", "ebpfscaler.io/port in (80,81)"] {
        assert!(world.narrowed(RPS, text).is_err(), "{text}");
    }
}

#[test]
fn a_port_that_is_idle_is_a_true_zero() {
    let mut world = World::divided();
    world.parts(4800, vec![part("", 80, 0)]);
    for _ in 0..8 {
        world.parts(4800, vec![]);
    }
    let value = world
        .narrowed(RPS, "ebpfscaler.io/port=80")
        .unwrap()
        .windows[0];
    assert_eq!(
        (value.value, value.events, value.covered_seconds),
        (0.0, 0, 2.0)
    );
}

#[test]
fn parts_add_up_by_port_and_by_container() {
    let mut world = World::divided();
    for tick in 0..48 {
        let parts = vec![
            part("", 80, tick),
            part("app-1", 80, 2 * tick),
            part("app-1", 0, 4 * tick),
            part("proxy-1", 80, 8 * tick),
            part("proxy-1", 0, 16 * tick),
        ];
        world.parts(4800 + tick * 32, parts);
    }
    for (text, per_tick) in [
        ("ebpfscaler.io/port=80", 1.0 + 2.0 + 8.0),
        ("ebpfscaler.io/container=app", 2.0 + 4.0),
        ("ebpfscaler.io/container in (app,proxy)", 30.0),
        ("ebpfscaler.io/container=proxy,ebpfscaler.io/port=80", 8.0),
        (
            "ebpfscaler.io/container=app,ebpfscaler.io/group-by=pod",
            6.0,
        ),
    ] {
        let answer = world.narrowed(RPS, text).unwrap();
        assert_eq!(answer.windows[0].value, per_tick * 4.0, "{text}");
        assert!(
            answer
                .pods
                .iter()
                .all(|pod| pod.windows[0].value == per_tick * 4.0)
        );
    }
    let latency = world.narrowed(Metric::RequestLatencyP50, "ebpfscaler.io/container=app");
    assert_eq!(latency.unwrap().windows[0].events, 240);
}

/// A part that comes later takes over what another of the same port has counted: no gap and no second helping.
#[test]
fn a_port_stays_right_while_containers_begin_to_be_counted_apart() {
    let mut world = World::divided();
    let mut count = 0;
    for tick in 0..80 {
        count += 10;
        let mut parts = vec![part("", 80, count.min(400))];
        if count > 400 {
            parts.push(part("app-1", 80, count - 400 - 10));
        }
        world.parts(4800 + tick * 10, parts);
        if tick > 8 {
            let rate = world.rate_of("ebpfscaler.io/port=80");
            // One tick of ten seconds is the reading with which the new part begins.
            assert!((39.0..=40.0).contains(&rate), "{tick}: {rate}");
        }
    }
}

#[test]
fn a_container_that_restarts_counts_on_and_what_it_did_before_stays_in_the_window() {
    let mut world = World::divided();
    let text = "ebpfscaler.io/container=app";
    for tick in 0..40 {
        world.parts(4800 + tick * 10, vec![part("app-1", 0, tick * 10)]);
    }
    let ended = PartSample {
        ended: true,
        gone: true,
        ..part("app-1", 0, 390)
    };
    world.parts(5200, vec![ended]);
    // For a moment the API still says that it runs; its agent knows better.
    let value = world.rate_of(text);
    assert!((38.0..40.0).contains(&value), "{value}");
    world.containers(vec![
        container("app", "app-1", false),
        container("proxy", "proxy-1", true),
    ]);
    let value = world.rate_of(text);
    assert!((38.0..40.0).contains(&value), "{value}");
    let second = |count| PartSample {
        from_birth: true,
        ..part("app-2", 0, count)
    };
    for tick in 0..20 {
        world.parts(5200 + tick * 10, vec![second(tick * 10)]);
    }
    world.containers(vec![
        container("app", "app-2", true),
        container("proxy", "proxy-1", true),
    ]);
    let value = world.narrowed(RPS, text).unwrap().windows[0];
    assert_eq!(value.covered_seconds, 10.0);
    assert!((380..=400).contains(&value.events), "{value:?}");
}

#[test]
fn a_part_that_nobody_wanted_for_a_while_is_missing_again() {
    let mut world = World::divided();
    for tick in 0..8 {
        world.parts(4800 + tick * 20, vec![part("app-1", 0, tick)]);
    }
    assert_eq!(world.rate_of("ebpfscaler.io/container=app"), 4.0);
    let ended = PartSample {
        ended: true,
        ..part("app-1", 0, 8)
    };
    world.parts(5000, vec![ended]);
    assert!(world.narrowed(RPS, "ebpfscaler.io/container=app").is_err());
}

#[test]
fn what_can_not_be_narrowed_so_and_who_is_not_there_is_told() {
    let world = World::divided();
    for (metric, text, code, says) in [
        (
            Metric::RunQueueWaitingThreads,
            "ebpfscaler.io/port=80",
            400,
            "ebpfscaler.io/port can not narrow runqueue_waiting_threads: threads have no port",
        ),
        (
            Metric::CpuThrottledRatio,
            "ebpfscaler.io/container=app",
            400,
            "ebpfscaler.io/container can not narrow cpu_throttled_ratio",
        ),
        (
            RPS,
            "ebpfscaler.io/container=ap",
            404,
            "none of the 1 pods in namespace shop for \"\" has a container ap; they have: app, proxy",
        ),
    ] {
        let error = world.narrowed(metric, text).unwrap_err();
        assert_eq!(error.code(), code, "{text}");
        assert!(error.to_string().contains(says), "{text}: {error}");
    }
}

#[test]
fn an_agent_that_comes_back_without_a_part_does_not_leave_a_zero() {
    let mut world = World::divided();
    for tick in 0..8 {
        let parts = vec![part("", 80, tick), part("", 81, tick)];
        world.parts(4800 + tick * 20, parts);
    }
    world.hello("n1", 1);
    for tick in 8..16 {
        world.parts(4800 + tick * 20, vec![part("", 81, tick)]);
    }
    assert!(world.narrowed(RPS, "ebpfscaler.io/port=80").is_err());
    assert_eq!(world.rate_of("ebpfscaler.io/port=81"), 4.0);
}

#[test]
fn agents_are_told_of_pods_that_are_only_starting_and_not_of_those_without_the_container() {
    let mut world = World::divided();
    let starting = PodFacts {
        phase: Phase::Pending,
        containers: vec![container("app", "", false)],
        ..World::facts("b", "n2")
    };
    world.state.index.apply(starting, false, world.now);
    world.pod("other", "n2");
    let mut divisions = Divisions::new();
    for text in [
        "ebpfscaler.io/container=app",
        "ebpfscaler.io/port=80",
        "app=x",
    ] {
        world.state.divide("shop", &query(text), &mut divisions);
    }
    let of = |node: &str, uid: &str| divisions.get(node).and_then(|pods| pods.get(uid));
    for (node, uid, containers) in [("n1", "a", true), ("n2", "b", true), ("n2", "other", false)] {
        let division = of(node, uid).unwrap();
        assert_eq!(division.containers, containers, "{uid}");
        assert!(division.ports.contains(&80));
    }
}
