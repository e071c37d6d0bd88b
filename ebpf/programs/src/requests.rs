//! Requests: the payload of packets in, put in order, framed and counted when a header section is complete.
//! Inbound only: a pod's own requests to others are not its load.

use aya_ebpf::bindings::bpf_tcp_sock;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_tcp_sock as tcp_sock,
};
use ebpf_scaler_common::flow::{
    BUSY, Flow, MAX_EARLY, MAX_EARLY_OF_ONE, OUTSTANDING, Place, before, entry, kind, place,
    rx_flag, tx_flag,
};
use ebpf_scaler_common::http1::{begins_request, flag, in_body, in_head, phase, skip_gap};
use ebpf_scaler_common::http2::Connection;
use ebpf_scaler_common::record::Stat;

use crate::atomic::{self, get, set};
use crate::flows::{in_flight, oldest, return_scratch, take_scratch};
use crate::maps::count;
use crate::packet::Packet;
use crate::scan::Scan;
use crate::slots::{Slot, tally};
use crate::{frames, http2};

/// How often to look whether another CPU is done with the connection: well below a microsecond in all.
const SPINS: u32 = 48;

/// No place in a packet: headers come before every payload.
const NOWHERE: u32 = 0;

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Http1,
    Http2,
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
            if get!(flow.rx_flags) & rx_flag::HTTP2 != 0 {
                mode = Mode::Http2;
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
                let go_on = if !c.is_null() {
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
        // Where HTTP/2 begins, for a connection that was not known to speak it.
        let mut pos = packet.headers + offset;
        if mode == Mode::Http1 {
            pos = payload(packet, flow, slot, offset, len);
        } else if mode == Mode::Upgraded {
            pos = upgraded(packet, flow, pos);
        }
        if LISTENER && pos != NOWHERE {
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
        let several = get!(flow.rx_flags) & (rx_flag::PIPELINED | rx_flag::HTTP2) != 0;
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
        let kept = if c.is_null() {
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

/// Frames the payload from `offset` on. Returns where in the packet HTTP/2 begins, or [`NOWHERE`].
#[inline(always)]
unsafe fn payload(packet: &Packet, flow: *mut Flow, slot: Slot, offset: u32, len: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let m = &raw mut (*flow).rx;
        let at = get!(m.phase);
        let left = len - offset;
        if at == phase::BODY || at == phase::CHUNK_DATA {
            let remaining = get!(m.remaining);
            if remaining > left as u64 {
                set!(m.remaining, remaining - left as u64);
                return NOWHERE;
            }
        }
        if at == phase::SEARCH {
            // Only a segment's first byte can be trusted to be a message's.
            if offset != 0 || left <= 8 || unanswered_half(flow) {
                return NOWHERE;
            }
            let first = first_word(packet);
            if left < 16 || !begins_request(first) {
                let found = http2::discovered(packet, flow, first);
                return if found { packet.headers } else { NOWHERE };
            }
            resynchronise(flow, slot);
        }
        let Some((scratch, bit)) = take_scratch() else {
            set!(m.phase, phase::SEARCH);
            return NOWHERE;
        };
        let window = &raw mut (*scratch).window;
        let mut scan = Scan {
            skb: packet.skb,
            flow,
            window,
            slot,
            ack: packet.ack,
        };
        scan.requests(bpf_ktime_get_ns(), packet.headers + offset, packet.len);
        let rest = get!(window.base).wrapping_add(get!(window.pos));
        return_scratch(bit);
        let at = get!(m.phase);
        if at == phase::OPAQUE && get!(flow.rx_flags) & rx_flag::HTTP2 != 0 {
            return rest;
        }
        if at == phase::SEARCH
            && get!(m.flags) & flag::CONNECT == 0
            && get!(flow.rx_flags) & rx_flag::HTTP != 0
        {
            count(Stat::RequestDesync);
        }
        NOWHERE
    }
}

#[inline(always)]
fn first_word(packet: &Packet) -> u64 {
    let mut first = 0u64;
    // SAFETY: the length is the variable's, which stays 0 if that fails.
    unsafe {
        bpf_skb_load_bytes(
            packet.skb.cast(),
            packet.headers,
            (&raw mut first).cast(),
            8,
        )
    };
    first
}

/// Whether a request of which a part was missed waits for its answer: what comes meanwhile is its body.
#[inline(always)]
unsafe fn unanswered_half(flow: *mut Flow) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        get!(flow.rx_flags) & rx_flag::HALF != 0
            && get!(flow.answered) != get!(flow.rx.begun)
            && get!(flow.tx_next) == get!(flow.answer_at)
    }
}

/// The first payload in after an upgrade, or into a tunnel: HTTP/2 if it begins with that one's preface, and otherwise
/// nothing that anybody looks at again. Returns where in the packet HTTP/2 begins, or [`NOWHERE`].
#[inline(always)]
unsafe fn upgraded(packet: &Packet, flow: *mut Flow, pos: u32) -> u32 {
    const PREFACE: u64 = u64::from_le_bytes(*b"PRI * HT");
    const PRI: u32 = 4;
    // SAFETY: the caller's promise.
    unsafe {
        set!(flow.rx.phase, phase::OPAQUE);
        if pos != packet.headers || first_word(packet) != PREFACE {
            return NOWHERE;
        }
        count(Stat::Http2);
        set!(flow.rx_flags, get!(flow.rx_flags) | rx_flag::HTTP2);
        packet.headers + PRI
    }
}

/// Begins again where a segment begins like a request: a guess until a status line answers it.
#[inline(always)]
unsafe fn resynchronise(flow: *mut Flow, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        let (flags, head) = (get!(flow.rx_flags), get!(flow.head));
        if flags & rx_flag::HTTP != 0 {
            count(Stat::RequestResync);
        }
        // How many requests were missed is unknown, so nothing can be paired with those before.
        let aborted = if get!(flow.kind) & (kind::LOOPBACK | kind::EXCLUDED) == 0 {
            in_flight(flow)
        } else {
            0
        };
        if aborted != 0 {
            tally!(slot, requests_aborted, aborted);
            tally!(slot, ended, aborted);
        }
        set!(flow.flush, head);
        set!(flow.guess, head);
        set!(flow.rx_flags, (flags | rx_flag::TENTATIVE) & !rx_flag::HALF);
        set!(flow.rx.phase, phase::START);
    }
}

