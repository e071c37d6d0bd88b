//! Holds what was answered against what was really sent. A starved generator sends in bursts, so the truth is
//! its log, not its schedule.

use anyhow::ensure;

use crate::{load::Load, unix_micros};

/// Answers of the metrics API with their time.
#[derive(Debug, Default)]
pub struct Answers {
    answers: Vec<Answer>,
}

#[derive(Debug)]
struct Answer {
    /// Wall clock, seconds.
    at: f64,
    /// Seconds.
    window: f64,
    rate: f64,
}

impl Answers {
    /// An answer has just come: a rate over a window of so many seconds.
    pub fn add(&mut self, window: f64, rate: f64) {
        let at = unix_micros() as f64 / 1e6;
        self.answers.push(Answer { at, window, rate });
    }

    /// The highest rate answered, and how many answers there were.
    pub fn most(&self) -> (f64, usize) {
        let rates = self.answers.iter().map(|answer| answer.rate);
        (rates.fold(0.0, f64::max), self.answers.len())
    }

    /// Fails if an answer exceeds what a generator sent by more than a share of it. Ask after its end; it must
    /// have been told `--interval 20ms`.
    pub fn never_exceed(&self, load: &Load, share: f64) -> anyhow::Result<()> {
        for Answer { at, window, rate } in &self.answers {
            let (_, most) = load.true_rates(0, *at, *window);
            ensure!(
                *rate <= most * (1.0 + share),
                "{rate} requests/s over {window} s were answered, but {most:.1} sent"
            );
        }
        Ok(())
    }

    /// Fails if an answer is off what a generator sent by more than a share of it, either way; as `never_exceed`.
    pub fn agree(&self, load: &Load, share: f64) -> anyhow::Result<()> {
        self.never_exceed(load, share)?;
        for Answer { at, window, rate } in &self.answers {
            let (least, _) = load.true_rates(0, *at, *window);
            ensure!(
                *rate >= least * (1.0 - share),
                "only {rate} requests/s over {window} s were answered, but {least:.1} sent"
            );
        }
        Ok(())
    }
}
