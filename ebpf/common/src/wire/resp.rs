//! RESP, Redis's protocol, versions 2 and 3: commands are arrays of bulk strings or inline lines, replies are values of any
//! kind. Knows no command by name.

use core::ptr::{read_volatile, write_volatile};

use super::{Machine, byte, event, get, lost, set, state};
use crate::http1::{Window, newline, word};

/// More digits than any number that Redis sends or takes.
const MAX_DIGITS: u32 = 10;
/// More arguments than Redis takes of a command.
const MAX_ARGUMENTS: u64 = 1024 * 1024;

/// In [`Machine::bits`]: the byte that the token began with, how many digits it had, and whether the number is negative.
const KIND: u32 = 0xff;
const DIGIT: u32 = 1 << 8;
const DIGITS: u32 = 0xf << 8;
const NEGATIVE: u32 = 1 << 12;

/// One token, or what the window has of it.
#[inline(always)]
pub(super) unsafe fn step<const OUT: bool>(m: *mut Machine, w: *mut Window) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut found = event::NONE;
        if get!(m.state) == state::START {
            let pos = get!(w.pos);
            let kind = byte(w, pos) as u32;
            set!(w.pos, pos + 1);
            found = if OUT {
                value(m, w, kind)
            } else {
                command(m, w, kind)
            };
        }
        let at = get!(m.state);
        if at == state::LINE {
            return if line(m, w) && !OUT {
                event::REQUEST
            } else {
                found
            };
        }
        if at == state::NUMBER && get!(w.pos) < get!(w.len) && !number(m, w) {
            return lost(m);
        }
        if get!(m.state) == state::LF && get!(w.pos) < get!(w.len) {
            let pos = get!(w.pos);
            set!(w.pos, pos + 1);
            if byte(w, pos) != b'\n' as u64 {
                return lost(m);
            }
            let ended = complete::<OUT>(m);
            if ended != event::NONE {
                return ended;
            }
        }
        found
    }
}

#[inline(always)]
unsafe fn begin_number(m: *mut Machine, kind: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        set!(m.bits, kind);
        set!(m.remaining, 0);
        set!(m.state, state::NUMBER);
    }
}

/// The first byte of a command, or of one of its arguments.
#[inline(always)]
unsafe fn command(m: *mut Machine, w: *mut Window, kind: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(m.word) != 0 {
            if kind != b'$' as u32 {
                return lost(m);
            }
            begin_number(m, kind);
            return event::NONE;
        }
        if kind == b'\r' as u32 || kind == b'\n' as u32 {
            return event::NONE;
        }
        set!(m.begun, get!(w.now));
        if kind == b'*' as u32 {
            begin_number(m, kind);
        } else if (kind | 0x20).wrapping_sub(b'a' as u32) < 26 {
            set!(m.state, state::LINE);
        } else {
            return lost(m);
        }
        event::NONE
    }
}

/// The first byte of a reply, or of a value in one.
#[inline(always)]
unsafe fn value(m: *mut Machine, w: *mut Window, kind: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let is = |byte: u8| kind == byte as u32;
        let counted = is(b'$') || is(b'*') || is(b'%') || is(b'~') || is(b'=') || is(b'!');
        let line = is(b'+') || is(b'-') || is(b':') || is(b',') || is(b'(') || is(b'#') || is(b'_');
        // Attributes come before a value, and what is pushed answers nothing.
        let beside = is(b'|') || is(b'>');
        if line {
            set!(m.state, state::LINE);
        } else if counted || beside {
            begin_number(m, kind);
        } else {
            return lost(m);
        }
        let left = get!(m.word);
        if beside {
            return event::NONE;
        }
        if left != 0 {
            set!(m.word, left - 1);
            return event::NONE;
        }
        set!(m.begun, get!(w.now));
        if is(b'-') || is(b'!') {
            event::FAILED
        } else {
            event::ANSWER
        }
    }
}

