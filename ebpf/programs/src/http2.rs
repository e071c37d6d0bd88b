//! HTTP/2: drives the frame walker over packets of connections that are known to speak it, and counts what it tells. State
//! is a second socket storage that exists only for those; it is bounded like the first, by a cap of its own.
//!
//! Cost: a load of at most 32 bytes for each frame that begins in the packet; payloads are skipped by their length.

use aya_ebpf::bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_loop, bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skb_load_bytes,
};
use ebpf_scaler_common::flow::{Flow, kind, rx_flag};
use ebpf_scaler_common::http1;
use ebpf_scaler_common::http2::{
    self, Connection, Guess, LOOK, Machine, Next, PREFACE_REST, act, event, guess, phase, role,
};
use ebpf_scaler_common::record::Stat;

use crate::atomic::{self, get, set};
use crate::maps::{HTTP2S, control, count, count_by};
use crate::packet::Packet;
use crate::responses::{class, latency};
use crate::slots::{Slot, tally};

/// Frames of a packet that are walked; 64 KiB hold more only of the shortest.
const TURNS: u32 = 4096;

/// What a turn needs; lives on the stack.
#[repr(C)]
pub struct Walk {
    skb: *mut __sk_buff,
    flow: *mut Flow,
    connection: *mut Connection,
    slot: Slot,
    now: u64,
}

#[inline(always)]
fn storage() -> *mut core::ffi::c_void {
    (&raw const HTTP2S).cast_mut().cast()
}

/// The HTTP/2 state of a socket; null if it has none.
///
/// # Safety
/// The socket is valid.
#[inline(always)]
pub unsafe fn find(sk: *mut bpf_sock) -> *mut Connection {
    // SAFETY: a helper call.
    unsafe { bpf_sk_storage_get(storage(), sk.cast(), core::ptr::null_mut(), 0).cast() }
}

/// The state of a connection of which packets in have told that it speaks HTTP/2. One that is not to be measured has
/// none, and is not asked again.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn of(packet: &Packet, flow: *mut Flow) -> *mut Connection {
    // SAFETY: the caller's promise.
    unsafe {
        let c = find(packet.sk);
        if c.is_null() {
            // It spoke to the listener first.
            return make(packet, flow, role::SERVER, phase::SEARCH);
        }
        if (get!(c.rx_role) | get!(c.tx_role)) & role::CLIENT == 0 {
            return c;
        }
        forget(flow);
        if bpf_sk_storage_delete(storage(), packet.sk.cast()) == 0 {
            released();
        }
        core::ptr::null_mut()
    }
}

#[inline(always)]
unsafe fn forget(flow: *mut Flow) {
    // SAFETY: the caller's promise.
    unsafe { set!(flow.rx_flags, get!(flow.rx_flags) & !rx_flag::HTTP2) };
}

/// A storage is gone.
#[inline(always)]
pub fn released() {
    if let Some(control) = control() {
        // SAFETY: the map's element.
        unsafe { atomic::add(&raw mut (*control).live_http2, u64::MAX) };
    }
}

#[inline(always)]
unsafe fn make(packet: &Packet, flow: *mut Flow, known: u32, at: u32) -> *mut Connection {
    // SAFETY: the caller's promise; packets in are ours, so nobody else makes this storage.
    unsafe {
        forget(flow);
        let Some(control) = control() else {
            return core::ptr::null_mut();
        };
        if get!(control.live_http2) >= get!(control.max_http2) {
            count(Stat::Http2Full);
            return core::ptr::null_mut();
        }
        let c: *mut Connection = bpf_sk_storage_get(
            storage(),
            packet.sk.cast(),
            core::ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE as u64,
        )
        .cast();
        if c.is_null() {
            count(Stat::FlowsFailed);
            return c;
        }
        atomic::add(&raw mut (*control).live_http2, 1);
        set!(c.rx_role, known);
        set!(c.rx.phase, at);
        if at == phase::SEARCH {
            set!(c.tx.phase, phase::SEARCH);
        } else {
            // What the server may have sent before ends with a frame.
            set!(c.rx.skip, PREFACE_REST);
        }
        set!(flow.rx.phase, http1::phase::OPAQUE);
        set!(flow.rx_flags, get!(flow.rx_flags) | rx_flag::HTTP2);
        c
    }
}

/// A preface was seen up to "PRI "; its rest is at `pos` of the packet.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn start(packet: &Packet, flow: *mut Flow, slot: Slot, pos: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(flow.rx_flags) & rx_flag::PARKED != 0 {
            // A listener has no state: the connection looks for its place when there is one.
            count(Stat::Http2Listener);
            return;
        }
        let c = make(packet, flow, role::SERVER, phase::SETTINGS);
        if !c.is_null() {
            requests(packet, flow, c, slot, pos);
        }
    }
}

