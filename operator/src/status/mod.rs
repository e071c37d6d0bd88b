//! What an EbpfScaler's status says, and when saying it is worth a write. Never decides replicas.

mod keeper;
pub mod learned;

pub use keeper::Keeper;

use ebpf_scaler_crds::v1alpha1::{EbpfScalerStatus, LastDecision, MetricStatus};
use ebpf_scaler_decide::{Decision, Limited, Observation, Outcome, Point, Reading, Reason, Target};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::Value;

use crate::translate::Plan;

/// One condition, before its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its type.
    pub type_: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Fact {
    /// A fact.
    pub fn new(
        type_: &'static str,
        holds: bool,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            type_,
            holds,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// All that a status is made of.
pub struct View<'a> {
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// What the spec means; none while the target is unknown.
    pub plan: &'a Plan,
    /// The decision, if one could be made.
    pub decision: Option<(&'a Decision, &'a Observation)>,
    /// Why the target cannot be read or written.
    pub trouble: Option<(&'static str, String)>,
    /// Who else scales the target.
    pub conflict: Option<(&'static str, String)>,
    /// Why we had better not write for now.
    pub held: Option<(&'static str, String)>,
    /// Who else changed the replicas.
    pub foreign: Fact,
    /// Whether decisions are only reported.
    pub observing: bool,
    /// When replicas were last written.
    pub last_scale: Option<Timestamp>,
    /// What was learned, by the metric's place.
    pub curves: Vec<(usize, Vec<Point>)>,
}

impl View<'_> {
    /// The conditions that hold now.
    #[must_use]
    pub fn facts(&self) -> Vec<Fact> {
        let mut facts = Vec::with_capacity(8);
        let paused = self
            .decision
            .is_some_and(|(d, _)| d.reason == Reason::Paused);
        let active = self.active();
        let able = self.able();
        let conflict = match &self.conflict {
            Some((reason, message)) => Fact::new("Conflict", true, *reason, message),
            None => Fact::new("Conflict", false, "None", "nothing else scales the target"),
        };
        let mistakes = &self.plan.schedules.mistakes;
        let not_ready = [&active, &able]
            .into_iter()
            // A pause is what was asked for.
            .find(|f| !f.holds && f.reason != Reason::Paused.as_str())
            .map(|f| (f.reason.clone(), f.message.clone()))
            .or_else(|| {
                (!mistakes.is_empty()).then(|| ("InvalidSchedule".into(), mistakes.join("; ")))
            });
        facts.push(match not_ready {
            Some((reason, message)) => Fact::new("Ready", false, reason, message),
            None if self.observing => Fact::new(
                "Ready",
                true,
                "Observing",
                "decides and reports, but writes nothing, as mode is Observe",
            ),
            None if paused => Fact::new(
                "Ready",
                true,
                "Paused",
                "nothing is scaled while spec.pause is on",
            ),
            None => Fact::new("Ready", true, "Scaling", "the target follows its metrics"),
        });
        facts.push(active);
        facts.push(able);
        facts.push(self.limited());
        facts.push(self.available());
        facts.push(self.bursting());
        facts.extend(self.capacity_learned());
        facts.push(conflict);
        facts.push(self.foreign.clone());
        facts
    }

    fn active(&self) -> Fact {
        let no = |reason: &str, message: String| Fact::new("ScalingActive", false, reason, message);
        let Some((decision, _)) = self.decision else {
            let (reason, message) = self
                .trouble
                .clone()
                .unwrap_or(("Starting", "no decision yet".into()));
            return no(reason, message);
        };
        let message = decision.message(&self.plan.policy);
        match decision.reason {
            Reason::NoMetrics => no("NoMetrics", message),
            Reason::Fallback => no("Fallback", message),
            Reason::ScalingDisabled => no("ScalingDisabled", message),
            Reason::Paused => no("Paused", message),
            _ => Fact::new(
                "ScalingActive",
                true,
                "ValidMetricFound",
                "replicas are computed from the metrics",
            ),
        }
    }

    fn able(&self) -> Fact {
        if let Some((reason, message)) = &self.conflict {
            return Fact::new("AbleToScale", false, *reason, message);
        }
        if let Some((reason, message)) = &self.trouble {
            return Fact::new("AbleToScale", false, *reason, message);
        }
        if let Some((reason, message)) = &self.held {
            return Fact::new("AbleToScale", false, *reason, message);
        }
        if self.observing {
            let text = "mode is Observe: decisions are reported, nothing is written";
            return Fact::new("AbleToScale", true, "ObserveOnly", text);
        }
        Fact::new(
            "AbleToScale",
            true,
            "ReadyForNewScale",
            "the target's scale can be read and written",
        )
    }

    fn limited(&self) -> Fact {
        let limited = self.decision.and_then(|(d, _)| {
            let reason = match d.limited? {
                Limited::TooManyReplicas => "TooManyReplicas",
                Limited::TooFewReplicas => "TooFewReplicas",
                Limited::ScaleUpLimit => "ScaleUpLimit",
                Limited::ScaleDownLimit => "ScaleDownLimit",
                // Waiting is not a limit: the HPA reports it with AbleToScale, we as the reason.
                Limited::ScaleDownStabilized | Limited::ScaleUpStabilized => return None,
            };
            Some((reason, d.message(&self.plan.policy)))
        });
        match limited {
            Some((reason, message)) => Fact::new("ScalingLimited", true, reason, message),
            None => Fact::new(
                "ScalingLimited",
                false,
                "DesiredWithinRange",
                "nothing keeps the replicas from what the metrics ask for",
            ),
        }
    }

    fn available(&self) -> Fact {
        let Some((decision, _)) = self.decision else {
            return Fact::new("MetricsAvailable", false, "Unknown", "no decision yet");
        };
        let missing: Vec<String> = self
            .plan
            .policy
            .metrics
            .iter()
            .zip(&decision.metrics)
            .filter_map(|(m, p)| match &p.outcome {
                Outcome::Missing(why) => Some(format!("{}: {why}", m.name)),
                Outcome::Replicas(_) => None,
            })
            .collect();
        if missing.is_empty() {
            return Fact::new(
                "MetricsAvailable",
                true,
                "AllMetricsAvailable",
                "every metric has a value",
            );
        }
        let reason = if missing.len() == decision.metrics.len() {
            "NoMetrics"
        } else {
            "SomeMetricsMissing"
        };
        Fact::new("MetricsAvailable", false, reason, missing.join("; "))
    }

    fn bursting(&self) -> Fact {
        let on = self.decision.is_some_and(|(d, _)| d.burst_until.is_some());
        if on {
            Fact::new(
                "Bursting",
                true,
                "BurstAboveTarget",
                "a short window is or was far above target; nothing is removed until it has passed",
            )
        } else {
            Fact::new("Bursting", false, "NoBurst", "load is steady")
        }
    }

    /// The whole status; times of what did not change come from `old`.
    #[must_use]
    pub fn status(&self, old: &EbpfScalerStatus, wall: Timestamp) -> EbpfScalerStatus {
        let conditions = self
            .facts()
            .into_iter()
            .map(|f| {
                let before = old.conditions.iter().find(|c| c.type_ == f.type_);
                let status = if f.holds { "True" } else { "False" };
                Condition {
                    last_transition_time: before
                        .filter(|c| c.status == status)
                        .map_or_else(|| Time(wall), |c| c.last_transition_time.clone()),
                    message: f.message,
                    observed_generation: self.generation,
                    reason: f.reason,
                    status: status.into(),
                    type_: f.type_.into(),
                }
            })
            .collect();
        let mut status = EbpfScalerStatus {
            observed_generation: self.generation,
            conditions,
            last_scale_time: self
                .last_scale
                .map(Time)
                .or_else(|| old.last_scale_time.clone()),
            ..EbpfScalerStatus::default()
        };
        let Some((decision, observation)) = self.decision else {
            status.last_decision.clone_from(&old.last_decision);
            status.learned.clone_from(&old.learned);
            return status;
        };
        status.current_replicas = Some(decision.current);
        status.desired_replicas = Some(decision.replicas);
        let reason = decision.reason.as_str();
        let unchanged = old
            .last_decision
            .as_ref()
            .filter(|d| d.reason == reason && old.desired_replicas == Some(decision.replicas));
        status.last_decision = Some(LastDecision {
            reason: reason.into(),
            message: decision.message(&self.plan.policy),
            time: unchanged.map_or_else(|| Time(wall), |d| d.time.clone()),
        });
        status.metrics = self.metrics(decision, observation);
        status.learned = self.learned(decision, wall);
        let top = decision
            .top
            .or_else(|| decision.metrics.iter().position(|p| p.value.is_some()));
        status.top_metric = match top.and_then(|i| status.metrics.get(i)) {
            Some(m) => Some(format!(
                "{}/{}",
                m.current.as_deref().unwrap_or("<unknown>"),
                m.target
            )),
            None => status
                .metrics
                .first()
                .map(|m| format!("<unknown>/{}", m.target)),
        };
        status
    }

    fn metrics(&self, decision: &Decision, observation: &Observation) -> Vec<MetricStatus> {
        let policy = &self.plan.policy;
        let rows = policy.metrics.iter().zip(&decision.metrics);
        let rows = rows.zip(self.plan.shown.iter().zip(&observation.metrics));
        rows.map(|((metric, proposal), (shown, reading))| {
            let replicas = f64::from(decision.current.max(1));
            let text = |value: f64| {
                if shown.micros {
                    micros(value)
                } else {
                    format!("{}", three(value))
                }
            };
            let each = |value: f64| match metric.target {
                Target::Average(_) => value / replicas,
                Target::Value(_) => value,
            };
            let coverage = match reading {
                Reading::Known(s) => Some(format!("{}", three(s.coverage))),
                Reading::Missing(_) => None,
            };
            MetricStatus {
                type_: shown.type_.into(),
                name: metric.name.clone(),
                current: proposal.value.map(|v| text(each(v))),
                target: shown.target.clone(),
                total: proposal.value.filter(|_| shown.average).map(text),
                proposal: proposal.replicas(),
                window: proposal
                    .value
                    .map(|_| humantime::format_duration(proposal.window).to_string()),
                coverage,
                message: match &proposal.outcome {
                    Outcome::Missing(why) => Some(why.clone()),
                    Outcome::Replicas(_) => None,
                },
            }
        })
        .collect()
    }
}

/// Three digits are enough for a person, and keep a status from changing with every breath.
fn three(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powf(2.0 - value.abs().log10().floor());
    if scale >= 1.0 {
        (value * scale).round() / scale
    } else {
        value.round()
    }
}

/// Microseconds as a duration of two units at most.
fn micros(value: f64) -> String {
    let value = value.max(0.0);
    if value >= 1e6 {
        format!("{}s", three(value / 1e6))
    } else if value >= 1e3 {
        format!("{}ms", three(value / 1e3))
    } else {
        format!("{}us", three(value))
    }
}

/// A status as a merge patch: what is absent now is taken away.
#[must_use]
pub fn patch(status: &EbpfScalerStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        for key in [
            "currentReplicas",
            "desiredReplicas",
            "topMetric",
            "lastDecision",
            "metrics",
            "learned",
        ] {
            map.entry(key).or_insert(Value::Null);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_long_as_a_person_reads() {
        assert_eq!(format!("{}", three(612.7)), "613");
        assert_eq!(format!("{}", three(61.27)), "61.3");
        assert_eq!(format!("{}", three(123_456.0)), "123456");
        assert_eq!(micros(48_211.0), "48.2ms");
        assert_eq!(micros(83.0), "83us");
        assert_eq!(micros(2_500_000.0), "2.5s");
    }

    #[test]
    fn what_is_absent_is_taken_away() {
        let patch = patch(&EbpfScalerStatus::default());
        assert_eq!(patch["lastDecision"], Value::Null);
        assert!(patch.as_object().unwrap().contains_key("topMetric"));
    }
}
