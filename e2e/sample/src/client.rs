//! One HTTP/1.1 connection that knows exactly what it has written. It never retries and never pipelines; it
//! reads responses that carry a Content-Length, and takes any other as an error.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context, bail};
use hickory_resolver::TokioResolver;
use hyper::Uri;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Larger response heads are an error.
const HEAD_LIMIT: usize = 16 * 1024;

/// Where requests go and what they look like on the wire.
#[derive(Clone, Debug)]
pub struct Target {
    /// As the user gave it.
    pub url: String,
    /// Resolved once: a Service's address does not change while it lives.
    pub address: SocketAddr,
    /// The whole request, head and body.
    pub request: Vec<u8>,
}

impl Target {
    /// Parses `http://HOST[:PORT]/PATH` and resolves the host. With a body the request is a POST.
    pub async fn resolve(url: &str, body_bytes: usize) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("{url} must begin with http://");
        }
        let host = uri.host().with_context(|| format!("{url} has no host"))?;
        let port = uri.port_u16().unwrap_or(80);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            url: url.to_owned(),
            address: resolve(host, port).await?,
            request: request(host, port, path, body_bytes),
        })
    }
}

fn request(host: &str, port: u16, path: &str, body_bytes: usize) -> Vec<u8> {
    let method = if body_bytes > 0 { "POST" } else { "GET" };
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\nuser-agent: ebpf-scaler-sample\r\naccept: */*\r\n"
    );
    if body_bytes > 0 {
        head.push_str(&format!("content-length: {body_bytes}\r\n"));
    }
    head.push_str("\r\n");
    let mut request = head.into_bytes();
    request.resize(request.len() + body_bytes, b'x');
    request
}

/// Does not use getaddrinfo, which a static binary cannot rely on.
async fn resolve(host: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(SocketAddr::new(address, port));
    }
    if bare == "localhost" {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let resolver = TokioResolver::builder_tokio()
        .context("cannot read /etc/resolv.conf")?
        .build()
        .context("cannot set the resolver up")?;
    let found = resolver
        .lookup_ip(bare)
        .await
        .with_context(|| format!("cannot resolve {bare}"))?;
    let address = found.iter().next();
    let address = address.with_context(|| format!("{bare} has no address"))?;
    Ok(SocketAddr::new(address, port))
}

/// How far a request came.
#[derive(Debug)]
pub enum Failure {
    /// Not all of it was written.
    Unsent(io::Error),
    /// Written, but no whole response was read.
    NoResponse(io::Error),
}

/// A response that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// Whether the server keeps the connection open.
    pub keep_alive: bool,
}

/// An open connection with no request in flight.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(target: &Target) -> io::Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let buffer = Vec::with_capacity(4096);
        Ok(Self { stream, buffer })
    }

    /// Whether the server has not closed it meanwhile. Asked before each request, so that a request is not
    /// written to a connection that is known to be dead.
    pub fn is_open(&self) -> bool {
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Writes all of a request.
    pub async fn write(&mut self, request: &[u8]) -> Result<(), Failure> {
        self.stream
            .write_all(request)
            .await
            .map_err(Failure::Unsent)
    }

    /// Reads one response to its end, passing over 1xx ones.
    pub async fn read(&mut self) -> Result<Response, Failure> {
        self.response().await.map_err(Failure::NoResponse)
    }

    async fn response(&mut self) -> io::Result<Response> {
        loop {
            let head = loop {
                if let Some(head) = parse(&self.buffer)? {
                    break head;
                }
                if self.buffer.len() > HEAD_LIMIT {
                    return Err(io::Error::other("the response's head is too large"));
                }
                self.fill().await?;
            };
            let end = head.length + head.body;
            while self.buffer.len() < end {
                self.fill().await?;
            }
            self.buffer.drain(..end);
            if head.response.status >= 200 {
                return Ok(head.response);
            }
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

struct Head {
    response: Response,
    /// Bytes of status line and headers.
    length: usize,
    /// Bytes of body.
    body: usize,
}

/// `None` while the head is not complete.
fn parse(buffer: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    let length = match parsed.parse(buffer).map_err(io::Error::other)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = parsed.code.unwrap_or(0);
    let value = |name: &str| {
        let found = parsed
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| str::from_utf8(header.value).ok())
    };
    let body = match value("content-length") {
        Some(text) => text.trim().parse().map_err(io::Error::other)?,
        None if status < 200 || status == 204 || status == 304 => 0,
        None => return Err(io::Error::other("a response without Content-Length")),
    };
    let keep_alive = !value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(Some(Head {
        response: Response { status, keep_alive },
        length,
        body,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_a_body_is_a_post_of_that_length() {
        let request = request("web", 8080, "/sink", 3);
        let text = String::from_utf8(request).unwrap();
        assert!(
            text.starts_with("POST /sink HTTP/1.1\r\nhost: web:8080\r\n"),
            "{text}"
        );
        assert!(text.ends_with("content-length: 3\r\n\r\nxxx"), "{text}");
    }

    #[test]
    fn heads_are_read_whole_or_not_at_all() {
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-le").unwrap().is_none());
        let head = parse(b"HTTP/1.1 503 Busy\r\nContent-Length: 12\r\nConnection: close\r\n\r\nxx");
        let head = head.unwrap().unwrap();
        assert_eq!((head.response.status, head.body), (503, 12));
        assert!(!head.response.keep_alive);
        assert!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert_eq!(parse(b"HTTP/1.1 204 No\r\n\r\n").unwrap().unwrap().body, 0);
    }
}
