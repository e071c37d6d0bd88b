//! Scenarios as transcripts that people review: one line a decision, only where something changes.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::{fmt::Write, time::Duration};

use ebpf_scaler_decide::{
    Fallback, Floor, History, Limit, Metric, Objective, Observation, Pause, Policy, Reading, Rules,
    Sample, Select, Target, Time, Unit, WindowSample, decide,
};

/// A workload whose readings are given exactly, a second apart.
struct Story {
    policy: Policy,
    history: History,
    now: u64,
    spec: i32,
    ready: i32,
    text: String,
    last: String,
}

fn exact(value: f64, coverage: f64) -> Reading {
    let windows = [30u64, 3, 1].map(|s| WindowSample {
        window: Duration::from_secs(s),
        value,
        events: Some((value * s as f64) as u64),
        covered: Duration::from_secs(s),
    });
    Reading::Known(Sample {
        sampled: Time::default(),
        windows: windows.to_vec(),
        coverage,
        estimated: false,
    })
}

fn missing(why: &str) -> Reading {
    Reading::Missing(why.into())
}

impl Story {
    fn new(policy: Policy, spec: i32) -> Self {
        Self {
            policy,
            history: History::default(),
            now: 0,
            spec,
            ready: spec,
            text: String::new(),
            last: String::new(),
        }
    }

    fn note(&mut self, text: &str) {
        writeln!(self.text, "# {text}").unwrap();
    }

    /// Seconds pass with these readings, decided each second.
    fn pass(&mut self, seconds: u64, readings: &[Reading]) {
        for _ in 0..seconds {
            self.now += 1;
            let now = Time::from_secs(self.now);
            let mut metrics = readings.to_vec();
            for m in &mut metrics {
                if let Reading::Known(s) = m {
                    s.sampled = now;
                }
            }
            let observation = Observation {
                spec_replicas: self.spec,
                status_replicas: self.spec,
                ready_replicas: self.ready,
                metrics,
                ..Observation::default()
            };
            let d = decide(&observation, &self.policy, &self.history, now);
            self.history.record(&observation, &self.policy, &d, now);
            let line = format!("{:<22} {}", d.reason.as_str(), d.message(&self.policy));
            if line != self.last {
                writeln!(self.text, "{:>5} s  {line}", self.now).unwrap();
            }
            self.last = line;
            if d.changes() {
                self.history.scaled(self.spec, d.replicas, now);
                self.spec = d.replicas;
                // Pods are ready at the next look.
                self.ready = self.spec;
                self.last.clear();
            }
        }
    }
}

fn rate() -> Metric {
    support::rate_metric(100.0)
}

#[test]
fn step_up_and_down() {
    let mut s = Story::new(Policy::new(2, 20, vec![rate()]), 2);
    s.note("calm: 120 requests/s on two pods of 100");
    s.pass(60, &[exact(120.0, 1.0)]);
    s.note("five times as much");
    s.pass(60, &[exact(600.0, 1.0)]);
    s.note("calm again: held while a burst may not be over, then stabilized for 300 s");
    s.pass(400, &[exact(120.0, 1.0)]);
    insta::assert_snapshot!(s.text);
}

#[test]
fn behavior_narrows_both_ways() {
    let mut policy = Policy::new(1, 50, vec![rate()]);
    let period = Duration::from_secs(60);
    policy.behavior_given = true;
    policy.up.policies = vec![Limit {
        unit: Unit::Pods,
        value: 2,
        period,
    }];
    policy.down = Rules {
        stabilization: Duration::ZERO,
        select: Select::Min,
        policies: vec![
            Limit {
                unit: Unit::Pods,
                value: 3,
                period,
            },
            Limit {
                unit: Unit::Percent,
                value: 10,
                period,
            },
        ],
    };
    let mut s = Story::new(policy, 4);
    s.note("two pods a minute, though 20 are asked for");
    s.pass(150, &[exact(2000.0, 1.0)]);
    s.note("the lesser of 3 pods and 10 % a minute down");
    s.pass(200, &[exact(100.0, 1.0)]);
    insta::assert_snapshot!(s.text);
}

#[test]
fn missing_metrics_hold_and_fall_back() {
    let mut policy = Policy::new(
        2,
        20,
        vec![
            rate(),
            Metric {
                name: "queue_depth".into(),
                objective: Objective::External,
                burst_window: None,
                ..rate()
            },
        ],
    );
    policy.down.stabilization = Duration::from_secs(15);
    policy.fallback = Some(Fallback {
        after: Duration::from_secs(120),
        replicas: 6,
    });
    let mut s = Story::new(policy, 4);
    s.pass(40, &[exact(390.0, 1.0), exact(10.0, 1.0)]);
    s.note("one metric is gone and the other asks for less");
    s.pass(20, &[exact(100.0, 1.0), missing("404")]);
    s.note("it may still ask for more");
    s.pass(5, &[exact(900.0, 1.0), missing("404")]);
    s.note("both are gone for two minutes: the fallback would not lower");
    s.pass(150, &[missing("silent"), missing("404")]);
    s.note("back, with half of the pods unseen: not down");
    s.pass(60, &[exact(200.0, 0.5), exact(10.0, 1.0)]);
    s.note("all seen");
    s.pass(20, &[exact(200.0, 1.0), exact(10.0, 1.0)]);
    insta::assert_snapshot!(s.text);
}

