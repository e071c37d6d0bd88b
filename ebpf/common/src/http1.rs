//! HTTP/1 framing (RFC 9112) as a machine that can stop at any byte: it finds where messages begin and end and
//! what little of their headers decides that. It never stores or interprets content, and one step is bounded.
//!
//! The kernel runs [`step`] over windows of a packet; so do the tests and the fuzzers. Every field is read and
//! written through memory at each step: the verifier then sees unknown numbers instead of one state per path.

mod bytes;
mod step;
mod words;

use core::ptr::{read_volatile, write_volatile};

pub use step::step;
pub use words::{begins_request, begins_response, status_in};
use words::{get, set};
pub(crate) use words::{newline, word};

/// Bytes of a packet that are looked at at once.
pub const WINDOW: usize = 256;
/// Readable (not meaningful) bytes behind a window, so that words can be loaded near its end.
pub const PAD: usize = 32;
/// A header section longer than this, give or take a window, is given up.
pub const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// With this many bytes at hand a header name is compared by words; fewer are waited for, if more will come.
const LOOKAHEAD: u32 = 24;
const MAX_METHOD: u64 = 20;

/// Where a [`Machine`] stands.
pub mod phase {
    /// Not synchronised: nothing is known of the bytes to come. Of a response: none is being framed.
    pub const SEARCH: u32 = 0;
    /// Before the first byte of a message.
    pub const START: u32 = 1;
    /// In the method (requests), or in "HTTP/1.x NNN" (responses).
    pub const FIRST: u32 = 2;
    /// In the rest of the request line.
    pub const LINE: u32 = 3;
    /// At the start of a header line.
    pub const HEADER: u32 = 4;
    /// In a header name that is read byte by byte.
    pub const NAME: u32 = 5;
    /// In a line of no interest.
    pub const SKIP: u32 = 6;
    /// In the value of Content-Length.
    pub const LENGTH: u32 = 7;
    /// In the value of Transfer-Encoding.
    pub const CODING: u32 = 8;
    /// In the value of User-Agent.
    pub const AGENT: u32 = 9;
    /// Between the CR and the LF that end the headers.
    pub const CR: u32 = 10;
    /// In a chunk's size.
    pub const CHUNK_SIZE: u32 = 11;
    /// Behind a chunk's size.
    pub const CHUNK_EXT: u32 = 12;
    /// In a body of known length.
    pub const BODY: u32 = 13;
    /// In a chunk's data and the line end behind it.
    pub const CHUNK_DATA: u32 = 14;
    /// Bytes that are not framed: a tunnel, or a body that ends with the connection.
    pub const OPAQUE: u32 = 15;
}

/// What is known of the message at hand.
pub mod flag {
    /// The request is HEAD: its response has no body.
    pub const HEAD: u32 = 1;
    /// The request is CONNECT.
    pub const CONNECT: u32 = 2;
    /// User-Agent begins with "kube-probe/".
    pub const PROBE: u32 = 4;
    /// Transfer-Encoding ends with "chunked".
    pub const CHUNKED: u32 = 8;
    /// Content-Length was seen.
    pub const LENGTH: u32 = 16;
    /// A digit of a chunk size was seen.
    pub const DIGIT: u32 = 32;
    /// The header lines are trailers.
    pub const TRAILER: u32 = 64;
}

/// What a step found.
pub mod event {
    /// Nothing; step again.
    pub const NONE: u32 = 0;
    /// The window has nothing more to step over: load the next.
    pub const LOAD: u32 = 1;
    /// A request's header section is complete: `flags` and `begun` describe it.
    pub const REQUEST: u32 = 2;
    /// A response's status is known, in `status`. For the answer to HEAD or CONNECT set that flag now.
    pub const STATUS: u32 = 3;
    /// The bytes are not HTTP/1; the machine is back at `SEARCH`.
    pub const MALFORMED: u32 = 4;
    /// The header section is too long; the machine is back at `SEARCH`.
    pub const OVERSIZED: u32 = 5;
    /// An HTTP/2 connection preface; the machine is `OPAQUE`.
    pub const HTTP2: u32 = 6;
}

/// One direction of one connection. All zero is a machine that searches.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// One of [`phase`].
    pub phase: u32,
    /// Of [`flag`].
    pub flags: u32,
    /// Header bytes of the message so far, as windows were loaded.
    pub header_bytes: u32,
    /// The response's status code.
    pub status: u32,
    /// Accumulates the method, a name's hash, or how much of a word has matched.
    word: u64,
    /// Bytes to skip; before that, the number being read.
    pub remaining: u64,
    /// [`Window::now`] when the message's first byte was seen.
    pub begun: u64,
}

