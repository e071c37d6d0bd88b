//! An EbpfScaler scales on threads that wait for a CPU: contention in the pods, whatever they serve.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    metrics::{quantity, value},
    objects::{deployment, sample_container, scaler},
    replicas::Recorder,
    story::{self, Story},
    wait::eventually,
};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use serde_json::json;

#[test]
fn up_with_contention_and_down_again() -> story::Outcome {
    story::run("runqueue", async |story| {
        let metrics = json!([{
            "type": "RunQueueWaitingThreads",
            "runQueueWaitingThreads": {"target": {"averageValue": "1500m"}, "stableWindow": "10s"},
        }]);
        story
            .apply(&scaler(&story.namespace, "busy", 1, 3, metrics))
            .await?;
        // At least four threads that want a CPU and have none, whatever the node's size.
        let threads = format!("--threads={}", cpus(story).await? + 4);
        let spin = sample_container("spin", &["spin", &threads, "--for=20s"]);
        story
            .apply(&deployment(&story.namespace, "busy", 1, &[spin]))
            .await?;
        let recorder = Recorder::start(&story.client, &story.namespace, "busy");

        eventually("two replicas", Duration::from_secs(30), async || {
            let up = recorder.reached(2, 0);
            up.with_context(|| format!("{:?}", recorder.changes()))
        })
        .await?;
        story.say("contention has added replicas");
        let selector = "ebpfscaler.io/deployment=busy,ebpfscaler.io/window=10s";
        let metric = "runqueue_latency_p99_microseconds";
        let wait = value(&story.client, &story.namespace, metric, selector).await?;
        ensure!(wait > 1000.0, "contended threads wait only {wait} us");

        eventually(
            "one replica when all is calm",
            Duration::from_secs(90),
            async || {
                ensure!(recorder.current() == 1, "{:?}", recorder.changes());
                Ok(())
            },
        )
        .await?;
        story.say("one replica again");
        Ok(())
    })
}

/// CPUs of the largest node.
async fn cpus(story: &Story) -> anyhow::Result<u64> {
    let nodes: Api<Node> = Api::all(story.client.clone());
    let mut most = 0.0_f64;
    for node in nodes.list(&ListParams::default()).await? {
        let capacity = node.status.and_then(|status| status.capacity);
        let cpus = capacity.context("a node without capacity")?;
        most = most.max(quantity(cpus.get("cpu").context("a node without CPUs")?)?);
    }
    Ok(most as u64)
}
