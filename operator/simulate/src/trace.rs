//! A load over time, and what else happens to the workload meanwhile. Never draws an arrival.

use std::time::Duration;

use serde::Serialize;

/// How requests arrive at a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Arrivals {
    /// Independently of each other: the rate is an expectation.
    Poisson,
    /// Exactly as many as the rate says, anywhere in its interval: the rate was counted, and has its
    /// noise already.
    Counted,
}

/// A load: a rate that holds from its time to the next one's.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// For titles.
    pub name: String,
    /// Milliseconds from the begin, rising, and requests per second; the first is at 0.
    pub rates: Vec<(u64, f64)>,
    /// Milliseconds from the begin at which the trace ends.
    pub end: u64,
    /// How requests arrive.
    pub arrivals: Arrivals,
    /// Milliseconds at which a new version of the workload is rolled out.
    pub rollouts: Vec<u64>,
}

/// Longest trace: a month, so that no absurd one takes for ever.
pub const LONGEST: Duration = Duration::from_secs(31 * 86_400);
/// Highest rate that is simulated, in requests per second.
pub const FASTEST: f64 = 100_000.0;

impl Trace {
    /// A trace whose rate changes each second.
    #[must_use]
    pub fn each_second(name: &str, rates: impl IntoIterator<Item = f64>) -> Self {
        let rates: Vec<(u64, f64)> = (0..).map(|s| s * 1000).zip(rates).collect();
        let end = rates.last().map_or(0, |(t, _)| t + 1000);
        Self {
            name: name.to_owned(),
            rates,
            end,
            arrivals: Arrivals::Poisson,
            rollouts: Vec::new(),
        }
    }

    /// The rate at `millis`, made finite and kept within what is simulated.
    #[must_use]
    pub fn rate(&self, millis: u64) -> f64 {
        let next = self.rates.partition_point(|(t, _)| *t <= millis);
        let rate = next
            .checked_sub(1)
            .and_then(|i| self.rates.get(i))
            .map_or(0.0, |(_, r)| *r);
        tame(rate)
    }

    /// The part from `from` to `to`, which becomes a trace of its own.
    #[must_use]
    pub fn part(&self, from: Duration, to: Duration) -> Self {
        let (from, to) = (millis(from), millis(to).min(self.end));
        let mut rates: Vec<(u64, f64)> = self
            .rates
            .iter()
            .filter(|(t, _)| *t > from && *t < to)
            .map(|(t, r)| (t - from, *r))
            .collect();
        rates.insert(0, (0, self.rate(from)));
        Self {
            rates,
            end: to.saturating_sub(from),
            rollouts: self
                .rollouts
                .iter()
                .filter(|t| (from..to).contains(t))
                .map(|t| t - from)
                .collect(),
            ..self.clone()
        }
    }

    /// The same with rates multiplied.
    #[must_use]
    pub fn scaled(mut self, by: f64) -> Self {
        for (_, rate) in &mut self.rates {
            *rate *= by;
        }
        self
    }

    /// The mean rate of each second.
    #[must_use]
    pub fn seconds(&self) -> Vec<f64> {
        let n = self.end.min(millis(LONGEST)).div_ceil(1000);
        let mut sums = vec![0.0; usize::try_from(n).unwrap_or(0)];
        for (i, (from, rate)) in self.rates.iter().enumerate() {
            let to = self.rates.get(i + 1).map_or(self.end, |(t, _)| *t);
            let (mut at, to) = (*from, to.min(self.end));
            while at < to {
                let second = at / 1000;
                let until = ((second + 1) * 1000).min(to);
                let Some(sum) = usize::try_from(second).ok().and_then(|s| sums.get_mut(s)) else {
                    break;
                };
                *sum += tame(*rate) * (until - at) as f64 / 1000.0;
                at = until;
            }
        }
        sums
    }

    /// Where the load rises by half or more, and not by chance: the seconds at which it does.
    #[must_use]
    pub fn steps(&self) -> Vec<u64> {
        const BEFORE: usize = 60;
        const AFTER: usize = 10;
        let rates = self.seconds();
        let mut sums = vec![0.0];
        for r in &rates {
            sums.push(sums.last().copied().unwrap_or(0.0) + r);
        }
        let sum = |from: usize, to: usize| match (sums.get(from), sums.get(to)) {
            (Some(a), Some(b)) => b - a,
            _ => 0.0,
        };
        let mut steps = Vec::new();
        let mut at = BEFORE;
        while at + AFTER <= rates.len() {
            let before = sum(at - BEFORE, at) / BEFORE as f64;
            let after = sum(at, at + AFTER);
            let expected = before * AFTER as f64;
            let now = rates.get(at).copied().unwrap_or(0.0);
            if now >= 1.5 * before
                && after >= 1.5 * expected
                && after - expected >= 5.0 * (expected + 1.0).sqrt()
            {
                steps.push(at as u64);
                at += 2 * BEFORE;
            } else {
                at += 1;
            }
        }
        steps
    }
}

/// What is not a number or below zero is no load.
pub(crate) fn tame(rate: f64) -> f64 {
    if rate.is_nan() {
        0.0
    } else {
        rate.clamp(0.0, FASTEST)
    }
}

pub(crate) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_until_the_next() {
        let trace = Trace {
            rates: vec![(0, 10.0), (2500, 30.0)],
            end: 4000,
            ..Trace::each_second("x", [])
        };
        assert_eq!(trace.seconds(), [10.0, 10.0, 20.0, 30.0]);
        assert_eq!((trace.rate(2499), trace.rate(2500)), (10.0, 30.0));
        let part = trace.part(Duration::from_secs(2), Duration::from_secs(9));
        assert_eq!(part.rates, [(0, 10.0), (500, 30.0)]);
        assert_eq!(part.end, 2000);
    }

    #[test]
    fn absurd_rates_are_tamed() {
        let trace = Trace::each_second("x", [f64::NAN, -1.0, f64::INFINITY]);
        assert_eq!(trace.seconds(), [0.0, 0.0, FASTEST]);
        assert_eq!(Trace::each_second("x", []).seconds(), [0.0; 0]);
    }

    #[test]
    fn a_step_is_found_once_and_noise_is_none() {
        let step = (0..400).map(|s| if s < 200 { 100.0 } else { 300.0 });
        assert_eq!(Trace::each_second("x", step).steps(), [200]);
        let quiet = (0..400).map(|s| f64::from(s % 5));
        assert_eq!(Trace::each_second("x", quiet).steps(), [0u64; 0]);
    }
}
