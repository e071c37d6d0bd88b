//! Parses the flags and hands over; everything else is in the library.

use std::io;

use clap::Parser;
use ebpf_scaler_operator::{
    args::{Cli, Command},
    replay, simulate,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Replay) => replay::run(
            io::stdin().lock(),
            io::BufWriter::new(io::stdout().lock()),
            io::stderr(),
        ),
        Some(Command::Simulate(args)) => simulate::run(&args, io::stdout().lock()),
        None => {
            cli.args.telemetry.init()?;
            ebpf_scaler_operator::run(cli.args).await
        }
    }
}
