//! Who decides: our engine as the operator runs it, the HPA on our metric, the HPA on CPU, and Knative's.
//! Each looks at its own time. Never changes a pod itself.

use ebpf_scaler_decide::{
    Beside, History, Metric, Objective, Observation, Policy, Profile, Reading, Sample, Target,
    Time, WindowSample, decide,
};

use crate::{
    kpa::{self, Kpa},
    measure::Nodes,
    pods::Pods,
    random::Random,
};

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The scaler itself, with each report of a node, as the operator does; with the profile HPA each 15 s.
    #[serde(rename = "ebpfscaler")]
    EbpfScaler,
    /// The same metrics and bounds in an HPA on our external metrics, each 15 s.
    Hpa,
    /// An HPA on CPU, with metrics-server between.
    HpaCpu,
    /// Beside a latency whose capacity is learned: the same scaler with a request rate that somebody set who knows it.
    RequestRate,
    /// Beside it: the same scaler that goes in bounded steps and learns nothing.
    BoundedSteps,
    /// Knative's autoscaler on the same metric.
    Kpa,
}

impl Kind {
    /// In the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::EbpfScaler,
        Self::RequestRate,
        Self::BoundedSteps,
        Self::Hpa,
        Self::HpaCpu,
        Self::Kpa,
    ];

    /// As in flags and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EbpfScaler => "ebpfscaler",
            Self::RequestRate => "request-rate",
            Self::BoundedSteps => "bounded-steps",
            Self::Hpa => "hpa",
            Self::HpaCpu => "hpa-cpu",
            Self::Kpa => "kpa",
        }
    }
}

/// The HPA's sync period, and metrics-server's resolution, in microseconds.
const SYNC: u64 = 15_000_000;

/// How long all workers together worked in each second.
#[derive(Debug, Default)]
pub(crate) struct Busy(Vec<f64>);

impl Busy {
    /// Work from `begin` to `end`, in microseconds.
    pub(crate) fn add(&mut self, mut begin: u64, end: u64) {
        while begin < end {
            let second = begin / 1_000_000;
            let until = ((second + 1) * 1_000_000).min(end);
            let Ok(i) = usize::try_from(second) else {
                return;
            };
            if self.0.len() <= i {
                self.0.resize(i + 1, 0.0);
            }
            if let Some(sum) = self.0.get_mut(i) {
                *sum += (until - begin) as f64 / 1e6;
            }
            begin = until;
        }
    }

    /// Mean number of workers at work in the 15 s before `now`, to the second.
    fn mean(&self, now: u64) -> f64 {
        let end = usize::try_from(now / 1_000_000).unwrap_or(0);
        let from = end.saturating_sub(15);
        let sum: f64 = self.0.iter().take(end).skip(from).sum();
        sum / (end - from).max(1) as f64
    }
}

/// What there is to look at.
pub(crate) struct World<'a> {
    pub pods: &'a Pods,
    pub nodes: &'a mut Nodes,
    pub busy: &'a Busy,
    pub workers: usize,
}

/// A decider with its state.
pub(crate) struct Decider {
    kind: Kind,
    policy: Policy,
    history: History,
    kpa: Option<Kpa>,
    /// Of the HPA's sync, and of metrics-server's scrapes.
    phases: (u64, u64),
    /// Share of the pods' CPU that metrics-server saw last, in per cent.
    cpu: Option<f64>,
}

/// What it wants.
pub(crate) struct Wish {
    pub replicas: i32,
    pub reason: &'static str,
}

impl Decider {
    pub(crate) fn new(
        kind: Kind,
        policy: Policy,
        kpa: Option<kpa::Config>,
        initial: i32,
        random: &mut Random,
    ) -> Self {
        let mut phase = |period: u64| random.below(period / 1000) * 1000;
        let phases = (phase(SYNC), phase(SYNC) / 1_000_000 * 1_000_000);
        let tick = phase(SYNC);
        Self {
            kind,
            policy,
            history: History::default(),
            kpa: kpa.map(|config| Kpa::new(config, tick, initial)),
            phases,
            cpu: None,
        }
    }

