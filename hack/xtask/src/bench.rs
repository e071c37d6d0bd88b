//! `cargo xtask bench`: measurements on a real cluster, each beside its peer in the same run.

mod reaction;
mod spread;
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
}

#[derive(clap::Args)]
struct Reaction {
    #[command(flatten)]
    options: reaction::Options,
    #[command(flatten)]
    target: demo::Target,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut steps = Steps::new("bench");
    match args.what {
        What::Reaction(Reaction { options, target }) => {
            let kubeconfig = demo::set_up(&mut steps, &runtime, &target)?;
            runtime.block_on(reaction::run(&kubeconfig, &options))
        }
    }
}
