//! Connections at their edges: older than the programs, cut off, accepted late, many at once, losing segments.
//! Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::{Options, Probes};
use kernel::http::{GET, OK, Pair, one_pod, response};
use kernel::{EXCLUDED, World, eventually, sh};

/// Replaces the world's programs by new ones, as an agent's restart does.
fn restart(world: &mut World, pod: &mut kernel::Pod) {
    let options = Options {
        cgroup: world.root.clone(),
        excluded_ports: vec![EXCLUDED],
        max_pods: 16,
        tls: false,
    };
    world.probes = Probes::load(&options).unwrap();
    pod.slot = world.probes.allocate().unwrap();
    world.probes.assign(pod.id, pod.slot).unwrap();
}

#[test]
fn connections_older_than_the_programs_are_counted_at_once() {
    let (mut world, mut pod, listener) = one_pod(80);
    let mut idle = Pair::new(&listener);
    let mut answering = Pair::new(&listener);
    let mut uploading = Pair::new(&listener);
    idle.turn(GET, OK);
    answering.ask(GET);
    uploading.ask(format!(
        "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{GET}",
        GET.len() * 3
    ));
    restart(&mut world, &mut pod);
    // Begun before us: its answer is nobody's we know.
    answering.answer(OK);
    for _ in 0..10 {
        idle.turn(GET, OK);
        answering.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (20, 20, 0),
        "{}",
        world.troubles()
    );
    // In the middle of a body that looks like requests: a guess that no answer confirms counts nothing.
    uploading.ask(GET);
    assert_eq!(world.counters(&pod).requests, 20);
    uploading.ask(GET);
    uploading.answer(OK);
    for _ in 0..10 {
        uploading.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert!(
        (30..=31).contains(&c.requests),
        "{} {}",
        c.requests,
        world.troubles()
    );
    assert_eq!(c.requests_in_flight, 0, "{}", world.troubles());
}

#[test]
fn tunnels_older_than_the_programs_stay_bytes() {
    let (mut world, mut pod, listener) = one_pod(80);
    let mut socket = Pair::new(&listener);
    socket.turn(
        "GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    let mut database = Pair::new(&listener);
    database.turn(b"\0\0\0\x08\x04\xd2\x16\x2f", "N");
    restart(&mut world, &mut pod);
    for n in 0..50u8 {
        // Masked frames, their answers, and a query that carries what looks like a request.
        let frame = [&[0x82, 0x90, n, 1, 2, 3][..], &GET.as_bytes()[..16]].concat();
        socket.turn(&frame, &frame[2..]);
        database.turn(
            format!("Q\0\0\0\x50SELECT '{GET}'\0"),
            "C\0\0\0\x0dSELECT 1\0",
        );
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (0, 0, 0),
        "{}",
        world.troubles()
    );
    assert!(c.receive_bytes as usize > 50 * GET.len());
}

#[test]
fn requests_cut_off_are_aborted_and_leave_nothing_in_flight() {
    let (world, pod, listener) = one_pod(80);
    let live = || world.statistic("live_socket_storages");
    for reset in [false, true] {
        let mut pair = Pair::new(&listener);
        pair.turn(GET, OK);
        pair.ask(GET);
        assert_eq!(world.counters(&pod).requests_in_flight, 1);
        if reset {
            // Unread bytes make closing a reset.
            pair.client.write_all(b"x").unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(pair.server);
        drop(pair.client);
    }
    assert!(
        eventually(Duration::from_secs(5), || world
            .counters(&pod)
            .requests_in_flight
            == 0),
        "{}",
        world.troubles()
    );
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.requests_aborted), (4, 2, 2));
    assert_eq!(c.connections_opened, 2);
    assert!(eventually(Duration::from_secs(5), || world
        .counters(&pod)
        .connections_closed
        == 2
        && live() == 0));
}

#[test]
fn a_first_payload_that_meets_the_listener_is_counted() {
    let (world, pod, listener) = one_pod(80);
    let seconds: libc::c_int = 5;
    // SAFETY: the option's value is an int.
    let set = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            4,
        )
    };
    assert_eq!(set, 0);
    for n in 1..=20 {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        client.write_all(GET.as_bytes()).unwrap();
        let server = listener.accept().unwrap().0;
        let mut pair = Pair { client, server };
        let mut first = vec![0; GET.len()];
        pair.server.read_exact(&mut first).unwrap();
        assert!(
            eventually(Duration::from_secs(1), || world
                .counters(&pod)
                .requests_in_flight
                == 1),
            "{n} {}",
            world.troubles()
        );
        std::thread::sleep(Duration::from_millis(10));
        pair.answer(OK);
        pair.turn(GET, response(404));
    }
    let reading = world.read(&pod);
    let c = reading.counters;
    assert_eq!(
        (
            c.requests,
            c.responses_2xx,
            c.responses_4xx,
            c.requests_in_flight
        ),
        (40, 20, 20, 0),
        "{}",
        world.troubles()
    );
    assert_eq!(
        world.statistic("listener_payloads_adopted"),
        20,
        "{}",
        world.troubles()
    );
    // The first request's time began at the listener.
    let slow: u64 = reading.request_latency[ebpf_scaler_common::histogram::index(10_000)..]
        .iter()
        .sum();
    assert_eq!(slow, 20);
}

