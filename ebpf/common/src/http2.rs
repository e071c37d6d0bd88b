//! HTTP/2 framing (RFC 9113) as a machine that can stop at any byte: it walks frame headers, skips payloads by their
//! length, and tells which streams begin, are answered and end. It never decodes header blocks, of which it knows the
//! first field at most, and one step is bounded.
//!
//! The kernel runs [`prepare`] and [`step`] over a packet, one frame a turn, and hands what they find to [`Connection`];
//! so does [`Http2`], for tests and fuzzers. Fields are read and written through memory at each step, as in `http1`.

mod connection;
#[cfg(not(target_arch = "bpf"))]
mod feed;
mod field;
mod header;
mod streams;

use core::ptr::{read_volatile, write_volatile};

pub use connection::{Connection, act, answer, ended, in_flight, request, reset, role, unanswered};
#[cfg(not(target_arch = "bpf"))]
pub use feed::{Counted, Http2, TURNS};
pub use field::first;
pub use header::{Guess, confirms, guess, may_begin};
use header::{Header, flag, kind};
pub use streams::STREAMS;

macro_rules! get {
    ($p:ident . $($field:ident).+) => {
        read_volatile(&raw const (*$p).$($field).+)
    };
}
macro_rules! set {
    ($p:ident . $($field:ident).+, $value:expr) => {
        write_volatile(&raw mut (*$p).$($field).+, $value)
    };
}
use {get, set};

/// Of a frame at most so many bytes are looked at: its header (9), padding length (1), priority (5), up to 8 bytes of
/// table size updates, and what tells a status.
pub const LOOK: u32 = 32;
/// A frame's header.
pub const FRAME_HEADER: u32 = 9;
/// What is left of the client's preface behind "PRI ".
pub const PREFACE_REST: u32 = 20;
/// A stream further ahead than this is not believed when looking for a frame, nor are so many requests inferred.
const MAX_AHEAD: u32 = 8192;

/// Where a [`Machine`] stands, apart from bytes that it skips.
pub mod phase {
    /// At, or in, what is looked at of a frame.
    pub const FRAME: u32 = 0;
    /// Not synchronised: nothing is known of the bytes to come.
    pub const SEARCH: u32 = 1;
    /// As `FRAME`, behind the preface: the frame must be SETTINGS.
    pub const SETTINGS: u32 = 2;
}

/// What a step found.
pub mod event {
    /// Nothing; go on.
    pub const NONE: u32 = 0;
    /// A HEADERS frame: `stream`, `first`, `end_stream` and `begun` describe it.
    pub const HEADERS: u32 = 1;
    /// A DATA frame that ends its `stream`.
    pub const END: u32 = 2;
    /// RST_STREAM for `stream`.
    pub const RESET: u32 = 3;
    /// The bytes are not a frame; the machine is at `SEARCH`.
    pub const MALFORMED: u32 = 4;
}

/// One direction of one connection, and where it is in the packet at hand. All zero is a machine before a frame.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The first bytes of the frame at hand, more than [`LOOK`] so that any number of them can be added.
    head: [u64; 8],
    /// [`Machine::now`] when the frame's first byte was seen.
    pub begun: u64,
    /// The time of this packet, any clock.
    pub now: u64,
    /// One of [`phase`].
    pub phase: u32,
    /// Bytes of `head` that earlier packets brought.
    have: u32,
    /// Bytes of `head` that this packet brought.
    loaded: u32,
    /// Bytes of the payload still to come, which nobody looks at.
    pub skip: u32,
    /// The next byte of the packet.
    pub pos: u32,
    /// Where the packet's payload ends.
    pub end: u32,
    /// Stream of the frame found.
    pub stream: u32,
    /// What the header block found begins with, see [`first`].
    pub first: u32,
    /// Not 0 if the frame found ends the sender's side of its stream.
    pub end_stream: u32,
    /// Where `field` reads.
    cursor: u32,
}

/// What to do before stepping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Copy `len` bytes (1 to [`LOOK`]) from `pos` of the packet to `at` (below [`LOOK`]) of [`head`], then step.
    Load {
        /// Where to.
        at: u32,
        /// How many.
        len: u32,
    },
    /// The payload is used up, or nothing in it can be understood.
    Stop,
}

/// Where bytes are to be copied to: [`LOOK`] twice.
///
/// # Safety
/// The pointer is valid.
#[inline(always)]
pub unsafe fn head(m: *mut Machine) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { (&raw mut (*m).head).cast() }
}

