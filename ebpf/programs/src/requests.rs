//! Requests: payload in, which is in order, framed and counted when a header section is complete. Inbound only: a pod's own
//! requests to others are not its load.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use ebpf_scaler_common::flow::{
    Flow, OUTSTANDING, before, entry, in_flight, kind, oldest, rx_flag,
};
use ebpf_scaler_common::http1::{begins_request, flag, phase};
use ebpf_scaler_common::record::Stat;

use crate::atomic::{get, set};
use crate::flows::{return_scratch, take_scratch};
use crate::maps::count;
use crate::order::NOWHERE;
use crate::packet::Packet;
use crate::scan::Scan;
use crate::slots::{Slot, tally};
use crate::{exchange, http2};

/// Frames the payload from `offset` on. Returns where in the packet something else than HTTP/1 begins, which the flow then
/// says, or [`NOWHERE`].
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn payload(packet: &Packet, flow: *mut Flow, slot: Slot, offset: u32, len: u32) -> u32 {
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
                if http2::discovered(packet, flow, first) {
                    return packet.headers;
                }
                let found = exchange::discovered(packet, flow, first, left);
                return if found { packet.headers } else { NOWHERE };
            }
            resynchronise(flow, slot);
        }
        let fresh = at == phase::START;
        let Some((scratch, bit)) = take_scratch() else {
            set!(m.phase, phase::SEARCH);
            return NOWHERE;
        };
        let window = &raw mut (*scratch).window;
        let mut scan = Scan {
            source: packet.skb.cast(),
            flow,
            window,
            slot,
            ack: packet.ack,
        };
        scan.requests::<false>(bpf_ktime_get_ns(), packet.headers + offset, packet.len);
        let rest = get!(window.base).wrapping_add(get!(window.pos));
        return_scratch(bit);
        let at = get!(m.phase);
        if at == phase::OPAQUE && get!(flow.rx_flags) & rx_flag::HTTP2 != 0 {
            return rest;
        }
        if at == phase::SEARCH {
            let known = get!(flow.rx_flags) & rx_flag::HTTP != 0;
            if !known && fresh {
                if exchange::begun(packet, flow, offset, left) {
                    return packet.headers + offset;
                }
            } else if known && get!(m.flags) & flag::CONNECT == 0 {
                count(Stat::RequestDesync);
            }
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
///
/// # Safety
/// As for [`payload`].
#[inline(always)]
pub unsafe fn upgraded(packet: &Packet, flow: *mut Flow, pos: u32) -> u32 {
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
///
/// # Safety
/// The flow is valid, its request side ours.
#[inline(always)]
pub unsafe fn resynchronise(flow: *mut Flow, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(flow.rx_flags) & rx_flag::HTTP != 0 {
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
            tally!(slot, ended_besides, aborted);
        }
        guess(flow);
        set!(flow.rx.phase, phase::START);
    }
}

/// What is framed from now on is a guess until it is answered.
///
/// # Safety
/// As for [`payload`].
#[inline(always)]
pub unsafe fn guess(flow: *mut Flow) {
    // SAFETY: the caller's promise.
    unsafe {
        let head = get!(flow.head);
        set!(flow.flush, head);
        set!(flow.guess, head);
        set!(
            flow.rx_flags,
            (get!(flow.rx_flags) | rx_flag::TENTATIVE) & !rx_flag::HALF
        );
    }
}

/// A request's header section is complete, or a request of another protocol.
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
                if state & rx_flag::WIRE != 0 {
                    exchange::tally_protocol(slot, state, 1);
                }
            }
        }
    }
}
