//! The table that `kubectl get` prints, made by the server as metav1.Table: columns and cells in units for
//! people. `?` is what is not known, `-` what nothing happened for.

use ebpf_scaler_measure::Time;
use ebpf_scaler_measure::metric::{Metric, Window};
use ebpf_scaler_measure::signals::{GapReason, Signals, Who};
use serde_json::{Value, json};

use super::item::{Item, Measured, Resource};
use super::object::{metadata, percent};
use super::snapshot::Entry;

/// What goes with each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Its metadata
    Metadata,
    /// All of it
    Object,
    /// Nothing
    None,
}

/// One column: its name, its type, its priority (1: with `-o wide` only) and what it is.
type Column = (&'static str, &'static str, u8, &'static str);

const NAME: Column = ("Name", "string", 0, "Name of the object");
const SIGNALS: [Column; 6] = [
    ("Req/s", "string", 0, "Requests a second"),
    (
        "In-Flight",
        "string",
        0,
        "Requests begun and not yet answered, on average",
    ),
    (
        "Err/s",
        "string",
        0,
        "Requests a second that failed: 5xx, or cut off",
    ),
    (
        "P99",
        "string",
        0,
        "99th percentile of the time until a request is answered",
    ),
    (
        "RunQ-P99",
        "string",
        0,
        "99th percentile of the time that threads waited for a CPU",
    ),
    (
        "RunQ-Cause",
        "string",
        0,
        "What they waited for most, and its share",
    ),
];
const REST: [Column; 13] = [
    ("Rx", "string", 0, "Bytes received a second"),
    ("Tx", "string", 0, "Bytes sent a second"),
    (
        "Coverage",
        "string",
        0,
        "Share of the pods that is measured now",
    ),
    ("Age", "string", 0, "Time since the newest report behind it"),
    (
        "P50",
        "string",
        1,
        "Median time until a request is answered",
    ),
    (
        "P90",
        "string",
        1,
        "90th percentile of the time until a request is answered",
    ),
    (
        "RunQ-P50",
        "string",
        1,
        "Median time that threads waited for a CPU",
    ),
    (
        "Waiting",
        "string",
        1,
        "Threads that wait for a CPU, on average",
    ),
    (
        "Throttled",
        "string",
        1,
        "Share of the time in which the CPU limit held pods back",
    ),
    (
        "RTT-P50",
        "string",
        1,
        "Median round-trip time of TCP connections",
    ),
    ("Retrans/s", "string", 1, "TCP segments sent again a second"),
    ("Conn/s", "string", 1, "TCP connections opened a second"),
    (
        "Preemptor",
        "string",
        1,
        "Behind whom threads waited most in the last seconds",
    ),
];

fn columns(resource: Resource) -> Vec<Column> {
    let own: &[Column] = match resource {
        Resource::Workloads => &[
            NAME,
            ("Kind", "string", 0, "Kind of the workload"),
            ("Pods", "integer", 0, "Pods that have to be measured"),
        ],
        Resource::Pods => &[
            NAME,
            ("Node", "string", 0, "Where it runs"),
            ("Ready", "string", 0, "Whether it is ready"),
        ],
    };
    let workload: &[Column] = match resource {
        Resource::Workloads => &[],
        Resource::Pods => &[("Workload", "string", 1, "What it belongs to")],
    };
    [own, &SIGNALS, &REST, workload].concat()
}

/// How rows are written for one request.
#[derive(Clone, Copy, Debug)]
pub struct Cells {
    /// Now, for ages
    pub now: Time,
    /// Whether pods of other namespaces may be named
    pub names_all: bool,
}

/// A table of these rows. Of a watch only the first has columns.
pub fn table(
    resource: Resource,
    window: Window,
    version: u64,
    rows: Vec<Value>,
    with_columns: bool,
) -> Value {
    let columns: Vec<_> = columns(resource)
        .into_iter()
        .filter(|_| with_columns)
        .map(|(name, type_, priority, description)| {
            json!({
                "name": name,
                "type": type_,
                "format": if name == "Name" { "name" } else { "" },
                "description": format!("{description} (window: {window})"),
                "priority": priority,
            })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version.to_string()},
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// A row without its object: cells in the order of the columns.
pub fn cells(entry: &Entry, how: Cells) -> Vec<Value> {
    let item = &*entry.item;
    let s = item.signals();
    let number = |metric, write: fn(f64) -> String| match s.value(metric) {
        Some(value) => write(value),
        None => unknown(s, metric).to_owned(),
    };
    let mut cells = match &item.measured {
        Measured::Workload(w) => vec![json!(item.name), json!(w.workload.kind), json!(s.expected)],
        Measured::Pod(pod) => vec![
            json!(item.name),
            json!(pod.node.as_deref().unwrap_or("<none>")),
            json!(if pod.ready { "True" } else { "False" }),
        ],
    };
    let text = [
        number(Metric::RequestsPerSecond, rate),
        number(Metric::RequestsInFlight, rate),
        number(Metric::RequestErrorsPerSecond, rate),
        number(Metric::RequestLatencyP99, micros),
        number(Metric::RunQueueLatencyP99, micros),
        cause(s),
        number(Metric::NetworkReceiveBytesPerSecond, bytes),
        number(Metric::NetworkTransmitBytesPerSecond, bytes),
        coverage(item),
        entry
            .sampled
            .map_or_else(|| "?".into(), |at| age(how.now.since(at))),
        number(Metric::RequestLatencyP50, micros),
        number(Metric::RequestLatencyP90, micros),
        number(Metric::RunQueueLatencyP50, micros),
        number(Metric::RunQueueWaitingThreads, rate),
        number(Metric::CpuThrottledRatio, |ratio| {
            format!("{}%", percent(ratio))
        }),
        number(Metric::TcpRttP50, micros),
        number(Metric::TcpRetransmitsPerSecond, rate),
        number(Metric::ConnectionsPerSecond, rate),
        preemptor(item, how.names_all),
    ];
    cells.extend(text.into_iter().map(Value::from));
    if let Measured::Pod(pod) = &item.measured {
        let workload = &pod.workload;
        cells.push(json!(format!("{}/{}", workload.kind, workload.name)));
    }
    cells
}

/// A row.
pub fn row(entry: &Entry, how: Cells, object: Option<Value>) -> Value {
    let mut row = json!({"cells": cells(entry, how)});
    if let Some(object) = object {
        row["object"] = object;
    }
    row
}

/// What goes with a row by default.
pub fn partial(item: &Item) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": serde_json::to_value(metadata(item)).unwrap_or_default(),
    })
}

