//! Ways for bytes to reach and leave a socket that syscall hooks do not see: sendfile, splice, io_uring, zero copy,
//! batches; and threads that hop between CPUs. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::thread;

use io_uring::{IoUring, opcode, types};
use kernel::http::{GET, OK, Pair, one_pod, response};
use kernel::{CLIENT, Pod, World};

fn exactly(world: &World, pod: &Pod, expected: u64) {
    let c = world.counters(pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (expected, expected, 0),
        "{}",
        world.troubles()
    );
}

/// A file that holds answers, so that a scanner of bodies would count them.
fn file_of_answers() -> (File, usize) {
    let text = response(500).repeat(20_000);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    (file, text.len())
}

fn check(result: isize) -> usize {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result as usize
}

#[test]
fn sendfile() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let (mut file, size) = file_of_answers();
    for _ in 0..20 {
        pair.ask(GET);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
        thread::scope(|scope| {
            scope.spawn(|| {
                pair.server.write_all(head.as_bytes()).unwrap();
                file.rewind().unwrap();
                let (to, from) = (pair.server.as_raw_fd(), file.as_raw_fd());
                let mut left = size;
                while left > 0 {
                    // SAFETY: both descriptors are open; no offset is written.
                    left -= check(unsafe { libc::sendfile(to, from, std::ptr::null_mut(), left) });
                }
            });
            skip(&mut pair.client, head.len() + size);
        });
        pair.turn(GET, OK);
    }
    exactly(&world, &pod, 40);
    let c = world.counters(&pod);
    assert!(c.transmit_bytes > 20 * size as u64, "{c:?}");
    assert_eq!(c.responses_5xx, 0);
}

fn skip(from: &mut TcpStream, bytes: usize) {
    let skipped = io::copy(&mut from.take(bytes as u64), &mut io::sink()).unwrap();
    assert_eq!(skipped, bytes as u64);
}

/// Moves bytes from one socket to another through a pipe until the first ends; none is ever in user space.
fn splice_all(from: RawFd, to: RawFd) {
    let mut pipe = [0; 2];
    // SAFETY: room for two descriptors.
    let made = unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(made, 0);
    let null = std::ptr::null_mut;
    loop {
        // SAFETY: open descriptors, no offsets.
        let n = check(unsafe { libc::splice(from, null(), pipe[1], null(), 1 << 16, 0) });
        if n == 0 {
            break;
        }
        let mut left = n;
        while left > 0 {
            // SAFETY: as above.
            left -= check(unsafe { libc::splice(pipe[0], null(), to, null(), left, 0) });
        }
    }
    // SAFETY: our descriptors, closed once.
    unsafe {
        libc::shutdown(to, libc::SHUT_WR);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
    }
}

