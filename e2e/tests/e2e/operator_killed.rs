//! The leading operator is killed: the other one takes over and scales; nothing changes meanwhile.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{PRODUCT, load::Load, product, story, wait::eventually};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use crate::steady::{NEEDED, four_replicas, kill};

#[test]
fn the_other_operator_takes_over() -> story::Outcome {
    story::run("operator-killed", async |story| {
        let (load, recorder) = four_replicas(story, 90).await?;
        let leases: Api<Lease> = Api::namespaced(story.client.clone(), PRODUCT);
        let holder = async || -> anyhow::Result<String> {
            let lease = leases.get("ebpf-scaler-operator").await?;
            lease
                .spec
                .and_then(|spec| spec.holder_identity)
                .context("nobody leads")
        };
        let leader = holder().await?;
        kill(story, &leader).await?;

        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "60s@230"];
        let more = Load::start(&story.client, &story.namespace, "more", &args).await?;
        let step = more.await_phase(0, 0, Duration::from_secs(20)).await?;
        let next = eventually(
            "another operator leads",
            Duration::from_secs(40),
            async || {
                let next = holder().await?;
                ensure!(next != leader, "{next} still leads");
                Ok(next)
            },
        )
        .await?;
        story.say(&format!("{next} leads"));
        eventually(
            "eight replicas for more than twice the load",
            Duration::from_secs(40),
            async || {
                recorder
                    .reached(8, step)
                    .with_context(|| format!("{:?}", recorder.changes()))
            },
        )
        .await?;
        let least = recorder
            .changes()
            .iter()
            .rev()
            .map(|change| change.replicas)
            .take_while(|&replicas| replicas != 2)
            .min();
        ensure!(
            least.is_none_or(|least| least >= 3),
            "scaled down: {:?}",
            recorder.changes()
        );
        ensure!(
            recorder.current() >= NEEDED,
            "scaled down: {:?}",
            recorder.changes()
        );
        eventually(
            "the operator is replaced",
            Duration::from_secs(60),
            async || product::ready(&story.client).await,
        )
        .await?;
        load.stop().await?;
        more.stop().await.map(drop)
    })
}
