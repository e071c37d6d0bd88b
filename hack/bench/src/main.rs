//! Benches on this machine's kernel, without a cluster: whether what is counted is what was sent, and what measuring
//! costs. They drive the real programs and the real agent, and report; they never change what they measure.

mod accuracy;
mod actors;
mod agent;
mod agent_process;
mod apiserver;
mod docs;
mod generators;
mod grpc;
mod host;
mod interrupt;
mod overhead;
mod process;
mod scene;
mod servers;
mod sink;
mod site;
mod table;
mod watch;

use std::path::Path;

use anyhow::Context;
use clap::Parser;
use serde::Serialize;

/// Measures ebpf-scaler on this machine's kernel; run it by `cargo xtask bench`
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
enum Bench {
    /// Requests counted against requests generated, workload by workload
    Accuracy(accuracy::Options),
    /// What measuring costs: each program, throughput, the agent
    Overhead(overhead::Options),
    /// Memory and CPU of the agent with 250 pods
    Agent(agent::Options),
    /// One replica of the API server role with up to 100,000 pods
    Apiserver(apiserver::Options),
    /// One replica of the API server role that watches the pods of a real kube-apiserver
    Watch(watch::Options),
    /// Accuracy and overhead, written to docs/benchmarks.md
    Docs(docs::Options),
    /// A process of a pod
    #[command(hide = true, subcommand)]
    Actor(actors::Actor),
}

fn main() -> anyhow::Result<()> {
    let bench = match Bench::parse() {
        // They are to end by a signal, as any program.
        Bench::Actor(actor) => return actors::run(actor),
        bench => bench,
    };
    interrupt::install();
    match bench {
        Bench::Accuracy(options) => accuracy::run(&options),
        Bench::Overhead(options) => overhead::run(&options),
        Bench::Agent(options) => agent::run(&options),
        Bench::Apiserver(options) => apiserver::run(&options),
        Bench::Watch(options) => watch::run(&options),
        Bench::Docs(options) => docs::run(&options),
        Bench::Actor(actor) => actors::run(actor),
    }
}

/// Writes results to the file of `--json`, if there is one.
fn write_json(file: Option<&Path>, results: &impl Serialize) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(results)? + "\n";
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
