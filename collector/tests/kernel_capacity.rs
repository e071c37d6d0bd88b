//! Bounds: more sockets than may have state, more parked first payloads than fit, and what is said of it. Needs root
//! and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kernel::http::{GET, OK, Pair, one_pod};
use kernel::raw::{Raw, silence_resets};
use kernel::{SERVER, World, eventually, long, sh};

/// Tells a child of this test how many connections to hold, and to which port.
const HOLD: &str = "EBPF_SCALER_TEST_HOLD";
const NAME: &str = "idle_connections_beyond_the_cap_are_counted_as_such";

/// Lets queues of connections that nobody accepts be long, so that the pod's ends need no descriptor.
fn long_queue(listener: &TcpListener) {
    // SAFETY: a listener may be told again how long its queue is.
    let done = unsafe { libc::listen(listener.as_raw_fd(), 1 << 20) };
    assert_eq!(done, 0);
}

/// Raises the limit on descriptors as far as it goes, and gives it.
fn descriptors() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is ours.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    limit.rlim_cur
}

/// The child: opens connections, each with one request, says so, and holds them until its input ends.
fn hold(task: &str) {
    let (connections, port) = task.split_once(' ').unwrap();
    let (connections, port): (usize, u16) = (connections.parse().unwrap(), port.parse().unwrap());
    descriptors();
    let held: Vec<TcpStream> = (0..connections)
        .map(|n| {
            let mut stream = TcpStream::connect((SERVER, port))
                .unwrap_or_else(|e| panic!("connection {n}: {e}"));
            stream.write_all(GET.as_bytes()).unwrap();
            stream
        })
        .collect();
    println!("held");
    let _ = std::io::stdin().read(&mut [0]);
    drop(held);
}

fn holder(connections: u64, port: u16) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(HOLD, format!("{connections} {port}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_until_held(child: &mut Child) {
    let mut output = child.stdout.take().unwrap();
    let (mut text, mut part) = (String::new(), [0; 512]);
    while !text.contains("held\n") {
        let n = output.read(&mut part).unwrap();
        assert!(n > 0, "the holder of connections ended: {text}");
        text += &String::from_utf8_lossy(&part[..n]);
    }
    child.stdout = Some(output);
}

#[test]
fn idle_connections_beyond_the_cap_are_counted_as_such() {
    if let Ok(task) = std::env::var(HOLD) {
        return hold(&task);
    }
    let (world, pod, _listener) = one_pod(80);
    // The real cap and 100,000 connections take minutes and a gigabyte: on request only.
    let each = (descriptors() - 1000).min(if long() { 18_000 } else { 1_200 });
    let (connections, cap) = if long() {
        (100_000, 65_536)
    } else {
        (3_000, 2_000)
    };
    if !long() {
        world.probes.limit_sockets(cap);
    }
    sh(&format!(
        "nsenter --net=/run/netns/{}-s sysctl -qw net.core.somaxconn=1000000 net.ipv4.tcp_max_syn_backlog=100000",
        world.name
    ));
    let begun = Instant::now();
    let (mut left, mut children, mut listeners) = (connections, Vec::new(), Vec::new());
    while left > 0 {
        let (n, port) = (left.min(each), 8000 + children.len() as u16);
        let listener = pod.listen(SERVER, port);
        long_queue(&listener);
        listeners.push(listener);
        children.push(holder(n, port));
        left -= n;
    }
    children.iter_mut().for_each(wait_until_held);
    assert!(
        eventually(Duration::from_secs(20), || {
            world.counters(&pod).receive_bytes >= connections * GET.len() as u64
                && world.statistic("live_socket_storages") >= cap
        }),
        "{}",
        world.troubles()
    );
    eprintln!(
        "{connections} connections in {:?}: {}",
        begun.elapsed(),
        world.troubles()
    );
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    let live = world.statistic("live_socket_storages");
    // CPUs that look at the same moment may each make one more.
    assert!((cap..=cap + cpus).contains(&live), "{live} of {cap}");
    let c = world.counters(&pod);
    assert_eq!(c.requests, live, "{}", world.troubles());
    assert!(world.statistic("socket_storage_capped") >= connections - live);
    // Bytes are counted of all.
    assert!(c.receive_bytes >= connections * GET.len() as u64);
    drop(listeners);
    for mut child in children {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
    assert!(
        eventually(Duration::from_secs(30), || world
            .statistic("live_socket_storages")
            == 0),
        "{}",
        world.troubles()
    );
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests_in_flight, c.requests_aborted),
        (0, live),
        "{}",
        world.troubles()
    );
    // There is room again.
    let capped = world.statistic("socket_storage_capped");
    let listener = pod.listen(SERVER, 81);
    let before = world.counters(&pod).requests;
    Pair::new(&listener).turn(GET, OK);
    assert_eq!(world.counters(&pod).requests, before + 1);
    assert_eq!(world.statistic("socket_storage_capped"), capped);
}

#[test]
fn more_first_payloads_than_can_wait_are_counted_when_they_come_again() {
    let (world, pod, listener): (World, _, _) = one_pod(80);
    silence_resets(&world);
    // With cookies nothing but our own map remembers a connection whose handshake is not complete; with the shortest
    // queue the kernel can not complete it, however often the client sends.
    sh(&format!(
        "nsenter --net=/run/netns/{}-s sysctl -qw net.ipv4.tcp_syncookies=2",
        world.name
    ));
    const MANY: u16 = 1500;
    // SAFETY: a listener may be told again how long its queue is.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
    let mut clients = vec![Raw::open(10_000, 80)];
    for n in 1..MANY {
        clients.push(clients[0].open_beside(10_000 + n));
    }
    for client in &clients {
        client.send(0, GET);
    }
    assert!(
        eventually(Duration::from_secs(10), || world
            .statistic("listener_payloads")
            >= u64::from(MANY)),
        "{}",
        world.troubles()
    );
    // Those that found room in the queue are connections; the others have not been counted.
    assert!(world.counters(&pod).requests < 10, "{}", world.troubles());
    // SAFETY: as above.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 4096) }, 0);
    let mut accepted = Vec::new();
    for mut client in clients {
        // The clients' retransmissions.
        client.send(0, GET);
        let mut server = listener.accept().unwrap().0;
        server
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        server.read_exact(&mut vec![0; GET.len()]).unwrap();
        server.write_all(OK.as_bytes()).unwrap();
        if accepted.is_empty() {
            client.receive(0, GET.len());
        }
        accepted.push((client, server));
    }
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (u64::from(MANY), u64::from(MANY), 0),
        "{}",
        world.troubles()
    );
}

#[test]
fn every_statistic_is_documented() {
    let page = include_str!("../../docs/metrics.md");
    for (name, _) in World::new().probes.statistics().values {
        assert!(page.contains(&format!("| `{name}` | ")), "{name}");
    }
}