#[test]
fn a_proxy_that_splices_counts_its_inbound_requests_once() {
    let (world, pod, listener) = one_pod(80);
    let upstream = TcpListener::bind((CLIENT, 8080)).unwrap();
    let (outward, back) = (
        pod.connect(upstream.local_addr().unwrap()),
        upstream.accept().unwrap().0,
    );
    let Pair { client, server } = Pair::new(&listener);
    thread::scope(|scope| {
        scope.spawn(|| splice_all(server.as_raw_fd(), outward.as_raw_fd()));
        scope.spawn(|| splice_all(outward.as_raw_fd(), server.as_raw_fd()));
        // End to end: what goes in at the client comes out at the application behind the proxy.
        let mut ends = Pair {
            client,
            server: back,
        };
        let body = GET.repeat(5_000);
        for _ in 0..20 {
            ends.turn(GET, OK);
            ends.ask(format!(
                "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            ends.answer(OK);
            ends.turn(GET.repeat(5), OK.repeat(5));
        }
        drop(ends);
    });
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (140, 140, 0),
        "{}",
        world.troubles()
    );
    assert!(c.transmit_bytes > 20 * 5_000 * GET.len() as u64);
}

/// One operation, done when this returns.
fn ring(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> usize {
    // SAFETY: what the entry points at outlives the call, which waits for its end.
    unsafe { ring.submission().push(entry).unwrap() };
    ring.submit_and_wait(1).unwrap();
    let done = ring.completion().next().unwrap().result();
    assert!(done >= 0, "{}", io::Error::from_raw_os_error(-done));
    done as usize
}

/// A ring, or None where an administrator has switched io_uring off; any other refusal is a failure.
fn new_ring() -> Option<IoUring> {
    match IoUring::new(8) {
        Ok(ring) => Some(ring),
        Err(error) => {
            let off = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            let off = off.is_ok_and(|text| text.trim() != "0");
            assert!(
                off || error.raw_os_error() == Some(libc::ENOSYS),
                "io_uring is not switched off, and yet: {error}"
            );
            eprintln!("NOT TESTED: io_uring, which this kernel does not have or allow ({error})");
            None
        }
    }
}

#[test]
fn io_uring_on_both_sides_of_a_server() {
    let Some(mut uring) = new_ring() else { return };
    let (world, pod, listener) = one_pod(80);
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let accept = opcode::Accept::new(
        types::Fd(listener.as_raw_fd()),
        std::ptr::null_mut(),
        std::ptr::null_mut(),
    )
    .build();
    let server = types::Fd(ring(&mut uring, &accept) as RawFd);
    let mut buffer = vec![0u8; 64 * 1024];
    let body = GET.repeat(500);
    let requests = [
        GET.to_owned(),
        format!(
            "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    ];
    for n in 0..100 {
        let request = &requests[n % 2];
        client.write_all(request.as_bytes()).unwrap();
        let mut left = request.len();
        while left > 0 {
            let (at, size) = (buffer.as_mut_ptr(), buffer.len() as u32);
            let read = match n % 3 {
                0 => opcode::Recv::new(server, at, size).build(),
                _ => opcode::Read::new(server, at, size).build(),
            };
            left -= ring(&mut uring, &read);
        }
        let (at, size) = (OK.as_ptr(), OK.len() as u32);
        let write = match n % 3 {
            0 => opcode::Send::new(server, at, size).build(),
            1 => opcode::Write::new(server, at, size).build(),
            _ => opcode::Send::new(server, at, size)
                .flags(libc::MSG_MORE)
                .build(),
        };
        assert_eq!(ring(&mut uring, &write), OK.len());
        if n % 3 == 2 {
            set_nodelay(server.0);
        }
        skip(&mut client, OK.len());
    }
    exactly(&world, &pod, 100);
    // SAFETY: the descriptor came from the ring's accept and is closed once.
    unsafe { libc::close(server.0) };
}

/// Setting it sends what waits for more.
fn set_nodelay(socket: RawFd) {
    let one: libc::c_int = 1;
    // SAFETY: the option's value is an int.
    let done = unsafe {
        libc::setsockopt(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const one).cast(),
            4,
        )
    };
    assert_eq!(done, 0);
}

#[test]
fn zero_copy_vectors_and_batches() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let one: libc::c_int = 1;
    for end in [&pair.client, &pair.server] {
        // SAFETY: the option's value is an int.
        let done = unsafe {
            libc::setsockopt(
                end.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ZEROCOPY,
                (&raw const one).cast(),
                4,
            )
        };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }
    let body = GET.repeat(400);
    let post = format!(
        "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let large = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for _ in 0..20 {
        zero_copy(&pair.client, &post);
        skip(&mut pair.server, post.len());
        zero_copy(&pair.server, &large);
        skip(&mut pair.client, large.len());
        // Many pieces in one call, cut in the middle of words.
        let pieces: Vec<io::IoSlice<'_>> = GET.as_bytes().chunks(3).map(io::IoSlice::new).collect();
        assert_eq!(pair.client.write_vectored(&pieces).unwrap(), GET.len());
        skip(&mut pair.server, GET.len());
        pair.answer(OK);
        // One call, several messages.
        batch(&pair.client, &[GET, GET, GET]);
        skip(&mut pair.server, 3 * GET.len());
        batch(&pair.server, &[OK, OK, OK]);
        skip(&mut pair.client, 3 * OK.len());
    }
    exactly(&world, &pod, 100);
}

fn zero_copy(to: &TcpStream, bytes: &str) {
    let (mut at, mut left) = (bytes.as_ptr(), bytes.len());
    while left > 0 {
        // SAFETY: the bytes live on; they are constant until the end of the test.
        let sent =
            check(unsafe { libc::send(to.as_raw_fd(), at.cast(), left, libc::MSG_ZEROCOPY) });
        // SAFETY: inside the text.
        at = unsafe { at.add(sent) };
        left -= sent;
    }
}

fn batch(to: &TcpStream, messages: &[&str]) {
    let mut parts: Vec<libc::iovec> = messages
        .iter()
        .map(|message| libc::iovec {
            iov_base: message.as_ptr().cast_mut().cast(),
            iov_len: message.len(),
        })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all zero is a valid header.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header
        })
        .collect();
    // SAFETY: as many headers as said, each with one part.
    let sent = unsafe {
        libc::sendmmsg(
            to.as_raw_fd(),
            headers.as_mut_ptr(),
            messages.len() as u32,
            0,
        )
    };
    assert_eq!(sent, messages.len() as i32);
}

