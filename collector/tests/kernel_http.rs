//! HTTP/1 requests counted by the real programs in the real kernel, against a client and server whose every byte
//! is known. Needs root and the BPF object.

mod kernel;

use std::io::Write;
use std::time::Duration;

use kernel::http::{GET, OK, Pair, one_pod, response};
use kernel::{EXCLUDED, SERVER, SERVER6, World};

#[test]
fn keep_alive_requests_are_counted_exactly() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..1000 {
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.requests_in_flight), (1000, 1000, 0), "{}", world.troubles());
    assert_eq!(world.read(&pod).request_latency.iter().sum::<u64>(), 1000);
}

#[test]
fn each_status_class_is_counted() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for status in [200, 201, 204, 301, 304, 400, 404, 499, 500, 503] {
        let body = if status == 204 || status == 304 {
            format!("HTTP/1.1 {status} X\r\nContent-Length: 7\r\n\r\n")
        } else {
            response(status)
        };
        pair.turn(GET, body);
    }
    let c = world.counters(&pod);
    let classes = (c.responses_2xx, c.responses_3xx, c.responses_4xx, c.responses_5xx);
    assert_eq!(classes, (3, 2, 3, 2), "{}", world.troubles());
    assert_eq!(c.requests, 10);
}

#[test]
fn pipelined_requests_are_counted_and_paired_in_order() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..20 {
        pair.turn(GET.repeat(16), format!("{}{}", OK.repeat(10), response(404).repeat(6)));
    }
    // Answers that begin in the middle of segments, heads without bodies among them.
    let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
    pair.ask(format!("{GET}{head}{head}{GET}"));
    let no_body = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
    let all = format!("{OK}{no_body}{no_body}{}", response(500));
    for part in all.as_bytes().chunks(37) {
        pair.answer(part);
    }
    let c = world.counters(&pod);
    assert_eq!(c.requests, 324, "{}", world.troubles());
    assert_eq!((c.responses_2xx, c.responses_4xx, c.responses_5xx), (203, 120, 1), "{}", world.troubles());
    assert_eq!(c.requests_in_flight, 0);
}

#[test]
fn more_requests_outstanding_than_are_timed_are_still_counted() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.turn(GET.repeat(100), OK.repeat(100));
    pair.turn(GET, OK);
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.requests_in_flight), (101, 101, 0), "{}", world.troubles());
    assert_eq!(world.statistic("pipeline_full"), 68);
    assert_eq!(world.read(&pod).request_latency.iter().sum::<u64>(), 33);
}

#[test]
fn bodies_are_skipped_even_if_they_look_like_requests() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let evil = GET.repeat(300);
    let answers = OK.repeat(300);
    for _ in 0..5 {
        // One segment after the other, so that many begin with a request line.
        pair.ask(format!("POST /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n", evil.len()));
        for part in evil.as_bytes().chunks(GET.len()) {
            pair.client.write_all(part).unwrap();
        }
        std::io::copy(&mut std::io::Read::take(&mut pair.server, evil.len() as u64), &mut std::io::sink()).unwrap();
        pair.answer(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answers}", answers.len()));
        // Chunked, in both directions.
        let chunk = format!("{:x}\r\n{evil}\r\n", evil.len());
        pair.ask(format!("POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"));
        let chunk = format!("{:X}\r\n{answers}\r\n", answers.len());
        pair.answer(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\nTrailer: x\r\n\r\n"));
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.requests_in_flight), (10, 10, 0), "{}", world.troubles());
}

#[test]
fn large_uploads_and_downloads_between_requests() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let body = "GET / HTTP/1.1\r\n\r\n".repeat(50_000);
    for _ in 0..10 {
        pair.ask(format!("PUT /big HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        pair.answer(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.requests_in_flight), (20, 20, 0), "{}", world.troubles());
}

#[test]
fn chunks_split_at_every_place() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let request = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n10;x=y\r\nGET / HTTP/1.1\r\n\r\n0\r\nT: r\r\n\r\n";
    for size in [1, 2, 3, 7, 16, 31] {
        for part in request.as_bytes().chunks(size) {
            pair.ask(part);
        }
        pair.answer(OK);
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx), (6, 6), "{}", world.troubles());
}

#[test]
fn headers_split_at_every_byte_both_ways() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for at in 1..GET.len() {
        pair.ask(&GET[..at]);
        pair.ask(&GET[at..]);
        let cut = at % OK.len().min(40) + 1;
        pair.answer(&OK[..cut]);
        pair.answer(&OK[cut..]);
    }
    let expected = GET.len() as u64 - 1;
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.requests_in_flight), (expected, expected, 0), "{}", world.troubles());
}

#[test]
fn one_byte_segments() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..10 {
        for byte in GET.as_bytes() {
            pair.ask([*byte]);
        }
        for byte in OK.as_bytes() {
            pair.answer([*byte]);
        }
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.requests_in_flight), (10, 10, 0), "{}", world.troubles());
}

#[test]
fn head_and_continue() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..10 {
        pair.turn("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n");
        pair.ask("PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 18\r\n\r\n");
        pair.answer("HTTP/1.1 100 Continue\r\n\r\n");
        pair.ask("GET / HTTP/1.1\r\n\r\n");
        pair.answer("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
        // Interim and final answer in one segment.
        pair.turn(GET, format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{OK}"));
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.responses_1xx), (30, 30, 20), "{}", world.troubles());
    assert_eq!(c.requests_in_flight, 0);
}

