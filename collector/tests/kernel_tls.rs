//! Requests inside TLS, counted by uprobes of the libraries that real servers run, against what their clients say.
//! Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::process::{Command, Stdio};
use std::time::Duration;

use kernel::tls::{Client, Process, Scene, curl, wrk};
use kernel::{SERVER, eventually};

const PORT: u16 = 443;

/// How many requests nginx itself has read, once it has no connection but the one that asks. Its clients leave off in
/// the middle, and what they have sent it reads after they are gone.
fn read_by_nginx(asked: &mut u64) -> u64 {
    let url = format!("https://{SERVER}:{PORT}/status");
    let mut read = None;
    let settled = eventually(Duration::from_secs(20), || {
        *asked += 1;
        let text = curl(&["--http1.1", &url]);
        // "Active connections: 1", a line of names, and " accepts handled requests".
        let numbers: Vec<u64> = text
            .split(' ')
            .filter_map(|w| w.trim().parse().ok())
            .collect();
        read = numbers.get(3).copied();
        numbers.first() == Some(&1)
    });
    assert!(settled, "nginx keeps connections");
    read.expect("the requests in nginx' status")
}

#[test]
fn wrk_and_nginx_agree_with_us_inside_tls() {
    let mut scene = Scene::new();
    let _server = scene.nginx(PORT);
    let mut read = 0;
    for (path, connections, header) in [
        ("hello", 16, "A: b"),
        ("file", 4, "A: b"),
        ("hello", 4, "Connection: close"),
    ] {
        let url = format!("https://{SERVER}:{PORT}/{path}");
        let completed = wrk(connections, 1, header, &url);
        assert!(completed > 0);
        let (before, mut asked) = (read, 0);
        read = read_by_nginx(&mut asked);
        scene.counts(read);
        let of_wrk = read - before - asked;
        eprintln!("{path}, {header}: wrk {completed}, nginx and we {of_wrk}");
        // wrk leaves off with up to one request on each connection.
        assert!(
            (completed..=completed + u64::from(connections)).contains(&of_wrk),
            "{path}, {header}: wrk {completed}, nginx and we {of_wrk}: {}",
            scene.world.troubles()
        );
    }
    // Who is gone gets no answer that counts, or one that nobody reads.
    let now = scene.world.counters(&scene.pod);
    assert_eq!(now.responses_2xx + now.requests_aborted, read, "{now:?}");
    assert!(now.requests_aborted <= 24, "{now:?}");
    // The records outside are no requests to anybody.
    let now = scene.world.counters(&scene.pod);
    assert_eq!((now.requests_loopback, now.responses_5xx), (0, 0));
    let latencies: u64 = scene.world.read(&scene.pod).request_latency.iter().sum();
    assert_eq!(latencies, now.responses_2xx);
}

#[test]
fn statuses_probes_and_pipelining_are_told_as_outside_tls() {
    let mut scene = Scene::new();
    let _server = scene.nginx(PORT);
    let mut client = Client::connect(Command::new("openssl"), PORT);
    assert_eq!(client.ask("/hello"), 200);
    assert_eq!(client.ask("/no"), 503);
    client.send("GET /hello HTTP/1.1\r\nHost: pod\r\nUser-Agent: kube-probe/1.34\r\n\r\n");
    assert_eq!(client.answer(), 200);
    scene.counts(2);
    client.send(&"GET /hello HTTP/1.1\r\nHost: pod\r\n\r\n".repeat(10));
    for _ in 0..10 {
        assert_eq!(client.answer(), 200);
    }
    scene.counts(12);
    // A request in pieces of its own records.
    for piece in [
        "G",
        "ET /hel",
        "lo HTTP/1.",
        "1\r\nHost: pod\r",
        "\n\r",
        "\n",
    ] {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.answer(), 200);
    scene.counts(13);
    let body = "GET / HTTP/1.1\r\n\r\n".repeat(20);
    let length = body.len();
    client.send(&format!(
        "PUT /hello HTTP/1.1\r\nHost: pod\r\nContent-Length: {length}\r\n\r\n"
    ));
    client.send(&body);
    assert_eq!(client.answer(), 200);
    scene.counts(14);
    let now = scene.world.counters(&scene.pod);
    assert_eq!(
        (now.responses_2xx, now.responses_5xx, now.requests_probe),
        (13, 1, 1),
        "{}",
        scene.world.troubles()
    );
}

