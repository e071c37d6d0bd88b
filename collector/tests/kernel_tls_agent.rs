//! The agent finds the TLS libraries of pods by itself, and only of those that it may: its loop as it runs on a node.
//! Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::{Family, Options, Probes};
use ebpf_scaler_collector::agent::report::Wanted;
use ebpf_scaler_collector::agent::tls::{Allowed, libraries_of};
use kernel::agent::{Agent, Setup};
use kernel::capabilities::{
    CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE, keep,
};
use kernel::tls::{Client, Process, files, nginx_config};
use kernel::{Pod, SERVER, World, eventually};

const WANTED: &str = "7a0bd1f5-3c65-4a25-9d1c-0a1b2c3d4e5f";
const OTHER: &str = "8b1ce2a6-4d76-4b36-8e2d-1b2c3d4e5f60";

/// Two pods of nginx with TLS, and a client.
struct Node {
    servers: [Process; 2],
    files: [std::path::PathBuf; 2],
    world: World,
}

const PORTS: [u16; 2] = [443, 8443];

impl Node {
    fn new() -> Node {
        let mut world = World::new();
        let pods =
            [WANTED, OTHER].map(|uid| world.nested(&format!("burstable/pod{uid}/container")));
        let name = world.name.clone();
        let files = [0, 1].map(|index| files(&format!("{name}-{index}")));
        let serve = |index: usize, pod: &Pod| {
            let config = nginx_config(&files[index], PORTS[index]);
            let mut command = pod.command("nginx");
            Process::start(command.arg("-c").arg(config).stderr(Stdio::null()))
        };
        let servers = [serve(0, &pods[0]), serve(1, &pods[1])];
        world.enter_client();
        for port in PORTS {
            assert!(eventually(Duration::from_secs(20), || {
                TcpStream::connect((SERVER, port)).is_ok()
            }));
        }
        Node {
            servers,
            files,
            world,
        }
    }

    fn agent(&self, tls: Allowed) -> Agent {
        let setup = Setup {
            tls,
            ..Setup::default()
        };
        Agent::start(&self.world.root, setup)
    }

    fn ask(&self, times: usize) {
        for port in PORTS {
            let mut client = Client::connect(Command::new("openssl"), port);
            for _ in 0..times {
                assert_eq!(client.ask("/hello"), 200);
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for directory in &self.files {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

fn want(pods: &[&str]) -> Wanted {
    Wanted {
        replica: "127.0.0.1:1".parse().unwrap(),
        families: Vec::new(),
        divide: std::collections::HashMap::new(),
        tls_pods: pods.iter().map(|uid| (*uid).to_owned()).collect(),
        ttl: Duration::from_secs(600),
    }
}

#[test]
fn libraries_of_all_pods_are_found() {
    let node = Node::new();
    let agent = node.agent(Allowed::All);
    let probed = || agent.metric("probe_live_tls_libraries") == 1;
    assert!(
        eventually(Duration::from_secs(20), probed),
        "{}",
        agent.troubles()
    );
    node.ask(5);
    agent.counts(WANTED, 5);
    agent.counts(OTHER, 5);
    assert_eq!(agent.metric("family_active{family=\"tls\"}"), 1);
    assert_eq!(agent.metric("family_degraded{family=\"tls\"}"), 0);
    assert_eq!(agent.metric("probe_tls_without_symbols_total"), 0);
}

#[test]
fn only_pods_that_somebody_wants_are_probed_and_counted() {
    let node = Node::new();
    let agent = node.agent(Allowed::Wanted);
    node.ask(3);
    assert_eq!(agent.metric("probe_live_tls_libraries"), 0);
    agent.ask(want(&[WANTED]));
    let probed = || agent.metric("probe_live_tls_libraries") == 1;
    assert!(
        eventually(Duration::from_secs(20), probed),
        "{}",
        agent.troubles()
    );
    node.ask(5);
    agent.counts(WANTED, 5);
    agent.counts(OTHER, 0);
    agent.ask(want(&[]));
    let spared = || agent.metric("probe_live_tls_libraries") == 0;
    assert!(eventually(Duration::from_secs(20), spared));
    assert_eq!(agent.metric("family_active{family=\"tls\"}"), 0);
    node.ask(3);
    agent.ask(want(&[WANTED, OTHER]));
    assert!(eventually(Duration::from_secs(20), probed));
    node.ask(2);
    agent.counts(WANTED, 7);
    agent.counts(OTHER, 2);
}

#[test]
fn where_it_is_not_allowed_nobody_is_probed() {
    let node = Node::new();
    let agent = node.agent(Allowed::Never);
    agent.ask(want(&[WANTED, OTHER]));
    node.ask(3);
    let told = || agent.metric("family_degraded{family=\"tls\"}") == 1;
    assert!(
        eventually(Duration::from_secs(20), told),
        "asked for in vain"
    );
    node.ask(1);
    agent.counts(WANTED, 0);
    assert_eq!(agent.metric("probe_live_tls_libraries"), 0);
    assert_eq!(agent.metric("family_active{family=\"tls\"}"), 0);
}

/// Beside what every agent has, only these: one to look at processes, one that newer kernels want for uprobes. What is
/// missing is named.
#[test]
fn two_capabilities_more_are_enough() {
    const AGENTS: [u64; 3] = [CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN];
    let node = Node::new();
    let server = node.servers[0].id();
    let options = Options {
        cgroup: node.world.root.clone(),
        excluded_ports: Vec::new(),
        max_pods: 4,
        tls: true,
    };
    let with = |more: &[u64]| {
        let capabilities = [&AGENTS, more].concat();
        let options = options.clone();
        let tried = std::thread::spawn(move || {
            keep(&capabilities);
            let mut probes = Probes::load(&options).unwrap();
            assert_eq!(probes.degraded(), []);
            let libraries = libraries_of(server).map_err(|error| format!("{:?}", error.kind()))?;
            for library in &libraries {
                probes.probe(library)?;
            }
            Ok(probes.active().contains(&Family::Tls))
        });
        tried.join().unwrap()
    };
    assert_eq!(with(&[]), Err::<bool, String>("PermissionDenied".into()));
    assert_eq!(with(&[CAP_SYS_PTRACE, CAP_SYS_ADMIN]), Ok(true));
    // Kernels before July 2025 do without.
    if let Err(said) = with(&[CAP_SYS_PTRACE]) {
        assert!(said.contains("needed: CAP_SYS_ADMIN"), "{said}");
    }
}
