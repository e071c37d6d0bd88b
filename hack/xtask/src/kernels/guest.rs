//! Boots one kernel in qemu and follows its console: which test runs, how it ended, what it said. The machine is
//! ended when it says nothing for too long.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::architecture::Architecture;

/// Booting takes 4 s without KVM on an idle machine.
const BOOT: Duration = Duration::from_secs(120);
/// With KVM a fraction of a second, or for ever where nested virtualisation does not work.
const BOOT_KVM: Duration = Duration::from_secs(10);
const MEMORY: &str = "3G";

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Failed(String),
    /// Why it was not run.
    NotRun(String),
}

/// One test in one kernel.
pub struct Ran {
    /// The test's program and its name, as `kernel_http::a_test`.
    pub name: String,
    pub outcome: Outcome,
    pub took: Duration,
}

/// A kernel's results.
pub struct Report {
    /// As `uname -r` says.
    pub release: String,
    pub ran: Vec<Ran>,
    /// Why the machine ended before its time.
    pub ended_early: Option<String>,
}

/// What the processor is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    /// KVM, if it is here at all.
    pub fn first(architecture: Architecture) -> Self {
        if !architecture.is_own() {
            return Self::Emulation;
        }
        match std::fs::File::options().write(true).open("/dev/kvm") {
            Ok(_) => Self::Kvm,
            Err(_) => Self::Emulation,
        }
    }
}

/// Boots, runs the tests, turns off. `limit` is for one test.
pub fn run(
    architecture: Architecture,
    kernel: &Path,
    initramfs: &Path,
    accelerator: Accelerator,
    limit: Duration,
) -> anyhow::Result<Option<Report>> {
    let mut console = Console::start(architecture, kernel, initramfs, accelerator)?;
    let boot = match accelerator {
        Accelerator::Kvm => BOOT_KVM,
        Accelerator::Emulation => BOOT,
    };
    let Some(release) = console.wait_for("up", boot)? else {
        if accelerator == Accelerator::Kvm {
            return Ok(None);
        }
        bail!("{} did not boot:\n{}", kernel.display(), console.tail());
    };
    let mut report = Report {
        release,
        ran: Vec::new(),
        ended_early: None,
    };
    let mut running = BTreeSet::new();
    // The guest ends a test after `limit` by its own clock, which may be slow.
    while let Some(said) = console.next(limit * 2 + Duration::from_secs(60)) {
        let (word, rest) = said.split_once(' ').unwrap_or((&said, ""));
        match word {
            "note" => println!("      {rest}"),
            "passed-over" => {
                let (name, reason) = rest.split_once(": ").unwrap_or((rest, ""));
                report.add(Ran {
                    name: name.replace(' ', "::"),
                    outcome: Outcome::NotRun(reason.to_owned()),
                    took: Duration::ZERO,
                });
            }
            "running" => {
                running.insert(rest.to_owned());
            }
            "begin" => {
                running.remove(rest);
                match console.test(rest) {
                    Some(ran) => report.add(ran),
                    None => {
                        report.ended_early = Some(format!("in {rest}:\n{}", console.tail()));
                        return Ok(Some(report));
                    }
                }
            }
            "off" => return Ok(Some(report)),
            _ => {}
        }
    }
    let running: Vec<String> = running.into_iter().collect();
    let running = running.join(", ");
    report.ended_early = Some(format!("while it ran {running}:\n{}", console.tail()));
    Ok(Some(report))
}

impl Report {
    fn add(&mut self, ran: Ran) {
        ran.print();
        self.ran.push(ran);
    }
}

impl Ran {
    fn print(&self) {
        let (word, more) = match &self.outcome {
            Outcome::Ok => ("ok", String::new()),
            Outcome::Failed(text) => ("FAILED", format!("\n{text}")),
            Outcome::NotRun(reason) => ("not run", format!(": {reason}")),
        };
        println!(
            "    {word:7} {:6.1} s  {}{more}",
            self.took.as_secs_f64(),
            self.name
        );
    }
}

