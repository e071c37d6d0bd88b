//! What the product would measure of the simulated pods: cumulative counts, read each 250 ms on each
//! node at a phase of its own, and answered in windows that end at each node's last reading. Never knows
//! the rate that the trace says.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use ebpf_scaler_common::histogram;
use ebpf_scaler_decide::{Beside, Metric, Objective, Reading, Sample, Time, WindowSample};

use crate::pods::micros;

/// Nodes report once in this time, in microseconds.
pub const PERIOD: u64 = 250_000;

/// Cumulative counts of a node.
#[derive(Clone, Debug)]
struct Totals {
    at: u64,
    /// Requests whose first byte came in.
    begun: u64,
    /// Requests in flight, times microseconds.
    in_flight: u128,
    /// Microseconds that requests waited for a worker, counted when they came in.
    waited: u128,
    /// Latencies of the requests that were answered; empty if nobody asks.
    latencies: Vec<u64>,
}

/// What is taken from the counts.
#[derive(Clone, Copy, Debug)]
enum Value {
    Rate,
    InFlight,
    /// Requests that no worker has taken, as a machine's threads that wait for a CPU.
    Waiting,
    Quantile(f64),
}

/// What comes to an end: when, and the latency if it was answered.
type Ending = Reverse<(u64, Option<u64>)>;

#[derive(Debug)]
struct Node {
    phase: u64,
    totals: Totals,
    open: u64,
    endings: BinaryHeap<Ending>,
    readings: VecDeque<Totals>,
}

/// All nodes of a workload.
#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    kept: usize,
    /// Whether anybody asks for requests in flight or latencies.
    follows: bool,
}

impl Nodes {
    /// Nodes with phases in microseconds, which measure what `metrics` ask for.
    #[must_use]
    pub fn new(phases: &[u64], metrics: &[Metric]) -> Self {
        let objective =
            |wanted: fn(&Objective) -> bool| metrics.iter().any(|m| wanted(&m.objective));
        let quantiles = objective(|o| o.share().is_some());
        let longest = metrics.iter().map(|m| m.stable_window).max();
        let longest = micros(longest.unwrap_or_default()).min(3_600_000_000);
        let totals = Totals {
            at: 0,
            begun: 0,
            in_flight: 0,
            waited: 0,
            latencies: vec![0; if quantiles { histogram::BUCKETS } else { 0 }],
        };
        let node = |phase: &u64| Node {
            phase: phase % PERIOD,
            totals: totals.clone(),
            open: 0,
            endings: BinaryHeap::new(),
            readings: VecDeque::new(),
        };
        Self {
            nodes: phases.iter().map(node).collect(),
            kept: usize::try_from(longest / PERIOD).unwrap_or(0) + 2,
            follows: quantiles || objective(|o| matches!(o, Objective::Level)),
        }
    }

    /// When the next node reads, after `now`.
    #[must_use]
    pub fn next_reading(&self, now: u64) -> Option<u64> {
        let next = |n: &Node| now + PERIOD - (now + PERIOD - n.phase) % PERIOD;
        self.nodes.iter().map(next).min()
    }

    /// A request that came in on a node and leaves at `until`, answered after `latency` or not at all. Until a worker
    /// took it, it `waited`.
    pub fn count(&mut self, node: usize, at: u64, until: u64, latency: Option<u64>, waited: u64) {
        let Some(node) = self.nodes.get_mut(node) else {
            return;
        };
        if self.follows {
            node.follow(at);
            node.open += 1;
            node.endings.push(Reverse((until, latency)));
        }
        node.totals.begun += 1;
        node.totals.waited += u128::from(waited);
    }

    /// Reads the nodes whose time is `now`.
    pub fn read(&mut self, now: u64) {
        for node in &mut self.nodes {
            if now % PERIOD != node.phase {
                continue;
            }
            if self.follows {
                node.follow(now);
            }
            node.totals.at = now;
            if node.readings.len() == self.kept {
                node.readings.pop_front();
            }
            node.readings.push_back(node.totals.clone());
        }
    }

