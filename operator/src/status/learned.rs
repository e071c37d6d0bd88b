//! What was learned of a workload, as its status says it and as a new leader reads it again. Never learns.

use std::time::Duration;

use ebpf_scaler_crds::v1alpha1::{CapacityPoint, LearnedCapacity};
use ebpf_scaler_decide::{Basis, Decision, History, Learned, Point, Target};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::{Fact, View, micros, three};
use crate::scaler::Now;

impl View<'_> {
    /// For the status: one entry for each metric that learns.
    pub(super) fn learned(&self, decision: &Decision, wall: Timestamp) -> Vec<LearnedCapacity> {
        let entries = self.curves.iter().filter_map(|(place, points)| {
            let metric = self.plan.policy.metrics.get(*place)?;
            let learned = decision.metrics.get(*place)?.learned.unwrap_or_default();
            let text = |value: f64| format!("{}", three(value));
            Some(LearnedCapacity {
                name: metric.name.clone(),
                capacity_per_pod: learned.capacity.map(text),
                confidence: two(learned.confidence),
                least_load_seen: learned.seen.map(|(least, _)| text(least)),
                largest_load_seen: learned.seen.map(|(_, largest)| text(largest)),
                limit_seen: learned.limit_seen,
                time: Time(wall),
                curve: points.iter().map(shown).collect(),
            })
        });
        entries.collect()
    }

    /// Whether enough is known, where anything is to be learned: of several metrics, of all.
    pub(super) fn capacity_learned(&self) -> Option<Fact> {
        let (decision, _) = self.decision?;
        let mut facts = self.curves.iter().filter_map(|(place, _)| {
            let metric = self.plan.policy.metrics.get(*place)?;
            let proposal = decision.metrics.get(*place)?;
            let learned = proposal.learned.unwrap_or_default();
            let (Target::Value(target) | Target::Average(target)) = metric.target;
            Some(fact(&learned, proposal.basis, &metric.name, target))
        });
        let first = facts.next()?;
        if !first.holds {
            return Some(first);
        }
        Some(facts.find(|f| !f.holds).unwrap_or(first))
    }
}

fn fact(learned: &Learned, basis: Basis, name: &str, target: f64) -> Fact {
    let confidence = two(learned.confidence);
    let (least, largest) = learned.seen.unwrap_or_default();
    let seen = format!(
        "confidence {confidence}; seen {} to {}/s a pod",
        three(least),
        three(largest)
    );
    let target = micros(target);
    match learned.capacity {
        Some(capacity) if learned.is_known() => {
            let (reason, beyond) = match (basis, learned.limit_seen) {
                (Basis::Probing, _) => (
                    "Probing",
                    "pods are given more than was seen, a tenth at a time, to learn whether they can take it",
                ),
                (_, true) => ("LimitSeen", "more was too much"),
                (_, false) => ("NoLimitSeen", "pods may be able to take more"),
            };
            let capacity = three(capacity);
            let message =
                format!("a pod takes {capacity}/s with {name} within {target} ({seen}); {beyond}");
            Fact::new("CapacityLearned", true, reason, message)
        }
        _ => {
            let message = match learned.seen {
                None => format!("no steady load was seen yet for {name}"),
                Some(_) if learned.capacity.is_none() => {
                    format!("every load seen is too much for {name} within {target} ({seen})")
                }
                Some(_) => format!("too little is known for {name} within {target} ({seen})"),
            };
            let message = format!("{message}; until it is, replicas move in bounded steps");
            Fact::new("CapacityLearned", false, "Learning", message)
        }
    }
}

fn two(value: f64) -> String {
    format!("{}", (value * 100.0).round() / 100.0)
}

fn shown(point: &Point) -> CapacityPoint {
    let text = |value: f64| format!("{}", three(value));
    CapacityPoint {
        load: text(point.load),
        latency_microseconds: text(point.latency),
        spread: text(point.spread),
        waiting_threads: point.waiting.map(text),
        weight: text(point.weight),
    }
}

