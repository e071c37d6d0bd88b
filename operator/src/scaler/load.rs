//! The load of one scaler in stretches of five minutes, for its history: means of what was seen. Keeps only what is not
//! written down yet.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use ebpf_scaler_crds::v1alpha1::LoadSeries;
use ebpf_scaler_decide::{Decision, Target};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::translate::Plan;

/// Seconds of a stretch.
pub const STEP: i64 = 300;
/// Stretches that a history keeps: a day.
const MOST: i64 = 288;
/// Stretches that are written together when nothing is decided.
const TOGETHER: usize = 3;

/// Sum and number of what was seen in each stretch, by its number since 1970.
#[derive(Debug, Default)]
pub struct Load {
    metric: String,
    seen: BTreeMap<i64, (f64, u32)>,
    /// Seconds by which this scaler's writes come after a stretch's end: not all at once.
    lag: i64,
}

impl Load {
    /// Of the scaler with this UID.
    #[must_use]
    pub fn of(uid: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        Self {
            lag: i64::try_from(hasher.finish() % STEP.unsigned_abs()).unwrap_or(0),
            ..Self::default()
        }
    }

    /// Takes in the value of the first metric that is a load: one that is shared out among pods.
    pub fn see(&mut self, decision: &Decision, plan: &Plan, wall: Timestamp) {
        let metrics = plan.policy.metrics.iter().zip(&decision.metrics);
        let mut loads = metrics.filter(|(m, _)| matches!(m.target, Target::Average(_)));
        let Some((metric, proposal)) = loads.next() else {
            return;
        };
        if metric.name != self.metric {
            self.metric.clone_from(&metric.name);
            self.seen.clear();
        }
        let Some(value) = proposal.value.filter(|v| v.is_finite()) else {
            return;
        };
        let (sum, n) = self.seen.entry(wall.as_second() / STEP).or_default();
        *sum += value;
        *n = n.saturating_add(1);
        while i64::try_from(self.seen.len()).unwrap_or(i64::MAX) > MOST {
            self.seen.pop_first();
        }
    }

    /// Whether enough is at hand for a write of its own.
    #[must_use]
    pub fn is_due(&self, wall: Timestamp) -> bool {
        let end = (wall.as_second() - self.lag) / STEP;
        self.seen.range(..end).count() >= TOGETHER
    }

    /// The stretches that have ended.
    #[must_use]
    pub fn ended(&self, wall: Timestamp) -> Option<LoadSeries> {
        let now = wall.as_second() / STEP;
        let means = self
            .seen
            .range(..now)
            .map(|(at, (sum, n))| (*at, sum / f64::from(*n)));
        series(&self.metric, &means.collect())
    }

    /// These have been written.
    pub fn written(&mut self, load: &LoadSeries) {
        if load.metric == self.metric
            && let Some((last, _)) = means(load).pop_last()
        {
            self.seen = self.seen.split_off(&(last + 1));
        }
    }
}

/// `new` put behind what was found; of a day at most, and of one metric.
#[must_use]
pub fn merged(found: Option<LoadSeries>, new: Option<LoadSeries>) -> Option<LoadSeries> {
    let Some(new) = new else { return found };
    let mut all = match found {
        Some(found) if found.metric == new.metric => means(&found),
        _ => BTreeMap::new(),
    };
    all.append(&mut means(&new));
    if let Some((last, _)) = all.last_key_value() {
        all = all.split_off(&(last - MOST + 1));
    }
    series(&new.metric, &all)
}

fn series(metric: &str, means: &BTreeMap<i64, f64>) -> Option<LoadSeries> {
    let (first, last) = (means.keys().next()?, means.keys().next_back()?);
    let text = |at| {
        let mean: Option<&f64> = means.get(&at);
        // A thousandth is what a quantity can tell.
        mean.map_or_else(String::new, |m| format!("{}", (m * 1e3).round() / 1e3))
    };
    Some(LoadSeries {
        metric: metric.to_owned(),
        start: Time(Timestamp::from_second(first * STEP).ok()?),
        step_seconds: i32::try_from(STEP).unwrap_or(i32::MAX),
        values: (*first..=*last).map(text).collect(),
    })
}

fn means(load: &LoadSeries) -> BTreeMap<i64, f64> {
    if i64::from(load.step_seconds) != STEP {
        return BTreeMap::new();
    }
    let first = load.start.0.as_second() / STEP;
    let values = (first..).zip(&load.values);
    values
        .filter_map(|(at, v)| Some((at, v.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn of(first: i64, values: &[&str]) -> LoadSeries {
        LoadSeries {
            metric: "requests_per_second".into(),
            start: Time(Timestamp::from_second(first * STEP).unwrap()),
            step_seconds: 300,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    #[test]
    fn stretches_are_put_behind_each_other_and_gaps_stay_gaps() {
        let all = merged(Some(of(10, &["1", "2.5"])), Some(of(13, &["7"])));
        assert_eq!(all, Some(of(10, &["1", "2.5", "", "7"])));
        assert_eq!(merged(Some(of(1, &["1"])), None), Some(of(1, &["1"])));
        let other = LoadSeries {
            metric: "requests_in_flight".into(),
            ..of(1, &["9"])
        };
        assert_eq!(
            merged(Some(other), Some(of(2, &["3"]))),
            Some(of(2, &["3"]))
        );
        let day = of(0, &["1"; 288]);
        let next = merged(Some(day), Some(of(288, &["2"]))).unwrap();
        assert_eq!((next.values.len(), next.start.0.as_second()), (288, STEP));
        assert_eq!(next.values.last().unwrap(), "2");
    }

    #[test]
    fn what_is_written_is_kept_no_longer() {
        let mut load = Load {
            metric: "requests_per_second".into(),
            ..Load::of("a")
        };
        for at in 100..105 {
            load.seen.insert(at, (3.0, 2));
        }
        let at = |n: i64| Timestamp::from_second(n * STEP).unwrap();
        assert!(!load.is_due(at(102)) && load.is_due(at(105)));
        let ended = load.ended(at(104)).unwrap();
        assert_eq!(ended, of(100, &["1.5"; 4]));
        load.written(&ended);
        assert_eq!(load.ended(at(104)), None);
        assert_eq!(load.seen.len(), 1, "the stretch that goes on stays");
    }
}
