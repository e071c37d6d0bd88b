//! `operator replay`: scenarios as JSON lines in, what the HPA profile decides out, so that anyone can
//! compare it with an HPA. Never talks to a cluster. docs/replay.md describes the format.

mod quantity;
mod read;
mod scenario;

use std::io::{BufRead, Write};

use anyhow::Context;
use ebpf_scaler_decide::{History, decide};
use serde::Serialize;

pub use scenario::{Scenario, Step};

/// What a scenario came to.
#[derive(Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The scenario's.
    pub name: String,
    /// After each step.
    pub replicas: Vec<i32>,
    /// Of each step, as in the status of an EbpfScaler.
    pub reasons: Vec<&'static str>,
}

/// Answers each line of `input` with one of `output`. What is wrong with a line is said to `errors`; the
/// others are answered all the same.
///
/// # Errors
/// When something cannot be read or written, or a line was not understood.
pub fn run(
    input: impl BufRead,
    mut output: impl Write,
    mut errors: impl Write,
) -> anyhow::Result<()> {
    let mut wrong = 0u64;
    for (i, line) in input.lines().enumerate() {
        let number = i + 1;
        let line = line.with_context(|| format!("cannot read line {number}"))?;
        if line.trim().is_empty() {
            continue;
        }
        match Scenario::parse(&line) {
            Ok(scenario) => {
                for field in &scenario.ignored {
                    writeln!(errors, "line {number}: {field}: ignored, no such field")?;
                }
                let mut answer = serde_json::to_string(&scenario.play())?;
                answer.push('\n');
                output
                    .write_all(answer.as_bytes())
                    .context("cannot write the answer")?;
            }
            Err(error) => {
                writeln!(errors, "line {number}: {error}")?;
                wrong += 1;
            }
        }
    }
    output.flush().context("cannot write the answers")?;
    anyhow::ensure!(wrong == 0, "{wrong} lines were not understood");
    Ok(())
}

impl Scenario {
    /// Decides step by step, and writes what was decided.
    #[must_use]
    pub fn play(&self) -> Outcome {
        let mut history = History::default();
        let mut spec = self.initial;
        let mut outcome = Outcome {
            name: self.name.clone(),
            replicas: Vec::with_capacity(self.steps.len()),
            reasons: Vec::with_capacity(self.steps.len()),
        };
        for step in &self.steps {
            spec = step.written.unwrap_or(spec);
            let observation = step.observation(spec);
            let decision = decide(&observation, &self.policy, &history, step.at);
            history.record(&observation, &self.policy, &decision, step.at);
            if decision.changes() {
                history.scaled(spec, decision.replicas, step.at);
                spec = decision.replicas;
            }
            outcome.replicas.push(spec);
            outcome.reasons.push(decision.reason.as_str());
        }
        outcome
    }
}
