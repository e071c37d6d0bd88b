//! Runs the test tiers: unit, differential, fuzz, kernel, end to end. A tier that cannot run here is an error, never a skip.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context, bail};

use crate::{
    cluster::cache,
    fuzz,
    generate::root,
    steps::{Steps, cargo, is_root, xtask},
};

mod keda;

/// The cluster that the end-to-end tests make and remove.
const CLUSTER: &str = "test";
/// It has two nodes, because much can only go wrong between nodes.
const NODES: &str = "2";
/// Tests whose names begin so need root and a kernel with BTF.
const KERNEL: &str = "kernel_";
/// The release that `cargo xtask kernels` boots for it.
const OLDEST: &str = "6.1";
/// The tests that need a cluster with everything in it.
const E2E: &str = "e2e";
/// The test that makes and removes clusters of its own.
const CLEANUP: &str = "cluster_cleanup";
/// The tests that need KEDA in a cluster.
const KEDA: &str = "keda";
/// Tells tests to run their long variants: the kernel tests' harness reads it, and that of `decide`'s tests.
const LONG: &str = "EBPF_SCALER_TEST_LONG";
/// Random scenarios that decisions are compared in; some 5 ms each on 2 cores.
const SCENARIOS: u32 = 5_000;
/// The same in the long version.
const LONG_SCENARIOS: u32 = 100_000;

/// Short, and from the same seed each time; `cargo xtask fuzz` goes further.
const FUZZ: fuzz::Args = fuzz::Args {
    seconds: 21,
    target: Vec::new(),
    seed: Some(1),
};

#[derive(clap::Args)]
pub struct Args {
    /// Run one tier only
    #[arg(value_enum)]
    tier: Option<Tier>,
    /// Leave the end-to-end tests' cluster up, for a look at it
    #[arg(long)]
    keep: bool,
    /// Also run long variants: many more random cases and scenarios; of the kernel tests 100,000 connections
    /// against the real bound, which take 2 GiB
    #[arg(long)]
    long: bool,
    /// Passed to the end-to-end test binary, for example the name of one test
    #[arg(last = true)]
    filter: Vec<String>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// Unit, property, golden and API contract tests: neither root nor a cluster
    Unit,
    /// Decide as the HPA controller of Kubernetes does, over random scenarios: Go
    Differential,
    /// Fuzz everything that reads bytes from others, for 20 seconds
    Fuzz,
    /// Load the BPF programs and check counts: root
    Kernel,
    /// A real cluster comes up, everything is installed, loaded and broken: root, or docker
    E2e,
    /// On a cluster with KEDA's operator and metrics adapter, which are built first: root, or docker; Go. Only by its
    /// name, as it takes long
    Keda,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    const TIERS: [Tier; 5] = [
        Tier::Unit,
        Tier::Differential,
        Tier::Fuzz,
        Tier::Kernel,
        Tier::E2e,
    ];
    // A person wants to know of the first failure at once, a run that nobody watches of all of them.
    let go_on = std::env::var_os("CI").is_some();
    let mut steps = Steps::new("test");
    let mut failures = Vec::new();
    // The tier that is named, or all that are not too long for every day.
    let named = args.tier.map(|tier| vec![tier]);
    for tier in named.unwrap_or_else(|| TIERS.to_vec()) {
        if let Err(error) = one(tier, &mut steps, &args) {
            if !go_on {
                return Err(error);
            }
            eprintln!("\n==> test: FAILED, going on: {error:#}");
            failures.push(format!("{error:#}"));
        }
    }
    steps.summary();
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("; "))
}

fn one(tier: Tier, steps: &mut Steps, args: &Args) -> anyhow::Result<()> {
    match tier {
        Tier::Unit => unit(steps, args.long),
        Tier::Differential => differential(steps, args.long),
        Tier::Fuzz => fuzz::all(steps, &FUZZ),
        Tier::Kernel => kernel(steps, args.long),
        Tier::E2e => e2e(steps, args),
        Tier::Keda => keda::run(steps, args.keep),
    }
}

/// Every tier selects the whole workspace and then picks test targets, so that dependencies are built with
/// the same features, once.
fn cargo_test(targets: &[String]) -> Command {
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.args(targets.iter().map(|target| format!("--test={target}")));
    command
}

fn unit(steps: &mut Steps, long: bool) -> anyhow::Result<()> {
    let targets: Vec<String> = test_targets()?
        .into_iter()
        .filter(|name| !name.starts_with(KERNEL) && ![E2E, KEDA, CLEANUP].contains(&name.as_str()))
        .collect();
    let mut command = cargo_test(&targets);
    command.args(["--lib", "--bins"]);
    if long {
        command.env(LONG, "1");
    }
    steps.run(
        "unit, property, golden and API contract tests",
        &mut command,
    )
}

