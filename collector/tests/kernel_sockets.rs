//! Whose a socket's counts are: passed to another process, on a descriptor or socket used again, beside other pods in
//! one network namespace, in the node's own namespace. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::process::Stdio;
use std::time::Duration;

use kernel::http::{GET, OK, Pair, one_pod};
use kernel::{CLIENT, SERVER, World, eventually};

#[test]
fn a_descriptor_used_again_inherits_nothing() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = on_fixed_descriptors(Pair::new(&listener));
    pair.turn(GET, OK);
    // Cut off in the middle: a request in flight, and half of another one.
    pair.ask(GET);
    pair.ask(&GET[..20]);
    drop(pair);
    assert!(
        eventually(Duration::from_secs(5), || {
            let c = world.counters(&pod);
            (c.requests_in_flight, c.requests_aborted) == (0, 1)
        }),
        "{}",
        world.troubles()
    );
    for n in 1..=20 {
        let mut pair = on_fixed_descriptors(Pair::new(&listener));
        // What the former connection left off with would make this one request fewer, or a slow one.
        pair.turn(&GET[20..], "");
        pair.turn(GET, OK);
        drop(pair);
        let c = world.counters(&pod);
        assert!(c.requests <= 2 + n, "{n}: {}", world.troubles());
    }
    // A descriptor that is closed while its copy goes on is the same connection.
    let mut pair = Pair::new(&listener);
    pair.ask(GET);
    let copy = pair.server.try_clone().unwrap();
    pair.server = copy;
    pair.answer(OK);
    assert_eq!(world.counters(&pod).requests_in_flight, 0);
    let slow: u64 = world.read(&pod).request_latency
        [ebpf_scaler_common::histogram::index(1_000_000)..]
        .iter()
        .sum();
    assert_eq!(slow, 0, "a start that was not this request's");
}

/// Both ends on descriptors that only this test uses: the lowest free ones are any test's of this process.
fn on_fixed_descriptors(pair: Pair) -> Pair {
    let moved = |socket: TcpStream, descriptor: RawFd| {
        // SAFETY: nobody else owns the descriptor, which is far above those that the kernel gives.
        let done = unsafe { libc::dup3(socket.as_raw_fd(), descriptor, libc::O_CLOEXEC) };
        assert_eq!(done, descriptor, "{}", std::io::Error::last_os_error());
        // SAFETY: dup3 has just opened it.
        unsafe { TcpStream::from_raw_fd(descriptor) }
    };
    Pair {
        client: moved(pair.client, 900),
        server: moved(pair.server, 901),
    }
}

#[test]
fn a_socket_connected_again_inherits_nothing() {
    let (mut world, _, _listener) = one_pod(80);
    let pod = world.pod("client");
    // One socket: first to the pod itself, then to the outside; its bytes belong to the network only then.
    let app = pod.listen("127.0.0.1", 8080);
    let socket = pod.connect(app.local_addr().unwrap());
    let mut inside = Pair {
        client: socket,
        server: app.accept().unwrap().0,
    };
    inside.turn(GET, OK);
    let before = world.counters(&pod);
    assert_eq!((before.requests_loopback, before.receive_bytes), (1, 0));
    let outside = TcpListener::bind((CLIENT, 8000)).unwrap();
    disconnect(inside.client.as_raw_fd());
    connect(inside.client.as_raw_fd(), outside.local_addr().unwrap());
    let mut pair = Pair {
        client: inside.client,
        server: outside.accept().unwrap().0,
    };
    let download = vec![b'x'; 10_000];
    pair.turn(GET, &download);
    drop(pair);
    let c = world.counters(&pod);
    assert!(
        c.receive_bytes > 10_000 && c.transmit_bytes as usize > GET.len(),
        "{c:?}"
    );
    assert_eq!((c.requests, c.requests_loopback), (0, 1));
}

