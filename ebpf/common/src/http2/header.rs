//! Frame headers (RFC 9113, 4.1): what a peer may send, and what one who looks for a frame may take for one. Never looks at
//! payloads.

use core::ptr::read_volatile;

use super::{FRAME_HEADER, MAX_AHEAD, Machine};

/// A frame with more payload than every peer must accept (RFC 9113, 4.2) is not believed when looking for one.
const MAX_PLAUSIBLE: u32 = 16_384;

pub(super) mod kind {
    pub const DATA: u32 = 0;
    pub const HEADERS: u32 = 1;
    pub const PRIORITY: u32 = 2;
    pub const RST_STREAM: u32 = 3;
    pub const SETTINGS: u32 = 4;
    pub const PUSH_PROMISE: u32 = 5;
    pub const PING: u32 = 6;
    pub const GOAWAY: u32 = 7;
    pub const WINDOW_UPDATE: u32 = 8;
    pub const CONTINUATION: u32 = 9;
}

pub(super) mod flag {
    pub const END_STREAM: u32 = 0x1;
    pub const ACK: u32 = 0x1;
    pub const END_HEADERS: u32 = 0x4;
    pub const PADDED: u32 = 0x8;
    pub const PRIORITY: u32 = 0x20;
}

/// A frame's header.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub len: u32,
    pub kind: u32,
    pub flags: u32,
    pub stream: u32,
    reserved: u32,
}

impl Header {
    #[inline(always)]
    pub(super) unsafe fn read(m: *mut Machine) -> Header {
        // SAFETY: the caller's promise.
        unsafe {
            let words = (&raw const (*m).head).cast::<u64>();
            Header::of(
                u64::from_le(read_volatile(words)),
                u64::from_le(read_volatile(words.add(1))) as u32,
            )
        }
    }

    /// The header in nine bytes, the first eight and the last, little endian.
    #[inline(always)]
    const fn of(a: u64, b: u32) -> Header {
        let len = (((a & 0xff) << 16) | (a & 0xff00) | ((a >> 16) & 0xff)) as u32;
        let id = ((((a >> 40) & 0xff) << 24)
            | (((a >> 48) & 0xff) << 16)
            | (((a >> 56) & 0xff) << 8)) as u32
            | (b & 0xff);
        Header {
            len,
            kind: ((a >> 24) & 0xff) as u32,
            flags: ((a >> 32) & 0xff) as u32,
            stream: id & 0x7fff_ffff,
            reserved: id >> 31,
        }
    }

    /// Whether RFC 9113, section 6, lets a peer send this: anything else is an error that ends the connection, so it
    /// means that we have lost our place. Unknown kinds are allowed (4.1).
    #[inline(always)]
    pub(super) const fn possible(self) -> bool {
        let (kind, len) = (self.kind, self.len);
        if kind == kind::SETTINGS {
            return self.stream == 0 && len % 6 == 0 && (self.flags & flag::ACK == 0 || len == 0);
        }
        if kind == kind::PING {
            return self.stream == 0 && len == 8;
        }
        if kind == kind::GOAWAY {
            return self.stream == 0 && len >= 8;
        }
        if kind == kind::WINDOW_UPDATE {
            return len == 4;
        }
        // Larger frames have to be allowed by the receiver, which nobody does for the sake of others than DATA. A length
        // that is believed is not looked into, so a wrong one must not be long.
        if len > MAX_PLAUSIBLE && kind != kind::DATA {
            return false;
        }
        if kind > kind::CONTINUATION {
            return true;
        }
        if self.stream == 0 {
            return false;
        }
        if kind == kind::RST_STREAM {
            return len == 4;
        }
        kind != kind::PRIORITY || len == 5
    }

    /// Whether one who looks for a frame may believe in this one. `last`: the last request known, or 0.
    #[inline(always)]
    const fn plausible(self, last: u32) -> bool {
        const BODY: u32 = flag::END_STREAM | flag::PADDED;
        const BLOCK: u32 = flag::END_HEADERS | flag::PADDED;
        if self.kind > kind::CONTINUATION || self.reserved != 0 || self.len > MAX_PLAUSIBLE {
            return false;
        }
        let allowed = match self.kind {
            kind::DATA => BODY,
            kind::HEADERS => BODY | BLOCK | flag::PRIORITY,
            kind::SETTINGS | kind::PING => flag::ACK,
            kind::PUSH_PROMISE => BLOCK,
            kind::CONTINUATION => flag::END_HEADERS,
            _ => 0,
        };
        let known = last == 0 || self.stream <= last || self.stream - last <= MAX_AHEAD;
        // Even streams are pushed, which hardly anybody does any more.
        self.flags & !allowed == 0
            && known
            && (self.stream & 1 == 1 || self.stream == 0)
            && self.possible()
    }
}

/// Whether a segment that begins with these 8 bytes (little endian) is worth a look by [`guess`].
#[inline(always)]
pub const fn may_begin(a: u64) -> bool {
    a & 0xff == 0 && (a >> 24) & 0xff <= kind::CONTINUATION as u64 && (a >> 40) & 0x80 == 0
}

/// What a segment begins with when it is looked at for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// Not a frame.
    Nothing,
    /// A frame that fills the segment.
    Whole,
    /// A frame, if another is found so many bytes from the segment's start.
    Until(u32),
}

/// Whether `left` bytes may begin with the frame whose header is `a` (first eight bytes, little endian) and `b` (the
/// ninth). It must end with the segment, or be followed by another header.
#[inline(always)]
pub const fn guess(a: u64, b: u32, left: u32, last: u32) -> Guess {
    let frame = Header::of(a, b);
    let whole = frame.len + FRAME_HEADER;
    if !frame.plausible(last) || whole > left {
        return Guess::Nothing;
    }
    if whole == left {
        return Guess::Whole;
    }
    if left - whole < FRAME_HEADER {
        return Guess::Nothing;
    }
    Guess::Until(whole)
}

/// Whether the second frame that [`Guess::Until`] asks for is one.
#[inline(always)]
pub const fn confirms(a: u64, b: u32, last: u32) -> bool {
    Header::of(a, b).plausible(last)
}
