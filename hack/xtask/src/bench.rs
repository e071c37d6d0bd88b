//! `cargo xtask bench`: measurements, each beside its peer in the same run. Reaction times need a cluster; accuracy
//! and overhead need this host's kernel only, and a program of their own (hack/bench) measures them.

mod host;
mod reaction;
mod visible;

use crate::{demo, steps::Steps};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// From a load step to the patched Deployment: EbpfScaler and, on the same step, an HPA on our metric
    Reaction(Reaction),
    /// Requests counted against requests generated, on this host's kernel, without a cluster
    Accuracy(host::Options),
    /// Nanoseconds of each program, throughput lost, memory and CPU of the agent, on this host's kernel
    Overhead(host::Options),
    /// Memory and CPU of the agent alone
    Agent(host::Options),
    /// CPU, memory and answers of one API server replica with up to 100,000 pods; neither root nor a cluster
    Apiserver(host::Options),
    /// Start, catching up and memory of one API server replica that watches 10,000 pods of a real kube-apiserver, which
    /// kwok plays kubelet for; no cluster
    Watch(host::Options),
    /// Accuracy and overhead, written to docs/benchmarks.md
    Docs(host::Options),
}

#[derive(clap::Args)]
struct Reaction {
    #[command(flatten)]
    options: reaction::Options,
    #[command(flatten)]
    target: demo::Target,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut steps = Steps::new("bench");
    match args.what {
        What::Reaction(Reaction { options, target }) => {
            let runtime = tokio::runtime::Runtime::new()?;
            let kubeconfig = demo::set_up(&mut steps, &runtime, &target)?;
            runtime.block_on(reaction::run(&kubeconfig, &options))
        }
        What::Accuracy(options) => host::run(&mut steps, "accuracy", &options),
        What::Overhead(options) => host::run(&mut steps, "overhead", &options),
        What::Agent(options) => host::run(&mut steps, "agent", &options),
        What::Apiserver(options) => host::run_without_kernel(&mut steps, "apiserver", &options),
        What::Watch(options) => host::run_with_kubernetes(&mut steps, "watch", &options),
        What::Docs(options) => host::run(&mut steps, "docs", &options),
    }
}
