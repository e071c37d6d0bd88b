//! What frames mean for the requests of a connection: which begin one, answer one, end one, each told once. It counts
//! nothing itself but what a connection that dies leaves behind.
//!
//! As in `flow`, each field has one writer, packets in or packets out; streams are in a table that both change.

use core::ptr::{read_volatile, write_volatile};

use super::field::first;
use super::streams::{STREAMS, entry, find, insert, replace};
use super::{MAX_AHEAD, Machine, get, phase, set};

/// What is known of our end of the connection. Known from the preface, or else from the first fields of header blocks.
pub mod role {
    /// It answers requests.
    pub const SERVER: u32 = 1;
    /// It asks: nothing of this is a pod's load.
    pub const CLIENT: u32 = 2;
}

/// What to count; several at once.
pub mod act {
    /// A request.
    pub const REQUEST: u32 = 1;
    /// It is in flight from now on.
    pub const BEGUN: u32 = 2;
    /// It is not timed, for want of a place or because answers are not followed.
    pub const UNTIMED: u32 = 4;
    /// Also [`super::Connection::inferred`] requests before it.
    pub const INFERRED: u32 = 8;
    /// A timed request is answered; it began at [`super::Connection::answered_since`].
    pub const ANSWERED: u32 = 16;
    /// The status of an answer, in the machine's `first`.
    pub const STATUS: u32 = 32;
    /// The status of an answer is not known.
    pub const NO_STATUS: u32 = 64;
    /// A request is no longer in flight.
    pub const ENDED: u32 = 128;
    /// It had no answer.
    pub const ABORTED: u32 = 256;
    /// The connection is not a server's.
    pub const CLIENT: u32 = 512;
}

/// The value of a socket's second storage; all zero is a connection of which nothing is known.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Requests. Packets in write this and what follows up to `tx`.
    pub rx: Machine,
    /// The last stream that a request was on.
    pub last: u32,
    /// Of [`role`].
    pub rx_role: u32,
    /// Not 0 after bytes in were missed, until the next request tells how many requests they held.
    pub missed: u32,
    /// Requests before the one found of which only the streams' numbers are known.
    pub inferred: u32,
    /// Requests that came into flight.
    begun: u32,
    /// Requests that the client ended.
    rx_ended: u32,
    /// Requests of those that had no answer.
    rx_aborted: u32,
    /// Not 0 if the connection was seen from its preface on.
    pub prefaced: u32,

    /// Responses. Packets out write this and what follows up to `streams`.
    pub tx: Machine,
    /// Microseconds when the request began that was answered.
    pub answered_since: u32,
    /// Of [`role`].
    pub tx_role: u32,
    /// Requests that their answers brought into flight.
    tx_begun: u32,
    /// Requests that the server ended.
    tx_ended: u32,
    /// Requests of those that had no answer.
    tx_aborted: u32,
    /// Requests answered.
    answered: u32,

    /// Streams in flight.
    streams: [u64; STREAMS as usize],
}

// One page, with the kernel's own part.
const _: () = assert!(size_of::<Connection>() <= 4096 - 128);

macro_rules! more {
    ($c:ident . $field:ident) => {
        set!($c.$field, get!($c.$field).wrapping_add(1))
    };
}

#[inline(always)]
unsafe fn table(c: *mut Connection) -> *mut u64 {
    // SAFETY: the caller's promise.
    unsafe { (&raw mut (*c).streams).cast() }
}

#[inline(always)]
unsafe fn known_role(c: *mut Connection) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { get!(c.rx_role) | get!(c.tx_role) }
}

/// A HEADERS frame in. `track`: whether it is to be timed and in flight.
///
/// # Safety
/// The pointer is valid, and packets in are ours.
#[inline(always)]
pub unsafe fn request(c: *mut Connection, track: bool) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (stream, last, first) = (get!(c.rx.stream), get!(c.last), get!(c.rx.first));
        // Requests are on odd streams, each higher than all before (RFC 9113, 5.1.1); others are trailers.
        if stream & 1 == 0 || stream <= last {
            return 0;
        }
        let mut role = known_role(c);
        if role == 0 && first != first::UNKNOWN {
            role = if first == first::REQUEST {
                role::SERVER
            } else {
                role::CLIENT
            };
            set!(c.rx_role, role);
        }
        if role & role::CLIENT != 0 {
            return act::CLIENT;
        }
        let mut acts = 0;
        if get!(c.missed) != 0 {
            set!(c.missed, 0);
            // Many clients begin with stream 3: the first is reserved for an upgrade.
            let ahead = if last == 0 { stream - 1 } else { stream - last };
            let whole = last != 0 || get!(c.prefaced) != 0;
            if whole && ahead > 2 && ahead <= MAX_AHEAD {
                set!(c.inferred, ahead / 2 - 1);
                acts = act::INFERRED;
            }
        }
        set!(c.last, stream);
        if !track {
            return if role == 0 { 0 } else { acts | act::REQUEST };
        }
        let bits = if role == 0 { entry::TENTATIVE } else { 0 };
        let micros = (get!(c.rx.begun) / 1000) as u32;
        // While the place among the answers is not known, one would not be seen, and the stream never end.
        let followed = role == 0 || get!(c.tx.phase) != phase::SEARCH;
        let placed = followed && insert(table(c), stream, bits, micros);
        if role == 0 {
            // Its answer will tell whether it was one.
            return 0;
        }
        if !placed {
            return acts | act::REQUEST | act::UNTIMED;
        }
        more!(c.begun);
        acts | act::REQUEST | act::BEGUN
    }
}

