//! The agent's own metrics, all `ebpf_scaler_agent_*`; never a pod's.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::probes::{Family, ProgramCost, Statistics};

/// Which family a metric is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FamilyLabel {
    family: &'static str,
}

impl From<Family> for FamilyLabel {
    fn from(family: Family) -> Self {
        Self {
            family: family.as_str(),
        }
    }
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    reason: &'static str,
}

impl From<&'static str> for ReasonLabel {
    fn from(reason: &'static str) -> Self {
        Self { reason }
    }
}

/// What the sampling loop tells about itself.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Pods that are measured.
    pub pods: Gauge,
    /// Pods without a slot.
    pub pods_unmeasured: Gauge,
    /// Directories below kubepods.
    pub cgroups: Gauge,
    /// Cgroups that count provisionally.
    pub cgroups_quarantined: Gauge,
    /// Provisional slots whose counts became a pod's.
    pub quarantine_claimed: Counter,
    /// Provisional slots dropped.
    pub quarantine_forgotten: Counter,
    /// Cgroups that the kernel side refused.
    pub cgroups_refused: Counter,
    /// Changes after a pod's last sample.
    pub late_changes: Counter,
    /// Inotify queues that overflowed.
    pub inotify_overflows: Counter,
    /// Directories that no watch could be had for.
    pub cgroups_unwatched: Counter,
    /// Directories left out.
    pub cgroups_ignored: Counter,
    /// Time to read all changed slots, seconds.
    pub read_duration: Histogram,
    /// Readings that came later than an interval.
    pub readings_late: Counter,
    /// Parts of pods.
    pub parts: Gauge,
    /// Pods with parts that found no room.
    pub pods_undivided: Gauge,
    /// Encoded history.
    pub history_bytes: Gauge,
    /// 1 for families that are measured now.
    pub family_active: Labelled<FamilyLabel, Gauge>,
    /// 1 for families that cannot be measured.
    pub family_degraded: Labelled<FamilyLabel, Gauge>,
    /// What the programs tell.
    pub probes: ProbeStatistics,
}

/// What the streams to the replicas tell.
#[derive(Clone, Debug, Default)]
pub struct ReportMetrics {
    /// Replicas whose address is known.
    pub replicas: Gauge,
    /// Streams that are up.
    pub connected: Gauge,
    /// Streams that ended.
    pub disconnects: Labelled<ReasonLabel, Counter>,
    /// Messages sent, of all streams.
    pub batches_sent: Counter,
    /// Batches that a slow stream skipped.
    pub batches_dropped: Counter,
    /// Samples in them.
    pub samples_sent: Counter,
    /// Their encoded size.
    pub bytes_sent: Counter,
    /// Failed look-ups of the replicas' name.
    pub lookup_errors: Counter,
}

/// The latest statistics of the programs, whose names only they know.
#[derive(Clone, Debug, Default)]
pub struct ProbeStatistics(Arc<Mutex<Statistics>>);

impl ProbeStatistics {
    /// Replaces what /metrics shows.
    pub fn set(&self, statistics: Statistics) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }
}

impl Collector for ProbeStatistics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let statistics = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (name, value) in statistics.values {
            let help = "See docs/metrics.md";
            let name = format!("ebpf_scaler_agent_probe_{name}");
            if name.contains("_live_") {
                let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                let metric = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
                gauge.encode(metric)?;
            } else {
                let counter = ConstCounter::new(value);
                let metric = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
                counter.encode(metric)?;
            }
        }
        let programs = &statistics.programs;
        let help = "CPU time of the BPF program, estimated from one run in 1,024";
        let of = |program: &ProgramCost| ConstCounter::new(program.seconds);
        each(
            &mut encoder,
            "ebpf_scaler_agent_program_seconds",
            help,
            programs,
            of,
        )?;
        let help = "Runs of the BPF program, estimated from one in 1,024";
        let of = |program: &ProgramCost| ConstCounter::new(program.runs);
        each(
            &mut encoder,
            "ebpf_scaler_agent_program_runs",
            help,
            programs,
            of,
        )
    }
}

/// A metric with a series for each program.
fn each<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    programs: &[ProgramCost],
    of: impl Fn(&ProgramCost) -> M,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for program in programs {
        let label = [("program", program.program)];
        of(program).encode(metric.encode_family(&label)?)?;
    }
    Ok(())
}

