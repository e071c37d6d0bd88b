//! Who has run on a CPU lately, and how a wait that ended there is divided among them. It keeps the last few only;
//! a longer wait is divided as its end was.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use ebpf_scaler_common::record::{CULPRITS_PER_SLOT, Culprits, IDLE, SYSTEM};

use crate::atomic::{self, get, set};
use crate::slots::{Slot, tally};

/// Occupants that are kept; a power of two. A wait is divided among one less, for of the oldest only the end is known.
const KEPT: u64 = 8;
/// Fractions of a wait are computed in 1/65536.
const FRACTION_BITS: u32 = 16;

/// Behind whom a slot's threads waited, per slot.
#[map]
static CULPRITS: Array<Culprits> = Array::with_max_entries(1024, BPF_F_MMAPABLE);

/// What ran until some time.
#[repr(C)]
struct Occupant {
    until: u64,
    /// A slot and its generation, [`SYSTEM`] or [`IDLE`].
    who: u64,
}

/// The last occupants of a CPU; each ran from when the one before it ended.
#[repr(C)]
pub struct Occupants {
    /// Counts them all; masked, the newest one's place.
    newest: u64,
    ring: [Occupant; KEPT as usize],
}

/// Notes who ran on this CPU until `now`.
///
/// # Safety
/// `of` is this CPU's, and nothing else uses it meanwhile.
#[inline(always)]
pub unsafe fn ran(of: *mut Occupants, who: u64, now: u64) {
    // SAFETY: the caller's promise; the index is masked.
    unsafe {
        let newest = get!(of.newest).wrapping_add(1);
        set!(of.newest, newest);
        let place = at(of, newest);
        set!(place.until, now);
        set!(place.who, who);
    }
}

#[inline(always)]
unsafe fn at(of: *mut Occupants, number: u64) -> *mut Occupant {
    // SAFETY: the index is masked.
    unsafe {
        (&raw mut (*of).ring)
            .cast::<Occupant>()
            .add((number & (KEPT - 1)) as usize)
    }
}

/// Divides a wait that ended with the newest occupant's time among those who had the CPU during it.
///
/// # Safety
/// As for [`ran`]; the slot was just checked.
#[inline(always)]
pub unsafe fn divide(of: *mut Occupants, slot: Slot, own: u64, wait: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let newest = get!(of.newest);
        let mut end = get_until(of, newest);
        let begun = end.wrapping_sub(wait);
        let (mut by_own, mut by_pods, mut by_system, mut seen) = (0u64, 0u64, 0u64, 0u64);
        let mut back = 0;
        while back < KEPT - 1 {
            let number = newest.wrapping_sub(back);
            let who = get_who(of, number);
            let before = get_until(of, number.wrapping_sub(1));
            let from = if before > begun { before } else { begun };
            let part = end.wrapping_sub(from);
            seen = seen.wrapping_add(part);
            if who == own {
                by_own = by_own.wrapping_add(part);
            } else if who != IDLE {
                if who == SYSTEM {
                    by_system = by_system.wrapping_add(part);
                } else {
                    by_pods = by_pods.wrapping_add(part);
                }
                blame(slot, who, part);
            }
            if before <= begun {
                break;
            }
            end = from;
            back += 1;
        }
        if seen < wait {
            by_own = scale(by_own, wait, seen);
            by_pods = scale(by_pods, wait, seen);
            by_system = scale(by_system, wait, seen);
        }
        // Mostly it is one of them, and an addition that is not made costs nothing.
        if by_own != 0 {
            tally!(slot, runqueue_wait_self_nanos, by_own);
        }
        if by_pods != 0 {
            tally!(slot, runqueue_wait_other_pods_nanos, by_pods);
        }
        if by_system != 0 {
            tally!(slot, runqueue_wait_system_nanos, by_system);
        }
        let idle = wait
            .wrapping_sub(by_own)
            .wrapping_sub(by_pods)
            .wrapping_sub(by_system);
        if idle != 0 {
            tally!(slot, runqueue_wait_idle_nanos, idle);
        }
    }
}

#[inline(always)]
unsafe fn get_until(of: *mut Occupants, number: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let place = at(of, number);
        get!(place.until)
    }
}

#[inline(always)]
unsafe fn get_who(of: *mut Occupants, number: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let place = at(of, number);
        get!(place.who)
    }
}

/// `part * wait / seen`, rounded down, without overflow: part is at most seen, and both are less than 2^48.
#[inline(always)]
fn scale(part: u64, wait: u64, seen: u64) -> u64 {
    let fraction = (part << FRACTION_BITS).checked_div(seen).unwrap_or(0);
    let low = wait & ((1 << FRACTION_BITS) - 1);
    (wait >> FRACTION_BITS).wrapping_mul(fraction)
        + (low.wrapping_mul(fraction) >> FRACTION_BITS)
}

/// Remembers who it was. Those who share a place compete for it: who has more keeps it.
#[inline(always)]
unsafe fn blame(slot: Slot, who: u64, nanos: u64) {
    let Some(culprits) = CULPRITS.get_ptr_mut(slot.index) else {
        return;
    };
    // SAFETY: the map's element. Two CPUs at once can lose a little of what only ranks culprits.
    unsafe {
        let place = (&raw mut (*culprits).places)
            .cast::<ebpf_scaler_common::record::Culprit>()
            .add((who & (CULPRITS_PER_SLOT as u64 - 1)) as usize);
        if get!(place.who) == who {
            atomic::add(&raw mut (*place).nanos, nanos);
            return;
        }
        let rivals = get!(place.rivals).wrapping_add(nanos);
        if rivals < get!(place.nanos) {
            set!(place.rivals, rivals);
            return;
        }
        set!(place.who, who);
        set!(place.nanos, nanos);
        set!(place.rivals, 0);
    }
}
