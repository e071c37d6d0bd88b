//! One of two apiserver replicas is killed under load: the other one answers, and nothing is scaled down.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    metrics::{component_pods, request_rate},
    product, story,
    truth::Answers,
    wait::eventually,
};
use tokio::time::{Instant, sleep};

use crate::steady::{NEEDED, four_replicas, kill};

/// How long questions may fail until the dead replica is out of the Service.
const OUTAGE: Duration = Duration::from_secs(5);

#[test]
fn the_other_replica_answers_on() -> story::Outcome {
    story::run("apiserver-killed", async |story| {
        let (load, recorder) = four_replicas(story, 90).await?;
        let pods = component_pods(&story.client, "apiserver").await?;
        ensure!(pods.len() >= 2, "{} replicas run", pods.len());
        kill(story, pods[0].metadata.name.as_deref().context("no name")?).await?;

        let killed = Instant::now();
        let mut failed_until = Duration::ZERO;
        let mut answers = Answers::default();
        while killed.elapsed() < Duration::from_secs(15) {
            match request_rate(&story.client, &story.namespace, "web", "10s").await {
                Ok(rate) => answers.add(10.0, rate),
                Err(_) => failed_until = killed.elapsed(),
            }
            ensure!(
                recorder.current() >= NEEDED,
                "scaled down: {:?}",
                recorder.changes()
            );
            sleep(Duration::from_millis(200)).await;
        }
        story.say(&format!(
            "questions failed until {failed_until:?} after the kill"
        ));
        ensure!(
            failed_until < OUTAGE,
            "still failing {failed_until:?} after the kill"
        );
        eventually(
            "the replica is replaced",
            Duration::from_secs(60),
            async || product::ready(&story.client).await,
        )
        .await?;
        // The new replica was told the last minute by the agents, so it answers as well as the old one.
        for _ in 0..20 {
            let rate = request_rate(&story.client, &story.namespace, "web", "10s").await?;
            answers.add(10.0, rate);
        }
        load.stop().await?;
        answers.agree(&load, 0.05)
    })
}
