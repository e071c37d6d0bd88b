//! What is remembered of one TCP connection, and the arithmetic of sequence numbers. Each field has one writer:
//! packets in and packets out are handled on different CPUs at the same time.

use core::ptr::read_volatile;

use crate::http1::Machine;

/// Outstanding requests that are timed; more are only counted.
pub const OUTSTANDING: u32 = 32;
/// Set in [`Flow::rx_next`] while a packet is handled.
pub const BUSY: u64 = 1 << 32;
/// Segments that may wait for a missing one before the place is given up, where several messages can be among them.
pub const MAX_EARLY: u32 = 4;
/// The same of a client that sends one request after the other: an upload of some megabytes, whose first segment is
/// lost. It is given up earlier when the socket has what is missing here.
pub const MAX_EARLY_OF_ONE: u32 = 4096;

/// How many packets with payload a connection sends for each look at its round-trip time; a power of two.
pub const RTT_EVERY: u32 = 16;

/// What a connection is; known when its state is made.
pub mod kind {
    /// Both ends are in the pod.
    pub const LOOPBACK: u32 = 1;
    /// The local port is excluded.
    pub const EXCLUDED: u32 = 2;
    /// Its opening was counted.
    pub const OPENED: u32 = 4;
    /// Above this: the version of its slot's layout when it was last looked at, see `record::layout`.
    pub const VERSION_SHIFT: u32 = 16;
}

/// Written by packets in.
pub mod rx_flag {
    /// Requests are counted only when they are answered: framing began at a guess.
    pub const TENTATIVE: u32 = 1;
    /// Requests came before the former one was answered.
    pub const PIPELINED: u32 = 2;
    /// Not yet a connection: requests wait in `parked` until there is one.
    pub const PARKED: u32 = 4;
    /// A request has been framed, of whatever protocol.
    pub const HTTP: u32 = 8;
    /// The connection speaks HTTP/2: its state is elsewhere.
    pub const HTTP2: u32 = 16;
    /// A part of the last request's header section will not be seen: it counts when it is answered.
    pub const HALF: u32 = 32;
    /// The connection speaks RESP: `rx` and `tx` are of `wire`, as for the next two.
    pub const REDIS: u32 = 64;
    /// The connection speaks PostgreSQL's protocol.
    pub const POSTGRESQL: u32 = 128;
    /// The connection is TLS: its turns are counted.
    pub const TLS: u32 = 256;
    /// The pod has spoken first, so it is the client of a protocol whose clients do.
    pub const CLIENT: u32 = 512;
    /// Those that `wire` reads.
    pub const WIRE: u32 = REDIS | POSTGRESQL | TLS;
}

/// Written by packets out.
pub mod tx_flag {
    /// Upgraded or CONNECTed: bytes that are no longer HTTP.
    pub const TUNNEL: u32 = 1;
    /// Waiting for a segment that begins with a status line.
    pub const RESYNC: u32 = 2;
}

/// An outstanding request: when it began, shifted by [`entry::SHIFT`], and bits.
pub mod entry {
    /// As `http1::flag`.
    pub const HEAD: u64 = 1;
    /// As `http1::flag`.
    pub const CONNECT: u64 = 2;
    /// As `http1::flag`.
    pub const PROBE: u64 = 4;
    /// Not counted yet.
    pub const TENTATIVE: u64 = 8;
    /// Nanoseconds lie above the bits.
    pub const SHIFT: u32 = 4;
}

/// The value of a socket's storage; all zero but for what its maker sets. The kernel puts 8 bytes before it on
/// the same cache line: so the first line is read by all and seldom written, the second is written by packets in
/// and the third by packets out, which are mostly on another CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Slot and generation.
    pub slot: u64,
    /// Tells the one who made it from one who came second.
    pub cookie: u64,
    /// Of [`kind`].
    pub kind: u32,
    /// Segments in that came before their turn.
    pub early_segments: u32,
    /// The bytes of those.
    pub early_from: u32,
    /// See `early_from`.
    pub early_to: u32,
    /// Requests before this one, counted as `head` is, will not be answered.
    pub flush: u32,
    /// Where `head` stood when framing began at a guess.
    pub guess: u32,
    /// When the request began that was answered before its headers were complete.
    pub answered: u64,
    /// Requests and probes not counted yet, see [`rx_flag::PARKED`].
    pub parked: u16,
    /// See `parked`.
    pub parked_probes: u16,
    /// Bytes in that could hold requests and were not looked at, because the place was lost. Never falls.
    pub unseen: u32,

    /// The next sequence number in, and [`BUSY`].
    pub rx_next: u64,
    /// Of [`rx_flag`].
    pub rx_flags: u32,
    /// Where the answer to the only outstanding request begins: the sequence number it acknowledged.
    pub answer_at: u32,
    /// Requests put into `ring` by packets in.
    pub head: u32,
    /// Requests that found the ring full.
    pub lost_head: u32,
    /// Requests.
    pub rx: Machine,

    /// The next sequence number out.
    pub tx_next: u32,
    /// Of [`tx_flag`].
    pub tx_flags: u32,
    /// Requests taken out of `ring` by packets out.
    pub tail: u32,
    /// Answers to those of `lost_head`.
    pub lost_tail: u32,
    /// Responses; `SEARCH` while none needs framing.
    pub tx: Machine,
    /// Packets out with new payload; of each [`RTT_EVERY`] one looks at the round-trip time.
    pub tx_packets: u32,
    /// Requests counted for answers to what was in `unseen`.
    pub inferred: u32,

    /// Outstanding requests.
    pub ring: [u64; OUTSTANDING as usize],
}

