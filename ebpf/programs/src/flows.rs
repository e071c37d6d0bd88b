//! State per TCP connection: found, made, moved to another slot. Bounded by a cap on live socket storages; the
//! kernel frees them with their sockets.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_sk_storage_get, bpf_skb_cgroup_id, bpf_tcp_sock,
};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_scaler_common::flow::{Flow, FlowKey, OUTSTANDING, before, in_flight, kind, rx_flag};
use ebpf_scaler_common::http1::{Machine, phase};
use ebpf_scaler_common::http2 as connection;
use ebpf_scaler_common::record::{NO_SLOT, Program, Stat, generation_of, layout, slot_of};
use ebpf_scaler_common::wire;

use crate::atomic::{self, get, set};
use crate::maps::{EXCLUDED_PORTS, FLOWS, PARKED, SCRATCH, SCRATCHES, Scratch, control, count};
use crate::packet::Packet;
use crate::slots::{Slot, known, narrow, no_slot, resolve, tally};
use crate::{cost, exchange, http2};

/// Marks a buffer as taken.
pub type Taken = *mut u64;

/// A buffer of this CPU; give it back.
#[inline(always)]
pub fn take_scratch() -> Option<(*mut Scratch, Taken)> {
    let mut i = 0;
    while i < SCRATCHES {
        let scratch = SCRATCH.get_ptr_mut(i)?;
        // SAFETY: the map's element. Whatever interrupts or preempts this program takes its own, on this CPU too.
        unsafe {
            let taken = &raw mut (*scratch).taken;
            if atomic::swap(taken, 1) == 0 {
                return Some((scratch, taken));
            }
        }
        i += 1;
    }
    count(Stat::ScratchBusy);
    None
}

/// Gives a buffer back.
#[inline(always)]
pub fn return_scratch(taken: Taken) {
    // SAFETY: of this CPU, which the program has not left; and only its owner writes what is taken.
    unsafe { core::ptr::write_volatile(taken, 0) };
}

/// The state of the packet's socket, if it has one.
#[inline(always)]
pub fn find(packet: &Packet) -> *mut Flow {
    // SAFETY: a helper call; null if there is none.
    unsafe { bpf_sk_storage_get(storage(), packet.sk.cast(), core::ptr::null_mut(), 0).cast() }
}

#[inline(always)]
fn storage() -> *mut core::ffi::c_void {
    (&raw const FLOWS).cast_mut().cast()
}

/// Makes the state of the packet's socket, in that slot.
#[inline(always)]
pub fn make(packet: &Packet, slot_ref: u64, slot: Slot, cgroup: u64) -> *mut Flow {
    let Some(control) = control() else {
        return core::ptr::null_mut();
    };
    // SAFETY: the map's element.
    unsafe {
        if get!(control.live_flows) >= get!(control.max_flows) {
            count(Stat::FlowsFull);
            return core::ptr::null_mut();
        }
        let Some((scratch, bit)) = take_scratch() else {
            return core::ptr::null_mut();
        };
        let (flow, ours) = make_with(scratch, packet, slot_ref, slot, cgroup);
        return_scratch(bit);
        if ours {
            atomic::add(&raw mut (*control).live_flows, 1);
        }
        flow
    }
}

#[inline(always)]
unsafe fn make_with(
    scratch: *mut Scratch,
    packet: &Packet,
    slot_ref: u64,
    slot: Slot,
    cgroup: u64,
) -> (*mut Flow, bool) {
    // SAFETY: the scratch is ours, and everything else a helper's answer.
    unsafe {
        let blank = &raw mut (*scratch).blank;
        write_blank(blank, packet, slot_ref, slot);
        let mut received = 0;
        let tcp = bpf_tcp_sock(packet.sk);
        if !tcp.is_null() {
            received = get!(tcp.bytes_received);
            (*blank).rx_next = get!(tcp.rcv_nxt) as u64;
            (*blank).tx_next = get!(tcp.snd_nxt);
        }
        if received == 0 {
            (*blank).rx.phase = phase::START;
            (*blank).kind |= kind::OPENED;
        }
        if !packet.ingress {
            // What the socket has sent so far ends where this packet begins, unless it is sent again.
            (*blank).tx_next = packet.seq;
        }
        let cookie = (*blank).cookie;
        let flow: *mut Flow = bpf_sk_storage_get(
            storage(),
            packet.sk.cast(),
            blank.cast(),
            BPF_SK_STORAGE_GET_F_CREATE as u64,
        )
        .cast();
        if flow.is_null() {
            count(Stat::FlowsFailed);
            return (flow, false);
        }
        let ours = get!(flow.cookie) == cookie;
        if ours {
            if received == 0 {
                tally!(slot, connections_opened, 1);
            } else {
                adopt(scratch, packet, flow, slot, cgroup);
            }
        }
        (flow, ours)
    }
}

