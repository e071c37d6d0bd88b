use std::sync::Arc;

use proptest::prelude::*;

use super::*;

impl World {
    fn apply(&mut self, name: &str, node: &str, change: impl FnOnce(&mut PodFacts)) {
        let mut facts = Self::facts(name, node);
        change(&mut facts);
        self.state.index.apply(facts, false, self.now);
    }

    fn rates(&self) -> Answer {
        self.ask(Metric::RequestsPerSecond, Window::S3).unwrap()
    }

    /// Each pod's own rate, of those that have one.
    fn each(&self) -> Vec<(String, f64, bool)> {
        let (metric, query) = (Metric::RequestsPerSecond, Query::default());
        let windows = [Window::S3];
        let answer = self
            .state
            .answer_each("shop", metric, &query, &windows, self.now)
            .unwrap();
        let own = |p: &PodValue| (p.pod.clone(), p.windows[0].value, p.estimated);
        answer.pods.iter().map(own).collect()
    }
}

#[test]
fn a_starting_pod_is_not_missed_and_what_it_does_counts() {
    let mut world = shop();
    let both = [("n1", "a", 25), ("n2", "b", 25)];
    // Pending for long: its image is being pulled, on a node whose agent knows nothing of it.
    world.apply("c", "n3", |pod| pod.phase = Phase::Pending);
    world.run(20, &both);
    assert_eq!((world.rates().expected, world.rates().coverage()), (2, 1.0));
    // It runs and serves, but nobody has to have seen it within the first two seconds.
    world.apply("c", "n1", |_| {});
    world.run(1, &[both[0], both[1], ("n1", "c", 25)]);
    let answer = world.rates();
    assert_eq!((answer.expected, answer.coverage()), (2, 1.0));
    assert!(answer.windows[0].value > 225.0, "{answer:?}");
    world.run(4, &[both[0], both[1], ("n1", "c", 25)]);
    let answer = world.rates();
    assert_eq!((answer.expected, answer.covered), (3, 3));
    assert_eq!(answer.windows[0].value, 300.0);
}

#[test]
fn a_terminating_pod_counts_as_long_as_it_serves_and_is_not_missed() {
    let mut world = shop();
    world.apply("b", "n2", |pod| pod.deleting = true);
    world.run(5, &[("n1", "a", 25), ("n2", "b", 25)]);
    let answer = world.rates();
    assert_eq!((answer.expected, answer.windows[0].value), (1, 200.0));
    // Its node dies meanwhile: nothing is missed, for its work is being taken over.
    world.run(20, &[("n1", "a", 25)]);
    let answer = world.rates();
    assert_eq!((answer.expected, answer.coverage()), (1, 1.0));
    assert_eq!(answer.windows[0].value, 100.0);
    assert!(answer.silent_nodes.is_empty());
}

#[test]
fn an_unready_pod_counts_with_what_it_does() {
    let mut world = shop();
    world.apply("b", "n2", |pod| pod.ready = false);
    world.run(5, &[("n1", "a", 25), ("n2", "b", 10)]);
    let answer = world.rates();
    assert_eq!((answer.expected, answer.covered), (2, 2));
    assert_eq!(answer.windows[0].value, 140.0);
}

#[test]
fn completed_and_evicted_pods_leave_with_their_window() {
    for phase in [Phase::Succeeded, Phase::Failed] {
        let mut world = shop();
        world.apply("b", "n2", |pod| pod.phase = phase);
        world.run(1, &[("n1", "a", 25), ("n2", "b", 0)]);
        let answer = world.rates();
        assert_eq!((answer.expected, answer.covered), (1, 1), "{phase:?}");
        let value = answer.windows[0].value;
        assert!((value - 166.7).abs() < 1.0, "{phase:?}: {value}");
        world.run(3, &[("n1", "a", 25), ("n2", "b", 0)]);
        assert_eq!(world.rate(Window::S3), 100.0, "{phase:?}");
        // Alone it is nothing to measure: a Job that has ended has no rate of 0.
        world.apply("a", "n1", |pod| pod.phase = phase);
        let error = world.ask(Metric::RequestsPerSecond, Window::S3);
        assert_eq!(error.unwrap_err().reason(), "NoPods");
    }
}