fn unknown(signals: &Signals, metric: Metric) -> &'static str {
    let gap = signals.gaps.iter().find(|g| g.metrics.contains(&metric));
    match gap.map(|g| g.reason) {
        Some(GapReason::NoEvents) => "-",
        _ => "?",
    }
}

fn cause(signals: &Signals) -> String {
    if signals.value(Metric::RunQueueWaitingThreads).is_none() {
        return "?".into();
    }
    let causes = signals.causes();
    causes.first().map_or_else(
        || "-".into(),
        |most| format!("{} {}%", most.cause.as_str(), percent(most.share)),
    )
}

fn coverage(item: &Item) -> String {
    let s = item.signals();
    if let Measured::Pod(_) = &item.measured {
        let word = match (s.expected, s.covered, s.estimated) {
            (0, ..) => "starting or ending",
            (_, 0, 0) => "missing",
            (_, 0, _) => "stale",
            _ => "live",
        };
        return word.into();
    }
    if s.expected == 0 {
        return "-".into();
    }
    // Rounded down: 100 % is all of them.
    let share = s.covered * 100 / s.expected;
    match s.estimated {
        0 => format!("{share}%"),
        stale => format!("{share}% ({stale} stale)"),
    }
}

fn preemptor(item: &Item, names_all: bool) -> String {
    let s = item.signals();
    if s.value(Metric::RunQueueWaitingThreads).is_none() {
        return "?".into();
    }
    let Some(most) = s.blamed.first() else {
        return "-".into();
    };
    match &most.who {
        Who::Pod {
            namespace, name, ..
        } if names_all || namespace == item.namespace() => format!("{namespace}/{name}"),
        Who::Pod { .. } => "<hidden>".into(),
        Who::UnknownPod => "<unknown>".into(),
        Who::Node => "<node>".into(),
    }
}

/// A number without a unit, to three digits.
fn rate(value: f64) -> String {
    scaled(value, &["", "k", "M", "G", "T"], 1000.0)
}

/// Bytes a second, by powers of 1024.
fn bytes(value: f64) -> String {
    scaled(value, &["B/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s"], 1024.0)
}

/// Microseconds as the unit in which they are one to three digits.
fn micros(value: f64) -> String {
    scaled(value, &["us", "ms", "s"], 1000.0)
}

fn scaled(value: f64, units: &[&str], step: f64) -> String {
    let (mut value, mut units) = (value, units.iter());
    let mut unit = units.next().copied().unwrap_or_default();
    // Rounded to three digits, 999.6 is the next unit's 1.
    while value >= step - 0.5 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / step, next);
    }
    let number = match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        &number
    };
    format!("{number}{unit}")
}

fn age(micros: u64) -> String {
    match micros / 1_000_000 {
        s @ 0..120 => format!("{s}s"),
        s => format!("{}m{}s", s / 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_the_unit_that_fits() {
        for (value, text) in [
            (0.0, "0"),
            (0.004, "0"),
            (0.25, "0.25"),
            (9.996, "10"),
            (80.0, "80"),
            (99.96, "100"),
            (512.4, "512"),
            (999.4, "999"),
            (999.6, "1k"),
            (12_340.0, "12.3k"),
            (1e6, "1M"),
            (1e18, "1000000T"),
        ] {
            assert_eq!(rate(value), text, "{value}");
        }
        assert_eq!(bytes(1536.0), "1.5KiB/s");
        assert_eq!(bytes(1023.0), "1023B/s");
        assert_eq!(micros(83.0), "83us");
        assert_eq!(micros(1234.0), "1.23ms");
        assert_eq!(micros(999_700.0), "1s");
        assert_eq!(micros(90_000_000.0), "90s");
        assert_eq!(
            (age(999_999), age(125_000_000)),
            ("0s".into(), "2m5s".into())
        );
    }
}