#[test]
fn a_container_that_is_counted_apart_takes_its_sessions_along() {
    let mut scene = Scene::new();
    let _server = scene.nginx(PORT);
    let mut client = Client::connect(Command::new("openssl"), PORT);
    assert_eq!(client.ask("/hello"), 200);
    scene.counts(1);
    let (whole, cgroup) = (scene.pod.slot, scene.pod.id);
    let probes = &mut scene.world.probes;
    let part = probes.allocate_part(whole).unwrap();
    probes.assign(cgroup, part).unwrap();
    probes.settle(&[(whole, false), (part, false)]);
    assert_eq!(client.ask("/hello"), 200);
    let counted = eventually(Duration::from_secs(10), || {
        let part = scene.world.probes.read(part).counters;
        (part.requests, part.responses_2xx, part.requests_in_flight) == (1, 1, 0)
    });
    assert!(counted, "{}", scene.world.troubles());
    scene.counts(1);
}

#[test]
fn connections_older_than_the_probes_are_found() {
    let mut scene = Scene::new();
    let config = kernel::tls::nginx_config(&scene.files, PORT);
    let mut command = scene.command("nginx", &["-c", config.to_str().unwrap()]);
    let server = scene.serve_unprobed(command.stderr(Stdio::null()), PORT);
    let mut client = Client::connect(Command::new("openssl"), PORT);
    assert_eq!(client.ask("/hello"), 200);
    assert_eq!(scene.requests(), 0);
    scene.probe(server.id());
    for count in 1..=5 {
        assert_eq!(client.ask("/hello"), 200);
        scene.counts(count);
    }
    assert_eq!(scene.world.statistic("tls_sessions_adopted"), 1);
}

#[test]
fn a_pods_own_requests_are_not_its_load() {
    let mut scene = Scene::new();
    let _server = scene.nginx(PORT);
    // Another pod, of which counting is wanted as well, and whose process runs the same library.
    let asker = scene.world.pod("asker");
    scene.world.probes.count_tls(asker.slot, true);
    let mut client = Client::connect(asker.command("openssl"), PORT);
    for _ in 0..5 {
        assert_eq!(client.ask("/hello"), 200);
    }
    // What it reads looks like requests, and it goes on.
    std::fs::write(
        scene.files.join("requests"),
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50),
    )
    .unwrap();
    for _ in 0..3 {
        assert_eq!(client.ask("/requests"), 200);
    }
    scene.counts(8);
    let asked = scene.world.counters(&asker);
    assert_eq!((asked.requests, asked.requests_in_flight), (0, 0));
    assert_eq!(asked.requests_aborted, 0, "{}", scene.world.troubles());
}

#[test]
fn only_pods_of_which_it_is_wanted_are_counted() {
    let mut scene = Scene::new();
    let _server = scene.nginx(PORT);
    let url = format!("https://{SERVER}:{PORT}/hello");
    let curl = |scene: &Scene| {
        curl(&["--http1.1", &url]);
        // What ends late is counted late.
        let ended = || scene.world.counters(&scene.pod);
        assert!(eventually(Duration::from_secs(10), || {
            let now = ended();
            now.connections_closed == now.connections_opened
        }));
    };
    scene.world.probes.count_tls(scene.pod.slot, false);
    curl(&scene);
    scene.world.probes.count_tls(scene.pod.slot, true);
    curl(&scene);
    scene.counts(1);
    scene.world.probes.count_tls(scene.pod.slot, false);
    curl(&scene);
    scene.world.probes.count_tls_of_all(true);
    curl(&scene);
    scene.counts(2);
}

