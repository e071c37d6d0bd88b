//! Random connections against a model that made them, cut anywhere; hostile input; the bound of work.

use proptest::prelude::*;

use super::*;

/// What happens to a request, and how its frames look.
#[derive(Clone, Debug)]
struct Story {
    /// Status by the static table, or else one that can not be told.
    status: u8,
    upload: Vec<u16>,
    download: Vec<u16>,
    trailers: (bool, bool),
    interim: bool,
    /// In several frames.
    continued: bool,
    padded: bool,
    priority: bool,
    /// 0: no. 1: the client, 2: the server, before the answer. 3: the server, after it.
    reset: u8,
    /// How far the stream number jumps.
    jump: u8,
}

fn story() -> impl Strategy<Value = Story> {
    (
        prop::sample::select(vec![0x88u8, 0x89, 0x8b, 0x8c, 0x8d, 0x8e, 0xc0]),
        prop::collection::vec(0u16..2000, 0..3),
        prop::collection::vec(0u16..2000, 0..3),
        any::<(bool, bool)>(),
        any::<(bool, bool, bool, bool)>(),
        prop_oneof![6 => Just(0u8), 1 => 1u8..4],
        prop_oneof![8 => Just(0u8), 1 => 1u8..6],
    )
        .prop_map(
            |(
                status,
                upload,
                download,
                trailers,
                (interim, continued, padded, priority),
                reset,
                jump,
            )| Story {
                status,
                upload,
                download,
                trailers,
                interim,
                continued,
                padded,
                priority,
                reset,
                jump,
            },
        )
}

fn block(stream: u32, end: bool, story: &Story, block: &[u8], into: &mut Vec<Vec<u8>>) {
    let end = if end { END_STREAM } else { 0 };
    let mut frames = Vec::new();
    if story.continued {
        frames.extend(headers_with(
            stream,
            end,
            block,
            story.padded,
            story.priority,
        ));
        frames.extend(frame(9, 0, stream, &[0x82; 20]));
        frames.extend(frame(9, END_HEADERS, stream, &[]));
    } else {
        frames.extend(headers_with(
            stream,
            end | END_HEADERS,
            block,
            story.padded,
            story.priority,
        ));
    }
    // A header block's frames may have no others between them.
    into.push(frames);
}

impl Story {
    fn asked(&self, stream: u32) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let bare = self.upload.is_empty() && !self.trailers.0;
        block(stream, bare, self, REQUEST, &mut frames);
        let last = self.upload.len().wrapping_sub(1);
        for (i, len) in self.upload.iter().enumerate() {
            let end = if i == last && !self.trailers.0 {
                END_STREAM
            } else {
                0
            };
            frames.push(data(stream, end, *len as usize));
        }
        if self.trailers.0 {
            block(stream, true, self, TRAILER, &mut frames);
        }
        if self.reset == 1 {
            frames.push(rst(stream));
        }
        frames
    }

    fn answered(&self, stream: u32) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        if self.reset == 1 {
            return frames;
        }
        if self.interim {
            block(stream, false, self, b"\x08\x03103", &mut frames);
        }
        if self.reset == 2 {
            frames.push(rst(stream));
            return frames;
        }
        let bare = self.download.is_empty() && !self.trailers.1 && self.reset == 0;
        block(stream, bare, self, &[self.status], &mut frames);
        let last = self.download.len().wrapping_sub(1);
        for (i, len) in self.download.iter().enumerate() {
            let end = if i == last && !self.trailers.1 && self.reset == 0 {
                END_STREAM
            } else {
                0
            };
            frames.push(data(stream, end, *len as usize));
        }
        if self.reset == 3 {
            frames.push(rst(stream));
        } else if self.trailers.1 {
            block(stream, true, self, TRAILER, &mut frames);
        }
        frames
    }
}

/// Mixes the streams' frames, each stream's in its order, with some that belong to none.
fn mix(mut streams: Vec<Vec<Vec<u8>>>, order: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = 0;
    streams.iter_mut().for_each(|frames| frames.reverse());
    // Requests begin in the order of their numbers.
    let mut begun = 1;
    while streams.iter().any(|frames| !frames.is_empty()) {
        let choice = order[at % order.len()] as usize;
        at += 1;
        let among = begun.min(streams.len());
        if choice.is_multiple_of(7) {
            bytes.extend(frame(8, 0, 0, &[0, 0, 0, 9]));
            bytes.extend(frame(6, 1, 0, &[1; 8]));
        }
        // The stream chosen, or the next that has something left.
        let pick = (0..among)
            .map(|i| (choice + i) % among)
            .find(|i| !streams[*i].is_empty());
        if let Some(pick) = pick {
            bytes.extend(streams[pick].pop().unwrap());
        }
        if pick.is_none_or(|pick| pick + 1 == begun) {
            begun += 1;
        }
    }
    bytes
}

fn cut<'a>(bytes: &'a [u8], cuts: &[u16]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts
        .iter()
        .map(|c| *c as usize % (bytes.len() + 1))
        .collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect()
}

