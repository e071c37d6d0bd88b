//! Pods come, restart, move and go while the agent's own loop runs: every request belongs to its pod, and no slot is
//! left behind. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ebpf_scaler_collector::agent::probes::Slot;
use kernel::agent::{Agent, PATIENCE, Published, Setup};
use kernel::http::{GET, OK, Pair};
use kernel::{Pod, SERVER, World, eventually};

fn uid(n: u32) -> String {
    format!("{n:08x}-1111-4222-8333-444455556666")
}

/// A container's id as runtimes make them.
fn container(n: u32) -> String {
    format!("{n:064x}")
}

/// A world whose client is this thread.
fn world() -> World {
    let world = World::new();
    world.enter_client();
    world
}

/// So many requests to a listener that the cgroup makes; both ends are closed in the end.
fn serve(pod: &Pod, port: u16, requests: u32) {
    let listener = pod.listen(SERVER, port);
    let mut pair = Pair::new(&listener);
    for _ in 0..requests {
        pair.turn(GET, OK);
    }
}

#[test]
fn every_driver_runtime_quality_and_kind_of_container() {
    let mut world = world();
    let agent = Agent::start(&world.root.clone(), Setup::default());
    let mut expected = Vec::new();
    let (mut n, mut port) = (0, 1000);
    let mut serve_in = |world: &mut World, path: String, requests: u32| {
        port += 1;
        serve(&world.nested(&path), port, requests);
    };
    // The cgroupfs driver; the sidecar as CRI-O names it, which has a monitor beside it.
    for qos in ["", "burstable/", "besteffort/"] {
        n += 1;
        let pod = format!("{qos}pod{}", uid(n));
        // Sandbox, init container (which ends), container, sidecar, and an ephemeral one that comes late.
        let names = ["", "", "", "crio-", "", "crio-conmon-"];
        for (role, requests) in [(0, 0), (1, 2), (2, 7), (3, 3), (4, 1), (5, 1)] {
            let path = format!("{pod}/{}{}", names[role as usize], container(role));
            serve_in(&mut world, path.clone(), requests);
            if role == 1 {
                // What ends before the agent can look at it is in no pod's count, and told apart.
                agent.counts(&uid(n), 2);
                world.remove(&path);
            }
        }
        expected.push((uid(n), 14));
    }
    // The systemd driver.
    for qos in ["", "-burstable", "-besteffort"] {
        for runtime in ["cri-containerd", "crio", "docker"] {
            n += 1;
            let slice = format!("kubepods{qos}-pod{}.slice", uid(n).replace('-', "_"));
            let pod = match qos {
                "" => slice,
                _ => format!("kubepods{qos}.slice/{slice}"),
            };
            let scope = |role| format!("{pod}/{runtime}-{}.scope", container(role));
            serve_in(&mut world, scope(1), 4);
            serve_in(&mut world, scope(2), 5);
            // Conmon has a scope beside the container's; what it does is the pod's too.
            if runtime == "crio" {
                serve_in(
                    &mut world,
                    format!("{pod}/crio-conmon-{}.scope", container(2)),
                    1,
                );
            }
            expected.push((uid(n), if runtime == "crio" { 10 } else { 9 }));
        }
    }
    // A static pod, whose UID is a hash, with either driver.
    for (n, pod) in [
        "burstable/pod{}",
        "kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
    ]
    .iter()
    .enumerate()
    {
        let hash = format!("{:032x}", 0xabcd_ef00 + n);
        let pod = pod.replace("{}", &hash);
        serve_in(&mut world, format!("{pod}/{}", container(9)), 6);
        expected.push((hash, 6));
    }
    // systemd inside a container, and a kubelet inside one: theirs are the outer pod's.
    n += 1;
    let outer = format!("burstable/pod{}/{}", uid(n), container(1));
    serve_in(&mut world, format!("{outer}/system.slice/nginx.service"), 8);
    serve_in(
        &mut world,
        format!(
            "{outer}/kubepods/burstable/pod{}/{}",
            uid(999),
            container(1)
        ),
        2,
    );
    expected.push((uid(n), 10));
    for (uid, requests) in &expected {
        agent.counts(uid, *requests);
    }
    agent.with(|p| {
        assert_eq!(p.newest.len(), expected.len(), "pods that are none");
        assert!(p.newest.keys().all(|(u, _)| *u != uid(999)));
    });
    assert!(eventually(PATIENCE, || agent.metric("pods ") == expected.len() as u64));
    // Nothing outside kubepods is a pod's: the agent has forgotten nobody.
    assert_eq!(agent.metric("quarantine_forgotten_total"), 0);
}

