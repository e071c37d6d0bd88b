//! The answers at hand: for each query the best one of all replicas. Never fetches any.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ebpf_scaler_decide::{Reading, Sample, Time, WindowSample};
use ebpf_scaler_proto::Answer;

/// Who gave an answer: a replica of the collector, or the aggregated API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A stream to this replica.
    Stream(std::net::SocketAddr),
    /// A poll.
    Poll,
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Given {
    /// What was measured, or why it was not.
    pub reading: Reading,
    /// When the newest sample behind it was taken, microseconds since 1970.
    pub sampled_unix_micros: i64,
    /// When it came.
    pub received: Instant,
    /// How long it counts.
    pub valid: Duration,
}

impl Given {
    /// An answer of a stream.
    #[must_use]
    pub fn from_stream(answer: &Answer, received: Instant, valid: Duration) -> Self {
        let reading = match &answer.error {
            Some(e) => Reading::Missing(e.message.clone()),
            None => Reading::Known(Sample {
                sampled: Time::from_millis(
                    u64::try_from(answer.sampled_unix_micros / 1000).unwrap_or(0),
                ),
                windows: answer
                    .windows
                    .iter()
                    .map(|w| WindowSample {
                        window: Duration::from_secs(w.window_seconds.into()),
                        value: w.value,
                        events: Some(w.events),
                        covered: Duration::try_from_secs_f64(w.covered_seconds).unwrap_or_default(),
                    })
                    .collect(),
                coverage: answer.coverage,
                estimated: answer.pods_estimated > 0,
            }),
        };
        Self {
            reading,
            sampled_unix_micros: answer.sampled_unix_micros,
            received,
            valid,
        }
    }

    fn is_current(&self, now: Instant) -> bool {
        now.duration_since(self.received) < self.valid
    }

    /// Known before missing, then the share of pods behind it.
    fn rank(&self) -> (bool, u32) {
        match &self.reading {
            Reading::Known(s) => (true, (s.coverage.clamp(0.0, 1.0) * 1000.0) as u32),
            Reading::Missing(_) => (false, 0),
        }
    }
}

/// What a query is answered with now.
#[derive(Clone, Debug)]
pub struct Best {
    /// What was measured, or why it was not.
    pub reading: Reading,
    /// When the newest sample behind it was taken, microseconds since 1970.
    pub sampled_unix_micros: Option<i64>,
}

#[derive(Default)]
struct Slot {
    given: Vec<(Source, Given)>,
    chosen: Option<Source>,
}

/// All answers.
#[derive(Default)]
pub struct Answers {
    slots: HashMap<String, Slot>,
}

impl Answers {
    /// Keeps exactly the slots of these ids.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.slots.retain(|id, _| wanted(id));
    }

    /// Makes a place for a query's answers.
    pub fn expect(&mut self, id: &str) {
        if !self.slots.contains_key(id) {
            self.slots.insert(id.to_owned(), Slot::default());
        }
    }

    /// Takes an answer in, and says whether it changes what the query is answered with.
    pub fn put(&mut self, id: &str, source: Source, given: Given, now: Instant) -> bool {
        let Some(slot) = self.slots.get_mut(id) else {
            return false;
        };
        match slot.given.iter_mut().find(|(s, _)| *s == source) {
            Some((_, old)) => *old = given,
            None => slot.given.push((source, given)),
        }
        slot.given.retain(|(_, g)| g.is_current(now));
        slot.choose(now);
        slot.chosen == Some(source)
    }

    /// What the query is answered with.
    pub fn best(&mut self, id: &str, now: Instant) -> Best {
        let missing = |why: &str| Best {
            reading: Reading::Missing(why.to_owned()),
            sampled_unix_micros: None,
        };
        let Some(slot) = self.slots.get_mut(id) else {
            return missing("not asked for yet");
        };
        slot.choose(now);
        let chosen = slot.given.iter().find(|(s, _)| Some(*s) == slot.chosen);
        match chosen {
            Some((_, g)) => Best {
                reading: g.reading.clone(),
                sampled_unix_micros: Some(g.sampled_unix_micros),
            },
            None => missing("no answer from the collector or the metrics API"),
        }
    }

    /// Forgets what a replica said: it is gone.
    pub fn drop_source(&mut self, source: Source) {
        for slot in self.slots.values_mut() {
            slot.given.retain(|(s, _)| *s != source);
        }
    }

    /// Whether a stream answers this query.
    #[must_use]
    pub fn streamed(&self, id: &str, now: Instant) -> bool {
        self.slots.get(id).is_some_and(|slot| {
            slot.given
                .iter()
                .any(|(s, g)| matches!(s, Source::Stream(_)) && g.is_current(now))
        })
    }
}

impl Slot {
    /// The best, but not another one for nothing: replicas differ by fractions of a second, and
    /// going back and forth between them would look like the load doing so.
    fn choose(&mut self, now: Instant) {
        let rank = |s: &Source, g: &Given| {
            let prompt = now.duration_since(g.received) < Duration::from_millis(1500);
            let stream = matches!(s, Source::Stream(_));
            (g.rank(), stream, prompt, Some(*s) == self.chosen)
        };
        self.chosen = self
            .given
            .iter()
            .filter(|(_, g)| g.is_current(now))
            .max_by_key(|(s, g)| (rank(s, g), g.sampled_unix_micros))
            .map(|(s, _)| *s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: Duration = Duration::from_secs(5);

    fn replica(n: u8) -> Source {
        Source::Stream(([10, 0, 0, n], 9443).into())
    }

    fn given(coverage: f64, sampled: i64, received: Instant) -> Given {
        Given::from_stream(
            &Answer {
                coverage,
                sampled_unix_micros: sampled,
                ..Answer::default()
            },
            received,
            VALID,
        )
    }

    #[test]
    fn the_best_coverage_wins_and_an_equal_one_changes_nothing() {
        let mut a = Answers::default();
        let t = Instant::now();
        a.expect("q");
        assert!(a.put("q", replica(1), given(0.5, 100, t), t));
        assert!(a.put("q", replica(2), given(1.0, 50, t), t));
        assert!(
            !a.put("q", replica(1), given(1.0, 200, t), t),
            "as good is no reason to change"
        );
        assert_eq!(a.best("q", t).sampled_unix_micros, Some(50));
    }

    #[test]
    fn a_silent_replica_is_replaced_and_silence_is_missing() {
        let mut a = Answers::default();
        let t = Instant::now();
        a.expect("q");
        a.put("q", replica(1), given(1.0, 100, t), t);
        let later = t + Duration::from_secs(2);
        assert!(a.put("q", replica(2), given(1.0, 150, later), later));
        let end = later + VALID;
        assert!(matches!(a.best("q", end).reading, Reading::Missing(_)));
    }

    #[test]
    fn an_error_gives_way_to_a_value() {
        let mut a = Answers::default();
        let t = Instant::now();
        a.expect("q");
        let error = Answer {
            error: Some(ebpf_scaler_proto::AnswerError {
                message: "no pod".into(),
                ..Default::default()
            }),
            ..Answer::default()
        };
        a.put("q", replica(1), Given::from_stream(&error, t, VALID), t);
        assert!(matches!(a.best("q", t).reading, Reading::Missing(m) if m == "no pod"));
        a.put("q", replica(2), given(0.6, 1, t), t);
        assert!(matches!(a.best("q", t).reading, Reading::Known(_)));
    }
}
