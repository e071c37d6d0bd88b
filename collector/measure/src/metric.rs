//! The metrics we serve: names, units, what has to be measured for each and how pods add up to one
//! value. The one place where a metric is defined; it never computes anything.

use std::fmt;
use std::time::Duration;

pub use ebpf_scaler_common::Family;

/// The unit of a metric's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Events a second
    PerSecond,
    /// Bytes a second
    BytesPerSecond,
    /// Microseconds, a whole number
    Micros,
    /// A number of things at one time (an average over the window)
    Count,
    /// Between 0 and 1, usually
    Ratio,
}

impl Unit {
    /// The unit as people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PerSecond => "1/s",
            Self::BytesPerSecond => "B/s",
            Self::Micros => "us",
            Self::Count => "",
            Self::Ratio => "ratio",
        }
    }
}

/// A latency distribution that agents report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// From a request's first byte in to its response's first byte out
    RequestLatency,
    /// From a thread becoming runnable to it running
    RunQueueLatency,
    /// Smoothed round-trip times of TCP connections
    TcpRtt,
}

/// How the pods' measurements become one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aggregation {
    /// Events a second of each pod, summed
    SumOfRates,
    /// The average over the window of a number each pod has at any time, summed
    SumOfAverages,
    /// The pods' histograms are merged, then the quantile (0 to 1) is taken; never an average of quantiles
    Quantile(Distribution, f64),
    /// Averaged over the pods
    MeanRatio,
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal, $unit:ident, $family:ident, $aggregation:expr;)+) => {
        /// A metric that the external metrics API serves and an operator can subscribe to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Metric {
            /// Every metric, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in the API; it carries the unit.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The metric of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }

            /// What it is, in one sentence for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// The unit of its value.
            pub const fn unit(self) -> Unit {
                match self { $(Self::$variant => Unit::$unit,)+ }
            }

            /// What agents have to measure for it.
            pub const fn family(self) -> Family {
                match self { $(Self::$variant => Family::$family,)+ }
            }

            /// How pods add up to one value.
            pub const fn aggregation(self) -> Aggregation {
                match self { $(Self::$variant => $aggregation,)+ }
            }
        }
    };
}

use Aggregation::{MeanRatio, Quantile, SumOfAverages, SumOfRates};
use Distribution::{RequestLatency, RunQueueLatency, TcpRtt};

metrics! {
    /// Requests from outside the pod, of every protocol that is recognised, without kubelet probes and excluded ports
    RequestsPerSecond => "requests_per_second", PerSecond, Requests, SumOfRates;
    /// Requests in flight on average over the window: HTTP/1 requests until they are answered, HTTP/2 requests until they have ended
    RequestsInFlight => "requests_in_flight", Count, Requests, SumOfAverages;
    /// Requests answered with a 5xx status or an error reply, or never answered because the connection ended
    RequestErrorsPerSecond => "request_errors_per_second", PerSecond, Requests, SumOfRates;
    /// Median time from a request's first byte in to its response's first byte out
    RequestLatencyP50 => "request_latency_p50_microseconds", Micros, Requests, Quantile(RequestLatency, 0.5);
    /// 90th percentile of the time from a request's first byte in to its response's first byte out
    RequestLatencyP90 => "request_latency_p90_microseconds", Micros, Requests, Quantile(RequestLatency, 0.9);
    /// 99th percentile of the time from a request's first byte in to its response's first byte out
    RequestLatencyP99 => "request_latency_p99_microseconds", Micros, Requests, Quantile(RequestLatency, 0.99);
    /// An estimate of requests over TLS, of which nothing is decrypted: how often clients sent data after the server had
    TlsTurnsPerSecond => "tls_turns_per_second", PerSecond, Requests, SumOfRates;
    /// Median time that a runnable thread waited for a CPU
    RunQueueLatencyP50 => "runqueue_latency_p50_microseconds", Micros, RunQueue, Quantile(RunQueueLatency, 0.5);
    /// 90th percentile of the time that a runnable thread waited for a CPU
    RunQueueLatencyP90 => "runqueue_latency_p90_microseconds", Micros, RunQueue, Quantile(RunQueueLatency, 0.9);
    /// 99th percentile of the time that a runnable thread waited for a CPU
    RunQueueLatencyP99 => "runqueue_latency_p99_microseconds", Micros, RunQueue, Quantile(RunQueueLatency, 0.99);
    /// Threads that were runnable but had no CPU, on average over the window
    RunQueueWaitingThreads => "runqueue_waiting_threads", Count, RunQueue, SumOfRates;
    /// Threads waiting while other threads of their own pod had the CPU, on average over the window
    RunQueueWaitingThreadsSelf => "runqueue_waiting_threads_self", Count, RunQueue, SumOfRates;
    /// Threads waiting while threads of other pods had the CPU, on average over the window
    RunQueueWaitingThreadsOtherPods => "runqueue_waiting_threads_other_pods", Count, RunQueue, SumOfRates;
    /// Threads waiting while threads outside the pods had the CPU, on average over the window
    RunQueueWaitingThreadsSystem => "runqueue_waiting_threads_system", Count, RunQueue, SumOfRates;
    /// Threads that the pod's own CPU limit kept from running, on average over the window (Linux 6.18, zero before)
    RunQueueWaitingThreadsThrottled => "runqueue_waiting_threads_throttled", Count, RunQueue, SumOfRates;
    /// Threads waiting while their CPU was idle (being woken, or moved from a busy CPU), on average over the window
    RunQueueWaitingThreadsIdle => "runqueue_waiting_threads_idle", Count, RunQueue, SumOfRates;
    /// Share of the time in which the pod's own CPU limit kept it from running, averaged over the pods
    CpuThrottledRatio => "cpu_throttled_ratio", Ratio, RunQueue, MeanRatio;
    /// Bytes that the pods' sockets received, IP headers included
    NetworkReceiveBytesPerSecond => "network_receive_bytes_per_second", BytesPerSecond, Network, SumOfRates;
    /// Bytes that the pods' sockets sent, IP headers included
    NetworkTransmitBytesPerSecond => "network_transmit_bytes_per_second", BytesPerSecond, Network, SumOfRates;
    /// Bytes that the pods' sockets received and sent, IP headers included
    NetworkBytesPerSecond => "network_bytes_per_second", BytesPerSecond, Network, SumOfRates;
    /// Packets that the pods' sockets received and sent
    NetworkPacketsPerSecond => "network_packets_per_second", PerSecond, Network, SumOfRates;
    /// TCP segments that the pods sent again
    TcpRetransmitsPerSecond => "tcp_retransmits_per_second", PerSecond, Network, SumOfRates;
    /// Median smoothed round-trip time of the pods' TCP connections
    TcpRttP50 => "tcp_rtt_p50_microseconds", Micros, Network, Quantile(TcpRtt, 0.5);
    /// 99th percentile of the smoothed round-trip time of the pods' TCP connections
    TcpRttP99 => "tcp_rtt_p99_microseconds", Micros, Network, Quantile(TcpRtt, 0.99);
    /// TCP connections opened, from and to the pods
    ConnectionsPerSecond => "connections_per_second", PerSecond, Network, SumOfRates;
}

