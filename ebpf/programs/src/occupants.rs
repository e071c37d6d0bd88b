//! Who has run on a CPU lately, and how a wait that ended there is divided among them: exactly if they were few, else
//! by samples, and what is older than those in the proportions of what is not. It keeps no more than that.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use ebpf_scaler_common::record::{CULPRITS_PER_SLOT, Culprit, Culprits, IDLE, SYSTEM};

use crate::atomic::{get, set};
use crate::slots::{Slot, tally};

/// Occupants that are kept, and samples; powers of two.
const LAST: usize = 8;
const SAMPLES: usize = 64;
/// Occupants that are looked at for one wait, at most: fewer than are kept, for each begins where the one before ended.
/// Few do, because what matters is the sum over many waits, of which the samples are no more often one's than another's.
const STEPS: u32 = 4;
/// A sample is whoever has the CPU when this bit of the clock changes: each 2^20 ns = 1.05 ms. That is no multiple or
/// fraction of the kernel's own tick, at which it likes to switch.
const SAMPLE_BITS: u32 = 20;
/// Bits of the clock above this are as good as random.
const OFFSET_SHIFT: u32 = 8;
/// Fractions of a wait are computed in 1/65536.
const FRACTION_BITS: u32 = 16;

/// Behind whom a slot's threads waited, per slot.
#[map]
static CULPRITS: Array<Culprits> = Array::with_max_entries(1024, BPF_F_MMAPABLE);

/// What ran until some time, from when the one before it ended.
#[repr(C)]
struct Occupant {
    until: u64,
    /// A slot and its generation, [`SYSTEM`] or [`IDLE`].
    who: u64,
}

#[repr(C)]
struct Ring<const N: usize> {
    /// Counts all that were ever put in; masked, the newest one's place.
    newest: u64,
    places: [Occupant; N],
}

/// The last occupants of a CPU.
#[repr(C)]
pub struct Occupants {
    last: Ring<LAST>,
    /// Each stands for the time since the sample before.
    samples: Ring<SAMPLES>,
    division: Division,
}

/// A wait, as far as it is divided: here and not on the stack, where the verifier would follow every value.
#[repr(C)]
struct Division {
    own: u64,
    begun: u64,
    /// All after this is divided.
    until: u64,
    /// Only each (1 << stride_bits)th occupant is looked at, and stands for those up to the next.
    stride_bits: u64,
    /// Which one of those it is.
    offset: u64,
    by_own: u64,
    by_pods: u64,
    by_system: u64,
    /// The pod of `by_pods` that was seen last.
    pod: u64,
}

/// What a step of a walk needs; lives on the stack.
#[repr(C)]
struct Walk {
    of: *mut Occupants,
    slot: Slot,
}

/// Notes who ran on this CPU until `now`.
///
/// # Safety
/// `of` is this CPU's, and nothing else uses it meanwhile.
#[inline(always)]
pub unsafe fn ran(of: *mut Occupants, who: u64, now: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let last = &raw mut (*of).last;
        let newest = get!(last.newest);
        let before = until(last, newest);
        push(last, who, now);
        if before >> SAMPLE_BITS != now >> SAMPLE_BITS {
            push(&raw mut (*of).samples, who, now);
        }
    }
}

#[inline(always)]
unsafe fn push<const N: usize>(ring: *mut Ring<N>, who: u64, now: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let newest = get!(ring.newest).wrapping_add(1);
        set!(ring.newest, newest);
        let place = at(ring, newest);
        set!(place.until, now);
        set!(place.who, who);
    }
}

#[inline(always)]
unsafe fn at<const N: usize>(ring: *mut Ring<N>, number: u64) -> *mut Occupant {
    // SAFETY: the index is masked.
    unsafe {
        (&raw mut (*ring).places)
            .cast::<Occupant>()
            .add((number & (N as u64 - 1)) as usize)
    }
}

