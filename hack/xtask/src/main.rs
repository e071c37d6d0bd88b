//! Developer tasks. Each subcommand lives in its own module; this file only dispatches.

use clap::Parser;

mod architecture;
mod bench;
mod cluster;
mod demo;
mod fuzz;
mod generate;
mod image;
mod kernels;
mod lint;
mod steps;
mod test;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of ebpf-scaler")]
enum Task {
    /// Bring a test cluster up or down
    Cluster(cluster::Args),
    /// Build OCI images without a daemon and load them into a cluster
    Image(image::Args),
    /// Show the main job live on a real cluster and end with measured numbers
    Demo(demo::Args),
    /// Measure, beside the peer in the same run
    Bench(bench::Args),
    /// Run the test tiers
    Test(test::Args),
    /// Fuzz everything that reads bytes from others
    Fuzz(fuzz::Args),
    /// Run the kernel tests in other kernels, in an emulator
    Kernels(kernels::Args),
    /// Run every linter with warnings denied
    Lint(lint::Args),
    /// Write the files that are generated from the code
    Generate(generate::Args),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Cluster(args) => cluster::run(args),
        Task::Image(args) => image::run(args),
        Task::Demo(args) => demo::run(args),
        Task::Bench(args) => bench::run(args),
        Task::Test(args) => test::run(args),
        Task::Fuzz(args) => fuzz::run(args),
        Task::Kernels(args) => kernels::run(args),
        Task::Lint(args) => lint::run(args),
        Task::Generate(args) => generate::run(args),
    }
}
