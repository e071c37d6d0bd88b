//! The pods of this node and their slots: a state machine fed with cgroup changes and slot readings, which
//! gives samples. It knows no file system, no clock and no network.

mod parts;
mod pod;
mod quarantine;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_scaler_proto::PodSample;

use super::cgroup;
use super::demand::Division;
use super::kernel::Kernel;
use super::preemptors::{PERIOD, rank};
use super::probes::{Culprit, Slot};
use super::sample;
use pod::{Claimed, Pod};
pub use quarantine::QUARANTINE;
use quarantine::Quarantined;

/// How long a slot that nothing should count in any more is still read: packets in flight, a task being
/// switched out on another CPU.
pub const LINGER: Duration = Duration::from_secs(1);

/// What one reading of the slots gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Pods whose counters changed, and new ones.
    pub samples: Vec<PodSample>,
    /// The same of parts of pods, and those that have ended.
    pub parts: Vec<PodSample>,
    /// UIDs of pods whose cgroup is gone.
    pub gone: Vec<String>,
}

/// Numbers for the metrics. The first five are now, the others cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Pods that have a slot.
    pub measured: usize,
    /// Pods that found no free slot, and so are not reported.
    pub unmeasured: usize,
    /// Cgroups that count provisionally.
    pub quarantined: usize,
    /// Parts of pods that are counted apart.
    pub parts: usize,
    /// Pods of which more parts are wanted than there is room for.
    pub undivided: usize,
    /// Provisional slots whose counts became a pod's.
    pub claimed: u64,
    /// Provisional slots that no path explained.
    pub forgotten: u64,
    /// Cgroups that the kernel side refused to take.
    pub refused: u64,
    /// Changes of a slot after its pod's last sample.
    pub late: u64,
}

/// All pods of the node.
#[derive(Debug)]
pub struct Pods {
    pods: HashMap<Arc<str>, Pod>,
    by_slot: HashMap<Slot, Arc<str>>,
    by_cgroup: HashMap<u64, Arc<str>>,
    dirty: Vec<Arc<str>>,
    leaving: Vec<(Arc<str>, Pod)>,
    releasing: Vec<(Slot, Instant)>,
    unmeasured: BTreeSet<Arc<str>>,
    quarantine: HashMap<u64, Quarantined>,
    /// Cgroups of pods that the kernel side did not take.
    refused: BTreeSet<u64>,
    /// What is wanted apart, by pod UID, of pods that are not there yet too.
    wanted: HashMap<String, Division>,
    /// Slots whose division has changed, and whether ports of them are counted apart.
    unsettled: Vec<(Slot, bool)>,
    /// How many parts there are.
    parts: usize,
    /// Pods of which not all parts that are wanted found room.
    undivided: BTreeSet<Arc<str>>,
    /// When that was last tried.
    divided: Option<Instant>,
    next_epoch: u64,
    facts: Facts,
    /// UIDs of the pods whose requests inside TLS are counted.
    tls: BTreeSet<String>,
    /// When preemptors were last ranked.
    ranked: Option<Instant>,
}

impl Pods {
    /// No pods yet. Epochs are given out upward from `first_epoch`, which no earlier run reached.
    pub fn new(first_epoch: u64) -> Self {
        Self {
            pods: HashMap::new(),
            by_slot: HashMap::new(),
            by_cgroup: HashMap::new(),
            dirty: Vec::new(),
            leaving: Vec::new(),
            releasing: Vec::new(),
            unmeasured: BTreeSet::new(),
            quarantine: HashMap::new(),
            refused: BTreeSet::new(),
            wanted: HashMap::new(),
            unsettled: Vec::new(),
            parts: 0,
            undivided: BTreeSet::new(),
            divided: None,
            next_epoch: first_epoch,
            facts: Facts::default(),
            tls: BTreeSet::new(),
            ranked: None,
        }
    }

    /// Numbers for the metrics.
    pub fn facts(&self) -> Facts {
        Facts {
            measured: self.pods.len() - self.unmeasured.len(),
            unmeasured: self.unmeasured.len(),
            quarantined: self.quarantine.len(),
            parts: self.parts,
            undivided: self.undivided.len(),
            ..self.facts
        }
    }

