//! Servers that answer a request before they have read its body, as nginx does to refuse it: the next request follows
//! in the same stretch of segments, of which any can be lost. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::io::Read;

use kernel::http::one_pod;
use kernel::raw::silence_resets;
use kernel::wire::Wire;

const REFUSED: &str = "HTTP/1.1 405 Not Allowed\r\nContent-Length: 0\r\n\r\n";
/// Bytes of a segment.
const SEGMENT: usize = 500;
const ROUNDS: usize = 20;

/// An upload whose body looks like requests, and how long its head is.
fn upload() -> (String, usize) {
    let body = "GET / HTTP/1.1\r\n\r\n".repeat(500);
    let head = format!(
        "POST /up HTTP/1.1\r\nHost: pod\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (format!("{head}{body}"), head.len())
}

/// Sends `stream[from..to]` in segments.
fn send(wire: &Wire, stream: &str, from: usize, to: usize) {
    for at in (from..to).step_by(SEGMENT) {
        wire.client.send(at, &stream[at..to.min(at + SEGMENT)]);
    }
}

fn read(wire: &mut Wire, bytes: usize) {
    wire.server.read_exact(&mut vec![0; bytes]).unwrap();
}

/// The segment with each request's head is lost, with so many bytes of the body before it, and comes after all the others
/// of its upload but the last ones.
fn refused(before: usize) {
    let (world, pod, listener) = one_pod(80);
    silence_resets(&world);
    let mut wire = Wire::new(&listener, 2200);
    let (upload, head) = upload();
    let stream = upload.repeat(ROUNDS);
    send(&wire, &stream, 0, SEGMENT);
    read(&mut wire, SEGMENT);
    wire.sent = SEGMENT;
    wire.answer(REFUSED);
    for round in 1..ROUNDS {
        let start = round * upload.len();
        let (lost, after) = (start - before, start + head + 100);
        let end = after + 6000;
        send(&wire, &stream, wire.sent, lost);
        send(&wire, &stream, after, end);
        // The socket waits for it, too.
        wire.client.send(lost, &stream[lost..after]);
        let new = end - wire.sent;
        read(&mut wire, new);
        wire.sent = end;
        wire.answer(REFUSED);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_4xx, c.requests_in_flight),
        (ROUNDS as u64, ROUNDS as u64, 0),
        "{}",
        world.troubles()
    );
    assert_eq!(
        world.statistic("request_desyncs"),
        0,
        "{}",
        world.troubles()
    );
}

#[test]
fn the_next_request_is_in_a_lost_segment_with_the_end_of_the_body() {
    refused(50);
}

#[test]
fn the_next_request_is_in_a_lost_segment_of_its_own() {
    refused(0);
}
