//! Provider `kind`: nodes as docker containers, for machines with docker. kind itself keeps account of
//! what it made, so there is no journal.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use super::{
    Cluster, Progress, process,
    state::{self, Provider, Record},
};
use crate::generate;

/// Whether a docker engine answers.
pub fn has_docker() -> bool {
    process::output(Command::new("docker").args(["version", "--format={{.Server.Version}}"]))
        .is_ok()
}

/// kind's own name for a cluster, apart from those that the user made.
fn kind_name(name: &str) -> String {
    format!("ebpf-scaler-{name}")
}

/// The one that setup installed, or else the user's.
fn kind() -> Command {
    let ours = state::cache().join("tools/bin/kind");
    Command::new(if ours.exists() {
        ours
    } else {
        PathBuf::from("kind")
    })
}

/// Makes a new cluster.
pub fn up(name: &str, nodes: u8, progress: &Progress) -> anyhow::Result<Cluster> {
    if !has_docker() {
        bail!("provider kind needs docker, and `docker version` finds no engine");
    }
    setup()?;
    let full = kind_name(name);
    let there = process::output(kind().args(["get", "clusters"]))?;
    if there.lines().any(|line| line.trim() == full) {
        bail!(
            "kind has a cluster {full} that this checkout did not make: `kind delete cluster --name {full}` removes it"
        );
    }
    let mut record = Record {
        name: name.to_owned(),
        provider: Provider::Kind,
        nodes,
        kubeconfig: state::folder(name).join("kubeconfig"),
        network: None,
        ready: false,
        images: BTreeMap::new(),
    };
    record.save()?;
    progress.say("kind create cluster");
    create(&full, nodes, &record.kubeconfig)?;
    record.ready = true;
    record.save()?;
    Ok(Cluster { record })
}

fn create(full: &str, nodes: u8, kubeconfig: &Path) -> anyhow::Result<()> {
    let mut config = fs::read_to_string(generate::root().join("hack/kind.yaml"))
        .context("cannot read hack/kind.yaml")?;
    config.push_str(&"- role: worker\n".repeat(usize::from(nodes.saturating_sub(1))));
    let mut child = kind()
        .args([
            "create",
            "cluster",
            "--config=-",
            "--wait=180s",
            "--name",
            full,
        ])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run kind")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(config.as_bytes())?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("kind create cluster ended with {status}");
    }
    Ok(())
}

/// Installs kind if nobody has.
fn setup() -> anyhow::Result<()> {
    if process::output(kind().arg("version")).is_ok() {
        return Ok(());
    }
    let status = Command::new("bash")
        .arg(generate::root().join("hack/setup/tools.sh"))
        .arg("kind")
        .status()
        .context("cannot run bash")?;
    if !status.success() {
        bail!("hack/setup/tools.sh kind ended with {status}");
    }
    Ok(())
}

/// Puts an image onto every node.
pub fn load(name: &str, archive: &Path) -> anyhow::Result<()> {
    process::output(
        kind()
            .args(["load", "image-archive"])
            .arg(archive)
            .args(["--name", &kind_name(name)]),
    )
    .map(|_| ())
}

/// Removes the cluster; one that is gone already is no error.
pub fn down(name: &str) -> anyhow::Result<()> {
    process::output(kind().args(["delete", "cluster", "--name", &kind_name(name)])).map(|_| ())
}
