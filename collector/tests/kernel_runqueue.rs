//! Run-queue latency against contention whose answer is known, and against the kernel's own account in
//! /proc/PID/schedstat. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::time::{Duration, Instant};

use ebpf_scaler_collector::agent::probes::{Buckets, Family, histogram};
use kernel::load::{Load, alone, unknown, want};
use kernel::{World, eventually};

fn quantile(buckets: &Buckets, q: f64) -> u64 {
    let total: u64 = buckets.iter().sum();
    let mut left = (total as f64 * q).ceil() as u64;
    for (i, count) in buckets.iter().enumerate() {
        if *count >= left {
            return histogram::midpoint(i);
        }
        left -= count;
    }
    unreachable!()
}

#[test]
fn two_spinning_threads_on_a_cpu_are_one_waiting_thread() {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    want(&mut world, &[Family::RunQueue]);
    let load = Load::spin(&pod, 2);
    std::thread::sleep(Duration::from_millis(500));
    load.pause();
    let (before, ran, begun) = (world.read(&pod), load.ran(), Instant::now());
    load.resume();
    std::thread::sleep(Duration::from_secs(3));
    load.pause();
    let (after, ran, took) = (world.read(&pod), load.ran() - ran, begun.elapsed());
    drop(load);
    let waited = after.counters.runqueue_wait_nanos - before.counters.runqueue_wait_nanos;
    // Two that never sleep wait whenever they do not run; alone on the CPU that is one at any time.
    let expected = (2 * took.as_nanos() as u64 - ran) as f64;
    assert!(
        (waited as f64 / expected - 1.0).abs() < 0.05,
        "waited {waited}, expected {expected}"
    );
    assert!(waited as f64 >= 0.9 * took.as_nanos() as f64);
    // The histogram tells the same story as the sum.
    let micros: u64 = after
        .runqueue_latency
        .iter()
        .enumerate()
        .map(|(i, n)| n * histogram::midpoint(i))
        .sum();
    let ratio = micros as f64 * 1000.0 / after.counters.runqueue_wait_nanos as f64;
    assert!((0.93..1.07).contains(&ratio), "histogram / sum = {ratio}");
    assert_eq!(
        after.runqueue_latency.iter().sum::<u64>(),
        after.counters.runqueue_waits
    );
}

#[test]
fn waits_are_those_of_schedstat() {
    let _alone = alone();
    let mut world = World::new();
    let (pod, other) = (world.pod("pod"), world.pod("other"));
    want(&mut world, &[Family::RunQueue]);
    let (load, rest) = (Load::spin(&pod, 3), Load::spin(&other, 2));
    std::thread::sleep(Duration::from_millis(500));
    for (pod, load) in [(&pod, &load), (&other, &rest)] {
        load.pause();
        let (before, stat) = (world.counters(pod), load.schedstat());
        load.resume();
        std::thread::sleep(Duration::from_secs(3));
        load.pause();
        let (after, stat_after) = (world.counters(pod), load.schedstat());
        load.resume();
        let waited = (after.runqueue_wait_nanos - before.runqueue_wait_nanos) as f64;
        let expected = (stat_after.0 - stat.0) as f64;
        assert!(
            (waited / expected - 1.0).abs() < 0.02,
            "waited {waited}, schedstat {expected}"
        );
        let (waits, slices) = (
            after.runqueue_waits - before.runqueue_waits,
            stat_after.1 - stat.1,
        );
        let unknown = unknown(&world, slices);
        assert!(
            waits <= slices + 2 && waits + unknown + 2 >= slices,
            "{waits} waits, {unknown} not known, {slices} time slices"
        );
    }
    assert_eq!(world.statistic("runqueue_collisions"), 0);
}

#[test]
fn sleepers_do_not_wait_long() {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    want(&mut world, &[Family::RunQueue]);
    let begun = Instant::now();
    let status = pod
        .command("sh")
        .args(["-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done"])
        .status()
        .unwrap();
    assert!(status.success());
    let c = world.counters(&pod);
    assert!(c.runqueue_waits >= 20, "{} waits", c.runqueue_waits);
    // Half a second of sleeping is no waiting; the rest can be, of the shell or of what it has started.
    let rest = begun.elapsed().saturating_sub(Duration::from_millis(500));
    let waited = Duration::from_nanos(c.runqueue_wait_nanos);
    assert!(waited < 2 * rest, "{waited:?}, {rest:?} not asleep");
}

#[test]
fn measured_only_while_wanted() {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    let run = |world: &World| {
        assert!(pod.command("sleep").arg("0.02").status().unwrap().success());
        world.counters(&pod).runqueue_waits
    };
    assert!(!world.probes.active().contains(&Family::RunQueue));
    assert_eq!(run(&world), 0);
    want(&mut world, &[Family::RunQueue]);
    want(&mut world, &[Family::RunQueue, Family::Network]);
    assert!(world.probes.active().contains(&Family::RunQueue));
    let wanted = run(&world);
    assert!(wanted > 0);
    want(&mut world, &[Family::Requests]);
    assert!(!world.probes.active().contains(&Family::RunQueue));
    let detached = world.counters(&pod).runqueue_waits;
    assert_eq!(run(&world), detached);
    std::thread::sleep(Duration::from_millis(200));
    want(&mut world, &[Family::RunQueue]);
    assert!(run(&world) > detached);
    // No wait from the time in between.
    assert!(quantile(&world.read(&pod).runqueue_latency, 1.0) < 150_000);
}

#[test]
fn a_pod_that_only_runs_is_quarantined_and_the_rest_of_the_machine_is_not() {
    let _alone = alone();
    let mut world = World::new();
    want(&mut world, &[Family::RunQueue]);
    let slot = world.probes.allocate().unwrap();
    let pod = world.unassigned("short", slot);
    assert!(pod.command("sleep").arg("0.05").status().unwrap().success());
    let mut found = Vec::new();
    assert!(eventually(Duration::from_secs(2), || {
        found = world.probes.quarantined();
        !found.is_empty()
    }));
    let [(id, provisional)] = found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(id, pod.id);
    assert!(world.probes.read(provisional).counters.runqueue_waits > 0);
}
