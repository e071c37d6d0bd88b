//! Outcomes as a table for a terminal. Never judges them.

use crate::Outcome;

/// A share as per cent with what digits it needs.
pub(crate) fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0".into(),
        p if p < 0.1 => format!("{p:.3}"),
        p if p < 10.0 => format!("{p:.2}"),
        p => format!("{p:.1}"),
    }
}

pub(crate) fn millis(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(ms) if ms < 10.0 => format!("{ms:.1}"),
        Some(ms) => format!("{ms:.0}"),
    }
}

fn recovery(outcome: &Outcome) -> String {
    match outcome.slowest() {
        None => "-".into(),
        Some((seconds, true)) => seconds.to_string(),
        Some((_, false)) => "never".into(),
    }
}

/// One line for each outcome, under a header.
#[must_use]
pub fn table(outcomes: &[Outcome]) -> String {
    const HEADER: [&str; 9] = [
        "decider",
        "violations %",
        "dropped %",
        "pod-seconds",
        "changes",
        "most pods",
        "recovery s",
        "p50 ms",
        "p99 ms",
    ];
    let mut rows: Vec<Vec<String>> = vec![HEADER.map(str::to_owned).to_vec()];
    for o in outcomes {
        let dropped = o.dropped as f64 / o.requests.max(1) as f64;
        rows.push(vec![
            o.decider.as_str().to_owned(),
            percent(o.violations),
            percent(dropped),
            format!("{:.0}", o.pod_seconds),
            o.changes.len().to_string(),
            o.most.to_string(),
            recovery(o),
            millis(o.p50_millis),
            millis(o.p99_millis),
        ]);
    }
    let mut text = String::new();
    for row in &rows {
        for (i, cell) in row.iter().enumerate() {
            let width = rows.iter().filter_map(|r| r.get(i)).map(String::len).max();
            let width = width.unwrap_or(0);
            if i == 0 {
                text.push_str(&format!("{cell:<width$}"));
            } else {
                text.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push('\n');
    }
    text
}
