//! One scenario from its line: what the engine is given, step by step. docs/replay.md describes the
//! format. Never decides.

use std::time::Duration;

use ebpf_scaler_decide::{
    Limit, Metric, Objective, Observation, Policy, Reading, Rules, Sample, Select, Target, Time,
    Unit, WindowSample,
};
use serde_json::Value;

use super::read::{At, Error, Object};

/// The window that the engine is told for values that come without one.
const WINDOW: Duration = Duration::from_secs(30);
/// Of these feature gates of Kubernetes 1.34, both off by default, the controller itself looks at the
/// last; without the first, the API server refuses `minReplicas` 0.
const GATES: [&str; 2] = ["HPAScaleToZero", "HPAConfigurableTolerance"];

/// A scenario.
#[derive(Debug, PartialEq)]
pub struct Scenario {
    /// Given back with the result.
    pub name: String,
    /// What is asked for, in the HPA profile.
    pub policy: Policy,
    /// Replicas at the beginning.
    pub initial: i32,
    /// In the order of time.
    pub steps: Vec<Step>,
    /// Fields that mean nothing here.
    pub ignored: Vec<String>,
}

/// One reconciliation.
#[derive(Debug, PartialEq)]
pub struct Step {
    /// When.
    pub at: Time,
    /// What somebody else wrote just before.
    pub written: Option<i32>,
    /// Replicas that exist; by default as many as are asked for.
    pub status: Option<i32>,
    /// Those that are ready; by default all that exist.
    pub ready: Option<i32>,
    /// One for each metric.
    pub metrics: Vec<Reading>,
}

impl Scenario {
    /// Reads one line.
    ///
    /// # Errors
    /// What is wrong, after the path of the field that it is wrong with.
    pub fn parse(line: &str) -> Result<Self, Error> {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
        let mut ignored = Vec::new();
        let top = At::top(&value).object()?;
        let name = top.must("name")?.text()?.to_owned();
        let spec = top.must("spec")?;
        let controller = Controller::read(&top, &mut ignored)?;
        let policy = policy(&spec, &controller, &mut ignored)?;
        let initial = top.must("initialReplicas")?.whole(0)?;
        let mut steps: Vec<Step> = Vec::new();
        for at in top.must("steps")?.array()? {
            let step = step(&at, &policy, &mut ignored)?;
            if steps.last().is_some_and(|last| last.at > step.at) {
                return Err(at.wrong("t is before the last step's"));
            }
            steps.push(step);
        }
        ignored.extend(top.unknown());
        Ok(Self {
            name,
            policy,
            initial,
            steps,
            ignored,
        })
    }
}

impl Step {
    /// What the engine sees when `spec` replicas are asked for.
    #[must_use]
    pub fn observation(&self, spec: i32) -> Observation {
        let status = self.status.unwrap_or(spec);
        Observation {
            spec_replicas: spec,
            status_replicas: status,
            ready_replicas: self.ready.unwrap_or(status),
            metrics: self.metrics.clone(),
            ..Observation::default()
        }
    }
}

/// Flags and feature gates of kube-controller-manager.
struct Controller {
    tolerance: f64,
    downscale_stabilization: Duration,
    configurable_tolerance: bool,
}

impl Controller {
    fn read(top: &Object<'_>, ignored: &mut Vec<String>) -> Result<Self, Error> {
        let mut this = Self {
            tolerance: 0.1,
            downscale_stabilization: Duration::from_secs(300),
            configurable_tolerance: false,
        };
        if let Some(given) = top.may("controller") {
            let given = given.object()?;
            if let Some(tolerance) = given.may("tolerance") {
                this.tolerance = tolerance.number()?;
            }
            if let Some(seconds) = given.may("downscaleStabilizationSeconds") {
                this.downscale_stabilization = millis(seconds.number()?);
            }
            ignored.extend(given.unknown());
        }
        if let Some(given) = top.may("featureGates") {
            let gates = given.object()?;
            for name in GATES {
                let on = gates.may(name).map(|gate| gate.flag()).transpose()?;
                if name == "HPAConfigurableTolerance" {
                    this.configurable_tolerance = on.unwrap_or(false);
                }
            }
            ignored.extend(gates.unknown());
        }
        Ok(this)
    }
}

/// Seconds, to the millisecond.
fn millis(seconds: f64) -> Duration {
    Duration::from_millis((seconds * 1000.0).round() as u64)
}

fn policy(
    spec: &At<'_>,
    controller: &Controller,
    ignored: &mut Vec<String>,
) -> Result<Policy, Error> {
    let spec = spec.object()?;
    let min = spec.may("minReplicas").map(|n| n.whole(0)).transpose()?;
    let min = min.unwrap_or(1);
    let max_at = spec.must("maxReplicas")?;
    let max = max_at.whole(1)?;
    if max < min {
        return Err(max_at.wrong(&format!("{max} is less than minReplicas, {min}")));
    }
    let listed = spec.must("metrics")?;
    let mut metrics = Vec::new();
    for (i, at) in listed.array()?.iter().enumerate() {
        metrics.push(metric(i, at, ignored)?);
    }
    if metrics.is_empty() {
        return Err(listed.wrong("at least one metric is needed"));
    }
    let mut policy = Policy::hpa(min, max, metrics);
    policy.tolerance_up = controller.tolerance;
    policy.tolerance_down = controller.tolerance;
    policy.down.stabilization = controller.downscale_stabilization;
    if let Some(behavior) = spec.may("behavior") {
        policy.behavior_given = true;
        let behavior = behavior.object()?;
        for (name, rules_, tolerance) in [
            ("scaleUp", &mut policy.up, &mut policy.tolerance_up),
            ("scaleDown", &mut policy.down, &mut policy.tolerance_down),
        ] {
            if let Some(given) = behavior.may(name) {
                let own = rules(&given, rules_, ignored)?;
                if let Some(own) = own.filter(|_| controller.configurable_tolerance) {
                    *tolerance = own;
                }
            }
        }
        ignored.extend(behavior.unknown());
    }
    ignored.extend(spec.unknown());
    Ok(policy)
}