/// Every request is a pod's, or of a cgroup that was gone before the agent could look, which is told.
fn accounted(agent: &Agent, served: u64) {
    let accounted =
        || agent.with(total) + agent.metric("probe_quarantine_forgotten_requests_total ");
    assert!(
        eventually(PATIENCE, || accounted() >= served) && accounted() == served,
        "{} of {served}: {}",
        accounted(),
        agent.troubles()
    );
}

#[test]
fn pods_that_live_300_ms_are_counted_to_the_last_request() {
    let mut world = world();
    // Their whole life lies between two readings.
    let setup = Setup {
        interval: Duration::from_secs(1),
        ..Setup::default()
    };
    let agent = Agent::start(&world.root.clone(), setup);
    let mut longest = Duration::ZERO;
    for n in 0..20 {
        let (pod, container) = (format!("burstable/pod{}", uid(n)), container(n));
        let begun = Instant::now();
        let path = format!("{pod}/{container}");
        serve(&world.nested(&path), 2000 + n as u16, 30);
        if let Some(left) = Duration::from_millis(300).checked_sub(begun.elapsed()) {
            std::thread::sleep(left / 4);
        }
        world.remove(&path);
        world.remove(&pod);
        longest = longest.max(begun.elapsed());
    }
    accounted(&agent, 600);
    let counted = (0..20).filter(|n| agent.with(|p| p.requests(&uid(*n))) == 30);
    let counted = counted.count();
    eprintln!(
        "{counted} of 20 counted, the longest lived {longest:?}; {}",
        agent.troubles()
    );
    // A machine so loaded that the agent did not get to look for the whole of such a life must say so, no more.
    assert!(counted >= 10, "{}", agent.troubles());
    agent.until("they are gone", |p| p.gone.len() == counted);
}

#[test]
fn a_container_that_restarts_goes_on_counting() {
    let mut world = world();
    let agent = Agent::start(&world.root.clone(), Setup::default());
    let pod = format!("burstable/pod{}", uid(1));
    let sandbox = world.nested(&format!("{pod}/{}", container(0)));
    // The sandbox's own sockets live through restarts.
    let listener = sandbox.listen(SERVER, 3000);
    let mut lasting = Pair::new(&listener);
    let mut expected = 0;
    for restart in 1..=10 {
        let path = format!("{pod}/{}", container(restart));
        serve(&world.nested(&path), 3001, 5);
        // Cut off by the crash.
        let listener = world.nested(&path).listen(SERVER, 3002);
        let mut pair = Pair::new(&listener);
        pair.ask(GET);
        drop((pair, listener));
        world.remove(&path);
        lasting.turn(GET, OK);
        expected += 7;
        if restart % 3 == 0 {
            agent.counts(&uid(1), expected);
        }
    }
    agent.counts(&uid(1), expected);
    agent.until("nothing is in flight", |p| {
        p.newest
            .values()
            .all(|c| (c.requests_in_flight, c.requests_aborted) == (0, 10))
    });
    agent.with(|p| {
        assert_eq!(p.epochs(&uid(1)).len(), 1, "a restart is no new pod");
        assert!(p.gone.is_empty());
    });
    drop((lasting, listener));
}

