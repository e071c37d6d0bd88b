//! The place where a bench runs: cgroups as a kubelet makes them, network namespaces, a directory. All of it goes
//! when this value goes; what a killed bench has left behind goes when the next one begins.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use ebpf_scaler_testbed::{Cgroup, Namespaces, Wire, cgroup2, enter, place};

/// What everything of a bench is called, before its process id.
const PREFIX: &str = "ebsb";
/// The first port that servers get.
const FIRST_PORT: u16 = 8000;

/// Pods below `kubepods`, clients beside them.
#[derive(Debug)]
pub struct Site {
    load: Cgroup,
    kubepods: Cgroup,
    root: Cgroup,
    namespaces: Namespaces,
    directory: Directory,
    _home: Home,
    pods: Cell<u32>,
    ports: Cell<u16>,
}

/// The network namespace in which this thread was; it goes back there with the site.
#[derive(Debug)]
struct Home(File);

impl Drop for Home {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open.
        unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
    }
}

/// A pod with one container, as the cgroupfs driver names them.
#[derive(Debug)]
pub struct Pod {
    /// Where its processes are.
    pub container: Cgroup,
    /// Its own directory; here for its life.
    _pod: Cgroup,
    namespace: PathBuf,
}

impl Pod {
    /// A command that runs in the pod.
    pub fn command(&self, program: &Path) -> anyhow::Result<Command> {
        let mut command = quiet(program);
        place(&mut command, self.container.path(), Some(&self.namespace))?;
        Ok(command)
    }
}

impl Site {
    /// Makes everything, and moves this thread to where the clients are.
    pub fn create(wire: Wire) -> anyhow::Result<Site> {
        // SAFETY: no preconditions.
        let root = unsafe { libc::geteuid() } == 0;
        anyhow::ensure!(
            root,
            "the bench loads BPF programs and makes cgroups and network namespaces: run it as root"
        );
        let tree = cgroup2()?;
        sweep(&tree);
        let name = format!("{PREFIX}{}", std::process::id());
        let root = Cgroup::create(&tree.join(&name)).context("cannot make a cgroup")?;
        let kubepods = Cgroup::create(&root.path().join("kubepods"))?;
        let load = Cgroup::create(&root.path().join("load"))?;
        let directory = Directory::create(&name)?;
        let namespaces =
            Namespaces::create(&name, wire).context("cannot make network namespaces")?;
        let home = Home(File::open("/proc/thread-self/ns/net")?);
        enter(&namespaces.client())?;
        Ok(Site {
            load,
            kubepods,
            root,
            namespaces,
            directory,
            _home: home,
            pods: Cell::new(0),
            ports: Cell::new(FIRST_PORT),
        })
    }

    /// The cgroup above pods, clients and whatever else the bench places.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The cgroup of which the programs measure what is below.
    pub fn kubepods(&self) -> &Path {
        self.kubepods.path()
    }

    /// The namespaces.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// For files; removed with the site.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// A new pod.
    pub fn pod(&self) -> anyhow::Result<Pod> {
        let number = self.pods.get();
        self.pods.set(number + 1);
        self.pod_number(number)
    }

    /// The pod of this number, which must not be there yet.
    pub fn pod_number(&self, number: u32) -> anyhow::Result<Pod> {
        make_pod(self.kubepods(), &self.namespaces.server(), number)
    }

    /// A port that no server of this site has had.
    pub fn port(&self) -> u16 {
        let port = self.ports.get();
        self.ports.set(port + 1);
        port
    }

    /// A command that runs where the clients are, in no pod.
    pub fn client(&self, program: &Path) -> anyhow::Result<Command> {
        let mut command = quiet(program);
        place(
            &mut command,
            self.load.path(),
            Some(&self.namespaces.client()),
        )?;
        Ok(command)
    }

    /// CPU time that everything of the site has used so far.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        cpu_time(self.root())
    }
}

/// A pod below a kubepods directory; for threads, which cannot share a site.
pub fn make_pod(kubepods: &Path, namespace: &Path, number: u32) -> anyhow::Result<Pod> {
    let uid = format!("{:08x}-b3c4-4000-8000-{number:012x}", std::process::id());
    let pod = Cgroup::create(&kubepods.join(format!("pod{uid}")))?;
    let container = Cgroup::create(&pod.path().join(format!("{number:064x}")))?;
    Ok(Pod {
        container,
        _pod: pod,
        namespace: namespace.to_owned(),
    })
}

/// CPU time that a cgroup's processes have used, those that are gone included.
pub fn cpu_time(cgroup: &Path) -> anyhow::Result<Duration> {
    let file = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file:?}"))?;
    let micros = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    let micros = micros.with_context(|| format!("no usage_usec in {file:?}"))?;
    Ok(Duration::from_micros(micros.trim().parse()?))
}

fn quiet(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    command
}

/// A directory of ours.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create(name: &str) -> io::Result<Directory> {
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what benches have left behind that were killed before they could.
fn sweep(tree: &Path) {
    for (place, dead) in [tree, Path::new("/run/netns"), &std::env::temp_dir()]
        .iter()
        .flat_map(|place| leftovers(place).into_iter().map(move |dead| (place, dead)))
    {
        eprintln!("removing {} of a bench that was killed", dead.display());
        if *place == tree {
            remove_cgroups(&dead);
        } else if place.ends_with("netns") {
            let name = dead.file_name().unwrap_or_default();
            let _ = Command::new("ip").args(["netns", "del"]).arg(name).output();
        } else {
            let _ = fs::remove_dir_all(&dead);
        }
    }
}

/// Entries that are named after a bench whose process is gone.
fn leftovers(place: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            is_leftover(&entry.file_name().to_string_lossy(), |pid| {
                Path::new(&format!("/proc/{pid}")).exists()
            })
        })
        .map(|entry| entry.path())
        .collect()
}

fn is_leftover(name: &str, lives: impl Fn(u32) -> bool) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let digits = rest.split('-').next().unwrap_or_default();
    digits.parse().is_ok_and(|pid| !lives(pid))
}

fn remove_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_benches_left_is_removed() {
        let lives = |pid| pid == 7;
        assert!(is_leftover("ebsb8", lives));
        assert!(is_leftover("ebsb8-s", lives));
        assert!(!is_leftover("ebsb7-s", lives));
        assert!(!is_leftover("ebsbx", lives));
        assert!(!is_leftover("ebst8", lives));
    }
}
