//! CPU time taken away by limits, from the pods' cpu.stat files. Reads only those of cgroups that have a
//! limit, a quarter of them at a time; never changes one.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Kubepods;

/// Each cgroup is read in one of so many calls: with a call each 250 ms, once a second.
const PHASES: usize = 4;
/// The runtime writes the limit shortly after it made the directory: look often at first.
const YOUNG_ROUNDS: u32 = 5;
/// Afterwards, a limit that somebody adds in place is seen within so many rounds.
const ROUNDS_PER_CHECK: u32 = 8;

/// Follows the throttled time of pods and containers.
#[derive(Debug)]
pub struct Throttling {
    kubepods: Kubepods,
    cgroups: HashMap<String, Cgroup>,
    pods: HashMap<Arc<str>, Pod>,
    phase: usize,
}

#[derive(Debug)]
struct Cgroup {
    pod: Arc<str>,
    is_pod_dir: bool,
    phase: usize,
    rounds: u32,
    stat: Option<File>,
    /// Reading to count from; none before the first.
    last: Option<u64>,
}

/// Throttled time so far, in microseconds. A pod's own limit is the sum of its containers', so the two are
/// largely the same time seen twice: the larger counts.
#[derive(Debug, Default)]
struct Pod {
    own: u64,
    containers: u64,
    cgroups: usize,
}

impl Throttling {
    /// Nothing is followed yet.
    pub fn new(kubepods: Kubepods) -> Self {
        Self {
            kubepods,
            cgroups: HashMap::new(),
            pods: HashMap::new(),
            phase: 0,
        }
    }

    /// Follows a pod's directory or a container's. What one that existed before the agent (`old`) has
    /// counted so far is left out, as in every other counter.
    pub fn watch(&mut self, path: &str, pod: &Arc<str>, is_pod_dir: bool, old: bool) {
        let cgroup = Cgroup {
            pod: pod.clone(),
            is_pod_dir,
            phase: self.cgroups.len() % PHASES,
            rounds: 0,
            stat: None,
            last: (!old).then_some(0),
        };
        if self.cgroups.insert(path.to_owned(), cgroup).is_none() {
            self.pods.entry(pod.clone()).or_default().cgroups += 1;
        }
    }

    /// The directory is gone.
    pub fn forget(&mut self, path: &str) {
        if let Some(cgroup) = self.cgroups.remove(path)
            && let Some(pod) = self.pods.get_mut(&cgroup.pod)
        {
            pod.cgroups -= 1;
            if pod.cgroups == 0 {
                self.pods.remove(&cgroup.pod);
            }
        }
    }

    /// Reads the next quarter; calls `changed(pod, throttled microseconds so far)` where it grew.
    pub fn read(&mut self, mut changed: impl FnMut(&Arc<str>, u64)) {
        self.phase = (self.phase + 1) % PHASES;
        for (path, cgroup) in &mut self.cgroups {
            if cgroup.phase != self.phase {
                continue;
            }
            cgroup.rounds = cgroup.rounds.wrapping_add(1);
            let due = cgroup.rounds <= YOUNG_ROUNDS || cgroup.rounds % ROUNDS_PER_CHECK == 0;
            if cgroup.stat.is_none() && due {
                cgroup.stat = limited(&self.kubepods, path);
            }
            let Some(now) = cgroup.stat.as_ref().and_then(throttled_micros) else {
                continue;
            };
            let grown = cgroup.last.map_or(0, |last| now.saturating_sub(last));
            cgroup.last = Some(now);
            if grown == 0 {
                continue;
            }
            if let Some(pod) = self.pods.get_mut(&cgroup.pod) {
                if cgroup.is_pod_dir {
                    pod.own += grown;
                } else {
                    pod.containers += grown;
                }
                changed(&cgroup.pod, pod.own.max(pod.containers));
            }
        }
    }
}

