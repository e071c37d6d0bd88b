//! HTTP/2 and gRPC between real clients and servers, whose own counts are the oracle: h2load, nginx, hyper, tonic. Needs
//! root, the BPF object and what hack/setup/packages.sh installs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ebpf_scaler_proto::collector_client::CollectorClient;
use ebpf_scaler_proto::collector_server::{Collector, CollectorServer};
use ebpf_scaler_proto::{ReportRequest, Want, WatchRequest, WatchResponse};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kernel::http::one_pod;
use kernel::load::pin;
use kernel::{SERVER, World, eventually, sh};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What h2load says of its run: requests that succeeded.
fn h2load(requests: u32, connections: u32, streams: u32, path: &str) -> u64 {
    let mut command = Command::new("h2load");
    command.args([
        format!("-n{requests}"),
        format!("-c{connections}"),
        format!("-m{streams}"),
        format!("http://{SERVER}/{path}"),
    ]);
    // A client that moves between CPUs puts its segments out of order now and then; that is another test's matter.
    let output = pin(&mut command, 0)
        .output()
        .expect("h2load is not installed: run hack/setup/packages.sh");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("requests: "));
    let succeeded = line.and_then(|line| {
        line.split(", ")
            .find_map(|part| part.strip_suffix(" succeeded"))
    });
    succeeded
        .unwrap_or_else(|| panic!("{text}"))
        .parse()
        .unwrap()
}

/// h2load's count and ours, for a server that runs.
fn agree(world: &World, pod: &kernel::Pod, path: &str) {
    for (requests, connections, streams) in [(3000, 1, 1), (20_000, 1, 100), (20_000, 4, 100)] {
        let before = world.counters(pod);
        let succeeded = h2load(requests, connections, streams, path);
        let settled = eventually(Duration::from_secs(5), || {
            let c = world.counters(pod);
            c.requests_in_flight == 0 && c.requests - before.requests >= succeeded
        });
        let c = world.counters(pod);
        let counted = (
            c.requests - before.requests,
            c.responses_2xx - before.responses_2xx,
        );
        eprintln!("{streams} streams: h2load {succeeded}, counted {counted:?}");
        assert!(settled, "{}", world.troubles());
        assert_eq!(counted, (succeeded, succeeded), "{}", world.troubles());
        assert_eq!(succeeded, u64::from(requests));
    }
    assert_eq!(world.counters(pod).requests_aborted, 0);
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: a signal to our own child.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGTERM) };
        let _ = self.0.wait();
    }
}

#[test]
fn h2load_and_nginx_agree_with_us() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let directory = std::env::temp_dir().join(&world.name);
    std::fs::create_dir(&directory).unwrap();
    let config = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log; events {{ worker_connections 512; }}
         http {{ access_log off; keepalive_requests 100000000;
                 client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
                 server {{ listen {SERVER}:80 http2; location / {{ root {0}; }} }} }}",
        directory.display()
    );
    std::fs::write(directory.join("nginx.conf"), config).unwrap();
    std::fs::write(directory.join("file"), vec![b'x'; 3000]).unwrap();
    let mut command = pod.command("nginx");
    command
        .arg("-c")
        .arg(directory.join("nginx.conf"))
        .stderr(Stdio::null());
    let server = Server(
        command
            .spawn()
            .expect("nginx is not installed: run hack/setup/packages.sh"),
    );
    world.enter_client();
    assert!(eventually(Duration::from_secs(5), || {
        TcpStream::connect((SERVER, 80)).is_ok()
    }));
    agree(&world, &pod, "file");
    drop(server);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Runs on threads of its own until it is dropped.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn asynchronous(listener: TcpListener) -> tokio::net::TcpListener {
    listener.set_nonblocking(true).unwrap();
    tokio::net::TcpListener::from_std(listener).unwrap()
}

async fn serve(listener: tokio::net::TcpListener) {
    loop {
        let (connection, _) = listener.accept().await.unwrap();
        let answer = hyper::service::service_fn(|_| async {
            Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(
                bytes::Bytes::from_static(b"hello"),
            )))
        });
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(connection), answer),
        );
    }
}

#[test]
fn h2load_and_hyper_agree_with_us_also_when_segments_are_lost() {
    let (world, pod, listener) = one_pod(80);
    let runtime = runtime();
    let _entered = runtime.enter();
    runtime.spawn(serve(asynchronous(listener)));
    agree(&world, &pod, "");
    for end in ["s", "c"] {
        sh(&format!(
            "nsenter --net=/run/netns/{}-{end} iptables -A INPUT -p tcp -m statistic --mode random --probability 0.01 -j DROP",
            world.name
        ));
    }
    let before = world.counters(&pod);
    let succeeded = h2load(10_000, 4, 100, "");
    let c = world.counters(&pod);
    let counted = c.requests - before.requests;
    eprintln!(
        "1 % lost: h2load {succeeded}, counted {counted}, {}",
        world.troubles()
    );
    let difference = counted.abs_diff(succeeded);
    // What is not exact is told; nothing is counted twice.
    assert!(
        counted <= succeeded && difference * 100 <= succeeded,
        "{counted} {}",
        world.troubles()
    );
}

/// Answers `report` with as many messages as it is sent, and refuses `watch`.
struct Echo;

#[tonic::async_trait]
impl Collector for Echo {
    type ReportStream = ReceiverStream<Result<Want, Status>>;
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(_)) = incoming.message().await {
                sender.send(Ok(Want::default())).await.unwrap();
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn watch(
        &self,
        _: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[test]
fn grpc_calls_are_counted_by_what_they_are() {
    let (world, pod, listener) = one_pod(80);
    let runtime = runtime();
    runtime.block_on(async {
        let incoming = TcpListenerStream::new(asynchronous(listener));
        let server = tonic::transport::Server::builder().add_service(CollectorServer::new(Echo));
        tokio::spawn(server.serve_with_incoming(incoming));
        let client = CollectorClient::connect(format!("http://{SERVER}:80"))
            .await
            .unwrap();
        // A hundred at a time: refused ones, which are answered by trailers alone, and short streams.
        let calls = (0..100).map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    let refused = client
                        .watch(tokio_stream::once(WatchRequest::default()))
                        .await;
                    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unimplemented);
                    let messages = tokio_stream::iter(vec![ReportRequest::default(); 5]);
                    let mut answers = client.report(messages).await.unwrap().into_inner();
                    let mut received = 0;
                    while answers.message().await.unwrap().is_some() {
                        received += 1;
                    }
                    assert_eq!(received, 5);
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        let settled = || world.counters(&pod).requests_in_flight == 0;
        assert!(
            eventually(Duration::from_secs(5), settled),
            "{}",
            world.troubles()
        );
        let c = world.counters(&pod);
        assert_eq!(
            (c.requests, c.responses_2xx, c.requests_aborted),
            (2000, 2000, 0),
            "{}",
            world.troubles()
        );
        // A stream is in flight until it ends, however long ago it was answered.
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut client = client.clone();
        let mut answers = client
            .report(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        for _ in 0..50 {
            sender.send(ReportRequest::default()).await.unwrap();
            answers.message().await.unwrap().unwrap();
        }
        let c = world.counters(&pod);
        assert_eq!(
            (c.requests, c.responses_2xx, c.requests_in_flight),
            (2001, 2001, 1),
            "{}",
            world.troubles()
        );
        drop(sender);
        assert!(answers.message().await.unwrap().is_none());
        assert!(
            eventually(Duration::from_secs(5), settled),
            "{}",
            world.troubles()
        );
    });
}
