//! Runs segments of a connection through the machines as the programs do, for tests and fuzzers. Counts; times nothing but
//! what the machines tell.

use super::{
    Guess, Machine, Next, begin, begins, confirms, continues, event, first_state, join, prepare,
    skip_all, skip_gap, state, step_in, step_out,
};
use crate::flow::rx_flag;
use crate::http1::Window;

/// Turns a packet, as in ebpf/programs/src/exchange.rs.
pub const TURNS: u32 = 16_384;

/// What a connection has told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Requests.
    pub requests: u64,
    /// Answers that tell of no error.
    pub answers: u64,
    /// Answers that do.
    pub failed: u64,
    /// Records of application data.
    pub records: u64,
    /// Times that the place in a stream was lost.
    pub lost: u64,
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Of [`rx_flag::WIRE`]; 0 until it is known.
    pub protocol: u32,
    /// What it has told.
    pub told: Told,
    /// The most turns that a segment took.
    pub most_turns: u32,
    rx: Machine,
    tx: Machine,
    fresh: bool,
}

impl Wire {
    /// A new connection.
    pub fn begun() -> Wire {
        Wire {
            protocol: 0,
            told: Told::default(),
            most_turns: 0,
            rx: Machine::default(),
            tx: Machine::default(),
            fresh: true,
        }
    }

    /// A connection older than we are.
    pub fn unknown() -> Wire {
        Wire {
            fresh: false,
            ..Wire::begun()
        }
    }

    /// When the request or record at hand began.
    pub fn begun_at(&self) -> u64 {
        self.rx.begun
    }

    /// When the answer at hand began.
    pub fn answered_at(&self) -> u64 {
        self.tx.begun
    }

    /// A segment from the client.
    pub fn feed(&mut self, bytes: &[u8], now: u64) {
        if bytes.is_empty() {
            return;
        }
        if self.rx.state == state::LOST && !self.found(bytes) {
            return;
        }
        let left = bytes.len() as u32;
        // SAFETY: ours.
        if unsafe { skip_all(&raw mut self.rx, left) } {
            return;
        }
        self.walk::<false>(bytes, now);
    }

    /// A segment from the server. The first one is taken for the beginning of an answer.
    pub fn feed_out(&mut self, bytes: &[u8], now: u64) {
        if bytes.is_empty() || self.protocol & (rx_flag::REDIS | rx_flag::POSTGRESQL) == 0 {
            return;
        }
        if self.tx.state == state::LOST {
            // SAFETY: ours.
            unsafe { begin(&raw mut self.tx, state::START) };
        }
        // SAFETY: ours.
        if unsafe { !skip_all(&raw mut self.tx, bytes.len() as u32) } {
            self.walk::<true>(bytes, now);
        }
    }

    /// So many bytes from the client never came by.
    pub fn lose(&mut self, bytes: u32) {
        // SAFETY: ours.
        self.told.lost += u64::from(unsafe { !skip_gap(&raw mut self.rx, bytes) });
    }

    /// So many bytes from the server never came by.
    pub fn lose_out(&mut self, bytes: u32) {
        // SAFETY: ours.
        self.told.lost += u64::from(unsafe { !skip_gap(&raw mut self.tx, bytes) });
    }

    /// Whether the segment begins with something of ours; the machine then is before it.
    fn found(&mut self, bytes: &[u8]) -> bool {
        let (a, b) = (word(bytes, 0), word(bytes, 8));
        let left = bytes.len() as u32;
        if core::mem::take(&mut self.fresh) {
            self.protocol = begins(a, b, left);
            if self.protocol != 0 {
                // SAFETY: ours.
                unsafe { begin(&raw mut self.rx, first_state(self.protocol)) };
                return true;
            }
        }
        let of = match self.protocol {
            0 => rx_flag::WIRE,
            known => known,
        };
        let protocol = match continues(a, b, left, of) {
            Guess::Whole(protocol) => protocol,
            Guess::Until(protocol, at) if confirms(protocol, word(bytes, at as usize)) => protocol,
            _ => return false,
        };
        self.protocol = protocol;
        // SAFETY: ours.
        unsafe { join(&raw mut self.rx) };
        true
    }

    fn walk<const OUT: bool>(&mut self, bytes: &[u8], now: u64) {
        let mut window = Window::new(now, 0, bytes.len() as u32);
        // Stale bytes must not matter.
        window.bytes.fill(b'\n');
        for turn in 1.. {
            assert!(turn <= TURNS * 2, "more turns than the bound");
            self.most_turns = self.most_turns.max(turn);
            let m = if OUT {
                &raw mut self.tx
            } else {
                &raw mut self.rx
            };
            // SAFETY: both are ours.
            match unsafe { prepare(m, &raw mut window) } {
                Next::Stop => return,
                Next::Load(n) => {
                    let (base, n) = (window.base as usize, n as usize);
                    window.bytes[..n].copy_from_slice(&bytes[base..base + n]);
                }
                Next::Step => {}
            }
            let protocol = self.protocol;
            // SAFETY: both are ours.
            let found = unsafe {
                if OUT {
                    step_out(protocol, m, &raw mut window)
                } else {
                    step_in(protocol, m, &raw mut window)
                }
            };
            match found {
                event::REQUEST => self.told.requests += 1,
                event::ANSWER => self.told.answers += 1,
                event::FAILED => self.told.failed += 1,
                event::RECORD => self.told.records += 1,
                event::TLS => {
                    self.protocol = rx_flag::TLS;
                    // SAFETY: ours.
                    unsafe { begin(m, state::START) };
                }
                event::LOST => {
                    self.told.lost += 1;
                    return;
                }
                _ => {}
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}
