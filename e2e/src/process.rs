//! Ends a container's process as the kernel's OOM killer would, behind Kubernetes' back. The nodes of test clusters run
//! on this machine's kernel, so their processes are in its /proc.

use std::{fs, process::Command};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;

/// Kills the first process of the pod's first container.
///
/// # Errors
/// When no such process is found here: the nodes are somewhere else, or only root may see it.
pub fn kill_container(pod: &Pod) -> anyhow::Result<()> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref());
    let id = containers.and_then(|all| all.first()?.container_id.as_deref());
    let id = id.and_then(|id| id.rsplit_once("://")).map(|(_, id)| id);
    let id = id.context("the pod's container has no id")?;
    let process = of_container(id)?;
    let killed = Command::new("kill")
        .args(["-KILL", &process.to_string()])
        .status()
        .context("cannot run kill")?;
    ensure!(killed.success(), "kill -KILL {process} ended with {killed}");
    Ok(())
}

/// The lowest process id in the container's cgroup.
fn of_container(id: &str) -> anyhow::Result<u32> {
    let processes = fs::read_dir("/proc").context("cannot list processes")?;
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let of_it = ids.filter(|process: &u32| {
        let cgroups = fs::read_to_string(format!("/proc/{process}/cgroup"));
        cgroups.is_ok_and(|cgroups| cgroups.contains(id))
    });
    of_it.min().with_context(|| {
        format!(
            "no process of container {id} here: this story has to run as root where the nodes run"
        )
    })
}
