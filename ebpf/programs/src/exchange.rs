//! Requests and answers of the protocols that `wire` reads: Redis, PostgreSQL, and the turns of TLS. Only connections of which
//! the first bytes have shown that they speak one of them come here; HTTP never does.
//!
//! Cost: a step for each line of RESP and each message of PostgreSQL that begins in the packet; payloads are skipped by their
//! length.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_loop, bpf_skb_load_bytes};
use ebpf_scaler_common::flow::{Flow, in_flight, kind, oldest, rx_flag, tx_flag};
use ebpf_scaler_common::http1;
use ebpf_scaler_common::record::Stat;
use ebpf_scaler_common::wire::{self, Guess, Machine, Next, event, state};

use crate::atomic::{get, set};
use crate::flows::{return_scratch, take_scratch};
use crate::maps::count;
use crate::order::NOWHERE;
use crate::packet::Packet;
use crate::responses::{desynchronised, look};
use crate::scan::{Scan, one_to_256};
use crate::slots::{Slot, tally};
use crate::{requests as http, responses};

/// Steps a packet: 64 KiB hold no more tokens, none of which is shorter than four bytes with its payload.
const TURNS: u32 = 16_384;

/// Bytes of the shortest request: PING of RESP on a line, and an empty query of PostgreSQL's.
const SHORTEST: u32 = 6;

/// Where the ports begin that Linux gives to clients (net.ipv4.ip_local_port_range).
const CLIENTS_PORTS: u32 = 32_768;

#[inline(always)]
unsafe fn rx(flow: *mut Flow) -> *mut Machine {
    // SAFETY: the caller's promise; the two are laid out alike.
    unsafe { (&raw mut (*flow).rx).cast() }
}

#[inline(always)]
unsafe fn tx(flow: *mut Flow) -> *mut Machine {
    // SAFETY: the caller's promise; the two are laid out alike.
    unsafe { (&raw mut (*flow).tx).cast() }
}

/// Adds to the counter of what the connection speaks; HTTP/1 has none.
///
/// # Safety
/// The slot was just checked.
#[inline(always)]
pub unsafe fn tally_protocol(slot: Slot, rx_flags: u32, requests: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        if rx_flags & rx_flag::REDIS != 0 {
            tally!(slot, requests_redis, requests);
        } else if rx_flags & rx_flag::POSTGRESQL != 0 {
            tally!(slot, requests_postgresql, requests);
        }
    }
}

/// From now on the connection is not HTTP.
#[inline(always)]
unsafe fn enter(flow: *mut Flow, protocol: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        count(if protocol == rx_flag::REDIS {
            Stat::Redis
        } else if protocol == rx_flag::POSTGRESQL {
            Stat::Postgresql
        } else {
            Stat::Tls
        });
        let flags = get!(flow.rx_flags) & !rx_flag::WIRE;
        set!(flow.rx_flags, flags | protocol);
        set!(flow.rx.phase, http1::phase::OPAQUE);
    }
}

/// The first payload of a connection is not HTTP: is it one of ours? Then [`walk_in`] is to go on there.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn begun(packet: &Packet, flow: *mut Flow, offset: u32, left: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(flow.tx_packets) != 0 {
            // Arrays of bulk strings are commands and answers alike.
            set!(flow.rx_flags, get!(flow.rx_flags) | rx_flag::CLIENT);
            return false;
        }
        let (a, b) = look(packet, offset, left);
        let protocol = wire::begins(a, b, left);
        if protocol != 0 {
            enter(flow, protocol);
            wire::begin(rx(flow), wire::first_state(protocol));
        }
        protocol != 0
    }
}

/// A segment of a connection of which nothing is known: does it begin with a request of ours? Then
/// [`walk_in`] is to go on there.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn discovered(packet: &Packet, flow: *mut Flow, first: u64, left: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let known = rx_flag::HTTP | rx_flag::PARKED | rx_flag::CLIENT;
        // Of an older connection nobody knows who began it; what listens hardly ever does so where clients' ports lie.
        if get!(flow.rx_flags) & known != 0 || packet.local_port() >= CLIENTS_PORTS {
            return false;
        }
        let protocol = found(packet, first, left, rx_flag::WIRE);
        if protocol != 0 {
            enter(flow, protocol);
            wire::join(rx(flow));
            if protocol != rx_flag::TLS {
                http::guess(flow);
            }
        }
        protocol != 0
    }
}

