//! docs/benchmarks.md: the machine, the commands, the tables. Runs what it writes of, except for reaction times,
//! which need a cluster and come from a file.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use ebpf_scaler_sample::spread::Spread;
use serde::{Deserialize, Serialize};

use crate::table::Table;
use crate::{accuracy, overhead, write_json};

/// Flags of `bench docs`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The document
    #[arg(long, default_value = "docs/benchmarks.md", value_name = "FILE")]
    out: PathBuf,
    /// Results of `cargo xtask bench reaction --json`, to be shown as well
    #[arg(long, value_name = "FILE")]
    reaction: Option<PathBuf>,
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
    accuracy: accuracy::Results,
    overhead: overhead::Results,
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
    let reaction = options.reaction.as_ref().map(|file| {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {file:?}"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{file:?} is not what bench reaction writes"))
    });
    let reaction: Option<Reaction> = reaction.transpose()?;
    let accuracy = accuracy::measure(&accuracy::Options {
        quick: options.quick,
        ..accuracy::Options::default()
    })?;
    let overhead = overhead::measure(&overhead::Options {
        quick: options.quick,
        ..overhead::Options::default()
    })?;
    let results = Results { accuracy, overhead };
    std::fs::write(
        &options.out,
        document(&results, reaction.as_ref(), options.quick),
    )
    .with_context(|| format!("cannot write {:?}", options.out))?;
    println!("    wrote {}", options.out.display());
    write_json(options.json.as_deref(), &results)
}

fn document(results: &Results, reaction: Option<&Reaction>, quick: bool) -> String {
    let mut text = String::from("# Benchmarks\n\n");
    text += "<!-- Written by `cargo xtask bench docs`: measure again instead of editing. -->\n\n";
    let _ = writeln!(text, "Measured on {}.\n", results.accuracy.host.line());
    if quick {
        text += "**A trial run (`--quick`): too short for any figure to mean something.**\n\n";
    }
    text += "Figures are medians with spread, each beside its peer in the same run, and held against the budgets of \
             this project; OVER marks what misses one. On another machine, and with other load beside it, they are \
             others: the commands are there to be run.\n\n";
    text += "## Count accuracy\n\n`cargo xtask bench accuracy`: the client's own count is the reference.\n\n";
    text += &accuracy::table(&results.accuracy).markdown();
    text += "## Overhead\n\n`cargo xtask bench overhead` (`cargo xtask bench agent` for the agent alone).\n\n";
    text.extend(
        overhead::tables(&results.overhead)
            .iter()
            .map(Table::markdown),
    );
    text += "## Reaction time\n\n`cargo xtask bench reaction`, on a real cluster.";
    match reaction {
        Some(reaction) => {
            text += "\n\n";
            text += &reaction_table(reaction).markdown();
        }
        None => text += " Not part of this run.\n",
    }
    text.truncate(text.trim_end().len());
    text + "\n"
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
