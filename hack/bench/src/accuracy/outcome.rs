//! What a workload gave, and whether it is right. Judges; measures nothing.

use serde::Serialize;

use crate::generators::Generated;
use crate::scene::Statistics;
use crate::table::verdict;

/// What no workload may be off by.
const BUDGET: f64 = 0.001;

/// What a workload speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2 without TLS, from its preface on.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// The Redis protocol.
    Redis,
    /// The PostgreSQL protocol, version 3.
    Postgresql,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Http1 => "HTTP/1",
            Protocol::Http2 => "HTTP/2",
            Protocol::Grpc => "gRPC",
            Protocol::Redis => "Redis",
            Protocol::Postgresql => "PostgreSQL",
        }
    }
}

/// The result of one workload.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Of the workload.
    pub name: &'static str,
    /// What it speaks.
    pub protocol: Protocol,
    /// Requests, by the generator's own count.
    pub generated: u64,
    /// Requests that the generator may have sent beyond that: without waiting for the answer, or to prepare itself.
    pub unfinished: u64,
    /// Requests, by the programs' count.
    pub counted: u64,
    /// Counted less or more than was sent, as a share of what was generated; negative where too little was counted.
    pub error: f64,
    /// Bytes in and out of the pod.
    pub bytes: u64,
    /// Requests that ended as aborted.
    pub aborted: u64,
    /// What the programs say went wrong meanwhile.
    pub statistics: Statistics,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Outcome {
    /// Holds one count against the other.
    pub fn new(
        name: &'static str,
        protocol: Protocol,
        generated: Generated,
        counted: u64,
    ) -> Outcome {
        let mut outcome = Outcome {
            name,
            protocol,
            generated: generated.requests,
            unfinished: generated.unfinished,
            counted,
            error: 0.0,
            bytes: 0,
            aborted: 0,
            statistics: Statistics::new(),
            note: None,
        };
        let sent_at_most = generated.requests + generated.unfinished;
        let off = match counted {
            less if less < generated.requests => -((generated.requests - less) as f64),
            more => more.saturating_sub(sent_at_most) as f64,
        };
        outcome.error = off / generated.requests.max(1) as f64;
        outcome
    }

    /// Whether something was counted twice, or the count is off by too much.
    pub fn is_wrong(&self) -> bool {
        self.error > 0.0 || -self.error > BUDGET
    }

    /// A row of the table.
    pub fn cells(&self) -> [String; 7] {
        let mark = if self.statistics.is_empty() { "" } else { " *" };
        [
            format!("{}{mark}", self.name),
            self.protocol.name().to_owned(),
            self.generated.to_string(),
            self.counted.to_string(),
            percent(self.error),
            percent(BUDGET),
            verdict(!self.is_wrong()),
        ]
    }

    /// While it runs.
    pub fn line(&self) -> String {
        let [name, protocol, generated, counted, error, _, verdict] = self.cells();
        format!(
            "{name}: {protocol}, generated {generated}, counted {counted}, error {error} {verdict}"
        )
    }

    /// The statistics, with what they explain.
    pub fn explained(&self) -> String {
        let values = self
            .statistics
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let mut text = values.collect::<Vec<_>>().join(", ");
        if let Some(note) = &self.note {
            text += &format!(" ({note})");
        }
        text
    }
}

fn percent(share: f64) -> String {
    format!("{:.3} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(protocol: Protocol, requests: u64, unfinished: u64, counted: u64) -> Outcome {
        let generated = Generated {
            requests,
            unfinished,
            rate: 0.0,
        };
        Outcome::new("it", protocol, generated, counted)
    }

    #[test]
    fn what_was_left_unanswered_explains_a_difference() {
        assert_eq!(outcome(Protocol::Http1, 1000, 16, 1016).error, 0.0);
        assert!(!outcome(Protocol::Http1, 1000, 16, 1000).is_wrong());
    }

    #[test]
    fn counting_twice_is_wrong_by_one_already() {
        assert!(outcome(Protocol::Http1, 1_000_000, 16, 1_000_017).is_wrong());
        assert!(outcome(Protocol::Redis, 1000, 0, 1001).is_wrong());
    }

    #[test]
    fn too_little_is_wrong_beyond_the_budget() {
        assert!(!outcome(Protocol::Http1, 10_000, 0, 9_990).is_wrong());
        let off = outcome(Protocol::Http1, 10_000, 0, 9_989);
        assert!(off.is_wrong());
        assert_eq!(off.cells()[4], "-0.110 %");
    }
}
