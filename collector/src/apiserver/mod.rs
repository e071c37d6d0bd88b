//! `collector apiserver`: takes in the agents' reports, joins them with the pods of the cluster, and serves
//! external.metrics.k8s.io and the operators' subscriptions. Measures nothing itself.

mod activity;
mod api;
mod args;
mod clock;
mod custom;
mod delegate;
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
    allow_files();
    let shutdown = admin::shutdown_signal()?;
    let client = kube::Client::try_default()
        .await
        .map_err(|e| anyhow::anyhow!("can not find the Kubernetes API: {e}"))?;
    start(args, client, shutdown).await?.finished().await
}

/// Lets the process open as many files as it may: container runtimes start it with 1,024, fewer than a large
/// cluster's agents have connections.
fn allow_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is ours and of the right type.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
    tracing::info!(files = limit.rlim_cur, "open files are limited");
}