/// Begins a packet whose payload is from `pos` to `end`.
///
/// # Safety
/// The pointer is valid, and nobody else uses what it points at.
#[inline(always)]
pub unsafe fn begin(m: *mut Machine, now: u64, pos: u32, end: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        set!(m.now, now);
        set!(m.pos, pos);
        set!(m.end, end);
    }
}

/// Whether the packet begun has bytes that were not walked.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn unfinished(m: *mut Machine) -> bool {
    // SAFETY: the caller's promise.
    unsafe { get!(m.phase) != phase::SEARCH && get!(m.pos) < get!(m.end) }
}

/// Does the skips that need no look at the bytes, and says what to look at.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn prepare(m: *mut Machine) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut pos, end) = (get!(m.pos), get!(m.end));
        if pos >= end || get!(m.phase) == phase::SEARCH {
            return Next::Stop;
        }
        let skip = get!(m.skip);
        if skip != 0 {
            let left = end - pos;
            let done = if skip < left { skip } else { left };
            set!(m.skip, skip - done);
            pos += done;
            set!(m.pos, pos);
            if pos >= end {
                return Next::Stop;
            }
        }
        let have = get!(m.have);
        if have == 0 {
            set!(m.begun, get!(m.now));
        }
        let (want, left) = (LOOK - (have & (LOOK - 1)), end - pos);
        let len = if want < left { want } else { left };
        set!(m.loaded, len);
        Next::Load { at: have, len }
    }
}

/// One frame, or what there is of it; returns an [`event`].
///
/// # Safety
/// As for [`begin`]; the bytes asked for are in place.
#[inline(always)]
pub unsafe fn step<const OUT: bool>(m: *mut Machine) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (have, loaded) = (get!(m.have), get!(m.loaded));
        let total = have + loaded;
        if total < FRAME_HEADER {
            return carry(m, total, loaded);
        }
        let frame = Header::read(m);
        let whole = frame.len + FRAME_HEADER;
        let mut want = FRAME_HEADER;
        if frame.kind == kind::HEADERS {
            want = if whole < LOOK { whole } else { LOOK };
        }
        if total < want {
            return carry(m, total, loaded);
        }
        let settings = get!(m.phase) == phase::SETTINGS && frame.kind != kind::SETTINGS;
        if settings || !frame.possible() {
            return lost(m);
        }
        // The packet continues with the rest of the frame, of which it had `have` bytes before.
        let (pos, rest) = (get!(m.pos), whole - have);
        let left = get!(m.end) - pos;
        let done = if rest < left { rest } else { left };
        set!(m.pos, pos + done);
        set!(m.skip, rest - done);
        set!(m.have, 0);
        set!(m.phase, phase::FRAME);
        found::<OUT>(m, frame, whole)
    }
}

#[inline(always)]
unsafe fn found<const OUT: bool>(m: *mut Machine, frame: Header, whole: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if frame.kind != kind::HEADERS && frame.kind != kind::DATA && frame.kind != kind::RST_STREAM
        {
            return event::NONE;
        }
        set!(m.stream, frame.stream);
        if frame.kind == kind::RST_STREAM {
            return event::RESET;
        }
        let end_stream = frame.flags & flag::END_STREAM;
        set!(m.end_stream, end_stream);
        if frame.kind == kind::DATA {
            // What ends a request's body is of no interest.
            return if OUT && end_stream != 0 {
                event::END
            } else {
                event::NONE
            };
        }
        let limit = if whole < LOOK { whole } else { LOOK };
        set!(m.first, field::read(m, frame.flags, limit));
        event::HEADERS
    }
}

/// The packet ends before enough of the frame is known.
#[inline(always)]
unsafe fn carry(m: *mut Machine, total: u32, loaded: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        set!(m.have, total);
        set!(m.pos, get!(m.pos) + loaded);
    }
    event::NONE
}

/// Forgets the place.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn lost(m: *mut Machine) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        set!(m.phase, phase::SEARCH);
        set!(m.have, 0);
        set!(m.skip, 0);
    }
    event::MALFORMED
}

/// Accounts for bytes that will not be seen: fine in a payload that is skipped. False when the machine has lost its
/// place; it then is at `SEARCH`.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn skip_gap(m: *mut Machine, gap: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(m.phase) == phase::SEARCH {
            return true;
        }
        let skip = get!(m.skip);
        if gap <= skip {
            set!(m.skip, skip - gap);
            return true;
        }
        lost(m);
        false
    }
}

#[cfg(test)]
mod tests;
