//! What somebody tries who means us harm, at the level of connections and frames. Each test also asks whether others
//! are still answered. docs/security.md lists them.

use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::raw::{self, Frame};
use super::world::*;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/requests_per_second";
/// Nobody who behaves waits longer, on a busy machine without optimisations.
const SOON: Duration = Duration::from_secs(30);

/// Somebody else's query in the meantime.
async fn others_are_answered(world: &World) {
    let began = Instant::now();
    let reply = world.get(&world.proxy("hpa"), PATH).await;
    assert_eq!(reply.status, 404, "understood, and there are no pods");
    assert!(began.elapsed() < SOON, "after {:?}", began.elapsed());
}

async fn with(flags: &[&str]) -> World {
    World::with(|_| {}, flags).await
}

#[tokio::test]
async fn tls_is_1_3_or_nothing() {
    let world = World::new().await;
    for port in [world.running.api, world.running.report] {
        assert!(raw::connect(&world, port, &[&TLS13], "h2").await.is_ok());
        let refused = raw::connect(&world, port, &[&TLS12], "h2").await;
        let Err(error) = refused else {
            panic!("TLS 1.2 is spoken");
        };
        let error = error.to_string();
        assert!(error.contains("ProtocolVersion"), "{error}");
    }
}

#[tokio::test]
async fn ten_thousand_idle_connections_leave_room_for_others_and_go_by_themselves() {
    // A place for 6,000 of one address, and as many for others; both ends are in this process.
    let world = with(&[
        "--handshake-timeout=4s",
        "--header-timeout=4s",
        "--max-connections=9000",
    ])
    .await;
    allow_files(20_000);
    let before = resident();
    let mut idle = Vec::new();
    let began = Instant::now();
    for n in 0..10_000 {
        // Those that are refused are closed at once; our end of them goes with the loop.
        let stream = tokio::net::TcpStream::connect(world.running.api)
            .await
            .unwrap();
        idle.push(stream);
        if n % 1000 == 999 {
            assert!(
                resident() < before + (160 << 20),
                "{} MiB",
                resident() >> 20
            );
        }
        if n % 500 == 499 {
            idle.retain(|stream| !raw::is_closed(stream));
        }
    }
    eventually("those beyond the limit are closed", || async {
        idle.iter().filter(|stream| !raw::is_closed(stream)).count() <= 4_500
    })
    .await;
    // From another address there is room.
    let reply = raw::get_from("127.0.0.2", &world, PATH).await;
    assert_eq!(reply, 404);
    // And some time later everywhere.
    eventually_within(2 * SOON, "all are closed", || async {
        idle.iter().all(raw::is_closed)
    })
    .await;
    assert!(began.elapsed() > Duration::from_secs(4));
    others_are_answered(&world).await;
}

#[tokio::test]
async fn a_client_that_only_shakes_hands_is_sent_away() {
    let world = with(&["--header-timeout=500ms"]).await;
    for protocol in ["h2", "http/1.1"] {
        let mut stream = raw::open(&world, protocol).await;
        let began = Instant::now();
        raw::ended(&mut stream).await;
        assert!(began.elapsed() >= Duration::from_millis(500), "{protocol}");
    }
}

#[tokio::test]
async fn headers_and_bodies_that_drip_hold_up_nobody() {
    let world = with(&["--header-timeout=1s", "--idle-timeout=2s"]).await;
    let mut slow = raw::open(&world, "http/1.1").await;
    let began = Instant::now();
    let head = format!("GET {PATH} HTTP/1.1\r\nhost: localhost\r\n");
    slow.write_all(head.as_bytes()).await.unwrap();
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if slow.write_all(b"x: y\r\n").await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, dripping)
        .await
        .expect("a head that never ends is cut off");
    assert!(began.elapsed() >= Duration::from_secs(1));

    // A body is not waited for: the answer comes, and the connection is not kept.
    let mut slow = raw::open(&world, "http/1.1").await;
    let head = "POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\nx";
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    let read = tokio::time::timeout(SOON, slow.read_exact(&mut answer));
    read.await.expect("an answer").unwrap();
    assert_eq!(answer, b"HTTP/1.1 405");
    raw::ended(&mut slow).await;
    others_are_answered(&world).await;
}

