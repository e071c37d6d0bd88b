//! Pods that come do not make load: while a Deployment grows tenfold under constant load, the sum never exceeds
//! the truth.

use std::time::Duration;

use anyhow::ensure;
use ebpf_scaler_e2e::{
    load::Load,
    metrics::request_rate,
    objects::{deployment, sample_container},
    story,
    truth::Answers,
    wait::eventually,
};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

const RATE: f64 = 100.0;
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn growing_tenfold_never_exceeds_the_true_sum() -> story::Outcome {
    story::run("sum-bound", async |story| {
        let container = sample_container("web", &["serve", "--threads=1"]);
        let web = deployment(&story.namespace, "web", 5, &[container]);
        story.deploy(&web, 8080).await?;
        let url = story.url("web");
        let args = [
            "load",
            "--target",
            &url,
            "--phase",
            "150s@100",
            "--interval",
            "20ms",
            "--connection-max-age",
            "2s",
        ];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;
        eventually("a steady rate", Duration::from_secs(30), async || {
            let rate = request_rate(&story.client, &story.namespace, "web", "10s").await?;
            ensure!((rate - RATE).abs() < 2.0, "{rate} requests/s");
            Ok(())
        })
        .await?;

        let deployments: Api<Deployment> = Api::namespaced(story.client.clone(), &story.namespace);
        let fifty = json!({"spec": {"replicas": 50}});
        deployments
            .patch_scale("web", &PatchParams::default(), &Patch::Merge(fifty))
            .await?;
        let begun = Instant::now();
        let (mut answers, mut all_ready) = (Answers::default(), None);
        // Some seconds more, for what comes late.
        while all_ready.is_none_or(|ready: Instant| ready.elapsed() < Duration::from_secs(8)) {
            ensure!(
                begun.elapsed() < LIMIT,
                "50 replicas are not ready: {:?}",
                story.ready_replicas("web").await
            );
            for (window, seconds) in [("3s", 3.0), ("10s", 10.0)] {
                let rate = request_rate(&story.client, &story.namespace, "web", window).await?;
                answers.add(seconds, rate);
            }
            if all_ready.is_none() && story.ready_replicas("web").await? >= 50 {
                story.say("50 replicas are ready");
                all_ready = Some(Instant::now());
            }
            sleep(Duration::from_millis(300)).await;
        }
        let (most, count) = answers.most();
        story.say(&format!(
            "the most of {count} answers was {most:.1} requests/s"
        ));
        let totals = load.stop().await?;
        ensure!(totals[0].failed == 0, "{totals:?}");
        answers.never_exceed(&load, 0.05)
    })
}
