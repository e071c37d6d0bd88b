//! HTTP/1 framing (RFC 9112) as a machine that can stop at any byte: it finds where messages begin and end and
//! what little of their headers decides that. It never stores or interprets content, and one step is bounded.
//!
//! The kernel runs [`step`] over windows of a packet; so do the tests and the fuzzers. Every field is read and
//! written through memory at each step: the verifier then sees unknown numbers instead of one state per path.

use core::ptr::{read_volatile, write_volatile};

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
        Window { now, base: offset, end, pos: 0, len: 0, bytes: [0; WINDOW + PAD] }
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

macro_rules! get {
    ($p:ident . $field:ident) => {
        read_volatile(&raw const (*$p).$field)
    };
}
macro_rules! set {
    ($p:ident . $field:ident, $value:expr) => {
        write_volatile(&raw mut (*$p).$field, $value)
    };
}

const FOLD: u64 = 0x2020_2020_2020_2020;
const CONTENT_: u64 = u64::from_le_bytes(*b"content-");
const LENGTH_: u64 = u64::from_le_bytes(*b"length:\0");
const TRANSFER: u64 = u64::from_le_bytes(*b"transfer");
const ENCODIN: u64 = u64::from_le_bytes(*b"-encodin");
const G_COLON: u64 = u64::from_le_bytes(*b"g:\0\0\0\0\0\0");
const USER_AGE: u64 = u64::from_le_bytes(*b"user-age");
const NT_COLON: u64 = u64::from_le_bytes(*b"nt:\0\0\0\0\0");
const KUBE_PRO: u64 = u64::from_le_bytes(*b"kube-pro");
const BE_SLASH: u64 = u64::from_le_bytes(*b"be/\0\0\0\0\0");
const SP_CHUNKED: u64 = u64::from_le_bytes(*b" chunked");
const HTTP_1: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
const HEAD: u64 = u32::from_be_bytes(*b"HEAD") as u64;
const CONNECT: u64 = u64::from_be_bytes(*b"\0CONNECT");
const PRI: u64 = u64::from_be_bytes(*b"\0\0\0\0\0PRI");
const LOW2: u64 = 0xffff;
const LOW3: u64 = 0xff_ffff;
const LOW7: u64 = 0x00ff_ffff_ffff_ffff;

const fn le4(token: &[u8; 4]) -> u64 {
    u32::from_le_bytes(*token) as u64
}

/// Whether a segment that begins with these 8 bytes (little endian) may begin a request.
#[inline(always)]
pub const fn begins_request(a: u64) -> bool {
    const LOW5: u64 = 0xff_ffff_ffff;
    const LOW6: u64 = 0xffff_ffff_ffff;
    let four = a & 0xffff_ffff;
    four == le4(b"GET ")
        || four == le4(b"PUT ")
        || a & LOW5 == u64::from_le_bytes(*b"POST \0\0\0")
        || a & LOW5 == u64::from_le_bytes(*b"HEAD \0\0\0")
        || a & LOW6 == u64::from_le_bytes(*b"PATCH \0\0")
        || a & LOW7 == u64::from_le_bytes(*b"DELETE \0")
        || a == u64::from_le_bytes(*b"OPTIONS ")
        || a == u64::from_le_bytes(*b"CONNECT ")
        || a & LOW6 == u64::from_le_bytes(*b"TRACE \0\0")
}

/// Whether a segment that begins with these 8 bytes (little endian) begins a response.
#[inline(always)]
pub const fn begins_response(a: u64) -> bool {
    a & LOW7 == HTTP_1
}

/// The status code in the 8 bytes behind "HTTP/1.x", if they are a blank and three digits; else 0.
#[inline(always)]
pub const fn status_in(b: u64) -> u32 {
    let x = ((b >> 8) & 0xff).wrapping_sub(0x30);
    let y = ((b >> 16) & 0xff).wrapping_sub(0x30);
    let z = ((b >> 24) & 0xff).wrapping_sub(0x30);
    if b & 0xff != b' ' as u64 || x > 9 || y > 9 || z > 9 {
        return 0;
    }
    (x * 100 + y * 10 + z) as u32
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
        let load = if left > WINDOW as u32 { WINDOW as u32 } else { left };
        if phase >= phase::FIRST && phase <= phase::CR {
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
            set!(m.phase, if phase == phase::BODY { phase::START } else { phase::CHUNK_SIZE });
            set!(m.flags, get!(m.flags) & !flag::DIGIT);
        }
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
        let (phase, remaining) = (get!(m.phase), get!(m.remaining));
        if phase == phase::SEARCH || phase == phase::OPAQUE {
            return true;
        }
        if (phase == phase::BODY || phase == phase::CHUNK_DATA) && gap as u64 <= remaining {
            skip_bytes(m, phase, remaining, gap as u64);
            return true;
        }
        set!(m.phase, phase::SEARCH);
        false
    }
}

