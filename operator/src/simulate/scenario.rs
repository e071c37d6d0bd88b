//! From an EbpfScaler and the pods' flags to what the simulation takes. Never runs it.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ebpf_scaler_crds::{
    EbpfScaler, EbpfScalerSpec,
    v1alpha1::{MetricType, Profile},
};
use ebpf_scaler_decide::{Metric, Objective, Policy, Target};
use ebpf_scaler_simulate::{PodModel, Scenario, Service, Trace, kpa};

use super::args::{PodArgs, ServiceArg};
use crate::translate;

/// Deviation of the logarithm of start-up times: two of three lie within a quarter of the median.
const STARTUP_SPREAD: f64 = 0.25;
/// What a pod serves if its scaler does not say: requests per second.
const CAPACITY: f64 = 100.0;
/// The objective, in mean times that a request takes a worker.
const SLO: f64 = 10.0;
/// How long clients wait, at least.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The spec in a scaler's YAML.
///
/// # Errors
/// When it is no EbpfScaler, or none that can be simulated.
pub fn scaler(yaml: &str) -> anyhow::Result<EbpfScalerSpec> {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).context("not YAML")?;
    let kind = value.get("kind").and_then(|k| k.as_str()).unwrap_or("");
    ensure!(
        kind == "EbpfScaler",
        "kind: expected EbpfScaler, found {kind:?}"
    );
    let scaler: EbpfScaler = serde_json::from_value(value).context("not an EbpfScaler")?;
    let spec = scaler.spec;
    ensure!(
        0 <= spec.min_replicas && spec.min_replicas <= spec.max_replicas,
        "spec.minReplicas: {} is not from 0 to maxReplicas, {}",
        spec.min_replicas,
        spec.max_replicas
    );
    ensure!(!spec.metrics.is_empty(), "spec.metrics: none");
    for (i, metric) in spec.metrics.iter().enumerate() {
        let known = [
            MetricType::RequestRate,
            MetricType::RequestsInFlight,
            MetricType::RequestLatency,
        ];
        if !known.contains(&metric.type_) {
            bail!(
                "spec.metrics[{i}].type: {} is not simulated; RequestRate, RequestsInFlight and RequestLatency are",
                metric.type_.as_str()
            );
        }
    }
    Ok(spec)
}

/// What each pod should have of the request rate, if a metric says so.
#[must_use]
pub fn rate_target(policy: &Policy) -> Option<f64> {
    target(policy, |o| o == Objective::Count)
}

fn target(policy: &Policy, wanted: impl Fn(Objective) -> bool) -> Option<f64> {
    let mut metrics = policy.metrics.iter();
    let metric = metrics.find(|m| wanted(m.objective))?;
    match metric.target {
        Target::Average(t) | Target::Value(t) => Some(t).filter(|t| t.is_finite() && *t > 0.0),
    }
}

/// The objective of pods with such a capacity, unless it is given.
pub fn objective(workers: usize, capacity: f64) -> Duration {
    Duration::from_secs_f64(SLO * workers as f64 / capacity.max(1e-6))
}

fn learns(policy: &Policy) -> bool {
    let mut metrics = policy.metrics.iter();
    metrics.any(|m| matches!(m.objective, Objective::LearnedLatency { .. }))
}

/// The same scaler of somebody who knows what a pod can take, and gives it as much as Knative would.
fn by_hand(policy: &Policy, each: f64) -> Policy {
    let metrics = policy.metrics.iter().map(|m| match m.objective {
        Objective::LearnedLatency { .. } => Metric {
            name: "requests_per_second".into(),
            objective: Objective::Count,
            target: Target::Average(each),
            ..m.clone()
        },
        _ => m.clone(),
    });
    Policy {
        metrics: metrics.collect(),
        ..policy.clone()
    }
}

/// The same scaler in bounded steps.
fn unlearned(policy: &Policy) -> Policy {
    let metrics = policy.metrics.iter().map(|m| match m.objective {
        Objective::LearnedLatency { share } => Metric {
            objective: Objective::Latency { share },
            burst_window: None,
            ..m.clone()
        },
        _ => m.clone(),
    });
    Policy {
        metrics: metrics.collect(),
        ..policy.clone()
    }
}

/// The scaler with its workload, which begins with what `trace` needs.
///
/// # Errors
/// When a number of the pods is none that pods can have.
pub fn scenario(spec: &EbpfScalerSpec, pods: &PodArgs, trace: &Trace) -> anyhow::Result<Scenario> {
    let plan = |profile| {
        let spec = EbpfScalerSpec {
            profile,
            ..spec.clone()
        };
        translate::plan(&spec, "simulated", "simulated=true").policy
    };
    let (policy, hpa) = (plan(spec.profile), plan(Profile::Hpa));
    ensure!(
        policy.metrics.len() == spec.metrics.len(),
        "spec.metrics: a metric lacks the block that its type names"
    );
    ensure!(
        (1..=1000).contains(&pods.workers),
        "--workers: {} is not from 1 to 1000",
        pods.workers
    );
    let in_flight = target(&policy, |o| o == Objective::Level);
    // A pod at its target is as busy as Knative's would be, so that all aim at the same.
    let by_target = match (rate_target(&policy), in_flight) {
        (Some(rate), _) => rate / kpa::TARGET_UTILIZATION,
        _ => CAPACITY,
    };
    let capacity = pods.capacity.unwrap_or(by_target);
    ensure!(
        capacity.is_finite() && (0.001..=1e6).contains(&capacity),
        "--capacity: {capacity} is not from 0.001 to 1000000 requests per second"
    );
    let service_time = Duration::from_secs_f64(pods.workers as f64 / capacity);
    let slo = pods.slo.unwrap_or(objective(pods.workers, capacity));
    let first = trace
        .part(Duration::ZERO, Duration::from_secs(60))
        .seconds();
    let rate = first.iter().sum::<f64>() / first.len().max(1) as f64;
    let each = rate_target(&policy).unwrap_or(capacity * kpa::TARGET_UTILIZATION);
    let (rate_set, steps) = match learns(&policy) {
        true => (Some(by_hand(&policy, each)), Some(unlearned(&policy))),
        false => (None, None),
    };
    let needed = (rate / each).ceil() as i32;
    let (min, max) = policy.bounds();
    // Knative knows one metric only, and no latency.
    let kpa = match policy.metrics.as_slice() {
        [_] => rate_target(&policy)
            .or(in_flight)
            .map(|target| kpa::Config {
                target,
                in_flight: in_flight.is_some(),
                min,
                max,
            }),
        _ => None,
    };
    Ok(Scenario {
        pods: PodModel {
            workers: pods.workers,
            service_time,
            service: match pods.service {
                ServiceArg::Exponential => Service::Exponential,
                ServiceArg::Fixed => Service::Fixed,
            },
            startup: pods.startup,
            startup_spread: STARTUP_SPREAD,
            timeout: pods.timeout.unwrap_or(slo.max(TIMEOUT)),
        },
        nodes: pods.nodes,
        slo,
        initial: pods.replicas.unwrap_or(needed).clamp(min, max),
        rate: rate_set,
        steps,
        kpa,
        policy,
        hpa,
    })
}
