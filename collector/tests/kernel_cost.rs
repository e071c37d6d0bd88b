//! What the programs say that they cost, against the kernel's own account of them (BPF_ENABLE_STATS), which is on only
//! here. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::fs;
use std::sync::mpsc;

use aya::sys::{Stats, enable_stats};
use ebpf_scaler_collector::agent::probes::Family;
use kernel::World;
use kernel::http::{GET, OK, Pair, one_pod};
use kernel::load::{alone, want};

/// Runs and nanoseconds of all programs of this process, as the kernel counts them.
fn kernels_account() -> (f64, f64) {
    let descriptors = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = descriptors.filter_map(|d| fs::read_to_string(d.path()).ok());
    texts.fold((0.0, 0.0), |sum, text| {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(0.0, |value| value.trim().parse::<f64>().unwrap())
        };
        (sum.0 + value("run_cnt:"), sum.1 + value("run_time_ns:"))
    })
}

/// Runs and nanoseconds as the programs estimate them.
fn own_account(world: &World) -> (f64, f64) {
    let programs = world.probes.statistics().programs;
    programs.iter().fold((0.0, 0.0), |sum, program| {
        (sum.0 + program.runs as f64, sum.1 + program.seconds * 1e9)
    })
}

/// So many runs of the programs that a hundred of them were timed.
const ENOUGH: f64 = 120_000.0;

/// Two threads that wake each other in turn.
fn ping_pong(rounds: usize) {
    let ((to, from), (back, there)) = (mpsc::sync_channel(0), mpsc::sync_channel(0));
    let other = std::thread::spawn(move || {
        for () in from {
            back.send(()).unwrap();
        }
    });
    for _ in 0..rounds {
        to.send(()).unwrap();
        there.recv().unwrap();
    }
    drop(to);
    other.join().unwrap();
}

#[test]
fn the_estimate_is_near_the_kernels_own_account() {
    let _alone = alone();
    let (mut world, _pod, listener) = one_pod(80);
    want(&mut world, &[Family::RunQueue]);
    let _stats = enable_stats(Stats::RunTime).unwrap();
    let before = (kernels_account(), own_account(&world));
    let mut pair = Pair::new(&listener);
    for _ in 0..15_000 {
        pair.turn(GET, OK);
    }
    // As much as it takes: a switch between processors is slow where they are emulated.
    let mut rounds = 0;
    while rounds < 40_000 && kernels_account().0 - before.0.0 < ENOUGH {
        ping_pong(2_000);
        rounds += 2_000;
    }
    let after = (kernels_account(), own_account(&world));
    let kernels = (after.0.0 - before.0.0, after.0.1 - before.0.1);
    let own = (after.1.0 - before.1.0, after.1.1 - before.1.1);
    assert!(kernels.0 >= ENOUGH, "{kernels:?}");
    // Of each program on each CPU up to 1,023 runs are not yet, or no longer, in it.
    let cpus = std::thread::available_parallelism().unwrap().get();
    let slack = 1024.0 * 6.0 * cpus as f64;
    assert!((own.0 - kernels.0).abs() <= slack, "{own:?} {kernels:?}");
    // A hundred or two runs that were timed stand for all; an interrupt in one of them shows.
    let ratio = own.1 / kernels.1;
    assert!((0.25..4.0).contains(&ratio), "{own:?} {kernels:?}");
    for program in world.probes.statistics().programs {
        let busy = !["tcp_destroy_sock", "sched_wakeup_new"].contains(&program.program);
        assert!(!busy || program.runs > 0, "{program:?}");
    }
}
