//! Prepares the benches that need this host's kernel and no cluster, then becomes hack/bench's program. It measures
//! nothing itself: that program links the collector, which would make every other task slow to build.

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, ensure};

use crate::{
    generate,
    steps::{Steps, cargo, is_root},
};

/// What is built: the bench, and what it starts.
const PACKAGES: [&str; 3] = [
    "ebpf-scaler-bench",
    "ebpf-scaler-collector",
    "ebpf-scaler-sample",
];

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// Passed on; --help lists them. With --quick nothing is optimised.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<OsString>,
}

impl Options {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }
}

/// The same for a bench that loads no programs: nothing to install, and nobody has to be root.
pub fn run_without_kernel(steps: &mut Steps, what: &str, options: &Options) -> anyhow::Result<()> {
    go_on(steps, what, options, &PACKAGES[..2])
}

/// The same for one that needs Kubernetes' programs, but no node to run them on.
pub fn run_with_kubernetes(steps: &mut Steps, what: &str, options: &Options) -> anyhow::Result<()> {
    if !options.has("--help") {
        for (name, script) in [("Kubernetes", "kubernetes.sh"), ("kwok", "kwok.sh")] {
            let script = generate::root().join("hack/setup").join(script);
            steps.run(name, Command::new("bash").arg(script))?;
        }
    }
    go_on(steps, what, options, &PACKAGES[..2])
}

/// Installs the peers, builds, and goes on as the bench.
pub fn run(steps: &mut Steps, what: &str, options: &Options) -> anyhow::Result<()> {
    let root = generate::root();
    if !options.has("--help") {
        ensure!(
            is_root(),
            "bench {what} loads BPF programs and makes cgroups and network namespaces: run it as root \
             (sudo --preserve-env cargo xtask bench {what})"
        );
        for (name, script, args) in [
            ("peers to compare with", "packages.sh", &["bench"][..]),
            ("BPF programs", "bpf.sh", &[]),
        ] {
            let script = root.join("hack/setup").join(script);
            steps.run(name, Command::new("bash").arg(script).args(args))?;
        }
    }
    go_on(steps, what, options, &PACKAGES)
}

fn go_on(
    steps: &mut Steps,
    what: &str,
    options: &Options,
    packages: &[&str],
) -> anyhow::Result<()> {
    let root = generate::root();
    let mut build = cargo(&["build", "--bins"]);
    build.args(
        packages
            .iter()
            .map(|package| format!("--package={package}")),
    );
    let profile = if options.has("--quick") || options.has("--help") {
        "debug"
    } else {
        build.arg("--release");
        "release"
    };
    steps.run("build", build.current_dir(&root))?;
    // Replacing this process leaves one that Ctrl-C reaches, and that cleans up.
    let error = Command::new(target_directory()?.join(profile).join("bench"))
        .arg(what)
        .args(&options.flags)
        .current_dir(&root)
        .exec();
    Err(error).context("cannot start the bench")
}

fn target_directory() -> anyhow::Result<PathBuf> {
    let output = cargo(&["metadata", "--no-deps", "--format-version=1"])
        .output()
        .context("cannot ask cargo for its target directory")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let directory = metadata["target_directory"].as_str();
    Ok(directory.context("cargo names no target directory")?.into())
}
