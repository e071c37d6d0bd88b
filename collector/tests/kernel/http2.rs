//! HTTP/2 frames, byte by byte the test's choice.

use std::net::TcpListener;

use ebpf_scaler_collector::agent::probes::Counters;

use super::http::Pair;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const WHOLE: u8 = END_STREAM | END_HEADERS;
pub const PADDED: u8 = 8;
pub const PRIORITY: u8 = 0x20;
/// `:method GET`, `:scheme http`, `:path /`, `:authority pod`.
pub const REQUEST: &[u8] = b"\x82\x86\x84\x41\x03pod";
/// `:status 200`.
pub const OK: &[u8] = &[0x88];
/// `grpc-status 0`, literally.
pub const TRAILER: &[u8] = b"\x40\x0bgrpc-status\x010";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(1, flags, stream, block)
}

pub fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(0, flags, stream, payload)
}

pub fn rst(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &[0, 0, 0, 8])
}

/// How a client begins, and how a server.
pub fn begin() -> (Vec<u8>, Vec<u8>) {
    let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    ([PREFACE, &settings].concat(), settings)
}

/// A request without a body on that stream, and its answer with trailers.
pub fn turn(stream: u32) -> (Vec<u8>, Vec<u8>) {
    (
        headers(stream, WHOLE, REQUEST),
        [
            headers(stream, END_HEADERS, OK),
            data(stream, 0, b"hello"),
            headers(stream, WHOLE, TRAILER),
        ]
        .concat(),
    )
}

/// A connection after its prefaces.
pub fn pair(listener: &TcpListener) -> Pair {
    let mut pair = Pair::new(listener);
    let (client, server) = begin();
    pair.turn(client, server);
    pair
}

/// Requests, 2xx, in flight, aborted.
pub fn sums(c: &Counters) -> (u64, u64, u64, u64) {
    (
        c.requests,
        c.responses_2xx,
        c.requests_in_flight,
        c.requests_aborted,
    )
}