/// The rate of this machine's time stamp counter.
#[cfg(target_arch = "x86_64")]
fn counter_kilohertz() -> Option<u128> {
    // SAFETY: every x86-64 processor has the instruction.
    let count = || unsafe { core::arch::x86_64::_rdtsc() };
    let (begun, from) = (Instant::now(), count());
    std::thread::sleep(Duration::from_millis(500));
    let (counted, took) = (count() - from, begun.elapsed());
    Some(u128::from(counted) * 1_000_000 / took.as_nanos())
}

#[cfg(not(target_arch = "x86_64"))]
fn counter_kilohertz() -> Option<u128> {
    None
}

/// The machine's serial console.
struct Console {
    machine: Child,
    lines: Receiver<String>,
    /// Since the last line for us.
    said: Vec<String>,
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

impl Console {
    fn start(
        architecture: Architecture,
        kernel: &Path,
        initramfs: &Path,
        accelerator: Accelerator,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(architecture.emulator());
        command.args(architecture.machine());
        match accelerator {
            Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Emulation => {
                command.args(["-accel", "tcg,thread=multi,tb-size=512"]);
                command.args(["-cpu", architecture.processor()])
            }
        };
        command.args(["-smp", "2", "-m", MEMORY, "-nographic", "-no-reboot"]);
        command.args(["-nic", "none", "-kernel"]).arg(kernel);
        command.arg("-initrd").arg(initramfs);
        // A panic ends the machine at once. The emulated counter of x86 is this machine's; measuring its rate goes
        // wrong when the machine is busy, so it is told.
        let mut line = format!(
            "{} rdinit=/init quiet panic=-1 nowatchdog mitigations=off",
            architecture.command_line()
        );
        if let (Architecture::Amd64, Accelerator::Emulation, Some(kilohertz)) =
            (architecture, accelerator, counter_kilohertz())
        {
            line += &format!(" tsc=reliable tsc_early_khz={kilohertz}");
        }
        command.args(["-append", &line]);
        let mut machine = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot start {}", architecture.emulator()))?;
        let output = machine.stdout.take().context("qemu's output")?;
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Ok(Self {
            machine,
            lines,
            said: Vec::new(),
        })
    }

    /// The next line for us; None if the machine ended or says nothing for that long.
    fn next(&mut self, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                // A line of the kernel's may stand before it.
                Ok(line) => match line.split_once("@@ ") {
                    Some((before, rest)) => {
                        self.said.push(before.to_owned());
                        return Some(rest.to_owned());
                    }
                    None => self.said.push(line),
                },
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn wait_for(&mut self, word: &str, limit: Duration) -> anyhow::Result<Option<String>> {
        let end = Instant::now() + limit;
        while let Some(line) = self.next(end.saturating_duration_since(Instant::now())) {
            match line.split_once(' ') {
                Some((first, rest)) if first == word => return Ok(Some(rest.to_owned())),
                _ => println!("    {line}"),
            }
        }
        Ok(None)
    }

    /// Reads what a test said and how it ended; None if the machine ended meanwhile.
    fn test(&mut self, name: &str) -> Option<Ran> {
        self.said.clear();
        let line = self.next(Duration::from_secs(60))?;
        let end: Vec<&str> = line
            .strip_prefix("end ")?
            .strip_prefix(name)?
            .split_whitespace()
            .collect();
        let [status, from, to] = end[..] else {
            return None;
        };
        let passed = |line: &String| line.contains("test result: ok. 1 passed");
        let outcome = match status {
            "0" if self.said.iter().any(passed) => Outcome::Ok,
            _ => Outcome::Failed(format!("      status {status}\n{}", self.tail())),
        };
        // Seconds since the machine was started.
        let took = to.parse().unwrap_or(0.0_f64) - from.parse().unwrap_or(0.0);
        Some(Ran {
            name: name.replace(' ', "::"),
            outcome,
            took: Duration::from_secs_f64(took.max(0.0)),
        })
    }

    /// The last that was said.
    fn tail(&self) -> String {
        let from = self.said.len().saturating_sub(40);
        self.said[from..]
            .iter()
            .map(|line| format!("      | {line}\n"))
            .collect()
    }
}
