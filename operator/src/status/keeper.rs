//! When a status is worth a write: at once for what counts, seldom for the rest. Never writes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::learned;
use ebpf_scaler_crds::{
    quantity,
    v1alpha1::{EbpfScalerStatus, MetricStatus},
};

/// Without a change of decision or condition, the status is written at most this often.
const CALM: Duration = Duration::from_secs(15);
/// And only if a value has moved by this share.
const MOVED: f64 = 0.1;
/// Changes of words alone (a reason that goes to and fro) may follow each other so fast.
const WORDS: Duration = Duration::from_secs(5);
/// What was learned is kept at least so often, if it has changed: as much a restart may lose.
const LEARNED: Duration = Duration::from_secs(600);

/// Decides when a status is worth a write.
#[derive(Debug, Default)]
pub struct Keeper {
    /// What was last written, or found.
    pub written: EbpfScalerStatus,
    at: Option<Instant>,
}

impl Keeper {
    /// Starts from what the object says.
    #[must_use]
    pub fn new(found: EbpfScalerStatus) -> Self {
        Self {
            written: found,
            at: None,
        }
    }

    /// Whether to write `new` now.
    #[must_use]
    pub fn is_due(&self, new: &EbpfScalerStatus, now: Instant) -> bool {
        let Some(at) = self.at else { return true };
        let age = now.duration_since(at);
        let old = &self.written;
        let states = |s: &EbpfScalerStatus| -> HashMap<String, String> {
            let pairs = s.conditions.iter();
            pairs.map(|c| (c.type_.clone(), c.status.clone())).collect()
        };
        if old.observed_generation != new.observed_generation
            || old.desired_replicas != new.desired_replicas
            || old.current_replicas != new.current_replicas
            || states(old) != states(new)
        {
            return true;
        }
        let words = |s: &EbpfScalerStatus| -> Vec<String> {
            let conditions = s.conditions.iter().map(|c| c.reason.clone());
            let reason = s.last_decision.iter().map(|d| d.reason.clone());
            conditions.chain(reason).collect()
        };
        if age >= WORDS && words(old) != words(new) {
            return true;
        }
        if age >= LEARNED && !learned::same(&old.learned, &new.learned) {
            return true;
        }
        age >= CALM && (moved(old, new) || learned::moved(&old.learned, &new.learned, MOVED))
    }

    /// Remembers a write that was begun.
    pub fn wrote(&mut self, status: EbpfScalerStatus, now: Instant) {
        self.written = status;
        self.at = Some(now);
    }

    /// Makes the next status due: a write failed.
    pub fn forget(&mut self) {
        self.at = None;
    }
}

fn moved(old: &EbpfScalerStatus, new: &EbpfScalerStatus) -> bool {
    if old.metrics.len() != new.metrics.len() {
        return true;
    }
    old.metrics.iter().zip(&new.metrics).any(|(o, n)| {
        if o.current.is_some() != n.current.is_some() || o.proposal != n.proposal {
            return true;
        }
        match (number(o), number(n)) {
            (Some(a), Some(b)) => (a - b).abs() > MOVED * a.abs().max(b.abs()),
            _ => o.current != n.current,
        }
    })
}

fn number(m: &MetricStatus) -> Option<f64> {
    let text = m.current.as_deref()?;
    // As `micros` prints them; "m" alone is a thousandth.
    for (suffix, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(Ok(n)) = text.strip_suffix(suffix).map(str::parse::<f64>) {
            return Some(n * factor);
        }
    }
    quantity::parse(text).ok()
}

#[cfg(test)]
mod tests {
    use ebpf_scaler_crds::v1alpha1::{CapacityPoint, LastDecision, LearnedCapacity};
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn status(current: &str, reason: &str) -> EbpfScalerStatus {
        EbpfScalerStatus {
            desired_replicas: Some(3),
            metrics: vec![MetricStatus {
                current: Some(current.into()),
                ..MetricStatus::default()
            }],
            last_decision: Some(LastDecision {
                reason: reason.into(),
                message: String::new(),
                time: Time(Timestamp::UNIX_EPOCH),
            }),
            ..EbpfScalerStatus::default()
        }
    }

    #[test]
    fn what_was_learned_is_kept_each_ten_minutes() {
        let mut k = Keeper::default();
        let t = Instant::now();
        let at = |s| t + Duration::from_secs(s);
        let learned = |load: &str, capacity: &str| EbpfScalerStatus {
            learned: vec![LearnedCapacity {
                name: "latency".into(),
                capacity_per_pod: Some(capacity.into()),
                confidence: "0.6".into(),
                least_load_seen: None,
                largest_load_seen: None,
                limit_seen: false,
                time: Time(Timestamp::UNIX_EPOCH),
                curve: vec![CapacityPoint {
                    load: load.into(),
                    latency_microseconds: "1000".into(),
                    spread: "0".into(),
                    waiting_threads: None,
                    weight: "1".into(),
                }],
            }],
            ..status("100", "A")
        };
        k.wrote(learned("100", "100"), t);
        assert!(!k.is_due(&learned("105", "105"), at(599)));
        assert!(k.is_due(&learned("105", "105"), at(600)));
        assert!(!k.is_due(&learned("100", "100"), at(900)));
        assert!(k.is_due(&learned("130", "130"), at(15)));
    }

    #[test]
    fn a_decision_is_written_at_once_and_a_breath_of_the_load_never() {
        let mut k = Keeper::default();
        let t = Instant::now();
        let at = |s| t + Duration::from_secs(s);
        assert!(k.is_due(&status("100", "A"), t));
        k.wrote(status("100", "A"), t);
        assert!(!k.is_due(&status("200", "A"), at(14)));
        assert!(k.is_due(&status("200", "A"), at(15)));
        assert!(!k.is_due(&status("105", "A"), at(60)));
        assert!(!k.is_due(&status("100", "B"), at(4)));
        assert!(k.is_due(&status("100", "B"), at(5)));
        let mut scaled = status("100", "A");
        scaled.desired_replicas = Some(4);
        assert!(k.is_due(&scaled, t));
    }
}
