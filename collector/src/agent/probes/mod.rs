//! The user side of the BPF programs: loads and attaches them, hands out slots, reads counters. It knows
//! cgroup ids, never paths or pods, and never blocks on the kernel while reading.

mod btf;
mod culprits;
mod kernel;
mod memory;
mod parts;
mod pool;
mod reading;
mod release;
mod statistics;
mod tls;

use std::collections::{BTreeSet, HashMap};
use std::mem::offset_of;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use ebpf_scaler_common::record::{
    Control, PARTS, QUARANTINE, SlotRecord, generation_of, slot_of, slot_ref,
};
pub use ebpf_scaler_common::{Counters, Family, histogram};

pub use culprits::Culprit;
use kernel::Kernel;
use pool::Pool;
pub use reading::{Buckets, Reading};
pub use statistics::{ProgramCost, Statistics};

/// No more TCP sockets than these have state: half a KiB each.
const MAX_FLOWS: u64 = 65_536;
/// No more HTTP/2 connections than these are followed: 4 KiB each.
const MAX_HTTP2: u64 = 4096;
/// Provisional slots that lie ready in the kernel.
const QUARANTINE_AHEAD: usize = QUARANTINE as usize / 2;

/// The oldest Linux with which requests and network can be counted: it brought the helper `bpf_loop`.
pub const FLOOR: (u32, u32) = (5, 17);
/// The oldest Linux with which the run queue can be measured: it brought `sched_switch`'s fourth argument.
pub const RUN_QUEUE_FLOOR: (u32, u32) = (5, 18);

/// What the programs need to know when they are loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cgroup v2 directory whose descendants are pods, for example /sys/fs/cgroup/kubepods.
    pub cgroup: PathBuf,
    /// Requests to these local TCP ports are counted apart (metrics scrapes).
    pub excluded_ports: Vec<u16>,
    /// How many slots, thus pods, can be measured at once.
    pub max_pods: u32,
    /// Whether requests inside TLS may be counted, by uprobes.
    pub tls: bool,
}

/// Why the programs can not measure.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// This binary was built without the BPF object.
    #[error(
        "this binary was built without the BPF programs: run hack/setup/bpf.sh, then build again (or set EBPF_SCALER_BPF_OBJECT)"
    )]
    NoObject,
    /// An act on the kernel failed.
    #[error("{act}: {reason}")]
    Kernel {
        /// What was tried.
        act: String,
        /// What the kernel or the loader said.
        reason: String,
    },
}

/// One pod's place in the maps. A released slot's generation never comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// Position in the maps.
    pub index: u32,
    /// Tells this tenant from former ones.
    pub generation: u32,
}

/// The loaded programs. Dropping it detaches them; so does the end of the process, however it ends.
#[derive(Debug)]
pub struct Probes {
    kernel: Kernel,
    pool: Pool,
    degraded: Vec<(Family, String)>,
    /// Provisional slots that the kernel can still take.
    waiting: Vec<Slot>,
    /// Quarantined cgroups that the caller knows of.
    reported: HashMap<u64, Slot>,
    /// What provisional slots of which the caller never knew had counted, by the slot that took over.
    carried: HashMap<Slot, Box<Reading>>,
    slots_full: u64,
    forgotten_requests: u64,
    forgotten_cgroups: u64,
    epoch: u64,
}

impl Probes {
    /// Loads the programs and attaches those of requests and network, which must succeed.
    pub fn load(options: &Options) -> Result<Probes, ProbeError> {
        let mut kernel = Kernel::load(options).map_err(|error| release::explain(error, FLOOR))?;
        let mut degraded = Vec::new();
        if let Err(reason) = kernel.load_run_queue() {
            let reason = release::too_old(RUN_QUEUE_FLOOR).unwrap_or(reason);
            degraded.push((Family::RunQueue, reason));
        }
        if options.tls {
            if let Err(reason) = kernel.load_tls(tls::Kind::OpenSsl) {
                degraded.push((Family::Tls, reason));
            }
            // That these can not be had is said when a Go program is to be probed.
            let _ = kernel.load_tls(tls::Kind::Go);
        }
        if let Some(reason) = &kernel.no_destroy {
            let reason = format!("requests cut off by their connection stay in flight: {reason}");
            degraded.push((Family::Requests, reason));
        }
        let mut probes = Probes {
            kernel,
            pool: Pool::new(options.max_pods, PARTS, QUARANTINE),
            degraded,
            waiting: Vec::new(),
            reported: HashMap::new(),
            carried: HashMap::new(),
            slots_full: 0,
            forgotten_requests: 0,
            forgotten_cgroups: 0,
            epoch: 0,
        };
        probes.limit_sockets(MAX_FLOWS);
        probes.limit_http2(MAX_HTTP2);
        probes.refill();
        Ok(probes)
    }

