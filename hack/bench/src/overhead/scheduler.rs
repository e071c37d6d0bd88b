//! The run queue's programs beside runqlat (libbpf-tools), under the same loads, in turns: each alone, because the
//! second of two finds its data in the cache.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::Family;
use ebpf_scaler_sample::spread::Spread;
use ebpf_scaler_testbed::Wire;
use serde::Serialize;

use super::empty;
use super::programs::{Accounts, Cost, Window, costs};
use crate::generators::Wrk;
use crate::interrupt;
use crate::process::{self, Running};
use crate::scene::{Scene, Target};
use crate::servers::Server;
use crate::table::{Table, verdict};

/// Our share of runqlat's time.
const RATIO: f64 = 0.6;
/// What is to be reached some day, nanoseconds for each switch.
const STRETCH: f64 = 100.0;
const SWITCH: &str = "sched_switch";
const TRACE_POINTS: [&str; 3] = [SWITCH, "sched_wakeup", "sched_wakeup_new"];
/// runqlat attaches within this time.
const ATTACH: Duration = Duration::from_secs(20);
/// Pairs of threads that wake each other.
const PAIRS: &str = "4";

/// One load.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What ran.
    pub load: &'static str,
    /// Switches a second.
    pub switches: f64,
    /// Nanoseconds for each switch, of all programs together, net: ours.
    pub ours_ns: f64,
    /// The same of runqlat.
    pub runqlat_ns: f64,
    /// Median of the rounds' ratios.
    pub ratio: f64,
    /// Smallest and largest.
    pub spread: [f64; 2],
}

/// Measures both loads.
pub fn measure(quick: bool) -> anyhow::Result<(Vec<Cost>, Vec<Comparison>)> {
    let (rounds, time) = if quick { (2, 1) } else { (7, 3) };
    let time = Duration::from_secs(time);
    let mut scene = Scene::create(Wire::Direct)?;
    let target = scene.target()?;
    let _empty: Vec<empty::Empty> = TRACE_POINTS
        .into_iter()
        .map(empty::trace_point)
        .collect::<Result<_, _>>()?;

    let mut all = Vec::new();
    let mut comparisons = Vec::new();
    {
        let server = Server::Nginx.start(&scene.site, &target.pod)?;
        let url = server.url("/hello");
        let wrk = Wrk {
            time,
            ..Wrk::default()
        };
        let (costs, comparison) = turns(&mut scene, "wrk on nginx", rounds, time, &|scene| {
            wrk.run(&scene.site, &url).map(drop)
        })?;
        all.extend(costs);
        comparisons.push(comparison);
    }
    let _actor = ping_pong(&target)?;
    let (costs, comparison) = turns(
        &mut scene,
        "threads that wake each other",
        rounds,
        time,
        &|_| interrupt::pause(time),
    )?;
    all.extend(costs);
    comparisons.push(comparison);
    Ok((all, comparisons))
}

fn ping_pong(target: &Target) -> anyhow::Result<Running> {
    let mut command = target.pod.command(&process::sibling("bench")?)?;
    Running::start(command.args(["actor", "ping-pong", PAIRS]))
}

fn turns(
    scene: &mut Scene,
    load: &'static str,
    rounds: usize,
    time: Duration,
    generate: &dyn Fn(&Scene) -> anyhow::Result<()>,
) -> anyhow::Result<(Vec<Cost>, Comparison)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        want(scene, &[Family::RunQueue])?;
        ours.push(window(scene, None, generate)?);
        want(scene, &[])?;
        let runqlat = runqlat()?;
        theirs.push(window(scene, Some(runqlat.id()), generate)?);
    }
    let each = |rounds: &[Accounts]| -> Vec<f64> { rounds.iter().filter_map(per_switch).collect() };
    let (our_ns, their_ns) = (each(&ours), each(&theirs));
    let ratios: Vec<f64> = our_ns.iter().zip(&their_ns).map(|(o, t)| o / t).collect();
    let (Some(our_ns), Some(their_ns), Some(ratio)) = (
        Spread::of(&our_ns),
        Spread::of(&their_ns),
        Spread::of(&ratios),
    ) else {
        anyhow::bail!("too few switches under the load {load}");
    };
    let switches: u64 = ours
        .iter()
        .filter_map(|round| round.get(SWITCH))
        .map(|runs| runs.count)
        .sum();
    let comparison = Comparison {
        load,
        switches: switches as f64 / (time.as_secs_f64() * rounds as f64),
        ours_ns: our_ns.median,
        runqlat_ns: their_ns.median,
        ratio: ratio.median,
        spread: [ratio.least, ratio.most],
    };
    let mut all = costs(load, &ours);
    all.retain(|cost| {
        TRACE_POINTS
            .iter()
            .any(|point| point.starts_with(&cost.name))
            || empty::is_empty(&cost.name)
    });
    all.extend(costs_of_runqlat(load, &theirs));
    Ok((all, comparison))
}

