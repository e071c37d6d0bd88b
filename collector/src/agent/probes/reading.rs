//! What a slot has counted, as a value. Adds up; never reads a map.

use ebpf_scaler_common::{Counters, histogram};

/// Counts per bucket of [`histogram`].
pub type Buckets = [u64; histogram::BUCKETS];

/// Everything counted in a slot since it was allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Counters, and the gauge of requests in flight.
    pub counters: Counters,
    /// First byte in to first byte out.
    pub request_latency: Buckets,
    /// Waits of runnable threads for a CPU.
    pub runqueue_latency: Buckets,
}

impl Default for Reading {
    fn default() -> Self {
        Reading {
            counters: Counters::default(),
            request_latency: [0; histogram::BUCKETS],
            runqueue_latency: [0; histogram::BUCKETS],
        }
    }
}

impl Reading {
    /// Adds what a former slot of the same pod had counted; its gauge is not carried over, because what was
    /// in flight there has gone with it.
    pub fn absorb(&mut self, past: &Reading) {
        let (into, from) = (&mut self.counters, &past.counters);
        into.requests += from.requests;
        into.responses_1xx += from.responses_1xx;
        into.responses_2xx += from.responses_2xx;
        into.responses_3xx += from.responses_3xx;
        into.responses_4xx += from.responses_4xx;
        into.responses_5xx += from.responses_5xx;
        into.requests_aborted += from.requests_aborted;
        into.request_latency_sum_micros += from.request_latency_sum_micros;
        into.requests_probe += from.requests_probe;
        into.requests_excluded_port += from.requests_excluded_port;
        into.requests_loopback += from.requests_loopback;
        into.receive_bytes += from.receive_bytes;
        into.transmit_bytes += from.transmit_bytes;
        into.receive_packets += from.receive_packets;
        into.transmit_packets += from.transmit_packets;
        into.connections_opened += from.connections_opened;
        into.connections_closed += from.connections_closed;
        into.tcp_retransmits += from.tcp_retransmits;
        into.runqueue_wait_nanos += from.runqueue_wait_nanos;
        into.runqueue_waits += from.runqueue_waits;
        into.cpu_throttled_micros += from.cpu_throttled_micros;
        for (into, from) in self.request_latency.iter_mut().zip(past.request_latency) {
            *into += from;
        }
        for (into, from) in self.runqueue_latency.iter_mut().zip(past.runqueue_latency) {
            *into += from;
        }
    }
}
