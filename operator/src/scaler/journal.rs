//! Which decisions are worth remembering, and when they are written down. Never writes, and keeps nothing that is written.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use ebpf_scaler_crds::v1alpha1::{DecisionMetric, Outcome, ScalingDecision};
use ebpf_scaler_decide::{Decision, Observation, Outcome as Asked, Reading, Reason};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};

use crate::translate::Plan;

/// A history is written at most this often; what happens meanwhile is written together.
const CALM: Duration = Duration::from_secs(10);

/// What was last remembered: repeated, it is no news.
type Mark = (i32, Option<Reason>, Outcome);

/// Decisions of one scaler that are not written down yet.
#[derive(Debug, Default)]
pub struct Journal {
    /// As many as a history has.
    most: usize,
    /// The newest first.
    pending: VecDeque<ScalingDecision>,
    last: Option<Mark>,
    /// How many of them are being written.
    writing: Option<usize>,
    at: Option<Instant>,
}

impl Journal {
    /// For a history of `most` decisions; none with 0.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            ..Self::default()
        }
    }

    /// Takes in a decision, unless it is no news.
    pub fn take(
        &mut self,
        (decision, observation): (&Decision, &Observation),
        plan: &Plan,
        outcome: Outcome,
        error: Option<&str>,
        wall: Timestamp,
    ) {
        let mark = (decision.replicas, kept(decision.reason), outcome);
        let before = self.last.replace(mark);
        // That nothing keeps the replicas where they are is news only after something did.
        let quiet = outcome == Outcome::Held && mark.1.is_none();
        let ended = before.is_some_and(|(_, kept, _)| kept.is_some());
        if before == Some(mark) || quiet && !ended || self.most == 0 {
            return;
        }
        self.pending
            .push_front(entry(decision, observation, plan, outcome, error, wall));
        self.pending.truncate(self.most);
    }

    /// What is to be written now, if anything is or `more` says so.
    pub fn due(&mut self, now: Instant, more: bool) -> Option<Vec<ScalingDecision>> {
        let calm = self.at.is_none_or(|at| now.duration_since(at) >= CALM);
        if !calm || self.writing.is_some() || self.pending.is_empty() && !more {
            return None;
        }
        self.at = Some(now);
        self.writing = Some(self.pending.len());
        Some(self.pending.iter().cloned().collect())
    }

    /// What is not written yet nor being written: there will be no other time.
    #[must_use]
    pub fn rest(&self) -> Option<Vec<ScalingDecision>> {
        let left = self.pending.len().saturating_sub(self.writing.unwrap_or(0));
        (left > 0).then(|| self.pending.iter().take(left).cloned().collect())
    }

    /// The write has ended; what came meanwhile stays, and everything does if it failed.
    pub fn written(&mut self, ok: bool) {
        let written = self.writing.take().unwrap_or(0);
        if ok {
            self.pending
                .truncate(self.pending.len().saturating_sub(written));
        }
    }

    #[cfg(test)]
    fn pending(&self) -> Vec<(i32, i32, Outcome)> {
        let entries = self.pending.iter();
        entries.map(|d| (d.from, d.to, d.outcome)).collect()
    }
}

/// Why the replicas stay, if that is worth remembering.
fn kept(reason: Reason) -> Option<Reason> {
    match reason {
        Reason::NoMetrics
        | Reason::SomeMetricsMissing
        | Reason::PartialCoverage
        | Reason::Fallback
        | Reason::Paused
        | Reason::ScalingDisabled
        | Reason::TooManyReplicas
        | Reason::ScaleUpLimit => Some(reason),
        _ => None,
    }
}

