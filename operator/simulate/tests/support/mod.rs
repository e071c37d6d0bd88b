//! A workload of 100 requests per second and pod, as the samples have it.
#![allow(dead_code, reason = "each test uses a part")]

use std::time::Duration;

use ebpf_scaler_decide::{Metric, Objective, Policy, Target};
use ebpf_scaler_simulate::{PodModel, Scenario, Service, kpa};

pub fn metric(objective: Objective, target: Target) -> Metric {
    Metric {
        name: "metric".into(),
        objective,
        target,
        stable_window: Duration::from_secs(30),
        burst_window: match objective {
            Objective::Latency { .. } => None,
            _ => Some(Duration::from_secs(3)),
        },
    }
}

pub fn scenario(metric: Metric) -> Scenario {
    let target = match metric.target {
        Target::Average(t) | Target::Value(t) => t,
    };
    Scenario {
        rate: None,
        steps: None,
        policy: Policy::new(2, 40, vec![metric.clone()]),
        hpa: Policy::hpa(2, 40, vec![metric.clone()]),
        kpa: Some(kpa::Config {
            target,
            in_flight: metric.objective == Objective::Level,
            min: 2,
            max: 40,
        }),
        pods: PodModel {
            workers: 4,
            service_time: Duration::from_millis(28),
            service: Service::Exponential,
            startup: Duration::from_secs(5),
            startup_spread: 0.25,
            timeout: Duration::from_secs(10),
        },
        nodes: 2,
        slo: Duration::from_millis(280),
        initial: 4,
    }
}

pub fn by_rate() -> Scenario {
    scenario(metric(Objective::Count, Target::Average(100.0)))
}

/// The same workload, of which a 99th percentile of 280 ms is promised, and what a pod takes has to be learned.
pub fn by_latency() -> Scenario {
    let target = Target::Value(280_000.0);
    let plain = metric(Objective::Latency { share: 0.99 }, target);
    let learning = Metric {
        objective: Objective::LearnedLatency { share: 0.99 },
        burst_window: Some(Duration::from_secs(3)),
        ..plain.clone()
    };
    Scenario {
        rate: Some(by_rate().policy),
        steps: Some(Policy::new(2, 40, vec![plain])),
        kpa: None,
        ..scenario(learning)
    }
}

/// One in which every decider has a part.
pub fn everybody() -> Scenario {
    let by_latency = by_latency();
    Scenario {
        rate: by_latency.rate,
        steps: by_latency.steps,
        ..by_rate()
    }
}
