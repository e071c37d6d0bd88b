//! How long programs run and how often, from the kernel's own accounts (bpf_stats), which are kept only while a
//! [`Window`] is open: they tax every program of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;

use anyhow::Context;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use ebpf_scaler_sample::spread::Spread;
use serde::Serialize;

use super::empty;
use crate::table::Table;

/// Fewer runs in a window say nothing about a program.
const FEW: u64 = 100;

/// Time and number of runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Nanoseconds.
    pub nanos: u64,
    /// How often.
    pub count: u64,
}

/// By the programs' names; those of one name are added up.
pub type Accounts = BTreeMap<String, Runs>;

/// Lets the kernel keep accounts while it is there.
#[derive(Debug)]
pub struct Window {
    _stats: OwnedFd,
    processes: Vec<u32>,
    before: Accounts,
}

impl Window {
    /// Opens one on the programs that these processes hold.
    pub fn open(processes: &[u32]) -> anyhow::Result<Window> {
        let stats = enable_stats(Stats::RunTime).context("cannot let the kernel time programs")?;
        Ok(Window {
            _stats: stats,
            processes: processes.to_vec(),
            before: accounts(processes)?,
        })
    }

    /// What was added since it was opened.
    pub fn close(self) -> anyhow::Result<Accounts> {
        let mut accounts = accounts(&self.processes)?;
        for (name, runs) in &mut accounts {
            let before = self.before.get(name).copied().unwrap_or_default();
            runs.nanos -= before.nanos;
            runs.count -= before.count;
        }
        Ok(accounts)
    }
}

fn accounts(processes: &[u32]) -> anyhow::Result<Accounts> {
    let mut ids = std::collections::BTreeSet::new();
    for process in processes {
        ids.extend(held_by(*process)?);
    }
    let mut accounts = Accounts::new();
    for program in loaded_programs() {
        // One that is gone meanwhile is another process's.
        let Ok(program) = program else { continue };
        if ids.contains(&program.id()) {
            let name = program.name_as_str().unwrap_or("?").to_owned();
            let runs = accounts.entry(name).or_default();
            runs.nanos += u64::try_from(program.run_time().as_nanos())?;
            runs.count += program.run_count();
        }
    }
    Ok(accounts)
}

/// Ids of the programs of which a process holds descriptors: others may have programs of the same names.
fn held_by(process: u32) -> anyhow::Result<Vec<u32>> {
    let directory = format!("/proc/{process}/fdinfo");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter_map(|text| program_id(&text))
        .collect())
}

/// How many programs a process has attached by links.
pub fn links(process: u32) -> anyhow::Result<usize> {
    let directory = format!("/proc/{process}/fdinfo");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter(|text| text.contains("link_type:"))
        .count())
}

fn program_id(fdinfo: &str) -> Option<u32> {
    let value = |key: &str| fdinfo.lines().find_map(|line| line.strip_prefix(key));
    // A link's descriptor names its program, too, but not its type.
    value("prog_type:")?;
    value("prog_id:")?.trim().parse().ok()
}

impl Runs {
    /// Nanoseconds of one run; none if it ran too seldom.
    pub fn each(self) -> Option<f64> {
        (self.count >= FEW).then(|| self.nanos as f64 / self.count as f64)
    }
}

/// Nanoseconds of one run, without what an empty program beside it costs.
pub fn net(accounts: &Accounts, name: &str) -> Option<f64> {
    let empty = accounts.get(&empty::beside(name))?.each()?;
    Some(accounts.get(name)?.each()? - empty)
}

/// What a program costs under a load.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Of the program.
    pub name: String,
    /// What ran meanwhile.
    pub load: String,
    /// Median over the rounds of nanoseconds for each run, bpf_stats included.
    pub ns_per_event: f64,
    /// The same without what an empty program costs; none for an empty program itself.
    pub ns_per_event_net: Option<f64>,
    /// Smallest and largest of `ns_per_event` over the rounds.
    pub spread: [f64; 2],
    /// Runs in all rounds.
    pub events: u64,
}

/// The costs of every program that ran under a load, over its rounds.
pub fn costs(load: &str, rounds: &[Accounts]) -> Vec<Cost> {
    let names: std::collections::BTreeSet<&String> = rounds.iter().flat_map(|r| r.keys()).collect();
    let of = |name: &String| {
        let each: Vec<f64> = rounds.iter().filter_map(|r| r.get(name)?.each()).collect();
        let spread = Spread::of(&each)?;
        let net: Vec<f64> = rounds.iter().filter_map(|round| net(round, name)).collect();
        let events = rounds
            .iter()
            .filter_map(|r| r.get(name))
            .map(|runs| runs.count);
        Some(Cost {
            name: name.clone(),
            load: load.to_owned(),
            ns_per_event: spread.median,
            ns_per_event_net: Spread::of(&net).map(|net| net.median),
            spread: [spread.least, spread.most],
            events: events.sum(),
        })
    };
    names.into_iter().filter_map(of).collect()
}

/// For people.
pub fn table(costs: &[Cost]) -> Table {
    let headings = [
        "program",
        "load",
        "ns/event net",
        "empty program",
        "both, least to most",
        "events",
    ];
    let mut table = Table::new("Programs, median nanoseconds for each event", &headings);
    for cost in costs {
        let net = cost.ns_per_event_net;
        let text = |ns: Option<f64>| ns.map_or("-".to_owned(), |ns| format!("{ns:.0}"));
        table.row([
            cost.name.clone(),
            cost.load.clone(),
            text(net),
            text(net.map(|net| cost.ns_per_event - net)),
            format!("{:.0} to {:.0}", cost.spread[0], cost.spread[1]),
            cost.events.to_string(),
        ]);
    }
    table.note(
        "Net is without what an empty program at the same hook costs in the same run, which is mostly bpf_stats.",
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(nanos: u64, count: u64) -> Runs {
        Runs { nanos, count }
    }

    #[test]
    fn an_empty_programs_cost_is_not_ours() {
        let accounts = Accounts::from([
            ("ingress".to_owned(), runs(200_000, 1000)),
            (empty::beside("ingress"), runs(60_000, 1000)),
        ]);
        assert_eq!(net(&accounts, "ingress"), Some(140.0));
        assert_eq!(net(&accounts, "egress"), None);
    }

    #[test]
    fn few_runs_say_nothing() {
        assert_eq!(runs(1000, 10).each(), None);
        let costs = costs(
            "load",
            &[Accounts::from([("a".to_owned(), runs(1000, 10))])],
        );
        assert!(costs.is_empty());
    }

    #[test]
    fn only_programs_descriptors_count() {
        assert_eq!(
            program_id("pos:\t0\nprog_type:\t8\nprog_id:\t42\n"),
            Some(42)
        );
        assert_eq!(program_id("link_type:\tcgroup\nprog_id:\t42\n"), None);
    }
}
