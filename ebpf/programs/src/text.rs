//! HTTP in the plain text of a TLS session: what a call read is a stretch of requests, what a call wrote one of answers.
//! Bytes come once and in order, so nothing of what packets need for that is here.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use ebpf_scaler_common::flow::{Flow, oldest, rx_flag, tx_flag};
use ebpf_scaler_common::http1::{
    Window, begins_request, begins_response, flag, in_head, phase, status_in,
};
use ebpf_scaler_common::record::Stat;

use crate::atomic::{self, get, set};
use crate::maps::count;
use crate::requests::resynchronise;
use crate::responses::{answered, complete, desynchronised, framed_so_far};
use crate::scan::Scan;
use crate::slots::{Slot, tally};

/// Shorter than any request or answer; what is shorter is framed byte by byte.
const SHORTEST: u32 = 16;
/// Programs here are preempted by others of their kind, with a window in their hands.
const WINDOWS: u32 = 8;

/// A bit for each of the CPU's windows that is taken.
#[map]
static TLS_WINDOW_TAKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TLS_WINDOWS: PerCpuArray<Window> = PerCpuArray::with_max_entries(WINDOWS, 0);

#[inline(always)]
fn take_window() -> Option<(*mut Window, u64)> {
    let taken = TLS_WINDOW_TAKEN.get_ptr_mut(0)?;
    let mut i = 0;
    while i < WINDOWS {
        let bit = 1u64 << i;
        // SAFETY: the map's element. Who runs between the two sees the bit.
        unsafe {
            let before = core::ptr::read_volatile(taken);
            if before & bit == 0 && atomic::replace(taken, before, before | bit) {
                return TLS_WINDOWS.get_ptr_mut(i).map(|window| (window, bit));
            }
        }
        i += 1;
    }
    count(Stat::TlsScratchBusy);
    None
}

#[inline(always)]
fn return_window(bit: u64) {
    if let Some(taken) = TLS_WINDOW_TAKEN.get_ptr_mut(0) {
        // SAFETY: the map's element; the bit is set, so subtracting it clears it.
        unsafe { atomic::add(taken, bit.wrapping_neg()) };
    }
}

/// Whether what was read may begin a request.
#[inline(always)]
pub fn looks_like_request(buffer: u64, length: u32) -> bool {
    length >= SHORTEST && begins_request(look(buffer).0)
}

/// The first 16 bytes, all of which must be there.
#[inline(always)]
fn look(buffer: u64) -> (u64, u64) {
    let mut first = [0u64; 2];
    // SAFETY: the variable is that long; the helper zeroes what it can not read.
    if unsafe { bpf_probe_read_user(first.as_mut_ptr().cast(), 16, buffer as *const _) } != 0 {
        count(Stat::TlsLoadFailed);
    }
    (first[0], first[1])
}

/// Frames what was read. Returns where in it HTTP/2 begins, which then is another's to walk; or `length`.
///
/// # Safety
/// The flow is valid, its request side ours.
#[inline(always)]
pub unsafe fn requests(flow: *mut Flow, slot: Slot, buffer: u64, length: u32, now: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let m = &raw mut (*flow).rx;
        let at = get!(m.phase);
        if at == phase::OPAQUE || get!(flow.tx_flags) & tx_flag::TUNNEL != 0 {
            return length;
        }
        if at == phase::BODY || at == phase::CHUNK_DATA {
            let remaining = get!(m.remaining);
            if remaining > length as u64 {
                set!(m.remaining, remaining - length as u64);
                return length;
            }
        }
        if at == phase::SEARCH {
            // Only the first byte of what was read can be trusted to be a message's.
            if !looks_like_request(buffer, length) {
                return length;
            }
            resynchronise(flow, slot);
        }
        let Some((window, bit)) = take_window() else {
            set!(m.phase, phase::SEARCH);
            return length;
        };
        // Nothing is ever on its way to the client: what the request acknowledges is all that was sent.
        scan(flow, slot, buffer, window).requests::<true>(now, 0, length);
        let rest = get!(window.base).wrapping_add(get!(window.pos));
        return_window(bit);
        if get!(m.phase) == phase::OPAQUE && get!(flow.rx_flags) & rx_flag::HTTP2 != 0 {
            return rest;
        }
        if get!(m.phase) == phase::SEARCH
            && get!(m.flags) & flag::CONNECT == 0
            && get!(flow.rx_flags) & rx_flag::HTTP != 0
        {
            count(Stat::RequestDesync);
        }
        length
    }
}

