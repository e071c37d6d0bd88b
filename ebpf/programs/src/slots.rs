//! From a cgroup to its slot, and adding to a slot. An unknown cgroup gets a provisional slot that user space
//! can claim; this never decides which cgroups are pods.

use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_smp_processor_id};
use ebpf_scaler_common::record::{
    NO_SLOT, SlotRecord, Stat, generation_of, layout, port_key, slot_of, slot_ref,
};

use crate::atomic::{self, get};
use crate::maps::{CGROUPS, DIRTY, FREE_SLOTS, PORTS, QUARANTINE, SLOTS, control, count};

/// How deep the cgroup above all pods can lie.
const MAX_DEPTH: i32 = 12;

/// A slot that was just checked to be this tenant's.
#[derive(Clone, Copy)]
pub struct Slot {
    /// The counters, this CPU's.
    pub record: *mut SlotRecord,
    /// Its index.
    pub index: u32,
}

/// Adds to a field of the slot's tally.
macro_rules! tally {
    ($slot:expr, $field:ident, $value:expr) => {
        crate::atomic::add(&raw mut (*$slot.record).tally.$field, $value)
    };
}
pub(crate) use tally;

/// Each slot has so many records as a power of two, which CPUs share: one that all add to would go from the cache of one CPU
/// to that of another with every packet and every switch, and that is dearer than all else that is done for them. User space
/// sets it when it loads the object, so for the verifier it is a constant.
#[unsafe(no_mangle)]
static SHARD_BITS: u32 = 0;

/// This CPU's record of a slot. Of [`NO_SLOT`] it is none either: what is shifted out of it are ones.
#[inline(always)]
fn shard(index: u32) -> u32 {
    // SAFETY: a constant of the object, and a helper call.
    unsafe {
        let bits = core::ptr::read_volatile(&raw const SHARD_BITS);
        (index << bits) | (bpf_get_smp_processor_id() & !(u32::MAX << bits))
    }
}

impl Slot {
    /// The slot if it still belongs to that generation.
    #[inline(always)]
    pub fn of(slot_ref: u64) -> Option<Slot> {
        let index = slot_of(slot_ref);
        let record = SLOTS.get_ptr_mut(shard(index))?;
        // SAFETY: the map's element.
        let generation = unsafe { get!(record.generation) };
        (generation == generation_of(slot_ref)).then_some(Slot { record, index })
    }

    /// The layout that the slot has now.
    #[inline(always)]
    pub fn layout(self) -> u32 {
        let record = self.record;
        // SAFETY: the map's element.
        unsafe { get!(record.layout) }
    }

    /// The pod of which this is a part, or else itself.
    #[inline(always)]
    pub fn pod(self, itself: u64) -> u64 {
        let record = self.record;
        // SAFETY: the map's element.
        let pod = unsafe { get!(record.pod) };
        if pod != 0 { pod } else { itself }
    }

    /// The slot that counts for a local port of this one, if that is counted apart.
    #[inline(always)]
    pub fn of_port(self, port: u32) -> Option<(u64, Slot)> {
        let key = port_key(self.index, port);
        // SAFETY: values are replaced as a whole; a stale one is told by its generation.
        let found = unsafe { *PORTS.get(key)? };
        Slot::of(found).map(|slot| (found, slot))
    }

    /// Tells user space that something changed; after the last change.
    #[inline(always)]
    pub fn touch(self) {
        if let Some(word) = DIRTY.get_ptr_mut(self.index >> 6) {
            let bit = 1u64 << (self.index & 63);
            // SAFETY: the map's element.
            unsafe {
                if core::ptr::read_volatile(word) & bit == 0 {
                    atomic::or(word, bit);
                }
            }
        }
    }
}

/// What counts for a slot's socket at that local port: the port's own slot if it has one, or else the slot.
#[inline(always)]
pub fn narrow(found: (u64, Slot), port: impl FnOnce() -> Option<u32>) -> (u64, Slot) {
    if found.1.layout() & layout::PORTS == 0 {
        return found;
    }
    match port() {
        Some(port) => found.1.of_port(port).unwrap_or(found),
        None => found,
    }
}

/// The slot of a cgroup: assigned, or else provisional.
#[inline(always)]
pub fn resolve(cgroup: u64) -> Option<u64> {
    let assigned = known(cgroup);
    if assigned.is_some() {
        return assigned;
    }
    quarantine(cgroup)
}

/// The slot of a cgroup that has one.
#[inline(always)]
pub fn known(cgroup: u64) -> Option<u64> {
    // SAFETY: values are replaced as a whole; a stale one is told by its generation.
    if let Some(found) = unsafe { CGROUPS.get(cgroup) } {
        let found = *found;
        if Slot::of(found).is_some() {
            return Some(found);
        }
    }
    // SAFETY: as above.
    if let Some(found) = unsafe { QUARANTINE.get(cgroup) } {
        let found = *found;
        if Slot::of(found).is_some() {
            return Some(found);
        }
    }
    None
}

/// Takes a provisional slot for a cgroup that nobody has assigned.
#[inline(always)]
fn quarantine(cgroup: u64) -> Option<u64> {
    let Ok(Some(free)) = FREE_SLOTS.pop() else {
        count(Stat::QuarantineFull);
        return None;
    };
    const NOEXIST: u64 = 1;
    if QUARANTINE.insert(cgroup, free, NOEXIST).is_ok() {
        return Some(free);
    }
    // Another CPU was first, or the map is full; user space looks after a slot that can not be given back.
    let _ = FREE_SLOTS.push(free, 0);
    // SAFETY: as above.
    match unsafe { QUARANTINE.get(cgroup) } {
        Some(first) => Some(*first),
        None => {
            count(Stat::QuarantineFull);
            None
        }
    }
}

/// What a miss is remembered as, until assignments change.
#[inline(always)]
pub fn no_slot() -> u64 {
    // SAFETY: the map's element.
    let epoch = control().map_or(0, |control| unsafe { get!(control.epoch) });
    slot_ref(NO_SLOT, epoch as u32)
}

/// Whether the current cgroup is below that one, at whatever depth it lies: a cgroup namespace hides the depth.
///
/// # Safety
/// The program runs for a task.
#[inline(always)]
pub unsafe fn is_below(ancestor: u64) -> bool {
    let mut level = 0;
    while level < MAX_DEPTH {
        // SAFETY: a helper call; 0 below the current cgroup's own level.
        if unsafe { bpf_get_current_ancestor_cgroup_id(level) } == ancestor {
            return true;
        }
        level += 1;
    }
    false
}
