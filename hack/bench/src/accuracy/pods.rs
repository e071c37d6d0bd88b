//! Pods that live for 300 ms, found and counted by the real agent: each is made, serves a few requests, and is
//! removed, while the agent learns of it by inotify and by its quarantine only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use ebpf_scaler_testbed::{SERVER, Wire, enter};

use super::outcome::{Outcome, Protocol};
use super::workloads::Scale;
use crate::agent_process::Agent;
use crate::generators::Generated;
use crate::interrupt;
use crate::process::{self, Running};
use crate::scene::Statistics;
use crate::site::{Site, make_pod};

/// Of the workload.
pub const NAME: &str = "pods that live 300 ms";
const LIFE: Duration = Duration::from_millis(300);
/// Requests to each, on one connection.
const REQUESTS: u64 = 5;
/// Pods that live at the same time.
const AT_ONCE: u32 = 8;
const FIRST_PORT: u16 = 20_000;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: pod\r\nUser-Agent: bench\r\n\r\n";
/// What a pod may need to come up, and what an agent may need to report the last of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs it, on a site of its own.
pub fn run(scale: &Scale) -> anyhow::Result<Outcome> {
    let site = Site::create(Wire::Direct)?;
    let agent = Agent::start(&site, &[])?;
    let (next, sent, cut_off) = (AtomicU32::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (namespaces, kubepods) = (site.namespaces(), site.kubepods());
    let (inside, outside) = (namespaces.server(), namespaces.client());
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    enter(&outside)?;
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= scale.pods {
                            return Ok(());
                        }
                        let answered = one(kubepods, &inside, number)
                            .with_context(|| format!("pod {number}"))?;
                        sent.fetch_add(answered, Ordering::Relaxed);
                        cut_off.fetch_add(u64::from(answered < REQUESTS), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a thread ended"))?
        })
    })?;
    let sent = sent.into_inner();
    // What is late still comes; what never comes is missing from the result, not waited for in vain.
    let end = Instant::now() + PATIENCE;
    while agent.sink.all_requests() < sent && Instant::now() < end {
        interrupt::pause(Duration::from_millis(100))?;
    }
    // And what would be too much has had its time.
    interrupt::pause(Duration::from_secs(2))?;
    let generated = Generated {
        requests: sent,
        unfinished: cut_off.into_inner(),
        ..Generated::default()
    };
    let mut outcome = Outcome::new(NAME, Protocol::Http1, generated, agent.sink.all_requests());
    outcome.statistics = statistics(&agent.metrics()?);
    outcome.note = Some(format!(
        "{} of {} pods were reported",
        agent.sink.pods(),
        scale.pods
    ));
    Ok(outcome)
}

/// A pod's life; returns how many requests it has answered.
fn one(kubepods: &Path, namespace: &Path, number: u32) -> anyhow::Result<u64> {
    interrupt::check()?;
    let pod = make_pod(kubepods, namespace, number)?;
    let port = FIRST_PORT + u16::try_from(number)?;
    let address = SocketAddr::new(SERVER.parse()?, port);
    let mut command = pod.command(&process::sibling("bench")?)?;
    command.args([
        "actor",
        "brief",
        &address.to_string(),
        &LIFE.as_millis().to_string(),
    ]);
    let mut server = Running::start(&mut command)?;
    let mut stream = None;
    interrupt::until("the pod listens", PATIENCE, || {
        server.check()?;
        stream = TcpStream::connect(address).ok();
        Ok(stream.is_some())
    })?;
    let mut stream = stream.context("no connection")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut answer, mut answered) = ([0; 256], 0);
    // On a busy machine the pod's life may be over before the last one.
    while answered < REQUESTS
        && stream.write_all(REQUEST).is_ok()
        && stream.read(&mut answer).is_ok_and(|bytes| bytes > 0)
    {
        answered += 1;
    }
    server.finish(PATIENCE)?;
    Ok(answered)
}

/// The agent's statistics of what the programs could not do, from its metrics.
fn statistics(metrics: &str) -> Statistics {
    const NAMES: [&str; 5] = [
        "quarantine_full",
        "unknown_cgroup_packets",
        "quarantine_forgotten_cgroups",
        "quarantine_forgotten_requests",
        "slots_full",
    ];
    let value = |name: &str| {
        let line = metrics
            .lines()
            .find(|line| !line.starts_with('#') && line.contains(name))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    NAMES
        .into_iter()
        .filter_map(|name| Some((name, value(name)? as u64)))
        .filter(|(_, value)| *value > 0)
        .collect()
}