/// What the packet's addresses and ports say of its connection.
#[inline(always)]
fn kind_of(packet: &Packet) -> u32 {
    let port = packet.local_port();
    let excluded = EXCLUDED_PORTS
        .get(port >> 6)
        .is_some_and(|word| (word >> (port & 63)) & 1 != 0);
    let mut kind = 0;
    if packet.inside() {
        kind |= kind::LOOPBACK;
    }
    if excluded {
        kind |= kind::EXCLUDED;
    }
    kind
}

/// Writes every field that a maker ever writes; the others stay zero.
#[inline(always)]
pub unsafe fn write_blank(blank: *mut Flow, packet: &Packet, slot_ref: u64, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        (*blank).slot = slot_ref;
        (*blank).cookie = bpf_ktime_get_ns();
        (*blank).kind = kind_of(packet) | version(slot);
        (*blank).rx_flags = 0;
        (*blank).rx_next = packet.seq as u64;
        (*blank).tx_next = packet.ack;
        (*blank).rx.phase = phase::SEARCH;
    }
}

/// A new connection takes over what reached its listener before it was one.
#[inline(always)]
unsafe fn adopt(scratch: *mut Scratch, packet: &Packet, flow: *mut Flow, slot: Slot, cgroup: u64) {
    // SAFETY: the scratch is ours, the flow was made by us a moment ago and nobody else has used it.
    unsafe {
        let key = &raw mut (*scratch).key;
        packet.write_key(key, cgroup);
        let key: &FlowKey = &*key;
        let Some(parked) = PARKED.get_ptr(key) else {
            return;
        };
        let parked = parked.cast_mut();
        let next = get!(parked.rx_next) as u32;
        let received = get!(flow.rx_next) as u32;
        // What was parked ends where the connection has got to, or a later payload is already on its way.
        if before(next, received) || next.wrapping_sub(received) > 1 << 20 {
            return;
        }
        let (requests, probes) = (
            u64::from(get!(parked.parked)),
            u64::from(get!(parked.parked_probes)),
        );
        (*flow).rx_flags = get!(parked.rx_flags) & !rx_flag::PARKED;
        // Nothing has been sent yet; a SYN that carried the request acknowledged nothing.
        (*flow).answer_at = get!(flow.tx_next);
        copy_words::<{ size_of::<Machine>() / 8 }>(
            (&raw const (*parked).rx).cast(),
            (&raw mut (*flow).rx).cast(),
        );
        copy_words::<{ OUTSTANDING as usize }>(
            (&raw const (*parked).ring).cast(),
            (&raw mut (*flow).ring).cast(),
        );
        (*flow).head = get!(parked.head);
        (*flow).lost_head = get!(parked.lost_head);
        (*flow).unseen = get!(parked.unseen);
        (*flow).kind |= kind::OPENED;
        set!(flow.rx_next, next as u64);
        let _ = PARKED.remove(key);
        count(Stat::Adopted);
        tally!(slot, connections_opened, 1);
        tally!(slot, requests, requests);
        exchange::tally_protocol(slot, (*flow).rx_flags, requests);
        tally!(slot, requests_probe, probes);
    }
}

#[inline(always)]
unsafe fn copy_words<const N: usize>(from: *const u64, to: *mut u64) {
    let mut i = 0;
    while i < N {
        // SAFETY: the caller's promise. Volatile: the compiler would call a function that copies bytes.
        unsafe { core::ptr::write_volatile(to.add(i), core::ptr::read_volatile(from.add(i))) };
        i += 1;
    }
}

/// What a flow remembers of its slot's layout.
#[inline(always)]
pub fn version(slot: Slot) -> u32 {
    (slot.layout() & layout::VERSION) << kind::VERSION_SHIFT
}

/// The flow's slot, after looking again if it belongs to somebody else by now, or is divided in another way.
#[inline(always)]
pub fn slot(packet: &Packet, flow: *mut Flow) -> Option<Slot> {
    // SAFETY: the socket's storage.
    let (cached, kind) = unsafe { (get!(flow.slot), get!(flow.kind)) };
    if let Some(slot) = Slot::of(cached)
        && version(slot) >> kind::VERSION_SHIFT == kind >> kind::VERSION_SHIFT
    {
        return Some(slot);
    }
    core::intrinsics::cold_path();
    Slot::of(moved(packet, flow))
}

