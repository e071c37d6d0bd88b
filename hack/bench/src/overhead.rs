//! What measuring costs: nanoseconds of each program beside an empty one, the run queue's programs beside runqlat,
//! throughput with the agent beside throughput without, and the agent's own memory and CPU. It judges by the
//! budgets and never fails for them.

mod empty;
mod packets;
mod programs;
mod scheduler;
mod throughput;

use std::path::PathBuf;

use serde::Serialize;

use crate::agent;
use crate::host::Host;
use crate::table::Table;
use crate::write_json;

/// Flags of `bench overhead`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// Write the results to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Short runs, to try the bench itself
    #[arg(long)]
    pub quick: bool,
    /// Leave parts out
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,...")]
    pub skip: Vec<Part>,
}

/// What can be measured by itself.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The programs of requests and network
    Packets,
    /// The programs of the run queue
    Scheduler,
    /// Throughput with and without the agent
    Throughput,
    /// The agent's memory and CPU
    Agent,
}

/// What `--json` writes; parts that were left out are missing.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Where.
    pub host: Host,
    /// Every program under every load.
    pub programs: Vec<programs::Cost>,
    /// What an empty program costs, bpf_stats' own share: subtracted above.
    pub empty: Vec<programs::Cost>,
    /// Packets and requests held against their budgets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packets: Vec<packets::Figure>,
    /// Our programs' time for each switch as a share of runqlat's: the larger of the medians under both loads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runqlat_ratio: Option<f64>,
    /// The same in detail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scheduler: Vec<scheduler::Comparison>,
    /// Median share of throughput that is lost, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throughput_loss: Option<throughput::Losses>,
    /// The same in detail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throughput: Vec<throughput::Comparison>,
    /// Memory and CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<agent::Usage>,
}

/// Measures and prints.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let results = measure(options)?;
    for table in tables(&results) {
        println!("{}", table.text());
    }
    write_json(options.json.as_deref(), &results)
}

/// Runs the parts.
pub fn measure(options: &Options) -> anyhow::Result<Results> {
    let host = Host::now();
    println!("==> bench overhead: {}", host.line());
    let wanted = |part| !options.skip.contains(&part);
    let mut results = Results {
        host,
        programs: Vec::new(),
        empty: Vec::new(),
        packets: Vec::new(),
        runqlat_ratio: None,
        scheduler: Vec::new(),
        throughput_loss: None,
        throughput: Vec::new(),
        agent: None,
    };
    if wanted(Part::Packets) {
        println!("    programs of requests and network");
        let (costs, figures) = packets::measure(options.quick)?;
        results.add(costs);
        results.packets = figures;
    }
    if wanted(Part::Scheduler) {
        println!("    programs of the run queue, and runqlat");
        let (costs, comparisons) = scheduler::measure(options.quick)?;
        results.add(costs);
        results.runqlat_ratio = scheduler::worst(&comparisons);
        results.scheduler = comparisons;
    }
    if wanted(Part::Throughput) {
        println!("    throughput with and without the agent");
        results.throughput = throughput::measure(options.quick)?;
        results.throughput_loss = throughput::losses(&results.throughput);
    }
    if wanted(Part::Agent) {
        println!("    memory and CPU of the agent");
        results.agent = Some(agent::measure(options.quick)?);
    }
    Ok(results)
}

impl Results {
    fn add(&mut self, costs: Vec<programs::Cost>) {
        let (empty, ours): (Vec<_>, Vec<_>) = costs
            .into_iter()
            .partition(|cost| empty::is_empty(&cost.name));
        self.programs.extend(ours);
        self.empty.extend(empty);
    }
}

/// For people.
pub fn tables(results: &Results) -> Vec<Table> {
    let mut tables = Vec::new();
    if !results.programs.is_empty() {
        tables.push(programs::table(&results.programs));
    }
    if !results.packets.is_empty() {
        tables.push(packets::table(&results.packets));
    }
    if !results.scheduler.is_empty() {
        tables.push(scheduler::table(&results.scheduler));
    }
    if !results.throughput.is_empty() {
        tables.push(throughput::table(&results.throughput));
    }
    if let Some(usage) = &results.agent {
        tables.push(agent::table(usage));
    }
    tables
}
