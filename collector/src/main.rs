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
    Agent(agent::Args),
    /// Ingest the agents' reports and serve external.metrics.k8s.io
    Apiserver(apiserver::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    cli.telemetry.init()?;
    match cli.role {
        Role::Agent(args) => agent::run(args).await,
        Role::Apiserver(args) => apiserver::run(args).await,
    }
}
