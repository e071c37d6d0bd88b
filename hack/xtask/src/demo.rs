//! `cargo xtask demo`: a real cluster, the product as a user installs it, and one cycle of real load on two
//! samples, shown live and ended with numbers. The set-up is shared with the benches.

mod cycle;
mod report;
mod view;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{client, product, wait::eventually};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::DeleteParams};

use crate::{
    cluster::{Cluster, Provider, UpOptions},
    steps::{Steps, xtask},
};

/// The samples' namespace; its manifests are in config/demo.
pub const NAMESPACE: &str = "ebpf-scaler-demo";

#[derive(clap::Args)]
pub struct Args {
    /// Write the measured numbers to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Leave the samples in place when the demo is interrupted or fails
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    target: Target,
}

/// The cluster to work on.
#[derive(clap::Args, Clone)]
pub struct Target {
    /// The cluster's name
    #[arg(long, default_value = "demo")]
    name: String,
    /// How the cluster is made
    #[arg(long, value_enum, default_value = "auto")]
    provider: Provider,
    /// Consent to the use of a cluster that is not ours (provider existing)
    #[arg(long)]
    yes: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut steps = Steps::new("demo");
    let kubeconfig = set_up(&mut steps, &runtime, &args.target)?;
    runtime.block_on(async {
        let client = client::connect(&kubeconfig).await?;
        let shown = tokio::select! {
            shown = show(&client, &kubeconfig, &args) => shown,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        if shown.is_err() && !args.keep {
            println!("\nremoving the samples (namespace {NAMESPACE}); the cluster stays up: make demo-down");
            remove_namespace(&client, NAMESPACE).await?;
        }
        shown
    })
}

/// Cluster, images and product: everything that takes time once. Returns the kubeconfig.
pub fn set_up(
    steps: &mut Steps,
    runtime: &tokio::runtime::Runtime,
    target: &Target,
) -> anyhow::Result<PathBuf> {
    let cluster = steps.step("bring a cluster up", || {
        Cluster::up(&UpOptions {
            name: target.name.clone(),
            provider: target.provider,
            nodes: 1,
            yes: target.yes,
        })
    })?;
    steps.run(
        "build the images and load them",
        &mut xtask(&["image", "--cluster", &target.name])?,
    )?;
    let kubeconfig = cluster.kubeconfig().to_owned();
    steps.step("install: kubectl apply -k config/default", || {
        runtime.block_on(install(&kubeconfig))
    })?;
    Ok(kubeconfig)
}

async fn install(kubeconfig: &Path) -> anyhow::Result<()> {
    let client = client::connect(kubeconfig).await?;
    let was_there = product::ready(&client).await.is_ok();
    let applied = product::apply_kustomization(kubeconfig, "config/default").await?;
    println!("    {} objects applied", applied.lines().count());
    if was_there {
        // The images' tag does not tell that they are new.
        product::restart(kubeconfig).await?;
    }
    let mut last = String::new();
    eventually(
        "the product is ready",
        Duration::from_secs(180),
        async || {
            let state = product::ready(&client).await;
            if let Err(error) = &state {
                let text = format!("{error:#}");
                if text != last {
                    println!("    waiting: {text}");
                    last = text;
                }
            }
            state
        },
    )
    .await?;
    println!(
        "    agents, apiservers and operators are ready; the external metrics API is available"
    );
    Ok(())
}

async fn show(client: &Client, kubeconfig: &Path, args: &Args) -> anyhow::Result<()> {
    println!("\n==> deploy the samples: kubectl apply -k config/demo");
    remove_namespace(client, NAMESPACE).await?;
    product::apply_kustomization(kubeconfig, "config/demo").await?;
    for name in [cycle::WEB, cycle::WEB_HPA] {
        eventually(
            &format!("{name} has its 2 replicas"),
            Duration::from_secs(90),
            async || {
                let deployments: Api<k8s_openapi::api::apps::v1::Deployment> =
                    Api::namespaced(client.clone(), NAMESPACE);
                let status = deployments.get(name).await?.status.unwrap_or_default();
                let ready = status.ready_replicas.unwrap_or(0);
                ensure!(ready >= 2, "{ready} are ready");
                Ok(())
            },
        )
        .await?;
    }
    println!("    both samples are ready; both scale down after stabilizationWindowSeconds: 15");
    let measured = cycle::run(client).await?;
    let report = report::Report::of(&measured);
    report.print(kubeconfig);
    if let Some(path) = &args.json {
        let text = serde_json::to_string(&report)?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("\n    numbers written to {}", path.display());
    }
    report.verdict()
}

/// Deletes a namespace and waits until it is gone. One that is not there is no error.
pub async fn remove_namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(name).await?.is_none() {
        return Ok(());
    }
    namespaces.delete(name, &DeleteParams::default()).await?;
    eventually(
        &format!("namespace {name} is gone"),
        Duration::from_secs(90),
        async || {
            ensure!(
                namespaces.get_opt(name).await?.is_none(),
                "it is still there"
            );
            Ok(())
        },
    )
    .await
}
