//! Runs a trace through the pods under one decider. The same seed gives every decider the same requests,
//! at the same times and with the same work. Never decides.

use std::time::Duration;

use ebpf_scaler_common::histogram;
use ebpf_scaler_decide::Policy;

use crate::{
    decider::{Busy, Decider, Kind, World, cpu_policy},
    kpa,
    measure::{Nodes, PERIOD},
    outcome::{Change, Outcome, Replicas},
    pods::{PodModel, Pods, Service, micros},
    random::Random,
    trace::{Arrivals, LONGEST, Trace, millis, tame},
};

/// A scaler and the workload that it scales.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What the operator makes of the scaler.
    pub policy: Policy,
    /// What it makes of the same scaler with the profile HPA.
    pub hpa: Policy,
    /// Where the scaler learns what a pod can take: the same with a request rate that somebody set.
    pub rate: Option<Policy>,
    /// The same that learns nothing.
    pub steps: Option<Policy>,
    /// What Knative would be told; none if it knows no such metric.
    pub kpa: Option<kpa::Config>,
    /// The workload.
    pub pods: PodModel,
    /// Nodes that its pods are on.
    pub nodes: usize,
    /// A request that takes longer violates the objective, and so does one that is not answered.
    pub slo: Duration,
    /// Pods at the begin.
    pub initial: i32,
}

/// More nodes than this are not simulated.
const NODES: usize = 100;

/// What comes of `trace` under `kind`; none if that decider cannot scale on the scaler's metrics.
#[must_use]
pub fn run(scenario: &Scenario, trace: &Trace, kind: Kind, seed: u64) -> Option<Outcome> {
    let (policy, kpa) = match kind {
        Kind::EbpfScaler => (scenario.policy.clone(), None),
        Kind::RequestRate => (scenario.rate.clone()?, None),
        Kind::BoundedSteps => (scenario.steps.clone()?, None),
        Kind::Hpa => (scenario.hpa.clone(), None),
        Kind::HpaCpu => (cpu_policy(&scenario.hpa), None),
        Kind::Kpa => (scenario.policy.clone(), Some(scenario.kpa?)),
    };
    let mut phases = Random::new(seed, 3);
    let nodes = scenario.nodes.clamp(1, NODES);
    let nodes: Vec<u64> = (0..nodes).map(|_| phases.below(250) * 1000).collect();
    debug_assert!(nodes.iter().all(|p| *p < PERIOD));
    let mut simulation = Simulation {
        scenario,
        nodes: Nodes::new(&nodes, &policy.metrics),
        pods: Pods::new(scenario.pods, nodes.len(), scenario.initial, seed),
        decider: Decider::new(kind, policy, kpa, scenario.initial, &mut phases),
        busy: (kind == Kind::HpaCpu)
            .then(Busy::default)
            .unwrap_or_default(),
        watches_cpu: kind == Kind::HpaCpu,
        rollouts: trace
            .rollouts
            .iter()
            .map(|t| t.saturating_mul(1000))
            .collect(),
        now: 0,
        next: 0,
        latencies: vec![0; histogram::BUCKETS],
        outcome: Outcome::new(kind, trace.seconds().len()),
    };
    simulation.rollouts.sort_unstable();
    simulation.outcome.saw(simulation.replicas());
    simulation.plan();
    simulation.play(trace, seed);
    Some(simulation.end(trace))
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    nodes: Nodes,
    pods: Pods,
    decider: Decider,
    busy: Busy,
    watches_cpu: bool,
    rollouts: Vec<u64>,
    /// Microseconds of the last thing that was not a request.
    now: u64,
    /// Of the next one.
    next: u64,
    latencies: Vec<u64>,
    outcome: Outcome,
}

