//! The walker against connections whose every frame is known, cut in every way, and against what is not HTTP/2.

use super::*;

mod frames;
mod properties;

use frames::*;

fn fresh() -> Http2 {
    let mut http2 = Http2::after_pri();
    http2.feed(&PREFACE[4..], 0);
    http2.feed(&frame(4, 0, 0, &[]), 0);
    http2.feed_out(&frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]), 0);
    http2
}

#[test]
fn a_request_and_its_answer() {
    let mut h = fresh();
    h.feed(&headers(1, END_STREAM | END_HEADERS, REQUEST), 1_000_000);
    assert_eq!(
        (h.counted.requests, h.in_flight(), h.unanswered()),
        (1, 1, 1)
    );
    h.feed_out(&headers(1, END_HEADERS, &[0x88]), 3_000_000);
    assert_eq!((h.in_flight(), h.unanswered()), (1, 0));
    h.feed_out(&data(1, 0, 5), 4_000_000);
    h.feed_out(&data(1, END_STREAM, 5), 5_000_000);
    assert_eq!((h.in_flight(), h.unanswered()), (0, 0));
    let c = &h.counted;
    assert_eq!(
        (c.timed, c.latency_sum, c.statuses),
        (1, 2000, [0, 1, 0, 0, 0])
    );
    assert_eq!((c.ended, c.aborted, c.desyncs), (1, 0, 0));
}

#[test]
fn trailers_are_neither_requests_nor_answers() {
    let mut h = fresh();
    h.feed(&headers(1, END_HEADERS, REQUEST), 0);
    h.feed(&data(1, 0, 20), 0);
    h.feed(&headers(1, END_HEADERS | END_STREAM, TRAILER), 0);
    h.feed_out(&headers(1, END_HEADERS, &[0x88]), 0);
    h.feed_out(&data(1, 0, 20), 0);
    h.feed_out(&headers(1, END_HEADERS | END_STREAM, TRAILER), 0);
    // An answer that is trailers only.
    h.feed(&headers(3, END_HEADERS | END_STREAM, REQUEST), 0);
    h.feed_out(&headers(3, END_HEADERS | END_STREAM, &[0x88]), 0);
    let c = &h.counted;
    assert_eq!(
        (c.requests, c.statuses[1], c.no_status, c.ended),
        (2, 2, 0, 2)
    );
    assert_eq!(h.in_flight(), 0);
}

#[test]
fn statuses_as_far_as_they_can_be_told() {
    let cases: &[(&[u8], u32)] = &[
        (&[0x88], 2),
        (&[0x89], 2),
        (&[0x8a], 2),
        (&[0x8b], 3),
        (&[0x8c], 4),
        (&[0x8d], 4),
        (&[0x8e], 5),
        // Plain digits, with, without and never with indexing.
        (b"\x48\x03201", 2),
        (b"\x08\x03302", 3),
        (b"\x18\x03499", 4),
        (b"\x4d\x03503", 5),
        // Huffman: 201, 302 (RFC 7541, C.6.1), 307, 429, 503.
        (&[0x48, 0x82, 0x10, 0x01], 2),
        (&[0x48, 0x82, 0x64, 0x02], 3),
        (&[0x48, 0x83, 0x64, 0x0e, 0xff], 3),
        (&[0x08, 0x83, 0x68, 0x2f, 0x9f], 4),
        (&[0x48, 0x83, 0x6c, 0x0c, 0xff], 5),
        // Behind updates of the table's size.
        (&[0x20, 0x3f, 0xe1, 0x1f, 0x88], 2),
        (&[0x3f, 0xe1, 0x1f, 0x48, 0x03, b'5', b'0', b'4'], 5),
        // The dynamic table, a literal name, nothing.
        (&[0xbe], 0),
        (&[0xff, 0x00], 0),
        (b"\x40\x07:status\x03200", 0),
        (&[], 0),
        // Cut off.
        (&[0x48], 0),
        (&[0x48, 0x03], 0),
    ];
    for (block, class) in cases {
        for (padded, priority) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut h = fresh();
            h.feed(&headers(1, END_HEADERS | END_STREAM, REQUEST), 0);
            let answer = headers_with(1, END_HEADERS | END_STREAM, block, padded, priority);
            h.feed_out(&answer, 0);
            let c = &h.counted;
            let mut expected = [0; 5];
            if *class != 0 {
                expected[*class as usize - 1] = 1;
            }
            assert_eq!(c.statuses, expected, "{block:x?} {padded} {priority}");
            assert_eq!(c.no_status, u64::from(*class == 0), "{block:x?}");
            assert_eq!((c.timed, c.ended, c.desyncs), (1, 1, 0));
        }
    }
}

