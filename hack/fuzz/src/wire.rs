//! A connection of Redis, PostgreSQL or TLS, or of anything else: segments of both directions, some of which never come by.

use ebpf_scaler_common::flow::rx_flag;
use ebpf_scaler_common::wire::{TURNS, Told, Wire};

/// The first byte says whether the connection's beginning was seen, and whether the client's stream is cut another way, too.
/// Then follow segments: what happens to it (bit 0: from the server, bits 1 and 2: lost), its length, its bytes.
pub fn connection(data: &[u8]) {
    let Some((&mode, mut rest)) = data.split_first() else {
        return;
    };
    let mut wire = if mode & 1 == 0 {
        Wire::begun()
    } else {
        Wire::unknown()
    };
    let (mut now, mut bytes_in, mut bytes_out) = (0, 0, 0);
    let mut stream = Vec::new();
    let mut whole = true;
    while let [what, len, bytes @ ..] = rest {
        let (segment, after) = bytes.split_at(bytes.len().min(usize::from(*len)));
        (rest, now) = (after, now + 1_000);
        match (what & 1 == 0, what & 6 == 6) {
            (true, true) => {
                whole = false;
                wire.lose(segment.len() as u32);
            }
            (false, true) => wire.lose_out(segment.len() as u32),
            (true, false) => {
                stream.extend(segment);
                bytes_in += segment.len() as u64;
                wire.feed(segment, now);
            }
            (false, false) => {
                bytes_out += segment.len() as u64;
                wire.feed_out(segment, now);
            }
        }
        bounded(&wire, bytes_in, bytes_out);
    }
    // Where a stream is of ours to its end, it does not matter how it is cut.
    if mode & 1 == 0 && whole {
        let once = fed(&stream, stream.len());
        let singly = fed(&stream, 1);
        if once.told.lost == 0 && singly.told.lost == 0 && once.protocol == singly.protocol {
            assert_eq!(once.told, singly.told);
        }
    }
}

fn fed(stream: &[u8], size: usize) -> Wire {
    let mut wire = Wire::begun();
    // By 16 bytes it is known what the stream is.
    let (head, rest) = stream.split_at(stream.len().min(16));
    wire.feed(head, 1);
    for segment in rest.chunks(size.max(1)) {
        wire.feed(segment, 1);
    }
    wire
}

fn bounded(wire: &Wire, bytes_in: u64, bytes_out: u64) {
    assert!(wire.most_turns <= TURNS);
    let Told {
        requests,
        answers,
        failed,
        records,
        ..
    } = wire.told;
    // The shortest: a line of a letter and LF, a Sync, a header of a record; `_` and LF, ReadyForQuery.
    assert!(requests <= bytes_in / 2, "{:?}", wire.told);
    assert!(records <= bytes_in / 5, "{:?}", wire.told);
    assert!(answers + failed <= bytes_out / 2 + 1, "{:?}", wire.told);
    if wire.protocol == 0 {
        assert_eq!((requests, answers, failed, records), (0, 0, 0, 0));
    }
    let known = [0, rx_flag::REDIS, rx_flag::POSTGRESQL, rx_flag::TLS];
    assert!(known.contains(&wire.protocol));
}
