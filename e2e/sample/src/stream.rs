//! Network traffic at a byte rate: the load generator with request bodies, so the counting is the same.

use std::time::Duration;

use crate::{
    load,
    schedule::{Phase, Spacing},
};

/// Flags of `sample stream`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where to post, for example http://web:8080/sink
    #[arg(long, required = true)]
    target: Vec<String>,
    /// DURATION@BYTES: for example 30s@1000000 sends a million body bytes a second for 30 s; may be repeated
    #[arg(long, required = true)]
    phase: Vec<Phase>,
    /// Size of each request's body
    #[arg(long, default_value_t = 65_536)]
    body_bytes: usize,
    /// Connections to each target
    #[arg(long, default_value_t = 4)]
    connections: usize,
}

impl Args {
    /// The same traffic as requests.
    pub fn into_load(self) -> load::Args {
        let body = self.body_bytes.max(1);
        let phases = self.phase.iter().map(|phase| Phase {
            duration: phase.duration,
            rate: phase.rate / body as f64,
        });
        load::Args {
            target: self.target,
            phase: phases.collect(),
            connections: self.connections,
            connection_max_age: Duration::from_secs(5),
            spacing: Spacing::Constant,
            seed: 1,
            body_bytes: body,
            timeout: Duration::from_secs(10),
            interval: Duration::from_millis(500),
        }
    }
}
