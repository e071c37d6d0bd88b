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
