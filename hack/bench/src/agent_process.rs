//! The real agent as a process of its own, in a cgroup of its own, on a site's pods and with a [`Sink`] to report
//! to. Only what a node's agent has is here: no Kubernetes.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ebpf_scaler_proto::Family;
use ebpf_scaler_testbed::{Cgroup, cgroup2, place};

use crate::interrupt;
use crate::process::{self, Running};
use crate::sink::{self, Sink};
use crate::site::{self, Site};

/// Loading the programs, on a busy machine without optimisations.
const START: Duration = Duration::from_secs(120);
const ADMIN: Duration = Duration::from_secs(2);

/// An agent that measures; it ends with this value.
pub struct Agent {
    process: Running,
    admin: SocketAddr,
    /// What it reports.
    pub sink: Sink,
    /// Where its memory is accounted, if that is another hierarchy (v1).
    memory: Option<Cgroup>,
    cgroup: Cgroup,
}

impl Agent {
    /// Starts it and waits until it measures and reports; `families` beside those that are measured anyway.
    pub fn start(site: &Site, families: &[Family]) -> anyhow::Result<Agent> {
        let sink = Sink::start(site.directory(), families)?;
        let cgroup = Cgroup::create(&site.root().join("agent"))?;
        let name = site.root().file_name().unwrap_or_default().to_owned();
        let memory = memory_v1()
            .map(|tree| Cgroup::create(&tree.join(&name)))
            .transpose()?;
        let tree = cgroup2()?;
        // Hybrid machines have the v2 tree one level below the node's /sys/fs/cgroup.
        let cgroups = match tree.file_name() {
            Some(last) if last == "unified" => tree.parent().unwrap_or(&tree),
            _ => &tree,
        };
        let admin = free_port()?;
        let mut command = std::process::Command::new(process::sibling("collector")?);
        command
            .arg("agent")
            .args(["--node-name", "bench"])
            .arg("--cgroup-root")
            .arg(cgroups)
            .arg("--kubepods")
            .arg(Path::new(&name).join("kubepods"))
            .args(["--report-address", &sink.address.to_string()])
            .args(["--report-server-name", sink::NAME])
            .arg("--ca-file")
            .arg(&sink.ca_file)
            .arg("--token-file")
            .arg(&sink.token_file)
            .args(["--admin-address", &admin.to_string()])
            .stdout(std::process::Stdio::null())
            .stderr(fs::File::create(site.directory().join("agent.log"))?);
        place(&mut command, cgroup.path(), None)?;
        if let Some(memory) = &memory {
            place(&mut command, memory.path(), None)?;
        }
        let mut agent = Agent {
            process: Running::start(&mut command)?,
            admin,
            sink,
            memory,
            cgroup,
        };
        let ready = interrupt::until("the agent measures", START, || {
            agent.process.check()?;
            Ok(agent
                .get("/readyz")
                .is_ok_and(|text| text.starts_with("HTTP/1.1 200")))
        });
        ready.with_context(|| {
            let log = fs::read_to_string(site.directory().join("agent.log"));
            format!("the agent said {:?}", log.unwrap_or_default())
        })?;
        Ok(agent)
    }

    /// CPU time that it has used so far.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        site::cpu_time(self.cgroup.path())
    }

    /// Bytes that its cgroup is charged for, maps and sockets included.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let file = match &self.memory {
            Some(memory) => memory.path().join("memory.usage_in_bytes"),
            None => self.cgroup.path().join("memory.current"),
        };
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file:?}"))?;
        Ok(text.trim().parse()?)
    }

    /// Its own metrics, as text.
    pub fn metrics(&self) -> anyhow::Result<String> {
        self.get("/metrics")
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(ADMIN))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Where the memory controller of a hybrid machine is mounted.
fn memory_v1() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| {
        let v1 = line.split_once(" - cgroup ");
        v1.is_some_and(|(_, rest)| {
            let options = rest.rsplit(' ').next().unwrap_or_default();
            options.split(',').any(|option| option == "memory")
        })
    })?;
    mount.split(' ').nth(4).map(PathBuf::from)
}

/// Lets the memory of a site's cgroups be accounted one by one where cgroup v2 does it.
pub fn account_memory(site: &Site) -> anyhow::Result<()> {
    if memory_v1().is_some() {
        return Ok(());
    }
    let file = site.root().join("cgroup.subtree_control");
    fs::write(file, "+memory")
        .context("cgroup v2 does not account memory here: enable the memory controller in its root's cgroup.subtree_control")
}

fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
