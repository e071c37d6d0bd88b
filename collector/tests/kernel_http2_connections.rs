//! HTTP/2 connections at their edges: older than the programs, cut off, accepted late, more than are followed, losing
//! segments. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::{Options, Probes};
use kernel::http::{Pair, one_pod};
use kernel::http2::*;
use kernel::{EXCLUDED, World, eventually, sh};

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
        tls: false,
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
    let asked = [1, 3, 5].map(|id| turn(id).0).concat();
    let answered = [1, 3, 5].map(|id| turn(id).1).concat();
    let first = [preface, asked].concat();
    client.write_all(&first).unwrap();
    let server = listener.accept().unwrap().0;
    let mut pair = Pair { client, server };
    pair.server.read_exact(&mut vec![0; first.len()]).unwrap();
    pair.answer([settings, answered].concat());
    for n in 3..12 {
        let (asked, answered) = turn(1 + 2 * n);
        pair.turn(asked, answered);
    }
    // What was in the first payload is told by the streams' numbers, but for the first, which may have been left out.
    let c = world.counters(&pod);
    assert_eq!(sums(&c), (11, 9, 0, 0), "{}", world.troubles());
    assert_eq!(world.statistic("http2_requests_inferred"), 2);
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
    let (asked, answered) = turn(1);
    pair.turn(asked, answered);
    lossy(&world, "0.02");
    let mut requests = 1u32;
    let body = vec![0; 9000];
    for n in 0..150 {
        // Several small segments on the way at once, then an upload.
        let ids: Vec<u32> = (1..9).map(|i| 1 + 2 * (n * 8 + i)).collect();
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
    assert!(
        inferred + world.statistic("segments_out_of_order") > 0,
        "{}",
        world.troubles()
    );
    assert_eq!(sums(&c), (requests, requests, 0, 0), "{}", world.troubles());
    let timed: u64 = world.read(&pod).request_latency.iter().sum();
    assert_eq!(timed + inferred, requests);
}