#[test]
fn a_thousand_pods_one_after_the_other_leave_no_slot_behind() {
    let mut world = world();
    // All of them fit at once: slots rest for a moment, and a fast machine is through before the first has rested.
    let setup = Setup {
        max_pods: 1100,
        ..Setup::default()
    };
    let agent = Agent::start(&world.root.clone(), setup);
    let begun = Instant::now();
    let mut served = 0;
    for n in 0..1000 {
        let pod = format!("besteffort/pod{}", uid(n));
        let path = format!("{pod}/{}", container(n));
        let cgroup = world.nested(&path);
        // Most do nothing, as jobs that only compute; the others serve.
        if n % 10 == 0 {
            serve(&cgroup, 4000, 1 + n % 7);
            served += u64::from(1 + n % 7);
        }
        world.remove(&path);
        world.remove(&pod);
    }
    eprintln!("1,000 pods in {:?}", begun.elapsed());
    accounted(&agent, served);
    assert!(
        eventually(PATIENCE, || {
            agent.metric("pods ") == 0
                && agent.metric("probe_live_slots ") == 0
                && agent.metric("cgroups_quarantined ") == 0
        }),
        "{}",
        agent.troubles()
    );
    assert_eq!(
        (
            agent.metric("probe_slots_full_total "),
            agent.metric("cgroups_refused_total "),
        ),
        (0, 0),
        "{}",
        agent.troubles()
    );
}

#[test]
fn two_hundred_and_fifty_pods_and_one_too_many() {
    let mut world = world();
    let setup = Setup {
        max_pods: 250,
        ..Setup::default()
    };
    let agent = Agent::start(&world.root.clone(), setup);
    let pod = |n| format!("burstable/pod{}", uid(n));
    let mut apps = Vec::new();
    for n in 0..250 {
        world.nested(&format!("{}/{}", pod(n), container(0)));
        apps.push(world.nested(&format!("{}/{}", pod(n), container(1))));
    }
    assert!(
        eventually(PATIENCE, || agent.metric("pods ") == 250),
        "{}",
        agent.troubles()
    );
    let listeners: Vec<_> = (5000..)
        .zip(&apps)
        .map(|(port, app)| app.listen(SERVER, port))
        .collect();
    let mut pairs: Vec<Pair> = listeners.iter().map(Pair::new).collect();
    // All at once, each another number of requests.
    for round in 0..5 {
        for (n, pair) in pairs.iter_mut().enumerate() {
            if n % 5 >= round {
                pair.turn(GET, OK);
            }
        }
    }
    for n in 0..250 {
        agent.counts(&uid(n), u64::from(n % 5) + 1);
    }
    // The next one has no slot: silent, not zero, and told.
    world.nested(&format!("{}/{}", pod(250), container(1)));
    assert!(
        eventually(PATIENCE, || agent.metric("pods_unmeasured ") == 1),
        "{}",
        agent.troubles()
    );
    agent.with(|p| assert!(p.epochs(&uid(250)).is_empty()));
    drop((pairs, listeners));
    for role in 0..2 {
        world.remove(&format!("{}/{}", pod(7), container(role)));
    }
    world.remove(&pod(7));
    agent.until("it has the slot of one that went", |p| {
        p.epochs(&uid(250)).values().eq([&0])
    });
}

