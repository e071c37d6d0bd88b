//! Responses: the payload of packets out. A client that does not pipeline has all of the former answer before it
//! asks again, so the next answer begins at the sequence number its request acknowledges: one look at the status
//! line there is enough. Answers are framed only after pipelining or an interim response.
//!
//! Packets out are handled under the socket's lock, so nothing here races with itself.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_tcp_sock};
use ebpf_scaler_common::flow::{
    Flow, OUTSTANDING, Place, RTT_EVERY, entry, kind, oldest, place, rx_flag, tx_flag,
};
use ebpf_scaler_common::histogram;
use ebpf_scaler_common::http1::{begins_response, flag, in_head, phase, skip_gap, status_in};
use ebpf_scaler_common::record::Stat;

use crate::atomic::{self, get, set};
use crate::flows::{return_scratch, take_scratch};
use crate::maps::count;
use crate::packet::Packet;
use crate::scan::{Scan, one_to_256};
use crate::slots::{Slot, tally};
use crate::{exchange, frames};

/// "HTTP/1.x NNN"
const STATUS_LINE: u32 = 12;

/// Handles the payload of a packet out.
///
/// # Safety
/// The flow is valid.
#[inline(always)]
pub unsafe fn segment(packet: &Packet, flow: *mut Flow, slot: Slot) {
    let len = packet.payload();
    if len == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let seen = place(get!(flow.tx_next), packet.seq, len);
        let mut missing = 0;
        let offset = match seen {
            Place::Old => {
                tally!(slot, tcp_retransmits, packet.on_wire().0);
                return;
            }
            Place::New(offset) => offset,
            Place::Gap(gap) => {
                missed(flow, gap);
                missing = gap;
                0
            }
        };
        set!(flow.tx_next, packet.seq.wrapping_add(len));
        sample_rtt(packet, flow, slot);
        if get!(flow.kind) & (kind::LOOPBACK | kind::EXCLUDED) != 0 {
            return;
        }
        let at = get!(flow.tx.phase);
        if get!(flow.tx_flags) & tx_flag::TUNNEL != 0
            || at == phase::SEARCH && get!(flow.rx.phase) == phase::OPAQUE
        {
            let flags = get!(flow.rx_flags);
            if flags & rx_flag::HTTP2 != 0 {
                frames::responses(packet, flow, slot, offset, missing);
            } else if flags & rx_flag::WIRE != 0 {
                exchange::answers(packet, flow, slot, offset, missing);
            }
        } else if at == phase::SEARCH {
            next_answer(packet, flow, slot, offset, len);
        } else {
            framed(packet, flow, slot, at, offset, len);
        }
    }
}

/// Looks now and then at what the kernel knows of the round-trip time: with the first packet (the handshake's), and
/// then with one of so many, which costs next to nothing and needs no clock.
#[inline(always)]
unsafe fn sample_rtt(packet: &Packet, flow: *mut Flow, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        let sent = get!(flow.tx_packets);
        set!(flow.tx_packets, sent.wrapping_add(1));
        if sent & (RTT_EVERY - 1) != 0 || get!(flow.kind) & kind::LOOPBACK != 0 {
            return;
        }
        let tcp = bpf_tcp_sock(packet.sk);
        if tcp.is_null() {
            return;
        }
        // The kernel keeps eight times the smoothed value; 0 before the first measurement.
        let micros = u64::from(get!(tcp.srtt_us) >> 3);
        let index = histogram::index(micros) & 0xff;
        if micros != 0 && index < histogram::BUCKETS {
            let buckets = (&raw mut (*slot.record).tcp_rtt).cast::<u64>();
            atomic::add(buckets.add(index), 1);
        }
    }
}

#[inline(always)]
unsafe fn missed(flow: *mut Flow, gap: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if !skip_gap(&raw mut (*flow).tx, gap) {
            desynchronised(flow);
        }
    }
}

/// The place among the answers is lost.
///
/// # Safety
/// The flow is valid, and its packets out are ours.
#[inline(always)]
pub unsafe fn desynchronised(flow: *mut Flow) {
    // SAFETY: the caller's promise.
    unsafe {
        let flags = get!(flow.tx_flags);
        if flags & tx_flag::RESYNC == 0 {
            set!(flow.tx_flags, flags | tx_flag::RESYNC);
            count(Stat::ResponseDesync);
        }
    }
}