impl Simulation<'_> {
    fn play(&mut self, trace: &Trace, seed: u64) {
        let mut arrivals = Random::new(seed, 1);
        let mut work = Random::new(seed, 2);
        let mut times = Vec::new();
        let end = trace.end.min(millis(LONGEST));
        for (i, (from, rate)) in trace.rates.iter().enumerate() {
            let to = trace.rates.get(i + 1).map_or(end, |(t, _)| *t).min(end);
            let mut from = *from;
            while from < to {
                // In pieces of a second, so that few times have to be sorted at once.
                let until = (from + 1000).min(to);
                let expected = tame(*rate) * (until - from) as f64 / 1000.0;
                let count = match trace.arrivals {
                    Arrivals::Poisson => arrivals.poisson(expected),
                    Arrivals::Counted => (expected + arrivals.unit()).floor() as u64,
                };
                let (begin, long) = (from * 1000, (until - from) * 1000);
                times.clear();
                times.extend((0..count).map(|_| begin + arrivals.below(long)));
                times.sort_unstable();
                for at in &times {
                    self.until(*at);
                    let share = match self.scenario.pods.service {
                        Service::Exponential => work.exponential(),
                        Service::Fixed => 1.0,
                    };
                    let service = micros(self.scenario.pods.service_time) as f64 * share;
                    self.request(*at, service as u64);
                }
                from = until;
            }
        }
        self.until(end * 1000);
    }

    /// Does whatever is due until `at`.
    fn until(&mut self, at: u64) {
        while self.next <= at {
            let now = self.next;
            self.now = now;
            let mut moved = false;
            while self.rollouts.first().is_some_and(|t| *t <= now) {
                self.rollouts.remove(0);
                self.pods.roll_out(now);
                moved = true;
            }
            self.pods.settle(now);
            self.nodes.read(now);
            let due = self.decider.next(now.saturating_sub(1)) == Some(now);
            if due || self.decider.follows_reports() {
                moved |= self.decide(now);
            }
            let replicas = self.replicas();
            if moved || self.outcome.is_news(replicas) {
                self.outcome.saw(replicas);
            }
            self.plan();
        }
    }

    fn decide(&mut self, now: u64) -> bool {
        let mut world = World {
            pods: &self.pods,
            nodes: &mut self.nodes,
            busy: &self.busy,
            workers: self.scenario.pods.workers,
        };
        let Some(wish) = self.decider.look(&mut world, now) else {
            return false;
        };
        self.outcome.changed(Change {
            millis: now / 1000,
            from: self.pods.spec(),
            to: wish.replicas,
            reason: wish.reason,
        });
        self.pods.scale(wish.replicas, now);
        true
    }

    fn plan(&mut self) {
        let now = self.now;
        let next = [
            self.nodes.next_reading(now),
            self.decider.next(now),
            self.pods.next_ready(now),
            self.rollouts.first().copied(),
        ];
        self.next = next
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(u64::MAX)
            .max(now + 1);
    }

    fn request(&mut self, at: u64, service: u64) {
        let handled = self.pods.handle(at, service);
        let latency = handled.work.map(|(_, end)| end - at);
        let late = latency.is_some_and(|l| l > micros(self.scenario.slo));
        if let Some(bucket) = latency.and_then(|l| self.latencies.get_mut(histogram::index(l))) {
            *bucket += 1;
        }
        self.outcome.request(at, latency.is_some(), late);
        if let (true, Some((begin, end))) = (self.watches_cpu, handled.work) {
            self.busy.add(begin, end);
        }
        if let Some(node) = handled.node {
            // Who gives up leaves when patience ends.
            let gone = at.saturating_add(micros(self.scenario.pods.timeout));
            let until = latency.map_or(gone, |l| at + l);
            let begin = handled.work.map_or(gone, |(begin, _)| begin);
            self.nodes.count(node, at, until, latency, begin - at);
        }
    }

    fn replicas(&self) -> Replicas {
        Replicas {
            millis: self.now / 1000,
            spec: self.pods.spec(),
            ready: self.pods.ready(),
        }
    }

    fn end(mut self, trace: &Trace) -> Outcome {
        let end = trace.end.min(millis(LONGEST)) * 1000;
        self.outcome
            .finish(trace, self.pods.spent(end), &self.latencies);
        self.outcome
    }
}
