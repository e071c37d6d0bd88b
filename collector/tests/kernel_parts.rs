//! Ports and containers of one pod counted apart: each count is in one part, and the parts add up to the pod. Needs
//! root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use ebpf_scaler_collector::agent::probes::{Counters, Family, Slot};
use kernel::agent::{Agent, Published, Setup};
use kernel::http::{GET, OK, Pair};
use kernel::load::{Load, alone, want};
use kernel::{CLIENT, Pod, SERVER, World, eventually};

fn part(world: &mut World, pod: &Pod) -> Slot {
    world.probes.allocate_part(pod.slot).expect("a free slot")
}

/// A part for that port of the pod.
fn apart(world: &mut World, pod: &Pod, port: u16) -> Slot {
    let part = part(world, pod);
    world.probes.divide(pod.slot, port, Some(part)).unwrap();
    world.probes.settle(&[(pod.slot, true), (part, false)]);
    part
}

fn counters(world: &World, slot: Slot) -> Counters {
    world.probes.read(slot).counters
}

#[test]
fn two_ports_of_a_pod_are_told_apart_also_on_connections_that_were_there() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let (app, admin) = (pod.listen(SERVER, 8080), pod.listen(SERVER, 9901));
    world.enter_client();
    let mut old = Pair::new(&app);
    let mut old_admin = Pair::new(&admin);
    for _ in 0..10 {
        old.turn(GET, OK);
        old_admin.turn(GET, OK);
    }
    let before = world.counters(&pod);
    assert_eq!(before.requests, 20, "{}", world.troubles());

    // One request is in flight while the port begins to be counted apart.
    old.ask(GET);
    let part = apart(&mut world, &pod, 8080);
    assert_eq!(counters(&world, part), Counters::default());
    old.answer(OK);
    assert_eq!(world.counters(&pod).requests_in_flight, 0);
    for _ in 0..7 {
        old.turn(GET, OK);
        old_admin.turn(GET, OK);
    }
    let mut new = Pair::new(&app);
    for _ in 0..5 {
        new.turn(GET, OK);
    }
    new.ask(GET);
    let (rest, of_port) = (world.counters(&pod), counters(&world, part));
    assert_eq!(of_port.requests, 7 + 5 + 1, "{}", world.troubles());
    assert_eq!(of_port.responses_2xx, 1 + 7 + 5);
    assert_eq!(of_port.requests_in_flight, 1);
    assert_eq!(
        of_port.connections_opened, 1,
        "the old one was opened before"
    );
    assert_eq!(rest.requests, 20 + 1 + 7);
    assert_eq!((rest.requests_in_flight, rest.connections_opened), (0, 2));
    let latencies = world.probes.read(part).request_latency;
    assert_eq!(latencies.iter().sum::<u64>(), of_port.responses_2xx);

    // Bytes go where the requests go.
    let data = vec![7u8; 1 << 20];
    new.answer(OK);
    new.answer(&data);
    let (rest_after, after) = (world.counters(&pod), counters(&world, part));
    assert!(after.transmit_bytes - of_port.transmit_bytes > 1 << 20);
    assert_eq!(rest_after.transmit_bytes, rest.transmit_bytes);

    // It is no longer wanted: nothing is lost, and nothing counts in the part any more.
    world.probes.divide(pod.slot, 8080, None).unwrap();
    world.probes.settle(&[(pod.slot, false), (part, false)]);
    let last = counters(&world, part).requests;
    for _ in 0..3 {
        old.turn(GET, OK);
    }
    assert_eq!(counters(&world, part).requests, last);
    assert_eq!(
        world.counters(&pod).requests + last,
        20 + 1 + 7 + 7 + 5 + 1 + 3
    );
    assert_eq!(counters(&world, part).requests_in_flight, 0);
}

