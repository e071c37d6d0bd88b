//! Drives the HTTP/2 frame walker over packets of connections that speak it, or over plain text in a process' memory, and
//! counts what it tells.
//!
//! Cost: a load of at most 32 bytes for each frame that begins in the packet; payloads are skipped by their length.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_loop, bpf_probe_read_user, bpf_skb_load_bytes,
};
use ebpf_scaler_common::flow::{Flow, kind};
use ebpf_scaler_common::http2::{self, Connection, LOOK, Machine, Next, act, event, phase};
use ebpf_scaler_common::record::Stat;

use crate::atomic::{get, set};
use crate::http2::{believed, find};
use crate::maps::{count, count_by};
use crate::packet::Packet;
use crate::responses::{class, latency};
use crate::slots::{Slot, tally};

/// Frames of a packet that are walked; 64 KiB hold more only of the shortest.
const TURNS: u32 = 4096;

/// What a turn needs; lives on the stack.
#[repr(C)]
pub struct Walk {
    /// The packet; in a process' memory, what offset 0 is the address of.
    source: *mut c_void,
    flow: *mut Flow,
    connection: *mut Connection,
    slot: Slot,
    now: u64,
}

/// Walks the packet in from `pos` on.
///
/// # Safety
/// The flow and the connection are valid, and packets in are ours.
#[inline(always)]
pub unsafe fn requests(packet: &Packet, flow: *mut Flow, c: *mut Connection, slot: Slot, pos: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let m = &raw mut (*c).rx;
        let left = packet.len - pos;
        let skip = get!(m.skip);
        if skip > left {
            set!(m.skip, skip - left);
            return;
        }
        if get!(m.phase) == phase::SEARCH {
            let last = get!(c.last);
            if pos != packet.headers || !believed(packet, last) {
                return;
            }
            set!(m.phase, phase::FRAME);
            if last != 0 {
                count(Stat::RequestResync);
            }
        }
        walk::<false, false>(packet.skb.cast(), flow, c, slot, pos, packet.len);
    }
}

/// Handles the payload of a packet out, from `offset` on, after a gap.
///
/// # Safety
/// The flow is valid, and its packets out are ours.
#[inline(always)]
pub unsafe fn responses(packet: &Packet, flow: *mut Flow, slot: Slot, offset: u32, gap: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let c = find(packet.sk);
        if c.is_null() {
            return;
        }
        let m = &raw mut (*c).tx;
        if gap != 0 && !http2::skip_gap(m, gap) {
            count(Stat::ResponseDesync);
        }
        let left = packet.payload() - offset;
        let skip = get!(m.skip);
        if skip > left {
            set!(m.skip, skip - left);
            return;
        }
        if get!(m.phase) == phase::SEARCH {
            if offset != 0 || !believed(packet, get!(c.last)) {
                return;
            }
            set!(m.phase, phase::FRAME);
            if get!(m.begun) != 0 {
                count(Stat::ResponseResync);
            }
        }
        let pos = packet.headers + offset;
        walk::<true, false>(packet.skb.cast(), flow, c, slot, pos, packet.len);
    }
}

/// Walks plain text, which comes once and in order: `OUT`, that of the server.
///
/// # Safety
/// The flow and the connection are valid, and that side of it is ours.
#[inline(always)]
pub unsafe fn text<const OUT: bool>(
    source: *mut c_void,
    flow: *mut Flow,
    c: *mut Connection,
    slot: Slot,
    pos: u32,
    end: u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let m = side::<OUT>(c);
        let (left, skip) = (end - pos, get!(m.skip));
        if skip > left {
            set!(m.skip, skip - left);
        } else if get!(m.phase) != phase::SEARCH {
            walk::<OUT, true>(source, flow, c, slot, pos, end);
        }
    }
}

#[inline(always)]
unsafe fn walk<const OUT: bool, const USER: bool>(
    source: *mut c_void,
    flow: *mut Flow,
    c: *mut Connection,
    slot: Slot,
    pos: u32,
    end: u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let now = bpf_ktime_get_ns();
        let mut walk = Walk {
            source,
            flow,
            connection: c,
            slot,
            now,
        };
        let m = side::<OUT>(c);
        http2::begin(m, now, pos, end);
        let turn: unsafe extern "C" fn(u64, *mut Walk) -> i64 = if OUT {
            response_turn::<USER>
        } else {
            request_turn::<USER>
        };
        bpf_loop(TURNS, turn as *mut _, (&raw mut walk).cast(), 0);
        if http2::unfinished(m) {
            count(Stat::Http2Frames);
            http2::lost(m);
            lost::<OUT>(c);
        }
    }
}

#[inline(always)]
unsafe fn side<const OUT: bool>(c: *mut Connection) -> *mut Machine {
    // SAFETY: the caller's promise.
    unsafe {
        if OUT {
            &raw mut (*c).tx
        } else {
            &raw mut (*c).rx
        }
    }
}

