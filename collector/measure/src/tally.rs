//! How many requests each workload has had in all: a counter for audits and dashboards, which pods that go
//! do not lower. Rates never come from here.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::index::Index;
use crate::time::Time;

/// A pod that nobody knows, or that has gone, is remembered this long: its workload may become known, and a
/// late report of it must not be taken for a new pod's.
const REMEMBER: u64 = 60_000_000;
/// More workloads than this are counted together, under empty names: each becomes a series.
const MAX_WORKLOADS: usize = 10_000;

/// Parts that are drained and swept one at a time: in a large cluster nobody is to wait for all of them.
pub const PARTS: usize = 64;

/// Namespace and name of a workload; a pod without an owner is its own.
pub type Workload = (Arc<str>, String);

#[derive(Clone, Copy, Debug)]
struct Counted {
    /// Of the counter; another epoch's counter began at zero.
    epoch: u64,
    /// The counter's highest reading.
    requests: u64,
    /// Read, but not yet handed out.
    outstanding: u64,
    seen: Time,
}

/// What was counted, by UID and the node that reported it: until it is known where a pod runs, two nodes may say that
/// it is theirs, and only the one that is right counts.
type Pods = HashMap<(Arc<str>, Arc<str>), Counted>;

/// Requests by pod that are not yet credited to a workload.
#[derive(Clone, Debug)]
pub struct Tally {
    parts: Vec<Pods>,
    /// Which part a pod is in.
    hasher: RandomState,
    named: HashSet<Workload>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            parts: vec![Pods::new(); PARTS],
            hasher: RandomState::new(),
            named: HashSet::new(),
        }
    }
}

impl Tally {
    /// A pod's cumulative counter was read on a node. An older reading changes nothing.
    pub fn read(
        &mut self,
        (uid, node): (&Arc<str>, &Arc<str>),
        (epoch, requests): (u64, u64),
        now: Time,
    ) {
        let key = (uid.clone(), node.clone());
        let part = self.hasher.hash_one(uid) as usize % PARTS;
        let Some(pods) = self.parts.get_mut(part) else {
            return;
        };
        let Some(pod) = pods.get_mut(&key) else {
            let first = Counted {
                epoch,
                requests,
                outstanding: requests,
                seen: now,
            };
            pods.insert(key, first);
            return;
        };
        let added = if pod.epoch == epoch {
            requests.saturating_sub(pod.requests)
        } else {
            (pod.epoch, pod.requests) = (epoch, 0);
            requests
        };
        pod.requests += added;
        pod.outstanding += added;
        pod.seen = now;
    }

    /// Hands out what was added to each workload since the last time.
    pub fn drain(&mut self, index: &Index) -> HashMap<Workload, u64> {
        let mut all = HashMap::new();
        for part in 0..PARTS {
            for (workload, count) in self.drain_part(part, index) {
                *all.entry(workload).or_default() += count;
            }
        }
        all
    }

    /// Hands out what was added to each workload by the pods of a part (below [`PARTS`]) since the last time. What
    /// belongs to pods that are not known yet stays.
    pub fn drain_part(&mut self, part: usize, index: &Index) -> HashMap<Workload, u64> {
        let mut added = HashMap::new();
        for ((uid, node), counted) in self.parts.get_mut(part).into_iter().flatten() {
            if counted.outstanding == 0 {
                continue;
            }
            let Some(pod) = index.by_cgroup_uid(uid) else {
                continue;
            };
            if pod.facts.node.as_ref().is_some_and(|n| n != node) {
                counted.outstanding = 0;
                continue;
            }
            let name = index
                .workload(pod)
                .map_or(pod.facts.name.as_str(), |(_, name)| name);
            let mut workload = (pod.facts.namespace.clone(), name.to_owned());
            if !self.named.contains(&workload) {
                if self.named.len() < MAX_WORKLOADS {
                    self.named.insert(workload.clone());
                } else {
                    workload = ("".into(), String::new());
                }
            }
            *added.entry(workload).or_default() += std::mem::take(&mut counted.outstanding);
        }
        added
    }

