//! Which connections speak HTTP/2, and their state: a second socket storage that exists only for those. It is bounded like
//! the first, by a cap of its own. What the frames mean is counted in `frames`.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skb_load_bytes};
use ebpf_scaler_common::flow::{Flow, rx_flag};
use ebpf_scaler_common::http1;
use ebpf_scaler_common::http2::{self, Connection, Guess, PREFACE_REST, guess, phase, role};
use ebpf_scaler_common::record::Stat;

use crate::atomic::{self, get, set};
use crate::maps::{HTTP2S, control, count};
use crate::packet::Packet;

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
        // It is asked once only, whether or not there is room for it.
        set!(flow.rx.phase, http1::phase::OPAQUE);
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
        if known != 0 {
            set!(c.prefaced, 1);
            // What came to the listener is told by the streams' numbers.
            set!(c.missed, (at == phase::SEARCH) as u32);
        }
        set!(flow.rx_flags, get!(flow.rx_flags) | rx_flag::HTTP2);
        c
    }
}

/// HTTP/2 begins at `pos` of the packet: behind "PRI " of a preface, or at the payload's start where frames were found.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn begin(packet: &Packet, flow: *mut Flow, pos: u32) -> *mut Connection {
    // SAFETY: the caller's promise.
    unsafe {
        if pos == packet.headers && get!(flow.rx_flags) & rx_flag::HTTP2 == 0 {
            make(packet, flow, 0, phase::SEARCH)
        } else {
            make(packet, flow, role::SERVER, phase::SETTINGS)
        }
    }
}

/// Whether a segment in of a connection of which nothing is known begins with frames; then it is taken for HTTP/2.
///
/// # Safety
/// The flow is valid, and its packets in are ours.
#[inline(always)]
pub unsafe fn discovered(packet: &Packet, flow: *mut Flow, first: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let found = http2::may_begin(first)
            && get!(flow.rx_flags) & (rx_flag::HTTP | rx_flag::PARKED) == 0
            && believed(packet, 0);
        if found {
            count(Stat::Http2);
        }
        found
    }
}

/// Whether the segment begins with a frame, and another follows or it ends with it. `last`: the last request known.
///
/// # Safety
/// The packet's pointers are valid.
#[inline(always)]
pub unsafe fn believed(packet: &Packet, last: u32) -> bool {
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
    let mut bytes = MaybeUninit::uninit();
    let bytes = atomic::zeroed(&mut bytes);
    // SAFETY: nine bytes of sixteen.
    unsafe {
        let loaded = bpf_skb_load_bytes(skb.cast(), at, bytes.cast(), 9);
        (loaded == 0).then(|| {
            (
                core::ptr::read_volatile(bytes),
                core::ptr::read_volatile(bytes.add(1)) as u32,
            )
        })
    }
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
