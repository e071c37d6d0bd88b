//! The HTTP/1 machine against any bytes, and against httparse for what httparse takes. What real servers refuse
//! (two lengths, a coding that is not the last) is no ground for comparison: there the count ends.

use arbitrary::{Arbitrary, Unstructured};
use ebpf_scaler_common::http1::flag;

use crate::chunks::{Chunked, chunked};
use crate::machine::{Seen, told};

/// The machine gives up headers beyond 16 KiB; windows that overlap count a little twice.
const HEAD_BYTES: usize = 12 * 1024;
/// Methods longer than this are none, says the machine.
const METHOD_BYTES: usize = 20;
const CUTS: usize = 8;

/// Takes places to cut from the end of the input, so that the stream before them stays readable.
fn split(data: &[u8]) -> (&[u8], Vec<usize>) {
    let Some((count, rest)) = data.split_last() else {
        return (data, Vec::new());
    };
    let count = usize::from(*count) % (CUTS + 1);
    let Some(at) = rest.len().checked_sub(count * 2) else {
        return (rest, Vec::new());
    };
    let (stream, cuts) = rest.split_at(at);
    let cuts = cuts
        .chunks(2)
        .map(|c| usize::from(c[0]) | usize::from(c[1]) << 8);
    (stream, cuts.collect())
}

/// Any bytes as requests: no panic, bounded work, and what httparse reads of them is found where it says.
pub fn requests(data: &[u8]) {
    let (stream, cuts) = split(data);
    compare(stream, &cuts);
}

/// Any bytes as responses: no panic, bounded work.
pub fn responses(data: &[u8]) {
    let (stream, cuts) = split(data);
    let heads: Vec<bool> = cuts.iter().map(|cut| cut & 1 == 1).collect();
    told::<true>(stream, &cuts, &heads);
    told::<true>(stream, &[], &heads);
}

/// Well-formed requests made from the input, so that each is deep in the machine: all are counted, at any cuts.
pub fn conversation(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(messages) = Vec::<Message>::arbitrary(&mut input) else {
        return;
    };
    let cuts = Vec::<u16>::arbitrary(&mut input).unwrap_or_default();
    let cuts: Vec<usize> = cuts.into_iter().take(64).map(usize::from).collect();
    let mut stream = Vec::new();
    let mut expected = Vec::new();
    for message in messages.iter().take(32) {
        message.write(&mut stream);
        expected.push(Seen::Request(message.kinds()));
    }
    // The machine is where the next message begins.
    stream.extend_from_slice(b"HEAD /end HTTP/1.1\r\n\r\n");
    expected.push(Seen::Request(flag::HEAD));
    for cuts in [&cuts[..], &[]] {
        assert_eq!(
            told::<false>(&stream, cuts, &[]),
            expected,
            "{:?} cut at {cuts:?}",
            String::from_utf8_lossy(&stream)
        );
    }
    compare(&stream, &cuts);
}

fn compare(stream: &[u8], cuts: &[usize]) {
    let (expected, complete) = reference(stream);
    for cuts in [cuts, &[]] {
        let found = told::<false>(stream, cuts, &[]);
        let same = found.len() >= expected.len() && found[..expected.len()] == expected[..];
        assert!(
            same && (!complete || found.len() == expected.len()),
            "httparse {expected:?} (all: {complete}), the machine {found:?} of {:?} cut at {cuts:?}",
            String::from_utf8_lossy(stream)
        );
    }
}

/// The requests in the stream, and whether that is all there is in it.
fn reference(mut stream: &[u8]) -> (Vec<Seen>, bool) {
    let mut seen = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let head = match request.parse(stream) {
            Ok(httparse::Status::Complete(length)) => length,
            // A part of a message is fine until the machine sees that it is none; what comes is not known.
            Ok(httparse::Status::Partial) => return (seen, stream.is_empty()),
            Err(_) => return (seen, false),
        };
        let Some((kinds, body)) = head_of(&request, head) else {
            return (seen, false);
        };
        seen.push(Seen::Request(kinds));
        if kinds & flag::CONNECT != 0 {
            return (seen, false);
        }
        let rest = &stream[head..];
        let length = match body {
            Body::Length(length) if length <= rest.len() => length,
            Body::Length(_) => return (seen, true),
            Body::Chunked => match chunked(rest) {
                Chunked::Complete(length) => length,
                Chunked::Partial => return (seen, true),
                Chunked::Unclear => return (seen, false),
            },
        };
        stream = &rest[length..];
    }
}

enum Body {
    Length(usize),
    Chunked,
}

