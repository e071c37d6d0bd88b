//! What a cluster has put on this machine, written down before it is made, so that `down` can remove
//! it after any crash. It never holds anything that the cluster did not make.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{
    cgroup,
    process::{self, Process},
};

/// One thing outside the cluster's folder. Mounts, routes and firewall rules live in namespaces that
/// end with their last process, or on a link that ends with its peer, so they need no entry.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// The kernel's identity of this boot: nothing below outlives it.
    Boot {
        id: String,
    },
    Process {
        what: String,
        process: Process,
    },
    Link {
        name: String,
    },
    Cgroup {
        path: PathBuf,
    },
}

/// A file of one entry a line, only ever added to.
#[derive(Clone)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Returns once the entry is on the disk.
    pub fn record(&self, entry: &Entry) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(entry)?;
        line.push('\n');
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        file.write_all(line.as_bytes())?;
        Ok(file.sync_data()?)
    }

    /// The first entry.
    pub fn begin(&self) -> anyhow::Result<()> {
        self.record(&Entry::Boot { id: boot()? })
    }

    /// All entries, oldest first. A last line that a crash cut short was never acted upon.
    pub fn entries(&self) -> Vec<Entry> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The processes, by what they are.
    pub fn processes(&self) -> Vec<(String, Process)> {
        self.entries()
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::Process { what, process } => Some((what, process)),
                _ => None,
            })
            .collect()
    }

    /// Removes everything in it; what is gone already is no error. After a reboot all is gone, and
    /// what looks alike is somebody else's.
    pub fn undo(&self) -> anyhow::Result<()> {
        let now = boot()?;
        let is_past = |entry: &Entry| matches!(entry, Entry::Boot { id } if *id != now);
        if self.entries().iter().any(is_past) {
            return Ok(());
        }
        let processes: Vec<Process> = self
            .processes()
            .iter()
            .map(|(_, process)| *process)
            .collect();
        process::kill_all(&processes)?;
        for entry in self.entries().iter().rev() {
            match entry {
                Entry::Boot { .. } | Entry::Process { .. } => {}
                Entry::Link { name } => {
                    if Path::new("/sys/class/net").join(name).exists() {
                        // It may vanish with its peer's namespace while we ask.
                        let deleted =
                            process::output(Command::new("ip").args(["link", "delete", name]));
                        if Path::new("/sys/class/net").join(name).exists() {
                            deleted?;
                        }
                    }
                }
                Entry::Cgroup { path } => cgroup::remove(path)?,
            }
        }
        Ok(())
    }
}

fn boot() -> anyhow::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    Ok(id
        .context("cannot read the boot's identity")?
        .trim()
        .to_owned())
}
