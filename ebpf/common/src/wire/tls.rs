//! TLS records of the client (RFC 8446, 5.1): which of them carry application data. What they carry is not to be seen.

use core::ptr::{read_volatile, write_volatile};

use super::{Machine, event, gather, get, lost, set};
use crate::http1::Window;

const HEADER: u32 = 5;
/// The longest record of any version, with what encryption adds (RFC 5246, 6.2.3).
const MAX_RECORD: u32 = (1 << 14) + 2048;

const CHANGE_CIPHER_SPEC: u32 = 20;
const HANDSHAKE: u32 = 22;
const APPLICATION_DATA: u32 = 23;
const HEARTBEAT: u32 = 24;

/// In [`Machine::bits`], above those that `gather` counts in.
mod bit {
    /// The last record before application data was of the handshake.
    pub const HANDSHAKE: u32 = 1 << 8;
    /// ChangeCipherSpec was sent.
    pub const CHANGED: u32 = 1 << 9;
    /// Application data were sent.
    pub const DATA: u32 = 1 << 10;
}

/// The beginning was not seen, so the handshake is not to be looked for.
pub(super) const JOINED: u32 = 1 << 11;

/// Whether these can be a record's type, version and length.
#[inline(always)]
pub(super) const fn possible(kind: u32, version: u32, len: u32) -> bool {
    kind >= CHANGE_CIPHER_SPEC
        && kind <= HEARTBEAT
        && version >> 8 == 3
        && version & 0xff <= 4
        && len != 0
        && len <= MAX_RECORD
}

/// One header, or what the window has of it.
#[inline(always)]
pub(super) unsafe fn step(m: *mut Machine, w: *mut Window) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if !gather(m, w, HEADER) {
            return event::NONE;
        }
        let (bits, word) = (get!(m.bits), get!(m.word));
        let (kind, len) = ((word >> 32) as u32 & 0xff, word as u32 & 0xffff);
        if !possible(kind, (word >> 16) as u32 & 0xffff, len) {
            return lost(m);
        }
        set!(m.remaining, len as u64);
        if kind == CHANGE_CIPHER_SPEC {
            set!(m.bits, (bits | bit::CHANGED) & !bit::HANDSHAKE);
        } else if kind == HANDSHAKE {
            set!(m.bits, bits | bit::HANDSHAKE);
        } else if kind == APPLICATION_DATA {
            set!(m.bits, bits | bit::DATA);
            // TLS 1.3 hides the end of the client's handshake in the first such record. Before 1.3 that end is a record
            // of the handshake's own behind ChangeCipherSpec.
            let before_13 = bit::CHANGED | bit::HANDSHAKE;
            if bits & (bit::DATA | JOINED) != 0 || bits & before_13 == before_13 {
                return event::RECORD;
            }
        }
        event::NONE
    }
}