    /// Lets no more TCP sockets than this have state; those that have it keep it. Others are counted by bytes only.
    pub fn limit_sockets(&self, limit: u64) {
        self.kernel
            .maps
            .control
            .store(0, offset_of!(Control, max_flows), limit);
    }

    /// Lets the requests of no more HTTP/2 connections than this be counted; those that are go on.
    pub fn limit_http2(&self, limit: u64) {
        self.kernel
            .maps
            .control
            .store(0, offset_of!(Control, max_http2), limit);
    }

    /// Families that can not be measured on this node, or not wholly, with a reason that a person can read.
    pub fn degraded(&self) -> Vec<(Family, String)> {
        self.degraded.clone()
    }

    /// Whether waits because of a CPU limit are told from others: the running kernel says it of each thread.
    pub fn tells_throttling(&self) -> bool {
        self.kernel.throttled.is_some()
    }

    /// Attaches and detaches what is optional (the run queue) to follow demand; returns what failed.
    pub fn set_wanted(&mut self, families: &BTreeSet<Family>) -> Vec<(Family, String)> {
        if !families.contains(&Family::Tls) {
            let (tls, ebpf, maps) = self.kernel.tls();
            tls.detach_all(ebpf, maps);
        }
        if !families.contains(&Family::RunQueue) {
            self.kernel.detach_run_queue();
            return Vec::new();
        }
        match self.kernel.attach_run_queue() {
            Ok(()) => Vec::new(),
            Err(reason) => vec![(Family::RunQueue, reason)],
        }
    }

    /// Families that are measured now.
    pub fn active(&self) -> BTreeSet<Family> {
        let mut active = BTreeSet::from([Family::Requests, Family::Network]);
        if self.kernel.run_queue_attached() {
            active.insert(Family::RunQueue);
        }
        if self.kernel.tls_statistics().attached() {
            active.insert(Family::Tls);
        }
        active
    }

    /// A zeroed slot of a new generation; None when all are taken, which is counted.
    pub fn allocate(&mut self) -> Option<Slot> {
        let slot = self.pool.take();
        match slot {
            Some(slot) => self.open(slot),
            None => self.slots_full += 1,
        }
        slot
    }

    /// Gives the slot back; cgroups still assigned to it become unknown.
    pub fn release(&mut self, slot: Slot) {
        if self.pool.put_back(slot) {
            self.close(slot);
            self.carried.remove(&slot);
            self.refill();
        }
    }

    /// Counts a cgroup in a slot; many cgroups may share one. Takes the cgroup out of quarantine: a provisional
    /// slot that [`Probes::quarantined`] has told of then belongs to the caller, who reads and releases it (or
    /// goes on using it as the pod's slot); one that came up since is added to this slot's readings.
    pub fn assign(&mut self, cgroup_id: u64, slot: Slot) -> Result<(), ProbeError> {
        let value = slot_ref(slot.index, slot.generation);
        let act = "assign a cgroup to a slot";
        self.kernel
            .maps
            .cgroups
            .insert(cgroup_id, value, 0)
            .map_err(|e| kernel::failed(act, &e))?;
        if let Ok(value) = self.kernel.maps.quarantine.get(&cgroup_id, 0) {
            let _ = self.kernel.maps.quarantine.remove(&cgroup_id);
            self.take_over(cgroup_id, slot, Slot::from_ref(value));
        }
        self.next_epoch();
        Ok(())
    }

    /// Settles whose a provisional slot is once its cgroup is assigned.
    fn take_over(&mut self, cgroup_id: u64, slot: Slot, provisional: Slot) {
        self.waiting.retain(|waiting| *waiting != provisional);
        if self.reported.remove(&cgroup_id) == Some(provisional) || provisional == slot {
            self.pool.claim(provisional);
        } else if self.pool.put_back(provisional) {
            self.close(provisional);
            let counted = self.read_record(provisional.index);
            self.carried.entry(slot).or_default().absorb(&counted);
        }
        self.refill();
    }

    /// Forgets a cgroup.
    pub fn unassign(&mut self, cgroup_id: u64) {
        let _ = self.kernel.maps.cgroups.remove(&cgroup_id);
        self.next_epoch();
    }

