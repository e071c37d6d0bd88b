//! docs/benchmarks.md: the machine, the commands, the tables. Runs what it writes of, except for reaction times,
//! which need a cluster and come from a file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ebpf_scaler_sample::spread::Spread;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::table::Table;
use crate::{accuracy, apiserver, overhead, watch, write_json};

/// Flags of `bench docs`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The document
    #[arg(long, default_value = "docs/benchmarks.md", value_name = "FILE")]
    out: PathBuf,
    /// Results of `cargo xtask bench reaction --json`, to be shown as well
    #[arg(long, value_name = "FILE")]
    reaction: Option<PathBuf>,
    /// Results of `cargo xtask bench apiserver --json`, to be shown as well
    #[arg(long, value_name = "FILE")]
    apiserver: Option<PathBuf>,
    /// Results of `cargo xtask bench watch --json`, to be shown as well
    #[arg(long, value_name = "FILE")]
    watch: Option<PathBuf>,
    /// Measure nothing: show those files' results only
    #[arg(long)]
    files_only: bool,
    /// Write the results to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Short runs, to try the bench itself
    #[arg(long)]
    quick: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Results {
    accuracy: Option<accuracy::Results>,
    overhead: Option<overhead::Results>,
}

/// What was measured before.
struct Earlier {
    reaction: Option<Reaction>,
    apiserver: Option<apiserver::Results>,
    watch: Option<watch::Results>,
}

/// What `bench reaction` writes.
#[derive(Deserialize)]
struct Reaction {
    runs: Vec<Run>,
    visible_ms: Vec<f64>,
}

#[derive(Deserialize)]
struct Run {
    scaler: String,
    ms: Vec<f64>,
    enough_ms: Vec<f64>,
    missed: u32,
}

/// Runs everything and writes the document; what is over its budget is written as such.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let earlier = Earlier {
        reaction: read(options.reaction.as_deref(), "reaction")?,
        apiserver: read(options.apiserver.as_deref(), "apiserver")?,
        watch: read(options.watch.as_deref(), "watch")?,
    };
    let mut results = Results {
        accuracy: None,
        overhead: None,
    };
    if !options.files_only {
        results.accuracy = Some(accuracy::measure(&accuracy::Options {
            quick: options.quick,
            ..accuracy::Options::default()
        })?);
        results.overhead = Some(overhead::measure(&overhead::Options {
            quick: options.quick,
            ..overhead::Options::default()
        })?);
    }
    std::fs::write(&options.out, document(&results, &earlier, options.quick))
        .with_context(|| format!("cannot write {:?}", options.out))?;
    println!("    wrote {}", options.out.display());
    write_json(options.json.as_deref(), &results)
}

/// The results in a file that `bench WHAT --json` wrote.
fn read<T: DeserializeOwned>(file: Option<&Path>, what: &str) -> anyhow::Result<Option<T>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file:?}"))?;
    let results = serde_json::from_str(&text);
    let results = results.with_context(|| format!("{file:?} is not what bench {what} writes"))?;
    Ok(Some(results))
}

fn document(results: &Results, earlier: &Earlier, quick: bool) -> String {
    let mut text = String::from("# Benchmarks\n\n");
    text += "<!-- Written by `cargo xtask bench docs`: measure again instead of editing. -->\n\n";
    let _ = writeln!(text, "Measured on {}.\n", Host::now().line());
    if quick {
        text += "**A trial run (`--quick`): too short for any figure to mean something.**\n\n";
    }
    text += "Figures are medians with spread, each beside its peer in the same run, and held against the budgets of \
             this project; OVER marks what misses one. On another machine, and with other load beside it, they are \
             others: the commands are there to be run.\n\n";
    let accuracy = results.accuracy.as_ref().map(accuracy::table);
    text += &section(
        "Count accuracy",
        "`cargo xtask bench accuracy`: the client's own count is the reference.",
        accuracy.as_slice(),
    );
    let overhead = results.overhead.as_ref().map(overhead::tables);
    text += &section(
        "Overhead",
        "`cargo xtask bench overhead` (`cargo xtask bench agent` for the agent alone).",
        &overhead.unwrap_or_default(),
    );
    let reaction = earlier.reaction.as_ref().map(reaction_table);
    text += &section(
        "Reaction time",
        "`cargo xtask bench reaction`, on a real cluster.",
        reaction.as_slice(),
    );
    let apiserver = earlier.apiserver.as_ref().map(apiserver::table);
    let watch = earlier.watch.as_ref().map(watch::table);
    let scale: Vec<_> = apiserver.into_iter().chain(watch).collect();
    text += &section(
        "Scale of the API server role",
        "`cargo xtask bench apiserver` and `cargo xtask bench watch`; what follows from it is in \
         [scaling.md](scaling.md).",
        &scale,
    );
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn section(heading: &str, how: &str, tables: &[Table]) -> String {
    let mut text = format!("## {heading}\n\n{how}");
    if tables.is_empty() {
        return text + " Not part of this run.\n\n";
    }
    text += "\n\n";
    text.extend(tables.iter().map(Table::markdown));
    text
}

fn reaction_table(reaction: &Reaction) -> Table {
    let headings = [
        "scaler",
        "first patch, ms",
        "enough replicas, ms",
        "steps",
        "missed",
    ];
    let mut table = Table::new(
        "From a load step's first request, median (least to most)",
        &headings,
    );
    let spread = |values: &[f64]| Spread::of(values).map_or("-".to_owned(), |s| s.to_string());
    for run in &reaction.runs {
        table.row([
            run.scaler.clone(),
            spread(&run.ms),
            spread(&run.enough_ms),
            (run.ms.len() + run.missed as usize).to_string(),
            run.missed.to_string(),
        ]);
    }
    table.note(format!(
        "The step shows in the external metrics API after {} ms.",
        spread(&reaction.visible_ms)
    ));
    table
}
