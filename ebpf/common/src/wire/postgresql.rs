//! PostgreSQL's protocol, version 3, in plain text: packets without a type until the session is asked for, then messages
//! with a type and a length. A request is a simple query, a function call, or what ends with Sync; the answer is all up to
//! ReadyForQuery. Never looks into a message.

use core::ptr::{read_volatile, write_volatile};

use super::{HAVE, Machine, byte, event, gather, get, lost, set, state};
use crate::http1::Window;

/// Type and length.
const HEADER: u32 = 5;
/// Length and version, or the code of a request that comes before.
const STARTUP_HEADER: u32 = 8;
/// The server takes no longer startup packet (MAX_STARTUP_PACKET_LENGTH).
pub(super) const MAX_STARTUP: u32 = 10_000;
/// Nor any message longer than this (PQ_LARGE_MESSAGE_LIMIT).
const MAX_MESSAGE: u32 = 0x3fff_ffff;

/// In [`Machine::bits`], above [`HAVE`].
mod bit {
    /// In: messages came since the last request. Out: since the last ReadyForQuery.
    pub const OPEN: u32 = 1 << 8;
    /// In: data were copied, whose Sync the server ignores or has none.
    pub const COPIED: u32 = 1 << 9;
    /// Out: an error came since the last ReadyForQuery.
    pub const FAILED: u32 = 1 << 10;
}

/// Codes in the place of a version (pqcomm.h), and the major version.
pub(super) mod code {
    pub const CANCEL: u32 = 80_877_102;
    pub const SSL: u32 = 80_877_103;
    pub const GSS: u32 = 80_877_104;
    pub const MAJOR: u32 = 3;
}

/// A set of letters, a bit each, from `A` on.
const fn letters(of: &[u8]) -> u64 {
    let (mut set, mut i) = (0, 0);
    while i < of.len() {
        set |= 1 << (of[i] - b'A');
        i += 1;
    }
    set
}

/// What a client sends: also to look for it.
const FRONTEND: u64 = letters(b"BCDEFHPQSXcdfp");
/// What a server sends, digits left out.
const BACKEND: u64 = letters(b"ACDEGHIKNRSTVWZcdnstv");

#[inline(always)]
const fn contains(set: u64, kind: u32) -> bool {
    let at = kind.wrapping_sub(b'A' as u32);
    at < 64 && (set >> (at & 63)) & 1 != 0
}

/// Whether a client may send a message of this type and length.
#[inline(always)]
pub(super) const fn from_client(kind: u32, len: u32) -> bool {
    contains(FRONTEND, kind) && len >= 4 && len <= MAX_MESSAGE
}

/// Whether a server may.
#[inline(always)]
pub(super) const fn from_server(kind: u32, len: u32) -> bool {
    let digit = kind >= b'1' as u32 && kind <= b'3' as u32;
    (digit || contains(BACKEND, kind)) && len >= 4 && len <= MAX_MESSAGE
}

/// One header, or what the window has of it.
#[inline(always)]
pub(super) unsafe fn step<const OUT: bool>(m: *mut Machine, w: *mut Window) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = get!(m.bits);
        let startup = !OUT && get!(m.state) == state::STARTUP;
        if bits & HAVE == 0 {
            let pos = get!(w.pos);
            if startup && byte(w, pos) == 0x16 {
                return event::TLS;
            }
            if !OUT && bits & bit::OPEN == 0 {
                set!(m.begun, get!(w.now));
            }
        }
        let want = if startup { STARTUP_HEADER } else { HEADER };
        if !gather(m, w, want) {
            return event::NONE;
        }
        let (bits, word) = (get!(m.bits), get!(m.word));
        if startup {
            return open(m, (word >> 32) as u32, word as u32);
        }
        let (kind, len) = ((word >> 32) as u32 & 0xff, word as u32);
        let possible = if OUT {
            from_server(kind, len)
        } else {
            from_client(kind, len)
        };
        if !possible {
            return lost(m);
        }
        set!(m.remaining, (len - 4) as u64);
        if OUT {
            answer(m, w, kind, len, bits)
        } else {
            message(m, kind, bits)
        }
    }
}

/// A packet without a type.
#[inline(always)]
unsafe fn open(m: *mut Machine, len: u32, code: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if !(8..=MAX_STARTUP).contains(&len) {
            return lost(m);
        }
        set!(m.remaining, (len - 8) as u64);
        if code >> 16 == code::MAJOR || code == code::CANCEL {
            set!(m.state, state::START);
        } else if code != code::SSL && code != code::GSS {
            return lost(m);
        }
        event::NONE
    }
}

#[inline(always)]
unsafe fn message(m: *mut Machine, kind: u32, bits: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let is = |byte: u8| kind == byte as u32;
        if is(b'c') || is(b'f') {
            set!(m.bits, bits | bit::COPIED);
            return event::NONE;
        }
        if is(b'S') && bits & bit::COPIED != 0 {
            // The server has ignored the Sync that came before the data, so this one takes its place.
            set!(m.bits, 0);
            return event::NONE;
        }
        if is(b'Q') || is(b'F') || is(b'S') {
            set!(m.bits, 0);
            return event::REQUEST;
        }
        let part = is(b'P') || is(b'B') || is(b'D') || is(b'E') || is(b'C') || is(b'H');
        if part {
            set!(m.bits, bit::OPEN);
        }
        event::NONE
    }
}

#[inline(always)]
unsafe fn answer(m: *mut Machine, w: *mut Window, kind: u32, len: u32, bits: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let is = |byte: u8| kind == byte as u32;
        // Notifications, notices and changed settings answer nothing.
        if is(b'A') || is(b'N') || is(b'S') {
            return event::NONE;
        }
        if bits & bit::OPEN == 0 {
            set!(m.begun, get!(w.now));
        }
        if is(b'Z') {
            if len != 5 {
                return lost(m);
            }
            set!(m.bits, 0);
            return if bits & bit::FAILED != 0 {
                event::FAILED
            } else {
                event::ANSWER
            };
        }
        let failed = if is(b'E') { bit::FAILED } else { 0 };
        set!(m.bits, bits | bit::OPEN | failed);
        event::NONE
    }
}
