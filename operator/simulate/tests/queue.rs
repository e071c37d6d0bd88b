//! The queue against what is known of queues: M/M/1, M/M/c (Erlang) and M/D/1 (Pollaczek and Khinchine).

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::time::Duration;

use ebpf_scaler_simulate::{PodModel, Pods, Service, random::Random};

const SERVICE: f64 = 0.010;

/// Mean wait, and share of requests that wait at all, at `load` of one pod's capacity.
fn simulated(workers: usize, service: Service, load: f64) -> (f64, f64) {
    let model = PodModel {
        workers,
        service_time: Duration::from_secs_f64(SERVICE),
        service,
        startup: Duration::ZERO,
        startup_spread: 0.0,
        timeout: Duration::from_secs(3600),
    };
    let mut pods = Pods::new(model, 1, 1, 1);
    let mut random = Random::new(5, 5);
    let rate = load * workers as f64 / SERVICE;
    let (mut at, mut waited, mut waits, n) = (0.0, 0.0, 0u32, 600_000u32);
    for _ in 0..n {
        at += random.exponential() / rate;
        let arrival = (at * 1e6) as u64;
        let share = match service {
            Service::Exponential => random.exponential(),
            Service::Fixed => 1.0,
        };
        let work = pods.handle(arrival, (share * SERVICE * 1e6) as u64);
        let wait = work.work.unwrap().0 - arrival;
        waited += wait as f64 / 1e6;
        waits += u32::from(wait > 0);
    }
    (waited / f64::from(n), f64::from(waits) / f64::from(n))
}

/// The share that waits in M/M/c (Erlang C).
fn erlang_c(workers: usize, load: f64) -> f64 {
    let offered = load * workers as f64;
    let mut blocked = 1.0;
    for k in 1..=workers {
        blocked = offered * blocked / (k as f64 + offered * blocked);
    }
    blocked / (1.0 - load * (1.0 - blocked))
}

fn near(got: f64, wanted: f64, what: &str) {
    let off = (got / wanted - 1.0).abs();
    assert!(off < 0.04, "{what}: {got} instead of {wanted}");
}

#[test]
fn exponential_work_waits_as_erlang_says() {
    for (workers, load) in [(1, 0.5), (1, 0.8), (4, 0.7), (4, 0.9), (16, 0.9)] {
        let (wait, waits) = simulated(workers, Service::Exponential, load);
        let share = erlang_c(workers, load);
        let mean = share * SERVICE / (workers as f64 * (1.0 - load));
        near(
            waits,
            share,
            &format!("share that waits, {workers} at {load}"),
        );
        near(wait, mean, &format!("mean wait, {workers} at {load}"));
    }
}

#[test]
fn fixed_work_waits_half_as_long() {
    for load in [0.5, 0.8] {
        let (wait, _) = simulated(1, Service::Fixed, load);
        let mean = load * SERVICE / (2.0 * (1.0 - load));
        near(wait, mean, &format!("mean wait at {load}"));
    }
}
