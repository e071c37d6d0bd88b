//! HTTP/2 requests counted by the real programs in the real kernel, against a client and server whose every frame is
//! known. Needs root and the BPF object.
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

use ebpf_scaler_collector::agent::probes::{Counters, Options, Probes};
use kernel::http::{Pair, one_pod};
use kernel::http2::*;
use kernel::{EXCLUDED, World, eventually, sh};

/// A connection after its prefaces.
fn pair(listener: &TcpListener) -> Pair {
    let mut pair = Pair::new(listener);
    let (client, server) = begin();
    pair.turn(client, server);
    pair
}

/// Requests, 2xx, in flight, aborted.
fn sums(c: &Counters) -> (u64, u64, u64, u64) {
    (
        c.requests,
        c.responses_2xx,
        c.requests_in_flight,
        c.requests_aborted,
    )
}

#[test]
fn streams_are_counted_timed_and_ended() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = pair(&listener);
    for n in 0..200 {
        let (asked, answered) = turn(1 + 2 * n);
        pair.turn(asked, answered);
    }
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (200, 200, 0, 0), "{}", world.troubles());
    assert_eq!(world.read(&pod).request_latency.iter().sum::<u64>(), 200);
    // A hundred at once, in one segment each way, answered in another order.
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    for n in 200..300 {
        let (a, b) = turn(1 + 2 * n);
        asked.extend(a);
        answered.splice(0..0, b);
    }
    pair.ask(asked);
    assert_eq!(world.counters(&pod).requests_in_flight, 100);
    std::thread::sleep(Duration::from_millis(20));
    pair.answer(answered);
    let reading = world.read(&pod);
    assert_eq!(
        sums(&reading.counters),
        (300, 300, 0, 0),
        "{}",
        world.troubles()
    );
    let slow = &reading.request_latency[ebpf_scaler_common::histogram::index(20_000)..];
    assert_eq!(slow.iter().sum::<u64>(), 100);
    assert_eq!(world.statistic("http2_connections"), 1);
}

#[test]
fn every_kind_of_frame() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = pair(&listener);
    // Padding and priority; a header block in three frames; trailers of the client.
    let mut block = vec![11, 0, 0, 0, 0, 15];
    block.extend(REQUEST);
    block.extend([0; 11]);
    pair.ask(
        [
            headers(1, PADDED | PRIORITY, &block),
            frame(9, 0, 1, &[0x82; 300]),
            frame(9, END_HEADERS, 1, &[]),
            data(1, PADDED, &[&[5][..], &[0; 20]].concat()),
            headers(1, WHOLE, TRAILER),
            frame(2, 0, 9, &[0; 5]),
            frame(8, 0, 0, &[0, 0, 1, 0]),
            frame(6, 0, 0, &[0; 8]),
            frame(0xee, 0xff, 77, b"unknown"),
        ]
        .concat(),
    );
    // An interim answer, a push, then the answer with a status in Huffman code.
    pair.answer(
        [
            headers(1, END_HEADERS, b"\x08\x03103"),
            frame(5, END_HEADERS, 1, &[&[0, 0, 0, 2][..], REQUEST].concat()),
            headers(2, END_HEADERS, OK),
            data(2, END_STREAM, b"pushed"),
            headers(1, PADDED, &[3, 0x48, 0x82, 0x64, 0x02, 0, 0, 0]),
            frame(9, END_HEADERS, 1, &[0x88; 40]),
            data(1, END_STREAM, b""),
        ]
        .concat(),
    );
    let c = world.counters(&pod);
    assert_eq!(
        (
            c.requests,
            c.responses_1xx,
            c.responses_3xx,
            c.responses_2xx
        ),
        (1, 1, 1, 0),
        "{}",
        world.troubles()
    );
    // The other statuses, one of them in the dynamic table.
    for (n, status) in [0x88u8, 0x8b, 0x8c, 0x8d, 0x8e, 0xc1]
        .into_iter()
        .enumerate()
    {
        let id = 3 + 2 * n as u32;
        pair.turn(headers(id, WHOLE, REQUEST), headers(id, WHOLE, &[status]));
    }
    let c = world.counters(&pod);
    let classes = [
        c.responses_2xx,
        c.responses_3xx,
        c.responses_4xx,
        c.responses_5xx,
    ];
    assert_eq!(classes, [1, 2, 2, 1], "{}", world.troubles());
    assert_eq!((c.requests, c.requests_in_flight), (7, 0));
    assert_eq!(world.statistic("http2_status_unknown"), 1);
    // Reset by either side, before and after an answer.
    let asked: Vec<u8> = [21, 23, 25, 27]
        .iter()
        .flat_map(|id| headers(*id, WHOLE, REQUEST))
        .collect();
    pair.ask(asked);
    pair.answer([headers(21, END_HEADERS, OK), headers(23, END_HEADERS, OK)].concat());
    pair.ask([rst(21), rst(25)].concat());
    pair.answer([rst(23), rst(27)].concat());
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (11, 3, 0, 2), "{}", world.troubles());
    for lost in ["request_desyncs", "response_desyncs"] {
        assert_eq!(world.statistic(lost), 0, "{lost}");
    }
}

