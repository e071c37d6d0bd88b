//! Counted against generated: real clients load real servers in a pod, and the programs' count is held against the
//! client's own. Whatever is counted wrongly fails.

mod outcome;
mod pods;
mod raw;
mod workloads;

use std::path::PathBuf;

use ebpf_scaler_testbed::Wire;
use serde::Serialize;

use crate::host::Host;
use crate::interrupt;
use crate::scene::Scene;
use crate::table::Table;
use crate::write_json;
pub use outcome::Outcome;
use workloads::{Scale, WORKLOADS, Workload};

/// Flags of `bench accuracy`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// Write the results to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Short runs, to try the bench itself
    #[arg(long)]
    pub quick: bool,
    /// Report only: do not fail when something was counted wrongly
    #[arg(long)]
    pub report_only: bool,
    /// Run only workloads whose names contain one of these
    #[arg(long, value_name = "TEXT,...", value_delimiter = ',')]
    pub only: Vec<String>,
}

/// What `--json` writes.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Where.
    pub host: Host,
    /// One for each.
    pub workloads: Vec<Outcome>,
}

/// Measures, prints, and fails if a count is wrong.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let results = measure(options)?;
    println!("{}", table(&results).text());
    write_json(options.json.as_deref(), &results)?;
    let wrong: Vec<&str> = results
        .workloads
        .iter()
        .filter(|outcome| outcome.is_wrong())
        .map(|outcome| outcome.name)
        .collect();
    anyhow::ensure!(
        wrong.is_empty() || options.report_only,
        "counted wrongly: {}",
        wrong.join(", ")
    );
    Ok(())
}

/// Runs the workloads; one that cannot run ends it, because a shorter table would look as good.
pub fn measure(options: &Options) -> anyhow::Result<Results> {
    let host = Host::now();
    println!("==> bench accuracy: {}", host.line());
    let scale = Scale::new(options.quick);
    let mut outcomes = Vec::new();
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|text| name.contains(text));
    for wire in [Wire::Direct, Wire::Relayed] {
        let mut scene = None;
        let of_wire = WORKLOADS.iter().filter(|workload| workload.wire == wire);
        for workload in of_wire.filter(|workload| wanted(workload.name)) {
            let scene = match &mut scene {
                Some(scene) => scene,
                none => none.insert(Scene::create(wire)?),
            };
            outcomes.push(one(workload, scene, &scale)?);
        }
    }
    if wanted(pods::NAME) {
        let outcome = pods::run(&scale)?;
        println!("    {}", outcome.line());
        outcomes.push(outcome);
    }
    anyhow::ensure!(!outcomes.is_empty(), "no workload has such a name");
    Ok(Results {
        host,
        workloads: outcomes,
    })
}

fn one(workload: &Workload, scene: &mut Scene, scale: &Scale) -> anyhow::Result<Outcome> {
    interrupt::check()?;
    let outcome = workload
        .run(scene, scale)
        .map_err(|error| error.context(format!("the workload {}", workload.name)))?;
    println!("    {}", outcome.line());
    Ok(outcome)
}

/// For people.
pub fn table(results: &Results) -> Table {
    let headings = [
        "workload",
        "protocol",
        "generated",
        "counted",
        "error",
        "budget",
        "",
    ];
    let mut table = Table::new("Requests counted against requests generated", &headings);
    for outcome in &results.workloads {
        table.row(outcome.cells());
    }
    table.note(
        "The error is what no request that the generator left unanswered at its end can explain. A * marks \
         workloads that a statistic says something about:",
    );
    for outcome in results
        .workloads
        .iter()
        .filter(|o| !o.statistics.is_empty())
    {
        table.note(format!("* {}: {}", outcome.name, outcome.explained()));
    }
    table
}
