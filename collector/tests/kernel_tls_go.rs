//! Requests inside Go's crypto/tls, counted by probes of a server that the installed tool chain builds, against what the
//! server itself has counted. Needs root, the BPF object and Go.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::process::Command;
use std::time::Duration;

use kernel::tls::{Client, Process, Scene, curl, wrk};
use kernel::{SERVER, eventually, go};

const PORT: u16 = 8443;

fn serve(scene: &mut Scene) -> Process {
    let program = go::build(scene, "server", &[]);
    let server = go::start(scene, &program, PORT);
    scene.probe(server.id());
    server
}

fn url(path: &str) -> String {
    format!("https://{SERVER}:{PORT}/{path}")
}

/// How many requests the server was asked, this one too, once it has no other connection.
fn asked() -> u64 {
    let mut count = 0;
    let settled = eventually(Duration::from_secs(20), || {
        let text = curl(&["--http1.1", &url("count")]);
        let (asked, connections) = text.split_once(' ').unwrap();
        count = asked.parse().unwrap();
        connections == "1"
    });
    assert!(settled, "the server keeps connections");
    count
}

#[test]
fn a_go_server_and_we_agree_on_http1() {
    let mut scene = Scene::new();
    let _server = serve(&mut scene);
    assert_eq!(curl(&["--http1.1", &url("[1-20]")]), "hello".repeat(20));
    curl(&["--http1.1", "--header", "Connection: close", &url("")]);
    scene.counts(21);
    curl(&["--http1.1", "--data", &"x".repeat(50_000), &url("up")]);
    curl(&["--http1.1", &url("no")]);
    curl(&["--http1.1", &url("deep")]);
    scene.counts(24);
    let now = scene.world.counters(&scene.pod);
    assert_eq!((now.responses_2xx, now.responses_5xx), (23, 1), "{now:?}");
    for (path, connections, header) in [
        ("", 16, "A: b"),
        ("deep", 4, "A: b"),
        ("", 4, "Connection: close"),
    ] {
        let completed = wrk(connections, 1, header, &url(path));
        let asked = asked();
        scene.counts(asked);
        eprintln!("{path}, {header}: wrk {completed}; the server and we {asked} so far");
    }
    let now = scene.world.counters(&scene.pod);
    let ended = now.responses_2xx + now.responses_5xx + now.requests_aborted;
    assert_eq!(ended, now.requests, "{now:?}; {}", scene.world.troubles());
    // Who leaves off in the middle: at most one request of each connection.
    assert!(now.requests_aborted <= 24, "{now:?}");
    assert_eq!(scene.world.statistic("tls_sessions_adopted"), 0);
}

#[test]
fn a_go_server_and_we_agree_on_http2() {
    let mut scene = Scene::new();
    let _server = serve(&mut scene);
    curl(&["--http2", &url("[1-20]")]);
    scene.counts(20);
    assert_eq!(scene.world.statistic("tls_http2_sessions"), 1);
    let load = Command::new("h2load")
        .args(["-n2000", "-c4", "-m25", &url("")])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&load.stdout).into_owned();
    assert!(told.contains(" 2000 succeeded"), "{told}");
    scene.counts(2020);
    let asked = asked();
    scene.counts(asked);
    let now = scene.world.counters(&scene.pod);
    assert_eq!(
        (now.responses_2xx, now.requests_aborted),
        (asked, 0),
        "{}",
        scene.world.troubles()
    );
}

#[test]
fn programs_without_symbols_are_found_and_their_own_requests_are_not_their_load() {
    let mut scene = Scene::new();
    // As they are mostly built; to be put anywhere in memory; with C's code before Go's.
    let kinds = [
        "-buildmode=exe",
        "-buildmode=pie",
        "-ldflags=-s -w -linkmode=external",
    ];
    let mut expected = 0;
    for kind in kinds {
        let program = go::build(&scene, "stripped", &["-ldflags=-s -w", kind]);
        let server = go::start(&scene, &program, PORT);
        scene.probe(server.id());
        curl(&["--http1.1", &url("[1-5]")]);
        // Each is a second request, to itself.
        for path in ["fetch1", "fetch2"] {
            curl(&["--http1.1", &url(path)]);
            curl(&["--http2", &url(path)]);
        }
        expected += 13;
        scene.counts(expected);
        let now = scene.world.counters(&scene.pod);
        assert_eq!(
            (now.responses_2xx, now.requests_aborted),
            (expected, 0),
            "{kind}: {now:?}"
        );
    }
}

#[test]
fn connections_of_a_go_server_that_are_older_than_the_probes_are_found() {
    let mut scene = Scene::new();
    let program = go::build(&scene, "server", &[]);
    let server = go::start(&scene, &program, PORT);
    let mut client = Client::connect(Command::new("openssl"), PORT);
    assert_eq!(client.ask("/"), 200);
    assert_eq!(scene.requests(), 0);
    scene.probe(server.id());
    // For the first it waits since before the probes; of one that comes at once it may read a byte ahead of the rest.
    let found = (0..100).any(|_| {
        assert_eq!(client.ask("/"), 200);
        std::thread::sleep(Duration::from_millis(20));
        scene.requests() > 0
    });
    assert!(found, "{}", scene.world.troubles());
    for count in 2..=6 {
        assert_eq!(client.ask("/"), 200);
        scene.counts(count);
    }
    assert_eq!(scene.world.statistic("tls_sessions_adopted"), 1);
}