    /// Whether it looks whenever a node has reported.
    pub(crate) fn follows_reports(&self) -> bool {
        matches!(
            self.kind,
            Kind::EbpfScaler | Kind::RequestRate | Kind::BoundedSteps
        ) && self.policy.profile != Profile::Hpa
    }

    /// When it looks next by itself.
    pub(crate) fn next(&self, now: u64) -> Option<u64> {
        let next = |phase: u64| now + SYNC - (now + SYNC - phase) % SYNC;
        match self.kind {
            _ if self.follows_reports() => None,
            Kind::EbpfScaler | Kind::RequestRate | Kind::BoundedSteps | Kind::Hpa => {
                Some(next(self.phases.0))
            }
            Kind::HpaCpu => Some(next(self.phases.0).min(next(self.phases.1))),
            Kind::Kpa => self.kpa.as_ref().map(|k| k.next(now)),
        }
    }

    /// Looks, and says what it wants if that is another number of pods.
    pub(crate) fn look(&mut self, world: &mut World<'_>, now: u64) -> Option<Wish> {
        let wish = match self.kind {
            Kind::EbpfScaler | Kind::RequestRate | Kind::BoundedSteps | Kind::Hpa => {
                let readings = self.policy.metrics.iter();
                let readings = readings
                    .map(|m| match world.nodes.sample(m, now) {
                        Some(sample) => Reading::Known(sample),
                        None => Reading::Missing("nothing is measured yet".into()),
                    })
                    .collect();
                let beside = world.nodes.beside(&self.policy.metrics, now);
                self.engine(world.pods, readings, beside, now)
            }
            Kind::HpaCpu => self.cpu(world, now)?,
            Kind::Kpa => {
                let (begun, in_flight) = world.nodes.totals(now);
                let kpa = self.kpa.as_mut()?;
                Wish {
                    replicas: kpa.tick(now, begun, in_flight, world.pods.ready())?,
                    reason: "",
                }
            }
        };
        (wish.replicas != world.pods.spec()).then_some(wish)
    }

    fn engine(
        &mut self,
        pods: &Pods,
        metrics: Vec<Reading>,
        beside: Vec<Beside>,
        now: u64,
    ) -> Wish {
        let observation = Observation {
            spec_replicas: pods.spec(),
            status_replicas: pods.existing(),
            ready_replicas: pods.ready(),
            metrics,
            beside,
        };
        let now = Time::from_millis(now / 1000);
        let decision = decide(&observation, &self.policy, &self.history, now);
        self.history
            .record(&observation, &self.policy, &decision, now);
        if decision.changes() {
            self.history
                .scaled(decision.current, decision.replicas, now);
        }
        Wish {
            replicas: decision.replicas,
            reason: decision.reason.as_str(),
        }
    }

    /// metrics-server takes a mean over its period; the HPA reads the last one at its own time. Pods that
    /// are not ready have no part in it.
    fn cpu(&mut self, world: &World<'_>, now: u64) -> Option<Wish> {
        if now % SYNC == self.phases.1 {
            let workers = f64::from(world.pods.ready()) * world.workers as f64;
            self.cpu = (workers > 0.0).then(|| world.busy.mean(now) / workers * 100.0);
        }
        if now % SYNC != self.phases.0 {
            return None;
        }
        let window = std::time::Duration::from_secs(15);
        let reading = match self.cpu {
            None => Reading::Missing("metrics-server has nothing yet".into()),
            Some(value) => Reading::Known(Sample {
                sampled: Time::from_millis(now / 1000),
                windows: vec![WindowSample {
                    window,
                    value,
                    events: None,
                    covered: window,
                }],
                coverage: 1.0,
                estimated: false,
            }),
        };
        Some(self.engine(world.pods, vec![reading], vec![], now))
    }
}

/// An HPA's policy on CPU utilization: the same arithmetic as a `Value` of which ready pods are multiplied.
pub(crate) fn cpu_policy(hpa: &Policy) -> Policy {
    Policy {
        metrics: vec![Metric {
            name: "cpu".into(),
            objective: Objective::External,
            target: Target::Value(100.0 * kpa::TARGET_UTILIZATION),
            stable_window: std::time::Duration::from_secs(15),
            burst_window: None,
        }],
        ..hpa.clone()
    }
}
