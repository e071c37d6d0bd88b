//! What is remembered of one TLS session, and of a call of its library that has not returned. Layout only: what the
//! plain text means is told by the same machines as for packets.

use crate::flow::Flow;

/// Sessions of one node that can be followed, where they are.
pub const SESSIONS: u32 = 16_384;
/// Sessions that speak HTTP/2 and can be followed: a page each.
pub const HTTP2_SESSIONS: u32 = 2048;
/// Calls that can be under way at once, one a thread; of more the eldest are forgotten.
pub const CALLS: u32 = 4096;

/// A session, as its library knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The process, by its number in the first PID namespace.
    pub process: u64,
    /// The address of its `SSL`.
    pub ssl: u64,
}

/// The state of a session: that of a connection whose bytes come in order, so that its sequence numbers stay 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// Requests and their answers.
    pub flow: Flow,
    /// Nanoseconds (CLOCK_MONOTONIC) when it was last used.
    pub used: u64,
    /// The cgroup in which it was begun.
    pub cgroup: u64,
}

/// A call of the library that has not returned.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The address of the `SSL`.
    pub ssl: u64,
    /// Where the plain text lies.
    pub buffer: u64,
    /// Where the length will be; 0 if it is what the call returns.
    pub length_at: u64,
    /// Nanoseconds (CLOCK_MONOTONIC) when it was begun.
    pub begun: u64,
}
