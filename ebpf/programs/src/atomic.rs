//! The atomics that BPF has, and memory access that the compiler does not reorder or merge. All are sequentially
//! consistent but `add` and `or`, which nobody waits for.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};
use core::mem::MaybeUninit;

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

/// Whether this machine shows stores to other CPUs in their order, as x86-64 does; user space sets it when it loads the
/// object, so for the verifier it is a constant.
#[unsafe(no_mangle)]
static ORDERED_STORES: u32 = 0;

/// Writes after everything written before. BPF has no such store that older kernels know.
///
/// # Safety
/// `to` is valid and aligned.
#[inline(always)]
pub unsafe fn release(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        if core::ptr::read_volatile(&raw const ORDERED_STORES) != 0 {
            core::ptr::write_volatile(to, value);
        } else {
            swap(to, value);
        }
    }
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

/// Fills with zeros, where they are. Volatile: the compiler would call a function that writes them byte by byte.
#[inline(always)]
pub fn zeroed(words: &mut MaybeUninit<[u64; 2]>) -> *mut u64 {
    let words = words.as_mut_ptr().cast::<u64>();
    // SAFETY: both words of the array.
    unsafe {
        core::ptr::write_volatile(words, 0);
        core::ptr::write_volatile(words.add(1), 0);
    }
    words
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
