//! Beside KEDA: its operator and metrics adapter scale through us while an HPA scales on ours, the adapter goes away and
//! comes back, and KEDA's writing to our APIService is noticed. Run with `cargo xtask test keda`, which builds KEDA.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    PRODUCT,
    client::connect_as,
    load::Load,
    metrics::{component_pods, external, external_path, get_raw, scrape, sum},
    objects::hpa,
    product::{apply_kustomization, available, run_kubectl},
    replicas::Recorder,
    story::{self, Story},
    wait::eventually,
};
use serde_json::{Value, json};

/// Where KEDA's manifests lie.
const MANIFESTS: &str = "EBPF_SCALER_E2E_KEDA";
const V1: &str = "/apis/external.metrics.k8s.io/v1beta1";

#[test]
fn keda_scales_through_us_while_an_hpa_scales_on_ours() -> story::Outcome {
    story::run("keda", async |story| {
        install(story).await?;
        let namespace = &story.namespace;
        story.deploy_web("web", 1, &[]).await?;
        story.deploy_web("batch", 1, &[]).await?;
        story.apply(&hpa(namespace, "web", 1, 3, "3s", 50)).await?;
        story.apply(&scaled_object(namespace)).await?;
        let web = Recorder::start(&story.client, namespace, "web");
        let batch = Recorder::start(&story.client, namespace, "batch");
        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "90s@140"];
        let load = Load::start(&story.client, namespace, "load", &args).await?;
        let begun = load.await_phase(0, 0, Duration::from_secs(30)).await?;
        // KEDA counts the web's pods, so it follows.
        for (name, recorder) in [("web", &web), ("batch", &batch)] {
            let up = eventually(
                &format!("{name} has three replicas"),
                Duration::from_secs(80),
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
        }
        load.stop().await?;
        for (name, recorder) in [("web", &web), ("batch", &batch)] {
            eventually(
                &format!("{name} has one replica again"),
                Duration::from_secs(120),
                async || {
                    ensure!(recorder.current() == 1, "{:?}", recorder.changes());
                    Ok(())
                },
            )
            .await?;
            story.say(&format!("one replica of {name} again"));
        }
        without_the_adapter(story).await?;
        least_rights(story).await?;
        contested(story).await?;
        // Its finalizer needs KEDA.
        let delete = [
            "delete",
            "scaledobject",
            "batch",
            "-n",
            namespace,
            "--timeout=60s",
        ];
        run_kubectl(&story.kubeconfig, &delete).await.map(drop)
    })
}

/// As docs/coexist.md says.
async fn install(story: &Story) -> anyhow::Result<()> {
    let folder = std::env::var_os(MANIFESTS).map(PathBuf::from);
    let folder =
        folder.with_context(|| format!("{MANIFESTS} is not set: run `cargo xtask test keda`"))?;
    apply_kustomization(&story.kubeconfig, &folder.display().to_string()).await?;
    let ca = eventually("KEDA has a CA", Duration::from_secs(90), async || {
        let get = ["get", "secret", "-n", "keda", "kedaorg-certs", "-o", "json"];
        let secret: Value = serde_json::from_str(&run_kubectl(&story.kubeconfig, &get).await?)?;
        let ca = secret["data"]["ca.crt"]
            .as_str()
            .filter(|ca| !ca.is_empty());
        let ca: k8s_openapi::ByteString = serde_json::from_value(json!(ca.context("not yet")?))?;
        Ok(String::from_utf8(ca.0)?)
    })
    .await?;
    story
        .apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "ebpf-scaler-delegate-ca", "namespace": PRODUCT},
            "data": {"ca.crt": ca},
        }))
        .await?;
    for deployment in ["keda-operator", "keda-metrics-apiserver"] {
        rolled_out(story, "keda", deployment).await?;
    }
    apply_kustomization(&story.kubeconfig, "config/e2e-keda").await?;
    rolled_out(story, PRODUCT, "ebpf-scaler-apiserver").await?;
    eventually(
        "both providers are told of",
        Duration::from_secs(60),
        async || {
            let told = get_raw(&story.client, V1).await?;
            ensure!(
                told.contains("requests_per_second"),
                "ours are missing: {told}"
            );
            ensure!(
                told.contains("\"externalmetrics\""),
                "KEDA's are missing: {told}"
            );
            Ok(())
        },
    )
    .await?;
    story.say("KEDA's metrics adapter is behind us");
    Ok(())
}

async fn rolled_out(story: &Story, namespace: &str, deployment: &str) -> anyhow::Result<()> {
    let name = format!("deployment/{deployment}");
    let args = [
        "rollout",
        "status",
        "--timeout=180s",
        "-n",
        namespace,
        &name,
    ];
    run_kubectl(&story.kubeconfig, &args).await.map(drop)
}

