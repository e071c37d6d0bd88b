//! Boots one kernel in qemu and follows its console: which test runs, how it ended, what it said. The machine is
//! ended when it says nothing for too long.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

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
    pub fn first() -> Self {
        match std::fs::File::options().write(true).open("/dev/kvm") {
            Ok(_) => Self::Kvm,
            Err(_) => Self::Emulation,
        }
    }
}

/// Boots, runs the tests, turns off. `limit` is for one test.
pub fn run(
    kernel: &Path,
    initramfs: &Path,
    accelerator: Accelerator,
    limit: Duration,
) -> anyhow::Result<Option<Report>> {
    let mut console = Console::start(kernel, initramfs, accelerator)?;
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
    while let Some(begun) = console.next(Duration::from_secs(60)) {
        match begun.split_once(' ') {
            Some(("note", text)) => println!("      {text}"),
            Some(("passed-over", what)) => {
                let (name, reason) = what.split_once(": ").unwrap_or((what, ""));
                let ran = Ran {
                    name: name.replace(' ', "::"),
                    outcome: Outcome::NotRun(reason.to_owned()),
                    took: Duration::ZERO,
                };
                ran.print();
                report.ran.push(ran);
            }
            Some(("begin", name)) => match console.test(name, limit) {
                Some(ran) => {
                    ran.print();
                    report.ran.push(ran);
                }
                None => {
                    report.ended_early = Some(format!("in {name}:\n{}", console.tail()));
                    return Ok(Some(report));
                }
            },
            _ if begun == "off" => return Ok(Some(report)),
            _ => {}
        }
    }
    report.ended_early = Some(console.tail());
    Ok(Some(report))
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
    fn start(kernel: &Path, initramfs: &Path, accelerator: Accelerator) -> anyhow::Result<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        match accelerator {
            Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
            // Emulated, string instructions go byte by byte.
            Accelerator::Emulation => {
                command.args(["-accel", "tcg,thread=multi,tb-size=512"]);
                command.args(["-cpu", "max,-erms,-fsrm"])
            }
        };
        command.args(["-smp", "2", "-m", MEMORY, "-nographic", "-no-reboot"]);
        command.args(["-nic", "none", "-kernel"]).arg(kernel);
        command.arg("-initrd").arg(initramfs);
        // A panic ends the machine at once. Features 112, 297 and 580 are those string instructions. The emulated
        // counter is this machine's; measuring its rate goes wrong when the machine is busy, so it is told.
        let mut line = "console=ttyS0 rdinit=/init quiet panic=-1 nowatchdog mitigations=off \
             clearcpuid=112,297,580"
            .to_owned();
        if let (Accelerator::Emulation, Some(kilohertz)) = (accelerator, counter_kilohertz()) {
            line += &format!(" tsc=reliable tsc_early_khz={kilohertz}");
        }
        command.args(["-append", &line]);
        let mut machine = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
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

    /// Follows a test to its end; None if the machine did not get there.
    fn test(&mut self, name: &str, limit: Duration) -> Option<Ran> {
        self.said.clear();
        let begun = Instant::now();
        // The guest ends it after `limit` by its own clock, which may be slow.
        let line = self.next(limit * 2 + Duration::from_secs(60))?;
        let status = line.strip_prefix("end ")?.strip_prefix(name)?.trim();
        let outcome = match status {
            "0" if self
                .said
                .iter()
                .any(|line| line.contains("test result: ok. 1 passed")) =>
            {
                Outcome::Ok
            }
            _ => Outcome::Failed(format!("      status {status}\n{}", self.tail())),
        };
        Some(Ran {
            name: name.replace(' ', "::"),
            outcome,
            took: begun.elapsed(),
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
