//! Parts of pods that are counted apart: containers, local ports, and containers' ports. Each has a slot of its own,
//! and the pod is the sum of all. It decides which parts there are, never who wants them.
//!
//! A port is counted apart in the rest of the pod and in each container that is counted apart, or nowhere; so parts
//! that share a port or a container always add up to all of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_scaler_proto as proto;

use super::Pods;
use super::pod::{Claimed, Pod};
use crate::agent::demand::Division;
use crate::agent::kernel::Kernel;
use crate::agent::probes::Slot;

/// What found no room is tried again so often.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Which part of its pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// None: what is in no container that is counted apart.
    container: Option<Arc<str>>,
    /// None: what is at no port that is counted apart.
    port: Option<u16>,
}

impl Key {
    pub(super) fn on_the_wire(&self, part: &Part, ended: bool) -> proto::Part {
        proto::Part {
            container_id: self.container.as_deref().unwrap_or_default().to_owned(),
            port: self.port.unwrap_or_default().into(),
            from_birth: part.from_birth,
            ended,
            gone: part.gone,
        }
    }
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) slot: Slot,
    pub(super) epoch: u64,
    pub(super) from_birth: bool,
    /// Its container or pod has gone.
    pub(super) gone: bool,
    pub(super) dirty: bool,
}

/// What has just begun: the whole pod or not, and in it a container.
pub(super) type Born = (bool, Option<Arc<str>>);

impl Pod {
    fn ports(&self) -> BTreeSet<u16> {
        let rest = self.parts.keys().filter(|key| key.container.is_none());
        rest.filter_map(|key| key.port).collect()
    }

    fn containers(&self) -> BTreeSet<Arc<str>> {
        let whole = self.parts.keys().filter(|key| key.port.is_none());
        whole.filter_map(|key| key.container.clone()).collect()
    }

    /// The containers that are to be counted apart.
    fn wanted_containers(&self) -> BTreeSet<Arc<str>> {
        if !self.wanted.containers {
            return BTreeSet::new();
        }
        self.cgroups.values().flatten().cloned().collect()
    }

    /// The slot in which what is in a container and at no port of its own counts.
    pub(super) fn slot_of(&self, container: Option<&Arc<str>>) -> Option<Slot> {
        let key = Key {
            container: container.cloned(),
            port: None,
        };
        self.parts.get(&key).map(|part| part.slot).or(self.slot)
    }
}

impl Pods {
    /// Whether this is what is wanted apart.
    pub fn wants(&self, wanted: &HashMap<String, Division>) -> bool {
        self.wanted == *wanted
    }