#[inline(always)]
fn scan(flow: *mut Flow, slot: Slot, buffer: u64, window: *mut Window) -> Scan {
    Scan {
        source: buffer as *mut _,
        flow,
        window,
        slot,
        ack: 0,
    }
}

/// Looks for answers in what was written, and frames them where that is needed. `begun`: when the call began.
///
/// # Safety
/// The flow is valid, its response side ours.
#[inline(always)]
pub unsafe fn answers(flow: *mut Flow, slot: Slot, buffer: u64, length: u32, begun: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let at = get!(flow.tx.phase);
        if get!(flow.tx_flags) & tx_flag::TUNNEL != 0 || at == phase::OPAQUE {
            return;
        }
        if at == phase::SEARCH {
            if !answers_next(flow, slot, buffer, length, begun) {
                return;
            }
            set!(flow.tx.phase, phase::START);
        } else if at == phase::BODY || at == phase::CHUNK_DATA {
            let remaining = get!(flow.tx.remaining);
            if remaining > length as u64 {
                set!(flow.tx.remaining, remaining - length as u64);
                return;
            }
        }
        frame(flow, slot, buffer, length, begun);
    }
}

/// No answer is being framed: whether the next one begins here and must be.
#[inline(always)]
unsafe fn answers_next(flow: *mut Flow, slot: Slot, buffer: u64, length: u32, now: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let outstanding = get!(flow.head)
            .wrapping_sub(oldest(flow))
            .wrapping_add(get!(flow.lost_head).wrapping_sub(get!(flow.lost_tail)));
        let early = outstanding == 0 && in_head(&raw const (*flow).rx);
        if outstanding == 0 && !early {
            return false;
        }
        let mut first = (0, 0);
        if length >= SHORTEST {
            first = look(buffer);
        }
        let status = status_in(first.1);
        if early {
            refused(flow, slot, first.0, status, now);
            return false;
        }
        if length >= SHORTEST && !begins_response(first.0) {
            desynchronised(flow);
            return false;
        }
        if get!(flow.tx_flags) & tx_flag::RESYNC != 0 {
            if length < SHORTEST {
                return false;
            }
            count(Stat::ResponseResync);
            set!(flow.tx_flags, get!(flow.tx_flags) & !tx_flag::RESYNC);
        }
        let alone = outstanding == 1 && get!(flow.rx_flags) & rx_flag::PIPELINED == 0;
        if alone && (status >= 200 || status == 101) {
            complete(
                &scan(flow, slot, buffer, core::ptr::null_mut()),
                status,
                now,
            );
            return false;
        }
        true
    }
}

/// The server answers before the headers are complete, mostly to refuse them.
#[inline(always)]
unsafe fn refused(flow: *mut Flow, slot: Slot, first: u64, status: u32, now: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let begun = get!(flow.rx.begun);
        if get!(flow.answered) == begun || !begins_response(first) || status < 200 {
            return;
        }
        set!(flow.answered, begun);
        tally!(slot, requests, 1);
        answered(slot, status, begun, now);
    }
}

#[inline(always)]
unsafe fn frame(flow: *mut Flow, slot: Slot, buffer: u64, length: u32, now: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let Some((window, bit)) = take_window() else {
            set!(flow.tx.phase, phase::SEARCH);
            desynchronised(flow);
            return;
        };
        scan(flow, slot, buffer, window).responses::<true>(now, 0, length);
        return_window(bit);
        framed_so_far(flow);
    }
}