fn entry(
    decision: &Decision,
    observation: &Observation,
    plan: &Plan,
    outcome: Outcome,
    error: Option<&str>,
    wall: Timestamp,
) -> ScalingDecision {
    let policy = &plan.policy;
    let rows = policy.metrics.iter().zip(&decision.metrics);
    let rows = rows.zip(plan.shown.iter().zip(&observation.metrics));
    let metrics = rows.map(|((metric, proposal), (shown, reading))| DecisionMetric {
        name: metric.name.clone(),
        // A thousandth is what a quantity can tell.
        value: proposal
            .value
            .map(|v| format!("{}", (v * 1e3).round() / 1e3)),
        target: shown.target.clone(),
        proposal: proposal.replicas(),
        basis: format!("{:?}", proposal.basis),
        window: proposal
            .value
            .map(|_| humantime::format_duration(proposal.window).to_string()),
        coverage: match reading {
            Reading::Known(s) => Some(format!("{}", (s.coverage * 1e3).round() / 1e3)),
            Reading::Missing(_) => None,
        },
        message: match &proposal.outcome {
            Asked::Missing(why) => Some(why.clone()),
            Asked::Replicas(_) => None,
        },
    });
    ScalingDecision {
        time: MicroTime(wall),
        from: decision.current,
        to: decision.replicas,
        ready: observation.ready_replicas,
        outcome,
        reason: decision.reason.as_str().into(),
        message: decision.message(policy),
        error: error.map(str::to_owned),
        metrics: metrics.collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use ebpf_scaler_crds::EbpfScaler;
    use ebpf_scaler_decide::{History, Sample, Time, WindowSample, decide};
    use serde_json::json;

    use super::*;
    use crate::translate;

    fn steady(value: f64, plan: &Plan) -> Sample {
        Sample {
            sampled: Time::from_millis(0),
            windows: vec![WindowSample {
                window: plan.policy.metrics[0].stable_window,
                value,
                events: None,
                covered: plan.policy.metrics[0].stable_window,
            }],
            coverage: 1.0,
            estimated: false,
        }
    }

    /// What is decided for a workload of so many replicas with so many requests a second.
    fn decided(current: i32, rate: Option<f64>) -> (Plan, Decision, Observation) {
        let scaler: EbpfScaler = serde_json::from_value(json!({
            "apiVersion": "ebpfscaler.io/v1alpha1", "kind": "EbpfScaler",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 1, "maxReplicas": 8, "profile": "HPA",
                "metrics": [{"type": "RequestRate", "requestRate": {"target": {"averageValue": "100"}}}],
            },
        }))
        .unwrap();
        let plan = translate::plan(&scaler.spec, "shop", "app=web");
        let reading = match rate {
            Some(rate) => Reading::Known(steady(rate, &plan)),
            None => Reading::Missing("no pods".into()),
        };
        let observation = Observation {
            spec_replicas: current,
            status_replicas: current,
            ready_replicas: current,
            metrics: vec![reading],
            beside: Default::default(),
        };
        let decision = decide(
            &observation,
            &plan.policy,
            &History::default(),
            Time::from_millis(0),
        );
        (plan, decision, observation)
    }

    struct Book(Journal, Instant);

    impl Book {
        fn take(&mut self, current: i32, rate: Option<f64>, outcome: Outcome) {
            let (plan, decision, observation) = decided(current, rate);
            let made = (&decision, &observation);
            self.0
                .take(made, &plan, outcome, None, Timestamp::UNIX_EPOCH);
        }

        fn due(&mut self, seconds: u64) -> Option<usize> {
            let due = self.0.due(self.1 + Duration::from_secs(seconds), false);
            due.map(|d| d.len())
        }
    }

    fn book(most: usize) -> Book {
        Book(Journal::new(most), Instant::now())
    }

    #[test]
    fn what_changes_is_remembered_once_and_what_stays_is_not() {
        let mut book = book(30);
        for _ in 0..3 {
            book.take(2, Some(200.0), Outcome::Held);
        }
        assert_eq!(book.0.pending(), []);
        for _ in 0..3 {
            book.take(2, Some(400.0), Outcome::Observed);
        }
        book.take(2, None, Outcome::Held);
        book.take(2, None, Outcome::Held);
        book.take(2, Some(200.0), Outcome::Held);
        book.take(2, Some(210.0), Outcome::Held);
        book.take(2, Some(300.0), Outcome::Applied);
        book.take(3, Some(300.0), Outcome::Held);
        let held = (2, 2, Outcome::Held);
        let (written, would) = ((2, 3, Outcome::Applied), (2, 4, Outcome::Observed));
        assert_eq!(book.0.pending(), [written, held, held, would]);
        let newest: Vec<_> = book.0.pending.iter().map(|d| d.reason.as_str()).collect();
        assert_eq!(newest[2..], ["NoMetrics", "MetricAboveTarget"]);
        let metric = &book.0.pending[3].metrics[0];
        assert_eq!(metric.value.as_deref(), Some("400"));
        assert_eq!((metric.target.as_str(), metric.proposal), ("100", Some(4)));
    }

    #[test]
    fn it_is_written_at_once_and_then_at_leisure_and_nothing_is_lost_by_a_failure() {
        let mut book = book(3);
        assert_eq!(book.due(0), None);
        book.take(2, Some(600.0), Outcome::Applied);
        assert_eq!(book.due(0), Some(1));
        book.take(6, Some(100.0), Outcome::Applied);
        assert_eq!(
            (book.due(5), book.due(60)),
            (None, None),
            "a write is on its way"
        );
        book.0.written(true);
        assert_eq!(book.due(5), None);
        assert_eq!(book.due(10), Some(1));
        book.0.written(false);
        for i in 2..9 {
            book.take(1, Some(100.0 * f64::from(i)), Outcome::Applied);
        }
        assert_eq!(book.due(20), Some(3), "as many as the history has");
        book.0.written(true);
        assert_eq!(book.0.rest(), None);
        let mut none = super::tests::book(0);
        none.take(2, Some(600.0), Outcome::Applied);
        assert_eq!(none.due(0), None);
    }
}