#[test]
fn frames_split_at_every_byte() {
    let (world, pod, listener) = one_pod(80);
    let (client, server) = begin();
    let (request, answer) = turn(1);
    let (asked, answered) = ([client, request].concat(), [server, answer].concat());
    // The preface too is cut; then single bytes.
    for at in (1..asked.len()).step_by(3) {
        let mut pair = Pair::new(&listener);
        pair.ask(&asked[..at]);
        pair.ask(&asked[at..]);
        let at = at.min(answered.len() - 1);
        pair.answer(&answered[..at]);
        pair.answer(&answered[at..]);
    }
    let connections = (1..asked.len()).step_by(3).count() as u64;
    let c = world.counters(&pod);
    assert_eq!(
        sums(&c),
        (connections, connections, 0, 0),
        "{}",
        world.troubles()
    );
    let mut pair = Pair::new(&listener);
    asked.iter().for_each(|byte| pair.ask([*byte]));
    answered.iter().for_each(|byte| pair.answer([*byte]));
    for id in [3, 5, 7, 9] {
        let (asked, answered) = turn(id);
        for at in 1..asked.len().max(answered.len()) {
            let id = 100 * id + 2 * at as u32 + 1;
            let (asked, answered) = turn(id);
            let (a, b) = (at.min(asked.len() - 1), at.min(answered.len() - 1));
            pair.ask(&asked[..a]);
            pair.ask(&asked[a..]);
            pair.answer(&answered[..b]);
            pair.answer(&answered[b..]);
        }
    }
    let (asked, answered) = turn(1);
    let all = connections + 1 + 4 * (asked.len().max(answered.len()) as u64 - 1);
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (all, all, 0, 0), "{}", world.troubles());
}

#[test]
fn large_uploads_and_downloads_full_of_frames() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = pair(&listener);
    let evil = headers(99, WHOLE, REQUEST).repeat(800);
    for n in 0..5 {
        let id = 1 + 4 * n;
        let mut asked = headers(id, END_HEADERS, REQUEST);
        for part in 0..40 {
            asked.extend(data(id, 0, &evil[..13_000 + part]));
            if part == 20 {
                asked.extend(headers(id + 2, WHOLE, REQUEST));
            }
        }
        asked.extend(data(id, END_STREAM, b""));
        pair.ask(asked);
        let mut answered = headers(id, END_HEADERS, OK);
        for part in 0..40 {
            answered.extend(data(id, 0, &evil[..12_000 + part]));
            if part == 20 {
                answered.extend(headers(id + 2, WHOLE, OK));
            }
        }
        answered.extend(headers(id, WHOLE, TRAILER));
        pair.answer(answered);
    }
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (10, 10, 0, 0), "{}", world.troubles());
}