/// One bounded step; returns an [`event`].
///
/// # Safety
/// Both pointers are valid, and nobody else uses what they point at.
#[inline(always)]
pub unsafe fn step<const RESPONSE: bool>(m: *mut Machine, w: *mut Window) -> u32 {
    // SAFETY: the caller's promise; loads stay inside the window and its padding.
    unsafe {
        let (pos, len) = (get!(w.pos), get!(w.len));
        if pos >= len {
            return event::LOAD;
        }
        let left = len - pos;
        let at = get!(m.phase);
        if at >= phase::BODY || at == phase::SEARCH {
            return event::LOAD;
        }
        let a = word(w, pos, 0);
        if at == phase::START {
            if left < LOOKAHEAD && more_follows(w, len) {
                set!(w.len, pos);
                return event::LOAD;
            }
            return start::<RESPONSE>(m, w, pos, left, a);
        }
        if at == phase::HEADER {
            if left < LOOKAHEAD && more_follows(w, len) {
                set!(w.len, pos);
                return event::LOAD;
            }
            let byte = a & 0xff;
            if byte == b'\n' as u64 {
                return end_of_headers::<RESPONSE>(m, w, pos + 1);
            }
            if byte == b'\r' as u64 {
                set!(m.phase, phase::CR);
                set!(w.pos, pos + 1);
                return event::NONE;
            }
            if header_name::<RESPONSE>(m, w, pos, left, a) {
                return event::NONE;
            }
        }
        let at = get!(m.phase);
        if at == phase::SKIP || at == phase::LINE || at == phase::CHUNK_EXT {
            return to_line_end(m, w, at, pos, len, a);
        }
        set!(w.pos, pos + 1);
        one_byte::<RESPONSE>(m, w, at, pos, left, a)
    }
}

#[inline(always)]
unsafe fn more_follows(w: *mut Window, len: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { get!(w.base).wrapping_add(len) < get!(w.end) }
}

#[inline(always)]
unsafe fn start<const RESPONSE: bool>(m: *mut Machine, w: *mut Window, pos: u32, left: u32, a: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let byte = a & 0xff;
        // Blank lines between messages are tolerated (RFC 9112, 2.2).
        if byte == b'\r' as u64 || byte == b'\n' as u64 {
            set!(w.pos, pos + 1);
            return event::NONE;
        }
        set!(m.begun, get!(w.now));
        set!(m.flags, 0);
        set!(m.remaining, 0);
        set!(m.header_bytes, 0);
        set!(m.word, 0);
        if left >= LOOKAHEAD {
            if RESPONSE {
                let status = status_in(word(w, pos, 8));
                if !begins_response(a) || status == 0 {
                    return malformed(m);
                }
                set!(m.status, status);
                set!(m.phase, phase::SKIP);
                set!(w.pos, pos + 12);
                return event::STATUS;
            }
            let four = a & 0xffff_ffff;
            if four == le4(b"GET ") || four == le4(b"POST") && (a >> 32) & 0xff == b' ' as u64 {
                set!(m.phase, phase::LINE);
                set!(w.pos, pos + 4);
                return event::NONE;
            }
        }
        set!(m.phase, phase::FIRST);
        event::NONE
    }
}

#[inline(always)]
unsafe fn malformed(m: *mut Machine) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { set!(m.phase, phase::SEARCH) };
    event::MALFORMED
}