#[inline(always)]
unsafe fn lost<const OUT: bool>(c: *mut Connection) {
    if OUT {
        count(Stat::ResponseDesync);
    } else {
        count(Stat::RequestDesync);
        // SAFETY: the caller's promise.
        unsafe { set!(c.missed, 1) };
    }
}

/// Loads what is to be looked at, and steps: the event, or None when there is nothing more to do.
#[inline(always)]
unsafe fn turn<const OUT: bool, const USER: bool>(walk: *mut Walk) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        let c = (*walk).connection;
        let m = side::<OUT>(c);
        let Next::Load { at, len } = http2::prepare(m) else {
            return None;
        };
        let to = http2::head(m).add(below_32(at as u64) as usize);
        let n = below_32(len as u64 - 1) as u32 + 1;
        let (source, pos) = ((*walk).source, get!(m.pos));
        let failed = if USER {
            bpf_probe_read_user(to.cast(), n, source.byte_add(pos as usize))
        } else {
            bpf_skb_load_bytes(source, pos, to.cast(), n)
        };
        if failed != 0 {
            count(if USER {
                Stat::TlsLoadFailed
            } else {
                Stat::LoadFailed
            });
            http2::lost(m);
            lost::<OUT>(c);
            return None;
        }
        Some(http2::step::<OUT>(m))
    }
}

/// The verifier must see the bound; the compiler, which knows it, would leave the mask out.
#[inline(always)]
fn below_32(n: u64) -> u64 {
    let mut n = n;
    // SAFETY: arithmetic.
    unsafe { core::arch::asm!("{0} &= 31", inout(reg) n, options(nostack, nomem, pure)) };
    n
}

const _: () = assert!(LOOK == 32);

unsafe extern "C" fn request_turn<const USER: bool>(_: u64, walk: *mut Walk) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let c = (*walk).connection;
        match turn::<false, USER>(walk) {
            None => return 1,
            Some(event::HEADERS) => requested(walk, c),
            Some(event::RESET) => end((*walk).slot, http2::reset::<false>(c)),
            Some(event::MALFORMED) => {
                lost::<false>(c);
                return 1;
            }
            _ => {}
        }
    }
    0
}

#[inline(always)]
unsafe fn requested(walk: *mut Walk, c: *mut Connection) {
    // SAFETY: the caller's promise.
    unsafe {
        let slot = (*walk).slot;
        let of = {
            let flow = (*walk).flow;
            get!(flow.kind)
        };
        let acts = http2::request(c, of & (kind::LOOPBACK | kind::EXCLUDED) == 0);
        let mut requests = (acts & act::REQUEST) as u64;
        if acts & act::INFERRED != 0 {
            let inferred = get!(c.inferred) as u64;
            count_by(Stat::Http2Inferred, inferred);
            requests += inferred;
        }
        if requests == 0 {
            return;
        }
        if of & kind::LOOPBACK != 0 {
            tally!(slot, requests_loopback, requests);
        } else if of & kind::EXCLUDED != 0 {
            tally!(slot, requests_excluded_port, requests);
        } else {
            tally!(slot, requests, requests);
            tally!(slot, requests_http2, requests);
            let begun = u64::from(acts & act::BEGUN != 0);
            if begun != requests {
                tally!(slot, begun_besides, begun.wrapping_sub(requests));
            }
            if acts & act::UNTIMED != 0 {
                count(Stat::Http2StreamsFull);
            }
        }
    }
}

unsafe extern "C" fn response_turn<const USER: bool>(_: u64, walk: *mut Walk) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let c = (*walk).connection;
        let slot = (*walk).slot;
        match turn::<true, USER>(walk) {
            None => return 1,
            Some(event::HEADERS) => answered(walk, c),
            Some(event::END) => end(slot, http2::ended(c)),
            Some(event::RESET) => end(slot, http2::reset::<true>(c)),
            Some(event::MALFORMED) => {
                lost::<true>(c);
                return 1;
            }
            _ => {}
        }
    }
    0
}

#[inline(always)]
unsafe fn answered(walk: *mut Walk, c: *mut Connection) {
    // SAFETY: the caller's promise.
    unsafe {
        let slot = (*walk).slot;
        let acts = http2::answer(c);
        if acts & act::REQUEST != 0 {
            tally!(slot, requests, 1);
            tally!(slot, requests_http2, 1);
        }
        if acts & act::ANSWERED != 0 {
            let micros = ((*walk).now / 1000) as u32;
            latency(slot, micros.wrapping_sub(get!(c.answered_since)) as u64);
        }
        if acts & act::STATUS != 0 {
            let first = get!(c.tx.first);
            class(slot, first * 100);
            if first >= 2 {
                // It ends later, and is then counted as ended.
                tally!(slot, ended_besides, u64::MAX);
            }
        }
        end(slot, acts);
    }
}

#[inline(always)]
unsafe fn end(slot: Slot, acts: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if acts & act::NO_STATUS != 0 {
            count(Stat::Http2NoStatus);
        }
        if acts & act::ENDED != 0 {
            tally!(slot, ended_besides, 1);
        }
        if acts & act::ABORTED != 0 {
            tally!(slot, requests_aborted, 1);
        }
    }
}
