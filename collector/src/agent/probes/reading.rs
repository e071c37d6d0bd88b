//! What a slot has counted, as a value. Adds up; knows the records' layout but not where they lie.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use ebpf_scaler_common::record::{SlotRecord, Tally};
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
    /// Smoothed round-trip times of TCP connections, by samples.
    pub tcp_rtt: Buckets,
}

impl Default for Reading {
    fn default() -> Self {
        Reading {
            counters: Counters::default(),
            request_latency: [0; histogram::BUCKETS],
            runqueue_latency: [0; histogram::BUCKETS],
            tcp_rtt: [0; histogram::BUCKETS],
        }
    }
}

impl Reading {
    /// Reads a slot's records, given as their words: what they count is the sum, which may wrap where one of them does.
    pub(super) fn of(records: &[&[AtomicU64]]) -> Reading {
        let word = |offset: usize| {
            let words = records.iter().filter_map(|record| record.get(offset / 8));
            words.fold(0u64, |sum, word| {
                sum.wrapping_add(word.load(Ordering::Relaxed))
            })
        };
        let mut reading = Reading {
            counters: counters(word),
            ..Reading::default()
        };
        let fill = |into: &mut Buckets, offset: usize| {
            for record in records {
                for (into, from) in into.iter_mut().zip(record.iter().skip(offset / 8)) {
                    *into += from.load(Ordering::Relaxed);
                }
            }
        };
        fill(
            &mut reading.request_latency,
            offset_of!(SlotRecord, request_latency),
        );
        fill(
            &mut reading.runqueue_latency,
            offset_of!(SlotRecord, runqueue_latency),
        );
        fill(&mut reading.tcp_rtt, offset_of!(SlotRecord, tcp_rtt));
        // The programs add to as little as they can.
        let c = &mut reading.counters;
        c.runqueue_waits = reading.runqueue_latency.iter().sum();
        c.runqueue_wait_nanos = c.runqueue_wait_self_nanos
            + c.runqueue_wait_other_pods_nanos
            + c.runqueue_wait_system_nanos
            + c.runqueue_wait_throttled_nanos
            + c.runqueue_wait_idle_nanos;
        reading
    }

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
        into.runqueue_wait_self_nanos += from.runqueue_wait_self_nanos;
        into.runqueue_wait_other_pods_nanos += from.runqueue_wait_other_pods_nanos;
        into.runqueue_wait_system_nanos += from.runqueue_wait_system_nanos;
        into.runqueue_wait_throttled_nanos += from.runqueue_wait_throttled_nanos;
        into.runqueue_wait_idle_nanos += from.runqueue_wait_idle_nanos;
        into.requests_http2 += from.requests_http2;
        into.requests_redis += from.requests_redis;
        into.requests_postgresql += from.requests_postgresql;
        into.tls_turns += from.tls_turns;
        for (into, from) in self.request_latency.iter_mut().zip(past.request_latency) {
            *into += from;
        }
        for (into, from) in self.tcp_rtt.iter_mut().zip(past.tcp_rtt) {
            *into += from;
        }
        for (into, from) in self.runqueue_latency.iter_mut().zip(past.runqueue_latency) {
            *into += from;
        }
    }
}

fn counters(word: impl Fn(usize) -> u64) -> Counters {
    let base = offset_of!(SlotRecord, tally);
    macro_rules! tally {
        ($field:ident) => {
            word(base + offset_of!(Tally, $field))
        };
    }
    let response = |class: usize| word(base + offset_of!(Tally, responses) + class * 8);
    // What ended first: a request that ends in between then shows as in flight, not as less than none.
    let ended = (1..5).fold(tally!(ended_besides), |sum, class| {
        sum.wrapping_add(response(class))
    });
    let begun = tally!(requests).wrapping_add(tally!(begun_besides));
    // Both wrap, and what was added to one and not yet to the other makes no number of requests near 2^63.
    let in_flight = begun
        .wrapping_sub(ended)
        .cast_signed()
        .max(0)
        .cast_unsigned();
    Counters {
        requests: tally!(requests),
        responses_1xx: response(0),
        responses_2xx: response(1),
        responses_3xx: response(2),
        responses_4xx: response(3),
        responses_5xx: response(4),
        requests_aborted: tally!(requests_aborted),
        request_latency_sum_micros: tally!(request_latency_sum_micros),
        requests_in_flight: in_flight,
        requests_probe: tally!(requests_probe),
        requests_excluded_port: tally!(requests_excluded_port),
        requests_loopback: tally!(requests_loopback),
        receive_bytes: tally!(receive_bytes),
        transmit_bytes: tally!(transmit_bytes),
        receive_packets: tally!(receive_packets),
        transmit_packets: tally!(transmit_packets),
        connections_opened: tally!(connections_opened),
        connections_closed: tally!(connections_closed),
        tcp_retransmits: tally!(tcp_retransmits),
        runqueue_wait_nanos: 0,
        runqueue_waits: 0,
        cpu_throttled_micros: 0,
        runqueue_wait_self_nanos: tally!(runqueue_wait_self_nanos),
        runqueue_wait_other_pods_nanos: tally!(runqueue_wait_other_pods_nanos),
        runqueue_wait_system_nanos: tally!(runqueue_wait_system_nanos),
        runqueue_wait_throttled_nanos: tally!(runqueue_wait_throttled_nanos),
        runqueue_wait_idle_nanos: tally!(runqueue_wait_idle_nanos),
        requests_http2: tally!(requests_http2),
        requests_redis: tally!(requests_redis),
        requests_postgresql: tally!(requests_postgresql),
        tls_turns: tally!(tls_turns),
    }
}
