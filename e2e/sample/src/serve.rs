//! The sample web server: HTTP/1.1, with a given amount of CPU work per request. On its way out it goes on
//! serving until its clients have moved on, so that scaling down costs no request.

use std::{
    convert::Infallible,
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, time::Instant};

use crate::{terminated, work::burn};

/// A Service goes on sending connections for a moment after its pod was told to end.
const ENDPOINT_REMOVAL: Duration = Duration::from_secs(2);
/// Clients that renew connections by age are gone by then.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Flags of `sample serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Ports to listen at, all with the same routes
    #[arg(
        long,
        env = "SAMPLE_PORT",
        default_value = "8080",
        value_delimiter = ','
    )]
    pub port: Vec<u16>,
    /// CPU time that a request of / burns
    #[arg(long, env = "SAMPLE_WORK_MICROS", default_value_t = 0)]
    pub work_micros: u64,
    /// Size of the response of /
    #[arg(long, env = "SAMPLE_BODY_BYTES", default_value_t = 64)]
    pub body_bytes: usize,
    /// Threads that serve
    #[arg(long, env = "SAMPLE_THREADS", default_value_t = 2)]
    pub threads: usize,
}

/// What the server counts about itself.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests of any path.
    pub requests: AtomicU64,
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Bytes of request bodies.
    pub body_bytes: AtomicU64,
}

/// A server's state, shared by its connections.
#[derive(Debug)]
pub struct Server {
    /// What it counts about itself.
    pub counters: Counters,
    work: Duration,
    body: Bytes,
    draining: AtomicBool,
    open: AtomicU64,
}

impl Server {
    /// A server that burns `work` on each request of / and answers with a body of `body_bytes`.
    pub fn new(work: Duration, body_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            counters: Counters::default(),
            work,
            body: Bytes::from(vec![b'.'; body_bytes]),
            draining: AtomicBool::new(false),
            open: AtomicU64::new(0),
        })
    }

    /// Accepts connections for ever.
    pub async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors, most likely; some will be closed.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            self.counters.connections.fetch_add(1, Ordering::Relaxed);
            self.open.fetch_add(1, Ordering::Relaxed);
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(|request| server.answer(request));
                // The client's going away is not our error.
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                server.open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    /// Serves on until the clients are gone: each response asks its client to close the connection.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let idle = self.open.load(Ordering::Relaxed) == 0;
            if begun.elapsed() > DRAIN_LIMIT || (idle && begun.elapsed() > ENDPOINT_REMOVAL) {
                return;
            }
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let (parts, body) = request.into_parts();
        self.consume(body).await;
        let query = parts.uri.query().unwrap_or_default();
        let path = parts.uri.path();
        let mut response = match path.split('/').nth(1).unwrap_or_default() {
            "" => {
                burn(parameter(query, "work").map_or(self.work, Duration::from_micros));
                Response::new(Full::new(self.body.clone()))
            }
            "healthz" | "sink" => Response::new(Full::from("ok\n")),
            "metrics" => self.metrics(),
            "sleep" => {
                let millis = parameter(query, "ms").unwrap_or(0);
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Response::new(Full::from("slept\n"))
            }
            "status" => {
                let code = path
                    .split('/')
                    .nth(2)
                    .and_then(|code| code.parse::<u16>().ok());
                let code = code.and_then(|code| StatusCode::from_u16(code).ok());
                status(
                    code.filter(|code| code.as_u16() >= 200)
                        .unwrap_or(StatusCode::BAD_REQUEST),
                )
            }
            "bytes" => {
                let n = parameter(query, "n").unwrap_or(0).min(64 << 20);
                Response::new(Full::from(vec![b'.'; usize::try_from(n).unwrap_or(0)]))
            }
            _ => status(StatusCode::NOT_FOUND),
        };
        if self.draining.load(Ordering::Relaxed) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        Ok(response)
    }

    async fn consume(&self, mut body: Incoming) {
        while let Some(Ok(frame)) = body.frame().await {
            if let Some(data) = frame.data_ref() {
                let bytes = data.len() as u64;
                self.counters.body_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let counters = &self.counters;
        let lines = [
            (
                "sample_requests_total",
                "Requests of any path.",
                &counters.requests,
            ),
            (
                "sample_connections_total",
                "Connections accepted.",
                &counters.connections,
            ),
            (
                "sample_request_body_bytes_total",
                "Bytes of request bodies.",
                &counters.body_bytes,
            ),
        ]
        .map(|(name, help, value)| {
            let value = value.load(Ordering::Relaxed);
            format!("# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n")
        });
        let mut response = Response::new(Full::from(lines.concat()));
        let text = HeaderValue::from_static("text/plain; version=0.0.4");
        response.headers_mut().insert(CONTENT_TYPE, text);
        response
    }
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = code;
    response
}

fn parameter(query: &str, name: &str) -> Option<u64> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// Serves until told to stop.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let server = Server::new(Duration::from_micros(args.work_micros), args.body_bytes);
    for port in args.port {
        // Takes IPv4 as well, where the kernel has both.
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind(("0.0.0.0", port))
                .await
                .with_context(|| format!("cannot listen at port {port}"))?,
        };
        tokio::spawn(Arc::clone(&server).accept(listener));
    }
    terminated().await;
    server.drain().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_whole_name() {
        assert_eq!(parameter("n=3&ms=20", "ms"), Some(20));
        assert_eq!(parameter("items=3", "ms"), None);
        assert_eq!(parameter("", "n"), None);
    }
}
