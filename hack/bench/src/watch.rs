//! What watching a large cluster's pods needs of one replica of the API server role, before the real kube-apiserver: the
//! time from its start until it knows them, and how it catches up when its watch has ended and what it knew is too old.

mod client;
mod control_plane;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::apiserver::Scratch;
use crate::apiserver::kubernetes::{node, pod};
use crate::apiserver::pki::Pki;
use crate::apiserver::replica::Replica;
use crate::host::Host;
use crate::table::Table;
use crate::{interrupt, write_json};
use client::Client;
use control_plane::ControlPlane;

const PODS_OF_A_NODE: usize = 30;
/// Pods that come while the watch is down.
const MISSED: usize = 100;
const PATIENCE: Duration = Duration::from_secs(600);

/// Flags of `bench watch`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Write the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// A small cluster, to try the bench itself
    #[arg(long)]
    quick: bool,
    /// Pods in the cluster
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// How often kube-apiserver is started again
    #[arg(long, default_value_t = 5)]
    restarts: usize,
}

/// What `--json` writes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pods: usize,
    nodes: usize,
    /// From the replica's start until it says that it is ready.
    ready_ms: f64,
    /// Resident memory then, and the most until then.
    rss_mib: f64,
    peak_mib: f64,
    /// Each time that kube-apiserver ended and came back.
    restarts: Vec<Restart>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Restart {
    /// Whether resources had changed meanwhile that a watch can not catch up with, so that all was listed again.
    expired: bool,
    /// From when kube-apiserver was ready until the replica's gauge of pods was right, with one made after that; it moves
    /// every two seconds.
    caught_up_ms: f64,
    rss_mib: f64,
    peak_mib: f64,
}

/// Measures and prints.
pub fn run(options: &Options) -> anyhow::Result<()> {
    println!("==> bench watch: {}", Host::now().line());
    let (pods, restarts) = if options.quick {
        (300, 2)
    } else {
        (options.pods, options.restarts)
    };
    let results = measure(pods, restarts)?;
    println!("{}", table(&results).text());
    write_json(options.json.as_deref(), &results)
}

fn measure(pods: usize, restarts: usize) -> anyhow::Result<Results> {
    let (scratch, pki) = (Scratch::new()?, Pki::new()?);
    let mut plane = ControlPlane::start(&scratch.0, &pki)?;
    println!("    etcd and kube-apiserver run");
    let kubeconfig = scratch.0.join("admin.kubeconfig");
    fs::write(&kubeconfig, plane.kubeconfig())?;
    plane.start_kwok(&kubeconfig)?;
    let nodes = pods.div_ceil(PODS_OF_A_NODE);
    fill(&mut plane, &pki, pods, nodes)?;

    let began = Instant::now();
    let replica = Replica::start(&scratch.0, &plane.kubeconfig(), &pki)?;
    let ready = began.elapsed();
    interrupt::until("the replica counts all pods", PATIENCE, || {
        Ok(counted(&replica)? == Some(pods))
    })?;
    let mut results = Results {
        pods,
        nodes,
        ready_ms: ready.as_secs_f64() * 1e3,
        rss_mib: mib(replica.rss()?),
        peak_mib: mib(replica.peak()?),
        restarts: Vec::new(),
    };
    println!("    the replica was ready after {} ms", ready.as_millis());
    // From here on pods change only by us: a restart without changes is to be one.
    plane.stop_kwok();
    let mut known = pods;
    for n in 0..restarts {
        let missed = if n % 2 == 0 { 0 } else { MISSED };
        let restart = restart(&mut plane, &replica, &pki, (known, missed, nodes))?;
        println!("    kube-apiserver came back: {restart:?}");
        results.restarts.push(restart);
        known += missed + 1;
    }
    Ok(results)
}

