//! `operator simulate`: a load through a model of the workload, and what a scaler makes of it beside an HPA
//! and Knative's autoscaler. Never talks to a cluster. docs/simulate.md describes it.

mod args;
mod compare;
mod history;
mod scenario;

use std::{
    fs,
    io::{Read, Write},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use ebpf_scaler_simulate::{
    Kind, Outcome, PodModel, Trace, csv, family::Synthetic, picture, run as simulate, table,
};
use serde::Serialize;

pub use args::{Against, Args, PodArgs, ServiceArg};

/// A trace file is no larger than this when it is unpacked: a month of seconds has 40 MB.
const LARGEST: u64 = 64 << 20;

/// What is written as JSON.
#[derive(Serialize)]
struct Report<'a> {
    trace: &'a str,
    seconds: usize,
    seed: u64,
    pods: PodModel,
    slo_millis: f64,
    outcomes: &'a [Outcome],
}

/// Simulates what `args` ask for, and writes a table to `output`.
///
/// # Errors
/// When a file cannot be read or written, or does not say what can be simulated.
pub fn run(args: &Args, mut output: impl Write) -> anyhow::Result<()> {
    if args.compare_learned {
        return compare::learned(args, output);
    }
    if args.compare {
        return compare::run(args, output);
    }
    let (Some(file), Some(trace)) = (&args.scaler, &args.trace) else {
        bail!("--scaler and --trace are needed");
    };
    let yaml =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let spec = scenario::scaler(&yaml).with_context(|| file.display().to_string())?;
    ensure!(
        args.scale.is_finite() && args.scale > 0.0,
        "--scale: {} is not above zero",
        args.scale
    );
    let trace = load(trace)?;
    let to = args
        .to
        .unwrap_or(std::time::Duration::from_millis(trace.end));
    ensure!(
        args.from < to && args.from.as_millis() < u128::from(trace.end),
        "--from: after the end of the trace, {} s",
        trace.end / 1000
    );
    let trace = trace.part(args.from, to).scaled(args.scale);
    let scenario = scenario::scenario(&spec, &args.pods, &trace)?;
    if !spec.schedules.is_empty() || spec.pause.is_some() {
        writeln!(
            output,
            "spec.schedules and spec.pause are left out: a trace has no date"
        )?;
    }
    let mut outcomes = Vec::new();
    for kind in kinds(&args.against) {
        match simulate(&scenario, &trace, kind, args.seed) {
            Some(outcome) => outcomes.push(outcome),
            None => writeln!(
                output,
                "{}: left out, {}",
                kind.as_str(),
                match kind {
                    Kind::RequestRate | Kind::BoundedSteps => {
                        "it stands beside a latency with the strategy LearnedCapacity only"
                    }
                    _ => "it takes one metric, and that a request rate or requests in flight",
                }
            )?,
        }
    }
    let pods = &scenario.pods;
    writeln!(
        output,
        "{}, {} s, {} requests; pods serve {:.0}/s, start in {}; objective {}",
        trace.name,
        trace.end / 1000,
        outcomes.first().map_or(0, |o| o.requests),
        pods.capacity(),
        humantime::format_duration(pods.startup),
        humantime::format_duration(std::time::Duration::from_millis(
            u64::try_from(scenario.slo.as_millis()).unwrap_or(u64::MAX)
        )),
    )?;
    output.write_all(table(&outcomes).as_bytes())?;
    if let Some(path) = &args.json {
        let report = Report {
            trace: &trace.name,
            seconds: trace.seconds().len(),
            seed: args.seed,
            pods: *pods,
            slo_millis: scenario.slo.as_secs_f64() * 1000.0,
            outcomes: &outcomes,
        };
        write(path, &serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = &args.picture {
        let target = scenario::rate_target(&scenario.policy);
        write(path, &picture(&trace, &outcomes, target))?;
    }
    output.flush().context("cannot write the table")
}

fn kinds(against: &[Against]) -> impl Iterator<Item = Kind> + '_ {
    let wanted = |kind: &Kind| match kind {
        Kind::EbpfScaler => true,
        Kind::RequestRate => against.contains(&Against::RequestRate),
        Kind::BoundedSteps => against.contains(&Against::BoundedSteps),
        Kind::Hpa => against.contains(&Against::Hpa),
        Kind::HpaCpu => against.contains(&Against::HpaCpu),
        Kind::Kpa => against.contains(&Against::Kpa),
    };
    Kind::ALL.into_iter().filter(wanted)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A family's member, or a file.
fn load(text: &str) -> anyhow::Result<Trace> {
    if let Some(family) = text.strip_prefix("family:") {
        let synthetic = Synthetic::parse(family).with_context(|| format!("--trace {text}"))?;
        return Ok(synthetic.trace());
    }
    read(Path::new(text))
}

/// A trace from a file, gzipped or not.
fn read(path: &Path) -> anyhow::Result<Trace> {
    let shown = path.display();
    let file = fs::File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut raw = Vec::new();
    file.take(LARGEST)
        .read_to_end(&mut raw)
        .with_context(|| format!("cannot read {shown}"))?;
    let bytes = if raw.starts_with(&[0x1f, 0x8b]) {
        let mut bytes = Vec::new();
        let unpacked = flate2::read::GzDecoder::new(raw.as_slice());
        unpacked
            .take(LARGEST)
            .read_to_end(&mut bytes)
            .with_context(|| format!("{shown}: not gzip, although it begins like it"))?;
        bytes
    } else {
        raw
    };
    ensure!(
        (bytes.len() as u64) < LARGEST,
        "{shown}: larger than {} MiB",
        LARGEST >> 20
    );
    let text = String::from_utf8(bytes).with_context(|| format!("{shown}: not text"))?;
    // A history begins with its apiVersion or kind, as kubectl prints it; a CSV file with a number or its heading.
    if text.trim_start().starts_with(['{', 'a', 'k']) && text.contains("ScalingHistory") {
        return history::trace(&text).with_context(|| shown.to_string());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.trim_end_matches(".gz").trim_end_matches(".csv");
    csv::parse(name, &text).with_context(|| shown.to_string())
}
