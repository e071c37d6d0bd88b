//! Forms of HTTP/1 that RFC 9112 allows and counters get wrong: trailers, tunnels, refused upgrades, other request
//! targets, odd header spellings. Every byte is known. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use kernel::http::{GET, OK, Pair, one_pod, response};
use kernel::{Pod, World};

/// Requests, answers by class from 1xx on, and in flight.
fn counts(world: &World, pod: &Pod) -> (u64, [u64; 5], u64) {
    let c = world.counters(pod);
    (
        c.requests,
        [
            c.responses_1xx,
            c.responses_2xx,
            c.responses_3xx,
            c.responses_4xx,
            c.responses_5xx,
        ],
        c.requests_in_flight,
    )
}

#[test]
fn trailers_that_look_like_messages_are_not() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    // Trailers may not frame anything (RFC 9110, 6.5.1), but may be sent.
    let trailers = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nGET / HTTP/1.1\r\nUser-Agent: kube-probe/1\r\n\r\n";
    let upload = format!(
        "POST /t HTTP/1.1\r\nTE: trailers\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\n\r\n4;q=\"0\"\r\nGET \r\n0\r\n{trailers}"
    );
    let download = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n000A\r\nHTTP/1.1 5\r\n0\r\n{trailers}"
    );
    for _ in 0..3 {
        pair.turn(&upload, &download);
        // Pipelined behind a trailer, so that both directions are framed to the end.
        pair.turn(
            format!("{upload}{GET}{upload}"),
            format!("{download}{OK}{download}"),
        );
        for cut in [1, 5, 19] {
            for part in upload.as_bytes().chunks(cut) {
                pair.ask(part);
            }
            for part in download.as_bytes().chunks(cut) {
                pair.answer(part);
            }
        }
    }
    assert_eq!(
        counts(&world, &pod),
        (21, [0, 21, 0, 0, 0], 0),
        "{}",
        world.troubles()
    );
    assert_eq!(world.counters(&pod).requests_probe, 0);
}

