//! HTTP/1 requests counted by the real programs in the real kernel, against a client and server whose every byte
//! is known. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::io::Write;

use kernel::http::{GET, OK, Pair, one_pod, response};

#[test]
fn keep_alive_requests_are_counted_exactly() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..1000 {
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (1000, 1000, 0),
        "{}",
        world.troubles()
    );
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
    let classes = (
        c.responses_2xx,
        c.responses_3xx,
        c.responses_4xx,
        c.responses_5xx,
    );
    assert_eq!(classes, (3, 2, 3, 2), "{}", world.troubles());
    assert_eq!(c.requests, 10);
}

#[test]
fn pipelined_requests_are_counted_and_paired_in_order() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..20 {
        pair.turn(
            GET.repeat(16),
            format!("{}{}", OK.repeat(10), response(404).repeat(6)),
        );
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
    assert_eq!(
        (c.responses_2xx, c.responses_4xx, c.responses_5xx),
        (203, 120, 1),
        "{}",
        world.troubles()
    );
    assert_eq!(c.requests_in_flight, 0);
}

#[test]
fn more_requests_outstanding_than_are_timed_are_still_counted() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.turn(GET.repeat(100), OK.repeat(100));
    pair.turn(GET, OK);
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (101, 101, 0),
        "{}",
        world.troubles()
    );
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
        pair.ask(format!(
            "POST /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
            evil.len()
        ));
        for part in evil.as_bytes().chunks(GET.len()) {
            pair.client.write_all(part).unwrap();
        }
        std::io::copy(
            &mut std::io::Read::take(&mut pair.server, evil.len() as u64),
            &mut std::io::sink(),
        )
        .unwrap();
        pair.answer(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answers}",
            answers.len()
        ));
        // Chunked, in both directions.
        let chunk = format!("{:x}\r\n{evil}\r\n", evil.len());
        pair.ask(format!(
            "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
        ));
        let chunk = format!("{:X}\r\n{answers}\r\n", answers.len());
        pair.answer(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\nTrailer: x\r\n\r\n"
        ));
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (10, 10, 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn large_uploads_and_downloads_between_requests() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let body = "GET / HTTP/1.1\r\n\r\n".repeat(50_000);
    for _ in 0..10 {
        pair.ask(format!(
            "PUT /big HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        pair.answer(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (20, 20, 0),
        "{}",
        world.troubles()
    );
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
    assert_eq!(
        (c.requests, c.responses_2xx),
        (6, 6),
        "{}",
        world.troubles()
    );
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
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (expected, expected, 0),
        "{}",
        world.troubles()
    );
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
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (10, 10, 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn head_and_continue() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..10 {
        pair.turn(
            "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n",
        );
        pair.ask("PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 18\r\n\r\n");
        pair.answer("HTTP/1.1 100 Continue\r\n\r\n");
        pair.ask("GET / HTTP/1.1\r\n\r\n");
        pair.answer("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
        // Interim and final answer in one segment.
        pair.turn(
            GET,
            format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{OK}"),
        );
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.responses_1xx),
        (30, 30, 20),
        "{}",
        world.troubles()
    );
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
    assert_eq!(
        (
            c.requests,
            c.responses_1xx,
            c.responses_2xx,
            c.requests_in_flight
        ),
        (2, 1, 1, 0)
    );
    let mut pair = Pair::new(&listener);
    pair.turn(
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        "HTTP/1.1 200 Established\r\n\r\n",
    );
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
    assert_eq!(
        (
            c.requests,
            c.responses_4xx,
            c.responses_2xx,
            c.requests_in_flight
        ),
        (2, 1, 1, 0),
        "{}",
        world.troubles()
    );
}
