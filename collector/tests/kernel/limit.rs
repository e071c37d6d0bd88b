//! A CPU limit on a pod's processes, in whichever hierarchy of cgroups this machine limits CPUs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::load::Load;
use super::{Pod, World, eventually};

/// A directory with a limit; removed with the test.
pub struct Limit {
    directory: PathBuf,
    version: u8,
}

impl Limit {
    /// `quota` microseconds of CPU time in each `period`.
    pub fn new(world: &World, pod: &Pod, quota: u32, period: u32) -> Limit {
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        };
        if let Some(mount) = version_1() {
            let directory = mount.join(format!("{}-limit", world.name));
            fs::create_dir(&directory).unwrap();
            write(directory.join("cpu.cfs_period_us"), &period.to_string());
            write(directory.join("cpu.cfs_quota_us"), &quota.to_string());
            return Limit {
                directory,
                version: 1,
            };
        }
        let root = world.root.parent().unwrap();
        write(root.join("cgroup.subtree_control"), "+cpu");
        write(world.root.join("cgroup.subtree_control"), "+cpu");
        write(pod.cgroup.join("cpu.max"), &format!("{quota} {period}"));
        Limit {
            directory: pod.cgroup.clone(),
            version: 2,
        }
    }

    /// Puts the processes under the limit.
    pub fn hold(&self, load: Load) -> Load {
        if self.version == 1 {
            for child in &load.0 {
                let id = child.id().to_string();
                fs::write(self.directory.join("cgroup.procs"), id).unwrap();
            }
        }
        load
    }

    /// How long the limit has held them back so far, nanoseconds, as the kernel says.
    pub fn throttled_nanos(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join("cpu.stat")).unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            line.map(|rest| rest.trim().parse::<u64>().unwrap())
        };
        value("throttled_time ")
            .or(value("throttled_usec ").map(|micros| micros * 1000))
            .unwrap()
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if self.version == 1 {
            eventually(Duration::from_secs(5), || {
                fs::remove_dir(&self.directory).is_ok()
            });
        }
    }
}

/// Where the cpu controller of version 1 is, if it is there.
fn version_1() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| {
        let (_, kind) = line.split_once(" - ").unwrap_or_default();
        let options = kind.split(' ').nth(2).unwrap_or_default();
        kind.starts_with("cgroup ") && options.split(',').any(|option| option == "cpu")
    });
    Some(PathBuf::from(mount?.split(' ').nth(4)?))
}