/// Registers everything. The help texts are the documentation of the metrics.
pub fn register(registry: &mut Registry) -> (Metrics, ReportMetrics) {
    let metrics = Metrics {
        pods: Gauge::default(),
        pods_unmeasured: Gauge::default(),
        cgroups: Gauge::default(),
        cgroups_quarantined: Gauge::default(),
        quarantine_claimed: Counter::default(),
        quarantine_forgotten: Counter::default(),
        cgroups_refused: Counter::default(),
        late_changes: Counter::default(),
        inotify_overflows: Counter::default(),
        cgroups_unwatched: Counter::default(),
        cgroups_ignored: Counter::default(),
        // 50 us to 100 ms: a tenth of the interval is already far too long.
        read_duration: Histogram::new(exponential_buckets(50e-6, 2.0, 12)),
        readings_late: Counter::default(),
        parts: Gauge::default(),
        pods_undivided: Gauge::default(),
        history_bytes: Gauge::default(),
        family_active: Labelled::default(),
        family_degraded: Labelled::default(),
        probes: ProbeStatistics::default(),
    };
    let report = ReportMetrics::default();
    let r = registry.sub_registry_with_prefix("ebpf_scaler_agent");
    let m = &metrics;
    r.register("pods", "Pods that are measured", m.pods.clone());
    r.register(
        "pods_unmeasured",
        "Pods for which no slot was free; raise --max-pods",
        m.pods_unmeasured.clone(),
    );
    r.register(
        "cgroups",
        "Cgroup directories below kubepods",
        m.cgroups.clone(),
    );
    r.register(
        "cgroups_quarantined",
        "Cgroups that count provisionally, their path not yet known",
        m.cgroups_quarantined.clone(),
    );
    r.register(
        "quarantine_claimed",
        "Provisional counts that became a pod's",
        m.quarantine_claimed.clone(),
    );
    r.register(
        "quarantine_forgotten",
        "Provisional counts dropped, no path known in time",
        m.quarantine_forgotten.clone(),
    );
    r.register(
        "cgroups_refused",
        "Cgroups that could not be measured",
        m.cgroups_refused.clone(),
    );
    r.register(
        "late_changes",
        "Changes of a pod's counters after its last sample",
        m.late_changes.clone(),
    );
    r.register(
        "inotify_overflows",
        "Times that cgroup events were lost and the tree was read again",
        m.inotify_overflows.clone(),
    );
    r.register(
        "cgroups_unwatched",
        "Cgroups without an inotify watch; raise fs.inotify.max_user_watches",
        m.cgroups_unwatched.clone(),
    );
    r.register(
        "cgroups_ignored",
        "Cgroups beyond the bound on directories",
        m.cgroups_ignored.clone(),
    );
    r.register(
        "read_duration_seconds",
        "Time to read and publish the changed slots",
        m.read_duration.clone(),
    );
    r.register(
        "readings_late",
        "Readings that came more than an interval late",
        m.readings_late.clone(),
    );
    r.register(
        "parts",
        "Ports and containers that are counted apart because a query or a scaler narrows by them",
        m.parts.clone(),
    );
    r.register(
        "pods_undivided",
        "Pods of which a port or a container is wanted that there was no room to count apart",
        m.pods_undivided.clone(),
    );
    r.register(
        "history_bytes",
        "Size of the checkpoints kept for new replicas",
        m.history_bytes.clone(),
    );
    r.register(
        "family_active",
        "1 if the signal family is measured now",
        m.family_active.clone(),
    );
    r.register(
        "family_degraded",
        "1 if the signal family can not be measured on this node",
        m.family_degraded.clone(),
    );
    let s = &report;
    r.register(
        "report_replicas",
        "API server replicas found",
        s.replicas.clone(),
    );
    r.register(
        "report_connected",
        "API server replicas that are reported to",
        s.connected.clone(),
    );
    r.register(
        "report_disconnects",
        "Streams that ended, by reason",
        s.disconnects.clone(),
    );
    r.register(
        "report_batches",
        "Messages sent, over all streams",
        s.batches_sent.clone(),
    );
    r.register(
        "report_batches_dropped",
        "Batches that a slow stream skipped and a snapshot made good",
        s.batches_dropped.clone(),
    );
    r.register(
        "report_samples",
        "Pod samples sent, over all streams",
        s.samples_sent.clone(),
    );
    r.register(
        "report_bytes",
        "Encoded bytes sent before TLS, over all streams",
        s.bytes_sent.clone(),
    );
    r.register(
        "report_lookup_errors",
        "Failed look-ups of the report address",
        s.lookup_errors.clone(),
    );
    registry.register_collector(Box::new(metrics.probes.clone()));
    (metrics, report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn the_programs_statistics_are_metrics_of_their_own() {
        let mut registry = Registry::default();
        let (metrics, _) = register(&mut registry);
        metrics.probes.set(Statistics {
            values: vec![("desyncs", 3), ("live_sockets", 7)],
            programs: vec![ProgramCost {
                program: "ingress",
                runs: 2048,
                seconds: 0.5,
            }],
        });
        metrics
            .family_active
            .get_or_create(&Family::RunQueue.into())
            .set(1);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "ebpf_scaler_agent_probe_desyncs_total 3",
            "ebpf_scaler_agent_probe_live_sockets 7",
            "ebpf_scaler_agent_family_active{family=\"runqueue\"} 1",
            "ebpf_scaler_agent_pods 0",
            "ebpf_scaler_agent_program_seconds_total{program=\"ingress\"} 0.5",
            "ebpf_scaler_agent_program_runs_total{program=\"ingress\"} 2048",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
