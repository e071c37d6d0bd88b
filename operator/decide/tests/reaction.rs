//! The product: how soon a step of load is answered, how soon with enough, and by how much too much.

mod support;

use ebpf_scaler_decide::Policy;
use support::{World, rate_metric};

struct Outcome {
    first: u64,
    enough: u64,
    writes: usize,
    most: i32,
}

/// A step from 60 % to `factor` times the capacity of 2 pods, ending at `rate` requests a second.
fn step(seed: u64, nodes: usize, rate: f64, factor: f64) -> Outcome {
    let target = rate / factor / 2.0;
    let mut w = World::new(
        seed,
        nodes,
        Policy::new(2, 100, vec![rate_metric(target)]),
        2,
    );
    w.run(40_000 + seed * 37 % 250, 0.6 * 2.0 * target);
    assert_eq!(w.writes, [], "a calm load made a change");
    let begin = w.now;
    w.run(30_000, rate);
    let need = (rate / target - 1e-9).ceil() as i32;
    let after = |t: u64| t - begin;
    Outcome {
        first: w.writes.first().map_or(u64::MAX, |(t, _)| after(*t)),
        enough: w
            .writes
            .iter()
            .find(|(_, n)| *n >= need)
            .map_or(u64::MAX, |(t, _)| after(*t)),
        writes: w
            .writes
            .iter()
            .position(|(_, n)| *n >= need)
            .map_or(99, |i| i + 1),
        most: w.writes.iter().map(|(_, n)| *n).max().unwrap_or(2),
    }
}

fn quantile(values: &mut [u64], share: f64) -> u64 {
    values.sort_unstable();
    values[((values.len() - 1) as f64 * share).round() as usize]
}

struct Budget {
    first: (u64, u64),
    enough: (u64, u64),
    most: (u64, u64),
}

#[test]
fn a_step_is_answered_within_a_second_and_with_enough_soon_after() {
    println!("nodes  rate factor | first p50 p99 | enough p50 p99 | writes | most p50 p99 (need)");
    let sharp = Budget {
        first: (500, 1000),
        enough: (1300, 3000),
        most: (7, 8),
    };
    let double = Budget {
        first: (1000, 2000),
        enough: (1200, 3000),
        most: (5, 6),
    };
    let slight = Budget {
        first: (2000, 4000),
        enough: (2000, 4000),
        most: (4, 5),
    };
    for (nodes, rate, factor, budget) in [
        (1, 200.0, 3.0, &sharp),
        (2, 200.0, 3.0, &sharp),
        (1, 600.0, 3.0, &sharp),
        (2, 600.0, 3.0, &sharp),
        (2, 5000.0, 3.0, &sharp),
        (2, 200.0, 2.0, &double),
        (2, 200.0, 1.5, &slight),
        (2, 1000.0, 1.5, &slight),
    ] {
        let runs: Vec<Outcome> = (0..60).map(|s| step(s, nodes, rate, factor)).collect();
        let mut first: Vec<u64> = runs.iter().map(|r| r.first).collect();
        let mut enough: Vec<u64> = runs.iter().map(|r| r.enough).collect();
        let mut most: Vec<u64> = runs
            .iter()
            .map(|r| u64::from(r.most.unsigned_abs()))
            .collect();
        let writes = runs.iter().map(|r| r.writes).sum::<usize>() as f64 / runs.len() as f64;
        let need = (factor * 2.0).ceil() as u64;
        let pair = |v: &mut Vec<u64>| (quantile(v, 0.5), quantile(v, 0.99));
        let (first, enough, most) = (pair(&mut first), pair(&mut enough), pair(&mut most));
        println!(
            "{nodes:5} {rate:5} {factor:6} | {first:?} | {enough:?} | {writes:.2} | {most:?} ({need})"
        );
        for (what, got, allowed) in [
            ("first patch", first, budget.first),
            ("enough", enough, budget.enough),
            ("replicas", most, budget.most),
        ] {
            let kept = got.0 <= allowed.0 && got.1 <= allowed.1;
            assert!(
                kept,
                "{what}: {got:?} is more than {allowed:?} at {rate}/s x{factor} on {nodes} nodes"
            );
        }
        assert!(writes <= 2.6, "{writes} writes until there were enough");
    }
}

#[test]
fn work_that_is_caught_up_with_after_a_standstill_is_no_step() {
    for seed in 0..40 {
        for share in [0.4, 0.6] {
            let mut w = World::new(seed, 1, Policy::new(2, 100, vec![rate_metric(300.0)]), 2);
            let rate = share * 600.0;
            w.run(40_000 + seed * 37 % 250, rate);
            w.run(500, 0.0);
            w.run(250, 3.0 * rate);
            w.run(40_000, rate);
            assert_eq!(w.writes, [], "seed {seed}, {share} of the capacity");
        }
    }
}
