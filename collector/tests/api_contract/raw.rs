//! Connections without a client library's good manners: TLS of a chosen version, HTTP/2 frames by the byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use super::pki::Leaf;
use super::world::World;

/// The error code by which an HTTP/2 server says that it is being flooded.
pub const ENHANCE_YOUR_CALM: u32 = 11;
const NAME: &str = "ebpf-scaler-apiserver.ebpf-scaler.svc";

pub fn config(
    roots_pem: &str,
    versions: &[&'static SupportedProtocolVersion],
    protocol: &str,
    certificate: Option<&Leaf>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(roots_pem.as_bytes()) {
        roots.add(ca.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some(leaf) => {
            let certificate = CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
            config
                .with_client_auth_cert(vec![certificate], key)
                .unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(config)
}

pub async fn connect(
    world: &World,
    port: SocketAddr,
    versions: &[&'static SupportedProtocolVersion],
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(port).await?;
    let connector =
        tokio_rustls::TlsConnector::from(config(&world.serving_ca.pem, versions, protocol, None));
    let name = ServerName::try_from(NAME).unwrap();
    connector.connect(name, stream).await
}

/// A connection to the API.
pub async fn open(world: &World, protocol: &str) -> TlsStream<TcpStream> {
    let versions = [&rustls::version::TLS13];
    connect(world, world.running.api, &versions, protocol)
        .await
        .unwrap()
}

/// The status of a query by the front proxy, coming from another address of this host.
pub async fn get_from(address: &str, world: &World, path: &str) -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(address.parse().unwrap(), 0))
        .unwrap();
    let stream = socket.connect(world.running.api).await.unwrap();
    let proxy = world.proxy("hpa");
    let versions = [&rustls::version::TLS13];
    let config = config(
        &world.serving_ca.pem,
        &versions,
        "h2",
        proxy.certificate.as_ref(),
    );
    let mut sender = sender(stream, config).await.unwrap();
    get(&mut sender, &proxy.headers, path).await.unwrap()
}

/// Requests over one connection.
pub type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// HTTP/2 over a connection.
pub async fn sender(stream: TcpStream, config: Arc<ClientConfig>) -> Result<Sender, Error> {
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = connector
        .connect(ServerName::try_from(NAME)?, stream)
        .await?;
    let io = TokioIo::new(stream);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The status of an answer that has come whole.
pub async fn get(
    sender: &mut Sender,
    headers: &[(&'static str, String)],
    path: &str,
) -> Result<u16, Error> {
    let mut request = Request::builder().uri(format!("https://localhost{path}"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(Full::<Bytes>::default())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    Ok(status)
}

/// Whether the other side has closed; reads nothing.
pub fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0];
    match stream.try_read(&mut byte) {
        Ok(0) => true,
        Ok(_) => panic!("nobody speaks before the handshake"),
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// Reads until the other side has closed, at most a minute.
pub async fn ended(stream: &mut (impl AsyncRead + Unpin)) {
    let end = async {
        let mut bytes = [0; 1024];
        while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {}
    };
    tokio::time::timeout(Duration::from_secs(60), end)
        .await
        .expect("the server closes");
}

/// Frames as bytes.
pub struct Frame;

impl Frame {
    fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// HEADERS that end their stream; `whole`: no CONTINUATION follows.
    pub fn headers(stream: u32, whole: bool, block: &[u8]) -> Vec<u8> {
        Self::bytes(1, 0x1 | if whole { 0x4 } else { 0 }, stream, block)
    }

    /// CONTINUATION that is not the last.
    pub fn continuation(stream: u32, block: &[u8]) -> Vec<u8> {
        Self::bytes(9, 0, stream, block)
    }

    /// RST_STREAM, CANCEL.
    pub fn reset(stream: u32) -> Vec<u8> {
        Self::bytes(3, 0, stream, &8u32.to_be_bytes())
    }

    /// SETTINGS with an initial window.
    fn settings(window: u32) -> Vec<u8> {
        let mut payload = 4u16.to_be_bytes().to_vec();
        payload.extend(window.to_be_bytes());
        Self::bytes(4, 0, 0, &payload)
    }
}

/// The header block of a GET.
pub fn request_block(path: &str) -> Vec<u8> {
    request_block_with(path, &[])
}

pub fn request_block_with(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).unwrap();
        assert!(length < 127, "one byte of length");
        let mut bytes = vec![length];
        bytes.extend(text.as_bytes());
        bytes
    };
    // :method GET, :scheme https from the static table; :path and :authority by their names in it.
    let mut block = vec![0x82, 0x87, 0x04];
    block.extend(text(path));
    block.push(0x01);
    block.extend(text("localhost"));
    for (name, value) in headers {
        block.push(0x00);
        block.extend(text(name));
        block.extend(text(value));
    }
    block
}

/// An HTTP/2 connection to the API whose client does as it likes. What comes is read, and looked at for a GOAWAY.
pub struct Tls {
    write: WriteHalf<TlsStream<TcpStream>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    goaway: Option<u32>,
    closed: bool,
}

pub async fn http2(world: &World) -> Tls {
    http2_with_window(world, 65_535).await
}

/// The server may send so many bytes on each stream.
pub async fn http2_with_window(world: &World, window: u32) -> Tls {
    let (read, write) = tokio::io::split(open(world, "h2").await);
    let seen = Arc::new(Mutex::new(Seen::default()));
    tokio::spawn(look(read, seen.clone()));
    let mut tls = Tls { write, seen };
    let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    preface.extend(Frame::settings(window));
    tls.send(&preface).await;
    tls
}

impl Tls {
    pub async fn send(&mut self, frames: &[u8]) {
        assert!(self.try_send(frames).await, "the server has closed");
    }

    /// Whether the connection still takes them.
    pub async fn try_send(&mut self, frames: &[u8]) -> bool {
        {
            let seen = self.seen.lock().unwrap();
            if seen.closed || seen.goaway.is_some() {
                return false;
            }
        }
        let written =
            self.write.write_all(frames).await.is_ok() && self.write.flush().await.is_ok();
        // The other side's turn, on one thread.
        tokio::task::yield_now().await;
        written
    }

    /// What the server said at the end, if it did.
    pub async fn goaway(&self) -> Option<u32> {
        for _ in 0..100 {
            {
                let seen = self.seen.lock().unwrap();
                if seen.goaway.is_some() || seen.closed {
                    return seen.goaway;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

async fn look(mut read: ReadHalf<TlsStream<TcpStream>>, seen: Arc<Mutex<Seen>>) {
    let mut head = [0; 9];
    while read.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if read.read_exact(&mut payload).await.is_err() {
            break;
        }
        if head[3] == 7 {
            let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
            seen.lock().unwrap().goaway = Some(code);
        }
    }
    seen.lock().unwrap().closed = true;
}

/// Opens an agent's stream with these bytes as its messages; the status that it gets.
pub async fn report(world: &World, token: &str, body: &[u8]) -> Option<String> {
    let versions = [&rustls::version::TLS13];
    let stream = connect(world, world.running.report, &versions, "h2")
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://localhost/ebpfscaler.v1alpha1.Collector/Report")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let early = response.headers().get("grpc-status").cloned();
    let trailers = response.into_body().collect().await.unwrap();
    let late = trailers
        .trailers()
        .and_then(|t| t.get("grpc-status"))
        .cloned();
    Some(early.or(late)?.to_str().unwrap().to_owned())
}
