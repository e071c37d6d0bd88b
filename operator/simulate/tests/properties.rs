//! Nothing is lost, a seed is a result, and every trace has one, however absurd.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use ebpf_scaler_decide::{Objective, Target};
use ebpf_scaler_simulate::{
    Arrivals, Kind, Outcome, Trace,
    family::{FAMILIES, Synthetic},
    run,
};
use proptest::prelude::*;
use support::{by_rate, everybody, metric, scenario};

fn check(outcome: &Outcome) {
    assert_eq!(outcome.requests, outcome.answered + outcome.dropped);
    assert!(outcome.late <= outcome.answered);
    assert!((0.0..=1.0).contains(&outcome.violations));
    assert!(outcome.pod_seconds >= 0.0);
    let (sent, bad) = outcome.seconds.iter().fold((0, 0), |(s, b), (sent, bad)| {
        (s + u64::from(*sent), b + u64::from(*bad))
    });
    assert_eq!(
        (sent, bad),
        (outcome.requests, outcome.late + outcome.dropped)
    );
    // Each change begins where the last one ended, and the timeline says the same.
    let mut at = outcome.replicas[0].spec;
    for change in &outcome.changes {
        assert_eq!(change.from, at);
        assert_ne!(change.to, at);
        at = change.to;
    }
    assert_eq!(outcome.replicas.last().unwrap().spec, at);
    assert!(
        outcome
            .replicas
            .windows(2)
            .all(|w| w[0].millis <= w[1].millis)
    );
}

#[test]
fn every_decider_answers_every_family_the_same_each_time() {
    for family in FAMILIES {
        let trace = Synthetic {
            base: 200.0,
            peak: 500.0,
            duration: 300,
            ..Synthetic::new(family, 1)
        }
        .trace();
        let outcomes = |seed| Kind::ALL.map(|kind| run(&everybody(), &trace, kind, seed).unwrap());
        let first = outcomes(1);
        first.iter().for_each(check);
        assert_eq!(first, outcomes(1), "{family:?}");
        assert_ne!(first, outcomes(2), "{family:?}");
        // Everybody gets the same requests.
        assert!(first.iter().all(|o| o.requests == first[0].requests));
    }
}

#[test]
fn a_scaler_with_the_profile_hpa_is_decided_as_an_hpa() {
    let mut scenario = by_rate();
    scenario.policy = scenario.hpa.clone();
    let trace = Synthetic::new(FAMILIES[0], 5).trace();
    let [ours, hpa] =
        [Kind::EbpfScaler, Kind::Hpa].map(|kind| run(&scenario, &trace, kind, 1).unwrap());
    assert!(!ours.changes.is_empty());
    assert_eq!(ours.changes, hpa.changes);
    assert_eq!(ours.seconds, hpa.seconds);
}

#[test]
fn a_metric_that_knative_does_not_know_has_no_outcome() {
    let mut scenario = scenario(metric(
        Objective::Latency { share: 0.99 },
        Target::Value(100_000.0),
    ));
    scenario.kpa = None;
    let trace = Synthetic::new(FAMILIES[0], 1).trace();
    assert_eq!(run(&scenario, &trace, Kind::Kpa, 1), None);
    check(&run(&scenario, &trace, Kind::EbpfScaler, 1).unwrap());
}

#[test]
fn requests_in_flight_scale_as_the_rate_does() {
    // 28 ms and 100 requests a second are 2.8 requests in flight.
    let scenario = scenario(metric(Objective::Level, Target::Average(2.8)));
    let trace = Synthetic::new(FAMILIES[0], 3).trace();
    for kind in [Kind::EbpfScaler, Kind::Hpa, Kind::Kpa] {
        let outcome = run(&scenario, &trace, kind, 1).unwrap();
        check(&outcome);
        // A backlog is in flight too, so how far it goes up is not told by the rate alone.
        assert!(outcome.most >= 8, "{kind:?}: {}", outcome.most);
        let end = outcome.replicas.last().unwrap().spec;
        assert!((3..=7).contains(&end), "{kind:?}: {end} at the end");
    }
}

#[test]
fn a_counted_trace_has_exactly_the_requests_that_were_counted() {
    let trace = Trace {
        arrivals: Arrivals::Counted,
        ..Trace::each_second("x", (0..60).map(|s| f64::from(s % 7)))
    };
    let outcome = run(&by_rate(), &trace, Kind::EbpfScaler, 1).unwrap();
    let counted = outcome.seconds.iter().map(|(sent, _)| *sent);
    assert!(counted.eq((0..60).map(|s| s % 7)));
}

fn rate() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..3000.0,
        1 => Just(0.0),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => Just(-1.0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn every_trace_has_an_outcome(
        rates in prop::collection::vec((1u64..3000, rate()), 0..8),
        rollouts in prop::collection::vec(0u64..20_000, 0..3),
        initial in -1i32..60,
        startup in 0u64..20_000,
        workers in 0usize..3,
        service in 0u64..100_000,
        timeout in 0u64..20_000,
        kind in prop::sample::select(Kind::ALL.to_vec()),
        seed in any::<u64>(),
    ) {
        let mut scenario = everybody();
        scenario.initial = initial;
        scenario.pods.workers = workers;
        scenario.pods.startup = std::time::Duration::from_millis(startup);
        scenario.pods.service_time = std::time::Duration::from_micros(service);
        scenario.pods.timeout = std::time::Duration::from_millis(timeout);
        let mut at = 0;
        let mut trace = Trace { rollouts, ..Trace::each_second("x", []) };
        for (long, rate) in rates {
            // At most a tenth of a second of what is absurdly fast.
            let long = if rate > 3000.0 { long.min(100) } else { long };
            trace.rates.push((at, rate));
            at += long;
        }
        trace.end = at;
        check(&run(&scenario, &trace, kind, seed).unwrap());
    }
}
