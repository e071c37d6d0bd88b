//! The flags of `operator simulate`. They need no environment variables: nothing runs it in a cluster.

use std::{path::PathBuf, time::Duration};

/// What to simulate.
#[derive(clap::Args, Debug, Clone, PartialEq)]
pub struct Args {
    /// YAML of an EbpfScaler
    #[arg(long, value_name = "FILE", required_unless_present_any = ["compare", "compare_learned"])]
    pub scaler: Option<PathBuf>,

    /// The load: a CSV file (seconds,rate; may be gzipped), a ScalingHistory as YAML or JSON, or family:NAME?seed=N&base=RATE&peak=RATE&duration=SECONDS
    /// with NAME one of step, ramp, spikes, diurnal, flash, noise, deploy
    #[arg(long, value_name = "FILE", required_unless_present_any = ["compare", "compare_learned"])]
    pub trace: Option<String>,

    /// Whom to simulate beside the scaler
    #[arg(long, value_delimiter = ',', default_value = "hpa,kpa")]
    pub against: Vec<Against>,

    /// Write the outcomes as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write a picture to this file, as SVG
    #[arg(long, value_name = "FILE", conflicts_with_all = ["compare", "compare_learned"])]
    pub picture: Option<PathBuf>,

    /// Whatever is random follows from this number
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Begin so far into the trace
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub from: Duration,

    /// End so far into the trace; by default where it ends
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub to: Option<Duration>,

    /// Multiply the trace's rates
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub scale: f64,

    /// The pods
    #[command(flatten)]
    pub pods: PodArgs,

    /// Instead: the product's defaults beside its peers on all families and on the traces that are kept here, as
    /// Markdown (docs/decisions.md)
    #[arg(long, conflicts_with_all = ["scaler", "trace", "scale", "from", "to"])]
    pub compare: bool,

    /// Instead: a latency with the strategy LearnedCapacity beside a request rate set by hand and beside bounded steps, on
    /// the same loads
    #[arg(long, conflicts_with_all = ["scaler", "trace", "scale", "from", "to", "compare"])]
    pub compare_learned: bool,

    /// Folder of those traces
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "operator/simulate/traces"
    )]
    pub traces: PathBuf,
}

/// What pods are like.
#[derive(clap::Args, Debug, Clone, PartialEq)]
pub struct PodArgs {
    /// Requests per second that a pod can serve; by default such that a pod at its target is at 70 %, which is what
    /// Knative aims at
    #[arg(long, value_name = "RATE")]
    pub capacity: Option<f64>,

    /// Requests that a pod works on at a time; the others queue
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub workers: usize,

    /// How long work takes: exponential about its mean, or always as long
    #[arg(long, default_value = "exponential")]
    pub service: ServiceArg,

    /// Median time until a new pod is ready
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub startup: Duration,

    /// A request that takes longer violates the objective; by default ten times its mean work
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub slo: Option<Duration>,

    /// A request that would wait longer is given up; by default 10 s, or the objective if that is longer
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,

    /// Nodes that the pods are on; each reports at a time of its own
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub nodes: usize,

    /// Pods at the begin; by default what the first minute needs
    #[arg(long, value_name = "N")]
    pub replicas: Option<i32>,
}

/// Who else decides.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// An HPA on our external metrics, with its defaults
    Hpa,
    /// An HPA on CPU at 70 %, with metrics-server
    HpaCpu,
    /// Knative's autoscaler, with its defaults
    Kpa,
    /// Beside a latency with the strategy LearnedCapacity: a request rate set by hand at 70 % of what a pod can serve
    RequestRate,
    /// Beside such a latency: the strategy BoundedSteps
    BoundedSteps,
}

/// How long work takes.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceArg {
    /// Exponential about the mean
    Exponential,
    /// Always the mean
    Fixed,
}