#[tokio::test]
async fn the_port_of_probes_has_the_limits_of_the_others() {
    let flags = [
        "--header-timeout=1s",
        "--idle-timeout=1s",
        "--max-connections=40",
    ];
    let world = with(&flags).await;
    let connect = || async {
        let stream = TcpStream::connect(world.running.admin).await;
        stream.unwrap()
    };
    let probe = || async {
        let mut stream = connect().await;
        let request = b"GET /readyz HTTP/1.1\r\nhost: kubelet\r\nconnection: close\r\n\r\n";
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer));
        let _ = read.await.expect("an answer, or the end");
        answer.starts_with(b"HTTP/1.1 200")
    };
    assert!(probe().await);

    let mut slow = connect().await;
    let began = Instant::now();
    slow.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    raw::ended(&mut slow).await;
    assert!(began.elapsed() >= Duration::from_secs(1));

    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(connect().await);
    }
    eventually("those beyond an address' half are closed", || async {
        idle.iter().filter(|stream| !raw::is_closed(stream)).count() <= 20
    })
    .await;
    eventually_within(SOON, "all are closed, and probes are answered", || async {
        idle.iter().all(raw::is_closed) && probe().await
    })
    .await;
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let world = World::new().await;
    // HTTP/1: too many, too large.
    for bomb in [
        "x: y\r\n".repeat(500),
        format!("x: {}\r\n", "y".repeat(300 * 1024)),
    ] {
        let mut stream = raw::open(&world, "http/1.1").await;
        let head = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{bomb}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 431");
    }
    // HTTP/2: the same, in one field and in many.
    for (fields, size) in [(1, 100 * 1024), (3000, 100)] {
        let identity = (0..fields).fold(Identity::default(), |identity, _| {
            identity.with("x-bomb", &"y".repeat(size))
        });
        let answered = world.request("GET", &identity, "/healthz").await;
        match answered {
            Ok(reply) => assert_eq!(reply.status, 431),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    others_are_answered(&world).await;
}

#[tokio::test]
async fn a_header_block_that_never_ends_ends_the_connection() {
    let world = World::new().await;
    let mut tls = raw::http2(&world).await;
    // HEADERS without END_HEADERS, then CONTINUATION for ever (CVE-2024-27316).
    let block = [0x00, 0x01, b'x', 0x01, b'y'].repeat(100);
    let mut sent = 0;
    tls.send(&Frame::headers(1, false, &block)).await;
    let flood = async {
        while tls.try_send(&Frame::continuation(1, &block)).await {
            sent += block.len();
        }
    };
    let flooded = tokio::time::timeout(2 * SOON, flood).await;
    assert!(flooded.is_ok(), "it took {sent} bytes and goes on");
    assert!(sent < 8 << 20, "{sent}");
    others_are_answered(&world).await;
}

#[tokio::test]
async fn streams_that_are_opened_only_to_be_reset_end_the_connection() {
    let world = World::new().await;
    let mut tls = raw::http2(&world).await;
    let block = raw::request_block(PATH);
    // CVE-2023-44487: no more than some are open at any time, so no limit of streams is met.
    let flood = async {
        for n in 0..200_000u32 {
            let stream = 2 * n + 1;
            let mut frames = Frame::headers(stream, true, &block);
            frames.extend(Frame::reset(stream));
            if !tls.try_send(&frames).await {
                return n;
            }
        }
        panic!("it takes everything");
    };
    let taken = tokio::time::timeout(2 * SOON, flood);
    let taken = taken.await.expect("it is ended soon");
    let goaway = tls.goaway().await;
    assert!(
        goaway.is_none_or(|code| code == raw::ENHANCE_YOUR_CALM),
        "{goaway:?}"
    );
    assert!(taken < 200_000, "{taken}");
    others_are_answered(&world).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_let_go() {
    let world = World::new().await;
    let mut tls = raw::http2_with_window(&world, 0).await;
    let block = raw::request_block("/apis");
    for stream in (1..=401).step_by(2) {
        tls.send(&Frame::headers(stream, true, &block)).await;
    }
    // As many as may be open at once wait for it to take something; nobody else does.
    others_are_answered(&world).await;
}

#[tokio::test]
async fn selectors_that_cost_much_are_refused_or_cheap() {
    let world = World::with(
        |cluster| {
            for n in 0..300 {
                cluster.pod(&format!("web-{n}"), "n1", |_| {});
            }
        },
        &[],
    )
    .await;
    let list: Vec<_> = (0..2500).map(|n| format!("v{n:03}")).collect();
    let deep = |n: usize| vec!["!a"; n].join("%2C");
    for (selector, says) in [
        ("a%2C".repeat(9_000), "bytes, more than 16384"),
        (deep(65), "conditions, more than 64"),
        (
            format!("app+in+({})", list.join("%2C")),
            "no pod to measure",
        ),
        (deep(64), "no agent reports"),
        (format!("a+in+({}", "(".repeat(4_000)), "unable to parse"),
    ] {
        let began = Instant::now();
        let reply = world.metric("requests_per_second", &selector).await;
        let message = reply.body["message"].as_str().unwrap_or_default();
        assert!(
            message.contains(says),
            "{}",
            &message[..message.len().min(300)]
        );
        assert!(began.elapsed() < SOON, "{says}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_flood_of_tokens_reaches_kubernetes_by_a_trickle() {
    let world = World::new().await;
    world.cluster.hold_token_reviews(true);
    let mut flood = guesses(&world, "a", 200).await;
    eventually_within(SOON, "reviews are on their way", || async {
        world.cluster.token_reviews_at_once() > 0
    })
    .await;
    // Who is known by its certificate does not queue behind them.
    others_are_answered(&world).await;
    world.cluster.hold_token_reviews(false);
    others_are_answered(&world).await;
    let most = world.cluster.token_reviews_at_once();
    assert!((1..=64).contains(&most), "{most} at once");
    flood.send(&[]).await;
}

#[tokio::test]
async fn more_requests_at_once_than_can_be_answered_get_a_429() {
    let world = World::new().await;
    world.cluster.hold_token_reviews(true);
    let (mut stuck, began) = (Vec::new(), Instant::now());
    // They give up after 10 s each, so on a slow machine one round may not do.
    loop {
        for half in ["a", "b"] {
            let prefix = format!("{half}{}", stuck.len());
            stuck.push(guesses(&world, &prefix, 230).await);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let reply = world.get(&Identity::default(), "/healthz").await;
        if reply.status == 429 {
            assert_eq!(reply.headers["retry-after"], "1");
            assert_eq!(reply.body["reason"], "TooManyRequests");
            break;
        }
        assert!(began.elapsed() < 2 * SOON, "the limit is never met");
    }
    world.cluster.hold_token_reviews(false);
    drop(stuck);
    eventually_within(SOON, "and over", || async {
        world.get(&Identity::default(), "/healthz").await.status == 200
    })
    .await;
}

/// Requests that each bring a token that nobody has seen before, all on their way.
async fn guesses(world: &World, prefix: &str, number: u32) -> raw::Tls {
    let mut tls = raw::http2(world).await;
    let mut frames = Vec::new();
    for n in 0..number {
        let token = format!("Bearer {prefix}-{n}");
        let block = raw::request_block_with("/apis", &[("authorization", &token)]);
        frames.extend(Frame::headers(2 * n + 1, true, &block));
    }
    tls.send(&frames).await;
    tls
}

#[tokio::test]
async fn bytes_that_are_no_protobuf_end_their_stream_and_nothing_else() {
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &[]).await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    world.cluster.agent_token("other", "n2");
    for body in [
        // A field of ten million bytes that does not come; a wrong wire type; a length that lies; compression
        // that was not agreed on.
        &b"\x00\x00\x00\x00\x06\x2a\x80\xad\xe2\x04\x00"[..],
        b"\x00\x00\x00\x00\x02\x2f\x2f",
        b"\x00\xff\xff\xff\xff\x01",
        b"\x01\x00\x00\x00\x01\x00",
    ] {
        let status = raw::report(&world, "other", body).await;
        assert!(
            status.as_ref().is_some_and(|s| s != "0"),
            "{body:?}: {status:?}"
        );
    }
    agent.report(&[("web-1", 400)]).await;
    eventually("the other agent", || async {
        world.metric("requests_per_second", "").await.status == 200
    })
    .await;
}

/// Bytes of this process in memory: both ends of everything.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Both ends of the connections are in this process, and some machines allow it a thousand.
fn allow_files(number: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is ours and of the right type.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(read, 0);
    assert!(
        limit.rlim_max >= number,
        "this test needs {number} open files"
    );
    limit.rlim_cur = limit.rlim_cur.max(number);
    // SAFETY: as above.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(set, 0);
}
