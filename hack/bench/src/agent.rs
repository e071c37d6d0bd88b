//! What the agent itself needs on a node with many pods: memory with its maps, CPU when nothing happens, CPU under
//! load. The real agent reports to a real stream, as on a node.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use ebpf_scaler_sample::log::{self, Event, Line};
use ebpf_scaler_testbed::Wire;
use serde::Serialize;

use crate::agent_process::{Agent, account_memory};
use crate::host::Host;
use crate::interrupt;
use crate::process;
use crate::servers::{Listening, Server};
use crate::site::{Pod, Site};
use crate::table::{Table, verdict};
use crate::write_json;

const PODS: usize = 250;
/// Pods that serve, and requests a second to each.
const SERVING: usize = 10;
const RATE_EACH: u32 = 1000;
/// Budgets.
const MEMORY_MIB: f64 = 64.0;
const IDLE: f64 = 0.01;
const LOADED: f64 = 0.02;
/// An agent has found all pods within this time.
const FOUND: Duration = Duration::from_secs(60);

/// Flags of `bench agent`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// Write the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Short runs, to try the bench itself
    #[arg(long)]
    quick: bool,
}

/// What it used.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    /// Pods on the node.
    pub pods: usize,
    /// Of the agent's cgroup, with maps, idle.
    pub memory_mib: f64,
    /// The same under load.
    pub memory_mib_10k: f64,
    /// Share of one CPU, all pods idle.
    pub cpu_core_idle: f64,
    /// Share of one CPU at `rate_10k`.
    pub cpu_core_10k: f64,
    /// Requests a second that were really answered.
    pub rate_10k: f64,
}

#[derive(Serialize)]
struct Results {
    host: Host,
    agent: Usage,
}

/// Measures and prints.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let host = Host::now();
    println!("==> bench agent: {}", host.line());
    let agent = measure(options.quick)?;
    println!("{}", table(&agent).text());
    write_json(options.json.as_deref(), &Results { host, agent })
}

/// Idle first, then under load.
pub fn measure(quick: bool) -> anyhow::Result<Usage> {
    let (settle, idle, loaded) = if quick { (2, 3, 3) } else { (10, 30, 30) };
    let site = Site::create(Wire::Direct)?;
    account_memory(&site)?;
    let pods = (0..PODS)
        .map(|_| site.pod())
        .collect::<anyhow::Result<Vec<Pod>>>()?;
    let agent = Agent::start(&site, &[])?;
    interrupt::until("the agent reports all pods", FOUND, || {
        Ok(agent.sink.pods() >= PODS)
    })?;
    interrupt::pause(Duration::from_secs(settle))?;
    let (cpu_core_idle, _) = cpu_during(&agent, || interrupt::pause(Duration::from_secs(idle)))?;
    let memory_mib = mib(agent.memory()?);

    let servers: Vec<Listening> = pods
        .iter()
        .take(SERVING)
        .map(|pod| Server::Sample(0).start(&site, pod))
        .collect::<Result<_, _>>()?;
    let (cpu_core_10k, rate_10k) = cpu_during(&agent, || {
        load(&site, &servers, Duration::from_secs(loaded))
    })?;
    anyhow::ensure!(
        agent.sink.all_requests() as f64 >= 0.9 * rate_10k * loaded as f64,
        "the agent did not measure the load"
    );
    Ok(Usage {
        pods: PODS,
        memory_mib,
        memory_mib_10k: mib(agent.memory()?),
        cpu_core_idle,
        cpu_core_10k,
        rate_10k,
    })
}

/// The agent's share of one CPU while something goes on.
fn cpu_during<T>(
    agent: &Agent,
    act: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(f64, T)> {
    let (before, begun) = (agent.cpu_time()?, Instant::now());
    let result = act()?;
    let (used, took) = (agent.cpu_time()? - before, begun.elapsed());
    Ok((used.as_secs_f64() / took.as_secs_f64(), result))
}

/// Open-loop load on all servers; returns requests answered a second.
fn load(site: &Site, servers: &[Listening], time: Duration) -> anyhow::Result<f64> {
    let mut command = site.client(Path::new(&process::sibling("sample")?))?;
    let phase = format!("{}s@{RATE_EACH}", time.as_secs());
    command.args(["load", "--connections", "8", "--phase", &phase]);
    for server in servers {
        command.args(["--target", &server.url("/")]);
    }
    let text = process::output(&mut command, time + Duration::from_secs(60))?;
    let totals = text.lines().rev().find_map(|line| match log::parse(line) {
        Some(Line::Event(Event::Totals { targets })) => Some(targets),
        _ => None,
    });
    let totals = totals.context("the load generator printed no totals")?;
    let completed: u64 = totals.iter().map(|target| target.completed).sum();
    Ok(completed as f64 / time.as_secs_f64())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// For people.
pub fn table(usage: &Usage) -> Table {
    let title = format!("The agent with {} pods", usage.pods);
    let mut table = Table::new(&title, &["what", "measured", "budget", ""]);
    let percent = |share: f64| format!("{:.2} % of a CPU", share * 100.0);
    let mut row = |what: &str, text: String, budget: String, ok: bool| {
        table.row([what.to_owned(), text, budget, verdict(ok)]);
    };
    for (what, mib) in [
        ("memory with maps, idle", usage.memory_mib),
        ("memory with maps, under load", usage.memory_mib_10k),
    ] {
        let budget = format!("{MEMORY_MIB:.0} MiB");
        row(what, format!("{mib:.1} MiB"), budget, mib <= MEMORY_MIB);
    }
    let idle = usage.cpu_core_idle;
    row("CPU, idle", percent(idle), percent(IDLE), idle <= IDLE);
    let loaded = usage.cpu_core_10k;
    let what = format!("CPU at {:.0} requests/s to {SERVING} pods", usage.rate_10k);
    row(&what, percent(loaded), percent(LOADED), loaded <= LOADED);
    let wanted = f64::from(RATE_EACH) * SERVING as f64;
    if usage.rate_10k < 0.95 * wanted {
        table.note(format!(
            "The machine did not manage the {wanted:.0} requests/s that were due."
        ));
    }
    table
}