/// At a header line's first byte: true if the name was of interest or must be read byte by byte, false if the
/// line can be skipped (the phase then says so).
#[inline(always)]
unsafe fn header_name<const RESPONSE: bool>(m: *mut Machine, w: *mut Window, pos: u32, left: u32, a: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        set!(m.phase, phase::SKIP);
        if get!(m.flags) & flag::TRAILER != 0 {
            return false;
        }
        if left < LOOKAHEAD {
            set!(m.word, HASH_SEED);
            set!(m.phase, phase::NAME);
            return true;
        }
        let folded = a | FOLD;
        if folded != CONTENT_ && folded != TRANSFER && (RESPONSE || folded != USER_AGE) {
            return false;
        }
        let b = word(w, pos, 8) | FOLD;
        if folded == CONTENT_ {
            if b & LOW7 != LENGTH_ {
                return false;
            }
            begin_value(m, phase::LENGTH);
            set!(w.pos, pos + 15);
        } else if folded == TRANSFER {
            if b != ENCODIN || (word(w, pos, 16) | FOLD) & LOW2 != G_COLON {
                return false;
            }
            begin_value(m, phase::CODING);
            set!(w.pos, pos + 18);
        } else {
            if b & LOW3 != NT_COLON {
                return false;
            }
            begin_value(m, phase::AGENT);
            set!(w.pos, pos + 11);
        }
        true
    }
}

#[inline(always)]
unsafe fn begin_value(m: *mut Machine, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        set!(m.phase, value);
        set!(m.word, if value == phase::CODING { HASH_SEED } else { 0 });
        if value == phase::LENGTH {
            set!(m.remaining, 0);
            set!(m.flags, get!(m.flags) | flag::LENGTH);
        }
    }
}

/// Sixteen bytes at once towards the next LF.
#[inline(always)]
unsafe fn to_line_end(m: *mut Machine, w: *mut Window, at: u32, pos: u32, len: u32, a: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut found = newline(a);
        if found == 8 {
            found = 8 + newline(word(w, pos, 8));
        }
        let next = pos + found + 1;
        if found == 16 || next > len {
            set!(w.pos, if pos + 16 < len { pos + 16 } else { len });
            return event::NONE;
        }
        set!(w.pos, next);
        if at == phase::CHUNK_EXT {
            return end_of_chunk_size(m);
        }
        // A request line that lies in the window must end with its version; one that is split is believed.
        if at == phase::LINE && next > 10 {
            let crlf = word(w, next - 10, 0) & LOW7 == HTTP_1;
            if !crlf && word(w, next - 9, 0) & LOW7 != HTTP_1 {
                return malformed(m);
            }
        }
        set!(m.phase, phase::HEADER);
        event::NONE
    }
}

#[inline(always)]
unsafe fn end_of_chunk_size(m: *mut Machine) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (flags, size) = (get!(m.flags), get!(m.remaining));
        if flags & flag::DIGIT == 0 {
            return malformed(m);
        }
        if size == 0 {
            set!(m.flags, flags | flag::TRAILER);
            set!(m.phase, phase::HEADER);
        } else {
            set!(m.remaining, size + 2);
            set!(m.phase, phase::CHUNK_DATA);
        }
        event::NONE
    }
}

/// RFC 9112, 6.3: how long the body is.
#[inline(always)]
unsafe fn end_of_headers<const RESPONSE: bool>(m: *mut Machine, w: *mut Window, next: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        set!(w.pos, next);
        let flags = get!(m.flags);
        if flags & flag::TRAILER != 0 {
            set!(m.phase, phase::START);
            return event::NONE;
        }
        let mut to = phase::START;
        if flags & flag::CHUNKED != 0 {
            set!(m.remaining, 0);
            to = phase::CHUNK_SIZE;
        } else if get!(m.remaining) != 0 {
            to = phase::BODY;
        } else if RESPONSE && flags & flag::LENGTH == 0 {
            to = phase::OPAQUE;
        }
        if !RESPONSE {
            // What follows CONNECT is not HTTP unless it is refused: then a segment's start tells.
            set!(m.phase, if flags & flag::CONNECT != 0 { phase::SEARCH } else { to });
            return event::REQUEST;
        }
        let status = get!(m.status);
        if status == 101 || flags & flag::CONNECT != 0 && status >= 200 && status < 300 {
            to = phase::OPAQUE;
        } else if status < 200 || status == 204 || status == 304 || flags & flag::HEAD != 0 {
            to = phase::START;
        }
        set!(m.phase, to);
        event::NONE
    }
}

