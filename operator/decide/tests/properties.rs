//! What holds for every input: bounds, missing never lowers, more load never means fewer replicas,
//! policies are kept over any window, the order of metrics is irrelevant, a restart lowers nothing.

mod support;

use std::time::Duration;

use ebpf_scaler_decide::{
    Beside, Decision, Fallback, Floor, History, Limit, Metric, Objective, Observation, Policy,
    Profile, Reading, Rules, Sample, Select, Target, Time, Unit, WindowSample, decide,
};
use proptest::prelude::*;

fn seconds() -> impl Strategy<Value = Duration> {
    (0u64..400).prop_map(Duration::from_secs)
}

fn rules() -> impl Strategy<Value = Rules> {
    let limit = (any::<bool>(), 1i32..1000, 1u64..120).prop_map(|(pods, value, period)| Limit {
        unit: if pods { Unit::Pods } else { Unit::Percent },
        value,
        period: Duration::from_secs(period),
    });
    let select = prop_oneof![Just(Select::Max), Just(Select::Min), Just(Select::Disabled)];
    (seconds(), select, prop::collection::vec(limit, 1..4)).prop_map(
        |(stabilization, select, policies)| Rules {
            stabilization,
            select,
            policies,
        },
    )
}

fn metric(i: usize) -> impl Strategy<Value = Metric> {
    let objective = prop_oneof![
        Just(Objective::Count),
        Just(Objective::Flow),
        Just(Objective::Level),
        Just(Objective::External),
        Just(Objective::Latency { share: 0.99 }),
        Just(Objective::LearnedLatency { share: 0.99 }),
    ];
    (objective, any::<bool>(), wild()).prop_map(move |(objective, average, target)| Metric {
        name: format!("metric{i}"),
        objective,
        target: if average {
            Target::Average(target)
        } else {
            Target::Value(target)
        },
        stable_window: Duration::from_secs(30),
        burst_window: Some(Duration::from_secs(3)),
    })
}

/// Any number, with a taste for sensible ones.
fn wild() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => 0.001f64..1e6,
        1 => any::<f64>(),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), Just(1e300)],
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    (
        (any::<bool>(), any::<bool>(), -2i32..50, -2i32..200),
        (rules(), rules()),
        (metric(0), metric(1), 1usize..3),
        prop::option::of((0u64..100, -1i32..300)),
        prop::option::weighted(0.2, -1i32..300),
        (0.0f64..0.5, 0.0f64..0.5),
    )
        .prop_map(
            |((hpa, behavior, min, max), (up, down), (a, b, n), fallback, floor, (tu, td))| {
                let metrics = [a, b].into_iter().take(n).collect();
                Policy {
                    profile: if hpa { Profile::Hpa } else { Profile::Default },
                    behavior_given: behavior,
                    up,
                    down,
                    tolerance_up: tu,
                    tolerance_down: td,
                    fallback: fallback.map(|(after, replicas)| Fallback {
                        after: Duration::from_secs(after),
                        replicas,
                    }),
                    floor: floor.map(|replicas| Floor {
                        replicas,
                        name: "rush".into(),
                    }),
                    ..Policy::new(min, max, metrics)
                }
            },
        )
}

fn reading() -> impl Strategy<Value = Reading> {
    let window = (wild(), prop::option::of(0u64..1_000_000), 0u64..40_000);
    prop_oneof![
        1 => Just(Reading::Missing("gone".into())),
        4 => (prop::collection::vec(window, 0..4), 0.0f64..1.2, any::<bool>()).prop_map(
            |(values, coverage, estimated)| {
                let windows = values.into_iter().zip([30u64, 3, 1]).map(|((value, events, covered), w)| WindowSample {
                    window: Duration::from_secs(w),
                    value,
                    events,
                    covered: Duration::from_millis(covered),
                });
                Reading::Known(Sample { sampled: Time::default(), windows: windows.collect(), coverage, estimated })
            }
        ),
    ]
}

#[derive(Clone, Debug)]
struct Step {
    wait: u64,
    readings: Vec<Reading>,
    /// Load and waiting threads, beside each metric that learns.
    beside: (Reading, Reading),
    ready: i32,
    foreign: Option<i32>,
}