#[inline(always)]
unsafe fn until<const N: usize>(ring: *mut Ring<N>, number: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let place = at(ring, number);
        get!(place.until)
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
        let last = &raw mut (*of).last;
        let newest = get!(last.newest);
        let end = until(last, newest);
        let begun = end.wrapping_sub(wait);
        if until(last, newest.wrapping_sub(1)) <= begun {
            // Mostly whoever ran last ran all the time.
            let place = at(last, newest);
            let who = get!(place.who);
            if who == own {
                tally!(slot, runqueue_wait_self_nanos, wait);
            } else if who == IDLE {
                tally!(slot, runqueue_wait_idle_nanos, wait);
            } else {
                blame(slot, who, wait);
                if who == SYSTEM {
                    tally!(slot, runqueue_wait_system_nanos, wait);
                } else {
                    tally!(slot, runqueue_wait_other_pods_nanos, wait);
                }
            }
            return;
        }
        set!(of.division.own, own);
        set!(of.division.begun, begun);
        set!(of.division.until, end);
        set!(of.division.stride_bits, 0);
        set!(of.division.offset, 0);
        set!(of.division.by_own, 0);
        set!(of.division.by_pods, 0);
        set!(of.division.by_system, 0);
        set!(of.division.pod, SYSTEM);
        let mut walk = Walk { of, slot };
        let walk = (&raw mut walk).cast();
        let oldest = newest.wrapping_sub(u64::from(STEPS));
        if until(last, oldest) <= begun {
            bpf_loop(STEPS, back_to_last as *mut _, walk, 0);
        } else {
            // Of a longer wait fewer are looked at, for the same price.
            let samples = &raw mut (*of).samples;
            let newest = get!(samples.newest);
            let steps = u64::from(STEPS);
            let stride_bits = if until(samples, newest.wrapping_sub(steps)) <= begun {
                0
            } else if until(samples, newest.wrapping_sub(steps << 1)) <= begun {
                1
            } else if until(samples, newest.wrapping_sub(steps << 2)) <= begun {
                2
            } else {
                3
            };
            set!(of.division.stride_bits, stride_bits);
            // Any of a stride, not the last: who runs last before one's turn is seldom oneself.
            set!(
                of.division.offset,
                (end >> OFFSET_SHIFT) & ((1 << stride_bits) - 1)
            );
            bpf_loop(STEPS, back_to_sample as *mut _, walk, 0);
        }
        let left = get!(of.division.until);
        if left > begun {
            extrapolate(of, slot, wait, end.wrapping_sub(left));
        }
        let by_own = get!(of.division.by_own);
        let by_pods = get!(of.division.by_pods);
        let by_system = get!(of.division.by_system);
        // Often it is one of them, and an addition that is not made costs nothing.
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

unsafe extern "C" fn back_to_last(back: u64, walk: *mut Walk) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let (of, slot) = ((*walk).of, (*walk).slot);
        i64::from(step(of, &raw mut (*of).last, slot, back))
    }
}

unsafe extern "C" fn back_to_sample(back: u64, walk: *mut Walk) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let (of, slot) = ((*walk).of, (*walk).slot);
        i64::from(step(of, &raw mut (*of).samples, slot, back))
    }
}

/// Takes one more occupant into account, so many strides back; true when the wait is divided.
#[inline(always)]
unsafe fn step<const N: usize>(
    of: *mut Occupants,
    ring: *mut Ring<N>,
    slot: Slot,
    back: u64,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let stride_bits = get!(of.division.stride_bits) & 3;
        let number = get!(ring.newest).wrapping_sub(back << stride_bits);
        let before = until(ring, number.wrapping_sub(1 << stride_bits));
        let number = number.wrapping_sub(get!(of.division.offset));
        let (begun, end) = (get!(of.division.begun), get!(of.division.until));
        if before >= end {
            return false;
        }
        let from = if before > begun { before } else { begun };
        set!(of.division.until, from);
        let part = end.wrapping_sub(from);
        let place = at(ring, number);
        let who = get!(place.who);
        if who == get!(of.division.own) {
            let by_own = get!(of.division.by_own);
            set!(of.division.by_own, by_own.wrapping_add(part));
        } else if who != IDLE {
            if who == SYSTEM {
                let by_system = get!(of.division.by_system);
                set!(of.division.by_system, by_system.wrapping_add(part));
            } else {
                let by_pods = get!(of.division.by_pods);
                set!(of.division.by_pods, by_pods.wrapping_add(part));
                set!(of.division.pod, who);
            }
            blame(slot, who, part);
        }
        before <= begun
    }
}

/// What is older than all that is kept is divided as the rest is.
#[inline(always)]
unsafe fn extrapolate(of: *mut Occupants, slot: Slot, wait: u64, seen: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let (by_pods, by_system) = (get!(of.division.by_pods), get!(of.division.by_system));
        let pods = scale(by_pods, wait, seen);
        let system = scale(by_system, wait, seen);
        // Who it was before is not known: the last pod that is stands for all of them.
        if pods > by_pods {
            blame(slot, get!(of.division.pod), pods - by_pods);
        }
        if system > by_system {
            blame(slot, SYSTEM, system - by_system);
        }
        set!(
            of.division.by_own,
            scale(get!(of.division.by_own), wait, seen)
        );
        set!(of.division.by_pods, pods);
        set!(of.division.by_system, system);
    }
}

/// `part * wait / seen`, rounded down, without overflow: part is at most seen, and both are less than 2^48.
#[inline(always)]
fn scale(part: u64, wait: u64, seen: u64) -> u64 {
    let fraction = (part << FRACTION_BITS).checked_div(seen).unwrap_or(0);
    let low = wait & ((1 << FRACTION_BITS) - 1);
    (wait >> FRACTION_BITS).wrapping_mul(fraction) + (low.wrapping_mul(fraction) >> FRACTION_BITS)
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
            .cast::<Culprit>()
            .add((who & (CULPRITS_PER_SLOT as u64 - 1)) as usize);
        if get!(place.who) == who {
            set!(place.nanos, get!(place.nanos).wrapping_add(nanos));
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