#[test]
fn interim_answers_do_not_answer() {
    let mut h = fresh();
    h.feed(&headers(1, END_HEADERS | END_STREAM, REQUEST), 0);
    h.feed_out(&headers(1, END_HEADERS, b"\x48\x03103"), 1_000_000);
    h.feed_out(&headers(1, END_HEADERS, b"\x08\x82\x08\x00"), 1_000_000);
    assert_eq!(h.unanswered(), 1);
    h.feed_out(&headers(1, END_HEADERS | END_STREAM, &[0x88]), 5_000_000);
    let c = &h.counted;
    assert_eq!((c.statuses, c.latency_sum), ([2, 1, 0, 0, 0], 5000));
}

#[test]
fn pushed_streams_and_other_frames_are_passed_over() {
    let mut h = fresh();
    h.feed(&frame(2, 0, 5, &[0; 5]), 0);
    h.feed(&headers(1, END_HEADERS | END_STREAM, REQUEST), 0);
    h.feed(&frame(8, 0, 0, &[0, 0, 1, 0]), 0);
    h.feed(&frame(6, 0, 0, &[0; 8]), 0);
    h.feed(&frame(0x10, 0, 0, b"priority update"), 0);
    let mut promise = vec![0, 0, 0, 2];
    promise.extend(REQUEST);
    h.feed_out(&frame(5, END_HEADERS, 1, &promise), 0);
    h.feed_out(&headers(2, END_HEADERS, &[0x88]), 0);
    h.feed_out(&data(2, END_STREAM, 100), 0);
    h.feed_out(&headers(1, 0, &[0x88]), 0);
    h.feed_out(&frame(9, END_HEADERS, 1, &[0x82; 40]), 0);
    h.feed_out(&data(1, END_STREAM, 100), 0);
    h.feed_out(&frame(7, 0, 0, &[0; 8]), 0);
    let c = &h.counted;
    assert_eq!((c.requests, c.statuses[1], c.ended), (1, 1, 1));
    assert_eq!((c.desyncs, h.in_flight()), (0, 0));
}

#[test]
fn resets_abort_what_has_no_answer() {
    let mut h = fresh();
    for id in [1, 3, 5, 7] {
        h.feed(&headers(id, END_HEADERS, REQUEST), 0);
    }
    h.feed_out(&headers(1, END_HEADERS, &[0x88]), 0);
    h.feed_out(&headers(3, END_HEADERS, &[0x88]), 0);
    h.feed(&rst(1), 0);
    h.feed_out(&rst(3), 0);
    h.feed(&rst(5), 0);
    h.feed_out(&rst(7), 0);
    // Both sides may reset, and what is late changes nothing.
    h.feed(&rst(7), 0);
    h.feed_out(&headers(5, END_HEADERS | END_STREAM, TRAILER), 0);
    let c = &h.counted;
    assert_eq!((c.requests, c.ended, c.aborted), (4, 4, 2));
    assert_eq!((h.in_flight(), h.unanswered()), (0, 0));
}

