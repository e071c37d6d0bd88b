//! What few events cannot tell is not acted on: neither while a scaler's first window fills, nor in the
//! seconds after a step of load, when more and more windows are looked at; and none is counted twice.

mod support;

use ebpf_scaler_decide::Policy;
use support::{World, cases, rate_metric};

/// Small pods: 10 requests a second each, so that a second says little.
const TARGET: f64 = 10.0;

#[test]
fn a_first_window_that_fills_adds_nothing_to_what_is_enough() {
    let runs = u64::from(cases(300));
    let mut changed = 0;
    for seed in 0..runs {
        let policy = Policy::new(2, 100, vec![rate_metric(TARGET)]);
        let mut world = World::new(seed, 2, policy, 4);
        world.run(30_000, 4.0 * TARGET);
        changed += u64::from(!world.writes.is_empty());
    }
    println!("{changed} of {runs} scalers went up in their first 30 s under what they can take");
    assert!(changed * 50 <= runs, "{changed} of {runs}");
}

#[test]
fn nodes_that_report_shortly_after_each_other_do_not_count_a_step_twice() {
    let needed = 13;
    for seed in 0..u64::from(cases(30)) {
        for apart in [6, 18, 36, 45, 120] {
            let policy = Policy::new(2, 100, vec![rate_metric(10.0 * TARGET)]);
            let mut world = World::new(seed, 2, policy, 4);
            world.report_at(&[10, 10 + apart]);
            world.run(60_000 + seed * 37 % 250, 4.0 * 10.0 * TARGET);
            world.run(5000, 12.5 * 10.0 * TARGET);
            let asked = world.spec;
            assert!(
                (needed - 1..=needed + 2).contains(&asked),
                "seed {seed}, {apart} ms apart: {asked} instead of {needed}"
            );
        }
    }
}

#[test]
fn a_step_is_not_followed_by_more_than_it_needs() {
    let runs = u64::from(cases(150));
    let needed = 12;
    let mut most: Vec<i32> = (0..runs)
        .map(|seed| {
            let policy = Policy::new(2, 100, vec![rate_metric(TARGET)]);
            let mut world = World::new(seed, 2, policy, 4);
            world.run(60_000 + seed * 37 % 250, 0.9 * 4.0 * TARGET);
            world.run(90_000, f64::from(needed) * TARGET);
            world.spec
        })
        .collect();
    most.sort_unstable();
    let at = |share: f64| most[((most.len() - 1) as f64 * share) as usize];
    println!(
        "{needed} pods are needed; asked for: p5 {}, p50 {}, p90 {}, p99 {}",
        at(0.05),
        at(0.5),
        at(0.9),
        at(0.99)
    );
    assert!(at(0.05) >= needed - 1 && at(0.5) <= needed + 1 && at(0.9) <= needed + 3);
}