/// A HEADERS frame out.
///
/// # Safety
/// The pointer is valid, and packets out are ours.
#[inline(always)]
pub unsafe fn answer(c: *mut Connection) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (stream, first) = (get!(c.tx.stream), get!(c.tx.first));
        if stream & 1 == 0 {
            // Pushed.
            return 0;
        }
        let status = first != first::UNKNOWN && first != first::REQUEST;
        if known_role(c) == 0 && first != first::UNKNOWN {
            set!(c.tx_role, if status { role::SERVER } else { role::CLIENT });
        }
        if known_role(c) & role::CLIENT != 0 {
            return act::CLIENT;
        }
        let told = if status { act::STATUS } else { act::NO_STATUS };
        let (at, word) = find(table(c), stream);
        if at.is_null() {
            // A stream that is not timed, or trailers of one that is gone: those have no status.
            return if status { act::STATUS } else { 0 };
        }
        let end = get!(c.tx.end_stream) != 0;
        if status && first == 1 && !end {
            return act::STATUS;
        }
        let new = if end {
            0
        } else {
            (word | entry::ANSWERED) & !entry::TENTATIVE
        };
        if word & entry::ANSWERED != 0 {
            return if end { finish(c, at, word) } else { 0 };
        }
        if !replace(at, word, new) {
            // The client has reset it meanwhile.
            return 0;
        }
        set!(c.answered_since, word as u32);
        more!(c.answered);
        let mut acts = act::ANSWERED | told;
        if word & entry::TENTATIVE != 0 {
            more!(c.tx_begun);
            // It is asked before it answers, so this end serves.
            set!(c.tx_role, role::SERVER);
            acts |= act::REQUEST | act::BEGUN;
        }
        if end {
            more!(c.tx_ended);
            acts |= act::ENDED;
        }
        acts
    }
}

/// A DATA frame out that ends its stream.
///
/// # Safety
/// The pointer is valid, and packets out are ours.
#[inline(always)]
pub unsafe fn ended(c: *mut Connection) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (at, word) = find(table(c), get!(c.tx.stream));
        if at.is_null() {
            return 0;
        }
        finish(c, at, word)
    }
}

/// The server has said all. Without an answer that we know of it is not an abort: we missed it.
#[inline(always)]
unsafe fn finish(c: *mut Connection, at: *mut u64, word: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if !replace(at, word, 0) || word & entry::TENTATIVE != 0 {
            return 0;
        }
        more!(c.tx_ended);
        if word & entry::ANSWERED != 0 {
            return act::ENDED;
        }
        more!(c.answered);
        act::ENDED | act::NO_STATUS
    }
}

/// An RST_STREAM frame, of the server if `OUT`.
///
/// # Safety
/// The pointer is valid, and that direction ours.
#[inline(always)]
pub unsafe fn reset<const OUT: bool>(c: *mut Connection) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let stream = if OUT {
            get!(c.tx.stream)
        } else {
            get!(c.rx.stream)
        };
        let (at, word) = find(table(c), stream);
        if at.is_null() || !replace(at, word, 0) || word & entry::TENTATIVE != 0 {
            return 0;
        }
        let answered = word & entry::ANSWERED != 0;
        if OUT {
            more!(c.tx_ended);
            if !answered {
                more!(c.tx_aborted);
            }
        } else {
            more!(c.rx_ended);
            if !answered {
                more!(c.rx_aborted);
            }
        }
        if answered {
            act::ENDED
        } else {
            act::ENDED | act::ABORTED
        }
    }
}

/// Requests in flight.
///
/// # Safety
/// The pointer is valid.
#[inline(always)]
pub unsafe fn in_flight(c: *mut Connection) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        get!(c.begun)
            .wrapping_add(get!(c.tx_begun))
            .wrapping_sub(get!(c.rx_ended))
            .wrapping_sub(get!(c.tx_ended))
    }
}

/// Requests in flight that have no answer.
///
/// # Safety
/// The pointer is valid.
#[inline(always)]
pub unsafe fn unanswered(c: *mut Connection) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        get!(c.begun)
            .wrapping_add(get!(c.tx_begun))
            .wrapping_sub(get!(c.answered))
            .wrapping_sub(get!(c.rx_aborted))
            .wrapping_sub(get!(c.tx_aborted))
    }
}
