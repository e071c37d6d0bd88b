//! Protocols whose requests are told by a short grammar of their own: RESP (Redis), PostgreSQL's, and TLS as far as its
//! records. A machine that can stop at any byte; payloads are skipped by their length, content is never looked at.
//!
//! The kernel runs [`prepare`] and a step over windows of a packet, one token a turn; so do the tests and the fuzzers.
//! Fields are read and written through memory at each step, as in `http1`. A connection's machines lie where those of
//! `http1` lay before it was known what is spoken, so that a connection costs no more memory.

mod look;
mod postgresql;
mod resp;
mod tls;

#[cfg(not(target_arch = "bpf"))]
mod feed;

use core::ptr::{read_volatile, write_volatile};

#[cfg(not(target_arch = "bpf"))]
pub use feed::{TURNS, Told, Wire};
pub use look::{Guess, begins, confirms, continues, may_continue};

use crate::flow::rx_flag;
use crate::http1::{self, WINDOW, Window};

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
use {get, set};

/// So many bytes are at hand for a token, if the packet has them; the longest that is read at once has 13.
const LOOKAHEAD: u32 = 16;

/// Where a [`Machine`] stands, apart from bytes that it skips.
pub mod state {
    /// Not synchronised: nothing is known of the bytes to come.
    pub const LOST: u32 = 0;
    /// Before a token, or in a header of fixed size.
    pub const START: u32 = 1;
    /// RESP: in a number.
    pub const NUMBER: u32 = 2;
    /// RESP: before the LF that ends a number.
    pub const LF: u32 = 3;
    /// RESP: in a line of no interest.
    pub const LINE: u32 = 4;
    /// PostgreSQL: before the packets that have no type.
    pub const STARTUP: u32 = 5;
}

/// What a step found.
pub mod event {
    /// Nothing; go on.
    pub const NONE: u32 = 0;
    /// A request, which began at `begun`.
    pub const REQUEST: u32 = 1;
    /// An answer, whose first byte came at `begun`.
    pub const ANSWER: u32 = 2;
    /// An answer that tells of an error.
    pub const FAILED: u32 = 3;
    /// A record of application data of the client's.
    pub const RECORD: u32 = 4;
    /// TLS begins here: the byte was not taken.
    pub const TLS: u32 = 5;
    /// The bytes are not of the protocol; the machine is at `LOST`.
    pub const LOST: u32 = 6;
}

/// One direction of one connection, in the place of [`http1::Machine`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// That machine's phase, which keeps it out; never touched here.
    phase: u32,
    /// That machine's flags; none apply.
    flags: u32,
    /// One of [`state`].
    pub state: u32,
    /// What is known of the token at hand, by the protocol.
    bits: u32,
    /// RESP: elements to come of what began with the last one at the top. Others: the header's bytes so far.
    /// Of TLS out: how often the server has sent.
    pub word: u64,
    /// Bytes to skip; before that, RESP's number.
    remaining: u64,
    /// [`Window::now`] when the first byte was seen. Of TLS in: the server's `word` at the last turn.
    pub begun: u64,
}

const _: () = assert!(
    size_of::<Machine>() == size_of::<http1::Machine>()
        && align_of::<Machine>() == align_of::<http1::Machine>()
        && core::mem::offset_of!(Machine, phase) == core::mem::offset_of!(http1::Machine, phase)
        && core::mem::offset_of!(Machine, flags) == core::mem::offset_of!(http1::Machine, flags)
        && core::mem::offset_of!(Machine, begun) == core::mem::offset_of!(http1::Machine, begun)
);

/// What to do before stepping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Step: the window has bytes.
    Step,
    /// Copy this many bytes (1 to [`WINDOW`]) from `base` of the packet into the window, then step.
    Load(u32),
    /// The payload is used up, or nothing in it can be understood.
    Stop,
}

/// Puts the machine at `at` of [`state`].
///
/// # Safety
/// The pointer is valid, and nobody else uses what it points at.
#[inline(always)]
pub unsafe fn begin(m: *mut Machine, at: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        set!(m.flags, 0);
        set!(m.state, at);
        set!(m.bits, 0);
        set!(m.word, 0);
        set!(m.remaining, 0);
        set!(m.begun, 0);
    }
}

/// Puts the machine before a request of a connection whose beginning was not seen.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn join(m: *mut Machine) {
    // SAFETY: the caller's promise.
    unsafe {
        begin(m, state::START);
        set!(m.bits, tls::JOINED);
    }
}

/// The state in which a protocol (of [`rx_flag::WIRE`]) begins.
pub const fn first_state(protocol: u32) -> u32 {
    if protocol == rx_flag::POSTGRESQL {
        state::STARTUP
    } else {
        state::START
    }
}