/// Dissolves the association of a socket (connect(2), AF_UNSPEC), which then can be connected again.
fn disconnect(socket: RawFd) {
    // SAFETY: all zero is AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address is ours.
    let done = unsafe {
        libc::connect(
            socket,
            &raw const nowhere,
            size_of::<libc::sockaddr>() as u32,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn connect(socket: RawFd, to: SocketAddr) {
    let SocketAddr::V4(to) = to else {
        unreachable!()
    };
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_port = to.port().to_be();
    address.sin_addr.s_addr = u32::from(*to.ip()).to_be();
    // SAFETY: the address is ours.
    let done = unsafe {
        libc::connect(
            socket,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_socket_stays_its_creators_when_another_pod_serves_it() {
    let (mut world, creator, listener) = one_pod(80);
    let heir = world.pod("heir");
    // As systemd's socket activation does, or a hot restart: another process, another pod, the same socket.
    let mut server = heir.command("sh");
    server
        .args([
            "-c",
            "while read -r line; do case $line in ?) printf 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n';; esac; done",
        ])
        .stderr(Stdio::inherit());
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = listener.accept().unwrap().0;
    server
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(
            accepted.try_clone().unwrap(),
        )))
        .stdout(Stdio::from(std::os::fd::OwnedFd::from(accepted)));
    let mut child = server.spawn().unwrap();
    drop(server);
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for _ in 0..10 {
        std::io::Write::write_all(&mut client, GET.as_bytes()).unwrap();
        client.read_exact(&mut vec![0; answer.len()]).unwrap();
    }
    drop(client);
    child.wait().unwrap();
    let (a, b) = (world.counters(&creator), world.counters(&heir));
    assert_eq!(
        (a.requests, a.responses_2xx, b.requests),
        (10, 10, 0),
        "{}",
        world.troubles()
    );
    // What the heir makes itself is its own.
    let own = heir.listen(SERVER, 81);
    Pair::new(&own).turn(GET, OK);
    assert_eq!(
        (
            world.counters(&creator).requests,
            world.counters(&heir).requests
        ),
        (10, 1)
    );
}

#[test]
fn pods_that_share_the_nodes_network_are_told_apart() {
    // Several pods in one network namespace and with one address: only the cgroup tells whose traffic it is.
    let mut world = World::new();
    let pods: Vec<_> = (0..4).map(|n| world.pod(&format!("host{n}"))).collect();
    let listeners: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(n, pod)| pod.listen("0.0.0.0", 8000 + n as u16))
        .collect();
    // And a process of the node itself, which is no pod's.
    world.enter_server();
    let node = TcpListener::bind((SERVER, 22)).unwrap();
    world.enter_client();
    let outside = TcpListener::bind((CLIENT, 9000)).unwrap();
    for (n, listener) in listeners.iter().enumerate() {
        let port = listener.local_addr().unwrap().port();
        let mut pair = Pair {
            client: TcpStream::connect((SERVER, port)).unwrap(),
            server: listener.accept().unwrap().0,
        };
        for _ in 0..=n {
            pair.turn(GET, OK);
        }
    }
    Pair::new(&node).turn(GET, OK);
    let client = pods[0].connect(outside.local_addr().unwrap());
    let mut out = Pair {
        client,
        server: outside.accept().unwrap().0,
    };
    let before = world.counters(&pods[0]).receive_bytes;
    out.turn(GET, vec![b'x'; 5000]);
    for (n, pod) in pods.iter().enumerate() {
        let c = world.counters(pod);
        let expected = n as u64 + 1;
        assert_eq!(
            (c.requests, c.responses_2xx, c.requests_in_flight),
            (expected, expected, 0),
            "{n} {}",
            world.troubles()
        );
    }
    assert!(world.counters(&pods[0]).receive_bytes - before > 5000);
    assert_eq!(world.statistic("unknown_cgroup_packets"), 0);
    // Over the node's own address or loopback it can not be told from a sidecar's, and is counted apart.
    let local = pods[1].connect("127.0.0.1:8002".parse().unwrap());
    let mut pair = Pair {
        client: local,
        server: listeners[2].accept().unwrap().0,
    };
    pair.turn(GET, OK);
    let c = world.counters(&pods[2]);
    assert_eq!((c.requests, c.requests_loopback), (3, 1));
}

#[test]
fn what_is_not_http_or_not_the_pods_is_no_request() {
    let (world, pod, listener) = one_pod(80);
    // To a port that nobody has: the kernel answers by ICMP, and no socket of the pod has any part in it.
    let udp = std::net::UdpSocket::bind((CLIENT, 0)).unwrap();
    udp.connect((SERVER, 9)).unwrap();
    udp.send(b"x").unwrap();
    assert!(udp.recv(&mut [0; 8]).is_err());
    assert!(TcpStream::connect((SERVER, 9)).is_err());
    assert_eq!(world.counters(&pod), Default::default());
    // TLS, SSH, a memcached client and nonsense on a port where HTTP was expected.
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03GET / HTTP/1.1\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2p1 Debian\r\nGET / HTTP/1.1\r\n\r\n",
        b"set k 0 0 5\r\nvalue\r\n",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"GET / HTCPCP/1.0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ] {
        let mut pair = Pair::new(&listener);
        for _ in 0..5 {
            pair.turn(bytes, "some answer that is none of HTTP's");
        }
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (0, 0, 0),
        "{}",
        world.troubles()
    );
    assert!(c.receive_bytes > 0);
}
