//! Bytes and packets against what was sent and against the veth's own counters. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::Counters;
use kernel::http::{Pair, one_pod};
use kernel::{CLIENT, Pod, SERVER, SERVER6, World, eventually};

/// A counter of the pods' end of the veth, with ARP and the like among it.
fn veth(world: &World, name: &str) -> u64 {
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            &format!("{}-s", world.name),
            "cat",
            &format!("/sys/class/net/s0/statistics/{name}"),
        ])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{output:?}"))
}

const ETHERNET: u64 = 14;
const NAMES: [&str; 4] = ["rx_bytes", "rx_packets", "tx_bytes", "tx_packets"];

/// The veth's counters and ours, of one moment in which nothing was under way.
fn settled(world: &World, pod: &Pod) -> ([u64; 4], Counters) {
    loop {
        let (before, ours) = (NAMES.map(|name| veth(world, name)), world.counters(pod));
        if before == NAMES.map(|name| veth(world, name)) && ours == world.counters(pod) {
            return (before, ours);
        }
    }
}

#[test]
fn bulk_transfers_agree_with_the_veth() {
    let (world, pod, listener) = one_pod(80);
    let before = NAMES.map(|name| veth(&world, name));
    let mut pair = Pair::new(&listener);
    let data = vec![7u8; 1 << 20];
    for _ in 0..20 {
        pair.ask(&data);
    }
    for _ in 0..30 {
        pair.answer(&data);
    }
    std::thread::sleep(Duration::from_millis(200));
    let [rx_bytes, rx_packets, tx_bytes, tx_packets] = {
        let after = NAMES.map(|name| veth(&world, name));
        [0, 1, 2, 3].map(|i| after[i] - before[i])
    };
    let c = world.counters(&pod);
    assert!(c.receive_bytes > 20 << 20 && c.transmit_bytes > 30 << 20);
    // The veth sees large packets as one, so its headers are fewer than on a wire: payload is what must agree.
    let payload =
        |bytes: u64, packets: u64, headers: u64| bytes as f64 - (packets * headers) as f64;
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.001;
    let ours = payload(c.receive_bytes, c.receive_packets, 52);
    let theirs = payload(rx_bytes, rx_packets, 52 + ETHERNET);
    assert!(near(ours, theirs), "in: {ours} {theirs}");
    let ours = payload(c.transmit_bytes, c.transmit_packets, 52);
    let theirs = payload(tx_bytes, tx_packets, 52 + ETHERNET);
    assert!(near(ours, theirs), "out: {ours} {theirs}");
    // Packets as on a wire: none carries more than 1448 bytes.
    assert!(
        c.transmit_packets >= (30 << 20) / 1448,
        "{}",
        c.transmit_packets
    );
    assert_eq!(c.requests, 0);
}

#[test]
fn small_turns_agree_with_the_veth_to_the_byte() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.turn("a", "b");
    std::thread::sleep(Duration::from_millis(100));
    let (before, ours) = settled(&world, &pod);
    for n in 1..100 {
        pair.turn(vec![b'a'; n], vec![b'b'; n * 3]);
    }
    // Delayed acknowledgements.
    std::thread::sleep(Duration::from_millis(200));
    let (after, c) = settled(&world, &pod);
    let [rx_bytes, rx, tx_bytes, tx] = [0, 1, 2, 3].map(|i| after[i] - before[i]);
    // What is not a socket's: ARP, and what IPv6 says in the seconds after an interface comes up. Small packets, all of it.
    let agrees = |packets: u64, bytes: u64, their_packets: u64, their_bytes: u64| {
        let others = their_packets.checked_sub(packets);
        let theirs = their_bytes - their_packets * ETHERNET;
        others.is_some_and(|n| n <= 12 && (bytes..=bytes + n * 110).contains(&theirs))
    };
    let (packets, bytes) = (
        c.receive_packets - ours.receive_packets,
        c.receive_bytes - ours.receive_bytes,
    );
    assert!(agrees(packets, bytes, rx, rx_bytes), "{c:?} {after:?}");
    let (packets, bytes) = (
        c.transmit_packets - ours.transmit_packets,
        c.transmit_bytes - ours.transmit_bytes,
    );
    assert!(agrees(packets, bytes, tx, tx_bytes), "{c:?} {after:?}");
}

/// What `ss -i` shows of a socket (include/uapi/linux/tcp.h, struct tcp_info): bytes received, bytes sent again or not,
/// segments in, segments out, bytes sent again.
fn socket_account(socket: &TcpStream) -> [u64; 5] {
    let mut info = [0u64; 32];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes no more than it is told.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(done, 0);
    assert!(length >= 216, "{length}: older than Linux 4.19");
    let (segments_out, segments_in) = (info[17] & 0xffff_ffff, info[17] >> 32);
    [info[16], info[25], segments_in, segments_out, info[26]]
}

