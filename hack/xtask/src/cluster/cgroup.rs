//! The control group under which a node's kubelet puts its pods, in every hierarchy of this machine.
//! It never touches a group that the cluster did not make.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    journal::{Entry, Journal},
    process::Process,
};

/// What the kubelet wants to be able to limit, where the kernel offers it.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];

/// Makes the group `/NAME` in every v1 hierarchy and in the v2 one.
pub fn create(journal: &Journal, name: &str) -> anyhow::Result<()> {
    for (root, is_v2) in hierarchies()? {
        let path = root.join(name);
        journal.record(&Entry::Cgroup { path: path.clone() })?;
        if is_v2 {
            enable_controllers(&root);
        }
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        if is_v2 {
            enable_controllers(&path);
        }
        // In v1 a new cpuset is empty, and nothing can run in it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let inherited = root.join(file);
            if !is_v2 && inherited.exists() {
                fs::write(path.join(file), fs::read(&inherited)?)
                    .with_context(|| format!("cannot set {file} of {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Removes a group and everything below it; whatever still runs there is ours and is ended.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match remove_tree(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    for pid in fs::read_to_string(path.join("cgroup.procs"))?.lines() {
        if let Some(process) = pid.parse().ok().and_then(Process::running) {
            process.kill();
        }
    }
    fs::remove_dir(path)
}

/// Each mounted hierarchy, and whether it is the v2 one. Mounts of the same hierarchy count once.
fn hierarchies() -> anyhow::Result<BTreeSet<(PathBuf, bool)>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            let ours = path.starts_with("/sys/fs/cgroup") && kind.starts_with("cgroup");
            ours.then(|| (PathBuf::from(path), kind == "cgroup2"))
        })
        .collect())
}

/// One controller at a time: one that the kernel lacks must not keep the others off.
fn enable_controllers(path: &Path) {
    let offered = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in CONTROLLERS {
        if offered.split_whitespace().any(|name| name == controller) {
            // The kubelet says clearly which one it misses; here a refusal is no failure yet.
            let _ = fs::write(
                path.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
        }
    }
}
