//! Drives both directions of a connection as the kernel does, over bytes at hand: for tests and fuzzers. It never runs in
//! the kernel.

use super::connection::{act, answer, ended, in_flight, request, reset, role, unanswered};
use super::*;

/// Frames of a packet that are walked.
pub const TURNS: u32 = 4096;

/// What was told of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Requests, the inferred ones among them.
    pub requests: u64,
    /// Requests of which only the streams' numbers are known.
    pub inferred: u64,
    /// Requests that were not timed.
    pub untimed: u64,
    /// Requests whose answer was timed.
    pub timed: u64,
    /// Their latencies, microseconds.
    pub latency_sum: u64,
    /// Statuses by class, 1xx first.
    pub statuses: [u64; 5],
    /// Answers without a status that can be told.
    pub no_status: u64,
    /// Requests that were in flight and ended.
    pub ended: u64,
    /// Requests of those without an answer.
    pub aborted: u64,
    /// Times that a direction lost its place.
    pub desyncs: u64,
    /// Times that it was found again.
    pub resyncs: u64,
}

/// A connection in user space.
#[derive(Clone, Debug)]
pub struct Http2 {
    /// The kernel's value.
    pub connection: Connection,
    /// What it told.
    pub counted: Counted,
    /// The most frames that a packet held.
    pub most_frames: u32,
}

impl Http2 {
    /// A connection whose preface was seen up to "PRI ".
    pub fn after_pri() -> Http2 {
        let mut http2 = Http2::unknown();
        let c = &mut http2.connection;
        c.rx_role = role::SERVER;
        c.rx.phase = phase::SETTINGS;
        c.rx.skip = PREFACE_REST;
        c.prefaced = 1;
        c.tx.phase = phase::FRAME;
        http2
    }

    /// A connection older than we are.
    pub fn unknown() -> Http2 {
        // SAFETY: the kernel's storages begin like this, too; the type is integers only.
        let mut connection: Connection = unsafe { core::mem::zeroed() };
        connection.rx.phase = phase::SEARCH;
        connection.tx.phase = phase::SEARCH;
        Http2 {
            connection,
            counted: Counted::default(),
            most_frames: 0,
        }
    }

    /// A segment from the client, whose first byte came at `now` nanoseconds.
    pub fn feed(&mut self, bytes: &[u8], now: u64) {
        self.walk::<false>(bytes, now);
    }

    /// A segment from the server.
    pub fn feed_out(&mut self, bytes: &[u8], now: u64) {
        self.walk::<true>(bytes, now);
    }

    /// So many bytes from the client never came by.
    pub fn lose(&mut self, bytes: u32) {
        let m = &raw mut self.connection.rx;
        // SAFETY: ours.
        if unsafe { !skip_gap(m, bytes) } {
            self.connection.missed = 1;
            self.counted.desyncs += 1;
        }
    }

    /// So many bytes from the server never came by.
    pub fn lose_out(&mut self, bytes: u32) {
        let m = &raw mut self.connection.tx;
        // SAFETY: ours.
        if unsafe { !skip_gap(m, bytes) } {
            self.counted.desyncs += 1;
        }
    }

    /// Requests in flight.
    pub fn in_flight(&mut self) -> u32 {
        // SAFETY: ours.
        unsafe { in_flight(&raw mut self.connection) }
    }

    /// Requests in flight that have no answer.
    pub fn unanswered(&mut self) -> u32 {
        // SAFETY: ours.
        unsafe { unanswered(&raw mut self.connection) }
    }

    fn walk<const OUT: bool>(&mut self, bytes: &[u8], now: u64) {
        let last = self.connection.last;
        let c = &raw mut self.connection;
        // SAFETY: ours.
        let m = unsafe {
            if OUT {
                &raw mut (*c).tx
            } else {
                &raw mut (*c).rx
            }
        };
        // SAFETY: ours.
        unsafe {
            if get!(m.phase) == phase::SEARCH {
                if !believed(bytes, last) {
                    return;
                }
                set!(m.phase, phase::FRAME);
                self.counted.resyncs += 1;
            }
            begin(m, now, 0, bytes.len() as u32);
            let mut turns = 0;
            while turns < TURNS {
                let Next::Load { at, len } = prepare(m) else {
                    break;
                };
                let pos = get!(m.pos) as usize;
                let head = core::slice::from_raw_parts_mut(head(m), 2 * LOOK as usize);
                head[at as usize..(at + len) as usize]
                    .copy_from_slice(&bytes[pos..pos + len as usize]);
                let acts = match step::<OUT>(m) {
                    event::HEADERS if OUT => answer(c),
                    event::HEADERS => request(c, true),
                    event::END => ended(c),
                    event::RESET => reset::<OUT>(c),
                    event::MALFORMED => {
                        self.lost_place::<OUT>();
                        0
                    }
                    _ => 0,
                };
                self.count::<OUT>(acts, now);
                turns += 1;
            }
            self.most_frames = self.most_frames.max(turns);
            if unfinished(m) {
                lost(m);
                self.lost_place::<OUT>();
            }
        }
    }

    fn lost_place<const OUT: bool>(&mut self) {
        self.counted.desyncs += 1;
        if !OUT {
            self.connection.missed = 1;
        }
    }

    fn count<const OUT: bool>(&mut self, acts: u32, now: u64) {
        let (c, told) = (&self.connection, &mut self.counted);
        let is = |bit: u32| u64::from(acts & bit != 0);
        if acts & act::INFERRED != 0 {
            told.inferred += u64::from(c.inferred);
            told.requests += u64::from(c.inferred);
        }
        told.requests += is(act::REQUEST);
        told.untimed += is(act::UNTIMED);
        told.no_status += is(act::NO_STATUS);
        told.ended += is(act::ENDED);
        told.aborted += is(act::ABORTED);
        if acts & act::ANSWERED != 0 {
            let micros = ((now / 1000) as u32).wrapping_sub(c.answered_since);
            told.timed += 1;
            told.latency_sum += u64::from(micros);
        }
        if acts & act::STATUS != 0
            && let Some(class) = told.statuses.get_mut(c.tx.first.wrapping_sub(1) as usize)
        {
            *class += 1;
        }
    }
}

/// Whether a segment begins with frames, as the kernel asks.
fn believed(bytes: &[u8], last: u32) -> bool {
    let header = |at: usize| -> Option<(u64, u32)> {
        let nine: &[u8; 9] = bytes.get(at..at + 9)?.try_into().ok()?;
        let a = nine
            .iter()
            .take(8)
            .rev()
            .fold(0u64, |word, byte| (word << 8) | u64::from(*byte));
        Some((a, u32::from(nine[8])))
    };
    let Some((a, b)) = header(0) else {
        return false;
    };
    match guess(a, b, bytes.len() as u32, last) {
        Guess::Nothing => false,
        Guess::Whole => true,
        Guess::Until(at) => header(at as usize).is_some_and(|(a, b)| confirms(a, b, last)),
    }
}
