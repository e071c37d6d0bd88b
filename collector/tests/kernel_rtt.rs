//! TCP round-trip times over a link whose delay is the test's choice: a pair of tun devices, with this process between
//! them. Needs root, tun and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ebpf_scaler_collector::agent::probes::{Buckets, histogram};
use kernel::{World, enter, eventually, sh};

const POD: &str = "10.78.0.1";
const CLIENT: &str = "10.78.0.2";
const MTU: usize = 1500;

/// Opens a tun device, which is then part of the named namespace.
fn tun(namespace: &str, address: &str) -> File {
    let (path, name) = (format!("/run/netns/{namespace}"), "delay0");
    let device = std::thread::spawn(move || {
        enter(path.as_ref()).unwrap();
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: all zero is a valid request, and the call reads and writes nothing else.
        let done = unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
            libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request)
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        device
    })
    .join()
    .unwrap();
    sh(&format!(
        "ip -n {namespace} addr add {address}/24 dev {name} && ip -n {namespace} link set {name} up"
    ));
    device
}

/// Carries packets one way, each after a delay. Its threads end with the test's process.
fn carry(mut from: File, mut to: File, delay: Duration) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut packet = [0; MTU];
        while let Ok(length) = from.read(&mut packet) {
            if sender
                .send((Instant::now() + delay, packet[..length].to_vec()))
                .is_err()
            {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, packet) in receiver {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&packet).is_err() {
                return;
            }
        }
    });
}

fn samples(buckets: &Buckets) -> u64 {
    buckets.iter().sum()
}

#[test]
fn round_trip_times_are_those_of_the_link() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let there = tun(&format!("{}-s", world.name), POD);
    let here = tun(&format!("{}-c", world.name), CLIENT);
    let (there_too, here_too) = (there.try_clone().unwrap(), here.try_clone().unwrap());
    carry(there, here, Duration::from_millis(10));
    carry(here_too, there_too, Duration::from_millis(10));
    let listener = pod.listen(POD, 80);
    world.enter_client();
    let mut client = TcpStream::connect((POD, 80)).unwrap();
    let mut server = listener.accept().unwrap().0;
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
    }
    for _ in 0..33 {
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
    }
    let mut rtt = world.read(&pod).tcp_rtt;
    assert!(eventually(Duration::from_secs(5), || {
        rtt = world.read(&pod).tcp_rtt;
        samples(&rtt) >= 3
    }));
    // With the first packet, the seventeenth and the thirty-third.
    assert_eq!(samples(&rtt), 3);
    let values = rtt.iter().enumerate().filter(|(_, count)| **count > 0);
    for (bucket, _) in values {
        let micros = histogram::midpoint(bucket);
        // Never less than the link takes; on a busy machine this process is late.
        assert!((18_000..60_000).contains(&micros), "{micros} us");
    }
}

#[test]
fn inside_a_pod_there_is_no_round_trip() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let listener = pod.listen("127.0.0.1", 80);
    let mut client = pod.connect(listener.local_addr().unwrap());
    let mut server = listener.accept().unwrap().0;
    client.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    assert_eq!(samples(&world.read(&pod).tcp_rtt), 0);
}
