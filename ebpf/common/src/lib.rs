//! Records and recognisers that the BPF programs and user space share: one definition, so that both sides
//! agree. Nothing here allocates, reads a clock or calls the kernel.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch, core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "BPF's atomics are to be had by intrinsics only"
    )
)]

pub mod flow;
pub mod histogram;
pub mod http1;
pub mod http2;
pub mod record;
pub mod tls;
pub mod wire;

/// A group of signals that is attached, wanted and degraded as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// HTTP requests: counts, latency, status classes.
    Requests,
    /// Bytes, packets and connections.
    Network,
    /// Time that runnable threads wait for a CPU.
    RunQueue,
    /// Requests inside TLS, which count as requests.
    Tls,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 4] = [
        Family::Requests,
        Family::Network,
        Family::RunQueue,
        Family::Tls,
    ];

    /// The name for people, logs and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::Requests => "requests",
            Family::Network => "network",
            Family::RunQueue => "runqueue",
            Family::Tls => "tls",
        }
    }
}

impl core::fmt::Display for Family {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is counted per slot, cumulative since the slot was allocated; the wire's `Counters` field by field.
/// `cpu_throttled_micros` does not come from a program: the agent fills it from cpu.stat.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Inbound requests whose peer is outside the pod.
    pub requests: u64,
    /// Interim responses, and 101 which ends a request.
    pub responses_1xx: u64,
    /// Responses of class 2xx.
    pub responses_2xx: u64,
    /// Responses of class 3xx.
    pub responses_3xx: u64,
    /// Responses of class 4xx.
    pub responses_4xx: u64,
    /// Responses of class 5xx.
    pub responses_5xx: u64,
    /// Requests that ended without a response.
    pub requests_aborted: u64,
    /// Sum of the request latencies, microseconds.
    pub request_latency_sum_micros: u64,
    /// A gauge: requests begun and not yet answered; with HTTP/2, not yet ended.
    pub requests_in_flight: u64,
    /// Requests of kubelet probes; not in `requests`.
    pub requests_probe: u64,
    /// Requests to excluded ports; not in `requests`.
    pub requests_excluded_port: u64,
    /// Requests over loopback inside the pod; not in `requests`.
    pub requests_loopback: u64,
    /// L3 bytes received, loopback inside the pod left out.
    pub receive_bytes: u64,
    /// L3 bytes sent, loopback inside the pod left out.
    pub transmit_bytes: u64,
    /// Packets received, as on the wire (a GRO packet counts its segments).
    pub receive_packets: u64,
    /// Packets sent, as on the wire.
    pub transmit_packets: u64,
    /// TCP connections opened, by either side.
    pub connections_opened: u64,
    /// TCP connections closed.
    pub connections_closed: u64,
    /// TCP segments sent again.
    pub tcp_retransmits: u64,
    /// Sum of the waits for a CPU, nanoseconds.
    pub runqueue_wait_nanos: u64,
    /// Waits for a CPU that ended.
    pub runqueue_waits: u64,
    /// Time throttled by the CPU limit, microseconds.
    pub cpu_throttled_micros: u64,
    /// The part of `runqueue_wait_nanos` in which other threads of the pod had the CPU.
    pub runqueue_wait_self_nanos: u64,
    /// The part in which other pods had it.
    pub runqueue_wait_other_pods_nanos: u64,
    /// The part in which threads outside the pods had it.
    pub runqueue_wait_system_nanos: u64,
    /// The part in which the pod's own CPU limit kept the thread off it (Linux 6.18; 0 before).
    pub runqueue_wait_throttled_nanos: u64,
    /// The part in which nobody had it: waking up, or waiting for another CPU. The five parts add up to the whole.
    pub runqueue_wait_idle_nanos: u64,
    /// Those of `requests` that came by HTTP/2, gRPC included; what is in none of these three is HTTP/1.
    pub requests_http2: u64,
    /// Those of `requests` that are Redis commands.
    pub requests_redis: u64,
    /// Those of `requests` that came by PostgreSQL's protocol.
    pub requests_postgresql: u64,
    /// Times that a client sent data on a TLS connection after the server had: an estimate of requests, not in `requests`.
    pub tls_turns: u64,
}
