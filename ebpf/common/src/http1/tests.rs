//! The machine against streams whose answers are known, cut in every way, and against httparse.

use super::*;

mod properties;

/// What a stream told: requests with their flags, or statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Request(u32),
    Status(u32),
    Bad(u32),
}

const KINDS: u32 = flag::HEAD | flag::CONNECT | flag::PROBE;

/// Runs packets through one direction as the kernel does. `heads` says which answers are to HEAD.
struct Runner {
    machine: Machine,
    seen: Vec<Seen>,
    heads: Vec<bool>,
    /// The most steps any byte took, to hold the bound.
    steps: usize,
}

impl Runner {
    fn new() -> Runner {
        let machine = Machine {
            phase: phase::START,
            ..Machine::default()
        };
        Runner {
            machine,
            seen: Vec::new(),
            heads: Vec::new(),
            steps: 0,
        }
    }

    fn feed<const RESPONSE: bool>(&mut self, packet: &[u8]) {
        let mut window = Window::new(7, 0, packet.len() as u32);
        // Stale bytes must not matter.
        window.bytes.fill(b'\n');
        let (m, w) = (&raw mut self.machine, &raw mut window);
        for _ in 0..packet.len() * 4 + 16 {
            // SAFETY: both are ours.
            let next = unsafe { prepare(m, w) };
            match next {
                Next::Stop => return,
                Next::Again => continue,
                Next::Oversized => {
                    self.seen.push(Seen::Bad(event::OVERSIZED));
                    return;
                }
                Next::Load(n) => {
                    let base = window.base as usize;
                    window.bytes[..n as usize].copy_from_slice(&packet[base..base + n as usize]);
                }
                Next::Step => {}
            }
            for _ in 0..24 {
                self.steps += 1;
                // SAFETY: both are ours.
                let event = unsafe { step::<RESPONSE>(&raw mut self.machine, &raw mut window) };
                match event {
                    event::NONE => continue,
                    event::LOAD => {}
                    event::REQUEST => self.seen.push(Seen::Request(self.machine.flags & KINDS)),
                    event::STATUS => {
                        let status = self.machine.status;
                        self.seen.push(Seen::Status(status));
                        if status >= 200 && !self.heads.is_empty() && self.heads.remove(0) {
                            self.machine.flags |= flag::HEAD;
                        }
                    }
                    bad => self.seen.push(Seen::Bad(bad)),
                }
                break;
            }
        }
        panic!("more work than the bound");
    }
}

fn requests(stream: &[u8], cuts: &[usize]) -> Vec<Seen> {
    let mut runner = Runner::new();
    for packet in cut(stream, cuts) {
        runner.feed::<false>(packet);
    }
    runner.seen
}

fn responses(stream: &[u8], cuts: &[usize], heads: &[bool]) -> Vec<Seen> {
    let mut runner = Runner::new();
    runner.heads = heads.to_vec();
    for packet in cut(stream, cuts) {
        runner.feed::<true>(packet);
    }
    runner.seen
}

fn cut<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (stream.len() + 1)).collect();
    cuts.extend([0, stream.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|w| &stream[w[0]..w[1]]).collect()
}

fn every_split(stream: &[u8], check: impl Fn(&[usize])) {
    check(&[]);
    for at in 0..stream.len() {
        check(&[at]);
    }
    check(&(0..stream.len()).collect::<Vec<_>>());
}

const BODY: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST /a HTTP/1.1\r\n\r\n";

fn mixed_requests() -> (Vec<u8>, Vec<Seen>) {
    let chunk = format!("{:x};ext=\"a\"\r\n{BODY}\r\n", BODY.len());
    let long = "x".repeat(700);
    let messages = [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_string(), 0),
        (
            "\r\nGET http://a.b/c?d HTTP/1.1\r\nuser-agent: kube-probe/1.34\r\n\r\n".into(),
            flag::PROBE,
        ),
        (
            "GET /x HTTP/1.1\r\nUser-Agent:kube-probe/1\r\nAccept: */*\r\n\r\n".into(),
            flag::PROBE,
        ),
        (
            "GET /x HTTP/1.1\r\nUser-Agent: kube-prober\r\nUser-Agentx: kube-probe/1\r\n\r\n"
                .into(),
            0,
        ),
        (
            format!(
                "POST /upload HTTP/1.1\r\nContent-Length: {}\r\n\r\n{BODY}",
                BODY.len()
            ),
            0,
        ),
        (
            format!(
                "PUT /u HTTP/1.0\nCONTENT-LENGTH:{}\nA: b\n\n{BODY}",
                BODY.len()
            ),
            0,
        ),
        (
            format!(
                "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: {long}\r\n\r\n{chunk}{chunk}0\r\nTrailer: t\r\nContent-Length: 5\r\n\r\n"
            ),
            0,
        ),
        (
            format!("POST /c HTTP/1.1\r\ntransfer-encoding: gzip, Chunked\r\n\r\n{chunk}0\r\n\r\n"),
            0,
        ),
        (
            "HEAD / HTTP/1.1\r\nContent-Type: a\r\nContent-Length: 0\r\n\r\n".into(),
            flag::HEAD,
        ),
        ("PROPFIND /dav HTTP/1.1\r\nDepth: 1\r\n\r\n".into(), 0),
        (format!("DELETE /{long} HTTP/1.1\r\n\r\n"), 0),
        ("OPTIONS * HTTP/1.1\r\nHost: last\r\n\r\n".into(), 0),
    ];
    let stream = messages
        .iter()
        .map(|m| m.0.as_str())
        .collect::<String>()
        .into_bytes();
    (
        stream,
        messages.iter().map(|m| Seen::Request(m.1)).collect(),
    )
}

