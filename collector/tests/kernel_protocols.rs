//! Conversations in Redis's and PostgreSQL's protocols, segment by segment: cut anywhere, older than the programs, losing
//! segments, and what only looks like them. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::{Options, Probes};
use kernel::http::{Pair, one_pod};
use kernel::raw::silence_resets;
use kernel::wire::Wire;
use kernel::{CLIENT, EXCLUDED, Pod, SERVER, World, eventually};

fn command(arguments: &[&str]) -> String {
    let bulks = arguments.iter().map(|a| format!("${}\r\n{a}\r\n", a.len()));
    format!("*{}\r\n{}", arguments.len(), bulks.collect::<String>())
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn session() -> Vec<u8> {
    let parameters = b"user\0bench\0database\0bench\0\0";
    let mut bytes = (parameters.len() as u32 + 8).to_be_bytes().to_vec();
    bytes.extend((3u32 << 16).to_be_bytes());
    bytes.extend(parameters);
    bytes
}

fn query() -> Vec<u8> {
    message(b'Q', b"select 1\0")
}

fn sync() -> Vec<u8> {
    let parts = [
        message(b'P', b"\0select 1\0\0\0"),
        message(b'B', b"\0\0\0\0\0\0\0\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ];
    parts.concat()
}

fn ready(kind: u8) -> Vec<u8> {
    [message(kind, b"\0\0"), message(b'Z', b"I")].concat()
}

/// Requests, answers, errors, in flight.
fn sums(world: &World, pod: &Pod) -> (u64, u64, u64, u64) {
    let c = world.counters(pod);
    (
        c.requests,
        c.responses_2xx,
        c.responses_5xx,
        c.requests_in_flight,
    )
}

/// The programs as a new agent loads them, which has seen nothing of what is there.
fn reload(world: &mut World, pod: &mut Pod) {
    let options = Options {
        cgroup: world.root.clone(),
        excluded_ports: vec![EXCLUDED],
        max_pods: 16,
        tls: false,
    };
    world.probes = Probes::load(&options).unwrap();
    pod.slot = world.probes.allocate().unwrap();
    world.probes.assign(pod.id, pod.slot).unwrap();
}

/// Segment by segment, each acknowledged before the next.
fn in_pieces(pair: &mut Pair, bytes: &[u8], size: usize) {
    for piece in bytes.chunks(size) {
        pair.ask(piece);
    }
}

#[test]
fn redis_in_pieces_in_batches_and_in_lines() {
    let (world, pod, listener) = one_pod(6379);
    let value = "x".repeat(5000);
    let batch = [
        command(&["SET", "key", &value]),
        "PING\r\n".into(),
        command(&["GET", "key"]),
    ]
    .concat();
    let replies = format!("+OK\r\n-ERR no\r\n$5000\r\n{value}\r\n");
    for size in [1, 7, 1400, 60_000] {
        let mut pair = Pair::new(&listener);
        in_pieces(&mut pair, batch.as_bytes(), size);
        for piece in replies.as_bytes().chunks(size) {
            pair.answer(piece);
        }
        pair.turn(command(&["GET", "nothing"]), "$-1\r\n");
    }
    assert_eq!(sums(&world, &pod), (16, 12, 4, 0), "{}", world.troubles());
    let c = world.counters(&pod);
    assert_eq!((c.requests_redis, c.requests_http2), (16, 0));
    assert_eq!(world.statistic("redis_connections"), 4);
    let mut pair = Pair::new(&listener);
    pair.turn("PING\r\n", "+PONG\r\n");
    pair.turn("PING\r\n", "+PONG\r\n");
    assert_eq!(sums(&world, &pod), (18, 14, 4, 0), "{}", world.troubles());
    // What is pushed answers nothing, nor does a connection's end.
    pair.answer(">2\r\n+invalidate\r\n*0\r\n");
    pair.ask(command(&["BLPOP", "list", "0"]));
    assert_eq!(sums(&world, &pod).3, 1);
    drop(pair);
    let gone = || world.counters(&pod).requests_aborted == 1;
    assert!(eventually(Duration::from_secs(5), gone));
    assert_eq!(sums(&world, &pod), (19, 14, 4, 0), "{}", world.troubles());
    assert_eq!(world.statistic("responses_unmatched"), 0);
}

#[test]
fn postgresql_in_pieces_with_errors_and_data() {
    let (world, pod, listener) = one_pod(5432);
    for size in [1, 7, 60_000] {
        let mut pair = Pair::new(&listener);
        pair.turn([0, 0, 0, 8, 4, 210, 22, 47], "N");
        pair.ask(session());
        pair.answer([message(b'R', &[0; 4]), ready(b'K')].concat());
        in_pieces(&mut pair, &query(), size);
        for piece in ready(b'T').chunks(size) {
            pair.answer(piece);
        }
        in_pieces(&mut pair, &sync(), size);
        pair.answer(ready(b'1'));
        pair.turn(query(), ready(b'E'));
        pair.turn(
            message(b'Q', b"copy t from stdin\0"),
            message(b'G', &[0; 3]),
        );
        let data = [message(b'd', &[b'1'; 40_000]), message(b'c', b"")].concat();
        pair.ask(&data);
        pair.answer(ready(b'C'));
        pair.turn(sync(), ready(b'2'));
    }
    assert_eq!(sums(&world, &pod), (15, 12, 3, 0), "{}", world.troubles());
    assert_eq!(world.counters(&pod).requests_postgresql, 15);
    assert_eq!(world.read(&pod).request_latency.iter().sum::<u64>(), 15);
    assert_eq!(world.statistic("postgresql_connections"), 3);
}

#[test]
fn connections_older_than_the_programs_are_found_by_requests_that_are_answered() {
    let (mut world, mut pod, listener) = one_pod(6379);
    let mut redis = Pair::new(&listener);
    redis.turn(command(&["GET", "a"]), "$1\r\nx\r\n");
    let mut busy = Pair::new(&listener);
    let set = command(&["SET", "a", &"*1\r\n$4\r\nPING\r\n".repeat(800)]);
    busy.ask(&set[..4000]);
    let mut postgresql = Pair::new(&listener);
    postgresql.turn(session(), ready(b'R'));
    let mut upload = Pair::new(&listener);
    upload.ask("POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n");
    reload(&mut world, &mut pod);
    for _ in 0..5 {
        redis.turn(command(&["GET", "a"]), "$1\r\nx\r\n");
        postgresql.turn(query(), ready(b'T'));
        postgresql.turn(sync(), ready(b'1'));
    }
    assert_eq!(sums(&world, &pod), (15, 15, 0, 0), "{}", world.troubles());
    // In the middle of a value, which looks like commands where segments begin.
    let inside = &set[4000..];
    let cut = inside.find('*').unwrap();
    busy.ask(&inside[..cut]);
    busy.ask(&inside[cut..]);
    busy.answer("+OK\r\n");
    for _ in 0..5 {
        busy.turn(command(&["GET", "a"]), "$1\r\nx\r\n");
    }
    let (requests, answers, errors, in_flight) = sums(&world, &pod);
    assert_eq!((errors, in_flight), (0, 0));
    assert!((20..=21).contains(&requests), "{}", world.troubles());
    assert_eq!(requests, answers);
    // Nobody answers a guess that is wrong.
    for _ in 0..5 {
        upload.ask(command(&["GET", "a"]));
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests, c.requests_in_flight), (requests, 0));
}

/// A segment that comes before its turn is not looked at, however many commands it holds; each has its answer.
#[test]
fn what_is_missed_of_a_batch_shows_in_the_answers() {
    let (world, pod, listener) = one_pod(6379);
    silence_resets(&world);
    let mut redis = Wire::new(&listener, 2000);
    redis.ask("PING\r\n", &[], &[0]);
    redis.answer("+PONG\r\n");
    let set = command(&["SET", "key", "0123456789"]);
    let batch = set.repeat(20);
    // In a command, and where one begins.
    let cuts = [set.len() * 5 + 7, set.len() * 10, set.len() * 15 + 11];
    let orders = [[0, 2, 1, 3], [1, 0, 2, 3], [0, 1, 3, 2], [3, 2, 1, 0]];
    for order in orders.into_iter().cycle().take(12) {
        redis.ask(&batch, &cuts, &order);
        // Some answers come while the batch is on its way.
        redis.answer(&"+OK\r\n".repeat(20));
        redis.ask("PING\r\n", &[], &[0]);
        redis.answer("+PONG\r\n");
    }
    assert_eq!(sums(&world, &pod), (253, 253, 0, 0), "{}", world.troubles());
    assert_eq!(world.counters(&pod).requests_redis, 253);
    assert!(
        world.statistic("requests_inferred") >= 50,
        "{}",
        world.troubles()
    );
    assert_eq!(world.statistic("responses_unmatched"), 0);
    // What answers nothing is no request, but for as many as could have been in what was missed.
    let mut pushed = Wire::new(&listener, 2001);
    pushed.ask("PING\r\n", &[], &[0]);
    pushed.answer("+PONG\r\n");
    let half = set.len() / 2;
    pushed.ask(&set.repeat(2), &[half, set.len() + half], &[1, 0, 2]);
    pushed.answer(&"+OK\r\n".repeat(200));
    let most = 254 + 2 * set.len() as u64 / 6;
    let counted = sums(&world, &pod).0;
    assert!((256..=most).contains(&counted), "{}", world.troubles());
    assert!(world.statistic("responses_unmatched") + most >= 254 + 200);
}

/// A pod's own commands are not its load, although answers look like commands.
#[test]
fn a_client_of_redis_has_no_requests() {
    let mut world = World::new();
    let mut pod = world.pod("pod");
    world.enter_client();
    let listener = TcpListener::bind((CLIENT, 0)).unwrap();
    let mut ours = pod.connect(listener.local_addr().unwrap());
    let mut theirs = listener.accept().unwrap().0;
    let reply = command(&["a", "b"]);
    let mut turn = |ours: &mut TcpStream| {
        let mut buffer = vec![0; 100];
        ours.write_all(command(&["MGET", "a", "b"]).as_bytes())
            .unwrap();
        assert!(theirs.read(&mut buffer).unwrap() > 0);
        theirs.write_all(reply.as_bytes()).unwrap();
        ours.read_exact(&mut buffer[..reply.len()]).unwrap();
    };
    for _ in 0..5 {
        turn(&mut ours);
    }
    reload(&mut world, &mut pod);
    for _ in 0..5 {
        turn(&mut ours);
    }
    let c = world.counters(&pod);
    assert!(c.receive_packets >= 5, "{c:?}");
    assert_eq!(
        (c.requests, c.requests_in_flight),
        (0, 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn excluded_ports_and_loopback_are_counted_apart() {
    let (world, pod, listener) = one_pod(EXCLUDED);
    let mut pair = Pair::new(&listener);
    pair.turn(command(&["GET", "a"]), "$1\r\nx\r\n");
    let inside = pod.listen(SERVER, 6380);
    let mut client = pod.connect(inside.local_addr().unwrap());
    let mut server = inside.accept().unwrap().0;
    client.write_all(&[session(), query()].concat()).unwrap();
    let mut received = vec![0; session().len() + query().len()];
    server.read_exact(&mut received).unwrap();
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.requests_excluded_port, c.requests_loopback),
        (0, 1, 1),
        "{}",
        world.troubles()
    );
    assert_eq!((c.requests_redis, c.requests_postgresql), (0, 0));
}

/// What begins like one of them and is not: nothing is counted, and HTTP behind it is.
#[test]
fn what_only_looks_like_them_is_none() {
    let (world, pod, listener) = one_pod(80);
    for first in [&b"*"[..], b"*1", b"*1\r\n", b"\0\0\0\x30\0\x03\0\0"] {
        let mut pair = Pair::new(&listener);
        pair.turn(first, "?");
        pair.turn("\x7f\x7f\x7f no such thing \x7f\x7f\x7f".repeat(4), "?");
        for _ in 0..3 {
            pair.turn(kernel::http::GET, kernel::http::OK);
        }
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.requests_redis, c.requests_postgresql),
        (12, 0, 0),
        "{}",
        world.troubles()
    );
}