#[test]
fn after_an_upgrade_bytes_are_not_requests() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.turn(GET, OK);
    pair.turn(
        "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    );
    for _ in 0..10 {
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_1xx, c.responses_2xx, c.requests_in_flight), (2, 1, 1, 0));
    let mut pair = Pair::new(&listener);
    pair.turn("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "HTTP/1.1 200 Established\r\n\r\n");
    pair.turn(GET, OK);
    assert_eq!(world.counters(&pod).requests, 3, "{}", world.troubles());
}

#[test]
fn an_answer_before_the_request_is_complete() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.ask("POST /x HTTP/1.1\r\nX-Too-Long: ");
    pair.answer(response(431));
    pair.ask("y\r\n\r\n");
    pair.turn(GET, OK);
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_4xx, c.responses_2xx, c.requests_in_flight), (2, 1, 1, 0), "{}", world.troubles());
}

#[test]
fn probes_and_excluded_ports_are_counted_apart() {
    let (world, pod, listener) = one_pod(80);
    let probe = "GET /healthz HTTP/1.1\r\nHost: a:80\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n";
    for _ in 0..20 {
        Pair::new(&listener).turn(probe, OK);
    }
    // A probe whose header name and value are split.
    for at in 1..probe.len() {
        let mut pair = Pair::new(&listener);
        pair.ask(&probe[..at]);
        pair.ask(&probe[at..]);
        pair.answer(OK);
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.requests_probe), (0, 20 + probe.len() as u64 - 1), "{}", world.troubles());
    assert_eq!((c.responses_2xx, c.requests_in_flight), (0, 0));

    let listener = pod.listen(SERVER, EXCLUDED);
    for _ in 0..3 {
        Pair::new(&listener).turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.requests_excluded_port, c.responses_2xx), (0, 3, 0));
    assert!(world.read(&pod).request_latency.iter().all(|n| *n == 0));
}

#[test]
fn loopback_inside_the_pod_is_counted_apart() {
    let (world, pod, _outside) = one_pod(80);
    // nginx in front of an app: the second hop is over loopback, or over the pod's own address.
    for (n, address) in ["127.0.0.1", "::1", SERVER].into_iter().enumerate() {
        let app = pod.listen(address, 8080);
        let client = pod.connect(app.local_addr().unwrap());
        let server = app.accept().unwrap().0;
        let before = world.counters(&pod);
        let mut pair = Pair { client, server };
        for _ in 0..5 {
            pair.turn(GET, OK);
        }
        let c = world.counters(&pod);
        assert_eq!((c.requests, c.responses_2xx), (0, 0), "{address}");
        assert_eq!(c.requests_loopback, 5 * (n as u64 + 1), "{address} {}", world.troubles());
        assert_eq!((c.receive_bytes, c.transmit_bytes), (before.receive_bytes, before.transmit_bytes), "{address}");
    }
    assert_eq!(world.counters(&pod).receive_bytes, 0);
}

#[test]
fn a_clients_own_requests_are_not_its_load() {
    let (mut world, server, listener) = one_pod(80);
    let client = world.pod("client");
    let address = listener.local_addr().unwrap();
    let client_end = client.connect(address);
    let mut pair = Pair { client: client_end, server: listener.accept().unwrap().0 };
    for _ in 0..10 {
        pair.turn(GET, OK);
    }
    // Both pods live in one namespace here, so the address is the pod's own: the server's side is loopback.
    let (s, c) = (world.counters(&server), world.counters(&client));
    assert_eq!((s.requests_loopback, c.requests, c.requests_loopback), (10, 0, 0), "{}", world.troubles());
    assert_eq!(c.responses_2xx, 0);
}

#[test]
fn ipv6() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let listener = pod.listen(SERVER6, 80);
    world.enter_client();
    let mut pair = Pair::new(&listener);
    for _ in 0..100 {
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.responses_2xx, c.requests_in_flight), (100, 100, 0), "{}", world.troubles());
    // IPv4 on an IPv6 socket.
    let listener = pod.listen("::", 81);
    let client = std::net::TcpStream::connect((SERVER, 81)).unwrap();
    let mut pair = Pair { client, server: listener.accept().unwrap().0 };
    pair.turn(GET, OK);
    assert_eq!(world.counters(&pod).requests, 101, "{}", world.troubles());
}

#[test]
fn latency_is_first_byte_in_to_first_byte_out() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..20 {
        pair.ask(&GET[..20]);
        std::thread::sleep(Duration::from_millis(4));
        pair.ask(&GET[20..]);
        std::thread::sleep(Duration::from_millis(6));
        assert_eq!(world.counters(&pod).requests_in_flight, 1);
        pair.answer(&OK[..30]);
        std::thread::sleep(Duration::from_millis(5));
        pair.answer(&OK[30..]);
    }
    let reading = world.read(&pod);
    let mean = reading.counters.request_latency_sum_micros / 20;
    assert!((10_000..14_000).contains(&mean), "{mean} us");
    let (low, high) = (ebpf_scaler_common::histogram::index(10_000), ebpf_scaler_common::histogram::index(20_000));
    assert_eq!(reading.request_latency[low..=high].iter().sum::<u64>(), 20);
}
