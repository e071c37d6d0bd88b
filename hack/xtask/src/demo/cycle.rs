//! One cycle of load: calm, five times that, calm. Everything that is shown or reported is gathered here; the
//! counts at the end come from the generator and from the product, never from each other.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use ebpf_scaler_e2e::{
    load::Load,
    metrics::{self, counted, counted_since},
    objects::scalers,
    replicas::Recorder,
};
use ebpf_scaler_sample::log::Progress;
use k8s_openapi::api::core::v1::Event;
use kube::{Api, Client, api::ListParams};
use tokio::time::{Instant, interval, sleep, timeout};

use super::{NAMESPACE, view::View};

/// Scaled by an EbpfScaler.
pub const WEB: &str = "web";
/// Scaled by an HPA.
pub const WEB_HPA: &str = "web-hpa";
/// Replicas that both have in the calm.
pub const CALM_REPLICAS: u32 = 2;

/// What the cycle is made of: seconds, requests per second to each sample, name. At a target of 100 requests a
/// second and pod, the calm is 60 % and the step 300 % of what two pods should serve.
pub const PHASES: [(u64, u32, &str); 3] = [
    (30, 120, "calm"),
    (75, 600, "5x step"),
    (75, 120, "calm again"),
];
/// The phase whose beginning is the step.
const STEP: usize = 1;

/// The outcome.
pub struct Measured {
    /// Requests that the generator has written, to both samples.
    pub generated: u64,
    /// Requests without a response.
    pub failed: u64,
    /// Requests that the product counted, of both samples.
    pub counted: u64,
    /// From the step's first request to the first larger `spec.replicas` of the EbpfScaler's sample.
    pub reaction: Option<Duration>,
    /// The same of the HPA's sample.
    pub hpa_reaction: Option<Duration>,
    /// `spec.replicas` each second, of the EbpfScaler's sample.
    pub replicas: Vec<u32>,
    /// The same of the HPA's sample.
    pub hpa_replicas: Vec<u32>,
    /// Requests a second in the highest answer of the external metrics API.
    pub peak_rate: f64,
}

/// What is known at one moment, for the live view.
#[derive(Default)]
pub struct Moment {
    pub elapsed: Duration,
    pub phase: usize,
    pub load: [Option<Progress>; 2],
    pub rate: [Option<f64>; 2],
    pub runqueue_p99_micros: [Option<f64>; 2],
    pub bytes_per_second: [Option<f64>; 2],
    pub replicas: [u32; 2],
    pub ready: [u32; 2],
    pub series: [Vec<u32>; 2],
    /// The EbpfScaler's last change of replicas, with its reason.
    pub change: String,
    /// What it thinks now.
    pub decision: String,
}

/// Runs the load and shows what happens.
pub async fn run(client: &Client) -> anyhow::Result<Measured> {
    let before = counts(client).await?;
    let recorders = [WEB, WEB_HPA].map(|name| Recorder::start(client, NAMESPACE, name));
    let phases = PHASES.map(|(seconds, rate, _)| format!("{seconds}s@{rate}"));
    let targets =
        [WEB, WEB_HPA].map(|name| format!("http://{name}.{NAMESPACE}.svc.cluster.local/"));
    let mut args = vec!["load"];
    args.extend(phases.iter().flat_map(|phase| ["--phase", phase]));
    args.extend(targets.iter().flat_map(|target| ["--target", target]));
    println!("    generator: sample {}", args.join(" "));
    let load = Load::start(client, NAMESPACE, "load", &args).await?;

    let mut view = View::new();
    let mut moment = Moment::default();
    let mut peak_rate = 0.0_f64;
    let mut ticks = interval(Duration::from_secs(1));
    let begun = Instant::now();
    let limit: u64 = PHASES.iter().map(|(seconds, ..)| seconds + 15).sum();
    while load.totals().is_none() {
        ticks.tick().await;
        moment.elapsed = begun.elapsed();
        anyhow::ensure!(
            moment.elapsed.as_secs() < limit,
            "the load generator does not end"
        );
        // An answer that does not come must not stop the clock; the view then shows the last one.
        let looked = look(client, &mut moment);
        let _ = timeout(Duration::from_secs(3), looked).await;
        gather(&load, &recorders, &mut moment);
        peak_rate = peak_rate.max(moment.rate[0].unwrap_or(0.0));
        view.show(&moment);
    }
    view.end();

    let totals = load.totals().context("the load generator has no totals")?;
    let generated = totals.iter().map(|target| target.sent).sum();
    let counted = settled(client, &before, generated).await?;
    let reaction = |index: usize| {
        let step = load.phase_begun(index, STEP)?;
        let patched = recorders[index].reached(CALM_REPLICAS + 1, step)?;
        Some(Duration::from_micros(patched.saturating_sub(step)))
    };
    let [replicas, hpa_replicas] = moment.series;
    Ok(Measured {
        generated,
        failed: totals.iter().map(|target| target.failed).sum(),
        counted,
        reaction: reaction(0),
        hpa_reaction: reaction(1),
        replicas,
        hpa_replicas,
        peak_rate,
    })
}

