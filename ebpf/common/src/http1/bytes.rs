//! The phases that take a byte at a time: methods, numbers, and names that a packet's end cuts. They remember how
//! far they are in the machine, never in the packet.

use core::ptr::{read_volatile, write_volatile};

use super::step::{begin_value, end_of_chunk_size, end_of_headers, malformed};
use super::words::*;
use super::{LOOKAHEAD, MAX_METHOD, Machine, Window, event, flag, phase};

/// The phases that take a byte at a time; the byte is already consumed.
#[inline(always)]
pub(super) unsafe fn one_byte<const RESPONSE: bool>(
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
            return if RESPONSE {
                status_byte(m, byte, state)
            } else {
                method_byte(m, byte, state)
            };
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
        let letter =
            byte.wrapping_sub(b'A' as u64) < 26 || byte == b'-' as u64 || byte == b'_' as u64;
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
        let delimiter = byte == b',' as u64
            || byte == b' ' as u64
            || byte == b'\t' as u64
            || byte == b'\r' as u64
            || byte == b'\n' as u64;
        if !delimiter {
            set!(m.word, hash(state, byte));
            return;
        }
        if state != HASH_SEED {
            let flags = get!(m.flags) & !flag::CHUNKED;
            set!(
                m.flags,
                if state == HASH_CHUNKED {
                    flags | flag::CHUNKED
                } else {
                    flags
                }
            );
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
        let expected = if matched < 8 {
            KUBE_PRO >> (matched * 8)
        } else {
            BE_SLASH >> ((matched & 7) * 8)
        };
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
