//! The cgroup_skb pass, in and out: bytes and packets of the pod's sockets, then requests and responses.
//!
//! Hooks: cgroup_skb ingress and egress at the cgroup above all pods. Cost: see docs/benchmarks.md.

use core::intrinsics::cold_path;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_cgroup_id;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use ebpf_scaler_common::flow::{Flow, FlowKey, Place, kind, place, rx_flag};
use ebpf_scaler_common::http1::phase;
use ebpf_scaler_common::record::{Program, Stat};

use crate::atomic::{get, set};
use crate::maps::{PARKED, count};
use crate::packet::{Packet, SYN, TCP};
use crate::slots::{Slot, narrow, resolve, tally};
use crate::{cost, flows, order, responses};

const TCP_SYN_SENT: u32 = 2;
const TCP_LISTEN: u32 = 10;
/// What the hook returns to let the packet pass; it always does.
const PASS: i32 = 1;

/// Packets to the pods' sockets.
#[cgroup_skb(ingress)]
#[inline(always)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    let Some(run) = cost::begin(Program::Ingress) else {
        return PASS;
    };
    packet::<true>(ctx.skb.skb);
    cost::end(run);
    PASS
}

/// Packets from the pods' sockets.
#[cgroup_skb(egress)]
#[inline(always)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    let Some(run) = cost::begin(Program::Egress) else {
        return PASS;
    };
    packet::<false>(ctx.skb.skb);
    cost::end(run);
    PASS
}

/// A constant direction: the compiler does not know it of the packet on the stack, and would put both into each program.
#[inline(always)]
fn packet<const INGRESS: bool>(skb: *mut __sk_buff) {
    let mut packet = MaybeUninit::uninit();
    let Some(packet) = Packet::read(&mut packet, skb, INGRESS) else {
        return;
    };
    if packet.protocol != TCP {
        unconnected(packet);
        return;
    }
    // SAFETY: the context's socket, which is not null.
    let state = unsafe { core::ptr::read_volatile(&raw const (*packet.sk).state) };
    if state == TCP_LISTEN {
        cold_path();
        listener::<INGRESS>(packet);
        return;
    }
    let mut flow = flows::find(packet);
    if flow.is_null() {
        cold_path();
        flow = first(packet);
        if flow.is_null() {
            return;
        }
    }
    let Some(slot) = flows::slot(packet, flow) else {
        return;
    };
    // SAFETY: the socket's storage.
    unsafe {
        if !INGRESS && packet.connects() && get!(flow.tx_next) != packet.seq {
            cold_path();
            flows::connected_again(packet, flow, slot);
        }
        connection::<INGRESS>(packet, flow, slot);
    }
}

/// The state of a connection of which no packet was seen; null if there is none to be had, and then its bytes are counted.
#[inline(never)]
fn first(packet: &Packet) -> *mut Flow {
    let (found, cgroup) = of_cgroup(packet);
    let Some((slot_ref, slot)) = found else {
        return core::ptr::null_mut();
    };
    let flow = flows::make(packet, slot_ref, slot, cgroup);
    if flow.is_null() {
        bytes(packet, slot, packet.inside());
    }
    flow
}

#[inline(always)]
unsafe fn connection<const INGRESS: bool>(packet: &Packet, flow: *mut Flow, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(flow.kind) & kind::LOOPBACK == 0 {
            count_bytes(packet, slot);
        }
        if INGRESS {
            // The answer to our own SYN; what duplicates of a SYN say later is old.
            let sk = packet.sk;
            if packet.flags & SYN != 0 && get!(sk.state) == TCP_SYN_SENT {
                set!(flow.rx_next, packet.seq as u64);
            }
        }
        // Most packets on their way against the payload have none: they run through as little code as can be.
        if packet.payload() != 0 {
            payload::<INGRESS>(packet, flow, slot);
        }
    }
    slot.touch();
}

/// Out of line, and what is rare as well: code that a packet does not need does not lie between what it needs.
#[inline(never)]
unsafe fn payload<const INGRESS: bool>(packet: &Packet, flow: *mut Flow, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        if INGRESS {
            order::segment::<false>(packet, flow, slot);
        } else {
            responses::segment(packet, flow, slot);
        }
    }
}

/// The slot of the packet's cgroup, or of its port if that is counted apart; and that cgroup.
#[inline(always)]
fn of_cgroup(packet: &Packet) -> (Option<(u64, Slot)>, u64) {
    // SAFETY: a helper call.
    let cgroup = unsafe { bpf_skb_cgroup_id(packet.skb) };
    let found = resolve(cgroup).and_then(|found| Slot::of(found).map(|slot| (found, slot)));
    let found = found.map(|found| narrow(found, || packet.any_local_port()));
    if found.is_none() {
        count(Stat::UnknownCgroup);
    }
    (found, cgroup)
}

/// Sockets without state of ours: UDP and the rest.
#[inline(never)]
fn unconnected(packet: &Packet) {
    if let (Some((_, slot)), _) = of_cgroup(packet) {
        bytes(packet, slot, packet.inside());
    }
}

#[inline(always)]
fn bytes(packet: &Packet, slot: Slot, inside: bool) {
    if inside {
        return;
    }
    count_bytes(packet, slot);
    slot.touch();
}

#[inline(always)]
fn count_bytes(packet: &Packet, slot: Slot) {
    let (packets, bytes) = packet.on_wire();
    // SAFETY: the slot was just checked.
    unsafe {
        if packet.ingress {
            tally!(slot, receive_bytes, bytes);
            tally!(slot, receive_packets, packets);
        } else {
            tally!(slot, transmit_bytes, bytes);
            tally!(slot, transmit_packets, packets);
        }
    }
}

/// A connection's first payload can come with the listener as its socket (TCP_DEFER_ACCEPT, a lost handshake
/// ACK, TFO). A listener has no state of a connection: what is found waits by address until there is one.
#[inline(never)]
fn listener<const INGRESS: bool>(packet: &Packet) {
    let (Some((slot_ref, slot)), cgroup) = of_cgroup(packet) else {
        return;
    };
    bytes(packet, slot, packet.inside());
    if !INGRESS || packet.payload() == 0 {
        return;
    }
    let Some((scratch, bit)) = flows::take_scratch() else {
        return;
    };
    // SAFETY: the scratch is ours; the map's element is the only state of these addresses.
    let parked = unsafe {
        let key = &raw mut (*scratch).key;
        packet.write_key(key, cgroup);
        // By reference: a copy would not fit the stack.
        let key: &FlowKey = &*key;
        let mut parked = PARKED.get_ptr(key);
        let next = parked.map(|parked| get!(parked.rx_next) as u32);
        let continues = next.map(|next| place(next, packet.seq, packet.payload()));
        if continues == Some(Place::Old) {
            parked = None;
        } else if continues != Some(Place::New(0)) {
            let blank = &raw mut (*scratch).blank;
            flows::write_blank(blank, packet, slot_ref, slot);
            (*blank).rx_flags = rx_flag::PARKED;
            (*blank).rx.phase = phase::START;
            count(Stat::Parked);
            let blank: &Flow = &*blank;
            parked = match PARKED.insert(key, blank, 0) {
                Ok(()) => PARKED.get_ptr(key),
                Err(_) => None,
            };
        }
        parked
    };
    flows::return_scratch(bit);
    if let Some(parked) = parked {
        // SAFETY: the map's element; an LRU that evicts it now leaves the memory valid for this run.
        unsafe { order::segment::<true>(packet, parked.cast_mut(), slot) };
    }
}
