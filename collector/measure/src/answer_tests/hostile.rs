use std::sync::Arc;

use ebpf_scaler_common::histogram::BUCKETS;

use super::*;
use crate::node::{MAX_BYTES, MAX_NEWCOMERS, MAX_PODS, NEWCOMERS_PERIOD};

#[test]
fn pods_without_end_are_refused_however_they_come_and_go() {
    let mut world = World::new();
    let (mut accepted, mut refused, mut next) = (0, 0, 0);
    // Each batch says that the pods of the one before have gone, and that the agent has begun anew.
    for epoch in 1..40 {
        world.hello("n1", epoch);
        for _ in 0..4 {
            world.now = world.now.plus(TICK);
            let pods: Vec<Arc<str>> = (next..next + 400)
                .map(|n| Arc::from(format!("p{n}")))
                .collect();
            next += 400;
            let batch = Batch {
                at: clock_of("n1") + world.now.0,
                samples: pods.iter().map(|p| (p.clone(), requests(1))).collect(),
                gone: pods,
                ..Batch::default()
            };
            let received = world.state.report("n1", epoch, batch, world.now);
            accepted += received.accepted;
            refused += received.overflow;
        }
        let log = world.state.node("n1").unwrap().log().unwrap();
        assert!(log.pods() <= MAX_PODS);
    }
    assert_eq!(accepted, MAX_NEWCOMERS);
    assert_eq!(accepted + refused, next);
    // It lasts no longer than it has to.
    world.now = world.now.plus(NEWCOMERS_PERIOD);
    assert_eq!(world.report("n1", 39, &[("new", requests(1))]).accepted, 1);
}

#[test]
fn histories_of_one_node_have_a_bound_that_honest_ones_do_not_meet() {
    let mut world = World::new();
    world.hello("n1", 1);
    world.hello("n2", 1);
    let full = |n: u64| {
        let all = || Sparse::from_pairs((0..BUCKETS as u32).map(|b| (b, n * 1_000_000))).0;
        Sample {
            request_latency: all(),
            runqueue_latency: all(),
            tcp_rtt: all(),
            ..requests(n)
        }
    };
    let mut heavy = 0;
    for n in 1.. {
        assert!(n < 300, "it never ends");
        if heavy > 600 {
            break;
        }
        world.now = world.now.plus(TICK);
        let pods: Vec<String> = (0..300).map(|p| format!("p{p}")).collect();
        let sample = full(n);
        let batch: Vec<_> = pods.iter().map(|p| (p.as_str(), sample.clone())).collect();
        heavy += world.report("n1", 1, &batch).heavy;
        // Another node does not notice.
        assert_eq!(world.report("n2", 1, &[("honest", requests(n))]).heavy, 0);
    }
    let bytes = |node: &str| world.state.node(node).unwrap().log().unwrap().bytes();
    assert!(heavy > 0);
    assert!(bytes("n1") < MAX_BYTES + MAX_BYTES / 8, "{}", bytes("n1"));
    assert!(bytes("n2") < 32 << 10, "{}", bytes("n2"));
}
