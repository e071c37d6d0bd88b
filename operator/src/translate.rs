//! From an EbpfScaler's spec to what the engine understands: a policy, and where each metric comes
//! from. Never talks to anything.

use std::time::Duration;

use ebpf_scaler_crds::v1alpha1::{
    Behavior, Direction, EbpfScalerSpec, ExternalTargetType, LatencyStrategy, MetricSpec,
    MetricType, PolicyType, Profile, ScalingRules, SelectPolicy, TlsRequests, Window,
    selector_text,
};
use ebpf_scaler_decide::{self as decide, Limit, Objective, Policy, Rules, Select, Target, Unit};
use ebpf_scaler_measure::Metric;
use ebpf_scaler_measure::query::RESERVED_PREFIX;

use crate::schedule::Schedules;

/// The window of evidence below every burst window; see `decide`.
const SHORTEST: Duration = Duration::from_secs(1);

/// Where a metric comes from; equal ones are asked for once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Query {
    /// Namespace of the pods.
    pub namespace: String,
    /// Name in the external metrics API.
    pub metric: String,
    /// Label selector as the API takes it.
    pub selector: String,
    /// Windows, longest first; none for a metric that is not ours.
    pub windows: Vec<u32>,
    /// Whether requests inside TLS are to be in it.
    pub tls: bool,
}

impl Query {
    /// Whether the collector's stream answers it; others are polled.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        !self.windows.is_empty()
    }

    /// One text for it: the id of its subscription.
    #[must_use]
    pub fn id(&self) -> String {
        let tls = if self.tls { "+tls" } else { "" };
        format!(
            "{}/{}?{}#{:?}{tls}",
            self.namespace, self.metric, self.selector, self.windows
        )
    }
}

/// What is asked for beside a latency whose capacity is learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The latency's place among the policy's metrics.
    pub metric: usize,
    /// Requests per second.
    pub load: Query,
    /// Threads that wait for a CPU.
    pub waiting: Query,
}

/// A metric as the status shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its type in the spec.
    pub type_: &'static str,
    /// Its target as in the spec.
    pub target: String,
    /// Whether values are shown per replica.
    pub average: bool,
    /// Whether values are microseconds.
    pub micros: bool,
}

/// What a spec means.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For the engine.
    pub policy: Policy,
    /// For each of the policy's metrics.
    pub queries: Vec<Query>,
    /// For those of the policy's metrics whose capacity is learned.
    pub beside: Vec<Beside>,
    /// For each of the policy's metrics.
    pub shown: Vec<Shown>,
    /// When the policy has a floor.
    pub schedules: Schedules,
}

impl Plan {
    /// All that is to be asked for.
    pub fn asked(&self) -> impl Iterator<Item = &Query> {
        let beside = self.beside.iter().flat_map(|b| [&b.load, &b.waiting]);
        self.queries.iter().chain(beside)
    }
}

/// The meaning of `spec` for pods that `pods` selects in `namespace`.
#[must_use]
pub fn plan(spec: &EbpfScalerSpec, namespace: &str, pods: &str) -> Plan {
    let hpa = spec.profile == Profile::Hpa;
    let mut metrics = Vec::new();
    let mut queries = Vec::new();
    let mut beside = Vec::new();
    let mut shown = Vec::new();
    for m in &spec.metrics {
        // The API server's rules make this impossible; an object from before them is not fatal.
        let Some((metric, mut query, show)) = one(m, namespace, pods) else {
            continue;
        };
        query.tls = spec.tls_requests == TlsRequests::Probe && counts_requests(m.type_);
        if matches!(metric.objective, Objective::LearnedLatency { .. }) {
            beside.extend(seen_beside(m, metrics.len(), &metric, &query, pods));
        }
        metrics.push(metric);
        queries.push(query);
        shown.push(show);
    }
    let base = if hpa {
        Policy::hpa(spec.min_replicas, spec.max_replicas, metrics)
    } else {
        Policy::new(spec.min_replicas, spec.max_replicas, metrics)
    };
    let behavior = spec.behavior.clone().unwrap_or_default();
    let Behavior {
        scale_up,
        scale_down,
    } = behavior;
    let tolerance = |rules: &Option<ScalingRules>, default: f64| {
        let given = rules.as_ref().and_then(|r| r.tolerance.as_ref());
        given.map_or(default, ebpf_scaler_crds::Quantity::get)
    };
    Plan {
        policy: Policy {
            mode: match spec.mode {
                ebpf_scaler_crds::v1alpha1::Mode::Enforce => decide::Mode::Enforce,
                ebpf_scaler_crds::v1alpha1::Mode::Observe => decide::Mode::Observe,
            },
            tolerance_up: tolerance(&scale_up, base.tolerance_up),
            tolerance_down: tolerance(&scale_down, base.tolerance_down),
            up: rules(scale_up.as_ref(), base.up.clone()),
            down: rules(scale_down.as_ref(), base.down.clone()),
            behavior_given: spec.behavior.is_some(),
            fallback: spec.fallback.as_ref().map(|f| decide::Fallback {
                after: f.after.get(),
                replicas: f.replicas,
            }),
            ..base
        },
        queries,
        beside,
        shown,
        schedules: Schedules::read(&spec.schedules),
    }
}

