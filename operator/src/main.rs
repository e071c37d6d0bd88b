//! Parses the flags and hands over; everything else is in the library.

use clap::Parser;
use ebpf_scaler_operator::args::Args;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    args.telemetry.init()?;
    ebpf_scaler_operator::run(args).await
}
