//! An EbpfScaler scales on bytes received.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    load::Load, metrics::value, objects::scaler, replicas::Recorder, story, wait::eventually,
};
use serde_json::json;

#[test]
fn up_with_the_traffic_and_down_again() -> story::Outcome {
    story::run("network", async |story| {
        story.deploy_web("sink", 1, &[]).await?;
        let metrics = json!([{
            "type": "NetworkThroughput",
            "networkThroughput": {
                "direction": "Receive", "target": {"averageValue": "1M"}, "stableWindow": "10s",
            },
        }]);
        story
            .apply(&scaler(&story.namespace, "sink", 1, 4, metrics))
            .await?;
        let recorder = Recorder::start(&story.client, &story.namespace, "sink");
        let url = format!("{}sink", story.url("sink"));
        let args = ["stream", "--target", &url, "--phase", "20s@2700000"];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;
        let begun = load.await_phase(0, 0, Duration::from_secs(20)).await?;

        let up = eventually(
            "three replicas for 2.7 MB/s",
            Duration::from_secs(20),
            async || {
                recorder
                    .reached(3, begun)
                    .with_context(|| format!("{:?}", recorder.changes()))
            },
        )
        .await?;
        story.say(&format!(
            "3 replicas {} ms after the traffic's begin",
            (up - begun) / 1000
        ));
        let selector = "ebpfscaler.io/deployment=sink,ebpfscaler.io/window=10s";
        eventually(
            "the measured throughput is what is sent",
            Duration::from_secs(12),
            async || {
                let metric = "network_receive_bytes_per_second";
                let bytes = value(&story.client, &story.namespace, metric, selector).await?;
                // Headers, and the acknowledgements of what the pods answer, come on top of the bodies.
                ensure!((2.65e6..2.95e6).contains(&bytes), "{bytes} bytes/s");
                Ok(())
            },
        )
        .await?;
        load.finished(Duration::from_secs(40)).await?;
        eventually(
            "one replica after the traffic",
            Duration::from_secs(40),
            async || {
                ensure!(recorder.current() == 1, "{:?}", recorder.changes());
                Ok(())
            },
        )
        .await
    })
}