/// The phases that take a byte at a time; the byte is already consumed.
#[inline(always)]
unsafe fn one_byte<const RESPONSE: bool>(
    m: *mut Machine,
    w: *mut Window,
    at: u32,
    pos: u32,
    left: u32,
    a: u64,
) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let byte = a & 0xff;
        let state = get!(m.word);
        if at == phase::FIRST {
            return if RESPONSE { status_byte(m, byte, state) } else { method_byte(m, byte, state) };
        }
        if at == phase::CR {
            if byte == b'\n' as u64 {
                return end_of_headers::<RESPONSE>(m, w, pos + 1);
            }
            set!(m.phase, phase::SKIP);
            return event::NONE;
        }
        if at == phase::CHUNK_SIZE {
            return chunk_size_byte(m, byte);
        }
        if at == phase::CODING {
            coding_byte(m, w, pos, left, a, state);
        } else if at == phase::LENGTH {
            let digit = byte.wrapping_sub(b'0' as u64);
            if digit <= 9 {
                let value = get!(m.remaining);
                if value > 1 << 56 {
                    return malformed(m);
                }
                set!(m.remaining, value * 10 + digit);
            }
        } else if at == phase::AGENT {
            agent_byte(m, w, pos, left, a, state);
        } else if byte == b':' as u64 {
            name_end::<RESPONSE>(m, state);
        } else {
            set!(m.word, hash(state, byte));
        }
        if byte == b'\n' as u64 {
            set!(m.phase, phase::HEADER);
        }
        event::NONE
    }
}

#[inline(always)]
unsafe fn name_end<const RESPONSE: bool>(m: *mut Machine, name: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        if name == HASH_CONTENT_LENGTH {
            begin_value(m, phase::LENGTH);
        } else if name == HASH_TRANSFER_ENCODING {
            begin_value(m, phase::CODING);
        } else if !RESPONSE && name == HASH_USER_AGENT {
            begin_value(m, phase::AGENT);
        } else {
            set!(m.phase, phase::SKIP);
        }
    }
}

#[inline(always)]
unsafe fn method_byte(m: *mut Machine, byte: u64, method: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let length = get!(m.remaining);
        if byte == b' ' as u64 && length != 0 {
            set!(m.remaining, 0);
            set!(m.phase, phase::LINE);
            if method == HEAD {
                set!(m.flags, flag::HEAD);
            } else if method == CONNECT {
                set!(m.flags, flag::CONNECT);
            } else if method == PRI {
                set!(m.phase, phase::OPAQUE);
                return event::HTTP2;
            }
            return event::NONE;
        }
        let letter = byte.wrapping_sub(b'A' as u64) < 26 || byte == b'-' as u64 || byte == b'_' as u64;
        if !letter || length >= MAX_METHOD {
            return malformed(m);
        }
        set!(m.remaining, length + 1);
        set!(m.word, (method << 8) | byte);
        event::NONE
    }
}

#[inline(always)]
unsafe fn status_byte(m: *mut Machine, byte: u64, index: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let digit = byte.wrapping_sub(b'0' as u64);
        set!(m.word, index + 1);
        if index < 7 {
            if byte != (HTTP_1 >> (index * 8)) & 0xff {
                return malformed(m);
            }
            set!(m.status, 0);
        } else if index == 8 {
            if byte != b' ' as u64 {
                return malformed(m);
            }
        } else if digit > 9 {
            return malformed(m);
        } else if index > 8 {
            set!(m.status, get!(m.status) * 10 + digit as u32);
            if index == 11 {
                set!(m.phase, phase::SKIP);
                return event::STATUS;
            }
        }
        event::NONE
    }
}

#[inline(always)]
unsafe fn chunk_size_byte(m: *mut Machine, byte: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if byte == b'\n' as u64 {
            return end_of_chunk_size(m);
        }
        if byte == b'\r' as u64 {
            return event::NONE;
        }
        let mut digit = byte.wrapping_sub(b'0' as u64);
        if digit > 9 {
            digit = (byte | 0x20).wrapping_sub(b'a' as u64);
            if digit > 5 {
                set!(m.phase, phase::CHUNK_EXT);
                return event::NONE;
            }
            digit += 10;
        }
        let size = get!(m.remaining);
        if size > 1 << 48 {
            return malformed(m);
        }
        set!(m.remaining, (size << 4) | digit);
        set!(m.flags, get!(m.flags) | flag::DIGIT);
        event::NONE
    }
}

