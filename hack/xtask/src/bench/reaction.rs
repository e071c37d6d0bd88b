//! Reaction time to a load step from 60 % to 300 % of the target on two pods: from the generator's first request
//! at the new rate to the first larger `spec.replicas`, and to one that covers the new load. Both scalers see the
//! same step; each one's loop is at a random phase. It only observes: nothing here helps a scaler.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use ebpf_scaler_e2e::{
    client,
    load::Load,
    objects::{apply, deployment, hpa, scaler, scalers, service, web_container},
    replicas::Recorder,
    unix_micros,
    wait::eventually,
};
use ebpf_scaler_sample::spread::Spread;
use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::visible::Visible;
use crate::demo::remove_namespace;

const NAMESPACE: &str = "ebpf-scaler-bench";
const WEB: &str = "web";
const WEB_HPA: &str = "web-hpa";
/// Requests a second that a pod should serve.
const TARGET: u32 = 200;
const REPLICAS: u32 = 2;
/// 60 % of what two pods should serve.
const CALM: u32 = 240;
/// 300 % of it.
const STEP: u32 = 1200;
const ENOUGH: u32 = STEP / TARGET;
/// Longer than the stable window: the scalers are made when nothing of the last step is left in it.
const FORGET_TIME: Duration = Duration::from_secs(34);
/// How long the scalers have been there at least when the step comes.
const SETTLE_TIME: Duration = Duration::from_secs(6);
/// The HPA's sync period: the random part of the calm covers it, so that the step meets any phase of its loop.
const LOOP_PERIOD: Duration = Duration::from_secs(15);
/// The HPA needs up to three syncs.
const STEP_TIME: Duration = Duration::from_secs(75);

#[derive(clap::Args)]
pub struct Options {
    /// Load steps to measure
    #[arg(long, default_value_t = 5)]
    steps: u32,
    /// Write the measured numbers to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Output {
    runs: Vec<Run>,
    /// From the step's first request until the external metrics API shows a higher rate, in milliseconds.
    visible_ms: Vec<f64>,
}

/// All steps of one scaler, in milliseconds.
#[derive(Serialize)]
struct Run {
    scaler: &'static str,
    ms: Vec<f64>,
    enough_ms: Vec<f64>,
    /// Steps without a reaction in time, or that did not find two replicas.
    missed: u32,
}

impl Run {
    fn new(scaler: &'static str) -> Self {
        Self {
            scaler,
            ms: Vec::new(),
            enough_ms: Vec::new(),
            missed: 0,
        }
    }
}

pub async fn run(kubeconfig: &Path, options: &Options) -> anyhow::Result<()> {
    let client = client::connect(kubeconfig).await?;
    println!(
        "\n==> bench reaction: {} steps from {CALM} to {STEP} requests/s, target {TARGET}/s and pod, from {REPLICAS} pods",
        options.steps
    );
    remove_namespace(&client, NAMESPACE).await?;
    let measured = tokio::select! {
        measured = measure(&client, options.steps) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    remove_namespace(&client, NAMESPACE).await?;
    let output = measured?;
    print(&output);
    if let Some(path) = &options.json {
        let text = serde_json::to_string(&output)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let missed: u32 = output.runs.iter().map(|run| run.missed).sum();
    ensure!(missed == 0, "{missed} reactions are missing, see above");
    Ok(())
}

fn print(output: &Output) {
    println!("\n    milliseconds from the step's first request, median (least to most)");
    println!(
        "    {:<14}{:>24}{:>24}",
        "", "first patch", "enough replicas"
    );
    for run in &output.runs {
        let text = |values: &[f64]| Spread::of(values).map_or("-".to_owned(), |s| s.to_string());
        println!(
            "    {:<14}{:>24}{:>24}",
            run.scaler,
            text(&run.ms),
            text(&run.enough_ms)
        );
    }
    if let Some(visible) = Spread::of(&output.visible_ms) {
        println!("    the step shows in the external metrics API after {visible} ms");
    }
}

async fn measure(client: &Client, steps: u32) -> anyhow::Result<Output> {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
    });
    apply(client, &namespace).await?;
    for name in [WEB, WEB_HPA] {
        let container = web_container(&["--work-micros=50"]);
        apply(client, &deployment(NAMESPACE, name, REPLICAS, &[container])).await?;
        apply(client, &service(NAMESPACE, name, 8080)).await?;
    }
    let mut output = Output {
        runs: vec![Run::new("ebpfscaler"), Run::new("hpa-external")],
        visible_ms: Vec::new(),
    };
    for step in 1..=steps {
        one_step(client, step, &mut output)
            .await
            .with_context(|| format!("step {step}"))?;
    }
    Ok(output)
}

