//! What an administrator does to the API server role on a working day, and what happens to it on a bad one: a rolling
//! update while the CA is replaced, then one of two replicas killed. Meanwhile questions are asked without a pause, and
//! the HPA controller evaluates. Nothing may be noticed, but for the moment between a kill and its discovery.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    PRODUCT,
    availability::{Evaluations, Questions, StaysAvailable},
    load::Load,
    metrics::component_pods,
    objects::hpa,
    process,
    product::{self, run_kubectl},
    story::{self, Story},
    wait::eventually,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{Api, api::DeleteParams};
use serde_json::json;
use tokio::time::Instant;

const APISERVER: &str = "deployment/ebpf-scaler-apiserver";
/// Requests a second, which each answer has to tell.
const RATE: f64 = 40.0;
/// HPAs: with the controller's 15 s there is more than one evaluation each second and a half.
const HPAS: usize = 12;
/// From the kill of a process until kubelet has seen it and kube-apiserver has heard of it.
const DISCOVERY: Duration = Duration::from_secs(5);

#[test]
fn questions_and_hpas_notice_neither_update_nor_rotation_and_a_crash_for_a_moment() -> story::Outcome
{
    story::run("availability", async |story| {
        story.deploy_web("web", 2, &[]).await?;
        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "150s@40"];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;
        load.await_phase(0, 0, Duration::from_secs(20)).await?;
        for n in 0..HPAS {
            start_hpa(story, n).await?;
        }
        let evaluations =
            Evaluations::begin(&story.client, &story.kubeconfig, &story.namespace, HPAS).await?;
        story.say("all HPAs are active");
        let available = StaysAvailable::begin(&story.client).await?;
        let questions = Questions::start(&story.kubeconfig, &story.namespace, "web", RATE).await?;

        let (old, signed) = (ca(story).await?, certificate(story).await?);
        secrets(story)
            .delete("ebpf-scaler-ca", &DeleteParams::default())
            .await?;
        let restart = ["rollout", "restart", "-n", PRODUCT, APISERVER];
        run_kubectl(&story.kubeconfig, &restart).await?;
        bundle_reaches_agents(story, &old).await?;
        let wait = [
            "rollout",
            "status",
            "--timeout=120s",
            "-n",
            PRODUCT,
            APISERVER,
        ];
        run_kubectl(&story.kubeconfig, &wait).await?;
        story.say("all replicas are new");
        eventually("the new CA signs", Duration::from_secs(60), async || {
            ensure!(certificate(story).await? != signed, "not yet");
            Ok(())
        })
        .await?;
        story.say("the serving certificate is of a new CA");
        // Handshakes with it: kept connections do not notice a new certificate.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let asked = questions.so_far();
        ensure!(
            asked.failed.is_empty(),
            "questions failed: {:?}",
            asked.failed
        );
        evaluations.none_failed().await?;
        story.say(&format!("{} questions answered", asked.answered));

        let pods = component_pods(&story.client, "apiserver").await?;
        let killed = pods.first().context("no replica runs")?;
        let killed_at = Instant::now();
        process::kill_container(killed)?;
        story.say("killed the process of a replica");
        eventually("the replica is back", Duration::from_secs(60), async || {
            product::ready(&story.client).await
        })
        .await?;
        evaluations.a_round().await;
        let asked = questions.finish().await;
        let late: Vec<_> = asked
            .failed
            .iter()
            .filter(|failed| failed.asked > killed_at + DISCOVERY)
            .collect();
        ensure!(late.is_empty(), "failed long after the kill: {late:?}");
        let last = asked.failed.iter().map(|f| f.asked - killed_at).max();
        story.say(&format!(
            "{} questions answered, {} of them at a second attempt, {} failed, all until {:?} after the kill",
            asked.answered,
            asked.put_off,
            asked.failed.len(),
            last.unwrap_or_default()
        ));
        story.say(&evaluations.tell(killed_at, DISCOVERY).await?);
        available.finish(&story.client).await?;
        load.stop().await?;
        replace(story, killed).await
    })
}

/// Has another pod in place of this one: later stories ask that nothing was ever restarted.
async fn replace(story: &Story, pod: &Pod) -> anyhow::Result<()> {
    let meta = &pod.metadata;
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    let (namespace, name) = namespace.zip(name).context("a pod without a name")?;
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), namespace);
    pods.delete(name, &DeleteParams::default()).await?;
    eventually(
        "another replica has taken its place",
        Duration::from_secs(60),
        async || {
            ensure!(pods.get_opt(name).await?.is_none(), "{name} is still there");
            product::ready(&story.client).await
        },
    )
    .await
}

/// An HPA on what `web` does, whose own target has no running pod: a metric of type External with an average value
/// is divided by the replicas that are asked for.
async fn start_hpa(story: &Story, n: usize) -> anyhow::Result<()> {
    let name = format!("idle-{n}");
    story
        .apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": story.namespace},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "schedulingGates": [{"name": "ebpfscaler.io/never"}],
                        "containers": [{"name": "none", "image": "none"}],
                    },
                },
            },
        }))
        .await?;
    let mut hpa = hpa(&story.namespace, &name, 1, 1, "10s", 50);
    hpa["spec"]["metrics"][0]["external"]["metric"]["selector"]["matchLabels"]["ebpfscaler.io/deployment"] =
        json!("web");
    story.apply(&hpa).await?;
    // They are evaluated every 15 s from when they are made: not all at once.
    tokio::time::sleep(Duration::from_secs(15) / HPAS as u32).await;
    Ok(())
}

fn secrets(story: &Story) -> Api<Secret> {
    Api::namespaced(story.client.clone(), PRODUCT)
}

/// The certificate of the CA that signs.
async fn ca(story: &Story) -> anyhow::Result<String> {
    let bundle = bundle(story).await?;
    let first = bundle.split_inclusive("-----END CERTIFICATE-----").next();
    Ok(first.context("the bundle is empty")?.trim().to_owned())
}

async fn bundle(story: &Story) -> anyhow::Result<String> {
    let bundles: Api<ConfigMap> = Api::namespaced(story.client.clone(), PRODUCT);
    let data = bundles.get("ebpf-scaler-ca-bundle").await?.data;
    let data = data.unwrap_or_default();
    data.into_values().next().context("the bundle is empty")
}

/// The serving certificate.
async fn certificate(story: &Story) -> anyhow::Result<Vec<u8>> {
    let secret = secrets(story).get("ebpf-scaler-apiserver-tls").await?;
    let mut data = secret.data.unwrap_or_default();
    Ok(data.remove("tls.crt").context("no tls.crt")?.0)
}

/// Waits for the bundle with both CAs. Kubelets refresh what is mounted within a minute, and at once when the pod
/// changes; the CA of the tests signs sooner than a minute.
async fn bundle_reaches_agents(story: &Story, old: &str) -> anyhow::Result<()> {
    eventually(
        "both CAs are published",
        Duration::from_secs(30),
        async || {
            let now = bundle(story).await?;
            ensure!(now.contains(old) && !now.starts_with(old), "not yet");
            Ok(())
        },
    )
    .await?;
    story.say("both CAs are published");
    let agents = "app.kubernetes.io/component=agent";
    let time = format!(
        "e2e.ebpfscaler.io/touched={}",
        ebpf_scaler_e2e::unix_micros()
    );
    let annotate = [
        "annotate",
        "pods",
        "-n",
        PRODUCT,
        "-l",
        agents,
        "--overwrite",
        &time,
    ];
    run_kubectl(&story.kubeconfig, &annotate).await.map(drop)
}