    /// Requests that ever came in, and requests in flight times microseconds, until `now`.
    pub fn totals(&mut self, now: u64) -> (u64, u128) {
        let (mut begun, mut in_flight) = (0, 0);
        for node in &mut self.nodes {
            if self.follows {
                node.follow(now);
            }
            begun += node.totals.begun;
            in_flight += node.totals.in_flight;
        }
        (begun, in_flight)
    }

    /// The metric at `now`, in the windows that its scaler asks for; none before every node has read twice.
    #[must_use]
    pub fn sample(&self, metric: &Metric, now: u64) -> Option<Sample> {
        let mut lengths = vec![metric.stable_window];
        if let Some(burst) = metric.burst_window {
            lengths.extend([burst, Duration::from_secs(1)]);
        }
        lengths.dedup();
        let value = match metric.objective {
            Objective::Level => Value::InFlight,
            Objective::Latency { share } => Value::Quantile(share),
            Objective::LearnedLatency { share } => {
                lengths.truncate(2);
                Value::Quantile(share)
            }
            _ => Value::Rate,
        };
        self.windows(&lengths, value, now)
    }

    /// What is seen beside each latency whose capacity is learned.
    #[must_use]
    pub fn beside(&self, metrics: &[Metric], now: u64) -> Vec<Beside> {
        let learned = metrics.iter().enumerate();
        let learned =
            learned.filter(|(_, m)| matches!(m.objective, Objective::LearnedLatency { .. }));
        let reading = |sample: Option<Sample>| match sample {
            Some(sample) => Reading::Known(sample),
            None => Reading::Missing("nothing is measured yet".into()),
        };
        learned
            .map(|(metric, m)| {
                let burst = m.burst_window.unwrap_or(m.stable_window);
                let lengths = [m.stable_window, burst, Duration::from_secs(1)];
                Beside {
                    metric,
                    load: reading(self.windows(&lengths, Value::Rate, now)),
                    waiting: reading(self.windows(&[m.stable_window], Value::Waiting, now)),
                }
            })
            .collect()
    }

    fn windows(&self, lengths: &[Duration], value: Value, now: u64) -> Option<Sample> {
        let windows: Option<Vec<WindowSample>> =
            lengths.iter().map(|w| self.window(value, *w)).collect();
        Some(Sample {
            sampled: Time::from_millis(now / 1000),
            windows: windows?,
            coverage: 1.0,
            estimated: false,
        })
    }

    fn window(&self, what: Value, window: Duration) -> Option<WindowSample> {
        let (mut events, mut value, mut covered) = (0, 0.0, u64::MAX);
        let mut latencies = vec![
            0;
            if matches!(what, Value::Quantile(_)) {
                histogram::BUCKETS
            } else {
                0
            }
        ];
        for node in &self.nodes {
            let last = node.readings.back()?;
            let first = node.first(last.at.saturating_sub(micros(window)))?;
            let seen = last.at - first.at;
            if seen == 0 {
                return None;
            }
            covered = covered.min(seen);
            events += last.begun - first.begun;
            value += match what {
                Value::Waiting => (last.waited - first.waited) as f64 / seen as f64,
                Value::InFlight => (last.in_flight - first.in_flight) as f64 / seen as f64,
                _ => (last.begun - first.begun) as f64 * 1e6 / seen as f64,
            };
            let buckets = last.latencies.iter().zip(&first.latencies);
            for (sum, (a, b)) in latencies.iter_mut().zip(buckets) {
                *sum += a - b;
            }
        }
        if let Value::Quantile(share) = what {
            events = latencies.iter().sum();
            value = quantile(&latencies, share).unwrap_or(0.0);
        }
        Some(WindowSample {
            window,
            value,
            events: Some(events),
            covered: Duration::from_micros(covered),
        })
    }
}

