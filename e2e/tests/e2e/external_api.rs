//! The external metrics API as clients see it: through kube-apiserver, with its own discovery, values and errors.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    client::connect_as,
    load::Load,
    metrics::{external, external_path, get_raw, quantity, value},
    product::run_kubectl,
    story,
    wait::eventually,
};
use serde_json::Value;

#[test]
fn discovery_names_the_api() -> story::Outcome {
    story::run("discovery", async |story| {
        let text = get_raw(&story.client, "/apis/external.metrics.k8s.io/v1beta1").await?;
        let list: Value = serde_json::from_str(&text)?;
        ensure!(list["kind"] == "APIResourceList", "{text}");
        let resources = list["resources"].as_array().context("no resources")?;
        ensure!(
            !resources.is_empty(),
            "an empty list breaks clients: {text}"
        );
        ensure!(resources[0]["kind"] == "ExternalMetricValueList", "{text}");
        let groups = get_raw(&story.client, "/apis").await?;
        ensure!(groups.contains("external.metrics.k8s.io"), "{groups}");
        let list = resources.iter().map(|r| r["name"].as_str());
        ensure!(list.clone().any(|name| name == Some("requests_per_second")));
        // What kube-apiserver has made of our discovery and OpenAPI: both come some seconds after the APIService.
        eventually(
            "kube-apiserver passes on what we tell of ourselves",
            Duration::from_secs(90),
            async || {
                let v3 = get_raw(&story.client, "/openapi/v3").await?;
                let v3: Value = serde_json::from_str(&v3)?;
                let url = &v3["paths"]["apis/external.metrics.k8s.io/v1beta1"]["serverRelativeURL"];
                let url = url.as_str().context("not in /openapi/v3")?;
                let spec = get_raw(&story.client, url).await?;
                ensure!(spec.contains("ExternalMetricValueList"), "{spec}");
                let v2 = get_raw(&story.client, "/openapi/v2").await?;
                ensure!(
                    v2.contains("external_metrics.v1beta1.ExternalMetricValueList"),
                    "not in /openapi/v2"
                );
                Ok(())
            },
        )
        .await?;
        let table = run_kubectl(
            &story.kubeconfig,
            &["api-resources", "--api-group=external.metrics.k8s.io"],
        )
        .await?;
        ensure!(table.contains("requests_per_second"), "{table}");
        Ok(())
    })
}

#[test]
fn a_value_is_what_the_load_is() -> story::Outcome {
    story::run("value", async |story| {
        story.deploy_web("web", 2, &[]).await?;
        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "25s@40"];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;
        load.await_phase(0, 0, Duration::from_secs(20)).await?;

        eventually(
            "10 s of 40 requests/s are 40",
            Duration::from_secs(20),
            async || {
                // By a pod label, as set-based selectors are written.
                let selector = "app in (web,other),ebpfscaler.io/window=10s";
                let list = external(
                    &story.client,
                    &story.namespace,
                    "requests_per_second",
                    selector,
                )
                .await?;
                ensure!(list.kind == "ExternalMetricValueList", "kind {}", list.kind);
                ensure!(list.api_version == "external.metrics.k8s.io/v1beta1");
                ensure!(
                    list.items.len() == 1,
                    "the HPA sums items, so there is one: {list:?}"
                );
                let rate = quantity(&list.items[0].value)?;
                ensure!((rate - 40.0).abs() < 1.0, "{rate} requests/s");
                Ok(())
            },
        )
        .await?;
        for (metric, least) in [
            ("network_receive_bytes_per_second", 1000.0),
            ("request_latency_p99_microseconds", 1.0),
        ] {
            let selector = "ebpfscaler.io/deployment=web,ebpfscaler.io/window=3s";
            let found = value(&story.client, &story.namespace, metric, selector).await?;
            ensure!(found >= least, "{metric} is {found}");
        }
        load.finished(Duration::from_secs(40)).await?;
        eventually(
            "without load the rate is a true zero",
            Duration::from_secs(10),
            async || {
                let selector = "ebpfscaler.io/deployment=web,ebpfscaler.io/window=3s";
                let rate = value(
                    &story.client,
                    &story.namespace,
                    "requests_per_second",
                    selector,
                )
                .await?;
                ensure!(rate == 0.0, "{rate} requests/s");
                Ok(())
            },
        )
        .await
    })
}

#[test]
fn wrong_questions_get_useful_errors() -> story::Outcome {
    story::run("errors", async |story| {
        for (metric, selector, code, hint) in [
            ("no_such_metric", "app=web", 404, "no_such_metric"),
            ("requests_per_second", "app in (web", 400, ""),
            (
                "requests_per_second",
                "app=web,ebpfscaler.io/window=7s",
                400,
                "30s",
            ),
        ] {
            let answer = external(&story.client, &story.namespace, metric, selector).await;
            let Err(kube::Error::Api(status)) = answer else {
                anyhow::bail!("{metric} of {selector}: {answer:?} instead of {code}");
            };
            ensure!(status.code == code, "{metric} of {selector}: {status:?}");
            ensure!(
                status.message.contains(hint),
                "the message does not help: {status:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_user_without_rights_is_refused() -> story::Outcome {
    story::run("forbidden", async |story| {
        let nobody = connect_as(&story.kubeconfig, "nobody").await?;
        let path = external_path(&story.namespace, "requests_per_second", "app=web");
        match get_raw(&nobody, &path).await {
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
            answer => anyhow::bail!("{answer:?} instead of 403"),
        }
    })
}