/// The open cpu.stat of a cgroup that has a limit.
fn limited(kubepods: &Kubepods, path: &str) -> Option<File> {
    let (dir, limit): (&Path, fn(&Path) -> bool) = match &kubepods.cpu_v1 {
        Some(dir) => (dir, |dir| {
            read(&dir.join("cpu.cfs_quota_us")).is_some_and(|text| !text.starts_with('-'))
        }),
        None => (&kubepods.dir, |dir| {
            read(&dir.join("cpu.max")).is_some_and(|text| !text.starts_with("max"))
        }),
    };
    let dir: PathBuf = dir.join(path);
    limit(&dir).then(|| File::open(dir.join("cpu.stat")).ok())?
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn throttled_micros(stat: &File) -> Option<u64> {
    let mut buffer = [0; 1024];
    let length = stat.read_at(&mut buffer, 0).ok()?;
    parse(std::str::from_utf8(&buffer[..length]).ok()?)
}

/// `throttled_usec` as cgroup v2 writes it, or v1's `throttled_time` in nanoseconds.
fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        let value: u64 = value.trim().parse().ok()?;
        match key {
            "throttled_usec" => Some(value),
            "throttled_time" => Some(value / 1000),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, path: &str, file: &str, text: &str) {
        std::fs::create_dir_all(dir.join(path)).unwrap();
        std::fs::write(dir.join(path).join(file), text).unwrap();
    }

    fn second(throttling: &mut Throttling) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        for _ in 0..PHASES {
            throttling.read(|pod, micros| all.push((pod.to_string(), micros)));
        }
        all
    }

    #[test]
    fn both_versions_are_read_in_microseconds() {
        let v2 = "usage_usec 9\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1234\nnr_bursts 0\n";
        assert_eq!(parse(v2), Some(1234));
        assert_eq!(
            parse("nr_periods 3\nnr_throttled 2\nthrottled_time 1234567\n"),
            Some(1234)
        );
        assert_eq!(parse("usage_usec 9\nuser_usec 4\n"), None);
        assert_eq!(parse("throttled_usec -\n\n"), None);
    }

    #[test]
    fn growth_counts_from_the_agents_start_and_survives_a_container() {
        let dir = tempfile::tempdir().unwrap();
        let kubepods = Kubepods {
            dir: dir.path().into(),
            cpu_v1: None,
        };
        let pod: Arc<str> = "a".into();
        let mut throttling = Throttling::new(kubepods);
        write(dir.path(), "pod/c1", "cpu.max", "10000 100000\n");
        write(dir.path(), "pod/c1", "cpu.stat", "throttled_usec 500\n");
        throttling.watch("pod", &pod, true, true);
        throttling.watch("pod/c1", &pod, false, true);
        assert_eq!(second(&mut throttling), []);
        write(dir.path(), "pod/c1", "cpu.stat", "throttled_usec 800\n");
        assert_eq!(second(&mut throttling), [("a".into(), 300)]);

        // The container starts again, in a directory of its own that counts from nothing.
        throttling.forget("pod/c1");
        write(dir.path(), "pod/c2", "cpu.max", "10000 100000\n");
        write(dir.path(), "pod/c2", "cpu.stat", "throttled_usec 50\n");
        throttling.watch("pod/c2", &pod, false, false);
        assert_eq!(second(&mut throttling), [("a".into(), 350)]);
    }

    #[test]
    fn a_cgroup_without_a_limit_is_not_read_until_it_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let v1 = dir.path().join("cpu");
        let kubepods = Kubepods {
            dir: dir.path().join("unified"),
            cpu_v1: Some(v1.clone()),
        };
        let mut throttling = Throttling::new(kubepods);
        write(&v1, "pod", "cpu.cfs_quota_us", "-1\n");
        write(&v1, "pod", "cpu.stat", "throttled_time 9000\n");
        throttling.watch("pod", &"a".into(), true, false);
        assert_eq!(second(&mut throttling), []);
        write(&v1, "pod", "cpu.cfs_quota_us", "20000\n");
        assert_eq!(second(&mut throttling), [("a".into(), 9)]);
    }

    #[test]
    fn a_pod_limit_and_its_containers_limit_are_not_added() {
        let dir = tempfile::tempdir().unwrap();
        let kubepods = Kubepods {
            dir: dir.path().into(),
            cpu_v1: None,
        };
        let pod: Arc<str> = "a".into();
        let mut throttling = Throttling::new(kubepods);
        for (path, micros) in [("pod", 90), ("pod/c", 100)] {
            write(dir.path(), path, "cpu.max", "10000 100000\n");
            write(
                dir.path(),
                path,
                "cpu.stat",
                &format!("throttled_usec {micros}\n"),
            );
            throttling.watch(path, &pod, path == "pod", false);
        }
        assert_eq!(second(&mut throttling).last(), Some(&("a".to_owned(), 100)));
    }
}
