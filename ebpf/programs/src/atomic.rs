//! The atomics that BPF has, and memory access that the compiler does not reorder or merge. All are sequentially
//! consistent but `add` and `or`, which nobody waits for.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};

/// Adds without fetching.
///
/// # Safety
/// `to` is valid and aligned.
#[inline(always)]
pub unsafe fn add(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) to, in(reg) value, options(nostack))
    };
}

/// Sets bits without fetching.
///
/// # Safety
/// `to` is valid and aligned.
#[inline(always)]
pub unsafe fn or(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) to, in(reg) value, options(nostack))
    };
}

/// Replaces and returns the former value.
///
/// # Safety
/// `to` is valid and aligned.
#[inline(always)]
pub unsafe fn swap(to: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(to, value) }
}

/// Replaces `old` by `new`; false if there was something else.
///
/// # Safety
/// `at` is valid and aligned.
#[inline(always)]
pub unsafe fn replace(at: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(at, old, new).0
            == old
    }
}

/// Reads a field once, from memory.
macro_rules! get {
    ($p:ident . $($field:ident).+) => {
        core::ptr::read_volatile(&raw const (*$p).$($field).+)
    };
}
/// Writes a field, to memory.
macro_rules! set {
    ($p:ident . $($field:ident).+, $value:expr) => {
        core::ptr::write_volatile(&raw mut (*$p).$($field).+, $value)
    };
}
pub(crate) use {get, set};