/// Finds the flow's slot anew; of [`NO_SLOT`] if there is none.
#[inline(never)]
fn moved(packet: &Packet, flow: *mut Flow) -> u64 {
    // SAFETY: the socket's storage.
    let cached = unsafe { get!(flow.slot) };
    // The former one, if it is still the same pod's.
    let old = Slot::of(cached);
    let nobody = slot_of(cached) == NO_SLOT;
    if nobody && generation_of(cached) == generation_of(no_slot()) {
        count(Stat::UnknownCgroup);
        return no_slot();
    }
    // SAFETY: a helper call, and the socket's storage.
    unsafe {
        let cgroup = bpf_skb_cgroup_id(packet.skb);
        let found = match old {
            // Its cgroup may have gone, and then it stays where it was.
            Some(_) => known(cgroup).unwrap_or(cached),
            None => match resolve(cgroup) {
                Some(found) => found,
                None => {
                    count(Stat::UnknownCgroup);
                    atomic::replace(&raw mut (*flow).slot, cached, no_slot());
                    return no_slot();
                }
            },
        };
        let Some(slot) = Slot::of(found) else {
            return no_slot();
        };
        let found = (found, slot);
        let (found, slot) = narrow(found, || Some(packet.local_port()));
        if found != cached && atomic::replace(&raw mut (*flow).slot, cached, found) {
            // What is in flight here came from elsewhere.
            let mut waiting = in_flight(flow);
            if get!(flow.rx_flags) & rx_flag::HTTP2 != 0 {
                let c = http2::find(packet.sk);
                if !c.is_null() {
                    waiting += connection::in_flight(c) as u64;
                }
            }
            tally!(slot, begun_besides, waiting);
            if let Some(old) = old {
                tally!(old, ended_besides, waiting);
                old.touch();
            }
        }
        let kind = get!(flow.kind) & ((1 << kind::VERSION_SHIFT) - 1);
        set!(flow.kind, kind | version(slot));
        found
    }
}

/// A socket that was disconnected (connect(2), AF_UNSPEC) connects again: nothing of the former connection counts.
///
/// # Safety
/// The flow is valid; the former connection's packets no longer find its socket.
#[inline(never)]
pub unsafe fn connected_again(packet: &Packet, flow: *mut Flow, slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        let aborted = in_flight(flow);
        if aborted != 0 {
            tally!(slot, requests_aborted, aborted);
            tally!(slot, ended_besides, aborted);
        }
        tally!(slot, connections_closed, 1);
        tally!(slot, connections_opened, 1);
        set!(flow.flush, get!(flow.head));
        set!(flow.lost_tail, get!(flow.lost_head));
        set!(flow.early_segments, 0);
        set!(flow.unseen, 0);
        set!(flow.inferred, 0);
        set!(flow.kind, kind_of(packet) | kind::OPENED | version(slot));
        set!(flow.rx_flags, 0);
        set!(flow.rx.phase, phase::START);
        set!(flow.tx_flags, 0);
        set!(flow.tx.phase, phase::SEARCH);
        wire::begin((&raw mut (*flow).tx).cast(), wire::state::LOST);
        set!(flow.tx_next, packet.seq);
    }
}

/// A TCP socket goes: requests without an answer will not get one.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let Some(run) = cost::begin(Program::Destroy) else {
        return 0;
    };
    destroyed(&ctx);
    cost::end(run);
    0
}

#[inline(always)]
fn destroyed(ctx: &BtfTracePointContext) {
    // SAFETY: the argument is a socket; the storage is its own.
    unsafe {
        let sk: *const bpf_sock = *ctx.as_ptr().cast();
        let flow: *mut Flow =
            bpf_sk_storage_get(storage(), sk.cast_mut().cast(), core::ptr::null_mut(), 0).cast();
        if flow.is_null() {
            return;
        }
        if let Some(control) = control() {
            atomic::add(&raw mut (*control).live_flows, u64::MAX);
        }
        let (mut aborted, mut ended) = (0, 0);
        if get!(flow.rx_flags) & rx_flag::HTTP2 != 0 {
            let c = http2::find(sk.cast_mut());
            if !c.is_null() {
                http2::released();
                aborted = connection::unanswered(c) as u64;
                ended = connection::in_flight(c) as u64;
            }
        }
        if let Some(slot) = Slot::of(get!(flow.slot)) {
            let outstanding = in_flight(flow);
            aborted += outstanding;
            ended += outstanding;
            if ended != 0 {
                tally!(slot, requests_aborted, aborted);
                tally!(slot, ended_besides, ended);
            }
            tally!(slot, connections_closed, 1);
            slot.touch();
        }
    }
}
