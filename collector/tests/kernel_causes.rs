//! Who had the CPU while a pod's threads waited for it, against contention whose answer is known: on one CPU with
//! threads that never sleep, whoever runs makes every other one wait. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::time::{Duration, Instant};

use ebpf_scaler_collector::agent::probes::{Counters, Culprit, Family};
use kernel::limit::Limit;
use kernel::load::{Load, alone, want};
use kernel::{Pod, World};

/// How far a part may be off, as a share of all waiting: the waits that are under way at both ends of a measurement are
/// not in it, and a machine that is busy with other things makes them long.
const TOLERANCE: f64 = 0.10;

/// Nanoseconds waited behind: the pod itself, other pods, what is no pod, its own limit, nobody.
fn parts(c: &Counters) -> [u64; 5] {
    [
        c.runqueue_wait_self_nanos,
        c.runqueue_wait_other_pods_nanos,
        c.runqueue_wait_system_nanos,
        c.runqueue_wait_throttled_nanos,
        c.runqueue_wait_idle_nanos,
    ]
}

/// A stretch of time: what a pod counted in it, and how long it was, nanoseconds.
fn measure(
    world: &World,
    pods: &[(&Pod, &Load)],
    time: Duration,
) -> (Vec<[f64; 5]>, Vec<f64>, f64) {
    let read = || -> (Vec<[u64; 5]>, Vec<u64>) {
        let of = |(pod, load): &(&Pod, &Load)| (parts(&world.counters(pod)), load.ran());
        pods.iter().map(of).unzip()
    };
    let ((waits, ran), begun) = (read(), Instant::now());
    std::thread::sleep(time);
    let ((waits_after, ran_after), took) = (read(), begun.elapsed());
    let waited = waits.iter().zip(&waits_after);
    let ran = ran.iter().zip(&ran_after);
    (
        waited
            .map(|(a, b)| std::array::from_fn(|i| (b[i] - a[i]) as f64))
            .collect(),
        ran.map(|(a, b)| (b - a) as f64).collect(),
        took.as_nanos() as f64,
    )
}

/// Each part is what it should be, to within a share of the whole.
fn assert_near(found: [f64; 5], expected: [f64; 5], share: f64) {
    let slack = expected.iter().sum::<f64>() * share;
    for (found, expected) in found.iter().zip(&expected) {
        let all = format!("{found:?} of {expected:?}");
        assert!((found - expected).abs() <= slack, "{all}, slack {slack}");
    }
}

fn assert_parts_add_up(world: &World, pod: &Pod) {
    let c = world.counters(pod);
    assert!(c.runqueue_wait_nanos > 0);
    assert_eq!(parts(&c).iter().sum::<u64>(), c.runqueue_wait_nanos);
}

#[test]
fn threads_of_one_pod_wait_behind_each_other() {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    want(&mut world, &[Family::RunQueue]);
    let load = Load::spin(&pod, 3);
    std::thread::sleep(Duration::from_millis(500));
    let (waited, ran, took) = measure(&world, &[(&pod, &load)], Duration::from_secs(3));
    // While one runs, two wait behind it; while the rest of the machine has the CPU, all three wait.
    let expected = [2.0 * ran[0], 0.0, 3.0 * (took - ran[0]), 0.0, 0.0];
    assert_near(waited[0], expected, TOLERANCE);
    drop(load);
    assert_parts_add_up(&world, &pod);
}

