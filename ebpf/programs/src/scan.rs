//! Drives the framing machine over a packet's payload, or over plain text in a process' memory, a window at a time, and
//! hands on what it finds. The number of turns is bounded; what they do not reach counts as lost.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user, bpf_skb_load_bytes};
use ebpf_scaler_common::flow::{Flow, rx_flag};
use ebpf_scaler_common::http1::{Machine, Next, Window, event, phase, prepare, step};
use ebpf_scaler_common::record::{Stat, TOTAL_STEPS};

use crate::atomic::{get, set};
use crate::maps::count;
use crate::slots::Slot;
use crate::{requests, responses};

/// Steps a turn: a window of long lines takes 8. The verifier walks through each, and its older versions forget
/// less of what they have seen, so user space asks for fewer where it must; it then takes more turns.
#[unsafe(no_mangle)]
static STEPS: u32 = ebpf_scaler_common::record::STEPS;
/// Turns a packet: the bound of the work is the same, whatever a turn is. Not divided here, for each packet.
#[unsafe(no_mangle)]
static TURNS: u32 = TOTAL_STEPS / ebpf_scaler_common::record::STEPS;

/// A constant for the verifier, not for the compiler.
#[inline(always)]
fn steps() -> u32 {
    // SAFETY: user space writes it before the programs are loaded.
    unsafe { core::ptr::read_volatile(&raw const STEPS) }
}

#[inline(always)]
fn turns() -> u32 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const TURNS) }
}

/// What a turn needs; lives on the stack.
#[repr(C)]
pub struct Scan {
    /// The packet; in a process' memory, what offset 0 is the address of.
    pub source: *mut c_void,
    pub flow: *mut Flow,
    pub window: *mut Window,
    pub slot: Slot,
    /// What the packet acknowledges.
    pub ack: u32,
}

impl Scan {
    /// Frames requests in the packet (`USER`: in the memory of the current process) from `offset` on.
    ///
    /// # Safety
    /// The pointers are valid, the flow's `rx` and the window ours.
    #[inline(always)]
    pub unsafe fn requests<const USER: bool>(&mut self, now: u64, offset: u32, end: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            self.begin(now, offset, end);
            bpf_loop(
                turns(),
                request_turn::<USER> as *mut _,
                (&raw mut *self).cast(),
                0,
            );
            let m = &raw mut (*self.flow).rx;
            self.finish(m);
        }
    }

    /// Frames responses in the packet (`USER`: in the memory of the current process) from `offset` on.
    ///
    /// # Safety
    /// The pointers are valid, the flow's `tx` and the window ours.
    #[inline(always)]
    pub unsafe fn responses<const USER: bool>(&mut self, now: u64, offset: u32, end: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            self.begin(now, offset, end);
            bpf_loop(
                turns(),
                response_turn::<USER> as *mut _,
                (&raw mut *self).cast(),
                0,
            );
            let m = &raw mut (*self.flow).tx;
            self.finish(m);
        }
    }

    /// Begins with the packet from `offset` on.
    ///
    /// # Safety
    /// The window is ours.
    #[inline(always)]
    pub unsafe fn begin(&mut self, now: u64, offset: u32, end: u32) {
        let w = self.window;
        // SAFETY: the caller's promise.
        unsafe {
            set!(w.now, now);
            set!(w.base, offset);
            set!(w.end, end);
            set!(w.pos, 0);
            set!(w.len, 0);
        }
    }

    /// Turns that ran out leave bytes unseen.
    #[inline(always)]
    unsafe fn finish(&mut self, m: *mut Machine) {
        let w = self.window;
        // SAFETY: the caller's promise.
        unsafe {
            let at = get!(m.phase);
            if at != phase::SEARCH
                && at != phase::OPAQUE
                && get!(w.base).wrapping_add(get!(w.pos)) < get!(w.end)
            {
                set!(m.phase, phase::SEARCH);
            }
        }
    }
}

/// Loads if need be, then steps until something is found: the event, or None when there is nothing more to do.
#[inline(always)]
unsafe fn turn<const RESPONSE: bool, const USER: bool>(
    source: *mut c_void,
    m: *mut Machine,
    w: *mut Window,
) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        match prepare(m, w) {
            Next::Stop => return None,
            Next::Again => return Some(event::LOAD),
            Next::Oversized => {
                count(Stat::Oversized);
                return None;
            }
            Next::Load(n) => {
                let bytes = (&raw mut (*w).bytes).cast();
                let (base, n) = (get!(w.base), one_to_256(n));
                let failed = if USER {
                    bpf_probe_read_user(bytes, n, source.byte_add(base as usize))
                } else {
                    bpf_skb_load_bytes(source, base, bytes, n)
                };
                if failed != 0 {
                    count(if USER {
                        Stat::TlsLoadFailed
                    } else {
                        Stat::LoadFailed
                    });
                    set!(m.phase, phase::SEARCH);
                    return None;
                }
            }
            Next::Step => {}
        }
        let mut found = event::NONE;
        let (steps, mut i) = (steps(), 0);
        while i < steps {
            found = step::<RESPONSE>(m, w);
            if found != event::NONE {
                break;
            }
            i += 1;
        }
        Some(found)
    }
}

/// The verifier must see the bounds of a length; the compiler, which knows them, would leave the mask out.
#[inline(always)]
pub fn one_to_256(n: u32) -> u32 {
    let mut n = n as u64 - 1;
    // SAFETY: arithmetic.
    unsafe { core::arch::asm!("{0} &= 255", inout(reg) n, options(nostack, nomem, pure)) };
    n as u32 + 1
}

unsafe extern "C" fn request_turn<const USER: bool>(_: u64, scan: *mut Scan) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let (source, flow, w) = ((*scan).source, (*scan).flow, (*scan).window);
        let m = &raw mut (*flow).rx;
        match turn::<false, USER>(source, m, w) {
            None => return 1,
            Some(event::REQUEST) => requests::complete(&*scan),
            Some(event::HTTP2) => {
                count(if USER { Stat::TlsHttp2 } else { Stat::Http2 });
                set!(flow.rx_flags, get!(flow.rx_flags) | rx_flag::HTTP2);
            }
            _ => {}
        }
    }
    0
}

unsafe extern "C" fn response_turn<const USER: bool>(_: u64, scan: *mut Scan) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let (source, flow, w) = ((*scan).source, (*scan).flow, (*scan).window);
        let m = &raw mut (*flow).tx;
        match turn::<true, USER>(source, m, w) {
            None => return 1,
            Some(event::STATUS) => {
                let flags = responses::complete(&*scan, get!(m.status), get!(m.begun));
                set!(m.flags, get!(m.flags) | flags);
            }
            _ => {}
        }
    }
    0
}