/// "chunked" counts when it is the last coding.
#[inline(always)]
unsafe fn coding_byte(m: *mut Machine, w: *mut Window, pos: u32, left: u32, a: u64, state: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let byte = a & 0xff;
        if a | FOLD == SP_CHUNKED && left >= LOOKAHEAD && word(w, pos, 8) & LOW2 == LINE_END {
            set!(m.flags, get!(m.flags) | flag::CHUNKED);
            set!(w.pos, pos + 8);
            set!(m.phase, phase::SKIP);
            return;
        }
        let delimiter =
            byte == b',' as u64 || byte == b' ' as u64 || byte == b'\t' as u64 || byte == b'\r' as u64 || byte == b'\n' as u64;
        if !delimiter {
            set!(m.word, hash(state, byte));
            return;
        }
        if state != HASH_SEED {
            let flags = get!(m.flags) & !flag::CHUNKED;
            set!(m.flags, if state == HASH_CHUNKED { flags | flag::CHUNKED } else { flags });
            set!(m.word, HASH_SEED);
        }
    }
}

#[inline(always)]
unsafe fn agent_byte(m: *mut Machine, w: *mut Window, pos: u32, left: u32, a: u64, matched: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let byte = a & 0xff;
        if matched == 0 && (byte == b' ' as u64 || byte == b'\t' as u64) {
            return;
        }
        set!(m.phase, phase::SKIP);
        if matched == 0 && left >= LOOKAHEAD {
            if a == KUBE_PRO && word(w, pos, 8) & LOW3 == BE_SLASH {
                set!(m.flags, get!(m.flags) | flag::PROBE);
            }
            return;
        }
        let expected = if matched < 8 { KUBE_PRO >> (matched * 8) } else { BE_SLASH >> ((matched & 7) * 8) };
        if byte != expected & 0xff {
            return;
        }
        if matched == 10 {
            set!(m.flags, get!(m.flags) | flag::PROBE);
            return;
        }
        set!(m.word, matched + 1);
        set!(m.phase, phase::AGENT);
    }
}

const LINE_END: u64 = b'\r' as u64 | ((b'\n' as u64) << 8);
const HASH_SEED: u64 = 0xcbf2_9ce4_8422_2325;
const HASH_CONTENT_LENGTH: u64 = hash_of(b"content-length");
const HASH_TRANSFER_ENCODING: u64 = hash_of(b"transfer-encoding");
const HASH_USER_AGENT: u64 = hash_of(b"user-agent");
const HASH_CHUNKED: u64 = hash_of(b"chunked");

/// FNV-1a over the lower-cased byte.
#[inline(always)]
const fn hash(state: u64, byte: u64) -> u64 {
    (state ^ (byte | 0x20)).wrapping_mul(0x0000_0100_0000_01b3)
}

const fn hash_of(name: &[u8]) -> u64 {
    let (mut state, mut i) = (HASH_SEED, 0);
    while i < name.len() {
        state = hash(state, name[i] as u64);
        i += 1;
    }
    state
}

/// The place of the first LF in 8 bytes; 8 if there is none. Without trailing_zeros, which needs a table.
#[inline(always)]
const fn newline(a: u64) -> u32 {
    let x = a ^ 0x0a0a_0a0a_0a0a_0a0a;
    let mask = x.wrapping_sub(0x0101_0101_0101_0101) & !x & 0x8080_8080_8080_8080;
    if mask == 0 {
        return 8;
    }
    let lowest = (mask & mask.wrapping_neg()) >> 7;
    (lowest.wrapping_mul(0x0001_0203_0405_0607) >> 56) as u32
}

/// Eight bytes, `ahead` (at most 16) behind `pos`. The mask is for the verifier; the padding is for `ahead`.
#[inline(always)]
unsafe fn word(w: *mut Window, pos: u32, ahead: usize) -> u64 {
    let at = (pos & (WINDOW as u32 - 1)) as usize;
    // SAFETY: at most WINDOW - 1 + 16 + 8 bytes are read.
    unsafe { load((&raw const (*w).bytes).cast::<u8>().add(at).add(ahead)) }
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn load(at: *const u8) -> u64 {
    let value: u64;
    // SAFETY: the caller's promise. The compiler would load byte by byte.
    unsafe { core::arch::asm!("{0} = *(u64 *)({1} + 0)", out(reg) value, in(reg) at, options(nostack, readonly)) };
    value
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
unsafe fn load(at: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    u64::from_le(unsafe { at.cast::<u64>().read_unaligned() })
}

#[cfg(test)]
mod tests;