/// What a head says; None for what servers refuse or the machine is known not to take.
fn head_of(request: &httparse::Request<'_, '_>, length: usize) -> Option<(u32, Body)> {
    let method = request.method?;
    let allowed = |b: u8| b.is_ascii_uppercase() || b == b'-' || b == b'_';
    if length > HEAD_BYTES
        || method.len() > METHOD_BYTES
        || !method.bytes().all(allowed)
        || method == "PRI"
    {
        return None;
    }
    let values = |name: &str| {
        let of = request
            .headers
            .iter()
            .filter(|h| h.name.eq_ignore_ascii_case(name));
        of.map(|h| h.value).collect::<Vec<_>>()
    };
    let mut kinds = match method {
        "HEAD" => flag::HEAD,
        "CONNECT" => flag::CONNECT,
        _ => 0,
    };
    match values("user-agent")[..] {
        [] => {}
        [agent] if agent.starts_with(b"kube-probe/") => kinds |= flag::PROBE,
        [_] => {}
        _ => return None,
    }
    let body = match (
        &values("content-length")[..],
        &values("transfer-encoding")[..],
    ) {
        ([], []) => Body::Length(0),
        ([digits], []) => {
            let text = std::str::from_utf8(digits).ok()?;
            let all = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            // As far as the machine counts.
            let number = text.parse::<u64>().ok().filter(|n| all && *n < 1 << 56)?;
            Body::Length(usize::try_from(number).ok()?)
        }
        ([], [codings]) => {
            let text = std::str::from_utf8(codings).ok()?;
            let token = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric());
            let mut codings = text
                .split(',')
                .map(|coding| coding.trim_matches([' ', '\t']));
            if !codings.clone().all(token)
                || !codings.next_back()?.eq_ignore_ascii_case("chunked")
                || codings.any(|coding| coding.eq_ignore_ascii_case("chunked"))
            {
                return None;
            }
            Body::Chunked
        }
        _ => return None,
    };
    Some((kinds, body))
}

/// A request that any server takes.
#[derive(Arbitrary, Debug)]
struct Message {
    method: Method,
    headers: Vec<Header>,
    body: Content,
    probe: bool,
    bare_lf: bool,
}

#[derive(Arbitrary, Debug)]
enum Method {
    Get,
    Head,
    Post,
    Options,
    Other(u8),
}

/// A line that means nothing to the framing, but begins as one that does.
#[derive(Arbitrary, Debug)]
struct Header {
    name: u8,
    more: u8,
    value: Vec<u8>,
    blanks: u8,
}

#[derive(Arbitrary, Debug)]
enum Content {
    None,
    Length {
        body: Vec<u8>,
        spelling: u8,
    },
    Chunked {
        chunks: Vec<Vec<u8>>,
        spelling: u8,
        extension: bool,
        trailer: bool,
    },
}

impl Message {
    fn kinds(&self) -> u32 {
        let head = matches!(self.method, Method::Head);
        (if head { flag::HEAD } else { 0 }) | if self.probe { flag::PROBE } else { 0 }
    }

    fn write(&self, to: &mut Vec<u8>) {
        let end = if self.bare_lf { "\n" } else { "\r\n" };
        let method = match self.method {
            Method::Get => "GET".to_owned(),
            Method::Head => "HEAD".to_owned(),
            Method::Post => "POST".to_owned(),
            Method::Options => "OPTIONS".to_owned(),
            Method::Other(n) => "X".repeat(usize::from(n) % METHOD_BYTES + 1),
        };
        to.extend_from_slice(format!("{method} /path?q HTTP/1.1{end}").as_bytes());
        for (n, header) in self.headers.iter().take(12).enumerate() {
            header.write(to, end);
            if n == 0 && self.probe {
                to.extend_from_slice(format!("User-Agent: kube-probe/1.34{end}").as_bytes());
            }
        }
        if self.headers.is_empty() && self.probe {
            to.extend_from_slice(format!("user-agent:kube-probe/{end}").as_bytes());
        }
        self.body.write(to, end);
    }
}

impl Header {
    const NAMES: [&str; 10] = [
        "Host",
        "Content-Type",
        "Content-Lengths",
        "Content-Lengt",
        "Transfer-Encodin",
        "Transfer-Encodings",
        "User-Agents",
        "User-Agen",
        "X",
        "Cookie",
    ];

    fn write(&self, to: &mut Vec<u8>, end: &str) {
        let name = Self::NAMES[usize::from(self.name) % Self::NAMES.len()];
        let more = "a".repeat(usize::from(self.more) % 40);
        let blanks = " ".repeat(usize::from(self.blanks) % 4);
        to.extend_from_slice(format!("{name}-{more}:{blanks}").as_bytes());
        to.extend(self.value.iter().take(600).map(|b| b' ' + b % 95));
        to.extend_from_slice(end.as_bytes());
    }
}

impl Content {
    fn write(&self, to: &mut Vec<u8>, end: &str) {
        let pick = |of: &[&str], n: u8| of[usize::from(n) % of.len()].to_owned();
        match self {
            Self::None => to.extend_from_slice(end.as_bytes()),
            Self::Length { body, spelling } => {
                let name = pick(
                    &["Content-Length:", "content-length: ", "CONTENT-LENGTH:\t00"],
                    *spelling,
                );
                to.extend_from_slice(format!("{name}{}{end}{end}", body.len()).as_bytes());
                to.extend_from_slice(body);
            }
            Self::Chunked {
                chunks,
                spelling,
                extension,
                trailer,
            } => {
                let lines = [
                    "Transfer-Encoding: chunked",
                    "transfer-encoding:chunked",
                    "TRANSFER-ENCODING: gzip,\tCHUNKED",
                    "Transfer-Encoding:  gzip , chunked  ",
                    "Transfer-encoding:\tChunked",
                ];
                to.extend_from_slice(format!("{}{end}{end}", pick(&lines, *spelling)).as_bytes());
                for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                    let extension = if *extension { ";name=\"value\"" } else { "" };
                    to.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
                    to.extend_from_slice(chunk);
                    to.extend_from_slice(b"\r\n");
                }
                let trailer = if *trailer {
                    "Checksum: Content-Length: 7\r\n"
                } else {
                    ""
                };
                to.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
            }
        }
    }
}
