//! What a segment's first bytes prove: which protocol a new connection speaks, and where one begins anew whose place is not
//! known. Ports prove nothing and are not asked.

use super::postgresql::{MAX_STARTUP, code, from_client};
use super::tls;
use crate::flow::rx_flag;

/// A message further on is not believed to be longer than this when looking for one.
const MAX_PLAUSIBLE: u32 = 1 << 24;

/// The byte at `i`, of `a` and `b` in this order, little endian.
#[inline(always)]
const fn at(a: u64, b: u64, i: u32) -> u32 {
    let word = if i < 8 { a } else { b };
    ((word >> ((i & 7) * 8)) & 0xff) as u32
}

#[inline(always)]
const fn digit(byte: u32) -> bool {
    byte.wrapping_sub(b'0' as u32) <= 9
}

/// The protocol (of [`rx_flag::WIRE`]) that begins with these 16 bytes of the client's first segment, or as many of them as
/// `left` says; 0 if it is none.
#[inline(always)]
pub const fn begins(a: u64, b: u64, left: u32) -> u32 {
    let first = at(a, b, 0);
    if first == b'*' as u32 {
        let plausible = left < 2 || digit(at(a, b, 1));
        return if plausible { rx_flag::REDIS } else { 0 };
    }
    const PING: u64 = u64::from_le_bytes(*b"ping\0\0\0\0");
    const FOLD: u64 = u64::from_le_bytes(*b"\x20\x20\x20\x20\0\0\0\0");
    const LOW4: u64 = 0xffff_ffff;
    if left >= 6 && (a & LOW4) | FOLD == PING {
        let end = at(a, b, 4);
        let plausible = end == b'\r' as u32 && at(a, b, 5) == b'\n' as u32;
        return if plausible { rx_flag::REDIS } else { 0 };
    }
    if left < 8 {
        return 0;
    }
    let (len, version) = ((a as u32).swap_bytes(), ((a >> 32) as u32).swap_bytes());
    // A first record holds a ClientHello.
    if first == 22 && at(a, b, 1) == 3 && at(a, b, 5) == 1 {
        return rx_flag::TLS;
    }
    let before = len == 8 && (version == code::SSL || version == code::GSS);
    let session = version >> 16 == code::MAJOR && version & 0xffff <= 2;
    if before || session && len > 8 && len <= MAX_STARTUP {
        return rx_flag::POSTGRESQL;
    }
    0
}

/// What a segment begins with when it is looked at for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// Nothing of ours.
    Nothing,
    /// A request of this protocol.
    Whole(u32),
    /// A request, if [`confirms`] says so of what is so many bytes from the segment's start.
    Until(u32, u32),
}

/// Whether a segment that begins with these bytes (little endian) is worth a look by [`continues`].
#[inline(always)]
pub const fn may_continue(a: u64) -> bool {
    let first = (a & 0xff) as u32;
    first == b'*' as u32
        || first == b'Q' as u32
        || first == b'P' as u32
        || first == b'B' as u32
        || first == 23
}

/// Whether a segment of `left` bytes, in the middle of a connection, begins with a request of one of these protocols: `a` and
/// `b` are its first 16 bytes, little endian.
#[inline(always)]
pub const fn continues(a: u64, b: u64, left: u32, of: u32) -> Guess {
    let first = at(a, b, 0);
    if left < 5 {
        return Guess::Nothing;
    }
    if of & rx_flag::REDIS != 0 && first == b'*' as u32 {
        let found = left >= 14 && array(a, b);
        return if found {
            Guess::Whole(rx_flag::REDIS)
        } else {
            Guess::Nothing
        };
    }
    let len = ((a >> 8) as u32).swap_bytes();
    if of & rx_flag::TLS != 0 && first == 23 && at(a, b, 1) == 3 && at(a, b, 2) == 3 {
        return until(rx_flag::TLS, record(a).1 + 5, left, true);
    }
    let query = first == b'Q' as u32;
    let begins = query || first == b'P' as u32 || first == b'B' as u32;
    if of & rx_flag::POSTGRESQL != 0 && begins && from_client(first, len) && len > 4 {
        return until(rx_flag::POSTGRESQL, len + 1, left, query);
    }
    Guess::Nothing
}

/// Version and length of a TLS record.
#[inline(always)]
const fn record(a: u64) -> (u32, u32) {
    let word = ((a >> 8) as u32).swap_bytes();
    (word >> 16, word & 0xffff)
}

/// A message of `whole` bytes, which may be all there is if it is a request by itself.
#[inline(always)]
const fn until(protocol: u32, whole: u32, left: u32, alone: bool) -> Guess {
    if whole == left && alone {
        return Guess::Whole(protocol);
    }
    if whole > left || left - whole < 5 {
        return Guess::Nothing;
    }
    Guess::Until(protocol, whole)
}

/// `*N`, CRLF, `$N`: the beginning of any command but an inline one.
#[inline(always)]
const fn array(a: u64, b: u64) -> bool {
    let mut digits = 1;
    while digits <= 3 {
        let end = digits + 1;
        if at(a, b, end) == b'\r' as u32 {
            return digit(at(a, b, 1))
                && digit(at(a, b, digits))
                && at(a, b, end + 1) == b'\n' as u32
                && at(a, b, end + 2) == b'$' as u32
                && digit(at(a, b, end + 3));
        }
        digits += 1;
    }
    false
}

/// Whether what a [`Guess::Until`] left open is so: `a` are the 8 bytes there, of which the first five count.
#[inline(always)]
pub const fn confirms(protocol: u32, a: u64) -> bool {
    let (kind, len) = ((a & 0xff) as u32, ((a >> 8) as u32).swap_bytes());
    if protocol == rx_flag::TLS {
        let (version, len) = record(a);
        return tls::possible(kind, version, len);
    }
    from_client(kind, len) && len < MAX_PLAUSIBLE
}
