//! A workload under Poisson load, measured as the collector does: cumulative counts read each
//! 250 ms on each node, at a phase of its own, windows answered after each reading.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use std::time::Duration;

use ebpf_scaler_decide::{
    Decision, History, Metric, Objective, Observation, Policy, Profile, Reading, Sample, Target,
    Time, WindowSample, decide,
};

/// Random cases to look at: `short`, or forty times as many, at least 1000, in the long version.
pub fn cases(short: u32) -> u32 {
    if std::env::var_os("EBPF_SCALER_TEST_LONG").is_some() {
        (short * 40).max(1000)
    } else {
        short
    }
}

/// How often an HPA looks, in milliseconds.
const SYNC: u64 = 15_000;

/// A small, good and reproducible generator (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 200.0 {
            // Normal by Box-Muller: the difference does not show at this size.
            let (a, b) = (self.unit(), self.unit());
            let z = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
            return (mean + z * mean.sqrt()).round().max(0.0) as u64;
        }
        let limit = (-mean).exp();
        let (mut k, mut p) = (0, 1.0);
        loop {
            p *= self.unit();
            if p <= limit {
                return k;
            }
            k += 1;
        }
    }
}

struct Node {
    phase: u64,
    count: u64,
    /// Cumulative count at each reading: (millisecond, count).
    readings: Vec<(u64, u64)>,
}

pub struct World {
    pub now: u64,
    pub policy: Policy,
    pub history: History,
    pub spec: i32,
    pub ready: i32,
    ready_at: Vec<u64>,
    pub windows: Vec<u64>,
    nodes: Vec<Node>,
    random: Random,
    pub writes: Vec<(u64, i32)>,
    pub observe_only: bool,
    pub last: Option<Decision>,
}

pub fn rate_metric(target: f64) -> Metric {
    Metric {
        name: "requests_per_second".into(),
        objective: Objective::Count,
        target: Target::Average(target),
        stable_window: Duration::from_secs(30),
        burst_window: Some(Duration::from_secs(3)),
    }
}

impl World {
    pub fn new(seed: u64, nodes: usize, policy: Policy, spec: i32) -> Self {
        let mut random = Random::new(seed);
        let nodes = (0..nodes)
            .map(|_| Node {
                phase: (random.unit() * 250.0) as u64,
                count: 0,
                readings: vec![],
            })
            .collect();
        Self {
            now: 0,
            policy,
            history: History::default(),
            spec,
            ready: spec,
            ready_at: vec![],
            windows: vec![1, 3, 30],
            nodes,
            random,
            writes: vec![],
            observe_only: false,
            last: None,
        }
    }

    /// Lets nodes report at these milliseconds of each 250.
    pub fn report_at(&mut self, phases: &[u64]) {
        for (node, phase) in self.nodes.iter_mut().zip(phases) {
            node.phase = *phase;
        }
    }

    /// Lets `millis` pass at `rate` requests a second, deciding at every answer.
    pub fn run(&mut self, millis: u64, rate: f64) {
        let share = rate / 1000.0 / self.nodes.len() as f64;
        for _ in 0..millis {
            self.now += 1;
            let now = self.now;
            let mut read = false;
            for node in &mut self.nodes {
                let n = self.random.poisson(share);
                let last = node.count;
                node.count += n;
                if now % 250 == node.phase % 250 {
                    node.readings.push((now, last + n));
                    read = true;
                }
            }
            self.ready_at.retain(|t| *t > now);
            self.ready = self.spec - i32::try_from(self.ready_at.len()).unwrap();
            if read {
                self.step();
            }
        }
    }

    /// The same in steps of 125 ms, for hours of simulated time.
    pub fn run_fast(&mut self, millis: u64, rate: f64) {
        let step = 125;
        let share = rate / 1000.0 / self.nodes.len() as f64 * step as f64;
        for _ in 0..millis / step {
            self.now += step;
            let now = self.now;
            for node in &mut self.nodes {
                let n = self.random.poisson(share);
                let last = node.count;
                node.count += n;
                node.phase = 0;
                if now.is_multiple_of(250) {
                    node.readings.push((now, last + n));
                    if node.readings.len() > 400 {
                        node.readings.drain(..200);
                    }
                }
            }
            self.ready_at.retain(|t| *t > now);
            self.ready = self.spec - i32::try_from(self.ready_at.len()).unwrap();
            let period = match self.policy.profile {
                Profile::Default => 250,
                Profile::Hpa => SYNC,
            };
            if now.is_multiple_of(period) {
                self.step();
            }
        }
    }

    /// Events of all nodes in a window that ends at each node's last reading.
    fn events(&self, window: u64) -> (u64, u64) {
        let mut total = 0;
        let mut covered = u64::MAX;
        for node in &self.nodes {
            let Some((end, count)) = node.readings.last() else {
                return (0, 0);
            };
            let want = end.saturating_sub(window * 1000);
            let before = node
                .readings
                .iter()
                .rev()
                .find(|(t, _)| *t <= want)
                .or(node.readings.first())
                .unwrap();
            total += count - before.1;
            covered = covered.min(end - before.0);
        }
        (total, covered)
    }

    pub fn sample(&self) -> Sample {
        let windows = self
            .windows
            .iter()
            .filter_map(|w| {
                let (events, covered) = self.events(*w);
                (covered > 0).then(|| WindowSample {
                    window: Duration::from_secs(*w),
                    value: events as f64 * 1000.0 / covered as f64,
                    events: Some(events),
                    covered: Duration::from_millis(covered),
                })
            })
            .collect();
        Sample {
            sampled: Time::from_millis(self.now),
            windows,
            coverage: 1.0,
            estimated: false,
        }
    }

    fn step(&mut self) {
        let observation = Observation {
            spec_replicas: self.spec,
            status_replicas: self.spec,
            ready_replicas: self.ready,
            metrics: vec![Reading::Known(self.sample())],
            ..Observation::default()
        };
        let now = Time::from_millis(self.now);
        let decision = decide(&observation, &self.policy, &self.history, now);
        self.history
            .record(&observation, &self.policy, &decision, now);
        if decision.changes() && !self.observe_only {
            self.history.scaled(self.spec, decision.replicas, now);
            for _ in self.spec..decision.replicas {
                self.ready_at.push(self.now + 1500);
            }
            self.spec = decision.replicas;
            self.writes.push((self.now, self.spec));
        }
        self.last = Some(decision);
    }
}