#[test]
fn streams_beyond_the_table_are_counted_but_not_timed() {
    let mut h = fresh();
    for n in 0..300 {
        h.feed(&headers(1 + 2 * n, END_HEADERS | END_STREAM, REQUEST), 0);
    }
    assert_eq!(
        (h.counted.requests, h.counted.untimed, h.in_flight()),
        (300, 44, 256)
    );
    for n in (0..300).rev() {
        h.feed_out(&headers(1 + 2 * n, END_HEADERS, &[0x88]), 0);
        h.feed_out(&headers(1 + 2 * n, END_HEADERS | END_STREAM, TRAILER), 0);
    }
    let c = &h.counted;
    assert_eq!((c.statuses[1], c.timed, c.ended), (300, 256, 256));
    assert_eq!(h.in_flight(), 0);
}

#[test]
fn a_stream_that_lives_long_does_not_disturb_others() {
    let mut h = fresh();
    for long in [1, 3, 5] {
        h.feed(&headers(long, END_HEADERS, REQUEST), 0);
        h.feed_out(&headers(long, END_HEADERS, &[0x88]), 0);
    }
    for n in 3..5000 {
        let id = 1 + 2 * n;
        h.feed(&headers(id, END_HEADERS | END_STREAM, REQUEST), 0);
        h.feed_out(&headers(id, END_HEADERS | END_STREAM, &[0x88]), 0);
    }
    let c = &h.counted;
    assert_eq!((c.requests, c.untimed, c.timed), (5000, 0, 5000));
    assert_eq!((h.in_flight(), h.unanswered()), (3, 0));
}

#[test]
fn a_gap_in_a_payload_is_passed_over() {
    let mut h = fresh();
    h.feed(&headers(1, END_HEADERS, REQUEST), 0);
    let upload = data(1, 0, 10_000);
    h.feed(&upload[..3000], 0);
    h.lose(2000);
    h.feed(&upload[5000..], 0);
    h.feed(&headers(3, END_HEADERS, REQUEST), 0);
    let c = &h.counted;
    assert_eq!((c.requests, c.inferred, c.desyncs), (2, 0, 0));
}

#[test]
fn what_a_gap_held_is_told_by_the_next_request() {
    let mut h = fresh();
    h.feed(&headers(1, END_HEADERS | END_STREAM, REQUEST), 0);
    h.lose(3 * headers(3, END_HEADERS, REQUEST).len() as u32);
    // In the middle of a frame: nothing can be made of it.
    h.feed(&data(7, 0, 300)[100..], 0);
    h.feed(&headers(9, END_HEADERS | END_STREAM, REQUEST), 0);
    h.feed(&headers(11, END_HEADERS | END_STREAM, REQUEST), 0);
    for id in [1, 3, 5, 7, 9, 11] {
        h.feed_out(&headers(id, END_HEADERS, &[0x88]), 0);
        h.feed_out(&data(id, END_STREAM, 1), 0);
    }
    let c = &h.counted;
    assert_eq!((c.requests, c.inferred, c.timed), (6, 3, 3));
    assert_eq!((c.statuses[1], c.desyncs, c.resyncs), (6, 1, 1));
    assert_eq!(h.in_flight(), 0);
}

#[test]
fn a_client_that_leaves_out_streams_is_not_thought_to_have_asked() {
    let mut h = fresh();
    // Firefox and nghttp use the first streams for priorities.
    h.feed(&headers(13, END_HEADERS | END_STREAM, REQUEST), 0);
    h.feed(&headers(101, END_HEADERS | END_STREAM, REQUEST), 0);
    assert_eq!((h.counted.requests, h.counted.inferred), (2, 0));
}

#[test]
fn the_first_stream_is_not_inferred() {
    // Some clients begin with 1, some with 3.
    for (first, inferred) in [(1, 0), (3, 0), (5, 1), (21, 9)] {
        let mut h = fresh();
        h.lose(1000);
        h.feed(&headers(first, END_HEADERS | END_STREAM, REQUEST), 0);
        let c = &h.counted;
        assert_eq!(
            (c.requests, c.inferred),
            (inferred + 1, inferred),
            "{first}"
        );
    }
}

