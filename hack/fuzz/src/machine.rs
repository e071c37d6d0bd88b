//! Runs packets through the HTTP/1 machine as the BPF programs do, and counts the work. It judges nothing but the
//! bound of that work.

use ebpf_scaler_common::http1::{Machine, Next, Window, event, flag, phase, prepare, step};

/// Steps between two looks at the window, as in ebpf/programs/src/scan.rs.
const STEPS: usize = 24;
/// What a message is known by.
pub const KINDS: u32 = flag::HEAD | flag::CONNECT | flag::PROBE;

/// What a stream told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A request with those of its flags that are [`KINDS`].
    Request(u32),
    /// A response's status.
    Status(u32),
    /// An event that says why the machine lost its place.
    Lost(u32),
}

/// One direction of a connection.
pub struct Direction<const RESPONSE: bool> {
    machine: Machine,
    /// What was found so far.
    pub seen: Vec<Seen>,
    /// Whether the n-th final response answers HEAD.
    pub heads: Vec<bool>,
}

impl<const RESPONSE: bool> Direction<RESPONSE> {
    /// At the beginning of a message.
    pub fn new(heads: &[bool]) -> Self {
        let mut machine = Machine::default();
        machine.phase = phase::START;
        Self {
            machine,
            seen: Vec::new(),
            heads: heads.iter().rev().copied().collect(),
        }
    }

    /// One packet's payload. Panics if it takes more work than its length allows for.
    pub fn feed(&mut self, packet: &[u8]) {
        let mut window = Window::new(7, 0, packet.len() as u32);
        // Stale bytes must not matter.
        window.bytes.fill(b'\n');
        // A step consumes a byte or moves on to what will; a turn ends with a window or an event.
        let (mut turns, mut steps) = (packet.len() * 2 + 8, packet.len() * 3 + 32);
        loop {
            turns = turns.checked_sub(1).expect("more turns than the bound");
            // SAFETY: both are ours.
            match unsafe { prepare(&raw mut self.machine, &raw mut window) } {
                Next::Stop => return,
                Next::Again => continue,
                Next::Oversized => return self.seen.push(Seen::Lost(event::OVERSIZED)),
                Next::Load(n) => {
                    let (base, n) = (window.base as usize, n as usize);
                    assert!(n >= 1, "an empty window");
                    window.bytes[..n].copy_from_slice(&packet[base..base + n]);
                }
                Next::Step => {}
            }
            for _ in 0..STEPS {
                steps = steps.checked_sub(1).expect("more steps than the bound");
                // SAFETY: both are ours.
                let event = unsafe { step::<RESPONSE>(&raw mut self.machine, &raw mut window) };
                match event {
                    event::NONE => continue,
                    event::LOAD => {}
                    event::REQUEST => self.seen.push(Seen::Request(self.machine.flags & KINDS)),
                    event::STATUS => self.status(),
                    lost => self.seen.push(Seen::Lost(lost)),
                }
                break;
            }
        }
    }

    fn status(&mut self) {
        let status = self.machine.status;
        assert!(status < 1000);
        self.seen.push(Seen::Status(status));
        if status >= 200 && self.heads.pop() == Some(true) {
            self.machine.flags |= flag::HEAD;
        }
    }
}

/// What a stream tells when it comes in packets that end at these places.
pub fn told<const RESPONSE: bool>(stream: &[u8], cuts: &[usize], heads: &[bool]) -> Vec<Seen> {
    let mut direction = Direction::<RESPONSE>::new(heads);
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    let mut begin = 0;
    for end in ends {
        direction.feed(&stream[begin..end]);
        begin = end;
    }
    direction.seen
}
