//! (in work)

pub mod probes;

/// Flags of this role.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Runs the role until it is told to stop.
pub async fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("in work")
}
