//! The product in a cluster: installing it as a user does, knowing when it is ready, and removing it.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use k8s_openapi::{
    api::apps::v1::{DaemonSet, Deployment},
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{Api, Client};
use tokio::process::Command;

use crate::{PRODUCT, client::root, wait::eventually};

/// The aggregated API that we serve.
pub const APISERVICE: &str = "v1beta1.external.metrics.k8s.io";

const WORKLOADS: [&str; 3] = [
    "daemonset/ebpf-scaler-agent",
    "deployment/ebpf-scaler-apiserver",
    "deployment/ebpf-scaler-operator",
];

/// `kubectl` for a cluster: the one that was built with the cluster, or else the user's.
pub fn kubectl(kubeconfig: &Path) -> Command {
    let cache =
        env::var_os("EBPF_SCALER_CACHE").map_or_else(|| root().join(".cache"), PathBuf::from);
    let ours = cache.join("kubernetes/bin/kubectl");
    let program = if ours.exists() {
        ours
    } else {
        PathBuf::from("kubectl")
    };
    let mut command = Command::new(program);
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .kill_on_drop(true);
    command
}

/// Runs `kubectl` and gives what it printed.
pub async fn run_kubectl(kubeconfig: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = kubectl(kubeconfig).args(args).output().await;
    let output = output.context("cannot run kubectl; is it installed?")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "kubectl {} ended with {}: {errors}",
            args.join(" "),
            output.status
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Applies a kustomization of this repository, such as `config/default`.
pub async fn apply_kustomization(kubeconfig: &Path, folder: &str) -> anyhow::Result<String> {
    let folder = root().join(folder).display().to_string();
    let args = ["apply", "--server-side", "--force-conflicts", "-k", &folder];
    run_kubectl(kubeconfig, &args).await
}

/// Deletes what a kustomization holds and waits until it is gone.
pub async fn delete_kustomization(kubeconfig: &Path, folder: &str) -> anyhow::Result<String> {
    let folder = root().join(folder).display().to_string();
    let args = [
        "delete",
        "--ignore-not-found",
        "--timeout=120s",
        "-k",
        &folder,
    ];
    run_kubectl(kubeconfig, &args).await
}

/// Replaces every pod of the product, so that it runs the images that were loaded last.
pub async fn restart(kubeconfig: &Path) -> anyhow::Result<()> {
    for workload in WORKLOADS {
        run_kubectl(kubeconfig, &["rollout", "restart", "-n", PRODUCT, workload]).await?;
    }
    for workload in WORKLOADS {
        let wait = [
            "rollout",
            "status",
            "--timeout=120s",
            "-n",
            PRODUCT,
            workload,
        ];
        run_kubectl(kubeconfig, &wait).await?;
    }
    Ok(())
}

/// Fails with what is not ready yet.
pub async fn ready(client: &Client) -> anyhow::Result<()> {
    let agents: Api<DaemonSet> = Api::namespaced(client.clone(), PRODUCT);
    let agents = agents
        .get("ebpf-scaler-agent")
        .await?
        .status
        .unwrap_or_default();
    ensure!(
        agents.desired_number_scheduled > 0
            && agents.number_ready == agents.desired_number_scheduled,
        "{} of {} agents are ready",
        agents.number_ready,
        agents.desired_number_scheduled,
    );
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), PRODUCT);
    for name in ["ebpf-scaler-apiserver", "ebpf-scaler-operator"] {
        let deployment = deployments.get(name).await?;
        let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let ready = deployment.status.and_then(|status| status.ready_replicas);
        let ready = ready.unwrap_or(0);
        ensure!(
            ready >= wanted,
            "{ready} of {wanted} replicas of {name} are ready"
        );
    }
    available(client).await
}

/// Fails with the reason why an aggregated API of ours is not available.
pub async fn available(client: &Client) -> anyhow::Result<()> {
    is_available(client, APISERVICE).await?;
    is_available(client, "v1alpha1.signals.ebpfscaler.io").await
}

/// The same of the custom metrics API.
pub async fn custom_metrics_available(client: &Client) -> anyhow::Result<()> {
    is_available(client, "v1beta2.custom.metrics.k8s.io").await?;
    is_available(client, "v1beta1.custom.metrics.k8s.io").await
}

async fn is_available(client: &Client, name: &str) -> anyhow::Result<()> {
    let services: Api<APIService> = Api::all(client.clone());
    let status = services.get(name).await?.status;
    let conditions = status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let available = conditions
        .iter()
        .find(|condition| condition.type_ == "Available");
    let available = available.with_context(|| format!("APIService {name} has no status yet"))?;
    ensure!(
        available.status == "True",
        "APIService {name} is not available: {}",
        available.message.as_deref().unwrap_or_default(),
    );
    Ok(())
}

/// Installs an overlay, unless everything is there and ready already, and waits until it is.
pub async fn ensure_installed(
    client: &Client,
    kubeconfig: &Path,
    overlay: &str,
) -> anyhow::Result<()> {
    if ready(client).await.is_ok() {
        return Ok(());
    }
    apply_kustomization(kubeconfig, overlay).await?;
    let limit = Duration::from_secs(120);
    eventually("the product is ready", limit, async || ready(client).await).await
}
