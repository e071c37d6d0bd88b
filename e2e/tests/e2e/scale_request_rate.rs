//! An EbpfScaler follows the request rate up, at once and all the way, and down again, and says why.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    load::Load,
    objects::{histories, request_rate, scaler, scalers},
    replicas::Recorder,
    story::{self, Story},
    wait::eventually,
};
use k8s_openapi::api::core::v1::Event;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::Value;

#[test]
fn up_with_the_load_and_down_again() -> story::Outcome {
    story::run("request-rate", async |story| {
        story.deploy_web("web", 2, &["--work-micros=100"]).await?;
        story
            .apply(&scaler(&story.namespace, "web", 2, 10, request_rate(50)))
            .await?;
        let recorder = Recorder::start(&story.client, &story.namespace, "web");
        let url = story.url("web");
        let args = [
            "load", "--target", &url, "--phase", "12s@60", "--phase", "20s@300", "--phase",
            "40s@20",
        ];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;

        let step = load.await_phase(0, 1, Duration::from_secs(40)).await?;
        ensure!(
            recorder.most() == 2,
            "60 % of the target is no reason to scale: {:?}",
            recorder.changes()
        );
        let six = eventually(
            "six replicas for 300 requests/s",
            Duration::from_secs(20),
            async || {
                recorder
                    .reached(6, step)
                    .with_context(|| format!("{:?}", recorder.changes()))
            },
        )
        .await?;
        story.say(&format!(
            "6 replicas {} ms after the step",
            (six - step) / 1000
        ));

        let scaler = scalers(&story.client, &story.namespace).get("web").await?;
        let decision = scaler.data.pointer("/status/lastDecision/reason");
        ensure!(decision.is_some(), "no reason: {}", scaler.data["status"]);
        let events: Api<Event> = Api::namespaced(story.client.clone(), &story.namespace);
        let mut about = events.list(&ListParams::default()).await?.items.into_iter();
        let about = about.any(|event| event.involved_object.kind.as_deref() == Some("EbpfScaler"));
        ensure!(about, "no event tells of the scaling");

        load.await_phase(0, 2, Duration::from_secs(40)).await?;
        eventually(
            "two replicas after the load",
            Duration::from_secs(40),
            async || {
                ensure!(recorder.current() == 2, "{:?}", recorder.changes());
                Ok(())
            },
        )
        .await?;
        remembered(story, &recorder).await?;
        let totals = load.stop().await?;
        ensure!(totals[0].failed == 0, "scaling cost requests: {totals:?}");
        Ok(())
    })
}

/// The history tells of each change that the Deployment saw, with its numbers, and goes with its scaler.
async fn remembered(story: &Story, recorder: &Recorder) -> anyhow::Result<()> {
    let histories = histories(&story.client, &story.namespace);
    eventually(
        "every change is in the history",
        Duration::from_secs(60),
        async || {
            let history = histories.get("web").await?;
            let decisions = history.data["decisions"].as_array().cloned();
            let decisions = decisions.context("no decisions")?;
            let applied: Vec<(i64, i64)> = decisions
                .iter()
                .rev()
                .filter(|d| d["outcome"] == "Applied")
                .filter_map(|d| Some((d["from"].as_i64()?, d["to"].as_i64()?)))
                .collect();
            let seen: Vec<i64> = recorder
                .changes()
                .iter()
                .map(|c| c.replicas.into())
                .collect();
            let changes: Vec<(i64, i64)> = seen.windows(2).map(|w| (w[0], w[1])).collect();
            ensure!(applied == changes, "{applied:?} are not {changes:?}");
            let whole = |d: &Value| {
                let value = d.pointer("/metrics/0/value").and_then(Value::as_str);
                let number = value.and_then(|v| v.parse::<f64>().ok());
                number.is_some() && d["reason"].is_string() && d["time"].is_string()
            };
            let mut applied = decisions.iter().filter(|d| d["outcome"] == "Applied");
            ensure!(applied.all(whole), "{decisions:?}");
            Ok(())
        },
    )
    .await?;
    let delete = DeleteParams::default();
    scalers(&story.client, &story.namespace)
        .delete("web", &delete)
        .await?;
    eventually(
        "the history goes with its scaler",
        Duration::from_secs(60),
        async || {
            ensure!(histories.get_opt("web").await?.is_none(), "still there");
            Ok(())
        },
    )
    .await
}
