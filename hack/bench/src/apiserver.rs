//! What one replica of the API server role needs for a cluster of so many pods, and how fast it answers: the real
//! process, agents that report over real gRPC, queries over the real HTTPS API. Kubernetes itself is a stand-in.

mod agents;
pub mod kubernetes;
pub mod pki;
pub mod queries;
pub mod replica;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::interrupt;
use crate::table::{Table, verdict};
use crate::write_json;
use agents::Agents;
use kubernetes::Kubernetes;
use pki::Pki;
use queries::{Answers, Queries};
use replica::Replica;

/// Pods of a node, and those of them that serve requests, of 10.
const PODS_OF_A_NODE: usize = 30;
const ACTIVE_OF_TEN: usize = 2;
/// Budgets of design.md, for the largest size.
const RSS_MIB: f64 = 1024.0;
const QUERY_P99_MS: f64 = 5.0;

/// Flags of `bench apiserver`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// Write the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// One small cluster and short runs, to try the bench itself
    #[arg(long)]
    quick: bool,
    /// Pods of the clusters to measure, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    pods: Vec<usize>,
    /// How long to measure each
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// One size of cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Point {
    /// Pods in the cluster.
    pods: usize,
    /// CPUs that the replica used, queries included.
    ingest_cores: f64,
    /// Resident memory of the replica at the end, with five minutes of history.
    rss_mib: f64,
    /// Time from sending a query to its whole answer.
    query_p50_ms: f64,
    query_p99_ms: f64,
    #[serde(skip)]
    aside: Option<Aside>,
}

/// What else is printed.
#[derive(Clone, Debug, Default)]
struct Aside {
    ready: Duration,
    queries: usize,
    /// Of those, answered with 503 because agents were late.
    incomplete: usize,
    /// Share of the reports due that the agents managed to send.
    sent: f64,
}

/// What `--json` writes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    points: Vec<Point>,
}

/// Measures and prints.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let host = Host::now();
    println!("==> bench apiserver: {}", host.line());
    let (sizes, time) = if options.quick {
        (vec![300], Duration::from_secs(3))
    } else {
        (options.pods.clone(), Duration::from_secs(options.seconds))
    };
    let mut points = Vec::new();
    for pods in sizes {
        let point = measure(pods, time, options.quick)?;
        if let Some(aside) = &point.aside {
            println!("    {}", line(pods, aside));
        }
        points.push(point);
    }
    let results = Results { points };
    println!("{}", table(&results).text());
    write_json(options.json.as_deref(), &results)
}

fn measure(pods: usize, time: Duration, quick: bool) -> anyhow::Result<Point> {
    let scratch = Scratch::new()?;
    let pki = Pki::new()?;
    let kubernetes = Kubernetes::start(pods, &pki)?;
    let began = Instant::now();
    let mut replica = Replica::start(&scratch.0, &kubernetes.kubeconfig(), &pki)?;
    let ready = began.elapsed();
    let agents = Agents::start(kubernetes.nodes(), pods, &replica, &pki)?;
    let limit = Duration::from_secs(600);
    interrupt::until("all agents report", limit, || {
        replica.check()?;
        agents.check()?;
        Ok(agents.reporting() >= kubernetes.nodes())
    })?;
    // The finest history fills by itself within its ten seconds; the rest of the five minutes was replayed.
    interrupt::pause(Duration::from_secs(if quick { 2 } else { 15 }))?;

    let queries = Queries::start(pods, &replica, &pki)?;
    let (cpu, sent, begun) = (replica.cpu_time()?, agents.sent(), Instant::now());
    interrupt::pause(time)?;
    let took = begun.elapsed().as_secs_f64();
    let used = (replica.cpu_time()? - cpu).as_secs_f64();
    let due = kubernetes.nodes() as f64 * 4.0 * took;
    let sent = (agents.sent() - sent) as f64 / due;
    let Answers {
        latencies,
        incomplete,
    } = queries.finish()?;
    agents.check()?;
    replica.check()?;
    let quantile = |q: f64| {
        let rank = (latencies.len() as f64 * q).ceil().max(1.0) as usize - 1;
        latencies.get(rank).map(|d| d.as_secs_f64() * 1e3)
    };
    let no_answers = "no query was answered";
    Ok(Point {
        pods,
        ingest_cores: used / took,
        rss_mib: replica.rss()? as f64 / f64::from(1 << 20),
        query_p50_ms: quantile(0.5).context(no_answers)?,
        query_p99_ms: quantile(0.99).context(no_answers)?,
        aside: Some(Aside {
            ready,
            queries: latencies.len(),
            incomplete,
            sent,
        }),
    })
}

fn line(pods: usize, aside: &Aside) -> String {
    let Aside {
        ready,
        queries,
        incomplete,
        sent,
    } = aside;
    format!(
        "{} pods: ready after {:.1} s, {:.1} % of the reports due were sent, {queries} queries, {incomplete} of them \
         answered that agents are silent",
        pods,
        ready.as_secs_f64(),
        sent * 100.0
    )
}

/// For people.
pub fn table(results: &Results) -> Table {
    let headings = [
        "pods",
        "CPUs",
        "RSS",
        "query p50",
        "query p99",
        "budget",
        "",
    ];
    let mut table = Table::new("One replica of the API server role", &headings);
    for point in &results.points {
        let ok = point.rss_mib <= RSS_MIB && point.query_p99_ms <= QUERY_P99_MS;
        table.row([
            point.pods.to_string(),
            format!("{:.2}", point.ingest_cores),
            format!("{:.0} MiB", point.rss_mib),
            format!("{:.2} ms", point.query_p50_ms),
            format!("{:.2} ms", point.query_p99_ms),
            format!("{RSS_MIB:.0} MiB, p99 {QUERY_P99_MS:.0} ms"),
            verdict(ok),
        ]);
        let sent = point.aside.as_ref().map_or(1.0, |aside| aside.sent);
        if sent < 0.95 {
            table.note(format!(
                "With {} pods the agents sent only {:.0} % of their reports in time: this machine, which also runs them, \
                 was too busy.",
                point.pods,
                sent * 100.0
            ));
        }
    }
    table.note(format!(
        "{PODS_OF_A_NODE} pods a node, {ACTIVE_OF_TEN} of 10 active and reported every 250 ms; agents, queries and the \
         stand-in for Kubernetes run on the same machine."
    ));
    table
}

/// A directory that goes with us.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty one.
    pub fn new() -> anyhow::Result<Self> {
        let name = format!("ebpf-scaler-bench-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).context("cannot make a scratch directory")?;
        Ok(Self(directory))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
