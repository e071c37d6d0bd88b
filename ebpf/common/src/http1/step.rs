//! One step of the machine: lines by words, and what follows the end of a header section. Bytes that must be taken
//! singly are in `bytes`.

use core::ptr::{read_volatile, write_volatile};

use super::bytes::one_byte;
use super::words::*;
use super::{LOOKAHEAD, Machine, PAD, Window, event, flag, phase};

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
unsafe fn start<const RESPONSE: bool>(
    m: *mut Machine,
    w: *mut Window,
    pos: u32,
    left: u32,
    a: u64,
) -> u32 {
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
pub(super) unsafe fn malformed(m: *mut Machine) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { set!(m.phase, phase::SEARCH) };
    event::MALFORMED
}

/// At a header line's first byte: true if the name was of interest or must be read byte by byte, false if the
/// line can be skipped (the phase then says so).
#[inline(always)]
unsafe fn header_name<const RESPONSE: bool>(
    m: *mut Machine,
    w: *mut Window,
    pos: u32,
    left: u32,
    a: u64,
) -> bool {
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
pub(super) unsafe fn begin_value(m: *mut Machine, value: u32) {
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

/// Bytes that are looked at at once for the end of a line.
const STRIDE: u32 = 32;
const _: () = assert!(STRIDE as usize <= PAD);

/// [`STRIDE`] bytes at once towards the next LF.
#[inline(always)]
unsafe fn to_line_end(m: *mut Machine, w: *mut Window, at: u32, pos: u32, len: u32, a: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut found, mut ahead) = (newline(a), 8);
        while found == ahead && ahead < STRIDE {
            found = ahead + newline(word(w, pos, ahead as usize));
            ahead += 8;
        }
        let next = pos + found + 1;
        if found == STRIDE || next > len {
            let end = pos + STRIDE;
            set!(w.pos, if end < len { end } else { len });
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
pub(super) unsafe fn end_of_chunk_size(m: *mut Machine) -> u32 {
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
pub(super) unsafe fn end_of_headers<const RESPONSE: bool>(
    m: *mut Machine,
    w: *mut Window,
    next: u32,
) -> u32 {
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
            set!(
                m.phase,
                if flags & flag::CONNECT != 0 {
                    phase::SEARCH
                } else {
                    to
                }
            );
            return event::REQUEST;
        }
        let status = get!(m.status);
        if status == 101 || flags & flag::CONNECT != 0 && (200..300).contains(&status) {
            to = phase::OPAQUE;
        } else if status < 200 || status == 204 || status == 304 || flags & flag::HEAD != 0 {
            to = phase::START;
        }
        set!(m.phase, to);
        event::NONE
    }
}
