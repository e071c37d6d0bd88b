//! Picks the role; everything else is in the library.

use clap::Parser;
use ebpf_scaler_collector::{agent, apiserver, telemetry};

/// Measures pods with eBPF and serves the external metrics API.
#[derive(Parser)]
#[command(name = "collector", version)]
struct Cli {
    #[command(flatten)]
    telemetry: telemetry::Args,
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand)]
enum Role {
    /// Measure this node's pods and report them to every API server replica
    Agent(Box<agent::Args>),
    /// Ingest the agents' reports and serve external.metrics.k8s.io
    Apiserver(Box<apiserver::Args>),
}

/// The agent reads and sends; a thread for each of the node's CPUs would only hold memory.
const AGENT_THREADS: usize = 2;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    cli.telemetry.init()?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all();
    match cli.role {
        Role::Agent(args) => runtime
            .worker_threads(AGENT_THREADS)
            .build()?
            .block_on(agent::run(*args)),
        Role::Apiserver(args) => runtime.build()?.block_on(apiserver::run(*args)),
    }
}
