//! A test cluster from source leaves nothing on the machine: not after `down`, and not when `up` or
//! `down` were killed in the middle. Needs root; makes and removes a cluster of its own. Compares the
//! whole machine, so no other cluster may come or go meanwhile.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

const NAME: &str = "cleanup";

/// What `up` says at different depths; it is killed right after.
const MOMENTS: [&str; 4] = [
    "addresses",
    "namespaces, cables",
    "containerd has its images",
    "all nodes are Ready",
];

#[test]
fn down_leaves_nothing() {
    let _alone = prepare();
    let before = Snapshot::take();

    finish(&["up", "--provider=source", "--nodes=2"]);
    let up = Snapshot::take();
    for kind in ["process", "link", "route", "cgroup"] {
        assert_ne!(
            before.0[kind], up.0[kind],
            "the snapshot does not see a {kind}"
        );
    }
    finish(&["down"]);
    before.assert_unchanged("down");

    finish(&["down"]);
    before.assert_unchanged("a second down");
}

#[test]
fn a_killed_up_is_cleaned() {
    let _alone = prepare();
    let before = Snapshot::take();
    for moment in MOMENTS {
        kill_up_at(moment);
        finish(&["down"]);
        before.assert_unchanged(&format!("a kill of `up` at `{moment}`"));
    }
}

#[test]
fn up_repairs_what_a_crash_left_and_a_killed_down_is_finished() {
    let _alone = prepare();
    let before = Snapshot::take();

    kill_up_at("containerd has its images");
    finish(&["up", "--provider=source"]);
    finish(&["up", "--provider=source"]);

    let mut down = xtask(&["down"]).spawn().unwrap();
    thread::sleep(Duration::from_millis(80));
    down.kill().unwrap();
    down.wait().unwrap();
    finish(&["down"]);
    before.assert_unchanged("a killed `down`");
}

/// One test at a time, from a clean start.
fn prepare() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static BUILT: Once = Once::new();
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: neither call touches memory of ours.
    let (user, adopted) = unsafe {
        (
            libc::geteuid(),
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1),
        )
    };
    assert_eq!(
        user, 0,
        "this test makes a cluster in network namespaces: run it as root"
    );
    assert_eq!(adopted, 0, "cannot become the parent of orphans");
    BUILT.call_once(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package=xtask"])
            .status()
            .unwrap();
        assert!(built.success(), "cannot build xtask");
    });
    finish(&["down"]);
    guard
}

/// `cargo xtask cluster ...`, without cargo in between, so that a kill hits the program itself.
fn xtask(args: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let mut command = Command::new(folder.join("xtask"));
    command.arg("cluster").args(args).args(["--name", NAME]);
    command
}

fn finish(args: &[&str]) {
    let status = xtask(args).status().unwrap();
    assert!(status.success(), "{args:?} ended with {status}");
}