#[test]
fn a_node_that_comes_back_begins_anew() {
    let mut world = shop();
    // Dead for five minutes, and then booted: its monotonic clock begins at 0, its agent has a new epoch.
    world.run(300, &[("n1", "a", 25)]);
    let error = world.ask(Metric::RequestsPerSecond, Window::S30);
    assert_eq!(error.unwrap_err().reason(), "MissingPods");
    world.hello("n2", 2);
    let report = |world: &mut World, tick: u64| {
        world.tick(&[("n1", "a", 25)]);
        let mut sample = requests(tick * 25);
        sample.epoch = 2;
        let batch = Batch {
            at: 20 * SECOND + tick * TICK,
            samples: vec![(Arc::from("b"), sample)],
            families: vec![Family::Requests, Family::Network],
            ..Batch::default()
        };
        assert!(!world.state.report("n2", 2, batch, world.now).late);
    };
    for tick in 0..4 {
        report(&mut world, tick);
        let answer = world.ask(Metric::RequestsPerSecond, Window::S30);
        assert!(answer.is_err(), "{tick}: half a second is no rate");
    }
    for tick in 4..40 {
        report(&mut world, tick);
        for window in Window::ALL {
            let value = world.rate(window);
            assert!((value - 200.0).abs() < 1.0, "{tick} {window}: {value}");
        }
    }
}

#[test]
fn wall_clocks_minutes_off_change_nothing() {
    let mut world = World::new();
    // What kubelets write comes from their clocks; ours decides how long a pod has run.
    for (pod, node, started) in [("a", "n1", 0), ("b", "n2", i64::MAX)] {
        world.hello(node, 1);
        world.report(node, 1, &[]);
        world.now = world.now.plus(TICK);
        world.apply(pod, node, |facts| facts.started = Some(started));
        world.report(node, 1, &[(pod, requests(0))]);
    }
    world.run(1, &[("n1", "a", 25), ("n2", "b", 25)]);
    assert!(world.ask(Metric::RequestsPerSecond, Window::S3).is_err());
    world.run(40, &[("n1", "a", 25), ("n2", "b", 25)]);
    let answer = world.ask(Metric::RequestsPerSecond, Window::S30).unwrap();
    assert_eq!((answer.expected, answer.covered), (2, 2));
    assert_eq!(answer.windows[0].value, 200.0);
    assert_eq!(answer.sampled, world.now, "by our clock");
}

#[test]
fn a_pod_that_two_nodes_report_is_the_one_on_its_own_node() {
    let mut world = shop();
    let rates = [("n1", "a", 25), ("n2", "b", 25)];
    // Nobody knows yet where it runs: both are kept, neither counts.
    for tick in 1..=8 {
        world.tick(&rates);
        world.report("n1", 1, &[("new", requests(tick * 100_000))]);
        world.report("n2", 1, &[("new", requests(tick * 10))]);
    }
    assert_eq!(world.rate(Window::S3), 200.0);
    world.state.drain_requests();
    world.apply("new", "n2", |_| {});
    let counted: u64 = world.state.drain_requests().values().sum();
    assert_eq!(counted, 80, "the audit's counter as well");
    for tick in 9..=24 {
        world.tick(&rates);
        let refused = world.report("n1", 1, &[("new", requests(tick * 100_000))]);
        assert_eq!(refused.foreign, 1);
        world.report("n2", 1, &[("new", requests(tick * 10))]);
    }
    assert_eq!(world.rate(Window::S3), 240.0);
}

#[test]
fn two_agents_of_one_node_are_never_added_up() {
    let mut world = shop();
    // During an upgrade both run; the one that introduced itself last counts.
    world.hello("n2", 2);
    for tick in 1..=40u64 {
        world.tick(&[("n1", "a", 25)]);
        let old = world.report("n2", 1, &[("b", requests(4000 + tick * 25))]);
        assert!(old.late);
        let mut new = requests(tick * 25);
        new.epoch = 2;
        assert!(!world.report("n2", 2, &[("b", new)]).late);
        let value = world.rate(Window::S3);
        assert!((value - 200.0).abs() < 1.0, "{tick}: {value}");
    }
    let requests: u64 = world.state.drain_requests().values().sum();
    assert_eq!(requests, 4000 + 4000 + 40 * 25 + 40 * 25);
}

#[test]
fn a_pods_counters_that_begin_anew_are_not_mixed_with_those_before() {
    let mut world = shop();
    // A static pod comes back under its UID: another slot, another epoch, fewer requests.
    for tick in 1..=8u64 {
        world.tick(&[("n1", "a", 25)]);
        let mut anew = requests(tick * 5);
        anew.epoch = 7;
        world.report("n2", 1, &[("b", anew)]);
        for window in [Window::S3, Window::S30, Window::M5] {
            let value = world.rate(window);
            assert!((value - 120.0).abs() < 0.1, "{tick} {window}: {value}");
        }
    }
    let answer = world.ask(Metric::RequestsPerSecond, Window::S30).unwrap();
    assert_eq!(answer.windows[0].covered_seconds, (30.0 + 2.0) / 2.0);
}