fn expect(stories: &[Story]) -> Counted {
    let mut told = Counted::default();
    for story in stories {
        told.requests += 1;
        told.ended += 1;
        if story.interim && story.reset != 1 {
            told.statuses[0] += 1;
        }
        if story.reset == 1 || story.reset == 2 {
            told.aborted += 1;
            continue;
        }
        told.timed += 1;
        match story.status {
            0x88 | 0x89 => told.statuses[1] += 1,
            0x8b => told.statuses[2] += 1,
            0x8c | 0x8d => told.statuses[3] += 1,
            0x8e => told.statuses[4] += 1,
            _ => told.no_status += 1,
        }
    }
    told
}

/// The streams' numbers and both directions.
fn conversation(stories: &[Story], order: &[u16]) -> (Vec<u8>, Vec<u8>) {
    let (mut asked, mut answered, mut stream) = (Vec::new(), Vec::new(), 1);
    for story in stories {
        stream += 2 * u32::from(story.jump);
        asked.push(story.asked(stream));
        answered.push(story.answered(stream));
        stream += 2;
    }
    (mix(asked, order), mix(answered, order))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_connection_cut_anywhere_is_counted_exactly(
        stories in prop::collection::vec(story(), 1..60),
        order in prop::collection::vec(any::<u16>(), 1..40),
        cuts in prop::collection::vec(any::<u16>(), 0..200),
    ) {
        let (asked, answered) = conversation(&stories, &order);
        let mut h = fresh();
        for packet in cut(&asked, &cuts) {
            h.feed(packet, 0);
        }
        for packet in cut(&answered, &cuts) {
            h.feed_out(packet, 7_000_000);
        }
        let mut told = expect(&stories);
        told.latency_sum = 7000 * told.timed;
        prop_assert_eq!(&h.counted, &told);
        prop_assert_eq!((h.in_flight(), h.unanswered()), (0, 0));
    }

    #[test]
    fn lost_stretches_never_make_a_request_count_twice(
        stories in prop::collection::vec(story(), 1..60),
        order in prop::collection::vec(any::<u16>(), 1..40),
        cuts in prop::collection::vec(any::<u16>(), 20..200),
        lost in prop::collection::vec(any::<bool>(), 8..40),
    ) {
        let stories: Vec<Story> = stories.into_iter().map(|s| Story { jump: 0, ..s }).collect();
        let (asked, answered) = conversation(&stories, &order);
        let mut h = fresh();
        for (i, packet) in cut(&asked, &cuts).into_iter().enumerate() {
            if lost[i % lost.len()] && i % 3 == 0 {
                h.lose(packet.len() as u32);
            } else {
                h.feed(packet, 0);
            }
        }
        for (i, packet) in cut(&answered, &cuts).into_iter().enumerate() {
            if lost[(i + 3) % lost.len()] && i % 5 == 0 {
                h.lose_out(packet.len() as u32);
            } else {
                h.feed_out(packet, 0);
            }
        }
        let c = &h.counted;
        prop_assert!(c.requests <= stories.len() as u64);
        prop_assert!(c.ended <= c.requests && c.timed <= c.requests);
        prop_assert!(h.in_flight() as u64 <= stories.len() as u64);
        prop_assert!(h.unanswered() <= h.in_flight());
    }

    #[test]
    fn anything_at_all_is_walked_within_the_bound(
        packets in prop::collection::vec((any::<bool>(), prop::collection::vec(
            prop_oneof![3 => 0u8..12, 1 => any::<u8>()], 0..200)), 0..30),
        older in any::<bool>(),
    ) {
        let mut h = if older { Http2::unknown() } else { fresh() };
        for (out, packet) in packets {
            if out {
                h.feed_out(&packet, 1);
            } else {
                h.feed(&packet, 1);
            }
        }
        // Each turn but the last of a packet uses a frame header's bytes.
        prop_assert!(h.most_frames <= 200 / 9 + 1);
        prop_assert!(h.unanswered() <= h.in_flight() && h.in_flight() <= 256);
    }
}

#[test]
fn every_split() {
    let mut asked = Vec::new();
    let mut answered = Vec::new();
    for id in [1, 3] {
        asked.extend(headers_with(id, 0, REQUEST, true, true));
        asked.extend(frame(9, END_HEADERS, id, &[0x82; 9]));
        asked.extend(data(id, 0, 3));
        asked.extend(data(id, END_STREAM, 0));
        answered.extend(headers_with(
            id,
            END_HEADERS,
            &[0x48, 0x03, b'4', b'0', b'3'],
            true,
            false,
        ));
        answered.extend(data(id, 0, 17));
        answered.extend(headers(id, END_HEADERS | END_STREAM, TRAILER));
    }
    let runs = (0..=asked.len().max(answered.len()))
        .map(Some)
        .chain([None]);
    for at in runs {
        let mut h = fresh();
        let parts = |bytes: &[u8]| -> Vec<Vec<u8>> {
            match at {
                Some(at) => {
                    let at = at.min(bytes.len());
                    vec![bytes[..at].to_vec(), bytes[at..].to_vec()]
                }
                None => bytes.iter().map(|b| vec![*b]).collect(),
            }
        };
        for (part, now) in parts(&asked).iter().zip(0..) {
            h.feed(part, now);
        }
        for part in parts(&answered) {
            h.feed_out(&part, 1_000_000);
        }
        let c = &h.counted;
        assert_eq!(
            (c.requests, c.statuses, c.ended),
            (2, [0, 0, 0, 2, 0], 2),
            "{at:?}"
        );
        assert_eq!((c.desyncs, h.in_flight()), (0, 0), "{at:?}");
    }
}