fn step() -> impl Strategy<Value = Step> {
    (
        0u64..40_000,
        prop::collection::vec(reading(), 2),
        (reading(), reading()),
        -1i32..300,
        prop::option::weighted(0.1, -1i32..300),
    )
        .prop_map(|(wait, readings, beside, ready, foreign)| Step {
            wait,
            readings,
            beside,
            ready,
            foreign,
        })
}

/// What a step shows beside the metrics that learn.
fn beside(policy: &Policy, step: &Step, now: Time) -> Vec<Beside> {
    let at = |reading: &Reading| {
        let mut reading = reading.clone();
        if let Reading::Known(s) = &mut reading {
            s.sampled = now;
        }
        reading
    };
    let metrics = policy.metrics.iter().enumerate();
    metrics
        .filter(|(_, m)| matches!(m.objective, Objective::LearnedLatency { .. }))
        .map(|(metric, _)| Beside {
            metric,
            load: at(&step.beside.0),
            waiting: at(&step.beside.1),
        })
        .collect()
}

/// Runs steps as an operator would, and shows each decision with what it was made of.
fn run(
    policy: &Policy,
    begin: i32,
    steps: &[Step],
    mut look: impl FnMut(&Decision, &Observation, &History, Time),
) {
    let mut history = History::default();
    let (mut spec, mut millis) = (begin, 1_000_000);
    for step in steps {
        millis += step.wait;
        let now = Time::from_millis(millis);
        if let Some(foreign) = step.foreign {
            spec = foreign;
        }
        let mut readings = step.readings.clone();
        readings.truncate(policy.metrics.len());
        for reading in &mut readings {
            if let Reading::Known(s) = reading {
                s.sampled = now;
            }
        }
        let observation = Observation {
            spec_replicas: spec,
            status_replicas: spec,
            ready_replicas: step.ready,
            metrics: readings,
            beside: beside(policy, step, now),
        };
        let decision = decide(&observation, policy, &history, now);
        look(&decision, &observation, &history, now);
        history.record(&observation, policy, &decision, now);
        if decision.changes() {
            history.scaled(spec, decision.replicas, now);
            spec = decision.replicas;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: support::cases(512), ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_whatever_comes(policy in policy(), begin in 0i32..300, steps in prop::collection::vec(step(), 1..20)) {
        let (min, max) = policy.bounds();
        run(&policy, begin, &steps, |d, o, _, _| {
            let held_at_zero = o.spec_replicas <= 0 && min > 0;
            assert!((min..=max).contains(&d.replicas) || held_at_zero, "{d:?}");
            assert_eq!(d.metrics.len(), policy.metrics.len());
            assert!(!d.message(&policy).is_empty());
        });
    }

    #[test]
    fn missing_never_lowers(policy in policy(), begin in 1i32..300, steps in prop::collection::vec(step(), 1..20)) {
        let (_, max) = policy.bounds();
        run(&policy, begin, &steps, |d, o, _, _| {
            let beside = o.beside.iter().map(|b| &b.load);
            let unseen = o.metrics.iter().chain(beside).any(|m| match m {
                Reading::Missing(_) => true,
                Reading::Known(s) => policy.profile == Profile::Default
                    && (s.windows.is_empty() || s.coverage < 0.99 || s.estimated),
            });
            if unseen && o.spec_replicas <= max && policy.profile == Profile::Default {
                assert!(d.replicas >= o.spec_replicas, "{d:?}");
            }
        });
    }

    #[test]
    fn a_restart_lowers_nothing(policy in policy(), begin in 2i32..300, step in step()) {
        let policy = Policy { profile: Profile::Default, ..policy };
        let (_, max) = policy.bounds();
        let mut step = step;
        step.foreign = None;
        run(&policy, begin, &[step], |d, _, _, _| {
            assert!(d.replicas >= begin.min(max), "{d:?}");
        });
    }

    #[test]
    fn the_order_of_metrics_is_irrelevant(policy in policy(), begin in 0i32..300, steps in prop::collection::vec(step(), 1..12)) {
        let mut forward = Vec::new();
        run(&policy, begin, &steps, |d, _, _, _| forward.push((d.replicas, d.limited, d.burst_until)));
        let mut turned = policy.clone();
        turned.metrics.reverse();
        let turned_steps: Vec<Step> = steps.iter().cloned().map(|mut s| {
            s.readings.truncate(policy.metrics.len());
            s.readings.reverse();
            s
        }).collect();
        let mut backward = Vec::new();
        run(&turned, begin, &turned_steps, |d, _, _, _| backward.push((d.replicas, d.limited, d.burst_until)));
        assert_eq!(forward, backward);
    }

    #[test]
    fn more_load_never_means_fewer_replicas(
        policy in policy(), begin in 1i32..100, steps in prop::collection::vec(step(), 1..8), factor in 1.0f64..10.0,
    ) {
        // The HPA itself is not monotone: just outside the tolerance it counts ready pods only.
        let policy = Policy { profile: Profile::Default, ..policy };
        run(&policy, begin, &steps, |d, o, history, now| {
            let mut more = o.clone();
            for (i, m) in more.metrics.iter_mut().enumerate() {
                let Reading::Known(s) = m else { continue };
                for w in &mut s.windows {
                    // A count and its events are one thing; take samples where they agree.
                    if policy.metrics[i].objective == Objective::Count && w.events.is_some() {
                        return;
                    }
                    if w.value.is_sign_negative() || w.value.is_nan() { return; }
                    w.value *= factor;
                    if !w.value.is_finite() { return; }
                    if let Some(e) = &mut w.events {
                        if policy.metrics[i].objective.share().is_some() { continue; }
                        *e = (*e as f64 * factor).ceil() as u64;
                    }
                }
            }
            let after = decide(&more, &policy, history, now);
            assert!(after.replicas >= d.replicas, "{d:?}\n{after:?}");
        });
    }

    #[test]
    fn policies_are_kept_over_any_window(
        up in rules(), down in rules(), begin in 1i32..100, loads in prop::collection::vec((0u64..30, 0.0f64..20_000.0), 2..60),
    ) {
        let metric = support::rate_metric(100.0);
        let policy = Policy { up, down, behavior_given: true, ..Policy::new(1, 1_000_000, vec![Metric { objective: Objective::External, burst_window: None, ..metric }]) };
        let mut changes: Vec<(u64, i32, i32)> = vec![];
        let steps: Vec<Step> = loads.iter().map(|(wait, load)| Step {
            wait: wait * 1000,
            readings: vec![Reading::Known(Sample {
                sampled: Time::default(),
                windows: vec![WindowSample { window: Duration::from_secs(30), value: *load, events: None, covered: Duration::from_secs(30) }],
                coverage: 1.0, estimated: false,
            })],
            beside: (Reading::Missing("none".into()), Reading::Missing("none".into())),
            ready: i32::MAX, foreign: None,
        }).collect();
        run(&policy, begin, &steps, |d, _, _, now| {
            if d.changes() { changes.push((now.as_millis(), d.current, d.replicas)); }
        });
        for (i, (t, from, to)) in changes.iter().enumerate() {
            let rules = if to > from { &policy.up } else { &policy.down };
            assert_ne!(rules.select, Select::Disabled);
            let allowed = rules.policies.iter().map(|l| {
                let since = t.saturating_sub(u64::try_from(l.period.as_millis()).unwrap());
                // Replicas when the period began, as the changes tell.
                let start = changes[..i].iter().rev().take_while(|(at, ..)| *at > since).last().map_or(*from, |(_, f, _)| *f);
                let (start, value) = (f64::from(start), f64::from(l.value));
                match (l.unit, to > from) {
                    (Unit::Pods, true) => start + value,
                    (Unit::Percent, true) => (start * (1.0 + value / 100.0)).ceil(),
                    (Unit::Pods, false) => start - value,
                    (Unit::Percent, false) => (start * (1.0 - value / 100.0)).trunc(),
                }
            });
            let most = matches!(rules.select, Select::Max);
            let limit = if (to > from) == most { allowed.fold(f64::NEG_INFINITY, f64::max) } else { allowed.fold(f64::INFINITY, f64::min) };
            let kept = if to > from { f64::from(*to) <= limit } else { f64::from(*to) >= limit };
            assert!(kept, "{from} to {to} at {t}, allowed {limit}; {changes:?} {rules:?}");
        }
    }
}