#[test]
fn payload_and_packets_are_the_sockets_own() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    for _ in 0..10 {
        pair.ask(vec![1; 1 << 20]);
        pair.answer(vec![2; 2 << 20]);
    }
    for n in 1..200 {
        pair.turn(vec![b'a'; n], vec![b'b'; n * 5]);
    }
    std::thread::sleep(Duration::from_millis(200));
    let (account, c) = loop {
        let (before, ours) = (socket_account(&pair.server), world.counters(&pod));
        if before == socket_account(&pair.server) && ours == world.counters(&pod) {
            break (before, ours);
        }
    };
    let [received, sent, segments_in, segments_out, _] = account;
    // What the client sends again came, too, and the socket knows it already.
    let again = socket_account(&pair.client)[4];
    assert!(received > 10 << 20 && sent > 20 << 20);
    // The handshake is not all the socket's own: it was the listener's.
    let all = format!("{account:?} {c:?}");
    assert!(c.receive_packets.abs_diff(segments_in) <= 3, "{all}");
    assert!(c.transmit_packets.abs_diff(segments_out) <= 3, "{all}");
    // Headers of 52 bytes with timestamps; a handshake's are 8 more, and selective acknowledgements some.
    let payload = c.transmit_bytes - 52 * c.transmit_packets;
    let acknowledgements = 36 * c.tcp_retransmits + 64;
    assert!(
        payload.abs_diff(sent) <= acknowledgements,
        "{payload} {all}"
    );
    let payload = c.receive_bytes - 52 * c.receive_packets;
    assert!(
        payload + received / 1000 > received && payload < received + again + received / 1000,
        "{payload} {again} {all}"
    );
    assert!(
        c.tcp_retransmits > 0 || again > 0 || payload.abs_diff(received) <= 64,
        "{payload} {all}"
    );
    assert_eq!((c.connections_opened, c.connections_closed), (1, 0));
    drop(pair);
    assert!(eventually(Duration::from_secs(5), || {
        world.counters(&pod).connections_closed == 1
    }));
}

#[test]
fn udp_is_counted_and_loopback_is_not() {
    let mut world = World::new();
    let pod = world.pod("pod");
    for address in [SERVER, SERVER6] {
        let socket = pod.udp(address, 5353);
        world.enter_client();
        let client = UdpSocket::bind(if address == SERVER {
            (CLIENT, 0)
        } else {
            ("fd77::2", 0)
        })
        .unwrap();
        let before = world.counters(&pod);
        let mut buffer = [0; 2000];
        for _ in 0..50 {
            client.send_to(&[1; 100], (address, 5353)).unwrap();
            let (_, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&[2; 300], from).unwrap();
            client.recv_from(&mut buffer).unwrap();
        }
        let c = world.counters(&pod);
        let headers = if address == SERVER { 28 } else { 48 };
        assert_eq!(c.receive_packets - before.receive_packets, 50, "{address}");
        assert_eq!(
            c.receive_bytes - before.receive_bytes,
            50 * (100 + headers),
            "{address}"
        );
        assert_eq!(
            c.transmit_bytes - before.transmit_bytes,
            50 * (300 + headers),
            "{address}"
        );
    }
    let before = world.counters(&pod);
    let (a, b) = (pod.udp("127.0.0.1", 1000), pod.udp("127.0.0.1", 1001));
    a.send_to(b"x", b.local_addr().unwrap()).unwrap();
    b.recv(&mut [0; 10]).unwrap();
    assert_eq!(world.counters(&pod), before);
}

#[test]
fn retransmissions_are_counted_once_as_such() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.turn("a", "b");
    // The client's namespace drops what comes for half a second.
    let gate = |act: &str| {
        let arguments = [
            "-n",
            &format!("{}-c", world.name),
            "route",
            act,
            "blackhole",
            SERVER,
        ];
        assert!(
            Command::new("ip")
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
    };
    gate("add");
    pair.server.write_all(&[b'x'; 1000]).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    gate("del");
    pair.client.read_exact(&mut [0; 1000]).unwrap();
    world.enter_server();
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let rows: Vec<Vec<&str>> = snmp
        .lines()
        .filter(|l| l.starts_with("Tcp:"))
        .map(|l| l.split(' ').collect())
        .collect();
    let column = rows[0]
        .iter()
        .position(|name| *name == "RetransSegs")
        .unwrap();
    let expected: u64 = rows[1][column].parse().unwrap();
    assert!(expected > 0);
    assert_eq!(world.counters(&pod).tcp_retransmits, expected);
}
