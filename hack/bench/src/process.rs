//! Other programs: found, started so that they end with us, waited for without missing an interrupt.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::interrupt::{self, LOOK};

/// How long a program may take to end when it is asked to.
const LEAVING: Duration = Duration::from_secs(5);
/// Where programs are that are not in everybody's PATH; `*` stands for versions.
const PLACES: [&str; 7] = [
    "/usr/sbin",
    "/sbin",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/local/go/bin",
    "/usr/lib/go-*/bin",
    "/usr/lib/postgresql/*/bin",
];

/// The whole path of a program; the error says how to get it.
pub fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PLACES.iter().flat_map(|place| expand(place)))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is not installed: run hack/setup/packages.sh bench"))
}

fn expand(place: &str) -> Vec<PathBuf> {
    let Some((parent, rest)) = place.split_once('*') else {
        return vec![place.into()];
    };
    let (folder, prefix) = parent.rsplit_once('/').unwrap_or(("/", parent));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(rest.trim_start_matches('/')))
        .collect()
}

/// A program that was built with this one.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let myself = std::env::current_exe().context("cannot find myself")?;
    let file = myself.with_file_name(name);
    anyhow::ensure!(
        file.is_file(),
        "{} is not built: cargo xtask bench does that",
        file.display()
    );
    Ok(file)
}

/// A program that is ended with this value.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
}

impl Running {
    /// Starts it; what it prints is dropped, unless the command says otherwise.
    pub fn start(command: &mut Command) -> anyhow::Result<Running> {
        let name = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let child = tied(command.stdin(Stdio::null()))
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Running { child, name })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error if it has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended early: {status}", self.name),
            None => Ok(()),
        }
    }

    /// Waits for its own end.
    pub fn finish(mut self, limit: Duration) -> anyhow::Result<()> {
        let mut ended = None;
        interrupt::until(&format!("{} ends", self.name), limit, || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        match ended {
            Some(status) if status.success() => Ok(()),
            status => bail!("{} failed: {status:?}", self.name),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // SAFETY: a signal to our own child, which is not yet waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let end = Instant::now() + LEAVING;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that does not outlive us, even if we are killed.
fn tied(command: &mut Command) -> &mut Command {
    // SAFETY: one system call after fork.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    }
}

/// What a program prints to standard output until it ends; an error with what it says if it fails.
pub fn output(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(command)?;
    let out = collect(running.child.stdout.take());
    let err = collect(running.child.stderr.take());
    let name = running.name.clone();
    let ended = running.finish(limit);
    let (out, err) = (out.join(), err.join());
    let (out, err) = (out.unwrap_or_default(), err.unwrap_or_default());
    ended.with_context(|| {
        let said: Vec<&str> = err.lines().chain(out.lines()).collect();
        let end = said.get(said.len().saturating_sub(8)..).unwrap_or_default();
        format!("{name} said: {}", end.join(" | "))
    })?;
    Ok(out)
}

fn collect(from: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_what_the_program_said() {
        let limit = Duration::from_secs(20);
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo too bad >&2; exit 3"]);
        let error = format!("{:#}", output(&mut failing, limit).unwrap_err());
        assert!(error.contains("too bad"), "{error}");
        let mut fine = Command::new("sh");
        fine.args(["-c", "echo well"]);
        assert_eq!(output(&mut fine, limit).unwrap(), "well\n");
    }

    #[test]
    fn programs_are_found_or_it_is_said_how_to_get_them() {
        assert!(find("sh").unwrap().is_absolute());
        let error = find("no-such-program").unwrap_err().to_string();
        assert!(error.contains("packages.sh bench"), "{error}");
    }
}
