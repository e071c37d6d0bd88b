//! From a cgroup to its slot, and adding to a slot. An unknown cgroup gets a provisional slot that user space
//! can claim; this never decides which cgroups are pods.

use ebpf_scaler_common::record::{NO_SLOT, SlotRecord, Stat, generation_of, slot_of, slot_ref};

use crate::atomic::{self, get};
use crate::maps::{CGROUPS, DIRTY, FREE_SLOTS, QUARANTINE, SLOTS, control, count};

/// A slot that was just checked to be this tenant's.
#[derive(Clone, Copy)]
pub struct Slot {
    /// The counters.
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

impl Slot {
    /// The slot if it still belongs to that generation.
    #[inline(always)]
    pub fn of(slot_ref: u64) -> Option<Slot> {
        let index = slot_of(slot_ref);
        let record = SLOTS.get_ptr_mut(index)?;
        // SAFETY: the map's element.
        let generation = unsafe { get!(record.generation) };
        (generation == generation_of(slot_ref)).then_some(Slot { record, index })
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
