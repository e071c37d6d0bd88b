//! The pods of this node and their slots: a state machine fed with cgroup changes and slot readings, which
//! gives samples. It knows no file system, no clock and no network.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_scaler_proto::{PodSample, Preemptor};

use super::kernel::Kernel;
use super::preemptors::{PERIOD, rank};
use super::probes::{Culprit, Reading, Slot};
use super::sample;

/// How long a cgroup may count in a provisional slot before its path must be known.
pub const QUARANTINE: Duration = Duration::from_secs(10);
/// How long a slot that nothing should count in any more is still read: packets in flight, a task being
/// switched out on another CPU.
pub const LINGER: Duration = Duration::from_secs(1);

/// What one reading of the slots gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Pods whose counters changed, and new ones.
    pub samples: Vec<PodSample>,
    /// UIDs of pods whose cgroup is gone.
    pub gone: Vec<String>,
}

/// Numbers for the metrics. The first three are now, the others cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Pods that have a slot.
    pub measured: usize,
    /// Pods that found no free slot, and so are not reported.
    pub unmeasured: usize,
    /// Cgroups that count provisionally.
    pub quarantined: usize,
    /// Provisional slots whose counts became a pod's.
    pub claimed: u64,
    /// Provisional slots that no path explained.
    pub forgotten: u64,
    /// Cgroups that the kernel side refused to take.
    pub refused: u64,
    /// Changes of a slot after its pod's last sample.
    pub late: u64,
}

#[derive(Debug)]
struct Pod {
    epoch: u64,
    slot: Option<Slot>,
    /// Provisional slots whose counts are this pod's, until each is quiet and absorbed.
    claimed: Vec<(Slot, Instant)>,
    /// What absorbed slots had counted.
    past: Option<Box<Reading>>,
    throttled_micros: u64,
    preemptors: Vec<Preemptor>,
    cgroups: HashMap<u64, String>,
    dirty: bool,
}

