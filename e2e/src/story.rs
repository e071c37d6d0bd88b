//! The frame of every test: the cluster, the installed product, and a namespace of its own that goes away
//! afterwards. A failure prints the state of everything that took part.

use std::{
    env,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Namespace};
use kube::{Api, Client, api::DeleteParams};
use serde_json::{Value, json};

use crate::{
    client::connect,
    diagnose,
    objects::{apply, deployment, service, web_container},
    product,
    wait::eventually,
};

/// Where the tests find their cluster.
pub const KUBECONFIG: &str = "EBPF_SCALER_E2E_KUBECONFIG";
/// What the tests install.
pub const OVERLAY: &str = "config/e2e";
/// Marks the tests' namespaces.
const LABEL: &str = "ebpf-scaler-e2e";

/// How a test ended.
pub type Outcome = Result<(), Failed>;

/// Why a test failed, as a person wants to read it: without a backtrace through the async runtime.
pub struct Failed(String);

impl std::fmt::Debug for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a test works with.
#[derive(Clone)]
pub struct Story {
    /// The cluster's administrator.
    pub client: Client,
    /// File of the cluster's administrator.
    pub kubeconfig: PathBuf,
    /// The test's own namespace.
    pub namespace: String,
    begun: Instant,
}

/// Runs a test on the cluster with the product installed.
///
/// # Errors
/// What the test returns, or that there is no cluster to run on: a test is never skipped.
pub fn run(name: &str, test: impl AsyncFnOnce(&Story) -> anyhow::Result<()>) -> Outcome {
    run_on_cluster(name, test).map_err(|error| Failed(format!("{error:#}")))
}

fn run_on_cluster(
    name: &str,
    test: impl AsyncFnOnce(&Story) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let kubeconfig = env::var_os(KUBECONFIG)
            .map(PathBuf::from)
            .with_context(|| {
                format!(
                    "{KUBECONFIG} is not set: run `cargo xtask test e2e`, which brings a cluster up"
                )
            })?;
        let client = connect(&kubeconfig).await?;
        product::ensure_installed(&client, &kubeconfig, OVERLAY).await?;
        let namespace = format!("e2e-{name}-{:04x}", std::process::id() & 0xffff);
        let story = Story {
            client,
            kubeconfig,
            namespace,
            begun: Instant::now(),
        };
        story.create_namespace().await?;
        let result = test(&story).await;
        if let Err(error) = &result {
            eprintln!("\n=== {name} failed: {error:#}");
            diagnose::print(&story.kubeconfig, &story.namespace).await;
        }
        story.delete_namespace().await?;
        result
    })
}

impl Story {
    /// Tells what goes on, with the time since the test began.
    pub fn say(&self, what: &str) {
        eprintln!("    {:>5.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Creates or changes an object.
    pub async fn apply(&self, object: &Value) -> anyhow::Result<()> {
        apply(&self.client, object).await.map(drop)
    }

    /// Deploys the sample web server behind a Service and waits until all of it is ready.
    pub async fn deploy_web(&self, name: &str, replicas: u32, args: &[&str]) -> anyhow::Result<()> {
        let container = web_container(args);
        self.deploy(
            &deployment(&self.namespace, name, replicas, &[container]),
            8080,
        )
        .await
    }

    /// Applies a Deployment with a Service in front of it and waits until all of it is ready.
    pub async fn deploy(&self, deployment: &Value, port: u16) -> anyhow::Result<()> {
        let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
        self.apply(deployment).await?;
        self.apply(&service(&self.namespace, name, port)).await?;
        let wanted = i32::try_from(deployment["spec"]["replicas"].as_i64().unwrap_or(1))?;
        let limit = Duration::from_secs(120);
        eventually(&format!("{name} is ready"), limit, async || {
            let ready = self.ready_replicas(name).await?;
            anyhow::ensure!(ready >= wanted, "{ready} of {wanted} replicas are ready");
            Ok(())
        })
        .await?;
        self.say(&format!("{name} is ready with {wanted} replicas"));
        Ok(())
    }

    /// A Deployment's ready replicas.
    pub async fn ready_replicas(&self, name: &str) -> anyhow::Result<i32> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let status = deployments.get(name).await?.status;
        Ok(status.and_then(|status| status.ready_replicas).unwrap_or(0))
    }

    /// The address of a Service inside the cluster.
    pub fn url(&self, service: &str) -> String {
        format!("http://{service}.{}.svc.cluster.local/", self.namespace)
    }

    async fn create_namespace(&self) -> anyhow::Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": self.namespace, "labels": {LABEL: "true"}},
        });
        self.apply(&namespace).await
    }

    /// Does not wait: what runs in it ends within seconds, and the next test has its own.
    async fn delete_namespace(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        match namespaces
            .delete(&self.namespace, &DeleteParams::default())
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).context("cannot delete the test's namespace"),
        }
    }
}
