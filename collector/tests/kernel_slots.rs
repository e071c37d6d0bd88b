//! Slots and cgroups: reuse, quarantine, bounds, several agents, few capabilities. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::{Family, Options, Probes};
use kernel::capabilities::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, keep};
use kernel::http::{GET, OK, Pair, one_pod};
use kernel::{CLIENT, EXCLUDED, SERVER, World, eventually};

fn options(world: &World) -> Options {
    Options {
        cgroup: world.root.clone(),
        excluded_ports: vec![EXCLUDED],
        max_pods: 4,
        tls: false,
    }
}

#[test]
fn a_reused_slot_inherits_nothing() {
    let (mut world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.turn(GET, OK);
    pair.ask(GET);
    world.probes.unassign(pod.id);
    world.probes.release(pod.slot);
    assert_eq!(
        world.counters(&pod).requests,
        0,
        "a released slot reads as zero"
    );
    let taken: Vec<_> = std::iter::from_fn(|| world.probes.allocate()).collect();
    let same = taken.iter().find(|slot| slot.index == pod.slot.index);
    // The old connection goes on; it is nobody's but the quarantine's.
    pair.answer(OK);
    pair.turn(GET, OK);
    for slot in &taken {
        assert_eq!(world.probes.read(*slot).counters, Default::default());
    }
    if let Some(same) = same {
        assert_ne!(same.generation, pod.slot.generation);
    }
}

#[test]
fn more_pods_than_slots_are_refused_and_counted() {
    let mut world = World::with(|options| options.max_pods = 2);
    let first = world.probes.allocate().unwrap();
    world.probes.allocate().unwrap();
    assert_eq!(world.probes.allocate(), None);
    assert_eq!(world.statistic("slots_full"), 1);
    world.probes.release(first);
    assert!(world.probes.allocate().is_some());
}

#[test]
fn many_cgroups_share_a_slot_and_changes_are_told_once() {
    let mut world = World::new();
    let first = world.pod("a");
    let second = world.unassigned("b", first.slot);
    world.probes.assign(second.id, first.slot).unwrap();
    let idle = world.pod("idle");
    let listeners = [first.listen(SERVER, 80), second.listen(SERVER, 81)];
    world.enter_client();
    world.probes.changed();
    for listener in &listeners {
        Pair::new(listener).turn(GET, OK);
    }
    assert_eq!(world.counters(&first).requests, 2);
    assert_eq!(world.probes.changed(), [first.slot]);
    std::thread::sleep(Duration::from_millis(300));
    world.probes.changed();
    assert_eq!(world.probes.changed(), []);
    assert_eq!(world.counters(&idle), Default::default());
}

#[test]
fn a_pod_that_is_gone_before_it_is_known_still_counts() {
    let mut world = World::new();
    let slot = world.probes.allocate().unwrap();
    let pod = world.unassigned("short", slot);
    let listener = pod.listen(SERVER, 80);
    world.enter_client();
    let mut pair = Pair::new(&listener);
    for _ in 0..7 {
        pair.turn(GET, OK);
    }
    drop((pair, listener));
    fs::remove_dir(&pod.cgroup).unwrap();
    let found = world.probes.quarantined();
    let [(id, provisional)] = found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(id, pod.id);
    assert_eq!(world.probes.read(provisional).counters.requests, 7);
    // Claimed: it becomes the pod's slot, or is read, absorbed and released.
    world.probes.assign(id, provisional).unwrap();
    assert_eq!(world.probes.quarantined(), []);
    assert_eq!(world.probes.read(provisional).counters.requests, 7);
    fs::create_dir(&pod.cgroup).unwrap();
}

#[test]
fn a_connection_moves_from_quarantine_to_its_pod_without_loss() {
    let mut world = World::new();
    let slot = world.probes.allocate().unwrap();
    let pod = world.unassigned("pod", slot);
    let listener = pod.listen(SERVER, 80);
    world.enter_client();
    let mut pair = Pair::new(&listener);
    pair.turn(GET, OK);
    pair.ask(GET);
    let provisional = world.probes.quarantined()[0].1;
    world.probes.assign(pod.id, slot).unwrap();
    let claimed = world.probes.read(provisional);
    assert_eq!(
        (
            claimed.counters.requests,
            claimed.counters.requests_in_flight
        ),
        (2, 1)
    );
    world.probes.release(provisional);
    pair.answer(OK);
    pair.turn(GET, OK);
    let mut total = world.read(&pod);
    total.absorb(&claimed);
    let c = total.counters;
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (3, 3, 0)
    );
}