fn mixed_responses() -> (Vec<u8>, Vec<Seen>, Vec<bool>) {
    let body = "HTTP/1.1 500 No\r\n\r\n";
    let n = body.len();
    let messages = [
        (
            format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n{body}"),
            vec![200],
            Some(false),
        ),
        (
            format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n"),
            vec![200],
            Some(true),
        ),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n".into(),
            vec![204],
            Some(false),
        ),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 900\r\n\r\n".into(),
            vec![304],
            Some(false),
        ),
        (
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 201 C\r\nTransfer-Encoding: chunked\r\n\r\n{n:X}\r\n{body}\r\n0\r\n\r\n"
            ),
            vec![100, 103, 201],
            Some(false),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            vec![200],
            Some(true),
        ),
        (
            "HTTP/1.1 404\r\ncontent-length:0\r\n\r\n".into(),
            vec![404],
            Some(false),
        ),
        (
            format!("HTTP/1.0 503 Busy\r\nConnection: close\r\n\r\n{body}{body}"),
            vec![503],
            Some(false),
        ),
    ];
    let stream = messages
        .iter()
        .map(|m| m.0.as_str())
        .collect::<String>()
        .into_bytes();
    let seen = messages
        .iter()
        .flat_map(|m| m.1.iter().map(|s| Seen::Status(*s)))
        .collect();
    (stream, seen, messages.iter().filter_map(|m| m.2).collect())
}

#[test]
fn requests_split_at_every_byte() {
    let (stream, expected) = mixed_requests();
    every_split(&stream, |cuts| {
        assert_eq!(requests(&stream, cuts), expected, "cut at {cuts:?}")
    });
}

#[test]
fn responses_split_at_every_byte() {
    let (stream, expected, heads) = mixed_responses();
    every_split(&stream, |cuts| {
        assert_eq!(
            responses(&stream, cuts, &heads),
            expected,
            "cut at {cuts:?}"
        )
    });
}

#[test]
fn after_connect_and_upgrade_nothing_is_framed() {
    let stream = b"CONNECT a:1 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    assert_eq!(requests(stream, &[]), [Seen::Request(flag::CONNECT)]);
    let stream =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(responses(stream, &[], &[]), [Seen::Status(101)]);
}

#[test]
fn other_protocols_are_told_apart() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert_eq!(requests(preface, &[]), [Seen::Bad(event::HTTP2)]);
    assert_eq!(
        requests(b"*1\r\n$4\r\nPING\r\n", &[]),
        [Seen::Bad(event::MALFORMED)]
    );
    assert_eq!(
        requests(b"GET key of an inline Redis command\r\n\r\n", &[]),
        [Seen::Bad(event::MALFORMED)]
    );
    assert_eq!(requests(b"GET k\r\n", &[]), []);
    assert_eq!(
        responses(b"SSH-2.0-OpenSSH_9.9 and so on, longer\r\n", &[], &[]),
        [Seen::Bad(event::MALFORMED)]
    );
}

#[test]
fn endless_headers_are_given_up() {
    let stream = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(40_000)).into_bytes();
    assert_eq!(requests(&stream, &[]), [Seen::Bad(event::OVERSIZED)]);
    let fits = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(15_000)).into_bytes();
    assert_eq!(requests(&fits, &[]), [Seen::Request(0)]);
}

#[test]
fn thirty_two_pipelined_requests_fit_a_packet() {
    let stream = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(32);
    assert_eq!(requests(&stream, &[]).len(), 32);
}

#[test]
fn a_gap_is_a_skip_inside_a_body_and_a_loss_elsewhere() {
    let mut runner = Runner::new();
    runner.feed::<false>(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n1234567890");
    // SAFETY: the machine is ours.
    assert!(unsafe { skip_gap(&raw mut runner.machine, 60) });
    runner.feed::<false>(&[b'x'; 30]);
    runner.feed::<false>(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(runner.seen.len(), 2);
    runner.feed::<false>(b"GET /");
    // SAFETY: the machine is ours.
    assert!(!unsafe { skip_gap(&raw mut runner.machine, 1) });
    assert_eq!(runner.machine.phase, phase::SEARCH);
}

#[test]
fn methods_that_begin_a_segment() {
    for method in [
        "GET ", "PUT ", "POST ", "HEAD ", "PATCH ", "DELETE ", "OPTIONS ", "CONNECT ", "TRACE ",
    ] {
        let text = format!("{method}/ HTTP/1.1");
        assert!(
            begins_request(u64::from_le_bytes(text.as_bytes()[..8].try_into().unwrap())),
            "{method}"
        );
    }
    for other in ["GETx / H", "get / HT", "HTTP/1.1", "\x16\x03\x01\0\0\0\0\0"] {
        assert!(
            !begins_request(u64::from_le_bytes(
                other.as_bytes()[..8].try_into().unwrap()
            )),
            "{other}"
        );
    }
}
