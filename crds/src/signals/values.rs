//! The values themselves: a field for each metric, whose name is the metric's in camelCase.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Quantity;

/// A value as one type of field holds it.
trait Number: Sized {
    fn from_value(value: f64) -> Self;
    fn to_value(&self) -> f64;
}

impl Number for Quantity {
    fn from_value(value: f64) -> Self {
        value.into()
    }
    fn to_value(&self) -> f64 {
        self.get()
    }
}

impl Number for i64 {
    fn from_value(value: f64) -> Self {
        value.round() as Self
    }
    fn to_value(&self) -> f64 {
        *self as f64
    }
}

macro_rules! values {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty as $schema:literal;)+) => {
        /// A value for each metric, by the metric's name. An absent one is not known.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct SignalValues {
            $(
                $(#[doc = $doc])+
                #[serde(default, skip_serializing_if = "Option::is_none")]
                #[schemars(with = $schema)]
                pub $field: Option<$type>,
            )+
        }

        impl SignalValues {
            /// The value of the metric of this name, in its unit.
            #[must_use]
            pub fn get(&self, metric: &str) -> Option<f64> {
                match metric {
                    $(stringify!($field) => self.$field.as_ref().map(Number::to_value),)+
                    _ => None,
                }
            }

            /// Sets the value of the metric of this name; false if there is no such metric.
            pub fn set(&mut self, metric: &str, value: Option<f64>) -> bool {
                match metric {
                    $(stringify!($field) => self.$field = value.map(Number::from_value),)+
                    _ => return false,
                }
                true
            }
        }
    };
}

values! {
    /// Requests a second from outside the pods, of every protocol that is recognised, without kubelet probes and excluded ports.
    requests_per_second: Quantity as "Option<String>";
    /// Requests in flight on average over the window: HTTP/1 until they are answered, HTTP/2 until they have ended.
    requests_in_flight: Quantity as "Option<String>";
    /// Requests a second answered with a 5xx status or an error reply, or never answered because the connection ended.
    request_errors_per_second: Quantity as "Option<String>";
    /// Median time from a request's first byte in to its response's first byte out, microseconds.
    request_latency_p50_microseconds: i64 as "Option<i64>";
    /// 90th percentile of that time, microseconds.
    request_latency_p90_microseconds: i64 as "Option<i64>";
    /// 99th percentile of that time, microseconds.
    request_latency_p99_microseconds: i64 as "Option<i64>";
    /// Median time that a runnable thread waited for a CPU, microseconds.
    runqueue_latency_p50_microseconds: i64 as "Option<i64>";
    /// 90th percentile of that time, microseconds.
    runqueue_latency_p90_microseconds: i64 as "Option<i64>";
    /// 99th percentile of that time, microseconds.
    runqueue_latency_p99_microseconds: i64 as "Option<i64>";
    /// Threads that were runnable but had no CPU, on average over the window.
    runqueue_waiting_threads: Quantity as "Option<String>";
    /// Threads waiting while other threads of their own pod had the CPU, on average over the window.
    runqueue_waiting_threads_self: Quantity as "Option<String>";
    /// Threads waiting while threads of other pods had the CPU, on average over the window.
    runqueue_waiting_threads_other_pods: Quantity as "Option<String>";
    /// Threads waiting while threads outside the pods had the CPU, on average over the window.
    runqueue_waiting_threads_system: Quantity as "Option<String>";
    /// Threads that the pod's own CPU limit kept from running, on average over the window.
    runqueue_waiting_threads_throttled: Quantity as "Option<String>";
    /// Threads waiting while their CPU was idle, on average over the window.
    runqueue_waiting_threads_idle: Quantity as "Option<String>";
    /// Share of the time in which the pods' own CPU limits kept them from running, 0 to 1, averaged over the pods.
    cpu_throttled_ratio: Quantity as "Option<String>";
    /// Bytes a second that the pods' sockets received, IP headers included.
    network_receive_bytes_per_second: Quantity as "Option<String>";
    /// Bytes a second that the pods' sockets sent, IP headers included.
    network_transmit_bytes_per_second: Quantity as "Option<String>";
    /// Bytes a second that the pods' sockets received and sent, IP headers included.
    network_bytes_per_second: Quantity as "Option<String>";
    /// Packets a second that the pods' sockets received and sent.
    network_packets_per_second: Quantity as "Option<String>";
    /// TCP segments a second that the pods sent again.
    tcp_retransmits_per_second: Quantity as "Option<String>";
    /// Median smoothed round-trip time of the pods' TCP connections, microseconds.
    tcp_rtt_p50_microseconds: i64 as "Option<i64>";
    /// 99th percentile of that time, microseconds.
    tcp_rtt_p99_microseconds: i64 as "Option<i64>";
    /// TCP connections a second opened, from and to the pods.
    connections_per_second: Quantity as "Option<String>";
    /// An estimate of the requests a second inside TLS, not in `requestsPerSecond`: times that a client sent after the server.
    tls_turns_per_second: Quantity as "Option<String>";
}

/// The field of the metric of this name: `requests_per_second` is `requestsPerSecond`.
#[must_use]
pub fn field_name(metric: &str) -> String {
    let mut name = String::with_capacity(metric.len());
    for (i, word) in metric.split('_').enumerate() {
        let mut letters = word.chars();
        match letters.next() {
            Some(first) if i > 0 => {
                name.extend(first.to_uppercase());
                name.push_str(letters.as_str());
            }
            _ => name.push_str(word),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_the_metrics_names_and_keep_their_values() {
        let mut values = SignalValues::default();
        assert!(values.set("requests_per_second", Some(1.5)));
        assert!(values.set("request_latency_p99_microseconds", Some(83.4)));
        assert!(!values.set("request_rate", Some(1.0)));
        let json = serde_json::to_value(&values).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"requestsPerSecond": "1500m", "requestLatencyP99Microseconds": 83}),
            "what is not known is absent"
        );
        assert_eq!(values.get("requests_per_second"), Some(1.5));
        assert_eq!(values.get("request_latency_p99_microseconds"), Some(83.0));
        assert_eq!(values.get("request_latency_p50_microseconds"), None);
        assert_eq!(
            field_name("request_latency_p99_microseconds"),
            "requestLatencyP99Microseconds"
        );
        assert_eq!(
            serde_json::from_value::<SignalValues>(json).unwrap(),
            values
        );
    }
}
