//! The cumulative counters that are kept per pod and point in time, and their arithmetic. Never a rate.

use ebpf_scaler_common::Counters;

/// One of the kept counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Total {
    /// Requests from outside the pod
    Requests,
    /// Responses 2xx
    Responses2xx,
    /// Responses 3xx
    Responses3xx,
    /// Responses 4xx
    Responses4xx,
    /// Responses 5xx
    Responses5xx,
    /// Requests that ended without a response
    Aborted,
    /// Microseconds that the answered requests took
    LatencyMicros,
    /// The integral of requests in flight over time, in request-microseconds
    InFlightMicros,
    /// Requests of kubelet probes
    Probes,
    /// L3 bytes received
    ReceiveBytes,
    /// L3 bytes sent
    TransmitBytes,
    /// Packets received
    ReceivePackets,
    /// Packets sent
    TransmitPackets,
    /// TCP connections opened
    Opened,
    /// TCP segments sent again
    Retransmits,
    /// Nanoseconds that runnable threads waited
    WaitNanos,
    /// Waits for a CPU
    Waits,
    /// Microseconds that the CPU limit held the pod back
    ThrottledMicros,
    /// Nanoseconds of those behind threads of the pod itself
    WaitSelfNanos,
    /// Behind other pods
    WaitOtherPodsNanos,
    /// Behind what is no pod
    WaitSystemNanos,
    /// Held back by the CPU limit
    WaitThrottledNanos,
    /// While nobody had the CPU
    WaitIdleNanos,
    /// Those of `Requests` that came by HTTP/2
    RequestsHttp2,
    /// Those that are Redis commands
    RequestsRedis,
    /// Those that came by PostgreSQL's protocol
    RequestsPostgresql,
    /// Client data on TLS connections after the server's
    TlsTurns,
}

/// How many there are; a mask of them fits 64 bits.
pub(crate) const COUNT: usize = Total::TlsTurns as usize + 1;

/// The kept counters at one time, or what was added between two times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([u64; COUNT]);

impl Totals {
    /// From an agent's counters; the integral of requests in flight starts at zero.
    pub fn new(c: &Counters) -> Self {
        let mut totals = Self::default();
        for (total, value) in [
            (Total::Requests, c.requests),
            (Total::Responses2xx, c.responses_2xx),
            (Total::Responses3xx, c.responses_3xx),
            (Total::Responses4xx, c.responses_4xx),
            (Total::Responses5xx, c.responses_5xx),
            (Total::Aborted, c.requests_aborted),
            (Total::LatencyMicros, c.request_latency_sum_micros),
            (Total::Probes, c.requests_probe),
            (Total::ReceiveBytes, c.receive_bytes),
            (Total::TransmitBytes, c.transmit_bytes),
            (Total::ReceivePackets, c.receive_packets),
            (Total::TransmitPackets, c.transmit_packets),
            (Total::Opened, c.connections_opened),
            (Total::Retransmits, c.tcp_retransmits),
            (Total::WaitNanos, c.runqueue_wait_nanos),
            (Total::Waits, c.runqueue_waits),
            (Total::ThrottledMicros, c.cpu_throttled_micros),
            (Total::WaitSelfNanos, c.runqueue_wait_self_nanos),
            (Total::WaitOtherPodsNanos, c.runqueue_wait_other_pods_nanos),
            (Total::WaitSystemNanos, c.runqueue_wait_system_nanos),
            (Total::WaitThrottledNanos, c.runqueue_wait_throttled_nanos),
            (Total::WaitIdleNanos, c.runqueue_wait_idle_nanos),
            (Total::RequestsHttp2, c.requests_http2),
            (Total::RequestsRedis, c.requests_redis),
            (Total::RequestsPostgresql, c.requests_postgresql),
            (Total::TlsTurns, c.tls_turns),
        ] {
            totals.0[total as usize] = value;
        }
        totals
    }

    /// One counter's value.
    pub const fn get(&self, total: Total) -> u64 {
        self.0[total as usize]
    }

    /// Sets one counter.
    pub const fn set(&mut self, total: Total, value: u64) {
        self.0[total as usize] = value;
    }

    /// What was added since `earlier`; never negative.
    pub fn since(&self, earlier: &Self) -> Amounts {
        Amounts(std::array::from_fn(|i| {
            self.0[i].saturating_sub(earlier.0[i]) as f64
        }))
    }

    /// The larger of each: the next state of counters, which a glitch can not lower.
    pub fn max(&self, other: &Self) -> Self {
        self.combine(other, u64::max)
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// What remains without `other`; never negative.
    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_sub)
    }

    /// All of them, in the order of [`Total`].
    pub(crate) const fn values(&self) -> &[u64; COUNT] {
        &self.0
    }

    /// From all of them, in the order of [`Total`].
    pub(crate) const fn from_values(values: [u64; COUNT]) -> Self {
        Self(values)
    }

    fn combine(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        let mut out = *self;
        for (a, b) in out.0.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        out
    }
}

/// Amounts of the same counters with their fractions: a window's edge cuts the span in which an event happened.
/// Rounded, the fractions of many pods would add up to whole events that never were, or be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amounts([f64; COUNT]);

impl Amounts {
    /// One counter's amount.
    pub const fn get(&self, total: Total) -> f64 {
        self.0[total as usize]
    }

    /// Sets one counter's amount.
    pub const fn set(&mut self, total: Total, amount: f64) {
        self.0[total as usize] = amount;
    }

    /// What is more than in `earlier`; never negative.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|i| (self.0[i] - earlier.0[i]).max(0.0)))
    }

    /// `share` (0 to 1) of the way from `self` to `later`.
    pub fn toward(&self, later: &Self, share: f64) -> Self {
        Self(std::array::from_fn(|i| {
            self.0[i] + (later.0[i] - self.0[i]) * share
        }))
    }
}