/// Whether a metric is made of requests, and so of those inside TLS.
fn counts_requests(type_: MetricType) -> bool {
    match type_ {
        MetricType::RequestRate | MetricType::RequestsInFlight | MetricType::RequestLatency => true,
        MetricType::RunQueueLatency
        | MetricType::RunQueueWaitingThreads
        | MetricType::NetworkThroughput
        | MetricType::External => false,
    }
}

fn rules(given: Option<&ScalingRules>, default: Rules) -> Rules {
    let Some(given) = given else { return default };
    Rules {
        stabilization: given
            .stabilization_window_seconds
            .map_or(default.stabilization, seconds),
        select: match given.select_policy {
            Some(SelectPolicy::Min) => Select::Min,
            Some(SelectPolicy::Disabled) => Select::Disabled,
            Some(SelectPolicy::Max) | None => Select::Max,
        },
        policies: match &given.policies {
            Some(policies) if !policies.is_empty() => policies
                .iter()
                .map(|p| Limit {
                    unit: match p.type_ {
                        PolicyType::Pods => Unit::Pods,
                        PolicyType::Percent => Unit::Percent,
                    },
                    value: p.value,
                    period: seconds(p.period_seconds),
                })
                .collect(),
            _ => default.policies,
        },
    }
}

fn seconds(s: i32) -> Duration {
    Duration::from_secs(u64::try_from(s).unwrap_or(0))
}

fn one(spec: &MetricSpec, namespace: &str, pods: &str) -> Option<(decide::Metric, Query, Shown)> {
    let type_ = spec.type_;
    let narrowing;
    let metric;
    let objective;
    let target;
    let target_text;
    let stable;
    let burst;
    match type_ {
        MetricType::RequestRate | MetricType::RequestsInFlight => {
            let block = if type_ == MetricType::RequestRate {
                metric = Metric::RequestsPerSecond;
                objective = Objective::Count;
                spec.request_rate.as_ref()?
            } else {
                metric = Metric::RequestsInFlight;
                objective = Objective::Level;
                spec.requests_in_flight.as_ref()?
            };
            narrowing = Narrowing::new(block.port, block.container.as_deref());
            target = Target::Average(block.target.average_value.get());
            target_text = block.target.average_value.to_string();
            stable = block.stable_window;
            burst = Some(block.burst_window);
        }
        MetricType::RequestLatency | MetricType::RunQueueLatency => {
            let (family, block) = if type_ == MetricType::RequestLatency {
                ("request", spec.request_latency.as_ref()?)
            } else {
                ("runqueue", spec.run_queue_latency.as_ref()?)
            };
            narrowing = Narrowing::new(block.port, block.container.as_deref());
            let name = format!(
                "{family}_latency_{}_microseconds",
                block.percentile.as_str()
            );
            metric = Metric::from_name(&name)?;
            let share = block.percentile.share();
            let learns = type_ == MetricType::RequestLatency
                && block.strategy == Some(LatencyStrategy::LearnedCapacity);
            objective = if learns {
                Objective::LearnedLatency { share }
            } else {
                Objective::Latency { share }
            };
            target = Target::Value(block.target.get().as_secs_f64() * 1e6);
            target_text = block.target.to_string();
            stable = block.stable_window;
            // Of the latency as of the load beside it.
            burst = learns.then(Window::burst);
        }
        MetricType::RunQueueWaitingThreads => {
            let block = spec.run_queue_waiting_threads.as_ref()?;
            narrowing = Narrowing::new(None, block.container.as_deref());
            metric = Metric::RunQueueWaitingThreads;
            objective = Objective::Level;
            target = Target::Average(block.target.average_value.get());
            target_text = block.target.average_value.to_string();
            stable = block.stable_window;
            burst = Some(block.burst_window);
        }
        MetricType::NetworkThroughput => {
            let block = spec.network_throughput.as_ref()?;
            narrowing = Narrowing::new(block.port, block.container.as_deref());
            metric = match block.direction {
                Direction::Receive => Metric::NetworkReceiveBytesPerSecond,
                Direction::Transmit => Metric::NetworkTransmitBytesPerSecond,
                Direction::Both => Metric::NetworkBytesPerSecond,
            };
            objective = Objective::Flow;
            target = Target::Average(block.target.average_value.get());
            target_text = block.target.average_value.to_string();
            stable = block.stable_window;
            burst = Some(block.burst_window);
        }
        MetricType::External => return external(spec, namespace),
    }
    let mut windows = vec![stable.get()];
    if let Some(burst) = burst {
        windows.push(burst.get());
        if objective.share().is_none() {
            windows.push(SHORTEST);
        }
    }
    windows.dedup();
    let query = Query {
        namespace: namespace.to_owned(),
        metric: metric.as_str().to_owned(),
        selector: narrowing.selector(pods),
        windows: windows.into_iter().map(whole_seconds).collect(),
        tls: false,
    };
    let decided = decide::Metric {
        name: narrowing.name(metric),
        objective,
        target,
        stable_window: stable.get(),
        burst_window: burst.map(|b| b.get()),
    };
    let shown = Shown {
        type_: type_.as_str(),
        target: target_text,
        average: matches!(target, Target::Average(_)),
        micros: objective.share().is_some(),
    };
    Some((decided, query, shown))
}