    /// A cgroup of a pod exists. Returns the pod's UID as it is shared inside.
    pub fn added(
        &mut self,
        kernel: &mut dyn Kernel,
        uid: &str,
        path: &str,
        cgroup_id: u64,
        now: Instant,
    ) -> Arc<str> {
        let (uid, is_new): (Arc<str>, bool) = match self.pods.get_key_value(uid) {
            Some((uid, _)) => (uid.clone(), false),
            None => {
                let uid: Arc<str> = uid.into();
                let wanted = self.wanted.get(&*uid).cloned().unwrap_or_default();
                let pod = Pod::new(self.next_epoch, wanted);
                self.pods.insert(uid.clone(), pod);
                self.next_epoch += 1;
                (uid, true)
            }
        };
        let is_new_here = self.by_cgroup.insert(cgroup_id, uid.clone()).is_none();
        let provisional = self.provisional(kernel, cgroup_id, now);
        let container = cgroup::parse(path).and_then(|of| of.container);
        let container: Option<Arc<str>> = container.map(Into::into);
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.cgroups.insert(cgroup_id, container.clone());
        }
        self.claim(kernel, &uid, cgroup_id, provisional, now);
        // What was counted provisionally is in no part.
        let born = (is_new_here && provisional.is_none()).then_some((is_new, container));
        self.divide(kernel, &uid, born.as_ref(), now);
        self.mark(&uid);
        uid
    }

    /// Counts a cgroup for its pod, with what it has counted provisionally.
    fn claim(
        &mut self,
        kernel: &mut dyn Kernel,
        uid: &Arc<str>,
        cgroup_id: u64,
        provisional: Option<Slot>,
        now: Instant,
    ) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let mut becomes_the_pods = false;
        if pod.slot.is_none() && provisional.is_some() {
            // Its counts need not be moved when it simply becomes the pod's.
            pod.slot = provisional;
            becomes_the_pods = true;
        }
        self.give_slot(kernel, uid);
        let assigned = self.assign(kernel, uid, cgroup_id);
        let (Some(slot), Some(pod)) = (provisional, self.pods.get_mut(uid)) else {
            return;
        };
        if assigned {
            self.quarantine.remove(&cgroup_id);
            self.facts.claimed += 1;
            self.by_slot.insert(slot, uid.clone());
            if pod.slot != Some(slot) {
                pod.claimed.push(Claimed::provisional(slot, now));
            }
        } else if becomes_the_pods {
            // Refused: the slot is still the quarantine's, to be claimed later or forgotten.
            pod.slot = None;
            self.by_slot.remove(&slot);
            self.give_slot(kernel, uid);
        }
    }

    /// A cgroup is gone; with a pod's own directory, the pod.
    pub fn removed(
        &mut self,
        kernel: &mut dyn Kernel,
        cgroup_id: u64,
        is_pod_dir: bool,
        now: Instant,
    ) {
        let Some(uid) = self.by_cgroup.remove(&cgroup_id) else {
            return;
        };
        self.refused.remove(&cgroup_id);
        kernel.unassign(cgroup_id);
        let Some(pod) = self.pods.get_mut(&uid) else {
            return;
        };
        pod.cgroups.remove(&cgroup_id);
        if !is_pod_dir && !pod.cgroups.is_empty() {
            self.divide(kernel, &uid, None, now);
            return;
        }
        if let Some(mut pod) = self.pods.remove(&uid) {
            for (cgroup_id, _) in pod.cgroups.drain() {
                self.by_cgroup.remove(&cgroup_id);
                self.refused.remove(&cgroup_id);
                kernel.unassign(cgroup_id);
            }
            self.unmeasured.remove(&uid);
            self.undivided.remove(&uid);
            self.leaving.push((uid, pod));
        }
    }

    /// Of these pods requests inside TLS are counted from now on, and of no others.
    pub fn count_tls(&mut self, kernel: &mut dyn Kernel, uids: BTreeSet<String>) {
        self.tls = uids;
        for (uid, pod) in &self.pods {
            for slot in pod.slots() {
                kernel.count_tls(slot, self.tls.contains(&**uid));
            }
        }
    }

    /// CPU throttling of a pod so far, which comes from elsewhere than the programs.
    pub fn throttled(&mut self, uid: &Arc<str>, micros: u64) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.throttled_micros = micros;
            self.mark(&uid.clone());
        }
    }

    /// Reads what changed since the last call.
    pub fn read(&mut self, kernel: &mut dyn Kernel, now: Instant) -> Changes {
        self.divide_the_undivided(kernel, now);
        // Before anything is read: what a part has counted then is all that is its own from now on.
        kernel.settle(&std::mem::take(&mut self.unsettled));
        for slot in kernel.changed() {
            match self.by_slot.get(&slot).cloned() {
                Some(uid) => self.mark_slot(&uid, slot),
                None if self.releasing.iter().any(|(s, _)| *s == slot) => self.facts.late += 1,
                None => {}
            }
        }
        self.look_after_quarantine(kernel, now);
        self.rank_preemptors(kernel, now);
        let mut changes = Changes::default();
        for (uid, pod) in std::mem::take(&mut self.leaving) {
            self.bid_farewell(kernel, &uid, pod, now, &mut changes);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for uid in dirty.drain(..) {
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.dirty = false;
                if let Some(reading) = pod.read(kernel) {
                    changes
                        .samples
                        .push(sample::of(&uid, pod.epoch, &reading, &pod.preemptors));
                    pod.read_parts(kernel, &uid, &mut changes.parts);
                }
            }
        }
        // Keeps its capacity: a busy node fills it on every reading.
        self.dirty = dirty;
        self.absorb_claimed(kernel, now);
        self.release_quiet(kernel, now);
        changes
    }

    /// Looks now and then behind whom each pod's threads waited; news of it is sent as a change.
    fn rank_preemptors(&mut self, kernel: &dyn Kernel, now: Instant) {
        let period = now.saturating_duration_since(*self.ranked.get_or_insert(now));
        if period < PERIOD {
            return;
        }
        self.ranked = Some(now);
        for (uid, pod) in &mut self.pods {
            let waited = pod.slots().flat_map(|slot| kernel.take_culprits(slot));
            let known = waited.filter_map(|(culprit, nanos)| match culprit {
                Culprit::System => Some((None, nanos)),
                // Slots of pods that have gone in the meantime name nobody any more.
                Culprit::Slot(slot) => {
                    let other = self.by_slot.get(&slot).filter(|other| *other != uid)?;
                    Some((Some(other.to_string()), nanos))
                }
            });
            let preemptors = rank(known, period);
            if preemptors != pod.preemptors {
                pod.preemptors = preemptors;
                if !pod.dirty {
                    pod.dirty = true;
                    self.dirty.push(uid.clone());
                }
            }
        }
    }

    fn bid_farewell(
        &mut self,
        kernel: &mut dyn Kernel,
        uid: &Arc<str>,
        mut pod: Pod,
        now: Instant,
        changes: &mut Changes,
    ) {
        if let Some(reading) = pod.read(kernel) {
            changes
                .samples
                .push(sample::of(uid, pod.epoch, &reading, &pod.preemptors));
            self.end_parts(kernel, &mut pod, now);
            pod.read_parts(kernel, uid, &mut changes.parts);
            // A static pod comes back under the same UID: its new epoch says all.
            if !self.pods.contains_key(uid) {
                changes.gone.push(uid.to_string());
            }
        }
        for slot in pod.slots() {
            self.by_slot.remove(&slot);
            self.releasing.push((slot, now + LINGER));
        }
    }

    /// Makes a pod part of the next reading.
    fn mark(&mut self, uid: &Arc<str>) {
        if let Some(pod) = self.pods.get_mut(uid)
            && !pod.dirty
        {
            pod.dirty = true;
            self.dirty.push(uid.clone());
        }
    }

    fn give_slot(&mut self, kernel: &mut dyn Kernel, uid: &Arc<str>) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        if pod.slot.is_none() {
            pod.slot = kernel.allocate();
        }
        match pod.slot {
            Some(slot) => {
                if self.tls.contains(&**uid) {
                    kernel.count_tls(slot, true);
                }
                self.by_slot.insert(slot, uid.clone());
                self.unmeasured.remove(uid);
            }
            None => {
                if self.unmeasured.insert(uid.clone()) {
                    tracing::warn!(%uid, "no free slot, the pod is not measured; raise --max-pods");
                }
            }
        }
    }

    fn assign(&mut self, kernel: &mut dyn Kernel, uid: &str, cgroup_id: u64) -> bool {
        let pod = self.pods.get(uid);
        let Some(slot) = pod.and_then(|pod| pod.slot_of_cgroup(cgroup_id)) else {
            return false;
        };
        match kernel.assign(cgroup_id, slot) {
            Ok(()) => {
                self.refused.remove(&cgroup_id);
                true
            }
            Err(error) => {
                // It is tried again while it counts provisionally, but told once.
                if self.refused.insert(cgroup_id) {
                    self.facts.refused += 1;
                    tracing::warn!(%uid, cgroup_id, %error, "the cgroup is not measured");
                }
                false
            }
        }
    }

    fn absorb_claimed(&mut self, kernel: &mut dyn Kernel, now: Instant) {
        if self.by_slot.len() == self.pods.len() - self.unmeasured.len() + self.parts {
            return;
        }
        let mut absorbed = Vec::new();
        for (uid, pod) in &mut self.pods {
            let is_over = |c: &mut Claimed| c.is_over(&*kernel, now);
            for claimed in pod.claimed.extract_if(.., is_over) {
                let counted = kernel.read(claimed.slot);
                pod.past.get_or_insert_default().absorb(&counted);
                absorbed.push((claimed.slot, uid.clone()));
            }
        }
        for (slot, uid) in absorbed {
            self.by_slot.remove(&slot);
            kernel.release(slot);
            // Its gauge no longer adds to the pod's.
            self.mark(&uid);
        }
    }

    /// Gives back the slots of pods that are gone, to those that wait for one.
    fn release_quiet(&mut self, kernel: &mut dyn Kernel, now: Instant) {
        let before = self.releasing.len();
        for (slot, _) in self.releasing.extract_if(.., |(_, quiet)| *quiet <= now) {
            kernel.release(slot);
        }
        if self.releasing.len() == before {
            return;
        }
        for uid in self.unmeasured.clone() {
            self.give_slot(kernel, &uid);
            let Some(pod) = self.pods.get(&uid).filter(|pod| pod.slot.is_some()) else {
                return;
            };
            let cgroups: Vec<u64> = pod.cgroups.keys().copied().collect();
            for cgroup_id in cgroups {
                self.assign(kernel, &uid, cgroup_id);
            }
            self.divide(kernel, &uid, None, now);
            self.mark(&uid);
        }
    }
}
