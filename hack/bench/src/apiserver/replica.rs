//! The process that is measured: `collector apiserver`, started as in a cluster, with a kubeconfig that leads to the
//! stand-in.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::pki::Pki;
use crate::interrupt;
use crate::process::{self, Running};

/// Listing all pods, on a busy machine without optimisations.
const START: Duration = Duration::from_secs(300);

/// One replica; it ends with this value.
pub struct Replica {
    process: Running,
    /// Where it answers queries.
    pub api: SocketAddr,
    /// Where agents report.
    pub report: SocketAddr,
    /// Where its own metrics are.
    pub admin: SocketAddr,
}

impl Replica {
    /// Starts it and waits until it knows the pods.
    pub fn start(directory: &Path, kubeconfig: &str, pki: &Pki) -> anyhow::Result<Self> {
        let file = |name: &str, text: &str| -> anyhow::Result<_> {
            let file = directory.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            Ok(file)
        };
        let log = directory.join("apiserver.log");
        let mut command = Command::new(process::sibling("collector")?);
        command
            .arg("apiserver")
            .args(["--address", "127.0.0.1:0"])
            .args(["--report-address", "127.0.0.1:0"])
            .args(["--admin-address", "127.0.0.1:0"])
            // It is to be ready without agents: they come when it listens.
            .args(["--agents-timeout", "100ms"])
            .arg("--tls-cert-file")
            .arg(file("tls.crt", &pki.serving.certificate)?)
            .arg("--tls-key-file")
            .arg(file("tls.key", &pki.serving.key)?)
            .env("KUBECONFIG", file("kubeconfig", kubeconfig)?)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?);
        let mut process = Running::start(&mut command)?;
        let mut addresses = None;
        let ready = interrupt::until("the API server role is ready", START, || {
            process.check()?;
            let text = fs::read_to_string(&log)?;
            addresses = addresses.or_else(|| serving(&text));
            Ok(text.lines().any(|line| says(line, "ready")))
        });
        ready.with_context(|| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let last: Vec<_> = text.lines().rev().take(5).collect();
            format!("it said {last:?}")
        })?;
        let (api, report, admin) = addresses.context("it did not say where it listens")?;
        Ok(Self {
            process,
            api,
            report,
            admin,
        })
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.process.check()
    }

    /// CPU time that it has used so far.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name, in parentheses, may have spaces.
        let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<_> = fields.split_whitespace().collect();
        let ticks = |i: usize| -> anyhow::Result<u64> {
            Ok(fields.get(i).context("a short /proc/PID/stat")?.parse()?)
        };
        // SAFETY: no memory is involved.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        Ok(Duration::from_secs_f64(
            (ticks(11)? + ticks(12)?) as f64 / per_second,
        ))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Resident bytes.
    pub fn rss(&self) -> anyhow::Result<u64> {
        self.status("VmRSS:")
    }

    /// The most bytes that were resident since `forget_peak`.
    pub fn peak(&self) -> anyhow::Result<u64> {
        self.status("VmHWM:")
    }

    /// Forgets the peak: see proc_pid_clear_refs(5).
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        let file = format!("/proc/{}/clear_refs", self.process.id());
        fs::write(&file, "5").with_context(|| format!("cannot write {file}"))
    }

    fn status(&self, key: &str) -> anyhow::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib
            .with_context(|| format!("no {key}"))?
            .trim()
            .parse::<u64>()?
            << 10)
    }
}

fn says(line: &str, message: &str) -> bool {
    let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
    line.is_some_and(|line| line["message"] == message)
}

/// All addresses, from the line that tells them.
fn serving(log: &str) -> Option<(SocketAddr, SocketAddr, SocketAddr)> {
    let line = log.lines().find(|line| says(line, "serving"))?;
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = |key: &str| line[key].as_str()?.parse().ok();
    Some((address("api")?, address("report")?, address("admin")?))
}
