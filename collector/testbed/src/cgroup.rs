//! Cgroups that are removed when they are dropped. It never kills what runs in them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::eventually;

/// How long processes that were told to end may still be in a cgroup.
const LEAVING: Duration = Duration::from_secs(5);

/// Where cgroup v2 is mounted: not always at /sys/fs/cgroup.
pub fn cgroup2() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    mount
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other("cgroup v2 is not mounted"))
}

/// A cgroup of ours.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    id: u64,
}

impl Cgroup {
    /// Makes the directory, whose parent exists.
    pub fn create(path: &Path) -> io::Result<Cgroup> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        fs::create_dir(path).map_err(named)?;
        let id = fs::metadata(path).map_err(named)?.ino();
        Ok(Cgroup {
            path: path.to_owned(),
            id,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number by which the kernel's programs know it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for its last processes to leave, then removes it. False if it is still in use.
    fn remove(&self) -> bool {
        eventually(LEAVING, || match fs::remove_dir(&self.path) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.remove() {
            eprintln!(
                "the cgroup {} is still in use and stays",
                self.path.display()
            );
        }
    }
}
