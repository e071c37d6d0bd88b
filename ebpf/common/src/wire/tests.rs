//! The machines against conversations whose answers are known, cut in every way.

use super::*;

mod properties;

/// What a client's stream tells when it is cut at these places.
fn told(stream: &[u8], cuts: &[usize]) -> Wire {
    let mut wire = Wire::begun();
    for (segment, now) in cut(stream, cuts).into_iter().zip(1..) {
        wire.feed(segment, now);
    }
    wire
}

/// What a server's stream tells when it is cut at these places.
fn answered(protocol: u32, stream: &[u8], cuts: &[usize]) -> Told {
    let mut wire = Wire::begun();
    wire.protocol = protocol;
    for (segment, now) in cut(stream, cuts).into_iter().zip(1..) {
        wire.feed_out(segment, now);
    }
    wire.told
}

fn cut<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (stream.len() + 1)).collect();
    cuts.extend([0, stream.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|w| &stream[w[0]..w[1]]).collect()
}

/// Whole, in two at every place from `from` on, and byte by byte behind it.
fn every_split(stream: &[u8], from: usize, check: impl Fn(&[usize])) {
    check(&[]);
    for at in from..stream.len() {
        check(&[at]);
    }
    check(&(from..stream.len()).collect::<Vec<_>>());
}

fn requests(n: u64) -> Told {
    Told {
        requests: n,
        ..Told::default()
    }
}

fn answers(answers: u64, failed: u64) -> Told {
    Told {
        answers,
        failed,
        ..Told::default()
    }
}

fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend(format!("${}\r\n", argument.len()).into_bytes());
        bytes.extend(*argument);
        bytes.extend(b"\r\n");
    }
    bytes
}

#[test]
fn redis_commands_are_counted_however_they_are_cut() {
    let long = vec![b'\n'; 700];
    let stream = [
        command(&[b"SET", b"key", b"*3\r\n$3\r\nSET\r\n"]),
        command(&[b"GET", b""]),
        b"PING\r\n\r\nset a b\n".to_vec(),
        command(&[b"SET", b"key", &long]),
        b"*0\r\n*-1\r\n".to_vec(),
        command(&[b"INCR", b"n"]),
    ]
    .concat();
    every_split(&stream, 1, |cuts| {
        let wire = told(&stream, cuts);
        assert_eq!(
            (wire.protocol, wire.told),
            (rx_flag::REDIS, requests(6)),
            "{cuts:?}"
        );
    });
}

#[test]
fn a_first_ping_is_enough() {
    for ping in ["PING\r\n", "ping\r\n", "PING\r\nPING\r\n"] {
        let wire = told(ping.as_bytes(), &[]);
        assert_eq!(wire.protocol, rx_flag::REDIS);
        assert_eq!(wire.told.requests, ping.len() as u64 / 6);
    }
}

#[test]
fn redis_replies_of_any_kind_answer_once() {
    let stream = [
        "+OK\r\n",
        "-ERR unknown command\r\n",
        ":-12\r\n",
        "$5\r\n-ERR\n\r\n",
        "$-1\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*3\r\n:1\r\n$-1\r\n*2\r\n+a\r\n-ERR in a transaction\r\n",
        "%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n#t\r\n",
        "~1\r\n_\r\n",
        ",1.5\r\n(123456789012345678901\r\n=7\r\ntxt:abc\r\n",
        "!5\r\nERR x\r\n",
        // Neither what is pushed nor an attribute is an answer.
        ">3\r\n+message\r\n+channel\r\n$1\r\nx\r\n|1\r\n+ttl\r\n:3600\r\n",
        "$4\r\nlast\r\n",
    ]
    .concat();
    every_split(stream.as_bytes(), 0, |cuts| {
        let told = answered(rx_flag::REDIS, stream.as_bytes(), cuts);
        assert_eq!(told, answers(13, 2), "{cuts:?}");
    });
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn startup(code: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32 + 8).to_be_bytes().to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(body);
    bytes
}

const SESSION: u32 = 3 << 16;