/// What of these protocols the segment begins a request of.
#[inline(always)]
unsafe fn found(packet: &Packet, first: u64, left: u32, of: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if !wire::may_continue(first) {
            return 0;
        }
        let (a, b) = look(packet, 0, left);
        match wire::continues(a, b, left, of) {
            Guess::Whole(protocol) => protocol,
            Guess::Until(protocol, at) => {
                let next = look(packet, at, 5).0;
                if wire::confirms(protocol, next) {
                    protocol
                } else {
                    0
                }
            }
            Guess::Nothing => 0,
        }
    }
}

/// Whether a gap in what comes in is all in a payload that nobody looks at.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn passes(flow: *mut Flow, gap: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { wire::passes(rx(flow), gap) }
}

/// Accounts for bytes in that will not be seen; false if the place is lost.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn lose(flow: *mut Flow, gap: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let kept = wire::skip_gap(rx(flow), gap);
        if lost(flow) {
            unseen(flow, gap);
        }
        kept
    }
}

/// Whether nothing is known of the bytes in to come.
#[inline(always)]
unsafe fn lost(flow: *mut Flow) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let m = rx(flow);
        get!(m.state) == state::LOST
    }
}

/// Remembers bytes in that may have held requests.
#[inline(always)]
unsafe fn unseen(flow: *mut Flow, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe { set!(flow.unseen, get!(flow.unseen).saturating_add(bytes)) };
}

/// An answer to a request that was not seen: each request has one answer, so those missed show when there are more answers
/// than requests. False if no request was missed that it could answer; it is something else then, like a message to a
/// subscriber.
///
/// # Safety
/// The slot was just checked, the flow is valid, and its packets out are ours.
#[inline(always)]
pub unsafe fn answers_unseen(flow: *mut Flow, slot: Slot) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let flags = get!(flow.rx_flags);
        let (unseen, inferred) = (get!(flow.unseen), get!(flow.inferred));
        if flags & rx_flag::WIRE == 0 || inferred >= unseen / SHORTEST {
            return false;
        }
        set!(flow.inferred, inferred + 1);
        count(Stat::Inferred);
        tally!(slot, requests, 1);
        tally_protocol(slot, flags, 1);
        true
    }
}

/// Looks at `left` bytes of payload in, which begin at `offset`. Returns where in the packet [`walk_in`] is to go on, or
/// [`NOWHERE`].
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn requests(packet: &Packet, flow: *mut Flow, offset: u32, left: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let m = rx(flow);
        if wire::skip_all(m, left) {
            return NOWHERE;
        }
        if lost(flow) {
            // What is spoken is proven, and answers are still paired in their order: not a guess as at first sight.
            let begins = offset == 0 && left >= 5 && {
                let (first, _) = look(packet, 0, left);
                found(packet, first, left, get!(flow.rx_flags) & rx_flag::WIRE) != 0
            };
            if !begins {
                unseen(flow, left);
                return NOWHERE;
            }
            count(Stat::RequestResync);
            wire::join(m);
        }
        packet.headers + offset
    }
}

/// Steps through the packet in from `pos` on.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn walk_in(packet: &Packet, flow: *mut Flow, slot: Slot, pos: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let m = rx(flow);
        let Some((scratch, bit)) = take_scratch() else {
            lost_in(flow, packet.len - pos);
            return;
        };
        let mut scan = Scan {
            source: packet.skb.cast(),
            flow,
            window: &raw mut (*scratch).window,
            slot,
            ack: packet.ack,
        };
        scan.begin(bpf_ktime_get_ns(), pos, packet.len);
        bpf_loop(TURNS, turn_in as *mut _, (&raw mut scan).cast(), 0);
        let unfinished = wire::unfinished(m, scan.window);
        return_scratch(bit);
        if unfinished || get!(m.state) == state::LOST {
            lost_in(flow, packet.len - pos);
        }
    }
}

/// The place is lost, with this many bytes. What was never proven was nothing of ours.
#[inline(always)]
unsafe fn lost_in(flow: *mut Flow, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        wire::lost(rx(flow));
        let flags = get!(flow.rx_flags);
        if flags & (rx_flag::HTTP | rx_flag::TLS) != 0 {
            count(Stat::RequestDesync);
            unseen(flow, bytes);
        } else {
            set!(flow.rx_flags, flags & !rx_flag::WIRE);
            set!(flow.rx.phase, http1::phase::SEARCH);
        }
    }
}

/// Loads if need be; false if there is nothing to step over.
#[inline(always)]
unsafe fn load(scan: *mut Scan, m: *mut Machine) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let w = (*scan).window;
        match wire::prepare(m, w) {
            Next::Stop => false,
            Next::Step => true,
            Next::Load(n) => {
                let bytes = (&raw mut (*w).bytes).cast();
                let at = get!(w.base);
                if bpf_skb_load_bytes((*scan).source, at, bytes, one_to_256(n)) == 0 {
                    return true;
                }
                count(Stat::LoadFailed);
                wire::lost(m);
                false
            }
        }
    }
}