#[test]
fn more_streams_and_frames_than_are_followed() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = pair(&listener);
    let asked: Vec<u8> = (0..300)
        .flat_map(|n| headers(1 + 2 * n, WHOLE, REQUEST))
        .collect();
    pair.ask(asked);
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.requests_in_flight),
        (300, 256),
        "{}",
        world.troubles()
    );
    assert_eq!(world.statistic("http2_streams_untimed"), 44);
    let answered: Vec<u8> = (0..300).flat_map(|n| turn(1 + 2 * n).1).collect();
    pair.answer(answered);
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (300, 300, 0, 0), "{}", world.troubles());
    // More frames than are walked, if they come as one packet.
    pair.ask(data(599, 0, b"").repeat(7000));
    pair.ask(headers(601, WHOLE, REQUEST));
    let found = world.statistic("request_resyncs");
    assert_eq!(
        world.statistic("http2_frames_overflow"),
        found,
        "{}",
        world.troubles()
    );
    assert_eq!(world.counters(&pod).requests, 301, "{}", world.troubles());
}

#[test]
fn an_upgrade_from_http1() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.ask("GET / HTTP/1.1\r\nHost: pod\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n");
    let (client, server) = begin();
    pair.answer(
        [
            &b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"[..],
            &server,
        ]
        .concat(),
    );
    pair.ask(client);
    // The request that asked for the upgrade is stream 1, and was counted.
    pair.answer([frame(4, 1, 0, &[]), turn(1).1].concat());
    for n in 1..10 {
        let (asked, answered) = turn(1 + 2 * n);
        pair.turn(asked, answered);
    }
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (10, 10, 0, 0), "{}", world.troubles());
    assert_eq!(c.responses_1xx, 1);
}

#[test]
fn loopback_and_excluded_ports_are_counted_apart() {
    let (world, pod, listener) = one_pod(EXCLUDED);
    let mut scraped = pair(&listener);
    let (asked, answered) = turn(1);
    scraped.turn(&asked, &answered);
    let inside = pod.listen("127.0.0.1", 81);
    let client = pod.connect(inside.local_addr().unwrap());
    let mut proxied = Pair {
        client,
        server: inside.accept().unwrap().0,
    };
    proxied.client.set_nodelay(true).unwrap();
    let (client, server) = begin();
    proxied.turn(client, server);
    for id in [1, 3, 5] {
        let (asked, answered) = turn(id);
        proxied.turn(asked, answered);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.requests_excluded_port, c.requests_loopback),
        (0, 1, 3),
        "{}",
        world.troubles()
    );
    // A client of others has no load.
    let outside = TcpListener::bind((kernel::CLIENT, 8000)).unwrap();
    let mut asking = Pair {
        client: pod.connect(outside.local_addr().unwrap()),
        server: outside.accept().unwrap().0,
    };
    let (client, server) = begin();
    asking.turn(client, server);
    for id in [1, 3, 5] {
        let (asked, answered) = turn(id);
        asking.turn(asked, answered);
    }
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (0, 0, 0, 0), "{}", world.troubles());
}

#[test]
fn connections_end_and_are_capped() {
    let (world, pod, listener) = one_pod(80);
    let storages = || world.statistic("live_http2_storages");
    let mut first = pair(&listener);
    first.ask([1, 3, 5].map(|id| headers(id, WHOLE, REQUEST)).concat());
    first.answer(headers(3, END_HEADERS, OK));
    assert_eq!(storages(), 1);
    world.probes.limit_http2(1);
    let mut second = pair(&listener);
    let (asked, answered) = turn(1);
    second.turn(asked, answered);
    assert_eq!(world.statistic("http2_storage_capped"), 1);
    assert_eq!(world.counters(&pod).requests, 3, "{}", world.troubles());
    drop(first);
    assert!(
        eventually(Duration::from_secs(5), || storages() == 0),
        "{}",
        world.troubles()
    );
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (3, 1, 0, 2), "{}", world.troubles());
    let mut third = pair(&listener);
    let (asked, answered) = turn(1);
    third.turn(asked, answered);
    assert_eq!(world.counters(&pod).requests, 4, "{}", world.troubles());
}

