//! What the role tells of itself, under `ebpf_scaler_apiserver_`. Pods' measurements never go here.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::activity::Closing;

/// How a query ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryLabels {
    /// The metric, or `unknown`
    pub metric: &'static str,
    /// HTTP status
    pub code: u16,
}

/// Why something was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// One word
    pub reason: &'static str,
}

/// A workload; both are empty for all those beyond the limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WorkloadLabels {
    /// Its namespace
    pub namespace: String,
    /// Name of the Deployment, StatefulSet, ... at the top of its pods' owners
    pub workload: String,
}

/// A family of signals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FamilyLabels {
    /// Its name
    pub family: &'static str,
}

/// An API group that another provider has a part in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GroupLabels {
    /// Its name
    pub group: &'static str,
}

/// A question that was passed on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DelegatedLabels {
    /// The API group
    pub group: &'static str,
    /// How it ended, one word
    pub outcome: &'static str,
}

/// The role's own metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Agents whose stream is open
    pub agents_connected: Gauge,
    /// Operators' and dashboards' subscriptions
    pub subscriptions: Gauge,
    /// Nodes that run pods
    pub nodes: Gauge,
    /// Of those, nodes whose agent is heard
    pub nodes_live: Gauge,
    /// Pods in the index
    pub pods: Gauge,
    /// Share of the expected pods of the cluster that are covered, by family
    pub coverage: Family<FamilyLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    /// Batches taken in
    pub batches: Counter,
    /// Samples taken in
    pub samples: Counter,
    /// Batches and samples not taken in
    pub refused: Family<ReasonLabels, Counter>,
    /// Queries by metric and code
    pub queries: Family<QueryLabels, Counter>,
    /// How long queries took, with authentication and authorization
    pub query_duration: Histogram,
    /// Requests and streams without a valid identity or right
    pub denied: Family<ReasonLabels, Counter>,
    /// Connections open, to all ports
    pub connections: Gauge,
    /// Times that the signals of a namespace, or of all, were computed
    pub signals_computed: Counter,
    /// Watches of signals that are open
    pub signals_watches: Gauge,
    /// Questions about a part of pods, or about requests inside TLS, that agents are not told of, because too many are
    /// asked already
    pub narrowed_overflow: Counter,
    /// Connections that we have closed for what the client did not do
    closed: Family<ReasonLabels, Counter>,
    /// Whether another provider has answered when it was asked for its names last
    delegate_up: Family<GroupLabels, Gauge>,
    /// Names that it had when it answered last
    delegate_metrics: Family<GroupLabels, Gauge>,
    /// Queries that were passed on
    delegated: Family<DelegatedLabels, Counter>,
    /// How long those took
    delegated_duration: Histogram,
    /// Requests of each workload's pods since this replica knows them
    workload_requests: Family<WorkloadLabels, Counter>,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            agents_connected: Gauge::default(),
            subscriptions: Gauge::default(),
            nodes: Gauge::default(),
            nodes_live: Gauge::default(),
            pods: Gauge::default(),
            coverage: Family::default(),
            batches: Counter::default(),
            samples: Counter::default(),
            refused: Family::default(),
            queries: Family::default(),
            query_duration: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            denied: Family::default(),
            connections: Gauge::default(),
            signals_computed: Counter::default(),
            signals_watches: Gauge::default(),
            narrowed_overflow: Counter::default(),
            closed: Family::default(),
            delegate_up: Family::default(),
            delegate_metrics: Family::default(),
            delegated: Family::default(),
            delegated_duration: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            workload_requests: Family::default(),
        };
        let m = metrics.clone();
        let r = registry.sub_registry_with_prefix("ebpf_scaler_apiserver");
        r.register(
            "agents_connected",
            "Agents whose stream is open",
            m.agents_connected,
        );
        r.register(
            "subscriptions",
            "Subscriptions that are served",
            m.subscriptions,
        );
        r.register("nodes", "Nodes on which pods run", m.nodes);
        r.register(
            "nodes_live",
            "Nodes on which pods run whose agent is heard",
            m.nodes_live,
        );
        r.register("pods", "Pods in the index", m.pods);
        r.register(
            "coverage_ratio",
            "Share of the expected pods that live agents cover",
            m.coverage,
        );
        r.register("batches", "Batches of agents taken in", m.batches);
        r.register("samples", "Samples of pods taken in", m.samples);
        r.register(
            "refused",
            "Batches and samples of agents not taken in",
            m.refused,
        );
        r.register("queries", "Queries by metric and HTTP status", m.queries);
        let help = "How long queries took, with authentication and authorization";
        r.register_with_unit("query_duration", help, Unit::Seconds, m.query_duration);
        r.register(
            "denied",
            "Requests and streams refused for who asked",
            m.denied,
        );
        r.register(
            "connections",
            "Connections open, to all ports",
            m.connections,
        );
        r.register(
            "signals_computed",
            "Times that signals were computed for whoever lists or watches them",
            m.signals_computed,
        );
        r.register(
            "signals_watches",
            "Watches of signals that are open",
            m.signals_watches,
        );
        r.register(
            "narrowed_overflow",
            "Queries narrowed to a port or container, or for requests inside TLS, that agents are not told of, because 4,096 others are held",
            m.narrowed_overflow,
        );
        r.register(
            "connections_closed",
            "Connections closed because the client did not go on",
            m.closed,
        );
        r.register(
            "delegate_up",
            "Whether the other provider of a group answered when it was asked for its metrics' names last",
            m.delegate_up,
        );
        r.register(
            "delegate_metrics",
            "Names of metrics that the other provider of a group has; the last ones if it does not answer",
            m.delegate_metrics,
        );
        r.register(
            "delegated",
            "Queries passed on to the other provider of a group, by how they ended",
            m.delegated,
        );
        let help = "How long queries took that were passed on";
        r.register_with_unit(
            "delegated_duration",
            help,
            Unit::Seconds,
            m.delegated_duration,
        );
        r.register(
            "workload_requests",
            "Requests counted for each workload, also by pods that have gone",
            m.workload_requests,
        );
        metrics
    }

    /// A query has ended.
    pub fn query(&self, metric: &'static str, code: u16, took: Duration) {
        self.queries
            .get_or_create(&QueryLabels { metric, code })
            .inc();
        self.query_duration.observe(took.as_secs_f64());
    }

    /// `count` batches or samples were not taken in.
    pub fn refuse(&self, reason: &'static str, count: usize) {
        if count > 0 {
            self.refused
                .get_or_create(&ReasonLabels { reason })
                .inc_by(count as u64);
        }
    }

    /// `count` more requests of a workload.
    pub fn workload(&self, namespace: &str, workload: &str, count: u64) {
        let labels = WorkloadLabels {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
        };
        self.workload_requests.get_or_create(&labels).inc_by(count);
    }

    /// A connection is closed.
    pub fn close(&self, closing: Closing) {
        let reason = closing.as_str();
        self.closed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Another provider has answered, or not.
    pub fn delegate_is(&self, group: &'static str, up: bool) {
        let gauge = self.delegate_up.get_or_create(&GroupLabels { group });
        gauge.set(up.into());
    }

    /// Another provider has so many names.
    pub fn delegate_has(&self, group: &'static str, names: usize) {
        let gauge = self.delegate_metrics.get_or_create(&GroupLabels { group });
        gauge.set(names as i64);
    }

    /// A query that was passed on has ended.
    pub fn delegated(&self, group: &'static str, outcome: &'static str, took: Duration) {
        let labels = DelegatedLabels { group, outcome };
        self.delegated.get_or_create(&labels).inc();
        self.delegated_duration.observe(took.as_secs_f64());
    }

    /// Somebody was turned away.
    pub fn deny(&self, reason: &'static str) {
        self.denied.get_or_create(&ReasonLabels { reason }).inc();
    }
}

/// Counts something as long as it lives.
pub struct Counted(Gauge);

impl Counted {
    /// One more.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
