//! What networks do to segments: sent again, overlapping, out of order, tiny, huge, without a last handshake ACK.
//! A client made by hand decides about every segment. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

use kernel::http::{GET, OK, Pair, one_pod};
use kernel::raw::{Raw, silence_resets};
use kernel::wire::Wire;
use kernel::{Pod, SERVER, SERVER6, World, sh};

fn exactly(world: &World, pod: &Pod, expected: u64) {
    let c = world.counters(pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (expected, expected, 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn what_is_sent_again_is_not_new() {
    let (world, pod, listener) = one_pod(80);
    silence_resets(&world);
    let mut wire = Wire::new(&listener, 2000);
    for _ in 0..20 {
        let before = wire.sent;
        wire.ask(GET, &[], &[0, 0]);
        // Before the answer and after it, whole, in part, and the end of the one before with it.
        wire.client.send(before, GET);
        wire.answer(OK);
        wire.client.send(before, GET);
        wire.client.send(before, &GET[..GET.len() / 2]);
        wire.client.send(before.saturating_sub(10), &GET[10..]);
        // Overlapping: the second begins in what the first had.
        let next = wire.sent;
        wire.client.send(next, &GET[..40]);
        wire.client.send(next + 20, &GET[20..]);
        wire.server.read_exact(&mut vec![0; GET.len()]).unwrap();
        wire.sent += GET.len();
        wire.answer(OK);
    }
    exactly(&world, &pod, 40);
    assert_eq!(
        world.statistic("request_desyncs"),
        0,
        "{}",
        world.troubles()
    );
}

#[test]
fn a_keep_alive_probe_carries_no_byte_of_a_request() {
    let (world, pod, listener) = one_pod(80);
    silence_resets(&world);
    let mut wire = Wire::new(&listener, 2001);
    for _ in 0..10 {
        wire.ask(GET, &[], &[0]);
        wire.answer(OK);
        // One byte before what comes next (RFC 9293, 3.8.4), which is none of it.
        wire.client.send(wire.sent - 1, "G");
        wire.client.send(wire.sent - 1, "\0");
    }
    exactly(&world, &pod, 10);
}

#[test]
fn bodies_out_of_order_cost_nothing() {
    let (world, pod, listener) = one_pod(80);
    silence_resets(&world);
    let mut wire = Wire::new(&listener, 2002);
    // Segments of the body begin with a request line.
    let body = GET.repeat(5);
    let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    let message = format!("{head}{body}");
    let cuts = [0, 1, 2, 3, 4].map(|n| head.len() + n * GET.len());
    let orders: [&[usize]; 5] = [
        &[0, 2, 1, 3, 4, 5],
        &[0, 5, 4, 3, 2, 1],
        &[0, 3, 1, 1, 5, 2, 4, 4],
        &[0, 2, 2, 4, 4, 1, 3, 5],
        &[0, 4, 2, 5, 1, 1, 2, 3],
    ];
    for order in orders.into_iter().cycle().take(20) {
        wire.ask(&message, &cuts, order);
        wire.answer(OK);
        wire.ask(GET, &[], &[0]);
        wire.answer(OK);
    }
    exactly(&world, &pod, 40);
    assert_eq!(
        world.statistic("request_desyncs"),
        0,
        "{}",
        world.troubles()
    );
}

#[test]
fn a_header_section_out_of_order_counts_when_it_is_answered() {
    let (world, pod, listener) = one_pod(80);
    silence_resets(&world);
    let mut wire = Wire::new(&listener, 2003);
    let head = "POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 300\r\n\r\n";
    let upload = format!("{head}{:300}", GET.repeat(4));
    // Of the body, too, segments begin like requests.
    let cuts = [20, 40, head.len(), head.len() + GET.len()];
    for _ in 0..10 {
        for order in [[0, 2, 1], [1, 0, 2], [2, 1, 0], [1, 2, 0]] {
            wire.ask(GET, &[20, 40], &order);
            wire.answer(OK);
            // Sent again whole, it is not new.
            wire.client.send(wire.sent - GET.len(), GET);
            wire.ask(GET, &[], &[0]);
            wire.answer(OK);
        }
        wire.ask(&upload, &cuts, &[0, 2, 1, 3, 4]);
        wire.answer(OK);
        wire.ask(GET, &[], &[0]);
        wire.answer(OK);
    }
    exactly(&world, &pod, 100);
    assert!(world.statistic("segments_out_of_order") >= 50);
    // Each time but those in which all of it had come before it was looked at.
    assert!(world.statistic("request_desyncs") >= 10);
}

#[test]
fn a_lost_last_handshake_ack() {
    for cookies in [1, 2] {
        let (world, pod, listener) = one_pod(80);
        silence_resets(&world);
        sh(&format!(
            "nsenter --net=/run/netns/{}-s sysctl -qw net.ipv4.tcp_syncookies={cookies}",
            world.name
        ));
        for n in 0..10u16 {
            // The first segment after the SYN is the request: it meets the listener.
            let client = Raw::open(3000 + n, 80);
            client.send(0, GET);
            // Sent again at once, as by an impatient client.
            client.send(0, GET);
            let mut wire = Wire::accepted(client, &listener);
            wire.server.read_exact(&mut vec![0; GET.len()]).unwrap();
            wire.sent = GET.len();
            wire.answer(OK);
            wire.ask(GET, &[], &[0]);
            wire.answer(OK);
        }
        exactly(&world, &pod, 20);
        assert_eq!(
            world.statistic("listener_payloads_adopted"),
            10,
            "{}",
            world.troubles()
        );
    }
}

#[test]
fn a_duplicate_of_the_syn_changes_nothing() {
    let (world, pod, listener) = one_pod(80);
    silence_resets(&world);
    let mut wire = Wire::new(&listener, 2004);
    for n in 0..10 {
        wire.ask(GET, &[], &[0]);
        if n % 2 == 0 {
            wire.client.duplicate_syn();
        }
        wire.answer(OK);
        wire.client.duplicate_syn();
    }
    exactly(&world, &pod, 10);
    let c = world.counters(&pod);
    assert_eq!(c.connections_opened, 1);
    assert_eq!(
        world.statistic("request_desyncs"),
        0,
        "{}",
        world.troubles()
    );
}

#[test]
fn fast_open_carries_the_first_request_in_the_syn() {
    let (world, pod, listener) = one_pod(80);
    for end in ["s", "c"] {
        // Both roles, and without a cookie: the first connection already has data in its SYN.
        sh(&format!(
            "nsenter --net=/run/netns/{}-{end} sysctl -qw net.ipv4.tcp_fastopen=0x207",
            world.name
        ));
    }
    set(listener.as_raw_fd(), libc::TCP_FASTOPEN, 64);
    for _ in 0..20 {
        let client = fast_open(GET.as_bytes());
        let server = listener.accept().unwrap().0;
        let mut pair = Pair { client, server };
        pair.server.read_exact(&mut vec![0; GET.len()]).unwrap();
        pair.answer(OK);
        pair.turn(GET, OK);
    }
    exactly(&world, &pod, 40);
    world.enter_server();
    let netstat = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    assert_eq!(of_netstat(&netstat, "TCPFastOpenPassive"), 20);
}

/// Connects with the first bytes in the SYN.
fn fast_open(bytes: &[u8]) -> TcpStream {
    use std::os::fd::FromRawFd;
    // SAFETY: system calls on a descriptor of our own, with an address of ours.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        let mut to: libc::sockaddr_in = std::mem::zeroed();
        to.sin_family = libc::AF_INET as u16;
        to.sin_port = 80u16.to_be();
        to.sin_addr.s_addr = u32::from(SERVER.parse::<std::net::Ipv4Addr>().unwrap()).to_be();
        let sent = libc::sendto(
            socket,
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_FASTOPEN,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        );
        assert_eq!(
            sent,
            bytes.len() as isize,
            "{}",
            std::io::Error::last_os_error()
        );
        TcpStream::from_raw_fd(socket)
    }
}

fn of_netstat(text: &str, name: &str) -> u64 {
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|l| l.starts_with("TcpExt:"))
        .map(|l| l.split(' ').collect())
        .collect();
    let column = rows[0].iter().position(|n| *n == name).unwrap();
    rows[1][column].parse().unwrap()
}

fn set(socket: RawFd, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the option's value is an int.
    let done = unsafe {
        libc::setsockopt(
            socket,
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            4,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Requests with headers longer than a segment, bodies both ways, and small ones between.
fn mixed_turns(pair: &mut Pair) -> u64 {
    let cookie = "c=".repeat(900);
    let body = GET.repeat(2000);
    let n = body.len();
    pair.turn(
        format!("GET /long HTTP/1.1\r\nCookie: {cookie}\r\nHost: a\r\n\r\n"),
        OK,
    );
    pair.ask(format!(
        "POST /up HTTP/1.1\r\nCookie: {cookie}\r\nContent-Length: {n}\r\n\r\n{body}"
    ));
    pair.answer(format!(
        "HTTP/1.1 200 OK\r\nSet-Cookie: {cookie}\r\nContent-Length: {n}\r\n\r\n{body}"
    ));
    let chunked = format!("{n:x}\r\n{body}\r\n0\r\n\r\n");
    pair.ask(format!(
        "POST /up HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
    ));
    pair.answer(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
    ));
    pair.turn(GET, OK);
    // Pipelined over many segments.
    pair.turn(GET.repeat(25), OK.repeat(25));
    29
}

#[test]
fn the_smallest_segments_that_tcp_has() {
    let (world, pod, listener) = one_pod(80);
    // The listener's limit is the client's to keep, and the client's is the server's.
    set(listener.as_raw_fd(), libc::TCP_MAXSEG, 88);
    sh(&format!(
        "nsenter --net=/run/netns/{0}-c ip route replace {SERVER}/32 dev c0 advmss 88",
        world.name
    ));
    let mut pair = Pair::new(&listener);
    let mut expected = 0;
    for _ in 0..2 {
        expected += mixed_turns(&mut pair);
    }
    exactly(&world, &pod, expected);
    let c = world.counters(&pod);
    // Two uploads of 2000 requests in each round, and as many downloads.
    let least = 2 * 2 * (2000 * GET.len() as u64) / 88;
    assert!(
        c.receive_packets > least && c.transmit_packets > least,
        "{c:?}"
    );
}

#[test]
fn the_largest_packets_that_offloads_make() {
    for (name, size) in [("64 KiB", 65_536), ("BIG TCP", 180_000)] {
        let mut world = World::new();
        for (end, device) in [("s", "s0"), ("c", "c0")] {
            sh(&format!(
                "ip -n {}-{end} link set {device} gso_max_size {size} gro_max_size {size}",
                world.name
            ));
        }
        let pod = world.pod("pod");
        let listeners = [SERVER, SERVER6].map(|address| pod.listen(address, 80));
        world.enter_client();
        let mut expected = 0;
        for listener in &listeners {
            let mut pair = Pair::new(listener);
            for _ in 0..10 {
                expected += mixed_turns(&mut pair);
            }
        }
        exactly(&world, &pod, expected);
        eprintln!("{name}: {}", world.troubles());
    }
}
