use std::sync::Arc;

use proptest::prelude::*;

use super::*;

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
fn an_agent_can_not_fill_the_memory_with_pods() {
    let mut world = shop();
    let flood: Vec<String> = (0..2000).map(|i| format!("p{i}")).collect();
    let samples: Vec<_> = flood.iter().map(|p| (p.as_str(), requests(1))).collect();
    let received = world.report("n1", 1, &samples);
    assert_eq!(received.accepted + received.overflow, 2000);
    assert_eq!(
        world.state.node("n1").unwrap().log().unwrap().pods(),
        crate::node::MAX_PODS
    );
    // Those that are gone make room.
    let batch = Batch {
        at: clock_of("n1") + world.now.0 + TICK,
        gone: vec!["p0".into()],
        ..Batch::default()
    };
    world.state.report("n1", 1, batch, world.now);
    world.now = world.now.plus(TICK);
    assert_eq!(world.report("n1", 1, &[("p1999", requests(1))]).accepted, 1);
    // Nobody knows them, and their history goes.
    world.now = world.now.plus(11 * SECOND);
    world.state.sweep(world.now);
    let log = world.state.node("n1").unwrap().log().unwrap();
    assert!(log.pod("p1").unwrap().series.size() < 2000);
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
