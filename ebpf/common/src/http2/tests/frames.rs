//! Frames for tests.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITY: u8 = 0x20;
/// `:method GET`, `:scheme http`, `:path /`, `:authority pod`.
pub const REQUEST: &[u8] = b"\x82\x86\x84\x41\x03pod";
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

pub fn headers_with(stream: u32, flags: u8, block: &[u8], padded: bool, priority: bool) -> Vec<u8> {
    let (mut payload, mut flags) = (Vec::new(), flags);
    if padded {
        flags |= PADDED;
        // What pads would be taken for a status if it were read.
        payload.push(11);
    }
    if priority {
        flags |= PRIORITY;
        payload.extend([0, 0, 0, 0, 15]);
    }
    payload.extend(block);
    if padded {
        payload.extend([0; 11]);
    }
    frame(1, flags, stream, &payload)
}

pub fn data(stream: u32, flags: u8, len: usize) -> Vec<u8> {
    frame(0, flags, stream, &vec![b'd'; len])
}

pub fn rst(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &[0, 0, 0, 8])
}