/// A stretch of a packet's payload.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The time of this packet, any clock.
    pub now: u64,
    /// Where `bytes[0]` lies in the packet.
    pub base: u32,
    /// Where the payload ends in the packet.
    pub end: u32,
    /// The next byte to look at, in `bytes`.
    pub pos: u32,
    /// How many of `bytes` belong to the payload; at most [`WINDOW`].
    pub len: u32,
    /// The bytes.
    pub bytes: [u8; WINDOW + PAD],
}

impl Window {
    /// Nothing loaded yet, the payload from `offset` to `end`.
    pub const fn new(now: u64, offset: u32, end: u32) -> Window {
        Window {
            now,
            base: offset,
            end,
            pos: 0,
            len: 0,
            bytes: [0; WINDOW + PAD],
        }
    }
}

/// What to do before stepping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Step: the window has bytes.
    Step,
    /// A skip was done; ask again.
    Again,
    /// Copy this many bytes (1 to [`WINDOW`]) from `base` of the packet into the window, then step.
    Load(u32),
    /// The payload is used up, or nothing in it is of interest.
    Stop,
    /// As [`event::OVERSIZED`].
    Oversized,
}

/// Decides what comes before the next [`step`]s and does the skips that need no look at the bytes.
///
/// # Safety
/// Both pointers are valid, and nobody else uses what they point at.
#[inline(always)]
pub unsafe fn prepare(m: *mut Machine, w: *mut Window) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let phase = get!(m.phase);
        if phase == phase::SEARCH || phase == phase::OPAQUE {
            return Next::Stop;
        }
        let (base, end, pos) = (get!(w.base), get!(w.end), get!(w.pos));
        let at = base.wrapping_add(pos);
        if at >= end {
            return Next::Stop;
        }
        if phase == phase::BODY || phase == phase::CHUNK_DATA {
            let (left, remaining) = ((end - at) as u64, get!(m.remaining));
            let skip = if remaining < left { remaining } else { left };
            skip_bytes(m, phase, remaining, skip);
            set!(w.pos, pos.wrapping_add(skip as u32));
            return Next::Again;
        }
        if pos < get!(w.len) {
            return Next::Step;
        }
        let left = end - at;
        let load = if left > WINDOW as u32 {
            WINDOW as u32
        } else {
            left
        };
        if (phase::FIRST..=phase::CR).contains(&phase) {
            let header = get!(m.header_bytes).wrapping_add(load);
            if header > MAX_HEADER_BYTES {
                set!(m.phase, phase::SEARCH);
                return Next::Oversized;
            }
            set!(m.header_bytes, header);
        }
        set!(w.base, at);
        set!(w.pos, 0);
        set!(w.len, load);
        Next::Load(load)
    }
}

/// Moves over bytes of a body that nobody looks at. `skip` is at most what remains.
#[inline(always)]
unsafe fn skip_bytes(m: *mut Machine, phase: u32, remaining: u64, skip: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let rest = remaining.wrapping_sub(skip);
        set!(m.remaining, rest);
        if rest == 0 {
            set!(
                m.phase,
                if phase == phase::BODY {
                    phase::START
                } else {
                    phase::CHUNK_SIZE
                }
            );
            set!(m.flags, get!(m.flags) & !flag::DIGIT);
        }
    }
}

/// Whether a gap of that many bytes is all in the body at hand.
///
/// # Safety
/// The pointer is valid.
#[inline(always)]
pub unsafe fn in_body(m: *const Machine, gap: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let phase = get!(m.phase);
        (phase == phase::BODY || phase == phase::CHUNK_DATA) && gap as u64 <= get!(m.remaining)
    }
}

/// Whether a header section has begun and is not complete, trailers aside.
///
/// # Safety
/// The pointer is valid.
#[inline(always)]
pub unsafe fn in_head(m: *const Machine) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        (phase::FIRST..=phase::CR).contains(&get!(m.phase)) && get!(m.flags) & flag::TRAILER == 0
    }
}

/// Accounts for bytes that never came by, or came too early: fine inside a body. False when the machine has
/// lost its place; it then is at `SEARCH`.
///
/// # Safety
/// The pointer is valid, and nobody else uses what it points at.
#[inline(always)]
pub unsafe fn skip_gap(m: *mut Machine, gap: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let phase = get!(m.phase);
        if phase == phase::SEARCH || phase == phase::OPAQUE {
            return true;
        }
        if in_body(m, gap) {
            skip_bytes(m, phase, get!(m.remaining), gap as u64);
            return true;
        }
        set!(m.phase, phase::SEARCH);
        false
    }
}

#[cfg(test)]
mod tests;
