//! A request that passes a proxy and an application in one pod is one request.

use std::time::Duration;

use anyhow::ensure;
use ebpf_scaler_e2e::{
    load::Load,
    metrics::{counted, request_rate},
    objects::{deployment, sample_container},
    story,
    wait::eventually,
};
use serde_json::json;

#[test]
fn a_request_through_a_sidecar_counts_once() -> story::Outcome {
    story::run("sidecar", async |story| {
        let mut proxy = sample_container(
            "proxy",
            &["proxy", "--port=8080", "--to=http://127.0.0.1:9000"],
        );
        proxy["readinessProbe"] = json!({
            "httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1,
        });
        let app = sample_container("app", &["serve", "--port=9000"]);
        story
            .deploy(&deployment(&story.namespace, "web", 2, &[proxy, app]), 8080)
            .await?;
        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "16s@100"];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;

        eventually(
            "100 requests/s are 100",
            Duration::from_secs(25),
            async || {
                let rate = request_rate(&story.client, &story.namespace, "web", "10s").await?;
                ensure!((rate - 100.0).abs() < 2.0, "{rate} requests/s");
                Ok(())
            },
        )
        .await?;
        let totals = load.finished(Duration::from_secs(30)).await?;
        ensure!(totals[0].completed == 1600, "{totals:?}");
        eventually(
            "all are counted, once",
            Duration::from_secs(10),
            async || {
                let counted = counted(&story.client, &story.namespace, "web").await?;
                let most = counted.values().max().copied().unwrap_or(0);
                ensure!((1599..=1601).contains(&most), "1600 were sent: {counted:?}");
                Ok(())
            },
        )
        .await
    })
}