    /// Cgroups that were seen in the kernel before they were assigned, with the provisional slot that counts for them.
    pub fn quarantined(&mut self) -> Vec<(u64, Slot)> {
        let found: Vec<(u64, Slot)> = self
            .kernel
            .maps
            .quarantine
            .iter()
            .flatten()
            .map(|(cgroup_id, value)| (cgroup_id, Slot::from_ref(value)))
            .filter(|(_, slot)| self.pool.is_lent(*slot))
            .collect();
        if !found.is_empty() {
            self.waiting
                .retain(|waiting| !found.iter().any(|(_, slot)| slot == waiting));
            self.reported.extend(found.iter().copied());
            self.refill();
        }
        found
    }

    /// Drops a quarantined cgroup that nobody claimed; what it counted goes to the statistics.
    pub fn forget_quarantined(&mut self, cgroup_id: u64) {
        let Ok(value) = self.kernel.maps.quarantine.get(&cgroup_id, 0) else {
            return;
        };
        let _ = self.kernel.maps.quarantine.remove(&cgroup_id);
        self.reported.remove(&cgroup_id);
        let slot = Slot::from_ref(value);
        self.waiting.retain(|waiting| *waiting != slot);
        if self.pool.is_lent(slot) && self.pool.put_back(slot) {
            self.close(slot);
            self.forgotten_cgroups += 1;
            self.forgotten_requests += self.read_record(slot.index).counters.requests;
        }
        self.refill();
    }

    /// Slots that changed since the last call.
    pub fn changed(&mut self) -> Vec<Slot> {
        let dirty = &self.kernel.maps.dirty;
        let mut changed = Vec::new();
        for word in 0..dirty.elements() {
            let Some(bits) = dirty.words(word).first() else {
                continue;
            };
            // Most words of a large node are clean; a plain load leaves their cache line alone.
            if bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = bits.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let index = word * 64 + bits.trailing_zeros();
                bits &= bits - 1;
                let slot = Slot {
                    index,
                    generation: self.pool.generation(index),
                };
                if self.pool.is_current(slot) {
                    changed.push(slot);
                }
            }
        }
        changed
    }

    /// What a slot has counted; all zero for a slot that is no longer this generation's.
    pub fn read(&self, slot: Slot) -> Reading {
        if !self.pool.is_current(slot) {
            return Reading::default();
        }
        let mut reading = self.read_record(slot.index);
        if let Some(carried) = self.carried.get(&slot) {
            reading.absorb(carried);
        }
        reading
    }

    /// Behind whom this slot's threads waited since the last call, longest first. It ranks: what those have who had
    /// to share a place in the map is not all there.
    pub fn take_culprits(&self, slot: Slot) -> Vec<(Culprit, u64)> {
        if !self.pool.is_current(slot) {
            return Vec::new();
        }
        culprits::take(self.kernel.maps.culprits.words(slot.index))
    }

    fn read_record(&self, index: u32) -> Reading {
        let maps = &self.kernel.maps;
        let records: Vec<_> = maps
            .records(index)
            .map(|record| maps.slots.words(record))
            .collect();
        Reading::of(&records)
    }

    /// Zeroes a slot, then lets the programs have it.
    fn open(&self, slot: Slot) {
        let maps = &self.kernel.maps;
        let records = maps.records(slot.index);
        let words = records.flat_map(|record| maps.slots.words(record));
        for word in words.chain(maps.culprits.words(slot.index)) {
            word.store(0, Ordering::Relaxed);
        }
        self.show_generation(slot.index);
    }

    /// Takes a slot away from the programs; its counts stay readable until it is opened again.
    fn close(&mut self, slot: Slot) {
        self.show_generation(slot.index);
        self.next_epoch();
    }

    fn show_generation(&self, index: u32) {
        let offset = offset_of!(SlotRecord, generation);
        let maps = &self.kernel.maps;
        for record in maps.records(index) {
            maps.slots
                .store(record, offset, u64::from(self.pool.generation(index)));
        }
    }

    /// Misses that the programs remember are asked again.
    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.kernel
            .maps
            .control
            .store(0, offset_of!(Control, epoch), self.epoch);
    }

    /// Gives the kernel slots for cgroups that it will see before we do.
    fn refill(&mut self) {
        while self.waiting.len() < QUARANTINE_AHEAD {
            let Some(slot) = self.pool.lend() else { return };
            self.open(slot);
            if self
                .kernel
                .maps
                .free_slots
                .push(slot_ref(slot.index, slot.generation), 0)
                .is_err()
            {
                self.pool.put_back(slot);
                self.close(slot);
                return;
            }
            self.waiting.push(slot);
        }
    }
}

impl Slot {
    fn to_ref(self) -> u64 {
        slot_ref(self.index, self.generation)
    }

    fn from_ref(value: u64) -> Slot {
        Slot {
            index: slot_of(value),
            generation: generation_of(value),
        }
    }
}
