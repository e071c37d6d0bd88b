//! What is known of a target, by version: news come by watches, by reads and by our own writes, in any order. Never asks.

use std::time::Instant;

use crate::apply::Target;

/// A target as it was last seen.
pub(super) struct Known {
    /// Its replicas, or why they can not be seen; empty until it is known.
    pub(super) target: Result<Target, String>,
    /// Versions older than this are echoes from before our own write.
    pub(super) floor: u64,
    /// When it was last read, if it is not watched.
    pub(super) read: Option<Instant>,
    /// Whether it is being read.
    pub(super) reading: bool,
}

impl Known {
    /// A write of ours has ended, and this is what it left. Somebody else may have written since, and the watch may have
    /// told so before our answer came: that is newer.
    pub(super) fn wrote(&mut self, seen: &Target) {
        let version = seen.version.parse().unwrap_or(0);
        self.floor = self.floor.max(version);
        let before = self.target.as_ref().ok();
        if before.is_some_and(|t| t.version.parse().is_ok_and(|known: u64| known > version)) {
            return;
        }
        self.target = Ok(Target {
            ready: seen.ready.or(before.and_then(|t| t.ready)),
            selector: before.map_or_else(|| seen.selector.clone(), |t| t.selector.clone()),
            ..seen.clone()
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn at(spec: i32, version: &str, ready: Option<i32>) -> Target {
        Target {
            spec,
            status: spec,
            ready,
            selector: "app=web".into(),
            version: version.into(),
            manager: None,
        }
    }

    #[test]
    fn what_came_after_our_write_is_not_forgotten_for_it() {
        let mut known = Known {
            target: Ok(at(1, "9", Some(1))),
            floor: 0,
            read: None,
            reading: false,
        };
        known.wrote(&at(3, "10", None));
        assert_eq!(known.target, Ok(at(3, "10", Some(1))));
        // Somebody undoes the next one, and the watch is faster than the answer.
        known.target = Ok(at(1, "12", Some(1)));
        known.wrote(&at(3, "11", None));
        assert_eq!(known.target.as_ref().unwrap().spec, 1);
        assert_eq!(known.floor, 11);
    }
}