#[test]
fn pods_wait_behind_each_other_and_the_culprit_is_named() {
    let _alone = alone();
    let mut world = World::new();
    let (a, b) = (world.pod("a"), world.pod("b"));
    want(&mut world, &[Family::RunQueue]);
    let (of_a, of_b) = (Load::spin(&a, 2), Load::spin(&b, 3));
    std::thread::sleep(Duration::from_millis(500));
    world.probes.take_culprits(a.slot);
    let pods = [(&a, &of_a), (&b, &of_b)];
    let (waited, ran, took) = measure(&world, &pods, Duration::from_secs(4));
    let culprits = world.probes.take_culprits(a.slot);
    let rest = took - ran[0] - ran[1];
    assert_near(
        waited[0],
        [ran[0], 2.0 * ran[1], 2.0 * rest, 0.0, 0.0],
        TOLERANCE,
    );
    assert_near(
        waited[1],
        [2.0 * ran[1], 3.0 * ran[0], 3.0 * rest, 0.0, 0.0],
        TOLERANCE,
    );
    // The machine may have been busy too.
    let is_b = |(who, _): &&(Culprit, u64)| *who == Culprit::Slot(b.slot);
    let nanos = culprits.iter().find(is_b).map_or(0, |(_, nanos)| *nanos);
    let ratio = nanos as f64 / waited[0][1];
    assert!((0.9..1.1).contains(&ratio), "{culprits:?} of {waited:?}");
    drop((of_a, of_b));
    assert_parts_add_up(&world, &a);
    assert_parts_add_up(&world, &b);
}

#[test]
fn what_runs_outside_the_pods_is_the_system() {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    want(&mut world, &[Family::RunQueue]);
    let (load, outside) = (Load::spin(&pod, 1), Load::spin_outside(2));
    std::thread::sleep(Duration::from_millis(500));
    let (waited, ran, took) = measure(&world, &[(&pod, &load)], Duration::from_secs(3));
    let culprits = world.probes.take_culprits(pod.slot);
    assert_near(waited[0], [0.0, 0.0, took - ran[0], 0.0, 0.0], TOLERANCE);
    assert!(outside.ran() > 0);
    assert_eq!(culprits[0].0, Culprit::System, "{culprits:?}");
    drop(load);
    assert_parts_add_up(&world, &pod);
}

#[test]
fn being_woken_is_no_other_pods_fault() {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    want(&mut world, &[Family::RunQueue]);
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.02; done";
    assert!(
        pod.command("sh")
            .args(["-c", script])
            .status()
            .unwrap()
            .success()
    );
    assert_parts_add_up(&world, &pod);
    let found = parts(&world.counters(&pod));
    let [own, other_pods, system, throttled, idle] = found;
    assert_eq!((other_pods, throttled), (0, 0));
    // A shell and its children run in turn, but for a moment; the rest depends on how busy the machine is.
    assert!(own < 50_000_000 && system + idle > 0, "{found:?}");
}

/// The limit is the cause whoever else uses the CPU meanwhile.
#[test]
fn a_pods_own_limit_is_told_from_its_neighbours() {
    let _alone = alone();
    let mut world = World::new();
    let (pod, other) = (world.pod("pod"), world.pod("other"));
    want(&mut world, &[Family::RunQueue]);
    // A twentieth of a CPU: much less than two threads get on a CPU however busy.
    let limit = Limit::new(&world, &pod, 5_000, 100_000);
    let (load, neighbour) = (limit.hold(Load::spin(&pod, 2)), Load::spin(&other, 1));
    std::thread::sleep(Duration::from_millis(500));
    let throttled = limit.throttled_nanos();
    let (waited, ran, took) = measure(&world, &[(&pod, &load)], Duration::from_secs(4));
    let throttled = (limit.throttled_nanos() - throttled) as f64;
    let total: f64 = waited[0].iter().sum();
    let expected = 2.0 * took - ran[0];
    assert!(
        (total / expected - 1.0).abs() < 0.08,
        "{waited:?}, {expected}"
    );
    let by_limit = waited[0][3];
    if world.probes.tells_throttling() {
        // Both threads are held back as long as the kernel says that the cgroup is. The wait for the CPU that
        // follows is in it too, so on a busy machine it is more.
        let ratio = by_limit / (2.0 * throttled);
        assert!(
            ratio > 0.9 && by_limit < total,
            "{waited:?}, throttled {throttled}"
        );
        assert!(throttled > 0.1 * took, "{throttled} of {took}");
    } else {
        // The neighbour had the CPU meanwhile: that much is seen.
        assert_eq!(by_limit, 0.0);
        assert!(waited[0][1] > 0.0, "{waited:?}");
    }
    drop((load, neighbour));
    assert_parts_add_up(&world, &pod);
}
