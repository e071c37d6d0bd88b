//! What kernel tests and benches need of a machine: cgroups as pods have them, a pair of network namespaces so that
//! traffic really comes from outside, processes placed in both. Needs root; what it makes it removes when dropped,
//! and it never touches what it has not made.

mod cgroup;
mod impair;
mod namespaces;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use cgroup::{Cgroup, cgroup2};
pub use impair::{Impairment, Passed, Relay};
pub use namespaces::{CLIENT, Namespaces, SERVER, SERVER6, Wire, enter};

/// Runs a shell command; its standard error is the error.
pub fn sh(command: &str) -> io::Result<()> {
    let output = Command::new("sh").args(["-c", command]).output()?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command}: {}", reason.trim())))
}

/// Lets a command run in a cgroup, in a network namespace (a file such as /run/netns/NAME), or in both.
pub fn place(command: &mut Command, cgroup: &Path, namespace: Option<&Path>) -> io::Result<()> {
    let procs = File::options()
        .write(true)
        .open(cgroup.join("cgroup.procs"))?;
    let namespace = namespace.map(File::open).transpose()?;
    // SAFETY: only system calls that are safe after fork.
    unsafe {
        command.pre_exec(move || {
            (&procs).write_all(b"0")?;
            match &namespace {
                Some(file) if libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) != 0 => {
                    Err(io::Error::last_os_error())
                }
                _ => Ok(()),
            }
        });
    }
    Ok(())
}

/// How long to wait for what takes that long on an ordinary machine: an emulated one is slower, by the whole number
/// in $EBPF_SCALER_TEST_PATIENCE. For waits only, never for what is counted.
pub fn patience(ordinary: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let set = || std::env::var("EBPF_SCALER_TEST_PATIENCE").ok();
    ordinary * *FACTOR.get_or_init(|| set().and_then(|text| text.parse().ok()).unwrap_or(1))
}

/// Polls until it holds; false if it does not in time, which is scaled by [`patience`].
pub fn eventually(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience(limit);
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
