//! Throughput of a server with the real agent on its node, beside throughput without: in pairs that take turns, so
//! that the machine's moods meet both. The kernel's accounts of programs are off meanwhile.

use std::time::Duration;

use anyhow::Context;
use ebpf_scaler_proto::Family;
use ebpf_scaler_sample::spread::Spread;
use ebpf_scaler_testbed::Wire;
use serde::Serialize;

use crate::agent_process::Agent;
use crate::generators::Wrk;
use crate::interrupt;
use crate::servers::{Listening, Server};
use crate::site::Site;
use crate::table::{Table, verdict};

/// Until an agent that was just started does what it does every second.
const SETTLE: Duration = Duration::from_secs(1);
/// Whether somebody has asked the kernel to time programs for as long as it runs.
const TIMED: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// CPU work of a request of the busy service, microseconds.
const WORK: u32 = 200;
/// Resamples of the bootstrap, and the share that its interval leaves out at each end (95 %).
const RESAMPLES: usize = 4000;
const TAIL: f64 = 0.025;

/// How the agent is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Requests and network: what is always on.
    Default,
    /// The run queue, too.
    WithRunQueue,
}

const MODES: [Option<Mode>; 3] = [None, Some(Mode::Default), Some(Mode::WithRunQueue)];

/// A service, in one mode, beside itself without an agent.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What serves.
    pub service: &'static str,
    /// How the agent is there.
    pub mode: Mode,
    /// Share of throughput lost, 0 to 1: median of the pairs.
    pub loss: f64,
    /// 95 % of what the median of other pairs would be (bootstrap).
    pub interval: [f64; 2],
    /// Every pair's.
    pub pairs: Vec<f64>,
    /// Requests a second, median: without, with.
    pub rate: [f64; 2],
    /// CPU microseconds a request of server, client and agent, median: without, with.
    pub cpu_micros: [f64; 2],
    /// What may be lost; none where there is no budget.
    pub budget: Option<f64>,
}

/// The figures that have budgets.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Losses {
    /// nginx serving a small file over kept connections.
    #[serde(rename = "static")]
    pub static_file: f64,
    /// A service that burns CPU for each request.
    pub busy: f64,
}

/// One run of the client.
#[derive(Clone, Copy, Debug)]
struct Run {
    rate: f64,
    cpu_micros: f64,
}

/// Measures both services.
pub fn measure(quick: bool) -> anyhow::Result<Vec<Comparison>> {
    // Our own windows are closed; somebody else's would be paid for by us alone.
    let timed = std::fs::read_to_string(TIMED).unwrap_or_default();
    anyhow::ensure!(
        quick || timed.trim() != "1",
        "the kernel times every program, which costs throughput: sysctl kernel.bpf_stats_enabled=0"
    );
    let (rounds, time) = if quick { (2, 1) } else { (10, 4) };
    let time = Duration::from_secs(time);
    let mut comparisons = Vec::new();
    for (service, server, path, budget) in [
        (
            "static: nginx, 612 bytes, keep-alive",
            Server::Nginx,
            "/small",
            0.03,
        ),
        (
            "busy: 200 us of work a request",
            Server::Sample(WORK),
            "/",
            0.01,
        ),
    ] {
        let site = Site::create(Wire::Direct)?;
        let pod = site.pod()?;
        let server = server.start(&site, &pod)?;
        let url = server.url(path);
        // Files and code are in memory from here on.
        one(&site, &url, None, time)?;
        let mut runs: Vec<[Run; MODES.len()]> = Vec::new();
        for round in 0..rounds {
            runs.push(turn(&site, &url, round, time)?);
        }
        for (index, mode) in MODES.into_iter().enumerate() {
            if let Some(mode) = mode {
                let budget = (mode == Mode::Default).then_some(budget);
                comparisons.push(compare(service, mode, index, &runs, budget)?);
            }
        }
        let _keep: Listening = server;
    }
    Ok(comparisons)
}

/// Every mode once, each round beginning with another one.
fn turn(
    site: &Site,
    url: &str,
    round: usize,
    time: Duration,
) -> anyhow::Result<[Run; MODES.len()]> {
    let nothing = Run {
        rate: 0.0,
        cpu_micros: 0.0,
    };
    let mut runs = [nothing; MODES.len()];
    for step in 0..MODES.len() {
        let index = (round + step) % MODES.len();
        runs[index] = one(site, url, MODES[index], time)?;
    }
    Ok(runs)
}