/// Makes the nodes and the pods, and waits until kwok has them all running.
fn fill(plane: &mut ControlPlane, pki: &Pki, pods: usize, nodes: usize) -> anyhow::Result<()> {
    let client = Client::connect(plane.address, pki)?;
    client.create((0..nodes).map(|n| ("/api/v1/nodes".to_owned(), fake_node(n))))?;
    let all: Vec<_> = (0..pods).map(|n| creation(n, nodes)).collect();
    let namespaces: BTreeSet<_> = all.iter().map(|(namespace, ..)| namespace).collect();
    client.create(namespaces.into_iter().map(|name| {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
        });
        ("/api/v1/namespaces".to_owned(), namespace)
    }))?;
    client.create(all.into_iter().map(|(_, path, pod)| (path, pod)))?;
    println!("    {pods} pods on {nodes} nodes are made");
    interrupt::until("all pods run", PATIENCE, || {
        plane.check()?;
        interrupt::pause(Duration::from_secs(1))?;
        let path = "/api/v1/pods?fieldSelector=status.phase!%3DRunning&limit=1";
        let waiting = client.get(path)?;
        Ok(waiting["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    println!("    all pods run");
    Ok(())
}

/// Ends kube-apiserver and starts it again. What is missed is made while the replica is not scheduled: its watch then
/// begins at a version that the new kube-apiserver's cache does not reach back to.
fn restart(
    plane: &mut ControlPlane,
    replica: &Replica,
    pki: &Pki,
    (known, missed, nodes): (usize, usize, usize),
) -> anyhow::Result<Restart> {
    replica.forget_peak()?;
    let halted = Halted::halt(replica);
    if missed > 0 {
        let client = Client::connect(plane.address, pki)?;
        let more = (known..known + missed).map(|n| creation(n, nodes));
        client.create(more.map(|(_, path, pod)| (path, pod)))?;
    }
    plane.stop_apiserver();
    plane.start_apiserver(pki)?;
    let begun = Instant::now();
    drop(halted);
    // One more, by which to see that the watch goes on.
    let client = Client::connect(plane.address, pki)?;
    let (_, path, pod) = creation(known + missed, nodes);
    client.create(std::iter::once((path, pod)))?;
    interrupt::until("the replica has caught up", PATIENCE, || {
        plane.check()?;
        Ok(counted(replica)? == Some(known + missed + 1))
    })?;
    let caught_up = begun.elapsed();
    // What a listing needs besides is given back soon afterwards, or never.
    interrupt::pause(Duration::from_secs(5))?;
    Ok(Restart {
        expired: missed > 0,
        caught_up_ms: caught_up.as_secs_f64() * 1e3,
        rss_mib: mib(replica.rss()?),
        peak_mib: mib(replica.peak()?),
    })
}

/// A process that is not scheduled as long as this lives.
struct Halted(i32);

impl Halted {
    fn halt(replica: &Replica) -> Self {
        let process = replica.id() as i32;
        // SAFETY: a signal to our own child, which is not waited for before it is dropped.
        unsafe { libc::kill(process, libc::SIGSTOP) };
        Self(process)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::kill(self.0, libc::SIGCONT) };
    }
}

/// Pods in the replica's index, as its metrics tell.
fn counted(replica: &Replica) -> anyhow::Result<Option<usize>> {
    let mut stream = std::net::TcpStream::connect(replica.admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).context("/metrics")?;
    let mut lines = page.lines();
    let pods = lines.find_map(|line| line.strip_prefix("ebpf_scaler_apiserver_pods "));
    Ok(pods.and_then(|pods| pods.trim().parse().ok()))
}

/// A pod's namespace, the path to make it at, and itself, without what kube-apiserver and kwok fill in.
fn creation(number: usize, nodes: usize) -> (String, String, Value) {
    let mut pod = pod(number, nodes);
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let namespace = namespace.to_owned();
    if let Some(pod) = pod.as_object_mut() {
        pod.remove("status");
    }
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("uid");
    }
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    (namespace, path, pod)
}

fn fake_node(number: usize) -> Value {
    let room = json!({"cpu": "32", "memory": "256Gi", "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": node(number),
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"type": "kwok"},
        },
        "status": {"allocatable": room, "capacity": room},
    })
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// For people.
pub fn table(results: &Results) -> Table {
    let headings = ["what", "time", "RSS", "most"];
    let title = format!(
        "One replica watches {} pods on {} nodes",
        results.pods, results.nodes
    );
    let mut table = Table::new(&title, &headings);
    let row = |what: &str, ms: f64, rss: f64, peak: f64| {
        [
            what.to_owned(),
            format!("{:.1} s", ms / 1e3),
            format!("{rss:.0} MiB"),
            format!("{peak:.0} MiB"),
        ]
    };
    let start = "started, until ready";
    table.row(row(
        start,
        results.ready_ms,
        results.rss_mib,
        results.peak_mib,
    ));
    for restart in &results.restarts {
        let what = if restart.expired {
            "kube-apiserver came back, its watch cache too young: all listed again"
        } else {
            "kube-apiserver came back"
        };
        table.row(row(
            what,
            restart.caught_up_ms,
            restart.rss_mib,
            restart.peak_mib,
        ));
    }
    table.note(
        "etcd and kube-apiserver are real, kubelets are kwok; no agent reports. Catching up is told by a gauge that moves \
         every 2 s.",
    );
    table
}