/// Decides what comes before the next step and does the skips that need no look at the bytes.
///
/// # Safety
/// Both pointers are valid, and nobody else uses what they point at.
#[inline(always)]
pub unsafe fn prepare(m: *mut Machine, w: *mut Window) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let at = get!(m.state);
        if at == state::LOST {
            return Next::Stop;
        }
        let (base, end, mut pos) = (get!(w.base), get!(w.end), get!(w.pos));
        if base.wrapping_add(pos) >= end {
            return Next::Stop;
        }
        if at != state::NUMBER && at != state::LF {
            let (left, remaining) = (
                end.wrapping_sub(base).wrapping_sub(pos) as u64,
                get!(m.remaining),
            );
            let skip = if remaining < left { remaining } else { left };
            set!(m.remaining, remaining.wrapping_sub(skip));
            pos = pos.wrapping_add(skip as u32);
            set!(w.pos, pos);
            if skip == left {
                return Next::Stop;
            }
        }
        let (at, len) = (base.wrapping_add(pos), get!(w.len));
        if pos.wrapping_add(LOOKAHEAD) <= len || pos < len && base.wrapping_add(len) >= end {
            return Next::Step;
        }
        let left = end.wrapping_sub(at);
        let load = if left > WINDOW as u32 {
            WINDOW as u32
        } else {
            left
        };
        set!(w.base, at);
        set!(w.pos, 0);
        set!(w.len, load);
        Next::Load(load)
    }
}

/// One token in, or what there is of it; returns an [`event`].
///
/// # Safety
/// As for [`prepare`], which said to step.
#[inline(always)]
pub unsafe fn step_in(protocol: u32, m: *mut Machine, w: *mut Window) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if protocol & rx_flag::REDIS != 0 {
            resp::step::<false>(m, w)
        } else if protocol & rx_flag::POSTGRESQL != 0 {
            postgresql::step::<false>(m, w)
        } else {
            tls::step(m, w)
        }
    }
}

/// One token out, or what there is of it; returns an [`event`].
///
/// # Safety
/// As for [`prepare`], which said to step.
#[inline(always)]
pub unsafe fn step_out(protocol: u32, m: *mut Machine, w: *mut Window) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if protocol & rx_flag::REDIS != 0 {
            resp::step::<true>(m, w)
        } else {
            postgresql::step::<true>(m, w)
        }
    }
}

/// Whether the next `n` bytes are of no interest: of a payload, or of a stream in which the place is lost.
///
/// # Safety
/// The pointer is valid.
#[inline(always)]
pub unsafe fn passes(m: *mut Machine, n: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let (at, remaining) = (get!(m.state), get!(m.remaining));
        at == state::LOST || at != state::NUMBER && at != state::LF && remaining >= n as u64
    }
}

/// Moves over `n` bytes if they are of a payload.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn skip_all(m: *mut Machine, n: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(m.state) == state::LOST || !passes(m, n) {
            return false;
        }
        set!(m.remaining, get!(m.remaining) - n as u64);
        true
    }
}

/// Whether the packet begun has bytes that were not stepped over.
///
/// # Safety
/// Both pointers are valid.
#[inline(always)]
pub unsafe fn unfinished(m: *mut Machine, w: *mut Window) -> bool {
    // SAFETY: the caller's promise.
    unsafe { get!(m.state) != state::LOST && get!(w.base).wrapping_add(get!(w.pos)) < get!(w.end) }
}

/// Accounts for bytes that will not be seen: fine in a payload that is skipped. False when the machine has lost its
/// place; it then is at `LOST`.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn skip_gap(m: *mut Machine, gap: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if get!(m.state) == state::LOST || skip_all(m, gap) {
            return true;
        }
        lost(m);
        false
    }
}

/// Forgets the place.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn lost(m: *mut Machine) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { set!(m.state, state::LOST) };
    event::LOST
}

/// The byte at `pos` of the window.
#[inline(always)]
unsafe fn byte(w: *mut Window, pos: u32) -> u64 {
    // SAFETY: the caller's promise; `word` keeps inside the window.
    unsafe { http1::word(w, pos, 0) & 0xff }
}

/// Takes a header of `want` (at most 8) bytes into `word`, the first of them the highest: all at once, or else a byte of it,
/// of which the lowest bits of `bits` tell the number so far. True if the header is complete. Without a loop: the verifier
/// would follow every way through it.
#[inline(always)]
unsafe fn gather(m: *mut Machine, w: *mut Window, want: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let (pos, bits) = (get!(w.pos), get!(m.bits));
        let have = bits & HAVE;
        if have == 0 && pos + want <= get!(w.len) {
            set!(w.pos, pos + want);
            set!(
                m.word,
                http1::word(w, pos, 0).swap_bytes() >> (64 - want * 8)
            );
            return true;
        }
        let word = if have == 0 { 0 } else { get!(m.word) };
        set!(w.pos, pos + 1);
        set!(m.word, (word << 8) | byte(w, pos));
        let complete = have + 1 >= want;
        set!(m.bits, if complete { bits & !HAVE } else { bits + 1 });
        complete
    }
}

/// Where `gather` counts.
const HAVE: u32 = 15;

#[cfg(test)]
mod tests;
