//! The first field of a header block, as far as it can be told without HPACK's dynamic table (RFC 7541). A response's is
//! `:status` (RFC 9113, 8.3.2: the only pseudo-header, and those come first), a request's one of four others, and a
//! trailer's none of them.

use core::ptr::{read_volatile, write_volatile};

use super::{FRAME_HEADER, LOOK, Machine, flag, get, set};

/// What a header block begins with; 1 to 5 are a status of that class.
pub mod first {
    /// A reference to the dynamic table, a literal name, or nothing that was seen.
    pub const UNKNOWN: u32 = 0;
    /// A request's pseudo-header.
    pub const REQUEST: u32 = 6;
}

/// Bytes of table size updates that are skipped.
const UPDATES: u32 = 8;
/// Static table: `:authority`, `:method`, `:path`, `:scheme`.
const LAST_REQUEST: u32 = 7;
/// Static table: `:status`.
const LAST_STATUS: u32 = 14;

/// Reads the first field of the frame in `head`, of which `limit` bytes are there.
#[inline(always)]
pub(super) unsafe fn read(m: *mut Machine, flags: u32, limit: u32) -> u32 {
    // SAFETY: the caller's promise; every look is inside `head`.
    unsafe {
        let mut at = FRAME_HEADER;
        let mut limit = limit;
        if flags & flag::PADDED != 0 {
            // Padding lies behind the block; a block shorter than what is looked at must not be read beyond.
            at += 1;
        }
        if flags & flag::PRIORITY != 0 {
            at += 5;
        }
        if limit > LOOK {
            limit = LOOK;
        }
        set!(m.cursor, at);
        if byte(m, at) & 0xe0 == 0x20 {
            skip_updates(m);
        }
        let at = get!(m.cursor);
        if at >= limit {
            return first::UNKNOWN;
        }
        let field = byte(m, at);
        if field & 0x80 != 0 {
            return indexed(field & 0x7f);
        }
        // Literal with indexing, without, or never.
        let name = if field & 0x40 != 0 {
            field & 0x3f
        } else {
            field & 0x0f
        };
        if name == 0 || name > LAST_STATUS {
            return first::UNKNOWN;
        }
        if name <= LAST_REQUEST {
            return first::REQUEST;
        }
        if at + 2 >= limit {
            return first::UNKNOWN;
        }
        literal(byte(m, at + 1), byte(m, at + 2))
    }
}

/// The machine reads its place from memory, so that the verifier does not follow each of the places it can be at.
#[inline(always)]
unsafe fn skip_updates(m: *mut Machine) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut inside, mut i) = (false, 0);
        while i < UPDATES {
            let at = get!(m.cursor);
            let b = byte(m, at);
            if inside {
                inside = b & 0x80 != 0;
            } else if b & 0xe0 == 0x20 {
                inside = b & 0x1f == 0x1f;
            } else {
                return;
            }
            set!(m.cursor, at + 1);
            i += 1;
        }
    }
}

#[inline(always)]
const fn indexed(index: u32) -> u32 {
    match index {
        1..=LAST_REQUEST => first::REQUEST,
        8..=10 => 2,
        11 => 3,
        12 | 13 => 4,
        LAST_STATUS => 5,
        _ => first::UNKNOWN,
    }
}

/// The class in a status of three digits, of which the first byte is `value`, plain or in HPACK's Huffman code
/// (RFC 7541, appendix B: '1' is 00001, '2' 00010, '3' to '5' 011001 to 011011).
#[inline(always)]
const fn literal(len: u32, value: u32) -> u32 {
    if len == 3 {
        let digit = value.wrapping_sub(b'0' as u32);
        return if digit >= 1 && digit <= 5 { digit } else { 0 };
    }
    if len != 0x82 && len != 0x83 {
        return first::UNKNOWN;
    }
    if value >> 3 == 1 || value >> 3 == 2 {
        return value >> 3;
    }
    match value >> 2 {
        0b01_1001 => 3,
        0b01_1010 => 4,
        0b01_1011 => 5,
        _ => first::UNKNOWN,
    }
}

/// A byte of `head`.
#[inline(always)]
unsafe fn byte(m: *mut Machine, at: u32) -> u32 {
    let at = inside(at as u64) as usize;
    // SAFETY: `head` has twice as many bytes as are looked at.
    unsafe { read_volatile((&raw const (*m).head).cast::<u8>().add(at)) as u32 }
}

/// The verifier must see the bound; the compiler, which knows it, would leave the mask out. Older verifiers (6.1) then
/// do not see it.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn inside(at: u64) -> u64 {
    const _: () = assert!(2 * LOOK == 64);
    let mut at = at;
    // SAFETY: arithmetic.
    unsafe { core::arch::asm!("{0} &= 63", inout(reg) at, options(nostack, nomem, pure)) };
    at
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn inside(at: u64) -> u64 {
    at & (2 * LOOK as u64 - 1)
}
