//! A pod that is only probed and scraped has no load: kubelet probes and requests to excluded ports are counted
//! apart.

use std::time::Duration;

use anyhow::ensure;
use ebpf_scaler_e2e::{
    load::Load,
    metrics::{counted, request_rate},
    objects::{deployment, web_container},
    story,
    wait::{always, eventually},
};
use serde_json::json;

#[test]
fn probes_and_scrapes_are_no_load() -> story::Outcome {
    story::run("probes", async |story| {
        let mut container = web_container(&["--port=8080,9090"]);
        container["livenessProbe"] = json!({
            "httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1,
        });
        let web = deployment(&story.namespace, "web", 2, &[container]);
        // The Service leads to the metrics port, which the e2e overlay excludes.
        story.deploy(&web, 9090).await?;
        let url = format!("{}metrics", story.url("web"));
        let args = ["load", "--target", &url, "--phase", "14s@2"];
        let load = Load::start(&story.client, &story.namespace, "scraper", &args).await?;
        load.await_phase(0, 0, Duration::from_secs(20)).await?;

        let rate = async || request_rate(&story.client, &story.namespace, "web", "10s").await;
        eventually("the metric is there", Duration::from_secs(15), async || {
            rate().await.map(drop)
        })
        .await?;
        always("the rate is zero", Duration::from_secs(12), async || {
            let rate = rate().await?;
            ensure!(rate == 0.0, "{rate} requests/s");
            Ok(())
        })
        .await?;
        let totals = load.finished(Duration::from_secs(20)).await?;
        ensure!(
            totals[0].completed == 28,
            "the scrapes did not arrive: {totals:?}"
        );
        let counted = counted(&story.client, &story.namespace, "web").await?;
        ensure!(counted.values().all(|&count| count == 0), "{counted:?}");
        Ok(())
    })
}