fn scaled_object(namespace: &str) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": {"name": "batch", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"name": "batch"},
            "minReplicaCount": 1, "maxReplicaCount": 5, "pollingInterval": 5,
            "advanced": {"horizontalPodAutoscalerConfig": {
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 3}},
            }},
            "triggers": [{
                "type": "kubernetes-workload",
                "metadata": {"podSelector": "app=web", "value": "1"},
            }],
        },
    })
}

/// The adapter is gone: its metrics are an error, ours and the APIService are as before; then it is back.
async fn without_the_adapter(story: &Story) -> anyhow::Result<()> {
    let name = "deployment/keda-metrics-apiserver";
    let get = ["get", "scaledobject", "batch", "-n", &story.namespace];
    let metric = [
        &get[..],
        &["-o", "jsonpath={.status.externalMetricNames[0]}"],
    ]
    .concat();
    let metric = run_kubectl(&story.kubeconfig, &metric).await?;
    let theirs = async || {
        let selector = "scaledobject.keda.sh/name=batch";
        let path = external_path(&story.namespace, &metric, selector);
        // Our client would try a 503 again by itself.
        run_kubectl(&story.kubeconfig, &["get", "--raw", &path]).await
    };
    let value = theirs().await.context("the adapter's metric through us")?;
    ensure!(value.contains(&metric), "{value}");
    for (replicas, answers) in [("0", false), ("1", true)] {
        let replicas = format!("--replicas={replicas}");
        let scale = ["scale", "-n", "keda", name, replicas.as_str()];
        run_kubectl(&story.kubeconfig, &scale).await?;
        eventually(
            &format!("the adapter answers: {answers}"),
            Duration::from_secs(90),
            async || {
                match theirs().await {
                    Ok(_) => ensure!(answers, "still there"),
                    Err(error) => {
                        let told = error.to_string();
                        let unavailable = told.contains("ServiceUnavailable");
                        ensure!(!answers && unavailable, "{told}");
                    }
                }
                Ok(())
            },
        )
        .await?;
        available(&story.client).await?;
        let selector = "ebpfscaler.io/deployment=web";
        external(
            &story.client,
            &story.namespace,
            "requests_per_second",
            selector,
        )
        .await?;
    }
    story.say("the adapter went and came back; ours did not notice");
    Ok(())
}

/// Our service account may list external metrics now, and nothing of KEDA's.
async fn least_rights(story: &Story) -> anyhow::Result<()> {
    let user = format!("system:serviceaccount:{PRODUCT}:ebpf-scaler-apiserver");
    let apiserver = connect_as(&story.kubeconfig, &user).await?;
    external(&apiserver, &story.namespace, "requests_per_second", "").await?;
    for path in [
        "/api/v1/namespaces/keda/secrets/kedaorg-certs",
        "/apis/keda.sh/v1alpha1/scaledobjects",
    ] {
        match get_raw(&apiserver, path).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {}
            answer => anyhow::bail!("{path}: {answer:?} instead of 403"),
        }
    }
    Ok(())
}

/// KEDA as it is installed by default writes its CA into our APIService: the operator says so, until KEDA is told not to.
async fn contested(story: &Story) -> anyhow::Result<()> {
    let patch = async |value: &str| {
        let flag = format!("--enable-apiservice-patching={value}");
        let get = [
            "get",
            "deployment",
            "keda-operator",
            "-n",
            "keda",
            "-o",
            "json",
        ];
        let deployment: Value = serde_json::from_str(&run_kubectl(&story.kubeconfig, &get).await?)?;
        let args = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
        let args = args.as_array().context("no args")?.iter().cloned();
        let others = args.filter(|arg| !arg.to_string().contains("apiservice-patching"));
        let args: Vec<_> = others.chain([json!(flag)]).collect();
        let patch = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}]);
        let text = patch.to_string();
        let args = [
            "patch",
            "deployment",
            "keda-operator",
            "-n",
            "keda",
            "--type=json",
            "-p",
            &text,
        ];
        run_kubectl(&story.kubeconfig, &args).await.map(drop)
    };
    let gauge = async || -> anyhow::Result<f64> {
        let mut all = 0.0;
        for pod in component_pods(&story.client, "operator").await? {
            let samples = scrape(&story.client, &pod.metadata.name.unwrap_or_default()).await?;
            all += sum(&samples, "ebpf_scaler_operator_api_service_contested", &[]).unwrap_or(0.0);
        }
        Ok(all)
    };
    ensure!(gauge().await? == 0.0, "it is contested already");
    for (patching, contested) in [("true", 1.0), ("false", 0.0)] {
        patch(patching).await?;
        rolled_out(story, "keda", "keda-operator").await?;
        eventually(
            &format!("contested: {contested}"),
            Duration::from_secs(120),
            async || {
                let now = gauge().await?;
                ensure!(now == contested, "{now}");
                Ok(())
            },
        )
        .await?;
    }
    eventually("available again", Duration::from_secs(60), async || {
        available(&story.client).await
    })
    .await?;
    story.say("KEDA's writing to our APIService was noticed, and its end too");
    Ok(())
}