/// No answer is being framed: does the next one begin here?
#[inline(always)]
unsafe fn next_answer(packet: &Packet, flow: *mut Flow, slot: Slot, offset: u32, len: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let tail = oldest(flow);
        let outstanding = get!(flow.head)
            .wrapping_sub(tail)
            .wrapping_add(get!(flow.lost_head).wrapping_sub(get!(flow.lost_tail)));
        if outstanding == 0 {
            let half = get!(flow.rx_flags) & rx_flag::HALF != 0;
            if half || in_head(&raw const (*flow).rx) {
                answer_early(packet, flow, slot, offset, len);
            }
            return;
        }
        let mut start = offset;
        let resync = get!(flow.tx_flags) & tx_flag::RESYNC != 0;
        if !resync {
            let ahead = get!(flow.answer_at).wrapping_sub(packet.seq);
            if (ahead as i32) < offset as i32 {
                desynchronised(flow);
            } else if ahead >= len {
                // Still the former answer.
                return;
            } else {
                start = ahead;
            }
        }
        let left = len - start;
        let first = look(packet, start, left);
        if !begins_response(first.0) && left >= STATUS_LINE {
            desynchronised(flow);
            return;
        }
        let flags = get!(flow.tx_flags);
        if flags & tx_flag::RESYNC != 0 {
            if left < STATUS_LINE {
                return;
            }
            count(Stat::ResponseResync);
            set!(flow.tx_flags, flags & !tx_flag::RESYNC);
        }
        let status = status_in(first.1);
        let pipelined = get!(flow.rx_flags) & rx_flag::PIPELINED != 0;
        if left >= STATUS_LINE && outstanding == 1 && !pipelined && (status >= 200 || status == 101)
        {
            let scan = Scan {
                source: packet.skb.cast(),
                flow,
                window: core::ptr::null_mut(),
                slot,
                ack: 0,
            };
            complete(&scan, status, packet.sent_at());
            return;
        }
        set!(flow.tx.phase, phase::START);
        run(packet, flow, slot, start, len);
    }
}

/// The server answers a request whose headers are not complete here: mostly to refuse them, or a part of them was missed.
#[inline(always)]
unsafe fn answer_early(packet: &Packet, flow: *mut Flow, slot: Slot, offset: u32, len: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let begun = get!(flow.rx.begun);
        if len - offset < STATUS_LINE || get!(flow.answered) == begun {
            return;
        }
        let first = look(packet, offset, len - offset);
        let status = status_in(first.1);
        if !begins_response(first.0) || status < 200 {
            return;
        }
        set!(flow.answered, begun);
        tally!(slot, requests, 1);
        answered(slot, status, begun, packet.sent_at());
    }
}

/// The first 16 bytes at `offset` of the payload, or as many as there are.
///
/// # Safety
/// The packet's pointers are valid.
#[inline(always)]
pub unsafe fn look(packet: &Packet, offset: u32, left: u32) -> (u64, u64) {
    let mut first = MaybeUninit::uninit();
    let first = atomic::zeroed(&mut first);
    let n = if left < 16 { left } else { 16 };
    let n = ((one_to_256(n) - 1) & 15) + 1;
    // SAFETY: at most 16 bytes.
    unsafe {
        bpf_skb_load_bytes(packet.skb.cast(), packet.headers + offset, first.cast(), n);
        (
            core::ptr::read_volatile(first),
            core::ptr::read_volatile(first.add(1)),
        )
    }
}

/// An answer is being framed.
#[inline(always)]
unsafe fn framed(packet: &Packet, flow: *mut Flow, slot: Slot, at: u32, offset: u32, len: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let left = (len - offset) as u64;
        if at == phase::OPAQUE {
            return;
        }
        let remaining = get!(flow.tx.remaining);
        if (at == phase::BODY || at == phase::CHUNK_DATA) && remaining > left {
            set!(flow.tx.remaining, remaining - left);
            return;
        }
        run(packet, flow, slot, offset, len);
    }
}

#[inline(always)]
unsafe fn run(packet: &Packet, flow: *mut Flow, slot: Slot, offset: u32, _len: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let Some((scratch, bit)) = take_scratch() else {
            set!(flow.tx.phase, phase::SEARCH);
            desynchronised(flow);
            return;
        };
        let window = &raw mut (*scratch).window;
        let mut scan = Scan {
            source: packet.skb.cast(),
            flow,
            window,
            slot,
            ack: 0,
        };
        scan.responses::<false>(packet.sent_at(), packet.headers + offset, packet.len);
        return_scratch(bit);
        framed_so_far(flow);
    }
}