impl Metric {
    /// Whether it is of requests that can be found inside TLS: turns stay what is seen from outside.
    pub const fn is_found_inside_tls(self) -> bool {
        matches!(self.family(), Family::Requests) && !matches!(self, Self::TlsTurnsPerSecond)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A span over which a metric is taken. The set is fixed, so that replicas and dashboards compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// 1 second: the operator sees a step of load in it before it fills the burst window
    S1,
    /// 3 seconds: bursts
    S3,
    /// 10 seconds
    S10,
    /// 30 seconds: the default
    S30,
    /// 60 seconds
    S60,
    /// 5 minutes
    M5,
}

impl Window {
    /// Every window, shortest first.
    pub const ALL: [Self; 6] = [
        Self::S1,
        Self::S3,
        Self::S10,
        Self::S30,
        Self::S60,
        Self::M5,
    ];

    /// What a query that names no window gets.
    pub const DEFAULT: Self = Self::S30;

    /// Its length in seconds.
    pub const fn seconds(self) -> u32 {
        match self {
            Self::S1 => 1,
            Self::S3 => 3,
            Self::S10 => 10,
            Self::S30 => 30,
            Self::S60 => 60,
            Self::M5 => 300,
        }
    }

    /// Its length in microseconds.
    pub const fn micros(self) -> u64 {
        self.seconds() as u64 * 1_000_000
    }

    /// The window of exactly this many seconds.
    pub fn from_seconds(seconds: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|w| w.seconds() == seconds)
    }

    /// Reads `1s`, `3s`, `10s`, `30s`, `60s` (or `1m`) and `5m` (or `300s`).
    pub fn parse(text: &str) -> Option<Self> {
        let (number, scale) = match text.strip_suffix('m') {
            Some(minutes) => (minutes, 60),
            None => (text.strip_suffix('s')?, 1),
        };
        Self::from_seconds(number.parse::<u32>().ok()?.checked_mul(scale)?)
    }

    /// The window as selectors write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::S1 => "1s",
            Self::S3 => "3s",
            Self::S10 => "10s",
            Self::S30 => "30s",
            Self::S60 => "60s",
            Self::M5 => "5m",
        }
    }
}

impl From<Window> for Duration {
    fn from(window: Window) -> Self {
        Self::from_secs(window.seconds().into())
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_metric_and_says_its_unit() {
        for metric in Metric::ALL {
            assert_eq!(Metric::from_name(metric.as_str()), Some(*metric));
            assert!(!metric.help().is_empty());
            match metric.unit() {
                Unit::Micros => assert!(metric.as_str().ends_with("_microseconds")),
                Unit::PerSecond => assert!(metric.as_str().ends_with("_per_second")),
                Unit::BytesPerSecond => assert!(metric.as_str().ends_with("bytes_per_second")),
                Unit::Ratio => assert!(metric.as_str().ends_with("_ratio")),
                Unit::Count => {}
            }
        }
        assert_eq!(Metric::from_name("requests"), None);
    }

    #[test]
    fn windows_are_read_as_people_write_them_and_nothing_else() {
        for window in Window::ALL {
            assert_eq!(Window::parse(window.as_str()), Some(window));
        }
        assert_eq!(Window::parse("1m"), Some(Window::S60));
        assert_eq!(Window::parse("300s"), Some(Window::M5));
        for bad in ["", "s", "7s", "30", "-3s", "3 s", "1h", "99999999999m"] {
            assert_eq!(Window::parse(bad), None, "{bad}");
        }
    }
}