#[test]
fn answers_without_a_body_whatever_their_length_says() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let head = "HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n";
    // Pipelined, so that each answer's end is found by framing alone.
    let asked = format!("{GET}{GET}{head}{head}{GET}");
    let answered = format!(
        "HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n\
         HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n\
         HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
         HTTP/1.1 503 Busy\r\nContent-Length: 77\r\n\r\n{OK}"
    );
    for cut in [answered.len(), 60, 11, 1] {
        pair.ask(&asked);
        for part in answered.as_bytes().chunks(cut) {
            pair.answer(part);
        }
    }
    assert_eq!(
        counts(&world, &pod),
        (20, [0, 12, 4, 0, 4], 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn a_web_socket_is_one_request_whatever_goes_through_it() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.turn(GET, OK);
    let upgrade = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let switched =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    pair.ask(upgrade);
    // The first frame comes with the answer.
    pair.answer(format!("{switched}\u{1}\u{2}{OK}"));
    for _ in 0..20 {
        // Frames, and payloads that look like HTTP at the start of a segment.
        pair.turn(
            [&[0x82, 0x05][..], b"hello"].concat(),
            [&[0x82, 0x05][..], b"hello"].concat(),
        );
        pair.turn(GET, OK);
        pair.ask(GET.repeat(30));
        pair.answer(response(500).repeat(30));
    }
    assert_eq!(
        counts(&world, &pod),
        (2, [1, 1, 0, 0, 0], 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn a_refused_upgrade_leaves_http_as_it_was() {
    let (world, pod, listener) = one_pod(80);
    for refusal in [200, 400, 426] {
        let mut pair = Pair::new(&listener);
        pair.turn(
            "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            response(refusal),
        );
        for _ in 0..4 {
            pair.turn(GET, OK);
        }
    }
    assert_eq!(
        counts(&world, &pod),
        (15, [0, 13, 0, 2, 0], 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn a_tunnel_is_one_request_and_a_refused_one_is_no_tunnel() {
    let (world, pod, listener) = one_pod(80);
    let connect = "CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n";
    let mut tunnel = Pair::new(&listener);
    tunnel.turn(GET, OK);
    tunnel.turn(connect, "HTTP/1.1 200 Connection established\r\n\r\n");
    for _ in 0..10 {
        tunnel.turn(GET, OK);
    }
    assert_eq!(
        counts(&world, &pod),
        (2, [0, 2, 0, 0, 0], 0),
        "{}",
        world.troubles()
    );
    // Refused with a body; then HTTP goes on.
    let mut refused = Pair::new(&listener);
    refused.turn(connect, response(405));
    for _ in 0..10 {
        refused.turn(GET, OK);
    }
    assert_eq!(
        counts(&world, &pod),
        (13, [0, 12, 0, 1, 0], 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn every_form_of_target_and_method() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let long = "a/".repeat(3000);
    let lines = [
        // As a client of a proxy asks.
        "GET http://example.com:8080/path?q=1 HTTP/1.1",
        "POST http://[fd00::1]:80/ HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "OPTIONS http://example.com HTTP/1.1",
        "DELETE /a%20b HTTP/1.1",
        "PATCH /x HTTP/1.1",
        "TRACE / HTTP/1.1",
        "PROPFIND /dav/ HTTP/1.1",
        "VERSION-CONTROL /svn HTTP/1.1",
        "M-SEARCH * HTTP/1.1",
        "GET /HTTP/1.1 HTTP/1.1",
        "GET / HTTP/1.0",
        &format!("GET /{long} HTTP/1.1"),
    ];
    for line in lines {
        let request = format!("{line}\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        pair.turn(&request, OK);
        // A blank line before a request is tolerated (RFC 9112, 2.2).
        pair.turn(format!("\r\n{request}"), OK);
        pair.ask(&request[..7]);
        pair.ask(&request[7..]);
        pair.answer(OK);
    }
    let n = 3 * lines.len() as u64;
    assert_eq!(
        counts(&world, &pod),
        (n, [0, n, 0, 0, 0], 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn header_names_and_line_ends_in_any_spelling() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    let body = GET;
    let n = body.len();
    let requests = [
        format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {n}\r\n\r\n{body}"),
        format!("POST / HTTP/1.1\r\nCONTENT-LENGTH:{n}\r\nHOST:a\r\n\r\n{body}"),
        format!("POST / HTTP/1.1\r\nHost: a\r\ncOnTeNt-LeNgTh: \t {n} \t\r\n\r\n{body}"),
        format!("POST / HTTP/1.1\nHost: a\nContent-Length: {n}\n\n{body}"),
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:chunked\r\n\r\n{n:x}\r\n{body}\r\n0\r\n\r\n"
        ),
        format!(
            "POST / HTTP/1.1\r\nTRANSFER-ENCODING: gzip, CHUNKED\r\n\r\n{n:X}\r\n{body}\r\n0\r\n\r\n"
        ),
        // The coding wins over the length (RFC 9112, 6.3).
        format!(
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n{n:x}\r\n{body}\r\n0\r\n\r\n"
        ),
        // Names that only begin like those that matter.
        "GET / HTTP/1.1\r\ncontent-length-x: 9\r\nx-content-length: 9\r\ntransfer-encodings: chunked\r\n\r\n"
            .to_owned(),
    ];
    let answers = [
        format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n{body}"),
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n{n:x}\r\n{body}\r\n0\r\n\r\n"
        ),
    ];
    let mut expected = 0;
    for request in &requests {
        for answer in &answers {
            pair.turn(request, answer);
            pair.turn(format!("{request}{request}"), format!("{answer}{answer}"));
            for part in request.as_bytes().chunks(13) {
                pair.ask(part);
            }
            for part in answer.as_bytes().chunks(7) {
                pair.answer(part);
            }
            expected += 4;
        }
    }
    assert_eq!(
        counts(&world, &pod),
        (expected, [0, expected, 0, 0, 0], 0),
        "{}",
        world.troubles()
    );
    // Probes are told by their agent in any spelling of the header's name.
    for name in ["user-agent", "USER-AGENT"] {
        pair.turn(
            format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{name}: kube-probe/1.30\r\n\r\n"),
            OK,
        );
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.requests_probe), (expected, 2));
}

#[test]
fn an_answer_that_ends_with_its_connection() {
    let (world, pod, listener) = one_pod(80);
    for _ in 0..5 {
        let mut pair = Pair::new(&listener);
        pair.turn(GET, OK);
        // HTTP/1.0's way, with answers in the body.
        pair.turn(
            "GET /stream HTTP/1.1\r\nConnection: close\r\n\r\n",
            format!("HTTP/1.1 200 OK\r\n\r\n{}", response(500).repeat(20)),
        );
        pair.answer(response(503));
    }
    assert_eq!(
        counts(&world, &pod),
        (10, [0, 10, 0, 0, 0], 0),
        "{}",
        world.troubles()
    );
}
