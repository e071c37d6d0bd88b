//! Adding up what pods did in one window: which counters a metric is made of, and how it becomes a value.

use crate::answer::WindowValue;
use crate::metric::{Aggregation, Metric, Window};
use crate::protocol::Protocol;
use crate::quantile::Merged;
use crate::series::{Added, Series};
use crate::totals::Total;

/// One window's sums over pods.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    value: f64,
    events: f64,
    /// Seconds seen, summed over the pods that are expected
    pub(crate) covered: f64,
    merged: Option<Merged>,
    /// Of the requests, only those
    protocol: Option<Protocol>,
}

impl Sum {
    /// Nothing yet; of requests, only those of `protocol` if one is given.
    pub(crate) fn of(protocol: Option<Protocol>) -> Self {
        Self {
            protocol,
            ..Self::default()
        }
    }

    /// Adds what a pod did in the window that ends at `end` by its node's clock; nothing before `not_before`. Several
    /// series are parts of it that began at different times, but are all that counts since `not_before`.
    pub(crate) fn absorb(
        &mut self,
        metric: Metric,
        parts: &[&Series],
        window: Window,
        (end, not_before): (u64, u64),
    ) -> f64 {
        let (mut amount, mut seen) = (0.0, 0);
        for series in parts {
            let Added { amounts, covered } = series.added(end, window.micros(), not_before);
            if let Aggregation::Quantile(which, _) = metric.aggregation() {
                let merged = self.merged.get_or_insert_default();
                series.merge(which, (end, window.micros(), not_before), merged);
            }
            let of = |total| match self.protocol {
                Some(protocol) if total == Total::Requests => protocol.requests(|t| amounts.get(t)),
                _ => amounts.get(total),
            };
            let (more, events) = amount_and_events(metric, of);
            self.events += events;
            amount += more;
            seen = covered.max(seen);
        }
        let seconds = seen as f64 / 1e6;
        if seen > 0 {
            self.value += amount / seconds;
        }
        seconds
    }

    /// `pods` are those whose values are in it.
    pub(crate) fn close(&self, metric: Metric, window: Window, pods: usize) -> WindowValue {
        let events = self.events.round() as u64;
        let (value, events) = match (metric.aggregation(), &self.merged) {
            (Aggregation::Quantile(_, q), Some(merged)) => {
                (merged.quantile(q).unwrap_or(0) as f64, merged.total())
            }
            (Aggregation::MeanRatio, _) => (self.value / pods.max(1) as f64, events),
            _ => (self.value, events),
        };
        WindowValue {
            window,
            value,
            events,
            covered_seconds: self.covered / pods.max(1) as f64,
        }
    }
}

/// What a metric counts, per second of which it is the value, and how many events that was.
pub(crate) fn amount_and_events(metric: Metric, get: impl Fn(Total) -> f64) -> (f64, f64) {
    use Metric as M;
    let packets = || get(Total::ReceivePackets) + get(Total::TransmitPackets);
    let (amount, events) = match metric {
        M::RequestsPerSecond => (get(Total::Requests), get(Total::Requests)),
        M::RequestsInFlight => (get(Total::InFlightMicros) / 1e6, get(Total::Requests)),
        M::RequestErrorsPerSecond => {
            let errors = get(Total::Responses5xx) + get(Total::Aborted);
            (errors, errors)
        }
        M::TlsTurnsPerSecond => (get(Total::TlsTurns), get(Total::TlsTurns)),
        M::RunQueueWaitingThreads => (get(Total::WaitNanos) / 1e9, get(Total::Waits)),
        M::RunQueueWaitingThreadsSelf => (get(Total::WaitSelfNanos) / 1e9, get(Total::Waits)),
        M::RunQueueWaitingThreadsOtherPods => {
            (get(Total::WaitOtherPodsNanos) / 1e9, get(Total::Waits))
        }
        M::RunQueueWaitingThreadsSystem => (get(Total::WaitSystemNanos) / 1e9, get(Total::Waits)),
        M::RunQueueWaitingThreadsThrottled => {
            (get(Total::WaitThrottledNanos) / 1e9, get(Total::Waits))
        }
        M::RunQueueWaitingThreadsIdle => (get(Total::WaitIdleNanos) / 1e9, get(Total::Waits)),
        M::CpuThrottledRatio => (get(Total::ThrottledMicros) / 1e6, get(Total::Waits)),
        M::NetworkReceiveBytesPerSecond => (get(Total::ReceiveBytes), get(Total::ReceivePackets)),
        M::NetworkTransmitBytesPerSecond => {
            (get(Total::TransmitBytes), get(Total::TransmitPackets))
        }
        M::NetworkBytesPerSecond => {
            let bytes = get(Total::ReceiveBytes) + get(Total::TransmitBytes);
            (bytes, packets())
        }
        M::NetworkPacketsPerSecond => (packets(), packets()),
        M::TcpRetransmitsPerSecond => (get(Total::Retransmits), get(Total::Retransmits)),
        M::ConnectionsPerSecond => (get(Total::Opened), get(Total::Opened)),
        M::RequestLatencyP50 | M::RequestLatencyP90 | M::RequestLatencyP99 => {
            (0.0, get(Total::Requests))
        }
        M::RunQueueLatencyP50 | M::RunQueueLatencyP90 | M::RunQueueLatencyP99 => {
            (0.0, get(Total::Waits))
        }
        M::TcpRttP50 | M::TcpRttP99 => (0.0, 0.0),
    };
    (amount, events)
}
