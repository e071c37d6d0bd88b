//! A scripted kernel: keeps slots, quarantine and generations as the real one promises to, and counts what
//! a test tells it to. It never runs on its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use ebpf_scaler_collector::agent::kernel::Kernel;
use ebpf_scaler_collector::agent::probes::{
    Culprit, Family, ProbeError, Reading, Slot, Statistics,
};
use ebpf_scaler_collector::agent::tls::{FileId, Library};

#[derive(Default)]
struct Place {
    generation: u32,
    taken: bool,
    reading: Reading,
    culprits: Vec<(Culprit, u64)>,
}

#[derive(Default)]
struct State {
    places: Vec<Place>,
    assigned: BTreeMap<u64, Slot>,
    quarantine: BTreeMap<u64, Slot>,
    /// Local ports that count in a slot of their own, and those of which sockets know by now.
    ports: BTreeMap<(Slot, u16), Slot>,
    settled: BTreeSet<Slot>,
    part_slots: usize,
    changed: BTreeSet<Slot>,
    wanted: BTreeSet<Family>,
    broken: BTreeSet<Family>,
    /// Slots whose requests inside TLS count.
    tls: BTreeSet<Slot>,
    /// The map of cgroups has no room for more.
    full: bool,
    /// Requests that found no slot, or one that is somebody else's now.
    lost: u64,
}

/// Clones share the state, so that a test keeps one while the agent owns another.
#[derive(Clone)]
pub struct FakeKernel(Arc<Mutex<State>>);

impl FakeKernel {
    pub fn new(slots: usize) -> Self {
        let mut state = State::default();
        state.places.resize_with(slots, Place::default);
        state.part_slots = slots;
        Self(Arc::new(Mutex::new(state)))
    }

    /// The cgroup serves requests; the kernel may not know the cgroup yet.
    pub fn serve(&self, cgroup_id: u64, requests: u64) {
        let mut state = self.0.lock().unwrap();
        let slot = match state
            .assigned
            .get(&cgroup_id)
            .or(state.quarantine.get(&cgroup_id))
        {
            Some(slot) => Some(*slot),
            None => {
                let slot = state.allocate();
                if let Some(slot) = slot {
                    state.quarantine.insert(cgroup_id, slot);
                }
                slot
            }
        };
        match slot.filter(|slot| state.is_current(*slot)) {
            Some(slot) => {
                let reading = &mut state.places[slot.index as usize].reading;
                reading.counters.requests += requests;
                reading.request_latency[5] += requests;
                state.changed.insert(slot);
            }
            None => state.lost += requests,
        }
    }

    /// A cgroup's old socket at a local port serves requests.
    pub fn serve_at(&self, cgroup_id: u64, port: u16, requests: u64) {
        let of = self.0.lock().unwrap().assigned[&cgroup_id];
        let settled = self.0.lock().unwrap().settled.contains(&of);
        self.serve_in(of, port, requests, settled);
    }

    /// A cgroup's new socket at a local port serves requests.
    pub fn serve_new_at(&self, cgroup_id: u64, port: u16, requests: u64) {
        let of = self.0.lock().unwrap().assigned[&cgroup_id];
        self.serve_in(of, port, requests, true);
    }

    fn serve_in(&self, of: Slot, port: u16, requests: u64, looks: bool) {
        let mut state = self.0.lock().unwrap();
        let apart = state.ports.get(&(of, port)).copied();
        let slot = apart.filter(|_| looks).unwrap_or(of);
        assert!(state.is_current(slot), "counted in a stale slot: {slot:?}");
        let place = &mut state.places[slot.index as usize];
        place.reading.counters.requests += requests;
        state.changed.insert(slot);
    }

    /// At most so many parts from now on.
    pub fn set_part_slots(&self, slots: usize) {
        self.0.lock().unwrap().part_slots = slots;
    }

    /// How many ports count in a slot of their own.
    pub fn ports(&self) -> usize {
        self.0.lock().unwrap().ports.len()
    }

    pub fn set_in_flight(&self, cgroup_id: u64, requests: u64) {
        let mut state = self.0.lock().unwrap();
        let slot = state.assigned[&cgroup_id];
        state.places[slot.index as usize]
            .reading
            .counters
            .requests_in_flight = requests;
        state.changed.insert(slot);
    }

    /// Threads of a cgroup wait behind another one's, or behind the node itself.
    pub fn wait_behind(&self, cgroup_id: u64, other: Option<u64>, nanos: u64) {
        let mut state = self.0.lock().unwrap();
        let culprit = other.map_or(Culprit::System, |id| Culprit::Slot(state.assigned[&id]));
        let slot = state.assigned[&cgroup_id];
        let place = &mut state.places[slot.index as usize];
        place.culprits.push((culprit, nanos));
    }

    pub fn break_family(&self, family: Family) {
        self.0.lock().unwrap().broken.insert(family);
    }

    /// From now on cgroups are refused, or no longer.
    pub fn set_full(&self, full: bool) {
        self.0.lock().unwrap().full = full;
    }

    pub fn slots_taken(&self) -> usize {
        self.0
            .lock()
            .unwrap()
            .places
            .iter()
            .filter(|p| p.taken)
            .count()
    }

    /// How many pods' requests inside TLS are counted.
    pub fn tls(&self) -> usize {
        self.0.lock().unwrap().tls.len()
    }

    pub fn lost(&self) -> u64 {
        self.0.lock().unwrap().lost
    }