/// Whether a segment in of a connection of which nothing is known begins with frames; then it is taken for HTTP/2.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn discover(packet: &Packet, flow: *mut Flow, slot: Slot, first: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        if !http2::may_begin(first)
            || get!(flow.rx_flags) & (rx_flag::HTTP | rx_flag::PARKED) != 0
            || !believed(packet, 0)
        {
            return;
        }
        count(Stat::Http2);
        let c = make(packet, flow, 0, phase::SEARCH);
        if !c.is_null() {
            requests(packet, flow, c, slot, packet.headers);
        }
    }
}

/// Whether the segment begins with a frame, and another follows or it ends with it.
#[inline(always)]
unsafe fn believed(packet: &Packet, last: u32) -> bool {
    let Some((a, b)) = header(packet.skb, packet.headers) else {
        return false;
    };
    match guess(a, b, packet.payload(), last) {
        Guess::Nothing => false,
        Guess::Whole => true,
        Guess::Until(at) => match header(packet.skb, packet.headers + at) {
            Some((a, b)) => http2::confirms(a, b, last),
            None => false,
        },
    }
}

#[inline(always)]
fn header(skb: *mut __sk_buff, at: u32) -> Option<(u64, u32)> {
    let mut bytes = [0u64; 2];
    // SAFETY: nine bytes of sixteen.
    let loaded = unsafe { bpf_skb_load_bytes(skb.cast(), at, bytes.as_mut_ptr().cast(), 9) };
    (loaded == 0).then_some((bytes[0], bytes[1] as u32))
}

/// Whether to go on here although bytes are missing before this segment: it begins with frames.
///
/// # Safety
/// The connection is valid, and packets in are ours.
#[inline(always)]
pub unsafe fn continues(packet: &Packet, c: *mut Connection) -> bool {
    // SAFETY: the caller's promise.
    unsafe { believed(packet, get!(c.last)) }
}

/// Whether the gap is all in a payload that nobody looks at.
///
/// # Safety
/// The connection is valid, and packets in are ours.
#[inline(always)]
pub unsafe fn in_payload(c: *mut Connection, gap: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { gap <= get!(c.rx.skip) }
}

/// Accounts for bytes in that will not be seen; false if the place is lost.
///
/// # Safety
/// The connection is valid, and packets in are ours.
#[inline(always)]
pub unsafe fn lose(c: *mut Connection, gap: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let kept = http2::skip_gap(&raw mut (*c).rx, gap);
        if !kept {
            set!(c.missed, 1);
        }
        kept
    }
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
        walk::<false>(packet, flow, c, slot, pos);
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
        walk::<true>(packet, flow, c, slot, packet.headers + offset);
    }
}

#[inline(always)]
unsafe fn walk<const OUT: bool>(
    packet: &Packet,
    flow: *mut Flow,
    c: *mut Connection,
    slot: Slot,
    pos: u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let now = bpf_ktime_get_ns();
        let mut walk = Walk {
            skb: packet.skb,
            flow,
            connection: c,
            slot,
            now,
        };
        let m = side::<OUT>(c);
        http2::begin(m, now, pos, packet.len);
        let turn: unsafe extern "C" fn(u64, *mut Walk) -> i64 =
            if OUT { response_turn } else { request_turn };
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
unsafe fn turn<const OUT: bool>(walk: *mut Walk) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        let c = (*walk).connection;
        let m = side::<OUT>(c);
        let Next::Load { at, len } = http2::prepare(m) else {
            return None;
        };
        let to = http2::head(m).add(below_32(at as u64) as usize);
        let n = below_32(len as u64 - 1) as u32 + 1;
        if bpf_skb_load_bytes((*walk).skb.cast(), get!(m.pos), to.cast(), n) != 0 {
            count(Stat::LoadFailed);
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

unsafe extern "C" fn request_turn(_: u64, walk: *mut Walk) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let c = (*walk).connection;
        match turn::<false>(walk) {
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
            if acts & act::BEGUN != 0 {
                tally!(slot, begun, 1);
            }
            if acts & act::UNTIMED != 0 {
                count(Stat::Http2StreamsFull);
            }
        }
    }
}

unsafe extern "C" fn response_turn(_: u64, walk: *mut Walk) -> i64 {
    // SAFETY: bpf_loop passes what we gave it.
    unsafe {
        let c = (*walk).connection;
        let slot = (*walk).slot;
        match turn::<true>(walk) {
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
            tally!(slot, begun, 1);
        }
        if acts & act::ANSWERED != 0 {
            let micros = ((*walk).now / 1000) as u32;
            latency(slot, micros.wrapping_sub(get!(c.answered_since)) as u64);
        }
        if acts & act::STATUS != 0 {
            class(slot, get!(c.tx.first) * 100);
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
            tally!(slot, ended, 1);
        }
        if acts & act::ABORTED != 0 {
            tally!(slot, requests_aborted, 1);
        }
    }
}
