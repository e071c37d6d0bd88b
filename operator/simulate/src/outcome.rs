//! What a run came to: violations, pod-seconds, changes, recovery. Never runs anything.

use serde::Serialize;

use crate::{decider::Kind, measure::quantile, trace::Trace};

/// A change of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When.
    pub millis: u64,
    /// Replicas before.
    pub from: i32,
    /// Replicas after.
    pub to: i32,
    /// Why, in the words of an EbpfScaler's status; empty for Knative.
    pub reason: &'static str,
}

/// Replicas from a moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Replicas {
    /// When.
    pub millis: u64,
    /// Asked for.
    pub spec: i32,
    /// Ready.
    pub ready: i32,
}

/// After a step of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// Second of the step.
    pub at: u64,
    /// Seconds until at most 1 % of the requests of 10 s violated the objective; none if that never came.
    pub seconds: Option<u64>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Who decided.
    pub decider: Kind,
    /// Requests sent.
    pub requests: u64,
    /// Those answered.
    pub answered: u64,
    /// Those not answered: no pod was ready, or patience ended.
    pub dropped: u64,
    /// Those answered later than the objective allows.
    pub late: u64,
    /// Late and dropped ones, as a share of all; 0 without any.
    pub violations: f64,
    /// Seconds that pods existed, from creation to the last answer.
    pub pod_seconds: f64,
    /// Median latency in milliseconds, of the answered ones; as exact as the product's (6.25 %).
    pub p50_millis: Option<f64>,
    /// The 99th percentile.
    pub p99_millis: Option<f64>,
    /// The most pods asked for.
    pub most: i32,
    /// Changes of replicas, with reasons.
    pub changes: Vec<Change>,
    /// After each step of load.
    pub recoveries: Vec<Recovery>,
    /// Whenever they changed.
    pub replicas: Vec<Replicas>,
    /// For each second, requests sent and those of them that violated the objective.
    #[serde(skip)]
    pub seconds: Vec<(u32, u32)>,
}

impl Outcome {
    pub(crate) fn new(decider: Kind, seconds: usize) -> Self {
        Self {
            decider,
            requests: 0,
            answered: 0,
            dropped: 0,
            late: 0,
            violations: 0.0,
            pod_seconds: 0.0,
            p50_millis: None,
            p99_millis: None,
            most: 0,
            changes: Vec::new(),
            recoveries: Vec::new(),
            replicas: Vec::new(),
            seconds: vec![(0, 0); seconds],
        }
    }

    pub(crate) fn request(&mut self, micros: u64, answered: bool, late: bool) {
        self.requests += 1;
        self.answered += u64::from(answered);
        self.dropped += u64::from(!answered);
        self.late += u64::from(late);
        let second = usize::try_from(micros / 1_000_000).ok();
        if let Some((sent, bad)) = second.and_then(|s| self.seconds.get_mut(s)) {
            *sent += 1;
            *bad += u32::from(late || !answered);
        }
    }

    pub(crate) fn changed(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub(crate) fn is_news(&self, now: Replicas) -> bool {
        self.replicas
            .last()
            .is_none_or(|r| (r.spec, r.ready) != (now.spec, now.ready))
    }

    pub(crate) fn saw(&mut self, now: Replicas) {
        self.most = self.most.max(now.spec);
        self.replicas.push(now);
    }

    pub(crate) fn finish(&mut self, trace: &Trace, spent_micros: u64, latencies: &[u64]) {
        let millis = |share| quantile(latencies, share).map(|us| us / 1000.0);
        self.p50_millis = millis(0.5);
        self.p99_millis = millis(0.99);
        self.pod_seconds = spent_micros as f64 / 1e6;
        let bad = self.late + self.dropped;
        if self.requests > 0 {
            self.violations = bad as f64 / self.requests as f64;
        }
        let steps = trace.steps();
        self.recoveries = steps.iter().map(|at| self.recovery(*at)).collect();
    }

    fn recovery(&self, at: u64) -> Recovery {
        const CALM: usize = 10;
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let after = self.seconds.get(start..).unwrap_or(&[]);
        let calm = after.windows(CALM).position(|seconds| {
            let sent: u32 = seconds.iter().map(|(sent, _)| sent).sum();
            let bad: u32 = seconds.iter().map(|(_, bad)| bad).sum();
            f64::from(bad) <= 0.01 * f64::from(sent)
        });
        Recovery {
            at,
            seconds: calm.map(|s| s as u64),
        }
    }

    /// The longest recovery in seconds, and whether all steps were recovered from; none without steps.
    #[must_use]
    pub fn slowest(&self) -> Option<(u64, bool)> {
        let all = self.recoveries.iter().all(|r| r.seconds.is_some());
        let slowest = self.recoveries.iter().filter_map(|r| r.seconds).max();
        (!self.recoveries.is_empty()).then(|| (slowest.unwrap_or(0), all))
    }
}
