//! The load in a ScalingHistory as a trace: what would a scaler have done yesterday? Never runs it.

use anyhow::{Context, ensure};
use ebpf_scaler_crds::ScalingHistory;
use ebpf_scaler_simulate::{Arrivals, Trace};

/// The only load that can be replayed: what requests a second become is what a simulation is about.
const METRIC: &str = "requests_per_second";

/// The trace in a history's YAML or JSON. A rate holds for its stretch; where nothing was seen, the last one goes on.
///
/// # Errors
/// When it is no ScalingHistory, or has no rates of requests.
pub fn trace(text: &str) -> anyhow::Result<Trace> {
    let value: serde_json::Value = serde_saphyr::from_str(text).context("not YAML")?;
    let kind = value.get("kind").and_then(|k| k.as_str()).unwrap_or("");
    ensure!(
        kind == "ScalingHistory",
        "kind: expected ScalingHistory, found {kind:?}"
    );
    let history: ScalingHistory = serde_json::from_value(value).context("not a ScalingHistory")?;
    let load = history
        .load
        .context("load: none yet; the first comes after a quarter of an hour")?;
    ensure!(
        load.metric == METRIC,
        "load.metric: {}, of which requests cannot be made; the scaler's first metric is not {METRIC}",
        load.metric
    );
    ensure!(
        load.step_seconds > 0,
        "load.stepSeconds: {} is not above 0",
        load.step_seconds
    );
    let step = u64::from(load.step_seconds.unsigned_abs()) * 1000;
    let mut rates = Vec::with_capacity(load.values.len());
    let mut last = 0.0;
    for (i, value) in (0..).zip(&load.values) {
        if !value.is_empty() {
            last = value
                .parse::<f64>()
                .with_context(|| format!("load.values[{i}]: {value:?} is no number"))?;
        }
        rates.push((i * step, last));
    }
    ensure!(!rates.is_empty(), "load.values: none");
    Ok(Trace {
        name: history.metadata.name.unwrap_or_else(|| "history".into()),
        end: step * rates.len() as u64,
        rates,
        arrivals: Arrivals::Poisson,
        rollouts: Vec::new(),
    })
}
