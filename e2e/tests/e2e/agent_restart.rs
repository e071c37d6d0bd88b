//! The agent is killed under load: nothing is scaled down for want of data, and nothing is counted twice.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    metrics::{component_pods, counted, request_rate},
    product, story,
    truth::Answers,
    wait::{always, eventually},
};

use crate::steady::{NEEDED, RATE, four_replicas, kill};

/// A node without an agent contributes what it last had, while connections, 32 of some five seconds' age, go on moving
/// between the two nodes: a tenth of the load, more or less, is then on both or on neither. A node that counted twice
/// would add half.
const MOVED: f64 = 0.35;

#[test]
fn a_restart_scales_nothing_down_and_counts_nothing_twice() -> story::Outcome {
    story::run("agent-restart", async |story| {
        let (load, recorder) = four_replicas(story, 60).await?;
        let agents = component_pods(&story.client, "agent").await?;
        let agent = agents.first().and_then(|pod| pod.metadata.name.clone());
        kill(story, &agent.context("there is no agent")?).await?;

        let mut answers = Answers::default();
        always(
            "no replica is taken away",
            Duration::from_secs(15),
            async || {
                ensure!(recorder.current() >= NEEDED, "{:?}", recorder.changes());
                let rate = request_rate(&story.client, &story.namespace, "web", "3s").await;
                if let Ok(rate) = rate {
                    answers.add(3.0, rate);
                }
                Ok(())
            },
        )
        .await?;
        eventually(
            "the agent is back and the rate is right",
            Duration::from_secs(30),
            async || {
                product::ready(&story.client).await?;
                let rate = request_rate(&story.client, &story.namespace, "web", "3s").await?;
                ensure!(
                    (rate - RATE).abs() < RATE * 0.05,
                    "{rate} requests/s, but {RATE} are sent"
                );
                Ok(())
            },
        )
        .await?;
        let totals = load.stop().await?;
        answers.never_exceed(&load, MOVED)?;
        let counted = counted(&story.client, &story.namespace, "web").await?;
        let most = counted.values().max().copied().unwrap_or(0);
        ensure!(
            most <= totals[0].sent,
            "counted {counted:?}, but sent {}",
            totals[0].sent
        );
        let uncounted = totals[0].sent - most;
        story.say(&format!(
            "of {} requests, {uncounted} passed while there was no agent",
            totals[0].sent
        ));
        Ok(())
    })
}
