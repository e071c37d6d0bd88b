//! Changes of replicas that are not ours: whose they are, and when ours are undone so often that writing more would only
//! be a fight. Never writes.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::Now;
use crate::status::Fact;

/// So many of our writes undone
const REVERTS: usize = 3;
/// within this
const WITHIN: Duration = Duration::from_secs(300);
/// stop us for this long.
const HOLD: Duration = Duration::from_secs(600);
/// A change is told for so long.
const TOLD: Duration = Duration::from_secs(600);

/// A change by somebody else.
#[derive(Clone, Debug)]
struct Change {
    from: i32,
    to: i32,
    by: String,
    wall: Timestamp,
    at: Instant,
}

/// What others do to the replicas of a target.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    known: Option<i32>,
    /// Our last write, until somebody else writes.
    ours: Option<(i32, i32)>,
    undone: Vec<Instant>,
    last: Option<Change>,
    hold: Option<(Instant, String)>,
}

impl Foreign {
    /// We wrote.
    pub(super) fn wrote(&mut self, from: i32, to: i32) {
        self.known = Some(to);
        self.ours = Some((from, to));
    }

    /// Replicas as they are now, last written by `manager` if that is known. A change by somebody else is told once, as
    /// an event's reason and note.
    pub(super) fn see(
        &mut self,
        replicas: i32,
        manager: Option<&str>,
        now: Now,
    ) -> Option<(&'static str, String)> {
        let from = self.known.replace(replicas)?;
        if from == replicas {
            return None;
        }
        let change = Change {
            from,
            to: replicas,
            by: manager.unwrap_or("somebody else").to_owned(),
            wall: now.wall,
            at: now.instant,
        };
        let by = change.by.clone();
        let text = change.text();
        self.last = Some(change);
        let undoes = |(before, after): (i32, i32)| {
            (after > before && replicas < after) || (after < before && replicas > after)
        };
        if self.ours.take().is_some_and(undoes) {
            self.undone.push(now.instant);
        }
        self.undone
            .retain(|at| now.instant.duration_since(*at) <= WITHIN);
        if self.undone.len() >= REVERTS && !self.holds(now.instant) {
            self.undone.clear();
            let until = now.wall + k8s_openapi::jiff::SignedDuration::try_from(HOLD).ok()?;
            let text = format!(
                "{by} undid {REVERTS} writes of replicas within {} minutes, so none follows before {until:.0}: \
                 take spec.replicas out of what it applies, or set mode to Observe",
                WITHIN.as_secs() / 60
            );
            self.hold = Some((now.instant + HOLD, text.clone()));
            return Some(("HeldAfterReverts", text));
        }
        Some(("ExternallyModified", text))
    }

    /// Whether we had better not write.
    pub(super) fn holds(&self, now: Instant) -> bool {
        self.hold.as_ref().is_some_and(|(until, _)| *until > now)
    }

    /// Why we do not write.
    pub(super) fn held(&self, now: Instant) -> Option<(&'static str, String)> {
        let (until, text) = self.hold.as_ref()?;
        (*until > now).then(|| ("HeldAfterReverts", text.clone()))
    }

    /// The condition.
    pub(super) fn fact(&self, now: Instant) -> Fact {
        let recent = self
            .last
            .as_ref()
            .filter(|c| now.duration_since(c.at) < TOLD);
        match recent {
            Some(change) => Fact::new("ExternallyModified", true, "ReplicasChanged", change.text()),
            None => Fact::new(
                "ExternallyModified",
                false,
                "None",
                "nobody else has changed the replicas within 10 minutes",
            ),
        }
    }
}

impl Change {
    fn text(&self) -> String {
        format!(
            "{} changed replicas from {} to {} at {:.0}; decisions go on from there",
            self.by, self.from, self.to, self.wall
        )
    }
}

#[cfg(test)]
mod tests {
    use ebpf_scaler_decide::Time;

    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: u64) -> Now {
            let wall: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
            Now {
                instant: self.0 + Duration::from_secs(seconds),
                wall: wall + k8s_openapi::jiff::SignedDuration::from_secs(seconds as i64),
                time: Time::from_millis(seconds * 1000),
            }
        }
    }

    #[test]
    fn what_is_found_and_what_we_write_is_no_foreign_change() {
        let (clock, mut foreign) = (Clock(Instant::now()), Foreign::default());
        assert_eq!(foreign.see(2, Some("kubectl"), clock.at(0)), None);
        foreign.wrote(2, 6);
        assert_eq!(
            foreign.see(6, Some("ebpf-scaler-operator"), clock.at(1)),
            None
        );
        assert!(!foreign.fact(clock.at(1).instant).holds);
    }

    #[test]
    fn a_foreign_change_is_told_with_its_manager_and_then_forgotten() {
        let (clock, mut foreign) = (Clock(Instant::now()), Foreign::default());
        foreign.see(2, None, clock.at(0));
        let (reason, note) = foreign.see(5, Some("kubectl"), clock.at(1)).unwrap();
        assert_eq!(reason, "ExternallyModified");
        assert_eq!(
            note,
            "kubectl changed replicas from 2 to 5 at 2026-03-01T12:00:01Z; decisions go on from there"
        );
        assert!(foreign.fact(clock.at(600).instant).holds);
        assert!(!foreign.fact(clock.at(601).instant).holds);
    }

    #[test]
    fn three_reverts_hold_for_ten_minutes() {
        let (clock, mut foreign) = (Clock(Instant::now()), Foreign::default());
        foreign.see(2, None, clock.at(0));
        for (n, seconds) in [10, 20, 30].into_iter().enumerate() {
            assert!(!foreign.holds(clock.at(seconds).instant));
            foreign.wrote(2, 6);
            let (reason, note) = foreign.see(2, Some("argocd"), clock.at(seconds)).unwrap();
            let third = n == 2;
            assert_eq!(reason == "HeldAfterReverts", third, "{note}");
            assert_eq!(
                note.contains("before 2026-03-01T12:10:30Z"),
                third,
                "{note}"
            );
        }
        assert!(foreign.holds(clock.at(629).instant));
        assert!(foreign.held(clock.at(630).instant).is_none());
        // And only if they undo it again.
        foreign.wrote(2, 6);
        assert_eq!(
            foreign.see(2, None, clock.at(640)).unwrap().0,
            "ExternallyModified"
        );
    }

    #[test]
    fn reverts_far_apart_or_changes_the_same_way_are_no_fight() {
        let (clock, mut foreign) = (Clock(Instant::now()), Foreign::default());
        foreign.see(2, None, clock.at(0));
        for n in 1..10 {
            foreign.wrote(2, 6);
            foreign.see(2, None, clock.at(n * 200));
        }
        assert!(!foreign.holds(clock.at(1800).instant));
        let mut foreign = Foreign::default();
        foreign.see(2, None, clock.at(0));
        for n in 1..10 {
            let now = 2 + 4 * n as i32;
            foreign.wrote(now - 4, now - 2);
            foreign.see(now, None, clock.at(n));
        }
        assert!(!foreign.holds(clock.at(10).instant));
    }
}
