//! A step of load as `operator simulate` shows it, and why each decider did what it did.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use ebpf_scaler_simulate::{
    Kind, Outcome,
    family::{Family, Synthetic},
    run, table,
};
use support::by_rate;

#[test]
fn a_step_of_load() {
    let trace = Synthetic {
        duration: 600,
        ..Synthetic::new(Family::Step, 2)
    }
    .trace();
    let kinds = Kind::ALL.into_iter();
    let outcomes: Vec<Outcome> = kinds
        .filter_map(|kind| run(&by_rate(), &trace, kind, 1))
        .collect();
    let mut text = table(&outcomes);
    for Outcome {
        decider, changes, ..
    } in &outcomes
    {
        text.push_str(&format!("\n{}\n", decider.as_str()));
        for c in changes {
            let seconds = c.millis as f64 / 1000.0;
            text.push_str(&format!(
                "{seconds:>8.2} s  {} to {}  {}\n",
                c.from, c.to, c.reason
            ));
        }
    }
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(text.join("\n"));
}