#[test]
fn connections_opened_and_closed_by_both_sides() {
    let (mut world, pod, listener) = one_pod(80);
    for _ in 0..10 {
        Pair::new(&listener).turn(GET, OK);
    }
    let client = world.pod("client");
    world.enter_client();
    let outside = TcpListener::bind((kernel::CLIENT, 8000)).unwrap();
    for _ in 0..5 {
        let mut pair = Pair {
            client: client.connect(outside.local_addr().unwrap()),
            server: outside.accept().unwrap().0,
        };
        pair.turn(GET, OK);
    }
    assert!(eventually(Duration::from_secs(5), || world
        .statistic("live_socket_storages")
        == 0));
    let (s, c) = (world.counters(&pod), world.counters(&client));
    assert_eq!((s.connections_opened, s.connections_closed), (10, 10));
    assert_eq!(
        (c.connections_opened, c.connections_closed, c.requests),
        (5, 5, 0)
    );
}

#[test]
fn random_conversations_on_many_connections() {
    let (world, pod, listener) = one_pod(80);
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut pairs: Vec<Pair> = (0..20).map(|_| Pair::new(&listener)).collect();
    let (mut requests, mut errors) = (0, 0);
    let evil = format!("{GET}{OK}").repeat(20);
    for _ in 0..1500 {
        let pair = &mut pairs[next(20) as usize];
        let (mut asked, mut answered) = (String::new(), String::new());
        for _ in 0..=next(4) * next(2) {
            requests += 1;
            let size = next(2000) as usize;
            let body = &evil[..size];
            asked += &match next(3) {
                0 => GET.to_string(),
                1 => format!("POST /p HTTP/1.1\r\nContent-Length: {size}\r\n\r\n{body}"),
                _ if size == 0 => {
                    "PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_string()
                }
                _ => format!(
                    "PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n"
                ),
            };
            let failed = next(10) == 0;
            errors += u64::from(failed);
            answered += &if failed {
                response(500)
            } else {
                OK.to_string()
            };
        }
        for (text, inward) in [(asked, true), (answered, false)] {
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let cut = (1 + next(3000) as usize).min(rest.len());
                if inward {
                    pair.ask(&rest[..cut])
                } else {
                    pair.answer(&rest[..cut])
                };
                rest = &rest[cut..];
            }
        }
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_5xx, c.requests_in_flight),
        (requests, errors, 0),
        "{}",
        world.troubles()
    );
    assert_eq!(c.responses_2xx, requests - errors);
}

#[test]
fn lost_segments_and_what_overtakes_them() {
    let (world, pod, listener) = one_pod(80);
    // Dropped before they reach the socket, thus before us: what follows comes before its turn, then again.
    for end in ["s", "c"] {
        sh(&format!(
            "nsenter --net=/run/netns/{}-{end} iptables -A INPUT -p tcp -m length --length 60:65535 \
             -m statistic --mode random --probability 0.02 -j DROP",
            world.name
        ));
    }
    let mut requests = 0;
    for _ in 0..4 {
        let mut pair = Pair::new(&listener);
        for n in 0..60 {
            let body = GET.repeat(300 * (n % 4));
            pair.ask(format!(
                "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            pair.answer(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            requests += 1;
        }
    }
    let c = world.counters(&pod);
    eprintln!(
        "{} of {requests}, {} retransmitted, {}",
        c.requests,
        c.tcp_retransmits,
        world.troubles()
    );
    assert!(c.tcp_retransmits > 0);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (requests, requests, 0),
        "{}",
        world.troubles()
    );
}
