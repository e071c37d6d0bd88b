//! A decision in a sentence that a person reads in `kubectl describe`. Never adds a fact that the
//! decision does not carry.

use crate::{Basis, Decision, Learned, Limited, Outcome, Policy, Reason, Target};

/// A number with no more digits than a person wants.
pub(crate) fn number(x: f64) -> String {
    let text = match x.abs() {
        a if a >= 100.0 || a == 0.0 => format!("{x:.0}"),
        a if a >= 1.0 => format!("{x:.1}"),
        _ => format!("{x:.3}"),
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

impl Decision {
    /// The reason as a sentence, with the numbers behind it.
    #[must_use]
    pub fn message(&self, policy: &Policy) -> String {
        let (min, max) = policy.bounds();
        let least = match policy.raised() {
            Some(floor) => format!("schedule {} asks for at least {min}", floor.name),
            None => format!("minReplicas is {min}"),
        };
        let change = match self.replicas.cmp(&self.current) {
            std::cmp::Ordering::Equal => format!("stays at {}", self.current),
            _ => format!("{} to {}", self.current, self.replicas),
        };
        let asked = self.recommendation.unwrap_or(self.replicas);
        let why = match self.reason {
            Reason::WithinTolerance => match self.basis() {
                Some(Basis::Stable | Basis::Burst) => {
                    format!("{} needs as many", self.top_text(policy))
                }
                _ => format!("{} is near enough", self.top_text(policy)),
            },
            Reason::MetricAboveTarget | Reason::BurstAboveTarget => {
                format!("{} asks for {asked}", self.top_text(policy))
            }
            Reason::AllMetricsBelowTarget => {
                format!(
                    "all metrics are below target, {} asks for {asked}",
                    self.top_text(policy)
                )
            }
            Reason::NotSignificant => format!(
                "{} is off, but too few events say so",
                self.top_text(policy)
            ),
            Reason::Bursting => format!("{asked} would do, but a burst may not be over"),
            Reason::Starting => format!(
                "{asked} would do, but {} have not been watched yet",
                seconds(policy.stable_window())
            ),
            Reason::Settling => format!(
                "{} is off, waiting for the effect of the last step",
                self.top_text(policy)
            ),
            Reason::Probing => format!(
                "{}, and pods may be able to take more than was seen: {asked} to learn it",
                self.top_text(policy)
            ),
            Reason::LatencyNotFromLoad => format!(
                "{}, but pods took as much before, and their threads wait for a CPU no more: more pods would not help",
                self.top_text(policy)
            ),
            Reason::PartialCoverage => "some pods cannot be seen, so nothing is removed".into(),
            Reason::ScaleDownStabilized => format!(
                "{asked} would do, but more was needed within the last {}",
                seconds(policy.down.stabilization)
            ),
            Reason::ScaleUpStabilized => format!(
                "{asked} are asked for, but fewer were within the last {}",
                seconds(policy.up.stabilization)
            ),
            Reason::ScaleUpLimit => {
                format!("{asked} are asked for, but behavior.scaleUp allows no more now")
            }
            Reason::ScaleDownLimit => {
                format!("{asked} would do, but behavior.scaleDown allows no fewer now")
            }
            Reason::TooManyReplicas => format!("{asked} are asked for, but maxReplicas is {max}"),
            Reason::TooFewReplicas => format!("{asked} would do, but {least}"),
            Reason::AboveMaximum => format!("maxReplicas is {max}"),
            Reason::BelowMinimum => least,
            Reason::NoMetrics => format!("no metric can be seen: {}", self.missing_text(policy)),
            Reason::SomeMetricsMissing => {
                format!(
                    "fewer would do, but not all metrics can be seen: {}",
                    self.missing_text(policy)
                )
            }
            Reason::Fallback => format!(
                "fallback, as no metric can be seen: {}",
                self.missing_text(policy)
            ),
            Reason::ScalingDisabled => {
                "the target is scaled to 0; set its replicas to resume".into()
            }
            // Without any metric the recommendation is to stay.
            Reason::Paused if self.top.is_some() => format!("paused; the metrics ask for {asked}"),
            Reason::Paused => "paused".into(),
        };
        let limit = match self.limited {
            Some(limited) if self.replicas != self.current && self.replicas != asked => {
                match limited {
                    Limited::TooManyReplicas => format!("; limited by maxReplicas {max}"),
                    Limited::TooFewReplicas => match policy.raised() {
                        Some(floor) => format!("; limited by schedule {} to {min}", floor.name),
                        None => format!("; limited by minReplicas {min}"),
                    },
                    Limited::ScaleUpLimit => "; limited by behavior.scaleUp".into(),
                    Limited::ScaleDownLimit => "; limited by behavior.scaleDown".into(),
                    Limited::ScaleDownStabilized => format!(
                        "; more was needed within the last {}",
                        seconds(policy.down.stabilization)
                    ),
                    Limited::ScaleUpStabilized => format!(
                        "; fewer were within the last {}",
                        seconds(policy.up.stabilization)
                    ),
                }
            }
            _ => String::new(),
        };
        format!("{change}: {why}{limit}")
    }

    fn basis(&self) -> Option<Basis> {
        self.top.and_then(|i| self.metrics.get(i)).map(|p| p.basis)
    }

    /// The top metric with its value and target.
    fn top_text(&self, policy: &Policy) -> String {
        let Some((metric, proposal)) = self
            .top
            .and_then(|i| Some((policy.metrics.get(i)?, self.metrics.get(i)?)))
        else {
            return "nothing".into();
        };
        let value = proposal.value.unwrap_or(f64::NAN);
        let unit = match metric.objective {
            o if o.share().is_some() => " us",
            _ => "",
        };
        let window = seconds(proposal.window);
        if let Some(learned) = &proposal.learned
            && let (Some((load, window)), Some(capacity)) = (learned.load, learned.capacity)
        {
            return format!(
                "load of {}/s in {} on {} x {} learned for {} of {} us ({})",
                number(load),
                seconds(window),
                self.current,
                number(capacity),
                metric.name,
                number(match metric.target {
                    Target::Average(t) | Target::Value(t) => t,
                }),
                seen(learned)
            );
        }
        match metric.target {
            Target::Average(t) => format!(
                "{} of {} in {window} on {} x {}",
                metric.name,
                number(value),
                self.current,
                number(t)
            ),
            Target::Value(t) => format!(
                "{} of {}{unit} in {window} against {}{unit}",
                metric.name,
                number(value),
                number(t)
            ),
        }
    }

    fn missing_text(&self, policy: &Policy) -> String {
        let parts: Vec<String> = policy
            .metrics
            .iter()
            .zip(&self.metrics)
            .filter_map(|(m, p)| match &p.outcome {
                Outcome::Missing(why) => Some(format!("{}: {why}", m.name)),
                Outcome::Replicas(_) => None,
            })
            .collect();
        parts.join("; ")
    }
}

/// On what a learned capacity rests.
fn seen(learned: &Learned) -> String {
    let (least, most) = learned.seen.unwrap_or_default();
    let beyond = if learned.limit_seen {
        "more was too much"
    } else {
        "no limit seen"
    };
    format!(
        "confidence {}; seen {} to {}/s a pod, {beyond}",
        number((learned.confidence * 100.0).round() / 100.0),
        number(least),
        number(most)
    )
}

fn seconds(d: std::time::Duration) -> String {
    let s = d.as_secs_f64();
    format!("{} s", number(s))
}
