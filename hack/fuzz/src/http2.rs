//! A connection that speaks HTTP/2, or anything else: segments of both directions, some of which never come by.

use ebpf_scaler_common::http2::{Http2, STREAMS, TURNS};

/// The first byte says whether the preface was seen. Then follow segments: what happens to it (bit 0: from the server,
/// bits 1 and 2: lost), its length, its bytes.
pub fn connection(data: &[u8]) {
    let Some((&mode, mut rest)) = data.split_first() else {
        return;
    };
    let mut http2 = if mode & 1 == 0 {
        Http2::after_pri()
    } else {
        Http2::unknown()
    };
    let (mut now, mut bytes_in, mut bytes_out) = (0u64, 0u64, 0u64);
    while let [what, len, bytes @ ..] = rest {
        let (segment, after) = bytes.split_at(bytes.len().min(usize::from(*len)));
        (rest, now) = (after, now + 1_000);
        match (what & 1 == 0, what & 6 == 6) {
            (true, true) => http2.lose(segment.len() as u32),
            (false, true) => http2.lose_out(segment.len() as u32),
            (true, false) => {
                bytes_in += segment.len() as u64;
                http2.feed(segment, now);
            }
            (false, false) => {
                bytes_out += segment.len() as u64;
                http2.feed_out(segment, now);
            }
        }
        assert!(http2.most_frames <= TURNS);
        let (in_flight, unanswered) = (http2.in_flight(), http2.unanswered());
        let told = &http2.counted;
        // A request and an answer take a frame each.
        assert!(told.requests - told.inferred <= bytes_in / 9, "{told:?}");
        assert!(told.timed <= bytes_out / 9, "{told:?}");
        assert!(
            told.statuses.iter().sum::<u64>() <= bytes_out / 9,
            "{told:?}"
        );
        assert!(told.aborted <= told.ended, "{told:?}");
        assert!(
            told.ended + u64::from(in_flight) <= told.requests,
            "{told:?}, {in_flight}"
        );
        assert!(
            in_flight <= STREAMS && unanswered <= in_flight,
            "{in_flight}, {unanswered}"
        );
    }
}
