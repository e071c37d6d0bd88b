//! Which requests are a pod's load, and what their latency is: probes, excluded ports, loopback, clients, IPv6.
//! Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::time::{Duration, Instant};

use kernel::http::{GET, OK, Pair, one_pod};
use kernel::{EXCLUDED, SERVER, SERVER6, World};

#[test]
fn probes_and_excluded_ports_are_counted_apart() {
    let (world, pod, listener) = one_pod(80);
    let probe = "GET /healthz HTTP/1.1\r\nHost: a:80\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n";
    for _ in 0..20 {
        Pair::new(&listener).turn(probe, OK);
    }
    // A probe whose header name and value are split.
    for at in 1..probe.len() {
        let mut pair = Pair::new(&listener);
        pair.ask(&probe[..at]);
        pair.ask(&probe[at..]);
        pair.answer(OK);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.requests_probe),
        (0, 20 + probe.len() as u64 - 1),
        "{}",
        world.troubles()
    );
    assert_eq!((c.responses_2xx, c.requests_in_flight), (0, 0));

    let listener = pod.listen(SERVER, EXCLUDED);
    for _ in 0..3 {
        Pair::new(&listener).turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.requests_excluded_port, c.responses_2xx),
        (0, 3, 0)
    );
    assert!(world.read(&pod).request_latency.iter().all(|n| *n == 0));
}

#[test]
fn loopback_inside_the_pod_is_counted_apart() {
    let (world, pod, _outside) = one_pod(80);
    // nginx in front of an app: the second hop is over loopback, or over the pod's own address.
    for (n, address) in ["127.0.0.1", "::1", SERVER].into_iter().enumerate() {
        let app = pod.listen(address, 8080);
        let client = pod.connect(app.local_addr().unwrap());
        let server = app.accept().unwrap().0;
        let before = world.counters(&pod);
        let mut pair = Pair { client, server };
        for _ in 0..5 {
            pair.turn(GET, OK);
        }
        let c = world.counters(&pod);
        assert_eq!((c.requests, c.responses_2xx), (0, 0), "{address}");
        assert_eq!(
            c.requests_loopback,
            5 * (n as u64 + 1),
            "{address} {}",
            world.troubles()
        );
        assert_eq!(
            (c.receive_bytes, c.transmit_bytes),
            (before.receive_bytes, before.transmit_bytes),
            "{address}"
        );
    }
    assert_eq!(world.counters(&pod).receive_bytes, 0);
}

#[test]
fn a_clients_own_requests_are_not_its_load() {
    let (mut world, server, listener) = one_pod(80);
    let client = world.pod("client");
    let address = listener.local_addr().unwrap();
    let client_end = client.connect(address);
    let mut pair = Pair {
        client: client_end,
        server: listener.accept().unwrap().0,
    };
    for _ in 0..10 {
        pair.turn(GET, OK);
    }
    // Both pods live in one namespace here, so the address is the pod's own: the server's side is loopback.
    let (s, c) = (world.counters(&server), world.counters(&client));
    assert_eq!(
        (s.requests_loopback, c.requests, c.requests_loopback),
        (10, 0, 0),
        "{}",
        world.troubles()
    );
    assert_eq!(c.responses_2xx, 0);
}

#[test]
fn ipv6() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let listener = pod.listen(SERVER6, 80);
    world.enter_client();
    let mut pair = Pair::new(&listener);
    for _ in 0..100 {
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (100, 100, 0),
        "{}",
        world.troubles()
    );
    // IPv4 on an IPv6 socket.
    let listener = pod.listen("::", 81);
    let client = std::net::TcpStream::connect((SERVER, 81)).unwrap();
    let mut pair = Pair {
        client,
        server: listener.accept().unwrap().0,
    };
    pair.turn(GET, OK);
    assert_eq!(world.counters(&pod).requests, 101, "{}", world.troubles());
}

#[test]
fn latency_is_first_byte_in_to_first_byte_out() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    // How long it can have been at most, seen from outside: a loaded machine sleeps longer than it is told.
    let (mut most, mut longest) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..20 {
        let begun = Instant::now();
        pair.ask(&GET[..20]);
        std::thread::sleep(Duration::from_millis(4));
        pair.ask(&GET[20..]);
        std::thread::sleep(Duration::from_millis(6));
        assert_eq!(world.counters(&pod).requests_in_flight, 1);
        pair.answer(&OK[..30]);
        let took = begun.elapsed();
        (most, longest) = (most + took, longest.max(took));
        // What comes after the first byte is not in it.
        std::thread::sleep(Duration::from_millis(50));
        pair.answer(&OK[30..]);
    }
    let reading = world.read(&pod);
    let sum = reading.counters.request_latency_sum_micros;
    assert!(
        (200_000..=most.as_micros() as u64).contains(&sum),
        "{sum} us of at most {most:?}"
    );
    let (low, high) = (
        ebpf_scaler_common::histogram::index(10_000),
        ebpf_scaler_common::histogram::index(longest.as_micros() as u64),
    );
    assert_eq!(reading.request_latency[low..=high].iter().sum::<u64>(), 20);
}

#[test]
fn a_listener_that_offers_mptcp() {
    use std::os::fd::{FromRawFd, OwnedFd};
    let mut world = World::new();
    let pod = world.pod("pod");
    // As Go's do since 1.24: socket, then what Rust does to a bound address.
    let listener = pod.inside(|| {
        // SAFETY: system calls on a descriptor of our own.
        unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
            if socket < 0 {
                return std::fs::File::open("/dev/null").map(Into::into);
            }
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = libc::AF_INET as u16;
            address.sin_port = 80u16.to_be();
            let size = size_of::<libc::sockaddr_in>() as u32;
            if libc::bind(socket, (&raw const address).cast(), size) != 0
                || libc::listen(socket, 16) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(OwnedFd::from_raw_fd(socket))
        }
    });
    let listener = std::net::TcpListener::from(listener);
    world.enter_client();
    let enabled = std::fs::read_to_string("/proc/sys/net/mptcp/enabled");
    if !enabled.is_ok_and(|text| text.trim() == "1") {
        eprintln!("NOT TESTED: MPTCP, which this kernel does not have or allow");
        return;
    }
    let client = std::net::TcpStream::connect((SERVER, 80)).unwrap();
    let mut pair = Pair {
        client,
        server: listener.accept().unwrap().0,
    };
    for _ in 0..10 {
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (10, 10, 0),
        "{}",
        world.troubles()
    );
}
