//! A TCP client whose segments the test makes one by one: sent again, out of order, overlapping, without the
//! handshake's last ACK. It never answers by itself.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CLIENT, SERVER, World, sh};

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
const PUSH: u8 = 8;

/// One connection from the client's namespace.
pub struct Raw {
    socket: Arc<OwnedFd>,
    ports: (u16, u16),
    /// The sequence number of the first byte that is sent.
    first: u32,
    /// What the server sends next.
    expected: u32,
    received: Vec<u8>,
}

/// Keeps the client's own kernel, which knows nothing of these connections, from resetting them.
pub fn silence_resets(world: &World) {
    sh(&format!(
        "nsenter --net=/run/netns/{}-c iptables -A OUTPUT -p tcp --tcp-flags RST RST -j DROP",
        world.name
    ));
}

impl Raw {
    /// Sends a SYN and waits for the answer; the handshake's last ACK is not sent. This thread is a client.
    pub fn open(local: u16, remote: u16) -> Raw {
        // SAFETY: a system call without pointers; then the descriptor is ours.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: as above.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        connect(&socket);
        Raw::on(Arc::new(socket), local, remote)
    }

    /// As [`Raw::open`] on this one's socket, which every packet of either reaches: for many connections that are
    /// waited for one at a time.
    pub fn open_beside(&self, local: u16) -> Raw {
        Raw::on(self.socket.clone(), local, self.ports.1)
    }

    fn on(socket: Arc<OwnedFd>, local: u16, remote: u16) -> Raw {
        let mut raw = Raw {
            socket,
            ports: (local, remote),
            first: u32::from(local) << 16,
            expected: 0,
            received: Vec::new(),
        };
        raw.segment(SYN, raw.first.wrapping_sub(1), b"");
        assert!(
            raw.pump(|raw| raw.expected != 0),
            "no answer to the SYN from {local}"
        );
        raw
    }

    /// As [`Raw::open`], with the last ACK.
    pub fn establish(local: u16, remote: u16) -> Raw {
        let raw = Raw::open(local, remote);
        raw.acknowledge();
        raw
    }

    /// Sends a pure ACK of all that has been received.
    pub fn acknowledge(&self) {
        self.segment(ACK, self.first, b"");
    }

    /// Sends `bytes` as those that begin at `offset` of the stream.
    pub fn send(&self, offset: usize, bytes: impl AsRef<[u8]>) {
        let seq = self.first.wrapping_add(offset as u32);
        self.segment(ACK | PUSH, seq, bytes.as_ref());
    }

    /// Sends the SYN again, as a network that duplicates does.
    pub fn duplicate_syn(&self) {
        self.segment(SYN, self.first.wrapping_sub(1), b"");
    }

    /// Waits until so many bytes have come from the server, and acknowledges them as of `offset` bytes sent.
    pub fn receive(&mut self, bytes: usize, offset: usize) {
        assert!(
            self.pump(|raw| raw.received.len() >= bytes),
            "{} of {bytes} bytes came",
            self.received.len()
        );
        self.segment(ACK, self.first.wrapping_add(offset as u32), b"");
    }

    /// Takes packets until it holds.
    fn pump(&mut self, mut holds: impl FnMut(&Raw) -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        let mut buffer = vec![0u8; 65_536];
        while !holds(self) {
            let mut poll = libc::pollfd {
                fd: self.socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one descriptor of ours.
            unsafe { libc::poll(&raw mut poll, 1, 100) };
            if Instant::now() > end {
                return false;
            }
            // SAFETY: the buffer is ours and as long as said.
            let n = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            if n >= 40 {
                self.take(&buffer[..n as usize]);
            }
        }
        true
    }

    fn take(&mut self, packet: &[u8]) {
        let ip = usize::from(packet[0] & 15) * 4;
        let tcp = &packet[ip..];
        let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        let ports = word(0);
        if ports != u32::from(self.ports.1) << 16 | u32::from(self.ports.0) {
            return;
        }
        let (seq, flags) = (word(4), tcp[13]);
        if flags & (SYN | ACK) == SYN | ACK {
            self.expected = seq.wrapping_add(1);
            return;
        }
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
        if seq == self.expected && !payload.is_empty() {
            self.received.extend_from_slice(payload);
            self.expected = seq.wrapping_add(payload.len() as u32);
        }
    }

    fn segment(&self, flags: u8, seq: u32, payload: &[u8]) {
        let mut tcp = Vec::new();
        tcp.extend(self.ports.0.to_be_bytes());
        tcp.extend(self.ports.1.to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        let ack = if flags & ACK != 0 { self.expected } else { 0 };
        tcp.extend(ack.to_be_bytes());
        tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(payload);
        let sum = checksum(&tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        // SAFETY: the bytes are ours and as many as said.
        let sent =
            unsafe { libc::send(self.socket.as_raw_fd(), tcp.as_ptr().cast(), tcp.len(), 0) };
        assert_eq!(sent, tcp.len() as isize, "{}", io::Error::last_os_error());
    }
}

/// Sends to the pods, and receives from nobody else.
fn connect(socket: &OwnedFd) {
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_addr.s_addr = u32::from(SERVER.parse::<Ipv4Addr>().unwrap()).to_be();
    let size = size_of::<libc::sockaddr_in>() as u32;
    // SAFETY: the address is ours and of that size.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// RFC 9293, 3.1: over the addresses, the protocol, the length and the segment.
fn checksum(tcp: &[u8]) -> u16 {
    let mut sum = 6 + tcp.len() as u32;
    for address in [CLIENT, SERVER] {
        let bits = u32::from(address.parse::<Ipv4Addr>().unwrap());
        sum += (bits >> 16) + (bits & 0xffff);
    }
    for pair in tcp.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}