/// The costs of runqlat's programs, named so, net of the empty ones beside them.
fn costs_of_runqlat(load: &str, rounds: &[Accounts]) -> Vec<Cost> {
    let (empty, theirs): (Vec<Cost>, Vec<Cost>) = costs(load, rounds)
        .into_iter()
        .partition(|cost| empty::is_empty(&cost.name));
    let named = |mut cost: Cost| {
        let name = cost.name.strip_prefix(RUNQLAT)?.to_owned();
        let beside = empty
            .iter()
            .find(|empty| empty.name == empty::beside(&name));
        cost.ns_per_event_net = beside.map(|empty| cost.ns_per_event - empty.ns_per_event);
        cost.name = format!("runqlat: {name}");
        Some(cost)
    };
    theirs.into_iter().filter_map(named).collect()
}

/// What runqlat's programs are called in the accounts, so that they are not taken for ours.
const RUNQLAT: &str = "r_";

/// One load's accounts: of our programs, or of another process's and the empty ones.
fn window(
    scene: &Scene,
    runqlat: Option<u32>,
    generate: &dyn Fn(&Scene) -> anyhow::Result<()>,
) -> anyhow::Result<Accounts> {
    interrupt::check()?;
    let window = Window::open(&[std::process::id()])?;
    let theirs = runqlat
        .map(|process| Window::open(&[process]))
        .transpose()?;
    generate(scene)?;
    let mut accounts = window.close()?;
    if let Some(theirs) = theirs {
        accounts.retain(|name, _| empty::is_empty(name));
        for (name, runs) in theirs.close()? {
            accounts.insert(format!("{RUNQLAT}{name}"), runs);
        }
    }
    Ok(accounts)
}

/// Nanoseconds of all programs for each switch, without what empty programs cost as often.
fn per_switch(accounts: &Accounts) -> Option<f64> {
    let switches = accounts.get(&empty::beside(SWITCH))?.count;
    let of_point = |point: &&str| {
        let idle = accounts
            .get(&empty::beside(point))
            .and_then(|runs| runs.each());
        let named = |name: &str| {
            let name = name.strip_prefix(RUNQLAT).unwrap_or(name);
            !empty::is_empty(name) && empty::beside(name) == empty::beside(point)
        };
        accounts
            .iter()
            .filter(|(name, _)| named(name))
            .map(|(_, runs)| runs.nanos as f64 - idle.unwrap_or(0.0) * runs.count as f64)
            .sum::<f64>()
    };
    let nanos: f64 = TRACE_POINTS.iter().map(of_point).sum();
    (switches > 0 && nanos > 0.0).then(|| nanos / switches as f64)
}

fn want(scene: &mut Scene, families: &[Family]) -> anyhow::Result<()> {
    let families: BTreeSet<Family> = families.iter().copied().collect();
    let failed = scene.probes.set_wanted(&families);
    anyhow::ensure!(
        failed.is_empty(),
        "the run queue is not measured: {failed:?}"
    );
    Ok(())
}

/// Starts runqlat and waits until its programs are there.
fn runqlat() -> anyhow::Result<Running> {
    let mut command = std::process::Command::new(process::find("runqlat")?);
    let mut runqlat = Running::start(
        command
            .arg("3600")
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    interrupt::until("runqlat attaches its programs", ATTACH, || {
        runqlat.check()?;
        Ok(super::programs::links(runqlat.id())? >= TRACE_POINTS.len())
    })?;
    Ok(runqlat)
}

/// The largest of the loads' ratios.
pub fn worst(comparisons: &[Comparison]) -> Option<f64> {
    comparisons
        .iter()
        .map(|comparison| comparison.ratio)
        .reduce(f64::max)
}

/// For people.
pub fn table(comparisons: &[Comparison]) -> Table {
    let headings = [
        "load",
        "switches/s",
        "ours, ns/switch",
        "runqlat",
        "ratio",
        "least to most",
        "budget",
        "",
    ];
    let mut table = Table::new(
        "Run queue beside runqlat, median of rounds in turns",
        &headings,
    );
    for comparison in comparisons {
        table.row([
            comparison.load.to_owned(),
            format!("{:.0}", comparison.switches),
            format!("{:.0}", comparison.ours_ns),
            format!("{:.0}", comparison.runqlat_ns),
            format!("{:.2}", comparison.ratio),
            format!("{:.2} to {:.2}", comparison.spread[0], comparison.spread[1]),
            format!("{RATIO:.2}"),
            verdict(comparison.ratio <= RATIO),
        ]);
    }
    table.note(format!(
        "Wakeups are in it; net of empty programs at the same trace points. Stretch goal: {STRETCH:.0} ns."
    ));
    table
}

#[cfg(test)]
mod tests {
    use super::super::programs::Runs;
    use super::*;

    #[test]
    fn every_trace_point_counts_for_the_switch() {
        let runs = |nanos, count| Runs { nanos, count };
        let idle = |point: &str| (empty::beside(point), runs(50_000, 1000));
        let mut accounts = Accounts::from([idle(SWITCH), idle("sched_wakeup")]);
        accounts.insert(SWITCH.to_owned(), runs(150_000, 1000));
        accounts.insert("sched_wakeup".to_owned(), runs(45_000, 500));
        assert_eq!(per_switch(&accounts), Some(100.0 + 20.0));
        let mut theirs = Accounts::from([idle(SWITCH), idle("sched_wakeup")]);
        theirs.insert(format!("{RUNQLAT}{SWITCH}"), runs(250_000, 1000));
        theirs.insert(format!("{RUNQLAT}sched_wakeup"), runs(50_000, 1000));
        assert_eq!(per_switch(&theirs), Some(200.0));
    }
}