unsafe extern "C" fn turn_in(_: u64, scan: *mut Scan) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let flow = (*scan).flow;
        let m = rx(flow);
        if !load(scan, m) {
            return 1;
        }
        let protocol = get!(flow.rx_flags);
        match wire::step_in(protocol, m, (*scan).window) {
            event::REQUEST => http::complete(&*scan),
            event::RECORD => turned(flow, (*scan).slot),
            event::TLS => {
                enter(flow, rx_flag::TLS);
                wire::begin(m, state::START);
            }
            event::LOST => return 1,
            _ => {}
        }
    }
    0
}

/// The client sends data on a TLS connection: a turn if the server has sent something since the last one.
#[inline(always)]
unsafe fn turned(flow: *mut Flow, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        let (m, out) = (rx(flow), tx(flow));
        let sent = get!(out.word) + 1;
        if get!(m.begun) != sent {
            set!(m.begun, sent);
            if get!(flow.kind) & (kind::LOOPBACK | kind::EXCLUDED) == 0 {
                tally!(slot, tls_turns, 1);
            }
        }
    }
}

/// Handles the payload of a packet out, from `offset` on, after a gap.
///
/// # Safety
/// The flow is valid, and its packets out are ours.
#[inline(always)]
pub unsafe fn answers(packet: &Packet, flow: *mut Flow, slot: Slot, offset: u32, missing: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let m = tx(flow);
        if get!(flow.rx_flags) & rx_flag::TLS != 0 {
            set!(m.word, get!(m.word).wrapping_add(1));
            return;
        }
        if missing != 0 && !wire::skip_gap(m, missing) {
            desynchronised(flow);
        }
        let len = packet.payload();
        let mut start = offset;
        if get!(m.state) == state::LOST {
            if get!(flow.head) == oldest(flow) {
                return;
            }
            let ahead = get!(flow.answer_at).wrapping_sub(packet.seq);
            if (ahead as i32) >= offset as i32 {
                if ahead >= len {
                    return;
                }
                start = ahead;
                resynchronised(flow);
                wire::begin(m, state::START);
            }
            // Otherwise it has gone by: the next request that finds nothing outstanding will tell.
        } else if wire::skip_all(m, len - offset) {
            return;
        }
        walk_out(packet, flow, slot, start);
        if get!(m.state) == state::LOST {
            release(flow, slot);
            desynchronised(flow);
        }
    }
}

#[inline(always)]
unsafe fn resynchronised(flow: *mut Flow) {
    // SAFETY: the caller's promise.
    unsafe {
        let flags = get!(flow.tx_flags);
        if flags & tx_flag::RESYNC != 0 {
            count(Stat::ResponseResync);
            set!(flow.tx_flags, flags & !tx_flag::RESYNC);
        }
    }
}

/// Steps through the packet out from `offset` of its payload on, unless the place is lost.
#[inline(always)]
unsafe fn walk_out(packet: &Packet, flow: *mut Flow, slot: Slot, offset: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let m = tx(flow);
        if get!(m.state) == state::LOST {
            return;
        }
        let Some((scratch, bit)) = take_scratch() else {
            wire::lost(m);
            return;
        };
        let mut scan = Scan {
            source: packet.skb.cast(),
            flow,
            window: &raw mut (*scratch).window,
            slot,
            ack: 0,
        };
        scan.begin(packet.sent_at(), packet.headers + offset, packet.len);
        bpf_loop(TURNS, turn_out as *mut _, (&raw mut scan).cast(), 0);
        if wire::unfinished(m, scan.window) {
            wire::lost(m);
        }
        return_scratch(bit);
    }
}

unsafe extern "C" fn turn_out(_: u64, scan: *mut Scan) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let flow = (*scan).flow;
        let m = tx(flow);
        if !load(scan, m) {
            return 1;
        }
        let protocol = get!(flow.rx_flags);
        let status = match wire::step_out(protocol, m, (*scan).window) {
            event::ANSWER => 200,
            event::FAILED => 500,
            event::LOST => return 1,
            _ => return 0,
        };
        responses::complete(&*scan, status, get!(m.begun));
    }
    0
}

/// Answers will not be recognised: what waits for one is no longer in flight.
#[inline(always)]
unsafe fn release(flow: *mut Flow, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        let waiting = in_flight(flow);
        set!(flow.tail, get!(flow.head));
        set!(flow.lost_tail, get!(flow.lost_head));
        if waiting != 0 {
            tally!(slot, ended_besides, waiting);
        }
    }
}