/// Takes up what a status says. Numbers that are none are left out by the engine.
pub fn restore(history: &mut History, found: &LearnedCapacity, now: Now) {
    let number = |text: &str| text.parse().unwrap_or(f64::NAN);
    let points: Vec<Point> = found
        .curve
        .iter()
        .map(|p| Point {
            load: number(&p.load),
            latency: number(&p.latency_microseconds),
            spread: number(&p.spread),
            waiting: p.waiting_threads.as_deref().map(number),
            weight: number(&p.weight),
        })
        .collect();
    let seconds = now
        .wall
        .as_second()
        .saturating_sub(found.time.0.as_second());
    let age = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    history.restore(&found.name, &points, age, now.time);
}

/// Whether two say the same, whenever they did.
pub(super) fn same(old: &[LearnedCapacity], new: &[LearnedCapacity]) -> bool {
    old.len() == new.len()
        && old
            .iter()
            .zip(new)
            .all(|(o, n)| o.name == n.name && o.curve == n.curve)
}

/// Whether a capacity came, went or moved by more than `share`.
pub(super) fn moved(old: &[LearnedCapacity], new: &[LearnedCapacity], share: f64) -> bool {
    let number = |l: &LearnedCapacity| -> Option<f64> { l.capacity_per_pod.as_ref()?.parse().ok() };
    old.len() != new.len()
        || old
            .iter()
            .zip(new)
            .any(|(o, n)| match (number(o), number(n)) {
                (Some(a), Some(b)) => (a - b).abs() > share * a.abs().max(b.abs()),
                (a, b) => a.is_some() != b.is_some(),
            })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn entry(capacity: Option<&str>, load: &str) -> LearnedCapacity {
        LearnedCapacity {
            name: "latency".into(),
            capacity_per_pod: capacity.map(Into::into),
            confidence: "0.8".into(),
            least_load_seen: None,
            largest_load_seen: None,
            limit_seen: false,
            time: Time(Timestamp::UNIX_EPOCH),
            curve: vec![CapacityPoint {
                load: load.into(),
                latency_microseconds: "20000".into(),
                spread: "0.1".into(),
                waiting_threads: Some("0.5".into()),
                weight: "12".into(),
            }],
        }
    }

    fn at(seconds: i64) -> Now {
        Now {
            instant: Instant::now(),
            wall: Timestamp::from_second(seconds).unwrap(),
            time: ebpf_scaler_decide::Time::from_secs(5),
        }
    }

    #[test]
    fn what_a_status_says_is_taken_up_and_what_makes_no_sense_is_not() {
        let mut history = History::default();
        let now = at(3 * 86_400);
        let mut found = entry(Some("100"), "100");
        for load in ["many", "-1", "NaN", "inf", "1e300", ""] {
            found.curve.extend(entry(None, load).curve);
        }
        restore(&mut history, &found, now);
        let points = history.learned("latency", now.time);
        assert_eq!(points.len(), 1, "{points:?}");
        assert_eq!((points[0].load, points[0].latency), (100.0, 20_000.0));
        // Three days old: half of it is left.
        assert!((points[0].weight - 6.0).abs() < 0.01);
        assert_eq!(shown(&points[0]).weight, "6");
        assert_eq!(shown(&points[0]).load, found.curve[0].load);
    }

    #[test]
    fn a_clock_that_went_back_makes_nothing_older() {
        let mut history = History::default();
        let mut found = entry(Some("100"), "100");
        found.time = Time(Timestamp::from_second(1_000_000).unwrap());
        restore(&mut history, &found, at(0));
        assert_eq!(history.learned("latency", at(0).time)[0].weight, 12.0);
    }

    #[test]
    fn a_capacity_that_moved_by_more_than_a_tenth_is_news() {
        let of = |capacity| [entry(capacity, "100")];
        assert!(!moved(&of(Some("100")), &of(Some("109")), 0.1));
        assert!(moved(&of(Some("100")), &of(Some("120")), 0.1));
        assert!(moved(&of(None), &of(Some("100")), 0.1));
        assert!(moved(&[], &of(None), 0.1));
        assert!(same(&of(Some("100")), &of(Some("120"))));
        assert!(!same(&of(None), &[entry(None, "90")]));
    }
}
