//! Command line of the sample workloads; each subcommand lives in its own module.

use clap::Parser;
use ebpf_scaler_sample::{load, proxy, serve, spin, stream};

/// A sample web service and an open-loop load generator
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Serve HTTP/1.1, with a given amount of CPU work per request
    Serve(serve::Args),
    /// Generate requests on a schedule that does not wait for responses, and count exactly
    Load(load::Args),
    /// Send request bodies at a byte rate
    Stream(stream::Args),
    /// Forward every request to another address, as a reverse proxy in front of an application does
    Proxy(proxy::Args),
    /// Keep threads busy, so that others wait for a CPU
    Spin(spin::Args),
}

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Command::Serve(args) = &command {
        runtime.worker_threads(args.threads.max(1));
    } else {
        runtime.worker_threads(2);
    }
    runtime.enable_all().build()?.block_on(async {
        match command {
            Command::Serve(args) => serve::run(args).await,
            Command::Load(args) => load::run(args).await,
            Command::Stream(args) => load::run(args.into_load()).await,
            Command::Proxy(args) => proxy::run(args).await,
            Command::Spin(args) => spin::run(args).await,
        }
    })
}
