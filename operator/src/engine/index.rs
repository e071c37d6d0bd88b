//! Who scales what, which queries are asked for, and who is in whose way. Never decides.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Engine, Known};
use crate::{apply::TargetKey, watch::Key};

/// Ours are polled once no stream has answered for this long.
const STREAMLESS: Duration = Duration::from_secs(3);

impl Engine {
    /// External metrics always; ours only while no stream brings them.
    pub(super) fn choose_polls(&mut self, now: Instant) {
        let streamless = self
            .streamless
            .is_some_and(|t| now.duration_since(t) >= STREAMLESS);
        let mut wanted = BTreeMap::new();
        for scaler in self.scalers.values() {
            for query in scaler.plan().iter().flat_map(|p| p.asked()) {
                if !query.is_ours() || streamless {
                    wanted.insert(query.id(), query.clone());
                }
            }
        }
        self.parts.poll_wanted.send_if_modified(|old| {
            let changed = **old != wanted;
            if changed {
                *old = Arc::new(wanted);
            }
            changed
        });
    }

    /// Who scales what, who is asked what, and who is in whose way.
    pub(super) fn index(&mut self) {
        self.by_target.clear();
        self.by_query.clear();
        let mut wanted = BTreeMap::new();
        for (key, scaler) in &self.scalers {
            self.by_target
                .entry(scaler.target.clone())
                .or_default()
                .push(key.clone());
            for query in scaler.plan().iter().flat_map(|p| p.asked()) {
                let id = query.id();
                self.by_query
                    .entry(id.clone())
                    .or_default()
                    .push(key.clone());
                self.answers.expect(&id);
                if query.is_ours() {
                    wanted.insert(id, query.clone());
                }
            }
        }
        let by_query = &self.by_query;
        self.answers.retain(|id| by_query.contains_key(id));
        for target in self.by_target.keys() {
            // A place for what is read; watched targets come by themselves.
            if !target.is_watched() && !self.targets.contains_key(target) {
                let known = Known {
                    target: Err(String::new()),
                    floor: 0,
                    read: None,
                    reading: false,
                };
                self.targets.insert(target.clone(), known);
            }
        }
        self.conflicts();
        self.dirty.extend(self.scalers.keys().cloned());
        self.parts.metrics.scalers.set(self.scalers.len() as i64);
        self.parts.stream_wanted.send_if_modified(|old| {
            let changed = **old != wanted;
            if changed {
                *old = Arc::new(wanted);
            }
            changed
        });
    }

    fn conflicts(&mut self) {
        let same = |a: &TargetKey, b: &TargetKey| {
            (a.group(), &a.kind, &a.name, &a.namespace)
                == (b.group(), &b.kind, &b.name, &b.namespace)
        };
        let mut found: Vec<(Key, Option<(&'static str, String)>)> = Vec::new();
        for (target, keys) in &self.by_target {
            let hpa = self.hpas.iter().find(|(_, t)| same(t, target));
            let age = |k: &Key| {
                (
                    self.scalers.get(k).and_then(|s| s.object.created),
                    k.clone(),
                )
            };
            let oldest = keys.iter().min_by_key(|k| age(k));
            for key in keys {
                let conflict = match (hpa, oldest) {
                    (Some(((_, name), _)), _) => Some((
                        "HorizontalPodAutoscaler",
                        format!(
                            "HorizontalPodAutoscaler {name} scales the same target; delete one of the two"
                        ),
                    )),
                    (None, Some(oldest)) if oldest != key => Some((
                        "EbpfScaler",
                        format!(
                            "EbpfScaler {} scales the same target and is older; delete one of the two",
                            oldest.1
                        ),
                    )),
                    _ => None,
                };
                found.push((key.clone(), conflict));
            }
        }
        for (key, conflict) in found {
            if let Some(scaler) = self.scalers.get_mut(&key) {
                scaler.set_conflict(conflict);
            }
        }
    }
}
