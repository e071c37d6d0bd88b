//! Pods on several nodes: each agent tells of its own node's pods alone, and together they tell the whole, once.

use std::time::Duration;

use anyhow::ensure;
use ebpf_scaler_e2e::{
    load::Load,
    metrics::{component_pods, counted, request_rate, scrape, sum, value},
    objects::{deployment, web_container},
    story,
    wait::eventually,
};
use serde_json::json;

/// Requests a second.
const RATE: f64 = 100.0;

#[test]
fn nodes_add_up_to_the_whole() -> story::Outcome {
    story::run("nodes", async |story| {
        let agents = component_pods(&story.client, "agent").await?;
        let nodes: Vec<String> = agents
            .iter()
            .filter_map(|pod| pod.spec.as_ref()?.node_name.clone())
            .collect();
        ensure!(
            nodes.len() >= 2,
            "agents run on {nodes:?} only, but this story needs two nodes: cargo xtask cluster up --nodes 2"
        );
        let mut web = deployment(&story.namespace, "web", 4, &[web_container(&[])]);
        web["spec"]["template"]["spec"]["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]);
        web["spec"]["template"]["spec"]["tolerations"] =
            json!([{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]);
        story.deploy(&web, 8080).await?;
        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "30s@100"];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;

        eventually(
            "each node has a part, and the parts are the whole",
            Duration::from_secs(28),
            async || {
                let whole = request_rate(&story.client, &story.namespace, "web", "10s").await?;
                ensure!((whole - RATE).abs() < 2.0, "{whole} requests/s");
                let mut parts = Vec::new();
                for node in &nodes {
                    let selector = format!(
                        "ebpfscaler.io/deployment=web,ebpfscaler.io/node={node},ebpfscaler.io/window=10s"
                    );
                    let metric = "requests_per_second";
                    let part = value(&story.client, &story.namespace, metric, &selector).await?;
                    ensure!(part > 0.0, "nothing on {node}");
                    parts.push(part);
                }
                let total: f64 = parts.iter().sum();
                ensure!((total - RATE).abs() < 2.0, "{parts:?} requests/s");
                Ok(())
            },
        )
        .await?;
        let totals = load.finished(Duration::from_secs(45)).await?;
        eventually(
            "all are counted, once",
            Duration::from_secs(10),
            async || {
                let counted = counted(&story.client, &story.namespace, "web").await?;
                ensure!(
                    counted.values().all(|&count| count == totals[0].sent),
                    "{} were sent: {counted:?}",
                    totals[0].sent
                );
                Ok(())
            },
        )
        .await?;
        for replica in component_pods(&story.client, "apiserver").await? {
            let samples = scrape(&story.client, &replica.metadata.name.unwrap_or_default()).await?;
            let foreign = sum(
                &samples,
                "ebpf_scaler_apiserver_refused_total",
                &["reason=\"pod_of_another_node\""],
            );
            ensure!(
                foreign.unwrap_or(0.0) == 0.0,
                "an agent told of another node's pods: {foreign:?} samples"
            );
        }
        Ok(())
    })
}