/// Sixteen bytes at once towards the next LF; whether it was found.
#[inline(always)]
unsafe fn line(m: *mut Machine, w: *mut Window) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let (pos, len) = (get!(w.pos), get!(w.len));
        let mut at = newline(word(w, pos, 0));
        if at == 8 {
            at = 8 + newline(word(w, pos, 8));
        }
        let next = pos + at + 1;
        if at == 16 || next > len {
            set!(w.pos, if pos + 16 < len { pos + 16 } else { len });
            return false;
        }
        set!(w.pos, next);
        set!(m.state, state::START);
        true
    }
}

/// A number of up to six digits at once, or else a byte of one; false if that is none. Without a loop: the verifier would
/// follow every way through it.
#[inline(always)]
unsafe fn number(m: *mut Machine, w: *mut Window) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let (pos, bits) = (get!(w.pos), get!(m.bits));
        let a = word(w, pos, 0);
        let digits = end_of_number(a);
        let (value, good) = digits_of(a, digits);
        if bits & (DIGITS | NEGATIVE) == 0 && good && pos + digits < get!(w.len) {
            set!(w.pos, pos + digits + 1);
            set!(m.remaining, value);
            set!(m.state, state::LF);
            return true;
        }
        set!(w.pos, pos + 1);
        let byte = a & 0xff;
        let digit = byte.wrapping_sub(b'0' as u64);
        if digit <= 9 {
            let value = get!(m.remaining);
            set!(m.remaining, value * 10 + digit);
            set!(m.bits, bits + DIGIT);
            return bits & DIGITS < MAX_DIGITS * DIGIT;
        }
        if byte == b'\r' as u64 {
            set!(m.state, state::LF);
            return bits & DIGITS != 0;
        }
        set!(m.bits, bits | NEGATIVE);
        byte == b'-' as u64 && bits & (DIGITS | NEGATIVE) == 0
    }
}

/// The place of the first CR in 8 bytes; 8 if there is none.
#[inline(always)]
const fn end_of_number(a: u64) -> u32 {
    newline(a ^ 0x0707_0707_0707_0707)
}

/// The number in the first `n` bytes, and whether they are one; only of 1 to 6 of them.
#[inline(always)]
const fn digits_of(a: u64, n: u32) -> (u64, bool) {
    const ZEROS: u64 = 0x3030_3030_3030_3030;
    if n == 0 || n > 6 {
        return (0, false);
    }
    let shift = (8 - n) * 8;
    let t = ((a << shift) | (ZEROS >> (64 - shift))).wrapping_sub(ZEROS);
    let wrong = (t | t.wrapping_add(0x7676_7676_7676_7676)) & 0x8080_8080_8080_8080;
    // Two digits, four, eight.
    let t = t.wrapping_mul(10).wrapping_add(t >> 8);
    const PAIRS: u64 = 0x0000_00ff_0000_00ff;
    let high = (t & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let low = ((t >> 16) & PAIRS).wrapping_mul(1 + (10_000 << 32));
    (high.wrapping_add(low) >> 32, wrong == 0)
}

/// A number is complete: bytes to skip, or elements to come.
#[inline(always)]
unsafe fn complete<const OUT: bool>(m: *mut Machine) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (bits, n, left) = (get!(m.bits), get!(m.remaining), get!(m.word));
        let kind = bits & KIND;
        let negative = bits & NEGATIVE != 0;
        let aggregate = kind != b'$' as u32 && kind != b'=' as u32 && kind != b'!' as u32;
        set!(m.state, state::START);
        set!(m.remaining, 0);
        if aggregate {
            if negative {
                return event::NONE;
            }
            if !OUT && n > MAX_ARGUMENTS {
                return lost(m);
            }
            let pairs = OUT && (kind == b'%' as u32 || kind == b'|' as u32);
            set!(m.word, left.wrapping_add(if pairs { n * 2 } else { n }));
            return event::NONE;
        }
        if !negative {
            set!(m.remaining, n + 2);
        }
        if OUT {
            return event::NONE;
        }
        if negative {
            return lost(m);
        }
        set!(m.word, left.wrapping_sub(1));
        if left == 1 {
            event::REQUEST
        } else {
            event::NONE
        }
    }
}