#[test]
fn udp_ports_have_their_bytes() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let (quic, dns) = (pod.udp(SERVER, 443), pod.udp(SERVER, 53));
    let part = apart(&mut world, &pod, 443);
    world.enter_client();
    let client = UdpSocket::bind((CLIENT, 0)).unwrap();
    let headers = 28;
    let mut buffer = [0; 2000];
    for (server, port, sends) in [(&quic, 443, 6), (&dns, 53, 4)] {
        for _ in 0..sends {
            client.send_to(&[1; 1000], (SERVER, port)).unwrap();
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&[1; 100], from).unwrap();
            client.recv_from(&mut buffer).unwrap();
        }
    }
    let (rest, of_port) = (world.counters(&pod), counters(&world, part));
    assert_eq!(of_port.receive_bytes, 6 * (1000 + headers));
    assert_eq!(of_port.transmit_bytes, 6 * (100 + headers));
    assert_eq!((rest.receive_packets, of_port.receive_packets), (4, 6));
}

/// A pod of two containers and their parts.
fn two_containers(world: &mut World) -> (Pod, [(Pod, Slot); 2]) {
    let pod = world.pod("pod");
    let containers = ["app", "proxy"].map(|name| {
        let slot = part(world, &pod);
        let container = world.unassigned(&format!("pod/{name}"), slot);
        world.probes.assign(container.id, slot).unwrap();
        (container, slot)
    });
    (pod, containers)
}

#[test]
fn two_containers_of_one_network_namespace_are_told_apart() {
    let mut world = World::new();
    let (pod, [(app, of_app), (proxy, of_proxy)]) = two_containers(&mut world);
    // The proxy's port 80 is counted apart, not so the app's.
    let of_port = part(&mut world, &pod);
    world.probes.divide(of_proxy, 80, Some(of_port)).unwrap();
    let listeners = [(&app, 8080), (&proxy, 80), (&proxy, 15090)];
    let listeners = listeners.map(|(container, port)| container.listen(SERVER, port));
    world.enter_client();
    for (listener, requests) in listeners.iter().zip([3, 5, 7]) {
        let mut pair = Pair::new(listener);
        for _ in 0..requests {
            pair.turn(GET, OK);
        }
    }
    let requests = [of_app, of_port, of_proxy, pod.slot].map(|slot| {
        let c = counters(&world, slot);
        assert_eq!(c.requests_in_flight, 0);
        assert_eq!(c.receive_bytes > 0, c.requests > 0);
        c.requests
    });
    assert_eq!(requests, [3, 5, 7, 0], "{}", world.troubles());
}

#[test]
fn a_container_is_divided_off_a_pod_whose_connections_are_open() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let mut container = world.unassigned("pod/app", pod.slot);
    world.probes.assign(container.id, pod.slot).unwrap();
    let listener = container.listen(SERVER, 80);
    world.enter_client();
    let mut pair = Pair::new(&listener);
    pair.turn(GET, OK);
    container.slot = part(&mut world, &pod);
    world.probes.assign(container.id, container.slot).unwrap();
    world
        .probes
        .settle(&[(pod.slot, false), (container.slot, false)]);
    for _ in 0..4 {
        pair.turn(GET, OK);
    }
    assert_eq!(world.counters(&pod).requests, 1);
    assert_eq!(
        world.counters(&container).requests,
        4,
        "{}",
        world.troubles()
    );
    // The container ends while its socket lives on: it counts where it did.
    world.probes.unassign(container.id);
    world
        .probes
        .settle(&[(pod.slot, false), (container.slot, false)]);
    pair.turn(GET, OK);
    assert_eq!(world.counters(&container).requests, 5);
}

