//! Runs commands as numbered, timed steps whose output a person can follow. It never captures what they print.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// A run of several steps: prints a heading for each and a table at the end.
pub struct Steps {
    title: &'static str,
    begun: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    pub fn new(title: &'static str) -> Self {
        Self {
            title,
            begun: Instant::now(),
            done: Vec::new(),
        }
    }

    /// Runs a command to its end; a status other than success is an error that names the step.
    pub fn run(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        self.step(name, || {
            let status = command
                .status()
                .with_context(|| format!("cannot start {:?}", command.get_program()))?;
            if !status.success() {
                bail!("{name} failed: {command:?} ended with {status}");
            }
            Ok(())
        })
    }

    /// Runs a piece of our own work as a step.
    pub fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let at = self.begun.elapsed().as_secs();
        println!("\n==> {} [{}:{:02}] {name}", self.title, at / 60, at % 60);
        let begun = Instant::now();
        let result = work();
        self.done.push((name.to_owned(), begun.elapsed()));
        result
    }

    /// Prints how long each step took.
    pub fn summary(&self) {
        println!(
            "\n==> {} took {:.0} s",
            self.title,
            self.begun.elapsed().as_secs_f64()
        );
        for (name, took) in &self.done {
            println!("    {:>6.1} s  {name}", took.as_secs_f64());
        }
    }
}

/// `cargo` as the one that runs us.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    // What the cargo that runs us says of this package. Build scripts look at some of it (ring's does), and would run
    // again, with all that depends on them, whenever a person's own cargo and ours take turns.
    for (name, _) in std::env::vars_os() {
        let of_package = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ];
        if name
            .to_str()
            .is_some_and(|name| of_package.iter().any(|prefix| name.starts_with(prefix)))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Another task of this same program.
pub fn xtask(args: &[&str]) -> anyhow::Result<Command> {
    // The file may have been replaced while we ran: `cargo test --workspace` builds this program anew.
    let linux = std::path::Path::new("/proc/self/exe");
    let myself = if linux.exists() {
        linux.to_owned()
    } else {
        std::env::current_exe().context("cannot find myself")?
    };
    let mut command = Command::new(myself);
    command.args(args);
    Ok(command)
}

/// Whether this process is root, which the kernel and cluster tests need.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
