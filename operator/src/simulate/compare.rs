//! The comparison of docs/decisions.md: the product's defaults and nothing else, on every family and every
//! trace that is kept here. Only what a pod should have differs between cases, as it would between services.

use std::{io::Write, time::Duration};

use anyhow::Context;
use ebpf_scaler_crds::EbpfScalerSpec;
use ebpf_scaler_simulate::{
    Kind, Trace,
    compare::{Case, Row, markdown},
    family::{FAMILIES, Family, Synthetic},
    kpa,
};
use serde::Serialize;

use super::{Args, PodArgs, kinds, read, scenario, write};

/// The scaler: every field that has a default has it.
const SCALER: &str = "
apiVersion: ebpfscaler.io/v1alpha1
kind: EbpfScaler
metadata: {name: compared}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: compared}
  minReplicas: 2
  maxReplicas: 60
  metrics:
  - type: RequestRate
    requestRate:
      target: {averageValue: TARGET}
";
/// The same, that forgets as soon as Knative does; the HPA beside it has this behavior too.
const SHORT: &str = "  behavior: {scaleDown: {stabilizationWindowSeconds: 60}}\n";
/// Nothing was ever tuned on these seeds.
const SEEDS: std::ops::Range<u64> = 1001..1006;
/// Requests per second that a pod should have, and by how much smaller a family's load is then.
const SIZES: [(&str, &str, f64); 2] = [("", "100", 1.0), (", a tenth", "10", 0.1)];
const DAY: u64 = 86_400;

/// The same promise as a latency: what a pod takes has to be learned. The hand-set target stands beside it.
const LEARNING: &str = "
apiVersion: ebpfscaler.io/v1alpha1
kind: EbpfScaler
metadata: {name: compared}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: compared}
  minReplicas: 2
  maxReplicas: 60
  metrics:
  - type: RequestLatency
    requestLatency: {percentile: p99, target: TARGET, strategy: LearnedCapacity}
";

/// Prints the table of what is learned beside what is set by hand, and beside bounded steps.
pub fn learned(args: &Args, mut output: impl Write) -> anyhow::Result<()> {
    let kinds = [Kind::EbpfScaler, Kind::RequestRate, Kind::BoundedSteps];
    let rows: Vec<Row> = cases(args, &Capacities::Learned)?
        .iter()
        .map(|case| Row::run(case, &kinds))
        .collect();
    writeln!(output, "{}", markdown(&rows)).context("cannot write the table")?;
    let kept = |kind: Kind| {
        let sums = rows.iter().flat_map(|r| &r.sums);
        let sums = sums.filter(|s| s.decider == kind);
        sums.filter(|s| s.violations() <= 0.01).count()
    };
    for kind in kinds {
        writeln!(
            output,
            "{} keeps the promise, at most 1 % over the target, in {} of {} cases.",
            kind.as_str(),
            kept(kind),
            rows.len()
        )
        .context("cannot write the table")?;
    }
    output.flush().context("cannot write the table")?;
    match &args.json {
        Some(path) => write(path, &serde_json::to_string_pretty(&rows)?),
        None => Ok(()),
    }
}

/// How a scaler knows what its pods can take.
enum Capacities {
    /// It is told; the text is added to its spec.
    Told(&'static str),
    Learned,
}

impl Capacities {
    /// The spec, and the pods' flags, for pods that should have `each` requests per second.
    fn of(&self, args: &Args, each: &str) -> anyhow::Result<(EbpfScalerSpec, PodArgs)> {
        match self {
            Self::Told(extra) => {
                let quoted = format!("\"{each}\"");
                let yaml = SCALER.replace("TARGET", &quoted) + extra;
                Ok((scenario::scaler(&yaml)?, args.pods.clone()))
            }
            Self::Learned => {
                let each: f64 = each.parse().context("a number")?;
                let mut pods = args.pods.clone();
                let capacity = *pods.capacity.get_or_insert(each / kpa::TARGET_UTILIZATION);
                let slo = pods
                    .slo
                    .unwrap_or(scenario::objective(pods.workers, capacity));
                let target = format!("{}us", slo.as_micros());
                let yaml = LEARNING.replace("TARGET", &target);
                Ok((scenario::scaler(&yaml)?, pods))
            }
        }
    }
}

/// Prints the tables.
pub fn run(args: &Args, mut output: impl Write) -> anyhow::Result<()> {
    let kinds: Vec<Kind> = kinds(&args.against).collect();
    let mut tables = Vec::new();
    for (title, extra) in [
        ("Every default", ""),
        (
            "With `behavior.scaleDown.stabilizationWindowSeconds: 60`",
            SHORT,
        ),
    ] {
        let mut rows = Vec::new();
        for case in cases(args, &Capacities::Told(extra))? {
            rows.push(Row::run(&case, &kinds));
        }
        writeln!(output, "### {title}\n\n{}", markdown(&rows)).context("cannot write the table")?;
        tables.push(Table { title, rows });
    }
    output.flush().context("cannot write the tables")?;
    match &args.json {
        Some(path) => write(path, &serde_json::to_string_pretty(&tables)?),
        None => Ok(()),
    }
}

#[derive(Serialize)]
struct Table {
    title: &'static str,
    rows: Vec<Row>,
}

fn cases(args: &Args, capacities: &Capacities) -> anyhow::Result<Vec<Case>> {
    let spec = |each: &str| capacities.of(args, each);
    let mut cases = Vec::new();
    for (suffix, target, factor) in SIZES {
        let spec = spec(target)?;
        for family in FAMILIES {
            let traces = SEEDS.map(|seed| {
                let mut synthetic = Synthetic::new(family, seed);
                synthetic.base *= factor;
                synthetic.peak *= factor;
                if family == Family::Diurnal {
                    synthetic.duration = 7200;
                }
                (synthetic.trace(), seed)
            });
            let name = format!("{}{suffix}", family.as_str());
            cases.push(case(name, &spec, traces)?);
        }
    }
    let kept = |name: &str| read(&args.traces.join(name));
    let (tenth, first) = (spec("10")?, spec("1")?);
    let twitter = kept("twitter-day-3.csv.gz")?;
    cases.push(case("Twitter, a day".into(), &tenth, [(twitter, 1)])?);
    let nasa = kept("nasa-july-1995-day-12.csv.gz")?;
    cases.push(case("NASA, a day".into(), &first, [(nasa, 1)])?);
    // A tenth of the load on pods that are as many: the same picture in less time.
    let worldcup = kept("worldcup98-june-08-to-14.csv.gz")?.scaled(0.1);
    for day in 0..7 {
        let at = |day: u64| Duration::from_secs(day * DAY);
        let trace = worldcup.part(at(day), at(day + 1));
        let name = format!("World Cup, {} June", 8 + day);
        cases.push(case(name, &tenth, [(trace, 1)])?);
    }
    Ok(cases)
}

fn case(
    name: String,
    (spec, pods): &(EbpfScalerSpec, PodArgs),
    traces: impl IntoIterator<Item = (Trace, u64)>,
) -> anyhow::Result<Case> {
    let runs = traces.into_iter().map(|(trace, seed)| {
        let scenario = scenario::scenario(spec, pods, &trace)?;
        Ok((scenario, trace, seed))
    });
    Ok(Case {
        name,
        runs: runs.collect::<anyhow::Result<_>>()?,
    })
}