fn metric(i: usize, at: &At<'_>, ignored: &mut Vec<String>) -> Result<Metric, Error> {
    let metric = at.object()?;
    metric.must("type")?.word(&[("External", ())])?;
    let target = metric.must("target")?.object()?;
    let average = target
        .must("type")?
        .word(&[("Value", false), ("AverageValue", true)])?;
    let value = target.must("value")?;
    let thousandths = value.thousandths()?;
    if thousandths <= 0 {
        return Err(value.wrong("must be above zero"));
    }
    let number = thousandths as f64 / 1000.0;
    ignored.extend(target.unknown());
    ignored.extend(metric.unknown());
    Ok(Metric {
        name: format!("metric-{i}"),
        objective: Objective::External,
        target: if average {
            Target::Average(number)
        } else {
            Target::Value(number)
        },
        stable_window: WINDOW,
        burst_window: None,
    })
}

/// Takes what is given into `rules`, and gives back the direction's own tolerance.
fn rules(at: &At<'_>, rules: &mut Rules, ignored: &mut Vec<String>) -> Result<Option<f64>, Error> {
    let given = at.object()?;
    if let Some(window) = given.may("stabilizationWindowSeconds") {
        rules.stabilization = Duration::from_secs(window.whole(0)?.unsigned_abs().into());
    }
    if let Some(select) = given.may("selectPolicy") {
        rules.select = select.word(&[
            ("Max", Select::Max),
            ("Min", Select::Min),
            ("Disabled", Select::Disabled),
        ])?;
    }
    if let Some(policies) = given.may("policies") {
        rules.policies = Vec::new();
        for at in policies.array()? {
            let policy = at.object()?;
            let period = policy.must("periodSeconds")?.whole(1)?;
            rules.policies.push(Limit {
                unit: policy
                    .must("type")?
                    .word(&[("Pods", Unit::Pods), ("Percent", Unit::Percent)])?,
                value: policy.must("value")?.whole(1)?,
                period: Duration::from_secs(period.unsigned_abs().into()),
            });
            ignored.extend(policy.unknown());
        }
        if rules.policies.is_empty() {
            return Err(policies.wrong("at least one policy is needed"));
        }
    }
    let tolerance = given.may("tolerance");
    let own = tolerance.as_ref().map(At::approximate).transpose()?;
    if let (Some(at), Some(own)) = (&tolerance, own)
        && own < 0.0
    {
        return Err(at.wrong("must not be negative"));
    }
    ignored.extend(given.unknown());
    Ok(own)
}

fn step(at: &At<'_>, policy: &Policy, ignored: &mut Vec<String>) -> Result<Step, Error> {
    let step = at.object()?;
    let time = Time::default().after(millis(step.must("t")?.number()?));
    let metrics_at = step.must("metrics")?;
    let values = metrics_at.array()?;
    if values.len() != policy.metrics.len() {
        return Err(metrics_at.wrong(&format!(
            "{} metrics, but the spec has {}",
            values.len(),
            policy.metrics.len()
        )));
    }
    let mut metrics = Vec::new();
    for (metric, at) in policy.metrics.iter().zip(&values) {
        metrics.push(reading(metric, at, time)?);
    }
    let count = |name| step.may(name).map(|n| n.whole(0)).transpose();
    let this = Step {
        at: time,
        written: count("specReplicas")?,
        status: count("statusReplicas")?,
        ready: count("readyPods")?,
        metrics,
    };
    ignored.extend(step.unknown());
    Ok(this)
}

/// A metric's items, summed as the HPA does; none are as good as an error.
fn reading(metric: &Metric, at: &At<'_>, time: Time) -> Result<Reading, Error> {
    if at.is_null() {
        return Ok(Reading::Missing("the scenario says so".into()));
    }
    let mut sum = 0i64;
    let items = at.array()?;
    for item in &items {
        sum = sum.saturating_add(item.thousandths()?);
        // GetExternalPerPodMetricReplicas takes a negative sum for one that overflowed.
        if sum < 0 && matches!(metric.target, Target::Average(_)) {
            sum = i64::MAX;
        }
    }
    if items.is_empty() {
        return Ok(Reading::Missing("no items".into()));
    }
    Ok(Reading::Known(Sample {
        sampled: time,
        windows: vec![WindowSample {
            window: metric.stable_window,
            value: sum as f64 / 1000.0,
            events: None,
            covered: metric.stable_window,
        }],
        coverage: 1.0,
        estimated: false,
    }))
}