#[test]
fn connections_older_than_the_programs() {
    let (mut world, mut pod, listener) = one_pod(80);
    let mut idle = pair(&listener);
    let mut busy = pair(&listener);
    let mut indexed = pair(&listener);
    busy.ask(headers(1, END_HEADERS, REQUEST));
    let upload = data(1, 0, &[0; 16_000]);
    busy.ask(&upload[..10_000]);
    let options = Options {
        cgroup: world.root.clone(),
        excluded_ports: vec![EXCLUDED],
        max_pods: 16,
    };
    world.probes = Probes::load(&options).unwrap();
    pod.slot = world.probes.allocate().unwrap();
    world.probes.assign(pod.id, pod.slot).unwrap();
    for n in 10..20 {
        let (asked, answered) = turn(1 + 2 * n);
        idle.turn(asked, answered);
    }
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (10, 10, 0, 0), "{}", world.troubles());
    // In the middle of an upload; its answer belongs to no request that we know of.
    busy.ask(&upload[10_000..]);
    busy.ask(data(1, END_STREAM, b""));
    busy.answer(turn(1).1);
    for n in 10..20 {
        let (asked, answered) = turn(1 + 2 * n);
        busy.turn(asked, answered);
    }
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (20, 21, 0, 0), "{}", world.troubles());
    // Header blocks that only refer to the dynamic table are known by their answers.
    for n in 10..20 {
        indexed.turn(
            headers(1 + 2 * n, WHOLE, &[0xc1, 0xc0, 0xbf]),
            turn(1 + 2 * n).1,
        );
    }
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (30, 31, 0, 0), "{}", world.troubles());
}

#[test]
fn a_first_payload_that_meets_the_listener() {
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
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let (preface, settings) = begin();
    let (asked, answered) = turn(1);
    let first = [preface, asked].concat();
    client.write_all(&first).unwrap();
    let server = listener.accept().unwrap().0;
    let mut pair = Pair { client, server };
    pair.server.read_exact(&mut vec![0; first.len()]).unwrap();
    pair.answer([settings, answered].concat());
    for n in 1..10 {
        let (asked, answered) = turn(1 + 2 * n);
        pair.turn(asked, answered);
    }
    // What was in the first payload is not counted, which is told.
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (9, 9, 0, 0), "{}", world.troubles());
    assert_eq!(world.statistic("http2_listener_payloads"), 1);
}

/// Loses a share of the packets before they reach a socket, each way.
fn lossy(world: &World, probability: &str) {
    for end in ["s", "c"] {
        sh(&format!(
            "nsenter --net=/run/netns/{}-{end} iptables -A INPUT -p tcp -m length --length 60:65535 \
             -m statistic --mode random --probability {probability} -j DROP",
            world.name
        ));
    }
}

#[test]
fn lost_segments_and_what_overtakes_them() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = pair(&listener);
    lossy(&world, "0.02");
    let mut requests = 0u32;
    let body = vec![0; 9000];
    for n in 0..150 {
        // Several small segments on the way at once, then an upload.
        let ids: Vec<u32> = (0..8).map(|i| 1 + 2 * (n * 8 + i)).collect();
        let mut expected = Vec::new();
        for id in &ids {
            let upload = if n % 10 == 0 { &body[..] } else { b"x" };
            let asked = [
                headers(*id, END_HEADERS, REQUEST),
                data(*id, END_STREAM, upload),
            ]
            .concat();
            pair.client.write_all(&asked).unwrap();
            expected.extend(asked);
            requests += 1;
        }
        let mut received = vec![0; expected.len()];
        pair.server.read_exact(&mut received).unwrap();
        assert!(received == expected);
        let answered: Vec<u8> = ids.iter().flat_map(|id| turn(*id).1).collect();
        pair.answer(answered);
    }
    // What was lost last is told by a request that is not.
    sh(&format!(
        "nsenter --net=/run/netns/{}-s iptables -F INPUT",
        world.name
    ));
    for n in 0..3 {
        let (asked, answered) = turn(1 + 2 * (requests + n));
        pair.turn(asked, answered);
    }
    let requests = u64::from(requests) + 3;
    let c = world.counters(&pod);
    let inferred = world.statistic("http2_requests_inferred");
    eprintln!("{} of {requests}, {}", c.requests, world.troubles());
    assert!(c.tcp_retransmits > 0);
    assert!(
        inferred + world.statistic("segments_out_of_order") > 0,
        "{}",
        world.troubles()
    );
    assert_eq!(sums(&c), (requests, requests, 0, 0), "{}", world.troubles());
    let timed: u64 = world.read(&pod).request_latency.iter().sum();
    assert_eq!(timed + inferred, requests);
}