fn one(site: &Site, url: &str, mode: Option<Mode>, time: Duration) -> anyhow::Result<Run> {
    let _agent = match mode {
        None => None,
        Some(Mode::Default) => Some(Agent::start(site, &[])?),
        Some(Mode::WithRunQueue) => Some(Agent::start(site, &[Family::Runqueue])?),
    };
    interrupt::pause(SETTLE)?;
    let wrk = Wrk {
        time,
        ..Wrk::default()
    };
    let before = site.cpu_time()?;
    let generated = wrk.run(site, url)?;
    let used = site.cpu_time()? - before;
    Ok(Run {
        rate: generated.rate,
        cpu_micros: used.as_secs_f64() * 1e6 / generated.requests.max(1) as f64,
    })
}

fn compare(
    service: &'static str,
    mode: Mode,
    index: usize,
    runs: &[[Run; MODES.len()]],
    budget: Option<f64>,
) -> anyhow::Result<Comparison> {
    let median = |index: usize, of: fn(&Run) -> f64| {
        let values: Vec<f64> = runs.iter().map(|round| of(&round[index])).collect();
        Spread::of(&values).map_or(f64::NAN, |spread| spread.median)
    };
    let pairs: Vec<f64> = runs
        .iter()
        .map(|round| 1.0 - round[index].rate / round[0].rate)
        .collect();
    let spread = Spread::of(&pairs).context("no pairs")?;
    Ok(Comparison {
        service,
        mode,
        loss: spread.median,
        interval: interval(&pairs),
        pairs,
        rate: [0, index].map(|index| median(index, |run| run.rate)),
        cpu_micros: [0, index].map(|index| median(index, |run| run.cpu_micros)),
        budget,
    })
}

/// Where the median lies with 95 % (percentile bootstrap; Efron, 1979).
fn interval(values: &[f64]) -> [f64; 2] {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let resample: Vec<f64> = values
                .iter()
                .map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    values[(random % values.len() as u64) as usize]
                })
                .collect();
            Some(Spread::of(&resample)?.median)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = medians.len().saturating_sub(1);
        medians.get((share * last as f64) as usize).copied()
    };
    [TAIL, 1.0 - TAIL].map(|share| at(share).unwrap_or(f64::NAN))
}

/// The figures that have budgets, of all comparisons.
pub fn losses(comparisons: &[Comparison]) -> Option<Losses> {
    let mut judged = comparisons.iter().filter(|c| c.budget.is_some());
    Some(Losses {
        static_file: judged.next()?.loss,
        busy: judged.next()?.loss,
    })
}

/// For people.
pub fn table(comparisons: &[Comparison]) -> Table {
    let headings = [
        "service",
        "agent",
        "requests/s",
        "lost",
        "95 % interval",
        "budget",
        "",
        "CPU us/request",
    ];
    let mut table = Table::new(
        "Throughput with the agent beside throughput without",
        &headings,
    );
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    for c in comparisons {
        table.row([
            c.service.to_owned(),
            match c.mode {
                Mode::Default => "requests, network".to_owned(),
                Mode::WithRunQueue => "and run queue".to_owned(),
            },
            format!("{:.0} -> {:.0}", c.rate[0], c.rate[1]),
            percent(c.loss),
            format!("{} to {}", percent(c.interval[0]), percent(c.interval[1])),
            c.budget.map_or("-".to_owned(), percent),
            c.budget
                .map_or("-".to_owned(), |budget| verdict(c.loss <= budget)),
            format!("{:.2} -> {:.2}", c.cpu_micros[0], c.cpu_micros[1]),
        ]);
    }
    let pairs = comparisons.first().map_or(0, |c| c.pairs.len());
    table.note(format!(
        "Medians of {pairs} interleaved pairs; CPU is that of server, client and agent together."
    ));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_median_and_not_the_outliers() {
        let values = [0.01, 0.02, 0.02, 0.03, 0.02, 0.01, 0.02, 0.03, 0.02, 0.50];
        let [low, high] = interval(&values);
        assert!(
            low <= 0.02 && (0.02..0.1).contains(&high),
            "{low} to {high}"
        );
        assert_eq!(interval(&[0.5]), [0.5, 0.5]);
    }
}
