//! HTTP/2 requests counted by the real programs in the real kernel, against a client and server whose every frame is
//! known. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::net::TcpListener;
use std::time::Duration;

use kernel::EXCLUDED;
use kernel::http::{Pair, one_pod};
use kernel::http2::*;

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
    // A part of it that another CPU had at the same time is told as such.
    let overflow = world.statistic("http2_frames_overflow");
    assert!(
        overflow == found || world.statistic("lost_races") > 0,
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