/// What was at hand of the answers has been framed: was the place lost, or is there nothing left to be answered?
///
/// # Safety
/// The flow's response side is ours.
#[inline(always)]
pub unsafe fn framed_so_far(flow: *mut Flow) {
    // SAFETY: the caller's promise.
    unsafe {
        let at = get!(flow.tx.phase);
        if at == phase::SEARCH {
            desynchronised(flow);
        } else if at == phase::START
            && get!(flow.rx_flags) & rx_flag::PIPELINED == 0
            && get!(flow.head) == oldest(flow)
        {
            set!(flow.tx.phase, phase::SEARCH);
        }
    }
}

/// A status line: takes the request it answers out of the ring, and returns what of it matters for framing.
///
/// # Safety
/// The scan's pointers are valid, the flow's response side is ours.
#[inline(always)]
pub unsafe fn complete(scan: &Scan, status: u32, now: u64) -> u32 {
    let (flow, slot) = (scan.flow, scan.slot);
    // SAFETY: the caller's promise.
    unsafe {
        if status < 200 && status != 101 {
            atomic::add((&raw mut (*slot.record).tally.responses).cast(), 1);
            return 0;
        }
        let tail = oldest(flow);
        if tail == get!(flow.head) {
            let lost = get!(flow.lost_tail);
            if lost != get!(flow.lost_head) {
                set!(flow.lost_tail, lost.wrapping_add(1));
            } else if !exchange::answers_unseen(flow, slot) {
                count(Stat::Unmatched);
                return 0;
            }
            end(slot, status);
            return 0;
        }
        let at = (tail & (OUTSTANDING - 1)) as usize;
        let request = core::ptr::read_volatile((&raw const (*flow).ring).cast::<u64>().add(at));
        set!(flow.tail, tail.wrapping_add(1));
        if status == 101 || request & entry::CONNECT != 0 && status < 300 {
            set!(flow.tx_flags, get!(flow.tx_flags) | tx_flag::TUNNEL);
        }
        let guess = request & entry::TENTATIVE != 0;
        if request & entry::PROBE != 0 {
            if guess {
                tally!(slot, requests_probe, 1);
            }
        } else {
            if guess {
                tally!(slot, requests, 1);
                exchange::tally_protocol(slot, get!(flow.rx_flags), 1);
            }
            answered(slot, status, request >> entry::SHIFT, now);
        }
        (request & (entry::HEAD | entry::CONNECT)) as u32 & (flag::HEAD | flag::CONNECT)
    }
}

/// Counts the answer to a request that began at `begun`.
///
/// # Safety
/// The slot was just checked.
#[inline(always)]
pub unsafe fn answered(slot: Slot, status: u32, begun: u64, now: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        end(slot, status);
        let begun = begun & (u64::MAX >> entry::SHIFT);
        latency(
            slot,
            if now > begun {
                histogram::micros(now - begun)
            } else {
                0
            },
        );
    }
}

/// A request ends with that status.
#[inline(always)]
unsafe fn end(slot: Slot, status: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        class(slot, status);
        if status < 200 {
            // That class is of answers with which nothing ends.
            tally!(slot, ended_besides, 1);
        }
    }
}

/// Adds to the histogram of latencies.
///
/// # Safety
/// The slot was just checked.
#[inline(always)]
pub unsafe fn latency(slot: Slot, micros: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        tally!(slot, request_latency_sum_micros, micros);
        let index = histogram::index(micros) & 0xff;
        if index < histogram::BUCKETS {
            atomic::add(
                (&raw mut (*slot.record).request_latency)
                    .cast::<u64>()
                    .add(index),
                1,
            );
        }
    }
}

/// Adds to the status's class.
///
/// # Safety
/// The slot was just checked.
#[inline(always)]
pub unsafe fn class(slot: Slot, status: u32) {
    // SAFETY: the caller's promise; the index is 0 to 4.
    unsafe {
        let responses = (&raw mut (*slot.record).tally.responses).cast::<u64>();
        let at = if status < 200 {
            responses
        } else if status < 300 {
            responses.add(1)
        } else if status < 400 {
            responses.add(2)
        } else if status < 500 {
            responses.add(3)
        } else {
            responses.add(4)
        };
        atomic::add(at, 1);
    }
}