#[test]
fn postgresql_queries_and_syncs_are_requests() {
    let long = vec![b'Q'; 900];
    let extended = [
        message(b'P', b"\0select $1\0\0\0"),
        message(b'B', b"\0\0\0\0\0\0\0\0"),
        message(b'D', b"P\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat();
    let stream = [
        startup(80_877_104, b""),
        startup(80_877_103, b""),
        startup(SESSION, b"user\0bench\0\0"),
        message(b'p', b"secret\0"),
        message(b'Q', b"select 1\0"),
        extended.clone(),
        message(b'Q', &long),
        // COPY by a simple query has no Sync, by an extended one it has a second, which counts no more.
        message(b'Q', b"copy t from stdin\0"),
        message(b'd', b"1\n"),
        message(b'c', b""),
        extended.clone(),
        message(b'd', &long),
        message(b'c', b""),
        message(b'S', b""),
        message(b'F', b"\0\0\0\x01"),
        message(b'H', b""),
        extended,
        message(b'X', b""),
    ]
    .concat();
    every_split(&stream, 8, |cuts| {
        let wire = told(&stream, cuts);
        assert_eq!(
            (wire.protocol, wire.told),
            (rx_flag::POSTGRESQL, requests(7)),
            "{cuts:?}"
        );
    });
}

#[test]
fn postgresql_answers_end_when_the_server_is_ready() {
    let long = vec![b'Z'; 600];
    let stream = [
        message(b'T', b"\0\0"),
        message(b'D', &long),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
        message(b'A', b"\0\0\0\x01a\0b\0"),
        message(b'1', b""),
        message(b'E', b"SERROR\0\0"),
        message(b'Z', b"I"),
        message(b'2', b""),
        message(b'C', b"INSERT 0 1\0"),
        message(b'Z', b"T"),
    ]
    .concat();
    every_split(&stream, 0, |cuts| {
        let told = answered(rx_flag::POSTGRESQL, &stream, cuts);
        assert_eq!(told, answers(2, 1), "{cuts:?}");
    });
}

#[test]
fn what_waits_begins_with_its_first_byte() {
    let mut wire = told(&startup(SESSION, b"user\0bench\0\0"), &[]);
    wire.feed(&message(b'P', b"\0select 1\0\0\0"), 10);
    wire.feed(&message(b'E', b"\0\0\0\0\0"), 20);
    wire.feed(&message(b'S', b""), 30);
    assert_eq!((wire.told.requests, wire.begun_at()), (1, 10));
    wire.feed_out(&message(b'A', b"\0\0\0\x01a\0b\0"), 35);
    wire.feed_out(&message(b'1', b""), 40);
    wire.feed_out(&message(b'Z', b"I"), 50);
    assert_eq!((wire.told.answers, wire.answered_at()), (1, 40));
    wire.feed(&message(b'Q', b"select 1\0"), 60);
    assert_eq!((wire.told.requests, wire.begun_at()), (2, 60));

    let (get, mut wire) = (command(&[b"GET", b"a"]), Wire::begun());
    wire.feed(&get[..7], 5);
    wire.feed(&get[7..], 6);
    assert_eq!((wire.told.requests, wire.begun_at()), (1, 5));
    wire.feed_out(b"$1", 8);
    wire.feed_out(b"\r\nx\r\n", 9);
    assert_eq!((wire.told.answers, wire.answered_at()), (1, 8));
}

fn record(kind: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![kind, 3, 3];
    bytes.extend((len as u16).to_be_bytes());
    bytes.extend(vec![1; len]);
    bytes
}

#[test]
fn tls_records_of_data_are_told_from_the_handshake() {
    let hello = record(22, 300);
    // 1.3: the client's Finished looks like data. 1.2: it does not.
    let tls13 = [hello.clone(), record(20, 1), record(23, 53), record(23, 90)].concat();
    let tls13_plain = [hello.clone(), record(23, 53), record(23, 90)].concat();
    let tls12 = [
        hello,
        record(22, 70),
        record(20, 1),
        record(22, 40),
        record(23, 90),
        record(21, 26),
    ]
    .concat();
    for stream in [tls13, tls13_plain, tls12] {
        every_split(&stream, 8, |cuts| {
            let wire = told(&stream, cuts);
            assert_eq!((wire.protocol, wire.told.records), (rx_flag::TLS, 1));
        });
    }
    // A PostgreSQL client asks for it first.
    let stream = [startup(80_877_103, b""), record(22, 300), record(20, 1)].concat();
    let wire = told(&stream, &[8]);
    assert_eq!((wire.protocol, wire.told), (rx_flag::TLS, Told::default()));
}

#[test]
fn a_connection_older_than_we_are_is_found_where_a_segment_begins_a_request() {
    let sync = [
        message(b'B', b"\0\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat();
    let data = [record(23, 40), record(23, 30)].concat();
    for (before, segment, protocol, said) in [
        (
            &b"rest of a value\r\n"[..],
            command(&[b"GET", b"a"]),
            rx_flag::REDIS,
            requests(1),
        ),
        (
            b"rest of a query\0",
            message(b'Q', b"select 1\0"),
            rx_flag::POSTGRESQL,
            requests(1),
        ),
        (b"\0\0\0", sync, rx_flag::POSTGRESQL, requests(1)),
    ] {
        let mut wire = Wire::unknown();
        wire.feed(before, 1);
        assert_eq!(wire.protocol, 0);
        wire.feed(&segment, 2);
        assert_eq!((wire.protocol, wire.told), (protocol, said));
    }
    let mut wire = Wire::unknown();
    wire.feed(&data, 1);
    assert_eq!((wire.protocol, wire.told.records), (rx_flag::TLS, 2));
}

#[test]
fn lost_bytes_are_passed_over_in_a_payload_and_otherwise_told() {
    let set = command(&[b"SET", b"a", &[b'x'; 1000]]);
    let mut wire = Wire::begun();
    wire.feed(&set[..100], 1);
    wire.lose(500);
    wire.feed(&set[600..], 2);
    wire.feed(&set, 3);
    assert_eq!(wire.told, requests(2));
    wire.lose(3);
    wire.feed(b"nd\r\n", 4);
    wire.feed(&command(&[b"GET", b"a"]), 5);
    assert_eq!((wire.told.requests, wire.told.lost), (3, 1));
}

#[test]
fn other_protocols_are_not_taken_for_ours() {
    for other in [
        "GET / HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        "set key 0 0 1\r\n",
        "EHLO mail\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "CONNECT {}\r\nPING\r\n",
        "* OK IMAP4rev1\r\n",
        "QUIT\r\n",
        "\0\0\0\x12\x04\0\0\0\0\0\0\0\x01",
        "\x16\x03\x01",
    ] {
        for mut wire in [Wire::begun(), Wire::unknown()] {
            wire.feed(other.as_bytes(), 1);
            assert_eq!(wire.protocol, 0, "{other:?}");
        }
    }
}
