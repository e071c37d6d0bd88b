//! Starts long-lived programs so that they can always be found again, and ends exactly those.
//! It never looks for a process by its name.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::journal::{Entry, Journal};

/// A process, told from a later one with the same number by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks since boot: field 22 of /proc/PID/stat, see proc(5).
    pub start: u64,
}

impl Process {
    /// The process that has this number now, unless it has ended.
    pub fn running(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold spaces and parentheses of its own.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(fields.first(), Some(&"Z" | &"X")) {
            return None;
        }
        let start = fields.get(19)?.parse().ok()?;
        Some(Self { pid, start })
    }

    pub fn is_running(&self) -> bool {
        Self::running(self.pid) == Some(*self)
    }

    /// Ends it at once. One that is gone already is no error.
    pub fn kill(&self) {
        if let (true, Ok(pid)) = (self.is_running(), i32::try_from(self.pid)) {
            // SAFETY: kill takes two numbers and touches no memory of ours.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// Ends all of them and waits until none is left.
pub fn kill_all(processes: &[Process]) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    for process in processes {
        process.kill();
    }
    while let Some(left) = processes.iter().find(|process| process.is_running()) {
        if Instant::now() > deadline {
            bail!("process {} does not end, even by SIGKILL", left.pid);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts a program that outlives us, with its output in a log file.
///
/// A shell waits for our word before it becomes the program: the journal knows the process before
/// the program's first instruction, and should we die in between, the shell ends by itself.
pub fn start(
    journal: &Journal,
    what: &str,
    log: &Path,
    program: &mut Command,
) -> anyhow::Result<Process> {
    let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"read -r go && exec setsid "$@" </dev/null"#, "sh"])
        .arg(program.get_program())
        .args(program.get_args())
        .envs(
            program
                .get_envs()
                .filter_map(|(name, value)| value.map(|value| (name, value))),
        )
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {what}"))?;
    let process =
        Process::running(child.id()).with_context(|| format!("{what} ended at its start"))?;
    journal.record(&Entry::Process {
        what: what.to_owned(),
        process,
    })?;
    let mut word = child.stdin.take().context("the child has no input")?;
    word.write_all(b"go\n")
        .with_context(|| format!("cannot start {what}"))?;
    Ok(process)
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Lets a command end when we do, however that happens: a client of a cluster that is gone can wait long for it. It has
/// to be awaited by the thread that starts it.
pub fn ends_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: prctl may be called between fork and exec.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        )
    }
}

/// Runs a command to its end and returns what it printed; a failure shows what it said.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
