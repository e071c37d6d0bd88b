//! Builds the product's images without a daemon and loads them into a cluster.

mod archive;

pub use archive::{Archive, Image, archive};

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("in work")
}