    /// What is wanted apart from now on, by pod UID.
    pub fn want(
        &mut self,
        kernel: &mut dyn Kernel,
        wanted: HashMap<String, Division>,
        now: Instant,
    ) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        let lapsed = before.keys().filter(|uid| !self.wanted.contains_key(*uid));
        let changed: Vec<Arc<str>> = lapsed
            .chain(self.wanted.keys())
            .filter_map(|uid| Some(self.pods.get_key_value(uid.as_str())?.0.clone()))
            .collect();
        for uid in changed {
            let wanted = self.wanted.get(&*uid).cloned().unwrap_or_default();
            if let Some(pod) = self.pods.get_mut(&uid)
                && pod.wanted != wanted
            {
                pod.wanted = wanted;
                self.divide(kernel, &uid, None, now);
            }
        }
    }

    /// Tries again where there was no room.
    pub(super) fn divide_the_undivided(&mut self, kernel: &mut dyn Kernel, now: Instant) {
        let tried = *self.divided.get_or_insert(now);
        if self.undivided.is_empty() || now.saturating_duration_since(tried) < TRY_AGAIN {
            return;
        }
        self.divided = Some(now);
        for uid in self.undivided.clone() {
            self.divide(kernel, &uid, None, now);
        }
    }

    /// Brings the parts of a pod to what is wanted. `born` has counted nothing before.
    pub(super) fn divide(
        &mut self,
        kernel: &mut dyn Kernel,
        uid: &Arc<str>,
        born: Option<&Born>,
        now: Instant,
    ) {
        let Some(mut pod) = self.pods.remove(uid) else {
            return;
        };
        let all = pod.wanted == Division::default() && pod.parts.is_empty()
            || self.divide_pod(kernel, uid, &mut pod, born, now);
        let news = !pod.ended.is_empty() || pod.parts.values().any(|part| part.dirty);
        self.pods.insert(uid.clone(), pod);
        if news {
            self.mark(uid);
        }
        if all {
            self.undivided.remove(uid);
        } else if self.undivided.insert(uid.clone()) {
            tracing::warn!(%uid, "no room to count all parts of the pod apart that are wanted");
        }
    }

    /// False if not all that is wanted found room.
    fn divide_pod(
        &mut self,
        kernel: &mut dyn Kernel,
        uid: &Arc<str>,
        pod: &mut Pod,
        born: Option<&Born>,
        now: Instant,
    ) -> bool {
        let Some(whole) = pod.slot else {
            return pod.wanted == Division::default();
        };
        let wanted = pod.wanted_containers();
        let ports = pod.wanted.ports.clone();
        let is_over = |key: &Key| {
            key.port.is_some_and(|port| !ports.contains(&port))
                || key.container.as_ref().is_some_and(|c| !wanted.contains(c))
        };
        // Ports first: they are found by their container's part.
        let over = pod.parts.keys().rev().filter(|key| is_over(key));
        let over: Vec<Key> = over.cloned().collect();
        let mut changed = !over.is_empty();
        for key in &over {
            self.end_part(kernel, pod, key, now);
        }
        let mut all = true;
        let present = pod.containers();
        for container in wanted.difference(&present) {
            let key = |port| Key {
                container: Some(container.clone()),
                port,
            };
            let of_ports = pod.ports().into_iter().map(|port| key(Some(port)));
            let keys = std::iter::once(key(None)).chain(of_ports).collect();
            let made = self.make_parts(kernel, uid, pod, (whole, keys), born);
            (changed, all) = (changed || made, all && made);
        }
        let present = pod.ports();
        for port in ports.difference(&present) {
            let key = |container| Key {
                container,
                port: Some(*port),
            };
            let of_containers = pod.containers().into_iter().map(|c| key(Some(c)));
            let keys = std::iter::once(key(None)).chain(of_containers).collect();
            let made = self.make_parts(kernel, uid, pod, (whole, keys), born);
            (changed, all) = (changed || made, all && made);
        }
        if changed {
            for (cgroup, container) in &pod.cgroups {
                let slot = pod.slot_of(container.as_ref()).unwrap_or(whole);
                // It is in the map already, so this only replaces.
                if !self.refused.contains(cgroup) && kernel.assign(*cgroup, slot).is_err() {
                    self.refused.insert(*cgroup);
                    self.facts.refused += 1;
                }
            }
            let has_ports = !pod.ports().is_empty();
            self.unsettled.push((whole, has_ports));
            let parts = pod.parts.iter();
            self.unsettled
                .extend(parts.map(|(key, part)| (part.slot, has_ports && key.port.is_none())));
        }
        all
    }

    /// Makes parts, all of them or none; whether it did.
    fn make_parts(
        &mut self,
        kernel: &mut dyn Kernel,
        uid: &Arc<str>,
        pod: &mut Pod,
        (whole, keys): (Slot, Vec<Key>),
        born: Option<&Born>,
    ) -> bool {
        let mut slots: Vec<Slot> = Vec::with_capacity(keys.len());
        // Where a port counts unless it is apart: its container's part comes before, or has been there.
        let of = |key: &Key, slots: &[Slot]| {
            let is_whole = |k: &Key| k.port.is_none() && k.container == key.container;
            let made = keys.iter().position(is_whole);
            let made = made.and_then(|i| slots.get(i).copied());
            made.or_else(|| pod.slot_of(key.container.as_ref()))
        };
        let mut room = true;
        for key in &keys {
            let Some(slot) = kernel.allocate_part(whole) else {
                room = false;
                break;
            };
            slots.push(slot);
            if let (Some(port), Some(of)) = (key.port, of(key, &slots)) {
                room &= kernel.divide(of, port, Some(slot)).is_ok();
            }
        }
        if !room {
            for (key, slot) in keys.iter().zip(&slots) {
                if let (Some(port), Some(of)) = (key.port, of(key, &slots)) {
                    let _ = kernel.divide(of, port, None);
                }
                kernel.release(*slot);
            }
            return false;
        }
        for (key, slot) in keys.into_iter().zip(slots) {
            let from_birth = born.is_some_and(|(whole, container)| {
                *whole || container.is_some() && *container == key.container
            });
            self.by_slot.insert(slot, uid.clone());
            self.parts += 1;
            let part = Part {
                slot,
                epoch: self.next_epoch,
                from_birth,
                gone: false,
                dirty: true,
            };
            self.next_epoch += 1;
            pod.parts.insert(key, part);
        }
        true
    }

    /// A part is no longer counted apart; what it does from now on counts where it would without.
    fn end_part(&mut self, kernel: &mut dyn Kernel, pod: &mut Pod, key: &Key, now: Instant) {
        let of = pod.slot_of(key.container.as_ref());
        let Some(mut part) = pod.parts.remove(key) else {
            return;
        };
        let is_own = |c: &Option<Arc<str>>| *c == key.container;
        part.gone = key.container.is_some() && !pod.cgroups.values().any(is_own);
        if let (Some(port), Some(of)) = (key.port, of) {
            let _ = kernel.divide(of, port, None);
        }
        self.parts -= 1;
        self.unsettled.push((part.slot, false));
        pod.claimed.push(Claimed::part(part.slot, now));
        pod.ended.push((key.clone(), part));
    }

    /// The pod has gone, and its parts with it; their slots stay the pod's to be released.
    pub(super) fn end_parts(&mut self, kernel: &mut dyn Kernel, pod: &mut Pod, now: Instant) {
        let keys: Vec<Key> = pod.parts.keys().rev().cloned().collect();
        for key in keys {
            self.end_part(kernel, pod, &key, now);
        }
        for (_, part) in &mut pod.ended {
            part.gone = true;
        }
    }

    /// Makes a pod part of the next reading, because of one of its slots.
    pub(super) fn mark_slot(&mut self, uid: &Arc<str>, slot: Slot) {
        if let Some(pod) = self.pods.get_mut(uid)
            && !pod.parts.is_empty()
            && let Some(part) = pod.parts.values_mut().find(|part| part.slot == slot)
        {
            part.dirty = true;
        }
        self.mark(uid);
    }
}