#[test]
fn a_length_that_nobody_may_send_is_not_skipped() {
    let mut h = fresh();
    let mut long = frame(0x77, 0, 1, &[]);
    long[0] = 0xff;
    h.feed(&long, 0);
    h.feed(&headers(1, END_HEADERS | END_STREAM, REQUEST), 0);
    assert_eq!((h.counted.requests, h.counted.desyncs), (1, 1));
}

#[test]
fn a_connection_older_than_we_are() {
    let mut h = Http2::unknown();
    // The rest of an upload.
    h.feed(&[7; 1000], 0);
    h.feed_out(&[7; 1000], 0);
    let asked = headers(41, END_HEADERS | END_STREAM, REQUEST);
    h.feed(&asked, 0);
    h.feed_out(&headers(41, END_HEADERS | END_STREAM, &[0x88]), 0);
    let c = &h.counted;
    // The first is answered before its answers were followed.
    assert_eq!((c.requests, c.statuses[1], c.timed), (1, 1, 0));
    h.feed(&headers(43, END_HEADERS | END_STREAM, REQUEST), 0);
    h.feed_out(&headers(43, END_HEADERS | END_STREAM, &[0x88]), 0);
    let c = &h.counted;
    assert_eq!((c.requests, c.statuses[1], c.timed), (2, 2, 1));
    // Whose first fields are in the dynamic table: the answer tells what it was.
    let mut h = Http2::unknown();
    h.feed(&headers(41, END_HEADERS | END_STREAM, &[0xbe, 0xbf]), 0);
    h.feed(&headers(43, END_HEADERS | END_STREAM, &[0xbe, 0xbf]), 0);
    assert_eq!((h.counted.requests, h.in_flight()), (0, 0));
    h.feed_out(&headers(41, END_HEADERS | END_STREAM, &[0x88]), 0);
    assert_eq!((h.counted.requests, h.in_flight()), (1, 0));
    h.feed(&headers(45, END_HEADERS | END_STREAM, &[0xbe, 0xbf]), 0);
    h.feed_out(&headers(43, END_HEADERS | END_STREAM, &[0x88]), 0);
    assert_eq!((h.counted.requests, h.in_flight()), (3, 1));
}

#[test]
fn a_client_is_not_counted() {
    // Its server's answers look like requests, but for their first field.
    let mut h = Http2::unknown();
    h.feed(&headers(1, END_HEADERS, &[0x88]), 0);
    h.feed(&headers(3, END_HEADERS, &[0xbe]), 0);
    assert_eq!((h.counted.requests, h.in_flight()), (0, 0));
    let mut h = Http2::unknown();
    h.feed_out(&headers(1, END_HEADERS | END_STREAM, REQUEST), 0);
    h.feed(&headers(1, END_HEADERS, &[0xbe]), 0);
    h.feed_out(&headers(3, END_HEADERS | END_STREAM, REQUEST), 0);
    assert_eq!((h.counted.requests, h.in_flight()), (0, 0));
}

#[test]
fn more_frames_than_are_walked_are_told_and_the_place_is_found_again() {
    let mut h = fresh();
    let empty = frame(0, 0, 1, &[]);
    h.feed(&headers(1, END_HEADERS, REQUEST), 0);
    h.feed(&empty.repeat(TURNS as usize + 1), 0);
    assert_eq!((h.counted.desyncs, h.most_frames), (1, TURNS));
    h.feed(&headers(3, END_HEADERS, REQUEST), 0);
    assert_eq!((h.counted.requests, h.counted.resyncs), (2, 1));
}

#[test]
fn what_follows_pri_must_be_a_preface() {
    let mut h = Http2::after_pri();
    h.feed(b"/ HTTP/1.1\r\nHost: pod.example.org\r\n\r\n", 0);
    h.feed(&headers(1, END_HEADERS, REQUEST), 0);
    assert_eq!(h.counted.requests, 1);
    assert_eq!(h.counted.desyncs, 1);
}