/// Asks the API.
async fn look(client: &Client, moment: &mut Moment) {
    let ask = |metric: &'static str, workload: &'static str, window: &'static str| async move {
        let selector = format!("ebpfscaler.io/deployment={workload},ebpfscaler.io/window={window}");
        metrics::value(client, NAMESPACE, metric, &selector)
            .await
            .ok()
    };
    let runqueue = "runqueue_latency_p99_microseconds";
    let bytes = "network_bytes_per_second";
    let (rate, rate_hpa, wait, wait_hpa, traffic, traffic_hpa, decision, change) = tokio::join!(
        ask("requests_per_second", WEB, "3s"),
        ask("requests_per_second", WEB_HPA, "3s"),
        ask(runqueue, WEB, "10s"),
        ask(runqueue, WEB_HPA, "10s"),
        ask(bytes, WEB, "3s"),
        ask(bytes, WEB_HPA, "3s"),
        last_decision(client),
        last_change(client),
    );
    moment.rate = [rate, rate_hpa];
    moment.runqueue_p99_micros = [wait, wait_hpa];
    moment.bytes_per_second = [traffic, traffic_hpa];
    if let Some(decision) = decision {
        moment.decision = decision;
    }
    if let Some(change) = change {
        moment.change = change;
    }
}

/// Takes what the generator and the watches have delivered meanwhile.
fn gather(load: &Load, recorders: &[Recorder; 2], moment: &mut Moment) {
    for (index, recorder) in recorders.iter().enumerate() {
        moment.load[index] = load.progress(index);
        moment.replicas[index] = recorder.current();
        moment.ready[index] = recorder.ready();
        moment.series[index].push(recorder.current());
    }
    let begun = |phase: &usize| load.phase_begun(0, *phase).is_some();
    moment.phase = (0..PHASES.len()).filter(begun).max().unwrap_or(0);
}

/// The EbpfScaler's last change of replicas, as its event tells it.
async fn last_change(client: &Client) -> Option<String> {
    let events: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
    let of_scaler = ListParams::default().fields(&format!(
        "involvedObject.kind=EbpfScaler,involvedObject.name={WEB},reason=SuccessfulRescale"
    ));
    let events = events.list(&of_scaler).await.ok()?.items;
    let last = events
        .into_iter()
        .max_by_key(|event| event.event_time.as_ref().map(|time| time.0))?;
    last.message
}

/// The EbpfScaler's last decision in its own words, also if it was to leave things as they are.
async fn last_decision(client: &Client) -> Option<String> {
    let scaler = scalers(client, NAMESPACE).get(WEB).await.ok()?;
    let decision = scaler.data.pointer("/status/lastDecision")?;
    let text = |key: &str| decision.get(key)?.as_str();
    Some(format!(
        "{}: {}",
        text("reason").unwrap_or("?"),
        text("message").unwrap_or("")
    ))
}

async fn counts(client: &Client) -> anyhow::Result<[BTreeMap<String, u64>; 2]> {
    Ok([
        counted(client, NAMESPACE, WEB).await?,
        counted(client, NAMESPACE, WEB_HPA).await?,
    ])
}

/// The count, once it has stood still: agents report four times a second.
async fn settled(
    client: &Client,
    before: &[BTreeMap<String, u64>; 2],
    generated: u64,
) -> anyhow::Result<u64> {
    let begun = Instant::now();
    let mut last = None;
    loop {
        let now = counts(client).await?;
        let both = before
            .iter()
            .zip(&now)
            .map(|(before, now)| counted_since(before, now));
        let total: Option<u64> = both.sum();
        let total = total.context("no apiserver replica has run through all of the demo")?;
        let still = last == Some(total);
        if still && (total == generated || begun.elapsed() > Duration::from_secs(5)) {
            return Ok(total);
        }
        last = Some(total);
        sleep(Duration::from_secs(1)).await;
    }
}