#[test]
fn what_is_in_flight_ends_with_its_session_and_with_its_process() {
    let mut scene = Scene::new();
    // It never answers.
    let script = "import socket, ssl, time
s = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); s.load_cert_chain('cert.pem', 'key.pem')
l = socket.create_server(('10.77.0.1', 443))
kept = []
while True:
    try:
        c = s.wrap_socket(l.accept()[0], server_side=True)
        said = c.recv(4096)
        if b'/drop' not in said: kept.append(c)
        del c
    except OSError: pass";
    let mut command = scene.command("python3", &["-c", script]);
    let mut server = scene.serve_unprobed(&mut command, PORT);
    // Its library is loaded by then.
    scene.probe(server.id());
    let mut first = Client::connect(Command::new("openssl"), PORT);
    first.send("GET /keep HTTP/1.1\r\nHost: pod\r\n\r\n");
    scene.counts_of(1, 1);
    let mut second = Client::connect(Command::new("openssl"), PORT);
    second.send("GET /drop HTTP/1.1\r\nHost: pod\r\n\r\n");
    scene.counts_of(2, 1);
    assert_eq!(scene.world.counters(&scene.pod).requests_aborted, 1);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    scene.world.probes.clear_tls_sessions();
    scene.counts_of(2, 0);
    assert_eq!(scene.world.counters(&scene.pod).requests_aborted, 2);
    assert_eq!(scene.world.statistic("live_tls_sessions"), 0);
}

#[test]
fn http2_inside_tls_is_walked_as_outside() {
    let mut scene = Scene::new();
    let _server = scene.nginx(PORT);
    let url = format!("https://{SERVER}:{PORT}/hello");
    curl(&["--http2", &url]);
    scene.counts(1);
    assert_eq!(scene.world.statistic("tls_http2_sessions"), 1);
    let load = Command::new("h2load")
        .args(["-n3000", "-c4", "-m25", &url])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&load.stdout).into_owned();
    assert!(told.contains(" 3000 succeeded"), "{told}");
    scene.counts(3001);
    curl(&["--http1.1", &url]);
    scene.counts(3002);
    let now = scene.world.counters(&scene.pod);
    assert_eq!(
        (now.responses_2xx, now.requests_aborted),
        (3002, 0),
        "{}",
        scene.world.troubles()
    );
    let latencies: u64 = scene.world.read(&scene.pod).request_latency.iter().sum();
    assert_eq!(latencies, 3002);
}

#[test]
fn python_and_node_serve_through_the_same_functions() {
    let mut scene = Scene::new();
    let python = "import http.server, ssl
s = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); s.load_cert_chain('cert.pem', 'key.pem')
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '5'); self.end_headers(); self.wfile.write(b'hello')
h = http.server.ThreadingHTTPServer(('10.77.0.1', 8443), H)
h.socket = s.wrap_socket(h.socket, server_side=True); h.serve_forever()";
    let node = "const fs = require('fs');
require('https').createServer({key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem')},
  (q, r) => { r.setHeader('Content-Length', 5); r.end('hello'); }).listen(9443, '10.77.0.1')";
    let mut expected = 0;
    for (program, option, script, port) in
        [("python3", "-c", python, 8443), ("node", "-e", node, 9443)]
    {
        let mut command = scene.command(program, &[option, script]);
        let _server: Process = scene.serve(command.stderr(Stdio::null()), port);
        let url = format!("https://{SERVER}:{port}/[1-20]");
        assert_eq!(curl(&["--http1.1", &url]), "hello".repeat(20));
        let once = format!("https://{SERVER}:{port}/");
        curl(&["--http1.1", "--header", "Connection: close", &once]);
        expected += 21;
        scene.counts(expected);
    }
    let now = scene.world.counters(&scene.pod);
    assert_eq!((now.responses_2xx, now.requests_aborted), (expected, 0));
}