const _: () = assert!(
    core::mem::offset_of!(Flow, rx_next) == 56 && core::mem::offset_of!(Flow, tx_next) == 120
);
// With the kernel's own part this fills a 512 byte object.
const _: () = assert!(size_of::<Flow>() <= 440);

/// How a segment lies to what was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All of it was seen.
    Old,
    /// It continues, from this offset.
    New(u32),
    /// This many bytes are missing before it.
    Gap(u32),
}

/// Places a segment of `len` (not 0) bytes at `seq`, when `next` is expected.
#[inline(always)]
pub const fn place(next: u32, seq: u32, len: u32) -> Place {
    let ahead = seq.wrapping_sub(next);
    if ahead == 0 {
        return Place::New(0);
    }
    if (ahead as i32) > 0 {
        return Place::Gap(ahead);
    }
    let seen = next.wrapping_sub(seq);
    if seen >= len {
        Place::Old
    } else {
        Place::New(seen)
    }
}

/// Whether sequence number `a` comes before `b`.
#[inline(always)]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Requests that were counted as begun and have no answer yet.
///
/// # Safety
/// The flow is valid.
#[inline(always)]
pub unsafe fn in_flight(flow: *const Flow) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let (head, tail) = (read_volatile(&raw const (*flow).head), oldest(flow));
        let mut waiting = read_volatile(&raw const (*flow).lost_head)
            .wrapping_sub(read_volatile(&raw const (*flow).lost_tail))
            as u64;
        let mut i = 0u32;
        while i < OUTSTANDING {
            let at = tail.wrapping_add(i);
            let slot = (at & (OUTSTANDING - 1)) as usize;
            let entry = read_volatile((&raw const (*flow).ring).cast::<u64>().add(slot));
            // Without a branch: the verifier would follow both ways, once for each number that it could be by then.
            let is_before = u64::from(at.wrapping_sub(head) >> 31);
            let is_uncounted = ((entry / entry::PROBE) | (entry / entry::TENTATIVE)) & 1;
            waiting += is_before & !is_uncounted;
            i += 1;
        }
        waiting
    }
}

/// Where the oldest outstanding request stands in the ring.
///
/// # Safety
/// The flow is valid.
#[inline(always)]
pub unsafe fn oldest(flow: *const Flow) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (tail, flush) = (
            read_volatile(&raw const (*flow).tail),
            read_volatile(&raw const (*flow).flush),
        );
        if before(tail, flush) { flush } else { tail }
    }
}

/// Identifies a connection before it has a socket of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// The listener's cgroup: the same addresses can exist in several network namespaces.
    pub cgroup: u64,
    /// Remote address; IPv4 in the first word.
    pub remote: [u32; 4],
    /// Local address.
    pub local: [u32; 4],
    /// Remote and local port as they lie in the packet.
    pub ports: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_placed_also_where_sequence_numbers_wrap() {
        for next in [0u32, 1000, u32::MAX - 3] {
            let at = |d: i32| next.wrapping_add(d as u32);
            assert_eq!(place(next, next, 10), Place::New(0));
            assert_eq!(place(next, at(-4), 10), Place::New(4));
            assert_eq!(place(next, at(-10), 10), Place::Old);
            assert_eq!(place(next, at(-20), 10), Place::Old);
            assert_eq!(place(next, at(7), 10), Place::Gap(7));
            assert!(before(at(-1), next) && !before(next, next) && !before(at(1), next));
        }
    }
}
