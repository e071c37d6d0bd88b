//! A latency whose capacity is learned: what it knows when, what it makes of that, and what holds for every input.
//! The workload's latency follows from its load, as that of a queue does; the transcripts are reviewed by people.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

mod support;

use std::{fmt::Write, time::Duration};

use ebpf_scaler_decide::{
    Beside, Decision, History, Learned, Metric, Objective, Observation, Point, Policy, Reading,
    Reason, Sample, Target, Time, WindowSample, decide,
};
use proptest::prelude::*;

const NAME: &str = "request_latency_p99_microseconds";
/// 50 ms.
const TARGET: f64 = 50_000.0;

fn metric() -> Metric {
    Metric {
        name: NAME.into(),
        objective: Objective::LearnedLatency { share: 0.99 },
        target: Target::Value(TARGET),
        stable_window: Duration::from_secs(30),
        burst_window: Some(Duration::from_secs(3)),
    }
}

fn sample(windows: &[u64], value: f64, events: impl Fn(u64) -> Option<u64>) -> Reading {
    let windows = windows.iter().map(|s| WindowSample {
        window: Duration::from_secs(*s),
        value,
        events: events(*s),
        covered: Duration::from_secs(*s),
    });
    Reading::Known(Sample {
        sampled: Time::default(),
        windows: windows.collect(),
        coverage: 1.0,
        estimated: false,
    })
}

/// `load` requests per second with this latency, and so many threads that wait.
fn observation(spec: i32, load: f64, latency: f64, waiting: f64, now: Time) -> Observation {
    let count = |seconds| Some((load * seconds as f64) as u64);
    let mut observation = Observation {
        spec_replicas: spec,
        status_replicas: spec,
        ready_replicas: spec,
        metrics: vec![sample(&[30, 3], latency, count)],
        beside: vec![Beside {
            metric: 0,
            load: sample(&[30, 3, 1], load, count),
            waiting: sample(&[30], waiting, |_| None),
        }],
    };
    let besides = observation.beside.iter_mut();
    let besides = besides.flat_map(|b| [&mut b.load, &mut b.waiting]);
    for reading in observation.metrics.iter_mut().chain(besides) {
        if let Reading::Known(s) = reading {
            s.sampled = now;
        }
    }
    observation
}

/// A service of 10 ms that takes `limit` requests per second in each pod.
struct Service {
    policy: Policy,
    history: History,
    now: u64,
    spec: i32,
    /// Of a pod.
    limit: f64,
    /// Microseconds that every request waits for somebody else.
    elsewhere: f64,
    text: String,
    last: String,
}

impl Service {
    fn new(spec: i32) -> Self {
        Self {
            policy: Policy::new(2, 40, vec![metric()]),
            history: History::default(),
            now: 0,
            spec,
            limit: 120.0,
            elsewhere: 0.0,
            text: String::new(),
            last: String::new(),
        }
    }

    fn observe(&self, load: f64) -> Observation {
        let busy = (load / f64::from(self.spec) / self.limit).min(0.98);
        let latency = 10_000.0 / (1.0 - busy) + self.elsewhere;
        let waiting = f64::from(self.spec) * busy * busy / (1.0 - busy);
        observation(self.spec, load, latency, waiting, Time::from_secs(self.now))
    }

    fn note(&mut self, text: &str) {
        writeln!(self.text, "# {text}").unwrap();
    }

    /// Seconds pass under this load; writes down where the reason or the replicas change.
    fn pass(&mut self, seconds: u64, load: f64) -> Decision {
        let mut last = None;
        for _ in 0..seconds {
            self.now += 1;
            let now = Time::from_secs(self.now);
            let observation = self.observe(load);
            let d = decide(&observation, &self.policy, &self.history, now);
            self.history.record(&observation, &self.policy, &d, now);
            let reason = format!("{} {}", d.reason.as_str(), d.replicas);
            if reason != self.last {
                let message = d.message(&self.policy);
                let reason = d.reason.as_str();
                writeln!(self.text, "{:>5} s  {reason:<22} {message}", self.now).unwrap();
            }
            self.last = reason;
            if d.changes() {
                self.history.scaled(self.spec, d.replicas, now);
                self.spec = d.replicas;
            }
            last = Some(d);
        }
        last.unwrap()
    }
}

fn learned(d: &Decision) -> Learned {
    d.metrics[0].learned.unwrap()
}

#[test]
fn a_capacity_is_learned_and_used() {
    let mut s = Service::new(8);
    s.note(
        "nothing is known, eight pods have 25/s each: bounded steps until five windows were seen",
    );
    s.pass(300, 200.0);
    s.note(
        "latency leaves much of the target: fewer pods, a little more on each than was ever seen",
    );
    let d = s.pass(3600, 200.0);
    assert!(!learned(&d).limit_seen);
    s.note("a load that grows by 5 % in three minutes, until pods have what they can take");
    let mut load = 200.0;
    while load < 900.0 {
        load *= 1.05;
        s.pass(180, load);
    }
    s.note("three times as much at once: in one step, to what was learned");
    s.pass(60, 2700.0);
    s.note("and calm again");
    s.pass(1200, 400.0);
    insta::assert_snapshot!(s.text);
}