impl Node {
    /// Lets requests end until `now`.
    fn follow(&mut self, now: u64) {
        while let Some(Reverse((at, latency))) = self.endings.peek().copied() {
            if at > now {
                break;
            }
            self.endings.pop();
            self.advance(at);
            self.open = self.open.saturating_sub(1);
            let bucket = latency.and_then(|l| self.totals.latencies.get_mut(histogram::index(l)));
            if let Some(bucket) = bucket {
                *bucket += 1;
            }
        }
        self.advance(now);
    }

    fn advance(&mut self, now: u64) {
        let passed = now.saturating_sub(self.totals.at);
        self.totals.in_flight += u128::from(self.open) * u128::from(passed);
        self.totals.at = self.totals.at.max(now);
    }

    /// The last reading at `at` or before, otherwise the oldest.
    fn first(&self, at: u64) -> Option<&Totals> {
        let after = self.readings.partition_point(|r| r.at <= at);
        self.readings.get(after.saturating_sub(1))
    }
}

/// The value below which `share` of what is in the buckets lies; none if nothing is.
pub(crate) fn quantile(buckets: &[u64], share: f64) -> Option<f64> {
    let total: u64 = buckets.iter().sum();
    let rank = ((total as f64 * share).ceil() as u64).clamp(1, total.max(1));
    let mut below = 0;
    let bucket = buckets.iter().position(|n| {
        below += n;
        below >= rank
    });
    bucket.map(|b| histogram::midpoint(b) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_scaler_decide::Target;

    fn metric(objective: Objective) -> Metric {
        Metric {
            name: "x".into(),
            objective,
            target: Target::Average(1.0),
            stable_window: Duration::from_secs(30),
            burst_window: Some(Duration::from_secs(3)),
        }
    }

    /// Two nodes with 50 requests a second each, of 20 ms, for 40 s.
    fn measured(objective: Objective) -> Sample {
        let metrics = [metric(objective)];
        let mut nodes = Nodes::new(&[0, 100_000], &metrics);
        let mut now = 0;
        for i in 0..4000u64 {
            let at = 5000 + i * 10_000;
            while let Some(next) = nodes.next_reading(now).filter(|t| *t <= at) {
                now = next;
                nodes.read(now);
            }
            nodes.count((i % 2) as usize, at, at + 20_000, Some(20_000), 10_000);
        }
        nodes.sample(&metrics[0], now).unwrap()
    }

    #[test]
    fn a_rate_is_the_sum_of_all_nodes_in_each_window() {
        let sample = measured(Objective::Count);
        let values: Vec<_> = sample
            .windows
            .iter()
            .map(|w| (w.window.as_secs(), w.value.round(), w.events))
            .collect();
        assert_eq!(
            values,
            [
                (30, 100.0, Some(3000)),
                (3, 100.0, Some(300)),
                (1, 100.0, Some(100))
            ]
        );
    }

    #[test]
    fn requests_in_flight_are_their_average_and_latency_its_quantile() {
        let level = measured(Objective::Level);
        assert!((level.windows[0].value - 2.0).abs() < 0.01);
        let latency = measured(Objective::Latency { share: 0.99 });
        assert!((latency.windows[0].value / 20_000.0 - 1.0).abs() < 0.0625);
        assert_eq!(quantile(&[0, 0], 0.5), None);
    }

    #[test]
    fn a_window_is_covered_as_far_as_it_was_seen() {
        let metrics = [metric(Objective::Count)];
        let mut nodes = Nodes::new(&[0], &metrics);
        nodes.read(PERIOD);
        assert_eq!(nodes.sample(&metrics[0], PERIOD), None);
        nodes.read(2 * PERIOD);
        let sample = nodes.sample(&metrics[0], 2 * PERIOD).unwrap();
        assert_eq!(sample.windows[0].covered, Duration::from_millis(250));
    }
}
