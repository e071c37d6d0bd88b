//! What the operator tells about itself, as Prometheus metrics; never logs (see `telemetry`).

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabel {
    object: &'static str,
    result: &'static str,
}

/// All metrics, under the prefix `ebpf_scaler_operator_`.
pub struct Metrics {
    registry: Registry,
    /// Decisions made, changed or not.
    pub reconciliations: Counter,
    decisions: Family<ReasonLabel, Counter>,
    writes: Family<WriteLabel, Counter>,
    /// From the newest sample behind a decision to the accepted write of replicas.
    pub reaction: Histogram,
    /// One call of the pure engine.
    pub decide: Histogram,
    /// 1 while this replica leads.
    pub leader: Gauge,
    /// Collector replicas whose stream is up.
    pub streams: Gauge,
    /// Answers received by streams.
    pub answers: Counter,
    /// Times a stream ended or could not be opened.
    pub stream_errors: Counter,
    /// Queries of the aggregated API.
    pub polls: Counter,
    /// Those that failed.
    pub poll_errors: Counter,
    /// EbpfScalers that exist.
    pub scalers: Gauge,
    /// Objects that did not parse.
    pub invalid_objects: Counter,
    /// Changes of a target's replicas by somebody else.
    pub foreign_changes: Counter,
    certificate_actions: Family<ActionLabel, Counter>,
    /// Rounds of keeping the certificates that failed.
    pub certificate_errors: Counter,
    /// End of the serving certificate, seconds since 1970.
    pub certificate_not_after: Gauge,
    /// End of the CA that signs, seconds since 1970.
    pub ca_not_after: Gauge,
    /// 1 while somebody else provides the external metrics API.
    pub api_service_foreign: Gauge,
    /// APIServices of ours whose caBundle somebody else keeps writing.
    pub api_service_contested: Gauge,
    /// Wall clock of the last pass over all scalers, microseconds.
    pub last_pass_micros: Gauge<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "a list, one line a metric")]
    pub fn new() -> Self {
        let reaction_buckets = [
            0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0,
        ];
        let decide_buckets = [1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 1e-3, 1e-2];
        let mut m = Self {
            registry: Registry::with_prefix("ebpf_scaler_operator"),
            reconciliations: Counter::default(),
            decisions: Family::default(),
            writes: Family::default(),
            reaction: Histogram::new(reaction_buckets),
            decide: Histogram::new(decide_buckets),
            leader: Gauge::default(),
            streams: Gauge::default(),
            answers: Counter::default(),
            stream_errors: Counter::default(),
            polls: Counter::default(),
            poll_errors: Counter::default(),
            scalers: Gauge::default(),
            invalid_objects: Counter::default(),
            foreign_changes: Counter::default(),
            certificate_actions: Family::default(),
            certificate_errors: Counter::default(),
            certificate_not_after: Gauge::default(),
            ca_not_after: Gauge::default(),
            api_service_foreign: Gauge::default(),
            api_service_contested: Gauge::default(),
            last_pass_micros: Gauge::default(),
        };
        let r = &mut m.registry;
        r.register(
            "reconciliations",
            "Decisions made, changed or not",
            m.reconciliations.clone(),
        );
        r.register(
            "decisions",
            "Decisions whose reason differs from the one before",
            m.decisions.clone(),
        );
        r.register("writes", "Writes to the API server", m.writes.clone());
        r.register_with_unit(
            "reaction",
            "From the newest sample behind a decision to the accepted write of replicas",
            Unit::Seconds,
            m.reaction.clone(),
        );
        r.register_with_unit(
            "decide",
            "One call of the decision engine",
            Unit::Seconds,
            m.decide.clone(),
        );
        r.register("leader", "1 while this replica leads", m.leader.clone());
        r.register(
            "streams",
            "Collector replicas whose stream is up",
            m.streams.clone(),
        );
        r.register("answers", "Answers received by streams", m.answers.clone());
        r.register(
            "stream_errors",
            "Times a stream ended or could not be opened",
            m.stream_errors.clone(),
        );
        r.register(
            "polls",
            "Queries of the aggregated metrics API",
            m.polls.clone(),
        );
        r.register(
            "poll_errors",
            "Queries of the aggregated metrics API that failed",
            m.poll_errors.clone(),
        );
        r.register("scalers", "EbpfScalers that exist", m.scalers.clone());
        r.register(
            "invalid_objects",
            "Objects that did not parse",
            m.invalid_objects.clone(),
        );
        r.register(
            "foreign_changes",
            "Changes of a target's replicas by somebody else",
            m.foreign_changes.clone(),
        );
        r.register(
            "certificate_actions",
            "Writes of certificate objects",
            m.certificate_actions.clone(),
        );
        r.register(
            "certificate_errors",
            "Rounds of keeping the certificates that failed",
            m.certificate_errors.clone(),
        );
        r.register(
            "certificate_not_after_timestamp_seconds",
            "End of the serving certificate",
            m.certificate_not_after.clone(),
        );
        r.register(
            "ca_not_after_timestamp_seconds",
            "End of the certificate authority that signs",
            m.ca_not_after.clone(),
        );
        r.register(
            "api_service_foreign",
            "APIs of ours that somebody else provides in this cluster",
            m.api_service_foreign.clone(),
        );
        r.register(
            "api_service_contested",
            "APIServices of ours whose caBundle somebody else keeps writing",
            m.api_service_contested.clone(),
        );
        r.register(
            "last_pass_microseconds",
            "How long the last pass over all scalers took",
            m.last_pass_micros.clone(),
        );
        m
    }

    /// Counts a decision by its reason.
    pub fn decision(&self, reason: &'static str) {
        self.decisions.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a write by what it wrote and how it ended.
    pub fn write(&self, object: &'static str, result: &'static str) {
        self.writes
            .get_or_create(&WriteLabel { object, result })
            .inc();
    }

    /// Counts a write of a certificate object.
    pub fn certificate_action(&self, action: &'static str) {
        self.certificate_actions
            .get_or_create(&ActionLabel { action })
            .inc();
    }

    /// All of it in the text format.
    ///
    /// # Errors
    /// When formatting fails, which it does not.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_our_prefix_and_units() {
        let m = Metrics::new();
        m.decision("Steady");
        m.write("scale", "ok");
        m.reaction.observe(0.4);
        let text = m.text().unwrap();
        for line in [
            "ebpf_scaler_operator_decisions_total{reason=\"Steady\"} 1",
            "ebpf_scaler_operator_writes_total{object=\"scale\",result=\"ok\"} 1",
            "ebpf_scaler_operator_reaction_seconds_count 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