/// A client that keeps three connections busy until told to stop; says how many requests were answered.
struct Busy {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Busy {
    fn start(mut pairs: Vec<Pair>) -> Busy {
        let (stop, answered) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                for pair in &mut pairs {
                    pair.turn(GET, OK);
                    count.fetch_add(1, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Busy {
            stop,
            answered,
            thread,
        }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.answered.load(Ordering::SeqCst)
    }
}

fn total(published: &Published) -> u64 {
    published.newest.values().map(|c| c.requests).sum()
}

#[test]
fn restarts_and_an_upgrade_with_two_agents_at_once_neither_lose_nor_jump() {
    const CONNECTIONS: u64 = 3;
    let mut world = world();
    let root = world.root.clone();
    let apps: Vec<Pod> = (1..=3)
        .map(|n| world.nested(&format!("pod{}/{}", uid(n), container(n))))
        .collect();
    let listeners: Vec<_> = (6000..)
        .zip(&apps)
        .map(|(port, app)| app.listen(SERVER, port))
        .collect();
    // The connections are older than every agent.
    let busy = Busy::start(listeners.iter().map(Pair::new).collect());
    let agent = |first_epoch| {
        let setup = Setup {
            first_epoch,
            ..Setup::default()
        };
        let before = busy.answered();
        let agent = Agent::start(&root, setup);
        agent.until("requests", |p| total(p) > 100);
        // It has seen no more than this, and will have seen all but this.
        (agent, before, busy.answered() - 100)
    };
    let (old, old_from, old_to) = agent(1_000);
    // A rolling update: the new one measures before the old one has gone.
    let (new, new_from, new_to) = agent(2_000);
    let stop_from = busy.answered();
    let old = old.stop();
    let stop_to = busy.answered();
    let counted = total(&old);
    assert!(
        (stop_from - old_to - CONNECTIONS..=stop_to - old_from + CONNECTIONS).contains(&counted),
        "the old one: {counted}, from {old_from}..{old_to} to {stop_from}..{stop_to}"
    );
    let seen = new.with(total);
    new.until("it goes on", |p| total(p) > seen + 200);
    // A restart: for a while there is none.
    let stop_from = busy.answered();
    let new = new.stop();
    let stop_to = busy.answered();
    let counted = total(&new);
    assert!(
        (stop_from - new_to - CONNECTIONS..=stop_to - new_from + CONNECTIONS).contains(&counted),
        "the new one: {counted}, from {new_from}..{new_to} to {stop_from}..{stop_to}"
    );
    let (last, last_from, last_to) = agent(3_000);
    let all = busy.stop();
    last.until("all are counted", |p| {
        total(p) + CONNECTIONS + last_to >= all
    });
    let last = last.stop();
    let counted = total(&last);
    assert!(
        counted <= all - last_from,
        "the restarted one: {counted}, from {last_from}..{last_to} to {all}"
    );
    // Each counts for itself, from nothing, in epochs that follow each other.
    for (published, first) in [(&old, 1_000), (&new, 2_000), (&last, 3_000)] {
        for n in 1..=3 {
            let epochs = published.epochs(&uid(n));
            assert_eq!(epochs.len(), 1, "{epochs:?}");
            assert!((first..first + 10).contains(epochs.keys().next().unwrap()));
        }
        for counters in published.newest.values() {
            assert!(counters.requests_in_flight <= 1, "{counters:?}");
            assert_eq!(counters.connections_opened, 0, "older than the agent");
        }
    }
}

#[test]
fn a_full_cgroup_map_is_told_and_counts_nothing_twice() {
    let mut world = world();
    let root = world.root.clone();
    let setup = Setup {
        max_pods: 4,
        ..Setup::default()
    };
    let mut filled = 0;
    let agent = Agent::start_prepared(&root, setup, |probes| {
        let nobody = Slot {
            index: 0,
            generation: 0,
        };
        while probes.assign(u64::MAX - filled, nobody).is_ok() {
            filled += 1;
        }
        // Room for one.
        probes.unassign(u64::MAX);
    });
    eprintln!("{filled} cgroups fill the map");
    let pod = format!("pod{}", uid(1));
    // The pod's own directory takes the last place; its container's finds none.
    world.nested(&pod);
    assert!(eventually(PATIENCE, || agent.metric("pods ") == 1));
    let app = world.nested(&format!("{pod}/{}", container(1)));
    let listener = app.listen(SERVER, 7000);
    let mut pair = Pair::new(&listener);
    let mut served = 0;
    for _ in 0..8 {
        for _ in 0..5 {
            pair.turn(GET, OK);
            served += 1;
        }
        std::thread::sleep(Duration::from_millis(250));
        let counted = agent.with(|p| p.requests(&uid(1)));
        assert!(counted <= served, "{counted} of {served} requests counted");
    }
    assert!(
        agent.metric("cgroups_refused_total ") > 0,
        "{}",
        agent.troubles()
    );
    // What is not its pod's is in quarantine, from which it will be forgotten and counted as such.
    let counted = agent.with(|p| p.requests(&uid(1)));
    assert!(
        counted == served || agent.metric("cgroups_quarantined ") == 1,
        "{counted} of {served}: {}",
        agent.troubles()
    );
}
