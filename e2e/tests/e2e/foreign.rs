//! A pause, a schedule's floor, and somebody who writes the same replicas: what is done, and what is told.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    objects::{deployment, request_rate, scaler, scalers, web_container},
    replicas::Recorder,
    story::{self, Story},
    wait::eventually,
};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn pauses_schedules_and_foreign_writes_are_respected_and_told() -> story::Outcome {
    story::run("foreign", async |story| {
        let web = deployment(&story.namespace, "web", 1, &[web_container(&[])]);
        story.apply(&web).await?;
        let recorder = Recorder::start(&story.client, &story.namespace, "web");
        let ours = scaler(&story.namespace, "web", 1, 10, request_rate(50));
        story.apply(&ours).await?;

        set(story, json!({"pause": {"replicas": 2}})).await?;
        reach(&recorder, 2).await?;
        told(story, "ScalingActive", "False", "Paused", "paused").await?;

        let always =
            json!([{"name": "always", "start": "* * * * *", "duration": "2m", "minReplicas": 3}]);
        set(story, json!({"pause": null, "schedules": always})).await?;
        reach(&recorder, 3).await?;
        told(
            story,
            "ScalingLimited",
            "True",
            "TooFewReplicas",
            "schedule always asks for at least 3",
        )
        .await?;

        let bad =
            json!([{"name": "bad", "start": "0 25 * * *", "duration": "1h", "minReplicas": 9}]);
        set(story, json!({"schedules": bad})).await?;
        told(
            story,
            "Ready",
            "False",
            "InvalidSchedule",
            "spec.schedules[0].start",
        )
        .await?;
        set(story, json!({"schedules": always})).await?;

        // Somebody insists on one replica. The first times it is raised again, then no more.
        for turn in 1..=3 {
            reach(&recorder, 3).await?;
            by_hand(story, 1).await?;
            if turn == 1 {
                told(
                    story,
                    "ExternallyModified",
                    "True",
                    "ReplicasChanged",
                    "by-hand changed replicas from 3 to 1",
                )
                .await?;
            }
        }
        told(
            story,
            "AbleToScale",
            "False",
            "HeldAfterReverts",
            "by-hand undid 3 writes",
        )
        .await?;
        let changes = recorder.changes().len();
        tokio::time::sleep(Duration::from_secs(5)).await;
        ensure!(
            recorder.current() == 1 && recorder.changes().len() == changes,
            "written although it was to hold: {:?}",
            recorder.changes()
        );
        Ok(())
    })
}

async fn set(story: &Story, spec: Value) -> anyhow::Result<()> {
    let api = scalers(&story.client, &story.namespace);
    let patch = Patch::Merge(json!({"spec": spec}));
    api.patch("web", &PatchParams::default(), &patch)
        .await
        .context("cannot change the EbpfScaler")?;
    Ok(())
}

async fn by_hand(story: &Story, replicas: i32) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(story.client.clone(), &story.namespace);
    let params = PatchParams {
        field_manager: Some("by-hand".into()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    api.patch_scale("web", &params, &patch)
        .await
        .context("cannot scale by hand")?;
    Ok(())
}

async fn reach(recorder: &Recorder, replicas: u32) -> anyhow::Result<()> {
    eventually(&format!("{replicas} replicas"), SOON, async || {
        ensure!(recorder.current() == replicas, "{:?}", recorder.changes());
        Ok(())
    })
    .await
}

/// Waits for a condition of the scaler.
async fn told(
    story: &Story,
    type_: &str,
    status: &str,
    reason: &str,
    text: &str,
) -> anyhow::Result<()> {
    let api = scalers(&story.client, &story.namespace);
    eventually(
        &format!("{type_} is {status} for {reason}"),
        SOON,
        async || {
            let object = api.get("web").await?;
            let conditions = object.data["status"]["conditions"].as_array().cloned();
            let all = conditions.unwrap_or_default();
            let one = all.iter().find(|c| c["type"] == type_);
            let fits = one.is_some_and(|c| {
                c["status"] == status
                    && c["reason"] == reason
                    && c["message"].as_str().is_some_and(|m| m.contains(text))
            });
            ensure!(fits, "it is {one:?}");
            Ok(())
        },
    )
    .await
}