#[test]
fn counts_made_between_looking_and_assigning_are_carried_over() {
    let mut world = World::new();
    let slot = world.probes.allocate().unwrap();
    let pod = world.unassigned("pod", slot);
    let listener = pod.listen(SERVER, 80);
    world.enter_client();
    let mut pair = Pair::new(&listener);
    pair.turn(GET, OK);
    // quarantined() was never called, so nobody but the probes can know of the provisional slot.
    world.probes.assign(pod.id, slot).unwrap();
    pair.turn(GET, OK);
    let c = world.counters(&pod);
    assert_eq!(
        (c.requests, c.responses_2xx, c.requests_in_flight),
        (2, 2, 0)
    );
}

#[test]
fn what_nobody_claims_is_forgotten_and_counted() {
    let mut world = World::new();
    let slot = world.probes.allocate().unwrap();
    let pod = world.unassigned("stranger", slot);
    let listener = pod.listen(SERVER, 80);
    world.enter_client();
    let mut pair = Pair::new(&listener);
    pair.turn(GET, OK);
    let found = world.probes.quarantined();
    world.probes.forget_quarantined(found[0].0);
    assert_eq!(world.probes.quarantined(), []);
    assert_eq!(world.statistic("quarantine_forgotten_cgroups"), 1);
    assert_eq!(world.statistic("quarantine_forgotten_requests"), 1);
    // It can come again.
    pair.turn(GET, OK);
    assert_eq!(world.probes.quarantined().len(), 1);
}

#[test]
fn a_full_quarantine_is_counted_and_recovers() {
    let mut world = World::new();
    let slot = world.probes.allocate().unwrap();
    world.enter_client();
    let client = UdpSocket::bind((CLIENT, 0)).unwrap();
    let many = 300;
    for n in 0..many {
        let pod = world.unassigned(&format!("c{n}"), slot);
        let socket = pod.udp(SERVER, 5000);
        client.send_to(b"x", (SERVER, 5000)).unwrap();
        socket.recv(&mut [0; 8]).unwrap();
    }
    assert!(
        world.statistic("quarantine_full") > 0,
        "{}",
        world.troubles()
    );
    assert!(world.statistic("unknown_cgroup_packets") > 0);
    let found = world.probes.quarantined();
    assert!(found.len() >= 100 && found.len() < many, "{}", found.len());
    for (id, _) in found {
        world.probes.forget_quarantined(id);
    }
    let before = world.statistic("quarantine_full");
    let pod = world.unassigned("late", slot);
    let socket = pod.udp(SERVER, 5001);
    client.send_to(b"x", (SERVER, 5001)).unwrap();
    socket.recv(&mut [0; 8]).unwrap();
    assert_eq!(world.statistic("quarantine_full"), before);
    assert_eq!(world.probes.quarantined().len(), 1);
}

#[test]
fn thousand_tenants_leak_no_slot() {
    let mut world = World::with(|options| options.max_pods = 8);
    let (_, id) = world.cgroup("churn");
    for _ in 0..1000 {
        let slot = world.probes.allocate().unwrap();
        world.probes.assign(id, slot).unwrap();
        world.probes.unassign(id);
        world.probes.release(slot);
    }
    assert_eq!(world.statistic("live_slots"), 0);
    let all: Vec<_> = std::iter::from_fn(|| world.probes.allocate()).collect();
    assert_eq!(all.len(), 8);
}