/// One step of both, from two pods each.
async fn one_step(client: &Client, index: u32, output: &mut Output) -> anyhow::Result<()> {
    reset(client).await?;
    let calm = FORGET_TIME + SETTLE_TIME + LOOP_PERIOD.mul_f64(random());
    let phases = [
        format!("{}ms@{CALM}", calm.as_millis()),
        format!("{}s@{STEP}", STEP_TIME.as_secs()),
    ];
    let targets =
        [WEB, WEB_HPA].map(|name| format!("http://{name}.{NAMESPACE}.svc.cluster.local/"));
    let mut args = vec!["load"];
    args.extend(phases.iter().flat_map(|phase| ["--phase", phase]));
    args.extend(targets.iter().flat_map(|target| ["--target", target]));
    let load = Load::start(client, NAMESPACE, &format!("load-{index}"), &args).await?;
    load.await_phase(0, 0, Duration::from_secs(20)).await?;
    sleep(FORGET_TIME).await;
    create_scalers(client, index).await?;

    let recorders = [WEB, WEB_HPA].map(|name| Recorder::start(client, NAMESPACE, name));
    let visible = Visible::start(client, NAMESPACE, WEB);
    let limit = calm + Duration::from_secs(20);
    let mut begun = [0; 2];
    for (target, begun) in begun.iter_mut().enumerate() {
        *begun = load.await_phase(target, 1, limit).await?;
    }
    let deadline = Instant::now() + STEP_TIME - Duration::from_secs(5);
    let enough = |index: usize| recorders[index].reached(ENOUGH, begun[index]).is_some();
    while !(enough(0) && enough(1)) && Instant::now() < deadline {
        sleep(Duration::from_millis(100)).await;
    }
    load.stop().await?;
    for ((run, recorder), begun) in output.runs.iter_mut().zip(&recorders).zip(begun) {
        record(index, run, recorder, begun);
    }
    let seen = visible.exceeded(f64::from(CALM) * 1.1, begun[0]);
    output
        .visible_ms
        .extend(seen.map(|seen| (seen - begun[0]) as f64 / 1e3));
    Ok(())
}

fn record(index: u32, run: &mut Run, recorder: &Recorder, begun: u64) {
    let changes = recorder.changes();
    let before = changes.iter().rfind(|change| change.unix_micros < begun);
    let early = before.is_none_or(|change| change.replicas != REPLICAS);
    let first = recorder.reached(REPLICAS + 1, begun);
    let enough = recorder.reached(ENOUGH, begun);
    let millis = |at: u64| (at - begun) as f64 / 1e3;
    match (early, first, enough) {
        (false, Some(first), Some(enough)) => {
            run.ms.push(millis(first));
            run.enough_ms.push(millis(enough));
            println!(
                "    step {index}: {:<13} first patch {:>6.0} ms, enough {:>6.0} ms",
                run.scaler,
                millis(first),
                millis(enough)
            );
        }
        _ => {
            run.missed += 1;
            let replicas: Vec<u32> = changes.iter().map(|change| change.replicas).collect();
            let why = if early {
                "it did not have 2 replicas before the step"
            } else {
                "it did not get there"
            };
            println!(
                "    step {index}: {} missed: {why}: {replicas:?}",
                run.scaler
            );
        }
    }
}

/// Two pods each, and nobody who scales them.
async fn reset(client: &Client) -> anyhow::Result<()> {
    let everything = &kube::api::ListParams::default();
    let delete = DeleteParams::default();
    let hpas: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), NAMESPACE);
    hpas.delete_collection(&delete, everything).await?;
    scalers(client, NAMESPACE)
        .delete_collection(&delete, everything)
        .await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    for name in [WEB, WEB_HPA] {
        let two = json!({"spec": {"replicas": REPLICAS}});
        deployments
            .patch_scale(name, &PatchParams::default(), &Patch::Merge(two))
            .await?;
        eventually(
            &format!("{name} has {REPLICAS} pods"),
            Duration::from_secs(60),
            async || {
                let status = deployments.get(name).await?.status.unwrap_or_default();
                let (all, ready) = (status.replicas, status.ready_replicas);
                let wanted = i32::try_from(REPLICAS).ok();
                if (all, ready) != (wanted, wanted) {
                    bail!("{ready:?} of {all:?} are ready");
                }
                Ok(())
            },
        )
        .await?;
    }
    Ok(())
}

/// New names for each step: the controller remembers what a deleted HPA recommended.
async fn create_scalers(client: &Client, index: u32) -> anyhow::Result<()> {
    let target = json!([{
        "type": "RequestRate",
        "requestRate": {"target": {"averageValue": TARGET.to_string()}},
    }]);
    let mut ours = scaler(NAMESPACE, WEB, REPLICAS, 20, target);
    ours["metadata"]["name"] = json!(format!("{WEB}-{index}"));
    apply(client, &ours).await?;
    // The shortest window is the best that an HPA can get from us.
    let mut theirs = hpa(NAMESPACE, WEB_HPA, REPLICAS, 20, "3s", TARGET);
    theirs["metadata"]["name"] = json!(format!("{WEB_HPA}-{index}"));
    apply(client, &theirs).await.map(drop)
}

/// From 0 to 1, enough to meet a loop at any phase: the clock's microseconds have nothing to do with it.
fn random() -> f64 {
    let mut mixed = unix_micros().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 32;
    (mixed & 0xffff_ffff) as f64 / f64::from(u32::MAX)
}