    /// Forgets pods that have gone.
    pub fn sweep(&mut self, index: &Index, now: Time) {
        for part in 0..PARTS {
            self.sweep_part(part, index, now);
        }
    }

    /// Forgets pods of a part that have gone.
    pub fn sweep_part(&mut self, part: usize, index: &Index, now: Time) {
        let Some(pods) = self.parts.get_mut(part) else {
            return;
        };
        pods.retain(|(uid, node), counted| {
            let known = index.by_cgroup_uid(uid);
            let known = known.filter(|pod| pod.facts.node.as_ref().is_none_or(|n| n == node));
            known.is_some_and(|pod| pod.gone.is_none()) || now.since(counted.seen) <= REMEMBER
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{OwnerRef, PodFacts};

    fn pod(uid: &str, owner: Option<&str>) -> PodFacts {
        let owner = owner.map(|name| OwnerRef {
            kind: "StatefulSet".into(),
            name: name.into(),
            uid: "owner".into(),
        });
        PodFacts {
            uid: uid.into(),
            namespace: "shop".into(),
            name: format!("pod-{uid}"),
            owner,
            ..PodFacts::default()
        }
    }

    fn read(tally: &mut Tally, uid: &str, reading: (u64, u64), now: Time) {
        tally.read((&uid.into(), &"n1".into()), reading, now);
    }

    fn at(seconds: u64) -> Time {
        Time::default().plus(seconds * 1_000_000)
    }

    fn of(added: &HashMap<Workload, u64>, name: &str) -> Option<u64> {
        added.get(&("shop".into(), name.into())).copied()
    }

    #[test]
    fn pods_add_up_to_their_workload_and_those_that_go_stay_counted() {
        let (mut index, mut tally) = (Index::default(), Tally::default());
        index.apply(pod("a", Some("web")), false, at(0));
        index.apply(pod("b", Some("web")), false, at(0));
        index.apply(pod("lone", None), false, at(0));
        read(&mut tally, "a", (1, 10), at(1));
        read(&mut tally, "b", (2, 5), at(1));
        read(&mut tally, "lone", (3, 1), at(1));
        let added = tally.drain(&index);
        assert_eq!(
            (of(&added, "web"), of(&added, "pod-lone")),
            (Some(15), Some(1))
        );

        index.delete("a", at(2));
        read(&mut tally, "a", (1, 12), at(2));
        assert_eq!(of(&tally.drain(&index), "web"), Some(2));
        assert!(
            tally.drain(&index).is_empty(),
            "nothing is handed out twice"
        );
    }

    #[test]
    fn repeated_and_older_readings_change_nothing() {
        let (mut index, mut tally) = (Index::default(), Tally::default());
        index.apply(pod("a", Some("web")), false, at(0));
        for requests in [10, 10, 7, 12] {
            read(&mut tally, "a", (1, requests), at(1));
        }
        assert_eq!(of(&tally.drain(&index), "web"), Some(12));
    }

    #[test]
    fn another_epoch_counts_from_zero() {
        let (mut index, mut tally) = (Index::default(), Tally::default());
        index.apply(pod("a", Some("web")), false, at(0));
        read(&mut tally, "a", (1, 100), at(1));
        read(&mut tally, "a", (2, 3), at(2));
        assert_eq!(of(&tally.drain(&index), "web"), Some(103));
    }

    #[test]
    fn requests_of_a_pod_not_yet_known_wait_for_it() {
        let (mut index, mut tally) = (Index::default(), Tally::default());
        read(&mut tally, "a", (1, 4), at(1));
        assert!(tally.drain(&index).is_empty());
        tally.sweep(&index, at(5));
        index.apply(pod("a", Some("web")), false, at(6));
        assert_eq!(of(&tally.drain(&index), "web"), Some(4));
        tally.sweep(&index, at(500));
        assert_eq!(
            tally.parts.iter().map(HashMap::len).sum::<usize>(),
            1,
            "a pod that is there is not forgotten"
        );
    }
}
