//! All objects of one kind, scope and window at one time, and what has changed from one such time to another.
//! What has not changed is shared, so that many of them cost little. Computes no signal.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Instant;

use ebpf_scaler_measure::Time;

use super::item::Item;

/// An object as it was, and when what it says was last heard.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The object
    pub item: Arc<Item>,
    /// When the newest report behind it came
    pub sampled: Option<Time>,
}

/// Objects at one time, by namespace and name.
#[derive(Debug)]
pub struct Snapshot {
    /// Its resourceVersion
    pub version: u64,
    /// When it was taken
    pub taken: Instant,
    /// The objects
    pub entries: Vec<Entry>,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there now
    Added,
    /// It says something else
    Modified,
    /// It is no longer there
    Deleted,
}

impl Change {
    /// As watches say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

impl Snapshot {
    /// From objects in their order; those that say the same as in `before` stay what they were.
    pub fn after(before: Option<&Self>, version: u64, items: Vec<Item>, taken: Instant) -> Self {
        let mut old = before.map_or(&[][..], |b| &b.entries).iter().peekable();
        let entries = items.into_iter().map(|item| {
            while old.next_if(|o| o.item.key() < item.key()).is_some() {}
            let known = old.next_if(|o| o.item.key() == item.key());
            let sampled = item.signals().sampled;
            let item = match known {
                Some(known) if known.item.is_same(&item) => known.item.clone(),
                _ => Arc::new(item),
            };
            Entry { item, sampled }
        });
        Self {
            version,
            taken,
            entries: entries.collect(),
        }
    }

    /// The object of a name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<&Entry> {
        let found = self
            .entries
            .binary_search_by(|e| e.item.key().cmp(&(namespace, name)));
        self.entries.get(found.ok()?)
    }

    /// What has changed since `before` for somebody who sees only what `picks` picks.
    pub fn changes<'a>(
        &'a self,
        before: &'a Self,
        picks: impl Fn(&Item) -> bool,
    ) -> Vec<(Change, &'a Entry)> {
        let (mut old, mut new) = (
            before.entries.iter().peekable(),
            self.entries.iter().peekable(),
        );
        let mut changes = Vec::new();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(o), Some(n)) => o.item.key().cmp(&n.item.key()),
            };
            let was = if order.is_le() { old.next() } else { None };
            let is = if order.is_ge() { new.next() } else { None };
            if let (Some(was), Some(is)) = (was, is)
                && Arc::ptr_eq(&was.item, &is.item)
            {
                continue;
            }
            let was = was.filter(|e| picks(&e.item));
            let is = is.filter(|e| picks(&e.item));
            match (was, is) {
                (Some(was), Some(is)) if was.item.is_of_the_same(&is.item) => {
                    changes.push((Change::Modified, is));
                }
                (was, is) => {
                    changes.extend(was.map(|e| (Change::Deleted, e)));
                    changes.extend(is.map(|e| (Change::Added, e)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::signals::item::{Measured, pods, workloads};
    use ebpf_scaler_measure::signals::{PodSignals, Signals, WorkloadRef, WorkloadSignals};

    fn signals(expected: usize) -> Signals {
        let mut signals = Signals::default();
        (signals.expected, signals.sampled) = (expected, Some(Time(expected as u64)));
        signals
    }

    fn workload(kind: &str, name: &str) -> WorkloadRef {
        WorkloadRef {
            kind: kind.into(),
            name: name.into(),
        }
    }

    fn pod(name: &str, uid: &str, tier: &str, expected: usize) -> PodSignals {
        PodSignals {
            namespace: "shop".into(),
            name: name.into(),
            uid: uid.into(),
            node: None,
            workload: workload("Pod", name),
            ready: true,
            labels: [("tier".to_owned(), tier.to_owned())].into(),
            signals: signals(expected),
        }
    }

    fn snapshot(before: Option<&Snapshot>, version: u64, found: Vec<PodSignals>) -> Snapshot {
        Snapshot::after(before, version, pods(found, version), Instant::now())
    }

    #[test]
    fn changes_are_what_somebody_with_a_selector_would_see() {
        let first = snapshot(
            None,
            1,
            vec![
                pod("a", "1", "gold", 1),
                pod("b", "2", "gold", 1),
                pod("c", "3", "gold", 1),
                pod("d", "4", "gold", 1),
                pod("e", "5", "tin", 1),
            ],
        );
        let mut sampled_later = pod("a", "1", "gold", 1);
        sampled_later.signals.sampled = Some(Time(99));
        let second = snapshot(
            Some(&first),
            2,
            vec![
                sampled_later,
                pod("b", "2", "gold", 7),
                // Made again under its name.
                pod("c", "33", "gold", 1),
                // No longer selected; and newly so.
                pod("d", "4", "tin", 1),
                pod("e", "5", "gold", 1),
                pod("f", "6", "tin", 1),
            ],
        );
        let gold = |item: &Item| item.labels()["tier"] == "gold";
        let found = second.changes(&first, gold);
        let found: Vec<_> = found
            .iter()
            .map(|(c, e)| (*c, e.item.name.as_str()))
            .collect();
        use Change::{Added, Deleted, Modified};
        assert_eq!(
            found,
            [
                (Modified, "b"),
                (Deleted, "c"),
                (Added, "c"),
                (Deleted, "d"),
                (Added, "e")
            ]
        );
        let versions: Vec<_> = second.entries.iter().map(|e| e.item.version).collect();
        assert_eq!(versions, [1, 2, 2, 2, 2, 2]);
        let a = second.find("shop", "a").unwrap();
        assert_eq!(
            a.sampled,
            Some(Time(99)),
            "its age is that of the newest report"
        );
        assert!(second.find("shop", "g").is_none() && second.find("jobs", "a").is_none());
    }

    #[test]
    fn workloads_of_one_name_are_told_apart() {
        let kinds = ["Widget", "Job", "Deployment", "Pod"];
        let found = kinds.map(|kind| WorkloadSignals {
            namespace: "shop".into(),
            workload: workload(kind, "web"),
            labels: Default::default(),
            signals: signals(1),
        });
        let items = workloads(found.into(), 1);
        let names: Vec<_> = items
            .iter()
            .map(|item| match &item.measured {
                Measured::Workload(w) => (item.name.as_str(), w.workload.kind.as_str()),
                Measured::Pod(_) => panic!(),
            })
            .collect();
        assert_eq!(
            names,
            [
                ("web", "Deployment"),
                ("web.job", "Job"),
                ("web.pod", "Pod"),
                ("web.widget", "Widget")
            ]
        );
    }
}