#[test]
fn a_slower_version_is_learned_again() {
    let mut s = Service::new(8);
    for load in [400.0, 500.0, 600.0, 650.0, 700.0] {
        s.pass(300, load);
    }
    let before = learned(&s.pass(600, 700.0));
    assert!(before.is_known());
    s.note("a new version takes half as much");
    s.limit = 60.0;
    let d = s.pass(2400, 700.0);
    let after = learned(&d);
    assert!(after.is_known());
    assert!(
        after.capacity.unwrap() < 0.7 * before.capacity.unwrap(),
        "{before:?} {after:?}"
    );
    s.note("and one that takes more than ever: what was too much is forgotten in a day or two");
    s.limit = 200.0;
    let spec = s.spec;
    let d = s.pass(2 * 86_400, 700.0);
    assert!(s.spec < spec, "{} {d:?}", s.text);
    insta::assert_snapshot!(s.text);
}

#[test]
fn what_comes_from_elsewhere_adds_no_pods_at_once() {
    let mut s = Service::new(8);
    s.policy.down.stabilization = Duration::from_secs(3600);
    s.pass(900, 600.0);
    s.note("half the load, and a database that takes 100 ms: pods took more before");
    s.elsewhere = 100_000.0;
    let d = s.pass(60, 300.0);
    assert_eq!(d.reason, Reason::LatencyNotFromLoad);
    assert_eq!(d.replicas, d.current);
    s.note("ten windows later it is what the workload is like now");
    s.pass(600, 300.0);
    assert!(s.spec > 8, "{}", s.text);
    insta::assert_snapshot!(s.text);
}

#[test]
fn a_restart_goes_on_where_it_was_and_lowers_nothing() {
    let mut s = Service::new(10);
    for load in [300.0, 400.0, 500.0, 600.0] {
        s.pass(300, load);
    }
    let before = learned(&s.pass(60, 700.0));
    let now = Time::from_secs(s.now);
    let kept = s.history.learned(NAME, now);
    assert!(!kept.is_empty());
    let spec = s.spec;
    s.history = History::default();
    s.history.restore(NAME, &kept, Duration::from_secs(60), now);
    let after = learned(&s.pass(1, 100.0));
    assert_eq!(s.spec, spec);
    assert!((after.capacity.unwrap() / before.capacity.unwrap() - 1.0).abs() < 0.01);
    // What is a week old is no more than a hint.
    let mut old = History::default();
    old.restore(NAME, &kept, Duration::from_secs(21 * 86_400), now);
    let o = s.observe(700.0);
    let d = decide(&o, &s.policy, &old, now);
    assert!(!learned(&d).is_known(), "{d:?}");
}

fn points() -> impl Strategy<Value = Vec<Point>> {
    let point = (
        1.0f64..500.0,
        1000.0f64..200_000.0,
        0.0f64..1.0,
        prop::option::of(0.0f64..10.0),
        0.2f64..20.0,
    );
    let point = point.prop_map(|(load, latency, spread, waiting, weight)| Point {
        load,
        latency,
        spread,
        waiting,
        weight,
    });
    prop::collection::vec(point, 0..30)
}

fn wild() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.001f64..1e6,
        2 => any::<f64>(),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), Just(1e300), Just(f64::MIN_POSITIVE)],
    ]
}

fn wild_points() -> impl Strategy<Value = Vec<Point>> {
    let point = (wild(), wild(), wild(), prop::option::of(wild()), wild());
    let point = point.prop_map(|(load, latency, spread, waiting, weight)| Point {
        load,
        latency,
        spread,
        waiting,
        weight,
    });
    prop::collection::vec(point, 0..100)
}