/// Threads of two containers take turns on one CPU: each waits behind the pod itself, not behind another pod.
#[test]
fn waits_are_told_apart_by_container_and_stay_the_pods_own() {
    let _alone = alone();
    let mut world = World::new();
    let (pod, [(app, _), (proxy, _)]) = two_containers(&mut world);
    want(&mut world, &[Family::RunQueue]);
    let (of_app, of_proxy) = (Load::spin(&app, 2), Load::spin(&proxy, 1));
    std::thread::sleep(Duration::from_millis(500));
    let read = |world: &World| [&app, &proxy].map(|container| world.counters(container));
    let (before, ran, begun) = (read(&world), [of_app.ran(), of_proxy.ran()], Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let (after, took) = (read(&world), begun.elapsed().as_nanos() as f64);
    let ran = [of_app.ran() - ran[0], of_proxy.ran() - ran[1]].map(|ran| ran as f64);
    // Two threads of the app wait while they do not run, and one of the proxy.
    for (i, threads) in [(0, 2.0), (1, 1.0)] {
        let waited = (after[i].runqueue_wait_nanos - before[i].runqueue_wait_nanos) as f64;
        let expected = threads * took - ran[i];
        let ratio = waited / expected;
        assert!((0.9..1.1).contains(&ratio), "{i}: {waited} of {expected}");
        let others = after[i].runqueue_wait_other_pods_nanos;
        assert_eq!(others, 0, "a container of the same pod is no other pod");
        assert!(after[i].runqueue_wait_self_nanos > before[i].runqueue_wait_self_nanos);
    }
    drop((of_app, of_proxy));
    assert!(eventually(Duration::from_secs(5), || {
        world.counters(&pod).runqueue_waits == 0
    }));
}

/// The agent itself, on a tree of cgroups as a kubelet makes it: a container and a port are asked for while requests are
/// under way, the container restarts, and in the end nobody asks any more. The parts always add up to the pod.
#[test]
fn an_agent_counts_apart_what_is_wanted_and_its_pods_stay_whole() {
    const UID: &str = "7a0bd1f5-3c65-4a25-9d1c-0a1b2c3d4e5f";
    let mut world = World::new();
    let id = |n: u64| format!("{n:064x}");
    let path = |n: u64| format!("burstable/pod{UID}/{}", id(n));
    let (app, proxy) = (world.nested(&path(1)), world.nested(&path(2)));
    let agent = Agent::start(&world.root, Setup::default());
    let listeners = [app.listen(SERVER, 8080), proxy.listen(SERVER, 80)];
    let admin = app.listen(SERVER, 9901);
    world.enter_client();
    let mut pairs = [&listeners[0], &admin, &listeners[1]].map(Pair::new);
    let mut sent = 0;
    let mut turns = |pairs: &mut [Pair], turns: [u64; 3]| {
        for (pair, n) in pairs.iter_mut().zip(turns) {
            for _ in 0..n {
                pair.turn(GET, OK);
            }
            sent += n;
        }
        agent.until("the pod's requests", |p| p.requests(UID) == sent);
    };
    turns(&mut pairs, [5, 5, 5]);

    agent.want(UID, &[8080], true);
    let parts = [
        ("", 8080),
        (&id(1), 0),
        (&id(1), 8080),
        (&id(2), 0),
        (&id(2), 8080),
    ];
    let counts = |p: &Published| parts.map(|(container, port)| p.part(UID, container, port));
    agent.until("parts", |p| counts(p) == [Some(0); 5]);
    turns(&mut pairs, [4, 3, 2]);
    let expected = [0, 3, 4, 2, 0].map(Some);
    agent.until("each in its part", |p| counts(p) == expected);

    // The container ends, and another run of it begins.
    let [on_app, on_admin, on_proxy] = pairs;
    let [old_app, of_proxy] = listeners;
    drop((on_app, on_admin, old_app, admin));
    world.remove(&path(1));
    let app = world.nested(&path(3));
    agent.until("the new run", |p| p.part(UID, &id(3), 8080) == Some(0));
    world.enter_server();
    let (again, admin) = (app.listen(SERVER, 8080), app.listen(SERVER, 9901));
    world.enter_client();
    let mut pairs = [Pair::new(&again), Pair::new(&admin), on_proxy];
    turns(&mut pairs, [6, 1, 3]);
    agent.until("both runs", |p| {
        let of = |n, port| p.part(UID, &id(n), port);
        (of(1, 8080), of(3, 8080), of(3, 0), of(2, 0)) == (Some(4), Some(6), Some(1), Some(5))
    });

    agent.want(UID, &[], false);
    agent.until("the end of all parts", |p| {
        p.parts.values().all(|s| s.part.as_ref().unwrap().ended)
    });
    turns(&mut pairs, [2, 2, 2]);
    let whole = agent.with(|p| p.part(UID, &id(3), 8080));
    assert_eq!(whole, Some(6), "what comes later is in no part");
    drop((pairs, again, admin, of_proxy));
    drop(agent);
}