/// The names of the workspace's integration tests.
fn test_targets() -> anyhow::Result<Vec<String>> {
    let output = cargo(&["metadata", "--no-deps", "--format-version=1"])
        .output()
        .context("cannot ask cargo for the workspace's tests")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    Ok(targets
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

/// Runs the HPA controller itself beside `operator replay`; see hack/kubernetes/differential.
fn differential(steps: &mut Steps, long: bool) -> anyhow::Result<()> {
    let setup = root().join("hack/setup/differential.sh");
    steps.run(
        "build the HPA controller that decisions are compared with",
        Command::new("bash").arg(setup),
    )?;
    let operator = steps.step("build the operator", operator)?;
    // The long run looks at other scenarios each day, and says which.
    let (scenarios, seed) = if long {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        (LONG_SCENARIOS, now.map_or(1, |d| d.as_secs() / 86_400))
    } else {
        (SCENARIOS, 1)
    };
    let mut command = Command::new(cache().join("kubernetes/differential.test"));
    command
        .arg("-test.timeout=2h")
        .arg("-operator")
        .arg(operator);
    command.arg(format!("-scenarios={scenarios}"));
    command.arg(format!("-seed={seed}"));
    command.arg("-example").arg(root().join("docs/replay.md"));
    steps.run("decide as the HPA controller does", &mut command)
}

/// Builds the operator as the unit tier does, with its integration test, and gives its path.
fn operator() -> anyhow::Result<PathBuf> {
    let output = cargo_test(&["replay".to_owned()])
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot build the operator")?;
    if !output.status.success() {
        bail!("building the operator ended with {}", output.status);
    }
    let built = String::from_utf8(output.stdout)?;
    let path = built.lines().find_map(|line| {
        let artifact: serde_json::Value = serde_json::from_str(line).ok()?;
        let found =
            artifact["target"]["name"] == "operator" && artifact["profile"]["test"] == false;
        let path = artifact["executable"].as_str().filter(|_| found)?;
        Some(PathBuf::from(path))
    });
    path.context("cargo built no operator")
}

fn kernel(steps: &mut Steps, long: bool) -> anyhow::Result<()> {
    let mut command = cargo_test(&[format!("{KERNEL}*")]);
    if long {
        command.env(LONG, "1");
    }
    if !is_root() {
        let target = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";
        command.env(target, "sudo --preserve-env");
    }
    steps.run("kernel tests (as root)", &mut command)?;
    oldest(steps)
}

/// One test in the oldest kernel of those that `cargo xtask kernels` knows: its verifier is the hardest to please.
fn oldest(steps: &mut Steps) -> anyhow::Result<()> {
    if !std::path::Path::new("/etc/debian_version").exists() {
        println!(
            "\n==> test: NOT tried on {OLDEST}: its kernel and qemu come from Debian's packages"
        );
        return Ok(());
    }
    let filter = "kernel_http::keep_alive_requests_are_counted_exactly";
    steps.run(
        "load and count in the oldest kernel, emulated",
        &mut xtask(&["kernels", "--kernel", OLDEST, "--filter", filter])?,
    )
}

fn e2e(steps: &mut Steps, args: &Args) -> anyhow::Result<()> {
    if is_root() {
        steps.run(
            "the cluster leaves nothing behind",
            cargo_test(&[CLEANUP.to_owned()]).args(["--", "--nocapture"]),
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
        &mut xtask(&["cluster", "up", "--name", CLUSTER, "--nodes", NODES])?,
    )?;
    steps.run(
        "build and load the images",
        &mut xtask(&["image", "--cluster", CLUSTER])?,
    )?;
    let kubeconfig = kubeconfig(CLUSTER)?;
    let mut command = cargo_test(&[E2E.to_owned()]);
    command.args(["--", "--test-threads=1", "--nocapture"]);
    command
        .args(&args.filter)
        .env("EBPF_SCALER_E2E_KUBECONFIG", kubeconfig);
    steps.run("end-to-end tests", &mut command)
}

fn kubeconfig(cluster: &str) -> anyhow::Result<String> {
    let output = xtask(&["cluster", "kubeconfig", "--name", cluster])?
        .stderr(Stdio::inherit())
        .output()
        .context("cannot ask for the cluster's kubeconfig")?;
    if !output.status.success() {
        bail!("cluster kubeconfig ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