/// The load of the same requests, and what waits for a CPU in the same pods: threads have no port.
fn seen_beside(
    spec: &MetricSpec,
    place: usize,
    metric: &decide::Metric,
    query: &Query,
    pods: &str,
) -> Option<Beside> {
    let block = spec.request_latency.as_ref()?;
    let windows = [
        metric.stable_window,
        metric.burst_window.unwrap_or(SHORTEST),
        SHORTEST,
    ];
    Some(Beside {
        metric: place,
        load: Query {
            metric: Metric::RequestsPerSecond.as_str().to_owned(),
            windows: windows.map(whole_seconds).to_vec(),
            ..query.clone()
        },
        waiting: Query {
            metric: Metric::RunQueueWaitingThreads.as_str().to_owned(),
            selector: Narrowing::new(None, block.container.as_deref()).selector(pods),
            windows: vec![whole_seconds(metric.stable_window)],
            tls: false,
            ..query.clone()
        },
    })
}

fn whole_seconds(window: Duration) -> u32 {
    u32::try_from(window.as_secs()).unwrap_or(u32::MAX)
}

/// What of each pod counts.
struct Narrowing<'a> {
    port: Option<i32>,
    container: Option<&'a str>,
}

impl<'a> Narrowing<'a> {
    fn new(port: Option<i32>, container: Option<&'a str>) -> Self {
        Self { port, container }
    }

    /// The pods' selector with the reserved keys.
    fn selector(&self, pods: &str) -> String {
        let port = self
            .port
            .map(|port| format!("{RESERVED_PREFIX}port={port}"));
        let container = self.container;
        let container = container.map(|name| format!("{RESERVED_PREFIX}container={name}"));
        let all = std::iter::once(pods.to_owned())
            .chain(port)
            .chain(container);
        all.collect::<Vec<_>>().join(",")
    }

    /// The metric's name with what tells it from the same metric of the whole pod.
    fn name(&self, metric: Metric) -> String {
        let container = self.container.map(|name| format!("[{name}]"));
        let port = self.port.map(|port| format!(":{port}"));
        format!(
            "{}{}{}",
            metric.as_str(),
            container.unwrap_or_default(),
            port.unwrap_or_default()
        )
    }
}

fn external(spec: &MetricSpec, namespace: &str) -> Option<(decide::Metric, Query, Shown)> {
    let block = spec.external.as_ref()?;
    let (target, text) = match block.target.type_ {
        ExternalTargetType::Value => {
            let q = block.target.value.as_ref()?;
            (Target::Value(q.get()), q.to_string())
        }
        ExternalTargetType::AverageValue => {
            let q = block.target.average_value.as_ref()?;
            (Target::Average(q.get()), q.to_string())
        }
    };
    let selector = block
        .metric
        .selector
        .as_ref()
        .map(selector_text)
        .unwrap_or_default();
    let name = if selector.is_empty() {
        block.metric.name.clone()
    } else {
        format!("{}{{{selector}}}", block.metric.name)
    };
    Some((
        decide::Metric {
            name,
            objective: Objective::External,
            target,
            stable_window: Duration::from_secs(30),
            burst_window: None,
        },
        Query {
            namespace: namespace.to_owned(),
            metric: block.metric.name.clone(),
            selector,
            windows: Vec::new(),
            tls: false,
        },
        Shown {
            type_: MetricType::External.as_str(),
            target: text,
            average: matches!(target, Target::Average(_)),
            micros: false,
        },
    ))
}

#[cfg(test)]
mod tests;