/// A request's header section is complete.
///
/// # Safety
/// The scan's pointers are valid, the flow's request side is ours.
#[inline(always)]
pub unsafe fn complete(scan: &Scan) {
    let (flow, slot) = (scan.flow, scan.slot);
    // SAFETY: the caller's promise.
    unsafe {
        let (kind, begun) = (get!(flow.kind), get!(flow.rx.begun));
        let flags = get!(flow.rx.flags);
        if kind & kind::LOOPBACK != 0 {
            tally!(slot, requests_loopback, 1);
            return;
        }
        if kind & kind::EXCLUDED != 0 {
            tally!(slot, requests_excluded_port, 1);
            return;
        }
        if get!(flow.answered) == begun {
            return;
        }
        let head = get!(flow.head);
        let mut state = get!(flow.rx_flags) | rx_flag::HTTP;
        if state & rx_flag::TENTATIVE != 0 && before(get!(flow.guess), get!(flow.tail)) {
            // A status line has answered since: no guess any more.
            state &= !rx_flag::TENTATIVE;
        }
        if state & rx_flag::TENTATIVE != 0 {
            // Of several guesses without an answer in between only the last is kept: bodies can look like this.
            set!(flow.flush, head);
        }
        let outstanding = head.wrapping_sub(oldest(flow));
        let lost = get!(flow.lost_head);
        let overflow = outstanding >= OUTSTANDING || lost != get!(flow.lost_tail);
        let first = outstanding == 0 && !overflow;
        // An answer still on its way to the client cannot be what the client waits for.
        if first && !before(scan.ack, get!(flow.tx_next)) {
            set!(flow.answer_at, scan.ack);
        } else if first {
            set!(flow.answer_at, scan.ack);
            state |= rx_flag::PIPELINED;
        } else {
            state |= rx_flag::PIPELINED;
        }
        set!(flow.rx_flags, state);
        count_request(scan, state, flags, overflow);
        if overflow {
            count(Stat::PipelineFull);
            set!(flow.lost_head, lost.wrapping_add(1));
            return;
        }
        let mut bits = (flags & (flag::HEAD | flag::CONNECT | flag::PROBE)) as u64;
        if state & rx_flag::TENTATIVE != 0 {
            bits |= entry::TENTATIVE;
        }
        let at = (head & (OUTSTANDING - 1)) as usize;
        core::ptr::write_volatile(
            (&raw mut (*flow).ring).cast::<u64>().add(at),
            (begun << entry::SHIFT) | bits,
        );
        set!(flow.head, head.wrapping_add(1));
    }
}

/// Counts the request now, unless it has to wait for its answer or for its connection.
#[inline(always)]
unsafe fn count_request(scan: &Scan, state: u32, flags: u32, overflow: bool) {
    let (flow, slot) = (scan.flow, scan.slot);
    // SAFETY: the caller's promise.
    unsafe {
        let probe = flags & flag::PROBE != 0 && !overflow;
        if state & rx_flag::PARKED != 0 {
            if probe {
                set!(flow.parked_probes, get!(flow.parked_probes) + 1);
            } else {
                set!(flow.parked, get!(flow.parked) + 1);
            }
        } else if state & rx_flag::TENTATIVE == 0 || overflow {
            if probe {
                tally!(slot, requests_probe, 1);
            } else {
                tally!(slot, requests, 1);
                tally!(slot, begun, 1);
            }
        }
    }
}
