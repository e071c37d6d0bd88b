//! An EbpfScaler scales on threads that wait for a CPU: contention in the pods, whatever they serve.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    load::Load, metrics::value, objects::scaler, replicas::Recorder, story, wait::eventually,
};
use serde_json::json;

#[test]
fn up_with_contention_and_down_again() -> anyhow::Result<()> {
    story::run("runqueue", async |story| {
        // Eight threads that share the node's few CPUs while there is work for all of them.
        story
            .deploy_web("busy", 1, &["--threads=8", "--work-micros=20000"])
            .await?;
        let metrics = json!([{
            "type": "RunQueueWaitingThreads",
            "runQueueWaitingThreads": {"target": {"averageValue": "1500m"}, "stableWindow": "10s"},
        }]);
        story
            .apply(&scaler(&story.namespace, "busy", 1, 3, metrics))
            .await?;
        let recorder = Recorder::start(&story.client, &story.namespace, "busy");
        let url = story.url("busy");
        let args = [
            "load",
            "--target",
            &url,
            "--phase",
            "10s@200",
            "--connections",
            "16",
        ];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;
        let begun = load.await_phase(0, 0, Duration::from_secs(20)).await?;

        let up = eventually("two replicas", Duration::from_secs(30), async || {
            recorder
                .reached(2, begun)
                .with_context(|| format!("{:?}", recorder.changes()))
        })
        .await?;
        story.say(&format!(
            "2 replicas {} ms after the load's begin",
            (up - begun) / 1000
        ));
        let selector = "ebpfscaler.io/deployment=busy,ebpfscaler.io/window=10s";
        let wait = value(
            &story.client,
            &story.namespace,
            "runqueue_latency_p99_microseconds",
            selector,
        );
        let wait = wait.await?;
        ensure!(wait > 1000.0, "contended threads wait only {wait} us");

        load.finished(Duration::from_secs(60)).await?;
        eventually(
            "one replica after the load",
            Duration::from_secs(60),
            async || {
                ensure!(recorder.current() == 1, "{:?}", recorder.changes());
                Ok(())
            },
        )
        .await
    })
}
