//! The numbers at the end: a table for people, JSON for programs, and whether they are good enough.

use std::{path::Path, time::Duration};

use anyhow::ensure;
use serde::Serialize;

use super::{
    NAMESPACE,
    cycle::{CALM_REPLICAS, Measured},
};

/// Largest share by which the count may differ from what was generated.
const COUNT_ERROR: f64 = 0.001;

/// What `--json` writes.
#[derive(Serialize)]
pub struct Report {
    generated: u64,
    counted: u64,
    count_error: f64,
    reaction_ms: Option<f64>,
    hpa_reaction_ms: Option<f64>,
    ebpfscaler_replicas: Vec<u32>,
    hpa_replicas: Vec<u32>,
    #[serde(skip)]
    failed: u64,
    #[serde(skip)]
    peak_rate: f64,
}

impl Report {
    pub fn of(measured: &Measured) -> Self {
        let difference = measured.counted.abs_diff(measured.generated) as f64;
        let millis = |time: Option<Duration>| time.map(|time| time.as_micros() as f64 / 1e3);
        Self {
            generated: measured.generated,
            counted: measured.counted,
            count_error: difference / (measured.generated.max(1) as f64),
            reaction_ms: millis(measured.reaction),
            hpa_reaction_ms: millis(measured.hpa_reaction),
            ebpfscaler_replicas: measured.replicas.clone(),
            hpa_replicas: measured.hpa_replicas.clone(),
            failed: measured.failed,
            peak_rate: measured.peak_rate,
        }
    }

    pub fn print(&self, kubeconfig: &Path) {
        let seconds = |millis: Option<f64>| match millis {
            Some(millis) => format!("{:.2} s", millis / 1e3),
            None => "did not scale".to_owned(),
        };
        println!("    requests generated             {:>12}", self.generated);
        println!("    requests counted               {:>12}", self.counted);
        println!(
            "    difference                     {:>11.3} %",
            self.count_error * 100.0
        );
        println!("    requests without a response    {:>12}", self.failed);
        println!(
            "    highest rate measured (web)    {:>10.1} /s",
            self.peak_rate
        );
        println!(
            "    load step to patch, EbpfScaler {:>12}",
            seconds(self.reaction_ms)
        );
        println!(
            "    load step to patch, HPA        {:>12}",
            seconds(self.hpa_reaction_ms)
        );
        println!(
            "    replicas, EbpfScaler           {:>12}",
            changes(&self.ebpfscaler_replicas)
        );
        println!(
            "    replicas, HPA                  {:>12}",
            changes(&self.hpa_replicas)
        );
        println!("\n    What to try next:");
        println!("      export KUBECONFIG={}", kubeconfig.display());
        println!("      kubectl get ebpfscalers -n {NAMESPACE}");
        println!("      kubectl describe ebpfscaler web -n {NAMESPACE}");
        println!(
            "      kubectl get --raw '/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/requests_per_second?labelSelector=app%3Dweb'"
        );
        println!("      kubectl describe hpa web-hpa -n {NAMESPACE}");
        println!("      make demo-down");
    }

    /// An error if the product did not do what the demo is there to show.
    pub fn verdict(&self) -> anyhow::Result<()> {
        ensure!(
            self.count_error <= COUNT_ERROR,
            "counted {} of {} generated requests: {:.3} % apart, more than 0.1 %",
            self.counted,
            self.generated,
            self.count_error * 100.0,
        );
        let scaled = |replicas: &[u32]| replicas.iter().any(|&replicas| replicas > CALM_REPLICAS);
        ensure!(
            scaled(&self.ebpfscaler_replicas),
            "the EbpfScaler did not scale up"
        );
        ensure!(scaled(&self.hpa_replicas), "the HPA did not scale up");
        Ok(())
    }
}

/// A series without repetitions: `2 → 6 → 2`.
fn changes(series: &[u32]) -> String {
    let mut distinct = series.to_vec();
    distinct.dedup();
    let texts: Vec<String> = distinct.iter().map(u32::to_string).collect();
    texts.join(" → ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(counted: u64, replicas: &[u32]) -> Measured {
        Measured {
            generated: 100_000,
            failed: 0,
            counted,
            reaction: Some(Duration::from_millis(850)),
            hpa_reaction: None,
            replicas: replicas.to_vec(),
            hpa_replicas: vec![2, 2, 4],
            peak_rate: 600.0,
        }
    }

    #[test]
    fn the_json_has_the_documented_keys() {
        let json = serde_json::to_value(Report::of(&measured(99_950, &[2, 6, 2]))).unwrap();
        let wanted = serde_json::json!({
            "generated": 100_000, "counted": 99_950, "count_error": 0.0005,
            "reaction_ms": 850.0, "hpa_reaction_ms": null,
            "ebpfscaler_replicas": [2, 6, 2], "hpa_replicas": [2, 2, 4],
        });
        assert_eq!(json, wanted);
    }

    #[test]
    fn a_wrong_count_or_no_scaling_fails() {
        assert!(Report::of(&measured(99_950, &[2, 6, 2])).verdict().is_ok());
        assert!(Report::of(&measured(99_800, &[2, 6, 2])).verdict().is_err());
        assert!(
            Report::of(&measured(100_200, &[2, 6, 2]))
                .verdict()
                .is_err()
        );
        assert!(Report::of(&measured(100_000, &[2, 2])).verdict().is_err());
    }

    #[test]
    fn a_series_is_told_by_its_changes() {
        assert_eq!(changes(&[2, 2, 6, 6, 6, 3, 2]), "2 → 6 → 3 → 2");
    }
}