#[test]
fn fallback_raises() {
    let mut policy = Policy::new(2, 20, vec![rate()]);
    policy.fallback = Some(Fallback {
        after: Duration::from_secs(60),
        replicas: 6,
    });
    let mut s = Story::new(policy, 3);
    s.pass(5, &[exact(290.0, 1.0)]);
    s.pass(90, &[missing("no agent reports from node a")]);
    insta::assert_snapshot!(s.text);
}

#[test]
fn latency_goes_in_bounded_steps_and_waits() {
    let metric = Metric {
        name: "request_latency_p99_microseconds".into(),
        objective: Objective::Latency { share: 0.99 },
        target: Target::Value(50_000.0),
        stable_window: Duration::from_secs(30),
        burst_window: None,
    };
    let mut s = Story::new(Policy::new(2, 20, vec![metric]), 4);
    let latency = |value: f64, events: u64| {
        let mut r = exact(value, 1.0);
        if let Reading::Known(s) = &mut r {
            for w in &mut s.windows {
                w.events = Some(events);
            }
        }
        r
    };
    s.note("eight times its target");
    s.pass(100, &[latency(400_000.0, 5000)]);
    s.note("high, but of 40 requests");
    s.pass(10, &[latency(400_000.0, 40)]);
    s.note("far below its target");
    s.pass(500, &[latency(5_000.0, 5000)]);
    insta::assert_snapshot!(s.text);
}

#[test]
fn bounds_and_foreign_changes() {
    let mut s = Story::new(Policy::new(2, 5, vec![rate()]), 1);
    s.note("fewer than the minimum, then more than the maximum is asked for");
    s.pass(3, &[exact(150.0, 1.0)]);
    s.pass(3, &[exact(3000.0, 1.0)]);
    s.note("somebody sets 9, then 0");
    s.spec = 9;
    s.pass(2, &[exact(3000.0, 1.0)]);
    s.spec = 0;
    s.pass(2, &[exact(3000.0, 1.0)]);
    insta::assert_snapshot!(s.text);
}

#[test]
fn a_floor_by_schedule_and_a_pause() {
    let mut s = Story::new(Policy::new(2, 10, vec![rate()]), 2);
    s.policy.down.stabilization = Duration::ZERO;
    s.pass(40, &[exact(150.0, 1.0)]);
    s.note("a schedule raises the minimum, as far as the maximum allows");
    s.policy.floor = Some(Floor {
        replicas: 6,
        name: "rush".into(),
    });
    s.pass(3, &[exact(150.0, 1.0)]);
    s.policy.floor = Some(Floor {
        replicas: 50,
        name: "sale".into(),
    });
    s.pass(3, &[exact(150.0, 1.0)]);
    s.note("one below the minimum changes nothing");
    s.policy.floor = Some(Floor {
        replicas: 1,
        name: "night".into(),
    });
    s.pass(40, &[exact(150.0, 1.0)]);
    s.note("paused: what the metrics ask for is told, and nothing done");
    s.policy.floor = None;
    s.policy.pause = Some(Pause { replicas: None });
    s.pass(10, &[exact(900.0, 1.0)]);
    s.note("paused at 12, which is above the maximum");
    s.policy.pause = Some(Pause { replicas: Some(12) });
    s.pass(3, &[missing("no agent")]);
    s.note("scaled to zero by hand: it stays there, paused or not");
    s.spec = 0;
    s.pass(3, &[exact(900.0, 1.0)]);
    s.note("resumed");
    s.spec = 12;
    s.policy.pause = None;
    s.pass(3, &[exact(900.0, 1.0)]);
    insta::assert_snapshot!(s.text);
}

#[test]
fn the_hpa_profile_is_the_hpa() {
    let mut s = Story::new(
        Policy::hpa(
            1,
            50,
            vec![Metric {
                objective: Objective::External,
                ..rate()
            }],
        ),
        1,
    );
    s.note("without behavior: max(2x, 4) a reconciliation, then 300 s of stabilization");
    s.pass(4, &[exact(2000.0, 1.0)]);
    s.pass(310, &[exact(109.0, 1.0)]);
    insta::assert_snapshot!(s.text);
}

#[test]
fn a_decision_takes_no_more_than_twenty_microseconds() {
    let policy = Policy::new(
        2,
        100,
        (0..5)
            .map(|i| Metric {
                name: format!("m{i}"),
                ..rate()
            })
            .collect(),
    );
    let mut history = History::default();
    let observation = Observation {
        spec_replicas: 4,
        status_replicas: 4,
        ready_replicas: 4,
        metrics: vec![exact(390.0, 1.0); 5],
        ..Observation::default()
    };
    // An hour at four a second fills what is remembered.
    for i in 0..14_400u64 {
        let now = Time::from_millis(i * 250);
        let d = decide(&observation, &policy, &history, now);
        history.record(&observation, &policy, &d, now);
    }
    let now = Time::from_millis(14_400 * 250);
    let begin = std::time::Instant::now();
    for _ in 0..10_000 {
        std::hint::black_box(decide(
            std::hint::black_box(&observation),
            &policy,
            &history,
            now,
        ));
    }
    let each = begin.elapsed() / 10_000;
    println!("decide: {each:?} with five metrics");
    // An unoptimised build on a busy machine is given ten times the budget of 20 us.
    let budget = if cfg!(debug_assertions) { 200 } else { 20 };
    assert!(each <= Duration::from_micros(budget), "{each:?}");
}
