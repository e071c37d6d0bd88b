//! A constant load makes no changes: Poisson noise alone moves neither few nor many requests over a
//! threshold, wherever the target lies. What the HPA's rules make of the same load is printed beside it.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use ebpf_scaler_decide::{Metric, Objective, Policy};
use support::{Random, World, cases, rate_metric};

/// Random places in the long version, beside those that are always looked at.
const RANDOM: u32 = 200;

/// A load: requests a second, and how many pods' work it is.
struct Place {
    rate: f64,
    load: f64,
}

/// Near the edges of the tolerance and between them; and anywhere.
fn places() -> Vec<Place> {
    let mut places = Vec::new();
    for rate in [5.0, 50.0, 500.0, 5000.0] {
        for load in [0.55, 0.9, 1.0, 1.05, 1.5, 2.02, 2.99] {
            places.push(Place { rate, load });
        }
    }
    let mut random = Random::new(7);
    for _ in 0..cases(12).min(RANDOM) {
        let rate = 5.0 * 1000f64.powf(random.unit());
        let load = 0.3 + 19.7 * random.unit();
        places.push(Place { rate, load });
    }
    places
}

/// Changes within `hours` of a constant load, after it has found its place.
fn changes(seed: u64, place: &Place, policy: Policy, hours: u64) -> usize {
    let begin = (place.load.ceil() as i32).max(1);
    let mut world = World::new(seed, 2, policy, begin);
    // With 300 s of stabilization that takes a while.
    world.run_fast(900_000, place.rate);
    world.writes.clear();
    world.run_fast(3_600_000 * hours, place.rate);
    world.writes.len()
}

#[test]
fn a_constant_load_makes_less_than_a_change_an_hour() {
    let hours = if cases(0) > 0 { 4 } else { 1 };
    let (mut ours, mut hpas, mut worst) = (0, 0, 0);
    let places = places();
    for (seed, place) in (0u64..).zip(&places) {
        let metric = rate_metric(place.rate / place.load);
        let external = Metric {
            objective: Objective::External,
            burst_window: None,
            ..metric.clone()
        };
        let changed = changes(seed, place, Policy::new(1, 100, vec![metric]), hours);
        assert!(
            changed <= usize::try_from(hours).unwrap(),
            "{}/s, the work of {} pods: {changed} changes in {hours} h",
            place.rate,
            place.load
        );
        worst = worst.max(changed);
        ours += changed;
        hpas += changes(seed, place, Policy::hpa(1, 100, vec![external]), hours);
    }
    let total = places.len() as f64 * hours as f64;
    println!(
        "changes an hour: default profile {:.3} (at most {worst} in {hours} h), HPA profile {:.3}",
        ours as f64 / total,
        f64::from(u32::try_from(hpas).unwrap()) / total
    );
    assert!((ours as f64) < total, "{ours} changes in {total} h");
}
