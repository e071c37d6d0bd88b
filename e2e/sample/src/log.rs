//! What the load generator prints: one JSON object a line. The demo, the benches and the tests read it back with
//! these same types, so the format lives here only.

use serde::{Deserialize, Serialize};

/// One line of the generator's standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Something that happened once.
    Event(Event),
    /// Progress of one target, twice a second unless asked otherwise.
    Progress(Progress),
}

/// Something that happened once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The first request of a phase is about to be written.
    Phase {
        /// Index of the phase.
        index: usize,
        /// Index of the target.
        target: usize,
        /// Requests per second from here on.
        rate: f64,
        /// Wall clock of the node's kernel.
        unix_micros: u64,
    },
    /// The schedule is over and every response is in or given up.
    Totals {
        /// In the order in which the targets were given.
        targets: Vec<Totals>,
    },
}

/// Progress of one target; counts are since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Wall clock in seconds.
    pub t: f64,
    /// Index of the target.
    pub target: usize,
    /// Index of the phase.
    pub phase: usize,
    /// Requests fully written to a connection.
    pub sent: u64,
    /// Responses fully read.
    pub completed: u64,
    /// Requests without a response, written or not.
    pub failed: u64,
    /// Requests written per second, over the last interval.
    pub rate: f64,
    /// Median time from when a request was due to its response, over the last interval; 0 without responses.
    pub p50_us: u64,
    /// The same, 99th percentile.
    pub p99_us: u64,
}

/// Exact counts of one target at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// As it was given.
    pub url: String,
    /// Requests that the schedule held.
    pub scheduled: u64,
    /// Requests fully written to a connection; each was written once, none was retried.
    pub sent: u64,
    /// Responses fully read.
    pub completed: u64,
    /// Requests without a response, written or not.
    pub failed: u64,
    /// Requests that were never fully written: no connection, or the schedule was cut short.
    pub unsent: u64,
    /// Responses of status 400 and above; they are in `completed`.
    pub error_responses: u64,
    /// Connections opened.
    pub connections: u64,
    /// Requests written in each phase.
    pub sent_by_phase: Vec<u64>,
}

/// Reads a line; `None` if it is not one of ours.
pub fn parse(line: &str) -> Option<Line> {
    serde_json::from_str(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_readers_expect() {
        let event = Line::Event(Event::Phase {
            index: 1,
            target: 0,
            rate: 1200.0,
            unix_micros: 17,
        });
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"event":"phase","index":1,"target":0,"rate":1200.0,"unix_micros":17}"#
        );
        assert_eq!(parse(&text), Some(event));
        let progress = Line::Progress(Progress {
            sent: 3,
            ..Progress::default()
        });
        let text = serde_json::to_string(&progress).unwrap();
        assert!(
            text.starts_with(r#"{"t":0.0,"target":0,"phase":0,"sent":3,"#),
            "{text}"
        );
        assert_eq!(parse(&text), Some(progress));
        assert_eq!(parse("hello"), None);
    }
}
