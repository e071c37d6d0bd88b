//! Of a pod with two servers each is told apart, by its port and by its container, and a scaler follows only the one
//! that it names.

use std::time::Duration;

use anyhow::ensure;
use ebpf_scaler_e2e::{
    load::Load,
    metrics::value,
    objects::{deployment, sample_container, scaler, web_container},
    replicas::Recorder,
    story,
    wait::{always, eventually},
};
use serde_json::json;

#[test]
fn a_port_and_a_container_are_measured_and_scaled_apart() -> story::Outcome {
    story::run("port", async |story| {
        let app = web_container(&["--port=8080"]);
        let admin = sample_container("admin", &["serve", "--port=9900"]);
        let web = deployment(&story.namespace, "web", 1, &[app, admin]);
        story.deploy(&web, 8080).await?;
        // The same pods' other port.
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "admin", "namespace": story.namespace},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 9900}]},
        });
        story.apply(&service).await?;
        let metrics = json!([{
            "type": "RequestRate",
            "requestRate": {
                "target": {"averageValue": "30"}, "port": 8080,
                "stableWindow": "10s", "burstWindow": "3s",
            },
        }]);
        story
            .apply(&scaler(&story.namespace, "web", 1, 4, metrics))
            .await?;
        let recorder = Recorder::start(&story.client, &story.namespace, "web");

        let start = async |name: &str, service: &str, phases: &str| {
            let url = story.url(service);
            let args = ["load", "--target", &url, "--phase", phases];
            Load::start(&story.client, &story.namespace, name, &args).await
        };
        let rate = async |key: &str| {
            let selector = format!("ebpfscaler.io/deployment=web,ebpfscaler.io/window=10s,{key}");
            let metric = "requests_per_second";
            value(&story.client, &story.namespace, metric, &selector).await
        };
        // Far more than the target, but at the other port.
        let admin = start("admin", "admin", "60s@100").await?;
        for key in ["ebpfscaler.io/port=9900", "ebpfscaler.io/container=admin"] {
            eventually(key, Duration::from_secs(30), async || {
                let rate = rate(key).await?;
                ensure!((rate - 100.0).abs() < 3.0, "{rate} requests/s");
                Ok(())
            })
            .await?;
        }
        always("nothing is scaled", Duration::from_secs(5), async || {
            for key in ["ebpfscaler.io/port=8080", "ebpfscaler.io/container=web"] {
                let rate = rate(key).await?;
                ensure!(rate == 0.0, "{rate} requests/s of {key}");
            }
            ensure!(recorder.most() == 1, "{:?}", recorder.changes());
            Ok(())
        })
        .await?;

        let app = start("app", "web", "25s@75").await?;
        eventually("three replicas", Duration::from_secs(25), async || {
            ensure!(recorder.current() == 3, "{:?}", recorder.changes());
            Ok(())
        })
        .await?;
        drop((app, admin));
        Ok(())
    })
}