#[test]
fn sockets_beyond_the_cap_are_counted_by_bytes_only() {
    let (world, pod, listener) = one_pod(80);
    world.probes.limit_sockets(2);
    let mut pairs: Vec<Pair> = (0..4).map(|_| Pair::new(&listener)).collect();
    for pair in &mut pairs {
        pair.turn(GET, OK);
    }
    let c = world.counters(&pod);
    assert_eq!(c.requests, 2, "{}", world.troubles());
    assert!(c.receive_bytes as usize >= 4 * GET.len());
    assert!(world.statistic("socket_storage_capped") > 0);
    assert_eq!(world.statistic("live_socket_storages"), 2);
}

#[test]
fn two_agents_count_each_for_itself() {
    let (world, pod, listener) = one_pod(80);
    let mut pair = Pair::new(&listener);
    pair.turn(GET, OK);
    let mut second = Probes::load(&options(&world)).unwrap();
    let slot = second.allocate().unwrap();
    second.assign(pod.id, slot).unwrap();
    for _ in 0..5 {
        pair.turn(GET, OK);
    }
    assert_eq!(world.counters(&pod).requests, 6);
    let c = second.read(slot).counters;
    assert_eq!((c.requests, c.responses_2xx), (5, 5));
    drop(second);
    pair.turn(GET, OK);
    assert_eq!(world.counters(&pod).requests, 7);
}

#[test]
fn three_capabilities_are_enough() {
    let (world, pod, listener) = one_pod(80);
    let options = options(&world);
    let mut probes = std::thread::spawn(move || {
        keep(&[CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN]);
        let mut probes = Probes::load(&options).unwrap();
        assert_eq!(probes.degraded(), []);
        assert_eq!(probes.set_wanted(&[Family::RunQueue].into()), []);
        probes
    })
    .join()
    .unwrap();
    let slot = probes.allocate().unwrap();
    probes.assign(pod.id, slot).unwrap();
    Pair::new(&listener).turn(GET, OK);
    assert_eq!(probes.read(slot).counters.requests, 1);
}

#[test]
fn a_refusal_says_what_is_missing() {
    let world = World::new();
    let options = options(&world);
    let error = std::thread::spawn(move || {
        keep(&[CAP_NET_ADMIN]);
        Probes::load(&options).err().unwrap().to_string()
    })
    .join()
    .unwrap();
    assert!(
        error.contains("CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"),
        "{error}"
    );
    assert!(error.len() < 1500, "{error}");
    let nowhere = Options {
        cgroup: "/no/such/cgroup".into(),
        excluded_ports: vec![],
        max_pods: 1,
        tls: false,
    };
    let error = Probes::load(&nowhere).err().unwrap().to_string();
    assert!(
        error.starts_with("open the cgroup /no/such/cgroup: "),
        "{error}"
    );
}

#[test]
fn links_end_with_the_process_however_it_ends() {
    const CGROUP: &str = "EBPF_SCALER_TEST_CGROUP";
    if let Some(cgroup) = std::env::var_os(CGROUP) {
        // The child: holds the programs until it is killed.
        let options = Options {
            cgroup: cgroup.into(),
            excluded_ports: vec![],
            max_pods: 1,
            tls: false,
        };
        let _probes = Probes::load(&options).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let world = World::new();
    assert_eq!(attached(&world.root), 1);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "links_end_with_the_process_however_it_ends"])
        .env(CGROUP, &world.root)
        .spawn()
        .unwrap();
    assert!(eventually(Duration::from_secs(30), || attached(
        &world.root
    ) == 2));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(eventually(Duration::from_secs(5), || attached(&world.root) == 1));
}

/// How many programs look at packets into the cgroup.
fn attached(cgroup: &Path) -> u32 {
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        padding: u32,
        rest: [u64; 4],
    }
    const BPF_PROG_QUERY: i32 = 16;
    let directory = File::open(cgroup).unwrap();
    let mut query = Query {
        target: directory.as_raw_fd() as u32,
        ..Query::default()
    };
    // SAFETY: the structure begins as bpf(2) says, the rest is zero.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    query.count
}
