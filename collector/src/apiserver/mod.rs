//! `collector apiserver`: takes in the agents' reports, joins them with the pods of the cluster, and serves
//! external.metrics.k8s.io and the operators' subscriptions. Measures nothing itself.

mod activity;
mod api;
mod args;
mod clock;
mod custom;
mod demand;
mod discovery;
mod external;
mod follow;
mod grpc;
mod hub;
mod identity;
mod media;
mod memory;
mod metrics;
mod openapi;
mod options;
mod pace;
mod pods;
mod quantity;
mod report;
mod reviews;
mod serve;
mod sessions;
mod signals;
mod start;
mod status;
mod subscribe;
mod table;
mod tls;

pub use args::Args;
pub use start::{Running, start};

use crate::admin;

/// Runs the role until it is told to stop.
pub async fn run(args: Args) -> anyhow::Result<()> {
    // Somebody has to choose for the whole process; a second choice changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let shutdown = admin::shutdown_signal()?;
    let client = kube::Client::try_default()
        .await
        .map_err(|e| anyhow::anyhow!("can not find the Kubernetes API: {e}"))?;
    start(args, client, shutdown).await?.finished().await
}
