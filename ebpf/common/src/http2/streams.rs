//! The streams of a connection that are in flight: a small table, one word a stream. Packets in put streams there, both
//! directions take them out at the same time, so a word changes by compare-and-swap only. Never grows.

use core::ptr::read_volatile;

/// Streams in flight that are timed; more are only counted.
pub const STREAMS: u32 = 256;
/// Places a stream can be at: long-lived streams push those that would lie upon them aside.
const PROBES: u32 = 8;

/// A stream's word: its number, bits, and microseconds (modulo 2^32, thus 71 minutes) of its first byte.
pub(super) mod entry {
    /// It was answered.
    pub const ANSWERED: u64 = 1 << 32;
    /// It is not counted yet.
    pub const TENTATIVE: u64 = 2 << 32;
    /// The number lies above the bits.
    pub const SHIFT: u32 = 34;
}

/// Streams 1, 3, 5 ... are numbered 1, 2, 3 ..., so that no word of a stream is 0.
#[inline(always)]
const fn number(stream: u32) -> u32 {
    ((stream >> 1) + 1) & 0x3fff_ffff
}

#[inline(always)]
unsafe fn place(table: *mut u64, number: u32, probe: u32) -> *mut u64 {
    // SAFETY: the caller's table has STREAMS words.
    unsafe { table.add((number.wrapping_add(probe) & (STREAMS - 1)) as usize) }
}

/// Puts a stream into the table; false if there is no place for it.
///
/// # Safety
/// The table has [`STREAMS`] words; nobody else puts streams there.
#[inline(always)]
pub(super) unsafe fn insert(table: *mut u64, stream: u32, bits: u64, micros: u32) -> bool {
    let number = number(stream);
    if number == 0 {
        return false;
    }
    let word = ((number as u64) << entry::SHIFT) | bits | micros as u64;
    let mut i = 0;
    while i < PROBES {
        // SAFETY: the caller's promise.
        unsafe {
            let at = place(table, number, i);
            if read_volatile(at) == 0 && replace(at, 0, word) {
                return true;
            }
        }
        i += 1;
    }
    false
}

/// The stream's place and word; null if it is not in the table.
///
/// # Safety
/// The table has [`STREAMS`] words.
#[inline(always)]
pub(super) unsafe fn find(table: *mut u64, stream: u32) -> (*mut u64, u64) {
    let number = number(stream);
    let mut i = 0;
    while i < PROBES {
        // SAFETY: the caller's promise.
        unsafe {
            let at = place(table, number, i);
            let word = read_volatile(at);
            if word != 0 && (word >> entry::SHIFT) as u32 == number {
                return (at, word);
            }
        }
        i += 1;
    }
    (core::ptr::null_mut(), 0)
}

/// Changes a word that is still `old`.
///
/// # Safety
/// The pointer is valid.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub(super) unsafe fn replace(at: *mut u64, old: u64, new: u64) -> bool {
    use core::intrinsics::{AtomicOrdering, atomic_cxchg};
    // SAFETY: the caller's promise.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(at, old, new).0
            == old
    }
}

/// Changes a word that is still `old`.
///
/// # Safety
/// The pointer is valid.
#[inline(always)]
#[cfg(not(target_arch = "bpf"))]
pub(super) unsafe fn replace(at: *mut u64, old: u64, new: u64) -> bool {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's promise.
    let word = unsafe { AtomicU64::from_ptr(at) };
    word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
}
