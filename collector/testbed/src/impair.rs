//! A wire that loses frames and lets them overtake each other, carried frame by frame by a thread of this process:
//! the same on every kernel (the qdisc netem is often not there), and it knows what it did. It changes no frame.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Namespaces, enter};

/// A frame that is held back lets so many others of its direction pass, or waits so long.
const OVERTAKEN_BY: u32 = 3;
const HELD: Duration = Duration::from_millis(3);
/// Longer than any frame of the veth devices.
const FRAME: usize = 4096;
/// Frames taken from one end before the other's turn.
const BATCH: usize = 64;
/// Enough for what arrives while the thread waits for a CPU.
const BUFFER: libc::c_int = 8 << 20;

/// Shares of TCP segments, 0 to 1, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Impairment {
    /// Dropped.
    pub loss: f64,
    /// Held back until others have overtaken them.
    pub reorder: f64,
}

/// What a relay has done so far, in TCP segments of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Seen.
    pub segments: u64,
    /// Dropped.
    pub lost: u64,
    /// Held back.
    pub reordered: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    segments: AtomicU64,
    lost: AtomicU64,
    reordered: AtomicU64,
}

/// Carries frames between the ends of a [`crate::Wire::Relayed`] until it is dropped.
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts to carry.
    pub fn start(namespaces: &Namespaces, impairment: Impairment) -> io::Result<Relay> {
        let shared = Arc::new(Shared::default());
        let (theirs, namespace) = (Arc::clone(&shared), namespaces.relay());
        let (tell, told) = std::sync::mpsc::channel();
        let thread =
            std::thread::Builder::new()
                .name("relay".to_owned())
                .spawn(move || match ends(namespace) {
                    Ok(ends) => {
                        let _ = tell.send(Ok(()));
                        carry(&ends, impairment, &theirs);
                    }
                    Err(error) => drop(tell.send(Err(error))),
                })?;
        told.recv().map_err(io::Error::other)??;
        Ok(Relay {
            shared,
            thread: Some(thread),
        })
    }

    /// What it has done so far.
    pub fn passed(&self) -> Passed {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Passed {
            segments: get(&self.shared.segments),
            lost: get(&self.shared.lost),
            reordered: get(&self.shared.reordered),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ends(namespace: PathBuf) -> io::Result<[OwnedFd; 2]> {
    enter(Path::new(&namespace))?;
    Ok([packet_socket("rs")?, packet_socket("rc")?])
}

/// A socket that sees every frame that comes in at a device, whoever it is for, and none that goes out.
fn packet_socket(device: &str) -> io::Result<OwnedFd> {
    let name = CString::new(device)?;
    // SAFETY: a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let all = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // Bound to no protocol at first, or it would see other devices' frames.
    // SAFETY: a new descriptor, owned from here on.
    let socket = unsafe {
        match libc::socket(libc::AF_PACKET, kind, 0) {
            -1 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    // SAFETY: the address and its length.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is an int.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A frame that others are to overtake.
struct Held {
    frame: Vec<u8>,
    overtaken: u32,
    since: Instant,
}

fn carry(ends: &[OwnedFd; 2], impairment: Impairment, shared: &Shared) {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut held = [VecDeque::new(), VecDeque::new()];
    let mut buffer = vec![0; FRAME];
    while !shared.stop.load(Ordering::Relaxed) {
        wait(ends);
        for from in 0..2 {
            let (source, target) = (&ends[from], &ends[1 - from]);
            for _ in 0..BATCH {
                let Some(frame) = receive(source, &mut buffer) else {
                    break;
                };
                if is_tcp(frame) {
                    shared.segments.fetch_add(1, Ordering::Relaxed);
                    if chance(&mut random, impairment.loss) {
                        shared.lost.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    if chance(&mut random, impairment.reorder) {
                        shared.reordered.fetch_add(1, Ordering::Relaxed);
                        held[from].push_back(Held {
                            frame: frame.to_vec(),
                            overtaken: 0,
                            since: Instant::now(),
                        });
                        continue;
                    }
                }
                send(target, frame);
                held[from].iter_mut().for_each(|held| held.overtaken += 1);
            }
            while let Some(held) = held[from]
                .pop_front_if(|held| held.overtaken >= OVERTAKEN_BY || held.since.elapsed() >= HELD)
            {
                send(target, &held.frame);
            }
        }
    }
}

fn wait(ends: &[OwnedFd; 2]) {
    let mut polled = [0, 1].map(|end: usize| libc::pollfd {
        fd: ends[end].as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: an array of two. What was held is looked at again after a millisecond.
    unsafe { libc::poll(polled.as_mut_ptr(), 2, 1) };
}

fn receive<'a>(from: &OwnedFd, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: the buffer and its length.
    let got = unsafe {
        libc::recv(
            from.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    buffer.get(..usize::try_from(got).ok()?)
}

fn send(to: &OwnedFd, frame: &[u8]) {
    // A full device drops the frame, as wires do: TCP sends it again.
    // SAFETY: the frame and its length.
    unsafe { libc::send(to.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
}

/// IPv4 with TCP behind an Ethernet header.
fn is_tcp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&6)
}

/// Marsaglia's xorshift64: the same sequence in each run.
fn chance(random: &mut u64, share: f64) -> bool {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    ((*random >> 11) as f64) < share * (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_what_they_are_said_to_be() {
        let mut random = 1;
        let hits = (0..100_000).filter(|_| chance(&mut random, 0.01)).count();
        assert!((800..1200).contains(&hits), "{hits}");
        assert!(!chance(&mut random, 0.0));
    }

    #[test]
    fn only_tcp_is_impaired() {
        let mut frame = [0_u8; 60];
        assert!(!is_tcp(&frame));
        (frame[12], frame[23]) = (8, 6);
        assert!(is_tcp(&frame));
        assert!(!is_tcp(&frame[..20]));
    }
}