/// Moves this thread to a CPU.
fn hop(to: usize) {
    // SAFETY: all zero is an empty set; the calling thread alone is moved.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(to, &mut set);
        assert_eq!(
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set),
            0
        );
    }
}

#[test]
fn senders_that_hop_between_cpus() {
    let (world, pod, listener) = one_pod(80);
    let cpus = thread::available_parallelism().unwrap().get();
    let turns = 2_000;
    let (mut asked, mut threads) = (0, Vec::new());
    for n in 0..4 {
        let mut pair = Pair::new(&listener);
        asked += turns;
        // Each turn on another CPU than the one before, the two ends on different ones.
        threads.push(thread::spawn(move || {
            for turn in 0..turns as usize {
                hop((n + turn) % cpus);
                pair.ask(GET);
                hop((n + turn + 1) % cpus);
                pair.answer(OK);
            }
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    exactly(&world, &pod, asked);
}

#[test]
fn pipelining_at_full_speed_while_hopping_never_counts_twice() {
    let (world, pod, listener) = one_pod(80);
    let cpus = thread::available_parallelism().unwrap().get();
    let asked: u64 = 20_000;
    let Pair {
        mut client,
        mut server,
    } = Pair::new(&listener);
    let mut answers = client.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for n in 0..asked as usize {
                if n % 3 == 0 {
                    hop(n / 3 % cpus);
                }
                client.write_all(GET.as_bytes()).unwrap();
            }
        });
        scope.spawn(move || {
            let mut request = vec![0; GET.len()];
            for n in 0..asked as usize {
                if n % 5 == 0 {
                    hop(n / 5 % cpus);
                }
                server.read_exact(&mut request).unwrap();
                server.write_all(OK.as_bytes()).unwrap();
            }
        });
        skip(&mut answers, asked as usize * OK.len());
    });
    let c = world.counters(&pod);
    let explained = [
        "request_desyncs",
        "segments_out_of_order",
        "lost_races",
        "response_desyncs",
        "scratch_busy",
    ]
    .map(|name| world.statistic(name))
    .iter()
    .sum::<u64>();
    eprintln!("{} of {asked}, {}", c.requests, world.troubles());
    assert!(c.requests <= asked, "{} {}", c.requests, world.troubles());
    assert!(
        c.requests == asked || explained > 0,
        "{} {}",
        c.requests,
        world.troubles()
    );
    // Nothing here loses segments, so what overtakes is rare.
    assert!(
        c.requests >= asked * 9 / 10,
        "{} {}",
        c.requests,
        world.troubles()
    );
}
