//! Accepts connections, over TLS or plain, and serves an axum router on them, within limits, until told to stop; then
//! lets what runs come to its end. Knows nothing of what is served. docs/security.md has each limit's reason.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::activity::{Activity, Closing};
use super::identity::Peer;
use super::metrics::{Counted, Metrics};
use super::status::Failure;

/// A peer that does not answer a ping for as long again is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long requests and streams may take to end after the order to stop, or once a connection is to close.
const DRAIN: Duration = Duration::from_secs(10);
/// Fields of a request on HTTP/1; each name and value costs memory of its own.
const MAX_HEADERS: usize = 100;
/// Streams that a client may open and reset before we have looked at them; more is an attack (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;

/// What a port allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; one address may have half of them
    pub connections: usize,
    /// Time for the TLS handshake
    pub handshake: Duration,
    /// Time from there to the first whole request, and on HTTP/1 to each request's whole head
    pub headers: Duration,
    /// Time without a request
    pub idle: Duration,
    /// Bytes of a request's head
    pub head: u32,
    /// HTTP/2 streams at once on one connection
    pub streams: u32,
    /// Bytes of bodies that a client may send on one connection before somebody reads them
    pub window: u32,
    /// Requests that are being answered at once; more get a 429
    pub in_flight: usize,
}

/// Serves `router` on `listener` until `shutdown`, then drains; without `tls` plain HTTP/1.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    router: Router,
    limits: Limits,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let port = Arc::new(Port {
        acceptor: tls.map(|config| TlsAcceptor::from(Arc::new(config))),
        router,
        limits,
        in_flight: Arc::new(Semaphore::new(limits.in_flight)),
        metrics,
        shutdown,
    });
    let admission = Arc::new(Admission::new(limits.connections));
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = port.shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, usually: others will be closed.
                tracing::warn!(%error, "can not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admitted = match Admission::admit(&admission, address.ip()) {
            Ok(admitted) => admitted,
            Err(reason) => {
                port.metrics.deny(reason);
                continue;
            }
        };
        let port = port.clone();
        let counted = Counted::new(&port.metrics.connections);
        tracker.spawn(async move {
            let _held = (admitted, counted);
            if let Err(error) = port.connection(stream).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

/// What the connections of a port share.
struct Port {
    acceptor: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    in_flight: Arc<Semaphore>,
    metrics: Metrics,
    shutdown: CancellationToken,
}

/// Why a connection ended before its time.
type Ended = Box<dyn std::error::Error + Send + Sync>;

impl Port {
    async fn connection(&self, stream: TcpStream) -> Result<(), Ended> {
        stream.set_nodelay(true)?;
        let Some(acceptor) = &self.acceptor else {
            return self.exchange(stream, Peer::default(), false).await;
        };
        let accepted = acceptor.accept(stream);
        let Ok(stream) = tokio::time::timeout(self.limits.handshake, accepted).await else {
            self.metrics.close(Closing::Handshake);
            return Ok(());
        };
        let stream = stream?;
        let session = stream.get_ref().1;
        let shown = session.peer_certificates().unwrap_or_default();
        let peer = Peer(shown.iter().map(|c| c.clone().into_owned()).collect());
        // By what was agreed on: waiting for bytes to tell the protocol by would have no time limit.
        let http2 = session.alpn_protocol() == Some(b"h2");
        self.exchange(stream, peer, http2).await
    }

    async fn exchange<S>(&self, stream: S, peer: Peer, http2: bool) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Activity::new();
        let service = hyper::service::service_fn(|mut request: hyper::Request<Incoming>| {
            let busy = activity.begin();
            request.extensions_mut().insert(peer.clone());
            let permit = self.in_flight.clone().try_acquire_owned();
            let answered = permit
                .is_ok()
                .then(|| self.router.clone().oneshot(request.map(Body::new)));
            async move {
                let response = match answered {
                    Some(answered) => answered.await?,
                    None => Failure::new(429, "too many requests, please try again later")
                        .into_response(),
                };
                drop(permit);
                Ok::<_, std::convert::Infallible>(response.map(|body| busy.until_sent(body)))
            }
        });
        let builder = self.builder(http2);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            closing = activity.over(self.limits.headers, self.limits.idle) => {
                self.metrics.close(closing);
            }
            () = self.shutdown.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::time::timeout(DRAIN, connection)
            .await
            .unwrap_or(Ok(()))
    }

    fn builder(&self, http2: bool) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.headers)
            .max_headers(MAX_HEADERS)
            .max_buf_size(self.limits.head as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_concurrent_streams(self.limits.streams)
            .max_header_list_size(self.limits.head)
            .initial_stream_window_size(self.limits.window)
            .initial_connection_window_size(self.limits.window)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS);
        if http2 {
            builder.http2_only()
        } else {
            builder.http1_only()
        }
    }
}

/// Who may connect: so many in all, and half as many from one address, so that nobody alone keeps out others.
struct Admission {
    limit: usize,
    by_address: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// A place that is given back.
struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            by_address: Mutex::default(),
        }
    }

    fn admit(this: &Arc<Self>, address: IpAddr) -> Result<Admitted, &'static str> {
        let mut held = this
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if held.0 >= this.limit {
            return Err("too_many_connections");
        }
        let mine = held.1.entry(address).or_default();
        if *mine >= this.limit.div_ceil(2) {
            return Err("too_many_connections_of_one_address");
        }
        *mine += 1;
        held.0 += 1;
        Ok(Admitted {
            admission: this.clone(),
            address,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut held = self
            .admission
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.0 -= 1;
        if let Some(mine) = held.1.get_mut(&self.address) {
            *mine -= 1;
            if *mine == 0 {
                held.1.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_half_of_the_places_to_others() {
        let admission = Arc::new(Admission::new(4));
        let [a, b] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let admit = |address| Admission::admit(&admission, address);
        let held = [admit(a).unwrap(), admit(a).unwrap()];
        assert_eq!(admit(a).err(), Some("too_many_connections_of_one_address"));
        let others = [admit(b).unwrap(), admit(b).unwrap()];
        assert_eq!(
            admit(IpAddr::from([10, 0, 0, 3])).err(),
            Some("too_many_connections")
        );
        drop((held, others));
        assert!(admit(a).is_ok());
        assert!(admission.by_address.lock().unwrap().1.is_empty());
    }
}