#[derive(Debug)]
struct Quarantined {
    slot: Slot,
    since: Instant,
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
    next_epoch: u64,
    facts: Facts,
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
            next_epoch: first_epoch,
            facts: Facts::default(),
            ranked: None,
        }
    }

    /// Numbers for the metrics.
    pub fn facts(&self) -> Facts {
        Facts {
            measured: self.pods.len() - self.unmeasured.len(),
            unmeasured: self.unmeasured.len(),
            quarantined: self.quarantine.len(),
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
        let uid: Arc<str> = match self.pods.get_key_value(uid) {
            Some((uid, _)) => uid.clone(),
            None => {
                let uid: Arc<str> = uid.into();
                self.pods.insert(
                    uid.clone(),
                    Pod {
                        epoch: self.next_epoch,
                        slot: None,
                        claimed: Vec::new(),
                        past: None,
                        throttled_micros: 0,
                        preemptors: Vec::new(),
                        cgroups: HashMap::new(),
                        dirty: false,
                    },
                );
                self.next_epoch += 1;
                uid
            }
        };
        self.by_cgroup.insert(cgroup_id, uid.clone());
        let provisional = self.provisional(kernel, cgroup_id, now);
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.cgroups.insert(cgroup_id, path.to_owned());
        }
        self.claim(kernel, &uid, cgroup_id, provisional, now);
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
                pod.claimed.push((slot, now + LINGER));
            }
        } else if becomes_the_pods {
            // Refused: the slot is still the quarantine's, to be claimed later or forgotten.
            pod.slot = None;
            self.by_slot.remove(&slot);
            self.give_slot(kernel, uid);
        }
    }

    /// A cgroup is gone; with a pod's own directory, the pod.
    pub fn removed(&mut self, kernel: &mut dyn Kernel, cgroup_id: u64, is_pod_dir: bool) {
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
            return;
        }
        if let Some(mut pod) = self.pods.remove(&uid) {
            for (cgroup_id, _) in pod.cgroups.drain() {
                self.by_cgroup.remove(&cgroup_id);
                self.refused.remove(&cgroup_id);
                kernel.unassign(cgroup_id);
            }
            self.unmeasured.remove(&uid);
            self.leaving.push((uid, pod));
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
        for slot in kernel.changed() {
            match self.by_slot.get(&slot).cloned() {
                Some(uid) => self.mark(&uid),
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
            let slots = pod.slot.into_iter().chain(pod.claimed.iter().map(|c| c.0));
            let waited = slots.flat_map(|slot| kernel.take_culprits(slot));
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
        pod: Pod,
        now: Instant,
        changes: &mut Changes,
    ) {
        if let Some(reading) = pod.read(kernel) {
            changes
                .samples
                .push(sample::of(uid, pod.epoch, &reading, &pod.preemptors));
            // A static pod comes back under the same UID: its new epoch says all.
            if !self.pods.contains_key(uid) {
                changes.gone.push(uid.to_string());
            }
        }
        let slots = pod.slot.into_iter().chain(pod.claimed.iter().map(|c| c.0));
        for slot in slots {
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
        let Some(slot) = self.pods.get(uid).and_then(|pod| pod.slot) else {
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

    /// The provisional slot of a cgroup, if the kernel saw it before we did.
    fn provisional(
        &mut self,
        kernel: &mut dyn Kernel,
        cgroup_id: u64,
        now: Instant,
    ) -> Option<Slot> {
        self.refresh_quarantine(kernel, now);
        self.quarantine.get(&cgroup_id).map(|q| q.slot)
    }

    fn refresh_quarantine(&mut self, kernel: &mut dyn Kernel, now: Instant) {
        let listed = kernel.quarantined();
        self.quarantine
            .retain(|id, q| listed.iter().any(|(i, slot)| i == id && *slot == q.slot));
        for (cgroup_id, slot) in listed {
            self.quarantine
                .entry(cgroup_id)
                .or_insert(Quarantined { slot, since: now });
        }
    }

    /// Claims what has become known since, and forgets what stayed unknown.
    fn look_after_quarantine(&mut self, kernel: &mut dyn Kernel, now: Instant) {
        self.refresh_quarantine(kernel, now);
        let known: Vec<(u64, Arc<str>)> = self
            .quarantine
            .keys()
            .filter_map(|id| Some((*id, self.by_cgroup.get(id)?.clone())))
            .collect();
        for (cgroup_id, uid) in known {
            let path = self
                .pods
                .get(&uid)
                .and_then(|pod| pod.cgroups.get(&cgroup_id))
                .cloned()
                .unwrap_or_default();
            self.added(kernel, &uid, &path, cgroup_id, now);
        }
        let Facts { forgotten, .. } = &mut self.facts;
        self.quarantine.retain(|cgroup_id, quarantined| {
            let keep = now.saturating_duration_since(quarantined.since) < QUARANTINE;
            if !keep {
                kernel.forget_quarantined(*cgroup_id);
                *forgotten += 1;
            }
            keep
        });
    }

    fn absorb_claimed(&mut self, kernel: &mut dyn Kernel, now: Instant) {
        if self.by_slot.len() == self.pods.len() - self.unmeasured.len() {
            return;
        }
        let mut absorbed = Vec::new();
        for (uid, pod) in &mut self.pods {
            for (slot, _) in pod.claimed.extract_if(.., |(_, quiet)| *quiet <= now) {
                pod.past.get_or_insert_default().absorb(&kernel.read(slot));
                absorbed.push((slot, uid.clone()));
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
            self.mark(&uid);
        }
    }
}

impl Pod {
    /// All that is this pod's; none without a slot, for what is not measured is not zero.
    fn read(&self, kernel: &dyn Kernel) -> Option<Reading> {
        let mut total = kernel.read(self.slot?);
        for (slot, _) in &self.claimed {
            let claimed = kernel.read(*slot);
            total.absorb(&claimed);
            total.counters.requests_in_flight += claimed.counters.requests_in_flight;
        }
        if let Some(past) = &self.past {
            total.absorb(past);
        }
        total.counters.cpu_throttled_micros = self.throttled_micros;
        Some(total)
    }
}
