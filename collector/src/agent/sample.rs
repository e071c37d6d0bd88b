//! Turns readings into the wire's samples; pure.

use ebpf_scaler_proto as proto;

use super::demand::Division;
use super::probes::{Buckets, Counters, Family, Reading};

/// The sample of one pod.
pub fn of(
    uid: &str,
    epoch: u64,
    reading: &Reading,
    preemptors: &[proto::Preemptor],
) -> proto::PodSample {
    proto::PodSample {
        pod_uid: uid.to_owned(),
        epoch,
        counters: Some(counters(&reading.counters)),
        request_latency: histogram(&reading.request_latency),
        runqueue_latency: histogram(&reading.runqueue_latency),
        tcp_rtt: histogram(&reading.tcp_rtt),
        preemptors: preemptors.to_vec(),
        part: None,
    }
}

/// A family as the wire numbers it.
pub fn family(family: Family) -> proto::Family {
    match family {
        Family::Requests => proto::Family::Requests,
        Family::Network => proto::Family::Network,
        Family::RunQueue => proto::Family::Runqueue,
        Family::Tls => proto::Family::Tls,
    }
}

/// A family that a replica asks for; none if it is newer than this agent.
pub fn wanted(number: i32) -> Option<Family> {
    match proto::Family::try_from(number).ok()? {
        proto::Family::Unspecified => None,
        proto::Family::Requests => Some(Family::Requests),
        proto::Family::Network => Some(Family::Network),
        proto::Family::Runqueue => Some(Family::RunQueue),
        proto::Family::Tls => Some(Family::Tls),
    }
}

/// What a replica wants apart: the pod's UID, and what. Ports that there can not be are left out.
pub fn division(wanted: &proto::Division) -> (String, Division) {
    let ports = wanted.ports.iter().filter_map(|p| u16::try_from(*p).ok());
    let division = Division {
        ports: ports.filter(|port| *port != 0).collect(),
        containers: wanted.containers,
    };
    (wanted.pod_uid.clone(), division)
}

/// Only the buckets that are not empty; none if all are.
fn histogram(buckets: &Buckets) -> Option<proto::Histogram> {
    let filled = buckets.iter().filter(|count| **count != 0).count();
    if filled == 0 {
        return None;
    }
    let mut histogram = proto::Histogram {
        index: Vec::with_capacity(filled),
        count: Vec::with_capacity(filled),
    };
    for (index, count) in (0_u32..).zip(buckets).filter(|(_, count)| **count != 0) {
        histogram.index.push(index);
        histogram.count.push(*count);
    }
    Some(histogram)
}

/// Field by field, without a rest pattern: a counter that is added on one side only does not compile.
fn counters(counters: &Counters) -> proto::Counters {
    let Counters {
        requests,
        responses_1xx,
        responses_2xx,
        responses_3xx,
        responses_4xx,
        responses_5xx,
        requests_aborted,
        request_latency_sum_micros,
        requests_in_flight,
        requests_probe,
        requests_excluded_port,
        requests_loopback,
        receive_bytes,
        transmit_bytes,
        receive_packets,
        transmit_packets,
        connections_opened,
        connections_closed,
        tcp_retransmits,
        runqueue_wait_nanos,
        runqueue_waits,
        cpu_throttled_micros,
        runqueue_wait_self_nanos,
        runqueue_wait_other_pods_nanos,
        runqueue_wait_system_nanos,
        runqueue_wait_throttled_nanos,
        runqueue_wait_idle_nanos,
        requests_http2,
        requests_redis,
        requests_postgresql,
        tls_turns,
    } = *counters;
    proto::Counters {
        requests,
        responses_1xx,
        responses_2xx,
        responses_3xx,
        responses_4xx,
        responses_5xx,
        requests_aborted,
        request_latency_sum_micros,
        requests_in_flight,
        requests_probe,
        requests_excluded_port,
        requests_loopback,
        receive_bytes,
        transmit_bytes,
        receive_packets,
        transmit_packets,
        connections_opened,
        connections_closed,
        tcp_retransmits,
        runqueue_wait_nanos,
        runqueue_waits,
        cpu_throttled_micros,
        runqueue_wait_self_nanos,
        runqueue_wait_other_pods_nanos,
        runqueue_wait_system_nanos,
        runqueue_wait_throttled_nanos,
        runqueue_wait_idle_nanos,
        requests_http2,
        requests_redis,
        requests_postgresql,
        tls_turns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_travels_without_its_empty_buckets() {
        let mut reading = Reading::default();
        reading.counters.requests = 3;
        reading.request_latency[4] = 2;
        reading.request_latency[100] = 1;
        let sample = of("a", 7, &reading, &[]);
        let latency = sample.request_latency.unwrap();
        assert_eq!((latency.index, latency.count), (vec![4, 100], vec![2, 1]));
        assert_eq!(sample.runqueue_latency, None);
        assert_eq!(sample.counters.unwrap().requests, 3);
    }

    #[test]
    fn families_have_one_number_and_back() {
        for f in Family::ALL {
            assert_eq!(wanted(family(f) as i32), Some(f));
        }
        assert_eq!(wanted(0), None);
        assert_eq!(wanted(99), None);
    }
}
