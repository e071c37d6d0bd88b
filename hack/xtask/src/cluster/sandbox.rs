//! A set of Linux namespaces held by one process: a node of the cluster, or the switch between them.
//! When that process ends, the kernel removes all that was in them: processes, mounts, interfaces,
//! routes and firewall rules. It never changes the host's own namespaces.

use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    journal::Journal,
    process::{self, Process},
};

/// Process 1 of a node must outlive all others and collect orphans; a shell that waits does both.
const FOREVER: &str = "while :; do sleep 1000000 & wait; done";

/// Gives a node its own view of the few folders that its programs write to by fixed names.
/// Mounts are shared only at the end, so that each has its own peer group.
const NODE: &str = r#"
set -eu
cluster=$1 node=$2 bin=$3
mkdir -p "$node/run" "$node/lib/kubelet" "$node/log/pods"
mount -t tmpfs -o mode=755 tmpfs "$node/run"
mkdir "$node/run/cluster" "$node/run/node" "$node/run/bin"
mount --bind "$cluster" "$node/run/cluster"
mount --bind "$node" "$node/run/node"
mount --bind "$bin" "$node/run/bin"
# A kubelet sets these for the whole machine, unless it finds them as it wants them.
mkdir "$node/run/sysctl"
while read -r file value; do
    echo "$value" >"$node/run/sysctl/${file##*/}"
    mount --bind "$node/run/sysctl/${file##*/}" "/proc/sys/$file"
done <<'end'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
end
mount --rbind "$node/run" /run
mount --bind /run/node/lib /var/lib
mount --bind /run/node/log /var/log
mount --make-rshared /
echo 1 >/proc/sys/net/ipv4/ip_forward
: >/run/node/ready
"#;

/// The namespaces, by the process that made them.
#[derive(Clone, Copy)]
pub struct Sandbox {
    holder: Process,
    has_mounts: bool,
}

impl Sandbox {
    /// One that the journal knows.
    pub fn of(holder: Process, has_mounts: bool) -> Self {
        Self { holder, has_mounts }
    }

    /// A network namespace alone.
    pub fn network(journal: &Journal, what: &str, log: &Path) -> anyhow::Result<Self> {
        let holder = process::start(
            journal,
            what,
            log,
            Command::new("unshare").args(["--net", "sleep", "infinity"]),
        )?;
        let sandbox = Self::of(holder, false);
        sandbox.wait(log, || sandbox.has_own_network())?;
        Ok(sandbox)
    }

    /// Namespaces for network, mounts and processes. Inside, the cluster's folder is /run/cluster,
    /// the node's is /run/node, and our binaries are in /run/bin, however deep the cache is.
    pub fn node(
        journal: &Journal,
        what: &str,
        log: &Path,
        (cluster, node, bin): (&Path, &Path, &Path),
    ) -> anyhow::Result<Self> {
        let holder = process::start(
            journal,
            what,
            log,
            Command::new("unshare")
                .args(["--net", "--mount", "--propagation=slave", "--pid"])
                .args(["--mount-proc", "--fork", "--kill-child", "bash", "-c"])
                .arg(format!("{NODE}{FOREVER}"))
                .arg("bash")
                .args([cluster, node, bin]),
        )?;
        let sandbox = Self::of(holder, true);
        sandbox.wait(log, || node.join("ready").exists())?;
        Ok(sandbox)
    }

    /// The process whose namespaces these are, as `ip link ... netns PID` wants it.
    pub fn pid(&self) -> u32 {
        self.holder.pid
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let file = |kind| format!("/proc/{}/ns/{kind}", self.holder.pid);
        command.arg(format!("--net={}", file("net")));
        if self.has_mounts {
            command
                .arg(format!("--mount={}", file("mnt")))
                .arg(format!("--pid={}", file("pid_for_children")));
        }
        command.arg("--").arg(program).current_dir("/");
        command
    }

    fn has_own_network(&self) -> bool {
        let file = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let theirs = file(&self.holder.pid.to_string());
        theirs.is_some() && theirs != file("self")
    }

    fn wait(&self, log: &Path, is_ready: impl Fn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_ready() {
            if !self.holder.is_running() || Instant::now() > deadline {
                bail!("cannot make namespaces: {}", process::tail(log, 10));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Process::running(self.holder.pid)
            .map(|_| ())
            .context("the namespaces' holder has ended")
    }
}
