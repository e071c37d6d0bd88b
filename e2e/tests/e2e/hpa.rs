//! An ordinary HPA scales up and down on our external metric.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{load::Load, objects::hpa, replicas::Recorder, story, wait::eventually};

#[test]
fn up_with_the_load_and_down_again() -> story::Outcome {
    story::run("hpa", async |story| {
        story.deploy_web("web", 1, &[]).await?;
        story
            .apply(&hpa(&story.namespace, "web", 1, 4, "3s", 50))
            .await?;
        let recorder = Recorder::start(&story.client, &story.namespace, "web");
        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "60s@140"];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;
        let begun = load.await_phase(0, 0, Duration::from_secs(20)).await?;

        let up = eventually(
            "the HPA asks for three replicas",
            Duration::from_secs(50),
            async || {
                recorder
                    .reached(3, begun)
                    .with_context(|| format!("{:?}", recorder.changes()))
            },
        )
        .await?;
        story.say(&format!(
            "3 replicas {} ms after the load's begin",
            (up - begun) / 1000
        ));
        ensure!(
            recorder.most() == 3,
            "140/50 needs three: {:?}",
            recorder.changes()
        );
        load.stop().await?;

        eventually(
            "the HPA asks for one replica again",
            Duration::from_secs(60),
            async || {
                ensure!(recorder.current() == 1, "{:?}", recorder.changes());
                Ok(())
            },
        )
        .await
    })
}