    pub fn wanted(&self) -> BTreeSet<Family> {
        self.0.lock().unwrap().wanted.clone()
    }

    pub fn assigned(&self) -> usize {
        self.0.lock().unwrap().assigned.len()
    }
}

impl State {
    fn allocate(&mut self) -> Option<Slot> {
        let (index, place) = self.places.iter_mut().enumerate().find(|(_, p)| !p.taken)?;
        place.taken = true;
        place.generation += 1;
        place.reading = Reading::default();
        place.culprits.clear();
        Some(Slot {
            index: index as u32,
            generation: place.generation,
        })
    }

    fn is_current(&self, slot: Slot) -> bool {
        let place = &self.places[slot.index as usize];
        place.taken && place.generation == slot.generation
    }
}

impl Kernel for FakeKernel {
    fn degraded(&self) -> Vec<(Family, String)> {
        let broken = self.0.lock().unwrap().broken.clone();
        broken
            .into_iter()
            .map(|f| (f, "scripted".to_owned()))
            .collect()
    }

    fn set_wanted(&mut self, families: &BTreeSet<Family>) -> Vec<(Family, String)> {
        self.0.lock().unwrap().wanted.clone_from(families);
        self.degraded()
    }

    fn active(&self) -> BTreeSet<Family> {
        let state = self.0.lock().unwrap();
        state.wanted.difference(&state.broken).copied().collect()
    }

    fn allocate(&mut self) -> Option<Slot> {
        self.0.lock().unwrap().allocate()
    }

    fn release(&mut self, slot: Slot) {
        let mut state = self.0.lock().unwrap();
        assert!(state.is_current(slot), "released twice: {slot:?}");
        state.places[slot.index as usize].taken = false;
        state.assigned.retain(|_, s| *s != slot);
        assert!(
            state
                .ports
                .iter()
                .all(|((of, _), part)| *of != slot && *part != slot),
            "a port still leads to {slot:?}"
        );
    }

    fn assign(&mut self, cgroup_id: u64, slot: Slot) -> Result<(), ProbeError> {
        let mut state = self.0.lock().unwrap();
        assert!(state.is_current(slot), "assigned to a stale slot: {slot:?}");
        if state.full && !state.assigned.contains_key(&cgroup_id) {
            return Err(ProbeError::Kernel {
                act: "assign a cgroup to a slot".to_owned(),
                reason: "scripted: no room".to_owned(),
            });
        }
        state.quarantine.remove(&cgroup_id);
        state.assigned.insert(cgroup_id, slot);
        Ok(())
    }

    fn allocate_part(&mut self, pod: Slot) -> Option<Slot> {
        let mut state = self.0.lock().unwrap();
        assert!(state.is_current(pod), "a part of nothing: {pod:?}");
        state.part_slots = state.part_slots.checked_sub(1)?;
        state.allocate()
    }

    fn divide(&mut self, slot: Slot, port: u16, part: Option<Slot>) -> Result<(), ProbeError> {
        let mut state = self.0.lock().unwrap();
        match part {
            Some(part) => {
                assert!(state.is_current(slot) && state.is_current(part));
                state.ports.insert((slot, port), part);
            }
            None => drop(state.ports.remove(&(slot, port))),
        }
        Ok(())
    }

    fn settle(&mut self, slots: &[(Slot, bool)]) {
        let mut state = self.0.lock().unwrap();
        for (slot, ports) in slots {
            let divided = state.ports.keys().any(|(of, _)| of == slot);
            assert!(*ports || !divided, "sockets would not look: {slot:?}");
            state.settled.insert(*slot);
        }
    }

    fn unassign(&mut self, cgroup_id: u64) {
        self.0.lock().unwrap().assigned.remove(&cgroup_id);
    }

    fn quarantined(&mut self) -> Vec<(u64, Slot)> {
        let state = self.0.lock().unwrap();
        state
            .quarantine
            .iter()
            .map(|(id, slot)| (*id, *slot))
            .collect()
    }

    fn forget_quarantined(&mut self, cgroup_id: u64) {
        let mut state = self.0.lock().unwrap();
        if let Some(slot) = state.quarantine.remove(&cgroup_id) {
            state.places[slot.index as usize].taken = false;
        }
    }

    fn changed(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.0.lock().unwrap().changed)
            .into_iter()
            .collect()
    }

    fn read(&self, slot: Slot) -> Reading {
        let state = self.0.lock().unwrap();
        if state.is_current(slot) {
            state.places[slot.index as usize].reading.clone()
        } else {
            Reading::default()
        }
    }

    fn take_culprits(&self, slot: Slot) -> Vec<(Culprit, u64)> {
        let mut state = self.0.lock().unwrap();
        std::mem::take(&mut state.places[slot.index as usize].culprits)
    }

    fn probe(&mut self, library: &Library) -> Result<(), String> {
        Err(format!("scripted: no probes of {}", library.path))
    }

    fn spare(&mut self, _: FileId) {}

    fn clear_tls_sessions(&mut self) {}

    fn count_tls_of_all(&mut self, _: bool) {}

    fn count_tls(&mut self, slot: Slot, counted: bool) {
        let mut state = self.0.lock().unwrap();
        assert!(state.is_current(slot), "a stale slot: {slot:?}");
        if counted {
            state.tls.insert(slot);
        } else {
            state.tls.remove(&slot);
        }
    }

    fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}