#[test]
fn quantiles_are_those_of_all_requests_not_an_average_of_the_pods() {
    let mut world = World::new();
    let slow = |n: u64| Sample {
        request_latency: Sparse::from_pairs([(
            ebpf_scaler_common::histogram::index(100_000) as u32,
            n,
        )])
        .0,
        ..requests(n)
    };
    for (node, pod) in [("n1", "a"), ("n2", "b")] {
        world.pod(pod, node);
        world.hello(node, 1);
    }
    // A hundred fast requests for each slow one.
    for tick in 0..=40u64 {
        world.now = world.now.plus(TICK);
        world.report("n1", 1, &[("a", requests(tick * 100))]);
        world.report("n2", 1, &[("b", slow(tick))]);
    }
    let of = |metric| world.ask(metric, Window::S3).unwrap().windows[0].value;
    let (p50, p99) = (of(Metric::RequestLatencyP50), of(Metric::RequestLatencyP99));
    assert!(
        p99 < p50 * 2.0,
        "the slow ones are less than a hundredth: {p99}"
    );
    let each = world
        .state
        .answer_each(
            "shop",
            Metric::RequestLatencyP99,
            &Query::default(),
            &[Window::S3],
            world.now,
        )
        .unwrap();
    assert!(each.pods[1].windows[0].value > each.pods[0].windows[0].value * 10.0);
}

#[test]
fn each_pod_has_its_own_value_or_none() {
    let mut world = shop();
    world.pod("unseen", "n1");
    world.pod("elsewhere", "n3");
    world.apply("starting", "n1", |_| {});
    world.apply("ending", "n1", |pod| pod.deleting = true);
    let all = [("n1", "a", 25), ("n2", "b", 5), ("n1", "starting", 25)];
    world.run(1, &all);
    // Two of the last three seconds at 100, one at 20.
    let each = world.each();
    let names: Vec<_> = each.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!((each[0].1, each[1].1.round()), (100.0, 73.0));
    // The one that started is one of them; that of a silent node stays with what it did last, and says so.
    world.run(5, &[all[0], all[2]]);
    let each = world.each();
    let names: Vec<_> = each.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["a", "b", "starting"]);
    assert!(each[1].2 && !each[0].2);
    // And then it has none: not zero.
    world.run(15, &[all[0], all[2]]);
    let each = world.each();
    let names: Vec<_> = each.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["a", "starting"]);
    // Nobody left: no answer instead of an empty one.
    world.now = world.now.plus(20 * SECOND);
    let (metric, query) = (Metric::RequestsPerSecond, Query::default());
    let answer = world
        .state
        .answer_each("shop", metric, &query, &[Window::S3], world.now);
    let error = answer.unwrap_err();
    assert_eq!((error.code(), error.reason()), (503, "MissingPods"));
    assert!(error.to_string().contains("node n1 is silent"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A replica that some of an agent's batches never reach, or that has only just started, differs from one
    /// that has them all by what happened in its longest gap, and no more: the totals are cumulative, so only
    /// where a window's edge lies in a gap is not known.
    #[test]
    fn replicas_answer_alike(
        ticks in prop::collection::vec((0u64..200, prop::bool::weighted(0.7)), 250..400),
        started in 0usize..200,
    ) {
        let (mut whole, mut partial) = (World::new(), World::new());
        for world in [&mut whole, &mut partial] {
            world.pod("a", "n1");
            world.hello("n1", 1);
            world.report("n1", 1, &[("a", requests(0))]);
        }
        let (mut total, mut events) = (0, Vec::new());
        let (mut gap, mut longest) = (0u64, 1u64);
        let last = ticks.len() - 1;
        for (i, (more, arrives)) in ticks.into_iter().enumerate() {
            total += more;
            events.push(more);
            whole.now = whole.now.plus(TICK);
            partial.now = whole.now;
            whole.report("n1", 1, &[("a", requests(total))]);
            gap += 1;
            longest = longest.max(gap);
            // While it was not there it gets a checkpoint a second, as an agent keeps them.
            let checkpoint = i % 4 == 0;
            if (if i < started { checkpoint } else { arrives }) || i == last {
                partial.report("n1", 1, &[("a", requests(total))]);
                gap = 0;
            }
        }
        for window in Window::ALL {
            // Readings are kept in cells of a second after 10 s and of 5 s after a minute.
            let cell = match window {
                Window::S1 | Window::S3 | Window::S10 => 1,
                Window::S30 | Window::S60 => 4,
                Window::M5 => 20,
            };
            let span = usize::try_from(longest + 2 * cell).unwrap();
            let most = events.windows(span.min(events.len())).map(|w| w.iter().sum::<u64>()).max();
            let of = |world: &World| world.ask(Metric::RequestsPerSecond, window).unwrap().windows[0];
            let (a, b) = (of(&whole), of(&partial));
            let difference = (a.value - b.value).abs() * a.covered_seconds;
            prop_assert!(
                difference <= most.unwrap_or(0) as f64 + 1.0,
                "{window}: {} and {}, {difference} events apart", a.value, b.value
            );
        }
    }
}