fn kill_up_at(moment: &str) {
    let mut up = xtask(&["up", "--provider=source"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(up.stderr.take().unwrap()).lines();
    let is_there = said.any(|line| line.unwrap().contains(moment));
    up.kill().unwrap();
    up.wait().unwrap();
    assert!(is_there, "`up` never said `{moment}`");
}

/// What the machine looks like, as lines by kind.
struct Snapshot(BTreeMap<&'static str, BTreeSet<String>>);

impl Snapshot {
    fn take() -> Self {
        let mut kinds = BTreeMap::from([
            ("process", descendants()),
            ("mount", mounts()),
            ("cgroup", cgroups()),
            ("link", names(Path::new("/sys/class/net"))),
            ("network namespace", names(Path::new("/run/netns"))),
            ("route", printed("ip", &["route", "show", "table", "all"])),
            (
                "IPv6 route",
                printed("ip", &["-6", "route", "show", "table", "all"]),
            ),
            ("routing rule", printed("ip", &["rule"])),
            ("iptables rule", rules("iptables-save")),
            ("ip6tables rule", rules("ip6tables-save")),
            ("sysctl", sysctls()),
            ("file", files()),
        ]);
        // The kernel tests and the benches, whose things bear these prefixes, may run at the same time.
        for lines in kinds.values_mut() {
            lines.retain(|line| !line.contains("ebst") && !line.contains("ebsb"));
        }
        Self(kinds)
    }

    /// The kernel removes namespaces in the background: a moment is granted.
    fn assert_unchanged(&self, after: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Self::take();
            let differences: Vec<String> = self
                .0
                .iter()
                .flat_map(|(kind, lines)| {
                    let added = now.0[kind]
                        .difference(lines)
                        .map(move |line| format!("new {kind}: {line}"));
                    let gone = lines
                        .difference(&now.0[kind])
                        .map(move |line| format!("lost {kind}: {line}"));
                    added.chain(gone).collect::<Vec<_>>()
                })
                .collect();
            if differences.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "after {after} the machine is not as it was:\n{}",
                differences.join("\n")
            );
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Every process below this one. We are the parent of all orphans, so none can get away, and nothing
/// that others do on the machine gets in.
fn descendants() -> BTreeSet<String> {
    // SAFETY: with a null status nothing is written; it only collects children that have ended.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
    let mut parents = BTreeMap::new();
    for name in names(Path::new("/proc")) {
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let parent: u32 = rest.split_whitespace().nth(1).unwrap().parse().unwrap();
        parents.insert(pid, parent);
    }
    let ours = std::process::id();
    let is_ours = |mut pid: u32| {
        while let Some(parent) = parents.get(&pid) {
            if *parent == ours {
                return true;
            }
            pid = *parent;
        }
        false
    };
    parents
        .keys()
        .filter(|pid| is_ours(**pid))
        .map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!(
                "{pid} {}",
                String::from_utf8_lossy(&line).replace('\0', " ")
            )
        })
        .collect()
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Without the numbers of mount and parent, which carry no meaning.
    text.lines()
        .map(|line| line.splitn(3, ' ').nth(2).unwrap().to_owned())
        .collect()
}

/// What the control groups of a node are called. Others come and go, with sessions and services of the machine.
const NODE_CGROUPS: [&str; 5] = ["ebs-", "kube", "k8s", "containerd", "cri"];

/// All control groups of nodes but those of other clusters, whose pods come and go.
fn cgroups() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = open.pop() {
        for name in names(&folder) {
            let path = folder.join(&name);
            let is_other = name.starts_with("ebs-") && !name.contains(&format!("-{NAME}-"));
            if path.is_dir() && !path.is_symlink() && !is_other {
                let text = path.display().to_string();
                if NODE_CGROUPS.iter().any(|part| text.contains(part)) {
                    found.insert(text);
                }
                open.push(path);
            }
        }
    }
    found
}

/// Firewall rules and chains without their counters.
fn rules(program: &str) -> BTreeSet<String> {
    printed(program, &[])
        .into_iter()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
        .collect()
}

/// What a kubelet, kube-proxy or CNI plugin is known to set.
fn sysctls() -> BTreeSet<String> {
    [
        "kernel/panic",
        "kernel/panic_on_oops",
        "kernel/keys/root_maxkeys",
        "kernel/keys/root_maxbytes",
        "vm/overcommit_memory",
        "vm/panic_on_oom",
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/route_localnet",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv6/conf/all/forwarding",
        "net/netfilter/nf_conntrack_max",
        "net/netfilter/nf_conntrack_tcp_timeout_established",
        "net/bridge/bridge-nf-call-iptables",
    ]
    .into_iter()
    .map(|name| {
        let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
        format!("{name} = {}", value.trim())
    })
    .collect()
}

/// The folders into which a node's programs write unless told otherwise, and our own.
fn files() -> BTreeSet<String> {
    let cache = std::env::var_os("EBPF_SCALER_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache"),
        PathBuf::from,
    );
    let mut folders: Vec<PathBuf> = [
        "/etc",
        "/etc/cni",
        "/opt",
        "/run",
        "/usr/libexec",
        "/var/lib",
        "/var/log",
    ]
    .map(PathBuf::from)
    .to_vec();
    folders.push(cache.join("clusters"));
    folders
        .iter()
        .flat_map(|folder| {
            names(folder)
                .into_iter()
                .map(|name| folder.join(name).display().to_string())
        })
        .collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn printed(program: &str, args: &[&str]) -> BTreeSet<String> {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?} ended with {}",
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::trim).map(str::to_owned).collect()
}
