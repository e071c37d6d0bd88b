//! What the stories of broken components share: a scaled workload under a steady load that needs four replicas.

use std::time::Duration;

use anyhow::ensure;
use ebpf_scaler_e2e::{
    PRODUCT,
    load::Load,
    metrics,
    objects::{request_rate, scaler},
    replicas::Recorder,
    story::Story,
    wait::eventually,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::DeleteParams};

/// Requests a second.
pub const RATE: f64 = 190.0;
/// What it needs at 50 requests a second and pod.
pub const NEEDED: u32 = 4;

/// Four replicas that serve a steady load.
pub async fn four_replicas(story: &Story, seconds: u32) -> anyhow::Result<(Load, Recorder)> {
    story.deploy_web("web", 2, &[]).await?;
    story
        .apply(&scaler(&story.namespace, "web", 2, 8, request_rate(50)))
        .await?;
    let recorder = Recorder::start(&story.client, &story.namespace, "web");
    let url = story.url("web");
    let phase = format!("{seconds}s@{RATE}");
    let args = [
        "load",
        "--target",
        &url,
        "--phase",
        &phase,
        "--interval",
        "20ms",
    ];
    let load = Load::start(&story.client, &story.namespace, "load", &args).await?;
    eventually(
        "four replicas serve the load",
        Duration::from_secs(40),
        async || {
            ensure!(
                recorder.ready() >= NEEDED,
                "{} are ready: {:?}",
                recorder.ready(),
                recorder.changes()
            );
            Ok(())
        },
    )
    .await?;
    eventually(
        "the load fills a window of 10 s",
        Duration::from_secs(20),
        async || {
            let rate = metrics::request_rate(&story.client, &story.namespace, "web", "10s").await?;
            ensure!(
                (rate - RATE).abs() < RATE * 0.05,
                "{rate} instead of {RATE} requests/s"
            );
            Ok(())
        },
    )
    .await?;
    story.say("four replicas serve a steady load");
    Ok((load, recorder))
}

/// Ends a pod of the product at once, as a crash does.
pub async fn kill(story: &Story, pod: &str) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), PRODUCT);
    pods.delete(pod, &DeleteParams::default().grace_period(0))
        .await?;
    story.say(&format!("killed {pod}"));
    Ok(())
}
