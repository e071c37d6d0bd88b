//! Ordinary HPAs of type Pods and Object on our custom metrics, through the real HPA controller.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    client::connect_as,
    load::Load,
    metrics::get_raw,
    objects::{hpa_object, hpa_pods},
    product::custom_metrics_available,
    replicas::Recorder,
    story::{self, Story},
    wait::eventually,
};
use serde_json::Value;

#[test]
fn hpas_of_type_pods_and_object_go_up_with_the_load_and_down_again() -> story::Outcome {
    story::run("hpa-pods", async |story| {
        custom_metrics_available(&story.client).await?;
        story.deploy_web("web", 1, &[]).await?;
        story.deploy_web("worker", 1, &[]).await?;
        let namespace = &story.namespace;
        story.apply(&hpa_pods(namespace, "web", 1, 4, 50)).await?;
        // The workers get no request themselves: they follow those of the web.
        story
            .apply(&hpa_object(namespace, "worker", "web", 4, 50))
            .await?;
        let web = Recorder::start(&story.client, namespace, "web");
        let worker = Recorder::start(&story.client, namespace, "worker");
        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "75s@140"];
        let load = Load::start(&story.client, namespace, "load", &args).await?;
        let begun = load.await_phase(0, 0, Duration::from_secs(20)).await?;

        for (name, recorder) in [("web", &web), ("worker", &worker)] {
            let up = eventually(
                &format!("the HPA of {name} asks for three replicas"),
                Duration::from_secs(60),
                async || {
                    let reached = recorder.reached(3, begun);
                    reached.with_context(|| format!("{:?}", recorder.changes()))
                },
            )
            .await?;
            let took = (up - begun) / 1000;
            story.say(&format!(
                "3 replicas of {name} {took} ms after the load's begin"
            ));
            ensure!(
                recorder.most() == 3,
                "140/50 needs three: {:?}",
                recorder.changes()
            );
        }
        each_pod_has_its_share(story).await?;
        load.stop().await?;
        for (name, recorder) in [("web", &web), ("worker", &worker)] {
            eventually(
                &format!("the HPA of {name} asks for one replica again"),
                Duration::from_secs(60),
                async || {
                    ensure!(recorder.current() == 1, "{:?}", recorder.changes());
                    Ok(())
                },
            )
            .await?;
        }
        Ok(())
    })
}

async fn each_pod_has_its_share(story: &Story) -> anyhow::Result<()> {
    eventually(
        "three pods share the load",
        Duration::from_secs(30),
        async || {
            let path = format!(
                "{}/pods/*/requests_per_second?labelSelector=app%3Dweb&metricLabelSelector=ebpfscaler.io%2Fwindow%3D10s",
                base(&story.namespace),
            );
            let list: Value = serde_json::from_str(&get_raw(&story.client, &path).await?)?;
            let items = list["items"].as_array().context("no items")?;
            let rates = items.iter().map(|item| rate(&item["value"]));
            let rates = rates.collect::<anyhow::Result<Vec<_>>>()?;
            let sum: f64 = rates.iter().sum();
            ensure!(rates.len() == 3 && (sum - 140.0).abs() < 5.0, "{rates:?}");
            Ok(())
        },
    )
    .await
}

fn base(namespace: &str) -> String {
    format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}")
}

/// A quantity as we write one.
fn rate(value: &Value) -> anyhow::Result<f64> {
    let text = value.as_str().context("no value")?;
    Ok(match text.strip_suffix('m') {
        Some(milli) => milli.parse::<f64>()? / 1000.0,
        None => text.parse()?,
    })
}

#[test]
fn custom_metrics_are_found_and_guarded() -> story::Outcome {
    story::run("custom", async |story| {
        eventually(
            "the APIServices are available",
            Duration::from_secs(60),
            async || custom_metrics_available(&story.client).await,
        )
        .await?;
        for version in ["v1beta2", "v1beta1"] {
            let path = format!("/apis/custom.metrics.k8s.io/{version}");
            let text = get_raw(&story.client, &path).await?;
            ensure!(text.contains("pods/requests_per_second"), "{text}");
        }
        let nobody = connect_as(&story.kubeconfig, "nobody").await?;
        let path = format!("{}/pods/*/requests_per_second", base(&story.namespace));
        match get_raw(&nobody, &path).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {}
            answer => anyhow::bail!("{answer:?} instead of 403"),
        }
        // Without pods there is no measurement, and the HPA controller's own right is enough to learn that.
        let controller = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
        let controller = connect_as(&story.kubeconfig, controller).await?;
        match get_raw(&controller, &path).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            answer => anyhow::bail!("{answer:?} instead of 404"),
        }
    })
}
