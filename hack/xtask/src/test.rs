//! Runs the test tiers: unit, kernel, end to end. A tier that cannot run here is an error, never a skip.

use std::process::Stdio;

use anyhow::{Context, bail};

use crate::steps::{Steps, cargo, is_root, xtask};

/// The cluster that the end-to-end tests make and remove.
const CLUSTER: &str = "test";

#[derive(clap::Args)]
pub struct Args {
    /// Run one tier only
    #[arg(value_enum)]
    tier: Option<Tier>,
    /// Leave the end-to-end tests' cluster up, for a look at it
    #[arg(long)]
    keep: bool,
    /// Passed to the end-to-end test binary, for example the name of one test
    #[arg(last = true)]
    filter: Vec<String>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// Unit, property, golden and API contract tests: neither root nor a cluster
    Unit,
    /// Load the BPF programs and check counts: root
    Kernel,
    /// A real cluster comes up, everything is installed, loaded and broken: root, or docker
    E2e,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let wanted = |tier| args.tier.is_none_or(|only| only == tier);
    let mut steps = Steps::new("test");
    if wanted(Tier::Unit) {
        unit(&mut steps)?;
    }
    if wanted(Tier::Kernel) {
        kernel(&mut steps)?;
    }
    if wanted(Tier::E2e) {
        e2e(&mut steps, &args)?;
    }
    steps.summary();
    Ok(())
}

fn unit(steps: &mut Steps) -> anyhow::Result<()> {
    let no_root = ["--workspace", "--exclude", "ebpf-scaler-e2e"];
    steps.run(
        "unit, property and golden tests",
        cargo(&["test", "--exclude", "ebpf-scaler-collector"]).args(no_root),
    )?;
    steps.run(
        "collector: unit and API contract tests",
        &mut cargo(&[
            "test",
            "--package=ebpf-scaler-collector",
            "--lib",
            "--bins",
            "--test=agent_*",
            "--test=api_*",
        ]),
    )
}

fn kernel(steps: &mut Steps) -> anyhow::Result<()> {
    let mut command = cargo(&["test", "--package=ebpf-scaler-collector", "--test=kernel_*"]);
    if !is_root() {
        let target = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";
        command.env(target, "sudo --preserve-env");
    }
    steps.run("kernel tests (as root)", &mut command)
}

fn e2e(steps: &mut Steps, args: &Args) -> anyhow::Result<()> {
    if is_root() {
        steps.run(
            "the cluster leaves nothing behind",
            &mut cargo(&[
                "test",
                "--package=ebpf-scaler-e2e",
                "--test=cluster_cleanup",
                "--",
                "--nocapture",
            ]),
        )?;
    }
    let result = on_cluster(steps, args);
    if args.keep {
        println!("    the cluster {CLUSTER} stays up: cargo xtask cluster down --name {CLUSTER}");
    } else {
        let down = steps.run(
            "cluster down",
            &mut xtask(&["cluster", "down", "--name", CLUSTER])?,
        );
        result?;
        return down;
    }
    result
}

fn on_cluster(steps: &mut Steps, args: &Args) -> anyhow::Result<()> {
    steps.run(
        "cluster up",
        &mut xtask(&["cluster", "up", "--name", CLUSTER])?,
    )?;
    steps.run(
        "build and load the images",
        &mut xtask(&["image", "--cluster", CLUSTER])?,
    )?;
    let kubeconfig = kubeconfig()?;
    let mut command = cargo(&[
        "test",
        "--package=ebpf-scaler-e2e",
        "--test=e2e",
        "--",
        "--test-threads=1",
        "--nocapture",
    ]);
    command
        .args(&args.filter)
        .env("EBPF_SCALER_E2E_KUBECONFIG", kubeconfig);
    steps.run("end-to-end tests", &mut command)
}

fn kubeconfig() -> anyhow::Result<String> {
    let output = xtask(&["cluster", "kubeconfig", "--name", CLUSTER])?
        .stderr(Stdio::inherit())
        .output()
        .context("cannot ask for the cluster's kubeconfig")?;
    if !output.status.success() {
        bail!("cluster kubeconfig ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
