//! The payload of packets in, put in order and handed to the recogniser of what the connection speaks. Never looks at a byte
//! of it itself.

use aya_ebpf::bindings::bpf_tcp_sock;
use aya_ebpf::helpers::generated::bpf_tcp_sock as tcp_sock;
use ebpf_scaler_common::flow::{
    BUSY, Flow, MAX_EARLY, MAX_EARLY_OF_ONE, Place, before, place, rx_flag, tx_flag,
};
use ebpf_scaler_common::http1::{in_body, in_head, phase, skip_gap};
use ebpf_scaler_common::http2::Connection;
use ebpf_scaler_common::record::Stat;

use crate::atomic::{self, get, set};
use crate::maps::count;
use crate::packet::Packet;
use crate::slots::Slot;
use crate::{exchange, frames, http2, requests};

/// How often to look whether another CPU is done with the connection: well below a microsecond in all.
const SPINS: u32 = 48;

/// No place in a packet: headers come before every payload.
pub const NOWHERE: u32 = 0;

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Http1,
    Http2,
    /// What `exchange` reads.
    Wire,
    /// Something else from now on, perhaps HTTP/2.
    Upgraded,
}

/// Handles the payload of a packet in. `LISTENER`: the flow is not a connection's yet.
///
/// # Safety
/// The flow is valid.
#[inline(always)]
pub unsafe fn segment<const LISTENER: bool>(packet: &Packet, flow: *mut Flow, slot: Slot) {
    let len = packet.payload();
    // SAFETY: the caller's promise; the place is ours between `claim` and the last line.
    unsafe {
        if len == 0 {
            return;
        }
        let mut mode = Mode::Http1;
        let opaque = get!(flow.rx.phase) == phase::OPAQUE;
        if opaque || get!(flow.tx_flags) & tx_flag::TUNNEL != 0 {
            if LISTENER {
                return;
            }
            let flags = get!(flow.rx_flags);
            if flags & rx_flag::HTTP2 != 0 {
                mode = Mode::Http2;
            } else if opaque && flags & rx_flag::WIRE != 0 {
                mode = Mode::Wire;
            } else if opaque {
                return;
            } else {
                mode = Mode::Upgraded;
            }
        }
        let Some(next) = claim(flow) else {
            count(Stat::LostRace);
            return;
        };
        let next = in_order::<LISTENER>(packet, flow, slot, mode, next, len);
        atomic::release(&raw mut (*flow).rx_next, next as u64);
    }
}

/// Packets in are handled before the socket is locked, so two CPUs can be here with the same connection.
#[inline(always)]
unsafe fn claim(flow: *mut Flow) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        let at = &raw mut (*flow).rx_next;
        let mut i = 0;
        while i < SPINS {
            let next = core::ptr::read_volatile(at);
            if next & BUSY == 0 && atomic::replace(at, next, next | BUSY) {
                return Some(next as u32);
            }
            i += 1;
        }
        None
    }
}

/// Takes the segment in its order; returns the sequence number expected from now on.
#[inline(always)]
unsafe fn in_order<const LISTENER: bool>(
    packet: &Packet,
    flow: *mut Flow,
    slot: Slot,
    mode: Mode,
    next: u32,
    len: u32,
) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut c = core::ptr::null_mut();
        if mode == Mode::Http2 {
            c = http2::of(packet, flow);
            if c.is_null() {
                return next;
            }
        }
        let m = &raw mut (*flow).rx;
        let end = packet.seq.wrapping_add(len);
        let offset = match place(next, packet.seq, len) {
            Place::Old => return next,
            Place::New(offset) => offset,
            Place::Gap(gap) => {
                let go_on = if mode == Mode::Wire {
                    exchange::passes(flow, gap)
                } else if !c.is_null() {
                    http2::in_payload(c, gap) || http2::continues(packet, c)
                } else {
                    // A server may answer before it has the body: then the next request can be in the gap.
                    in_body(m, gap) || get!(m.phase) == phase::SEARCH
                };
                if !go_on && wait(packet, flow, next, end) {
                    return next;
                }
                lose(flow, c, gap);
                0
            }
        };
        // Where something else than HTTP/1 begins, also of a connection that was not known to speak it.
        let mut pos = packet.headers + offset;
        if mode == Mode::Http1 {
            pos = requests::payload(packet, flow, slot, offset, len);
        } else if mode == Mode::Wire {
            pos = exchange::requests(packet, flow, offset, len - offset);
        } else if mode == Mode::Upgraded {
            pos = requests::upgraded(packet, flow, pos);
        }
        if pos != NOWHERE && get!(flow.rx_flags) & rx_flag::WIRE != 0 {
            // The one place: the verifier follows what is called here each time that it finds it.
            exchange::walk_in(packet, flow, slot, pos);
        } else if LISTENER && pos != NOWHERE {
            // A listener has no state: the connection looks for its place when there is one.
            count(Stat::Http2Listener);
        } else if pos != NOWHERE {
            if c.is_null() {
                c = http2::begin(packet, flow, pos);
            }
            if !c.is_null() {
                frames::requests(packet, flow, c, slot, pos);
            }
        }
        past_early(flow, c, end)
    }
}

/// Whether to wait for missing bytes: not when the socket has them already, nor for long.
#[inline(always)]
unsafe fn wait(packet: &Packet, flow: *mut Flow, next: u32, end: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let tcp: *mut bpf_tcp_sock = tcp_sock(packet.sk);
        let segments = get!(flow.early_segments);
        let several = rx_flag::PIPELINED | rx_flag::HTTP2 | rx_flag::WIRE;
        let several = get!(flow.rx_flags) & several != 0;
        let most = if several { MAX_EARLY } else { MAX_EARLY_OF_ONE };
        if tcp.is_null() || before(next, get!(tcp.rcv_nxt)) || segments >= most {
            return false;
        }
        count(Stat::OutOfOrder);
        if segments == 0 {
            set!(flow.early_from, packet.seq);
            set!(flow.early_to, end);
        } else {
            // Several stretches are remembered as one; what lies between them is given up with them.
            if before(packet.seq, get!(flow.early_from)) {
                set!(flow.early_from, packet.seq);
            }
            if before(get!(flow.early_to), end) {
                set!(flow.early_to, end);
            }
        }
        set!(flow.early_segments, segments + 1);
        true
    }
}

/// Moves over bytes that came before their turn and were not looked at: fine inside a body.
#[inline(always)]
unsafe fn past_early(flow: *mut Flow, c: *mut Connection, end: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(flow.early_segments) == 0 || before(end, get!(flow.early_from)) {
            return end;
        }
        set!(flow.early_segments, 0);
        let to = get!(flow.early_to);
        if !before(end, to) {
            return end;
        }
        lose(flow, c, to.wrapping_sub(end));
        to
    }
}

/// Accounts for bytes that will not be seen.
#[inline(always)]
unsafe fn lose(flow: *mut Flow, c: *mut Connection, gap: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        // Not by what was spoken when the segment came: that may have been found out in it.
        let kept = if get!(flow.rx_flags) & rx_flag::WIRE != 0 {
            exchange::lose(flow, gap)
        } else if c.is_null() {
            let m = &raw mut (*flow).rx;
            if in_head(m) {
                set!(flow.rx_flags, get!(flow.rx_flags) | rx_flag::HALF);
                set!(flow.answer_at, get!(flow.tx_next));
            }
            skip_gap(m, gap)
        } else {
            http2::lose(c, gap)
        };
        if !kept {
            set!(flow.early_segments, 0);
            count(Stat::RequestDesync);
        }
    }
}