/// A history that knows `points`, and has watched `spec` replicas at rest for two minutes.
fn knowing(points: &[Point], policy: &Policy, spec: i32, load: f64) -> (History, Time) {
    let mut history = History::default();
    history.restore(NAME, points, Duration::ZERO, Time::from_secs(1));
    let mut now = Time::from_secs(1);
    for second in 1..120 {
        now = Time::from_secs(second);
        // Latency is not seen yet, so nothing is learned.
        let mut o = observation(spec, load, f64::NAN, 1.0, now);
        o.metrics[0] = Reading::Missing("not yet".into());
        let d = decide(&o, policy, &history, now);
        history.record(&o, policy, &d, now);
    }
    (history, now.after(Duration::from_secs(1)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: support::cases(256), ..ProptestConfig::default() })]

    #[test]
    fn more_latency_at_equal_load_never_means_fewer_replicas(
        points in points(), spec in 1i32..30, load in 1.0f64..5000.0, latency in 500.0f64..500_000.0, factor in 1.0f64..10.0, waiting in 0.0f64..50.0,
    ) {
        let mut policy = Policy::new(1, 1000, vec![metric()]);
        policy.down.stabilization = Duration::ZERO;
        let (history, now) = knowing(&points, &policy, spec, load);
        let asked = |latency| {
            let d = decide(&observation(spec, load, latency, waiting, now), &policy, &history, now);
            (d.replicas, d)
        };
        let (less, a) = asked(latency);
        let (more, b) = asked(latency * factor);
        prop_assert!(more >= less, "{a:?}\n{b:?}");
    }

    #[test]
    fn more_load_at_equal_latency_never_means_fewer_replicas(
        points in points(), spec in 1i32..30, load in 1.0f64..5000.0, latency in 500.0f64..500_000.0, factor in 1.0f64..10.0,
    ) {
        let mut policy = Policy::new(1, 1000, vec![metric()]);
        policy.down.stabilization = Duration::ZERO;
        let (history, now) = knowing(&points, &policy, spec, load);
        // Waiting is unknown, so that no cause is looked for; a quantile's events do not change here.
        let asked = |load: f64| {
            let mut o = observation(spec, load, latency, 0.0, now);
            o.beside[0].waiting = Reading::Missing("5.14".into());
            o.metrics = observation(spec, 1e5, latency, 0.0, now).metrics;
            decide(&o, &policy, &history, now)
        };
        let (less, more) = (asked(load), asked(load * factor));
        prop_assert!(more.replicas >= less.replicas, "{less:?}\n{more:?}");
    }

    #[test]
    fn a_capacity_is_never_beyond_what_was_seen(points in wild_points(), latency in wild(), load in wild(), target in wild()) {
        let mut policy = Policy::new(1, 1000, vec![metric()]);
        policy.metrics[0].target = Target::Value(target);
        let mut history = History::default();
        history.restore(NAME, &points, Duration::from_secs(60), Time::default());
        let mut now = Time::default();
        for second in 1..200 {
            now = Time::from_secs(second);
            let o = observation(5, load, latency, 1.0, now);
            let d = decide(&o, &policy, &history, now);
            prop_assert!((1..=1000).contains(&d.replicas));
            prop_assert!(!d.message(&policy).is_empty());
            history.record(&o, &policy, &d, now);
            if let Some(learned) = d.metrics[0].learned {
                prop_assert!((0.0..=1.0).contains(&learned.confidence), "{learned:?}");
                if let (Some(capacity), Some((least, most))) = (learned.capacity, learned.seen) {
                    prop_assert!(least <= most && capacity > 0.0 && capacity <= most * (1.0 + 1e-9), "{learned:?}");
                } else {
                    prop_assert!(learned.capacity.is_none());
                }
            }
        }
        prop_assert!(history.learned(NAME, now).len() <= 24);
    }

    #[test]
    fn without_the_load_nothing_is_lowered(points in points(), spec in 1i32..30, latency in 500.0f64..500_000.0) {
        let mut policy = Policy::new(1, 1000, vec![metric()]);
        policy.down.stabilization = Duration::ZERO;
        let (history, now) = knowing(&points, &policy, spec, 100.0);
        let mut o = observation(spec, 100.0, latency, 1.0, now);
        for load in [Reading::Missing("silent".into()), {
            let mut half = o.beside[0].load.clone();
            if let Reading::Known(s) = &mut half { s.coverage = 0.6; }
            half
        }] {
            o.beside[0].load = load;
            let d = decide(&o, &policy, &history, now);
            prop_assert!(d.replicas >= spec, "{d:?}");
        }
    }

    /// What is not known yet is not used: the same replicas as in bounded steps.
    #[test]
    fn without_knowledge_it_goes_in_bounded_steps(steps in prop::collection::vec((1.0f64..3000.0, 500.0f64..500_000.0), 1..80)) {
        let plain = Metric { objective: Objective::Latency { share: 0.99 }, burst_window: None, ..metric() };
        let policies = [Policy::new(1, 1000, vec![metric()]), Policy::new(1, 1000, vec![plain])];
        let mut histories = [History::default(), History::default()];
        let mut spec = 6;
        for (i, (load, latency)) in steps.iter().enumerate() {
            let now = Time::from_secs(i as u64 * 7);
            let o = observation(spec, *load, *latency, 1.0, now);
            let [a, b] = [0, 1].map(|i| {
                let d = decide(&o, &policies[i], &histories[i], now);
                histories[i].record(&o, &policies[i], &d, now);
                if d.changes() { histories[i].scaled(spec, d.replicas, now); }
                d
            });
            if learned(&a).is_known() { break; }
            prop_assert_eq!(a.replicas, b.replicas);
            spec = a.replicas;
        }
    }

    #[test]
    fn what_is_kept_is_read_again_as_it_was(loads in prop::collection::vec((1.0f64..1000.0, 1000.0f64..45_000.0), 1..40)) {
        let policy = Policy::new(1, 1000, vec![metric()]);
        let mut history = History::default();
        let mut now = Time::default();
        for (i, (load, latency)) in loads.iter().enumerate() {
            for second in 0..31 {
                now = Time::from_secs(i as u64 * 31 + second);
                let o = observation(4, *load, *latency, 1.0, now);
                let d = decide(&o, &policy, &history, now);
                history.record(&o, &policy, &d, now);
            }
        }
        let kept = history.learned(NAME, now);
        let mut again = History::default();
        again.restore(NAME, &kept, Duration::ZERO, now);
        prop_assert_eq!(again.learned(NAME, now), kept);
    }
}
