//! Random commands, random cuts, random bytes.

use proptest::prelude::*;

use super::*;

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..most),
        "(\\*1\r\n|\\$3\r\n|GET|\r|\n|QUIT){0,20}".prop_map(String::into_bytes),
    ]
}

fn commands() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    prop::collection::vec(prop::collection::vec(bytes(600), 1..5), 1..12)
}

/// A value of RESP, and whether it is an error.
fn value() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let leaf = prop_oneof![
        "[+:,(#][a-z0-9 ]{0,40}".prop_map(|line| (format!("{line}\r\n").into_bytes(), false)),
        "-[A-Z]{1,9} [a-z]{0,40}".prop_map(|line| (format!("{line}\r\n").into_bytes(), true)),
        bytes(500).prop_map(|body| {
            let mut all = format!("${}\r\n", body.len()).into_bytes();
            all.extend(body);
            all.extend(b"\r\n");
            (all, false)
        }),
        Just((b"$-1\r\n".to_vec(), false)),
        Just((b"*-1\r\n".to_vec(), false)),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        (prop::collection::vec(inner, 0..6), any::<bool>()).prop_map(|(items, map)| {
            let map = map && items.len() % 2 == 0;
            let (kind, n) = if map {
                ('%', items.len() / 2)
            } else {
                ('*', items.len())
            };
            let mut all = format!("{kind}{n}\r\n").into_bytes();
            all.extend(items.into_iter().flat_map(|(bytes, _)| bytes));
            (all, false)
        })
    })
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<usize>(), 0..30)
}

proptest! {
    #[test]
    fn commands_are_counted_however_they_are_cut(commands in commands(), cuts in cuts()) {
        let stream: Vec<u8> = commands
            .iter()
            .flat_map(|c| command(&c.iter().map(Vec::as_slice).collect::<Vec<_>>()))
            .collect();
        let wire = told(&stream, &cuts);
        prop_assert_eq!(wire.told, requests(commands.len() as u64));
    }

    #[test]
    fn replies_are_counted_however_they_are_cut(values in prop::collection::vec(value(), 1..12), cuts in cuts()) {
        let failed = values.iter().filter(|(_, failed)| *failed).count() as u64;
        let all = values.len() as u64;
        let stream: Vec<u8> = values.into_iter().flat_map(|(bytes, _)| bytes).collect();
        let told = answered(rx_flag::REDIS, &stream, &cuts);
        prop_assert_eq!(told, answers(all - failed, failed));
    }

    #[test]
    fn messages_are_counted_however_they_are_cut(
        messages in prop::collection::vec((prop::sample::select(b"QPBDESHCdFp".to_vec()), bytes(500)), 1..30),
        cuts in cuts(),
    ) {
        let session = startup(SESSION, b"user\0bench\0\0");
        let stream: Vec<u8> = messages.iter().flat_map(|(kind, body)| message(*kind, body)).collect();
        let expected = messages.iter().filter(|(kind, _)| b"QSF".contains(kind)).count() as u64;
        let mut wire = told(&session, &[]);
        for segment in cut(&stream, &cuts) {
            wire.feed(segment, 1);
        }
        prop_assert_eq!(wire.told, requests(expected));
    }

    #[test]
    fn random_bytes_stay_within_the_bound_and_are_hardly_ever_taken_for_ours(
        segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..12),
    ) {
        for protocol in [0, rx_flag::REDIS, rx_flag::POSTGRESQL, rx_flag::TLS] {
            let mut wire = Wire::begun();
            wire.protocol = protocol;
            for segment in &segments {
                wire.feed(segment, 1);
                wire.feed_out(segment, 1);
                prop_assert!(wire.most_turns <= TURNS);
            }
            if protocol == 0 {
                prop_assert_eq!(wire.told.requests, 0);
            }
        }
    }
}
