//! The operator: watches EbpfScalers, their targets and metrics, decides (see the `decide` crate),
//! writes replicas and says why; and keeps our certificates. Only the leader writes.

pub mod admin;
pub mod answers;
pub mod apply;
pub mod args;
pub mod certs;
pub mod engine;
#[cfg(test)]
mod fixtures;
pub mod leader;
pub mod metrics;
pub mod poll;
pub mod replay;
pub mod scaler;
pub mod schedule;
pub mod simulate;
pub mod status;
pub mod stream;
pub mod telemetry;
pub mod translate;
pub mod watch;

use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::CancellationToken;
use tracing::info;

use apply::Applier;
use args::Args;
use certs::{Certs, plan::Lifetimes, store::Names};
use leader::Leadership;
use metrics::Metrics;
use poll::Poller;
use stream::Streams;

/// Runs the operator until it is told to stop.
///
/// # Errors
/// When a flag is wrong, no client can be made, or the admin address cannot be bound.
pub async fn run(args: Args) -> anyhow::Result<()> {
    args.check()?;
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind(args.admin_address)
        .await
        .with_context(|| format!("cannot bind --admin-address {}", args.admin_address))?;
    let client = Client::try_default()
        .await
        .context("cannot make a Kubernetes client from the pod's service account or KUBECONFIG")?;
    let metrics = Arc::new(Metrics::new());
    let stop = CancellationToken::new();
    tokio::spawn(on_signal(stop.clone()));
    let admin = tokio::spawn(admin::serve(listener, metrics.clone(), stop.clone()));

    // The lease is given up only after the leader's tasks have ended.
    let release = CancellationToken::new();
    let (mut leadership, elector) = leader::spawn(
        client.clone(),
        leader::Config {
            namespace: args.namespace.clone(),
            name: args.leader.lease_name.clone(),
            identity: args.identity.clone(),
            duration: args.leader.lease_duration,
            renew_deadline: args.leader.lease_renew_deadline,
            retry: args.leader.lease_retry,
        },
        release.clone(),
    );
    info!(
        identity = args.identity,
        version = env!("CARGO_PKG_VERSION"),
        "operator started"
    );

    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => break,
            () = leadership.wait_for(true) => {}
        }
        metrics.leader.set(1);
        lead(&args, &client, &metrics, leadership.clone(), &stop).await;
        metrics.leader.set(0);
    }
    release.cancel();
    elector.await.context("the election task panicked")?;
    admin
        .await
        .context("the admin task panicked")?
        .context("cannot serve /metrics")
}

/// Everything a leader does, until it no longer leads or is told to stop.
async fn lead(
    args: &Args,
    client: &Client,
    metrics: &Arc<Metrics>,
    mut leadership: Leadership,
    stop: &CancellationToken,
) {
    let term = stop.child_token();
    let (bundle, bundle_reader) = channel::channel(None);
    let seconds = |d: std::time::Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX / 4);
    let certs = Certs {
        names: names(args),
        lifetimes: Lifetimes {
            ca: seconds(args.certs.ca_validity),
            leaf: seconds(args.certs.certificate_validity),
            propagation: seconds(args.certs.ca_propagation),
        },
        manage: args.certs.manage_certificates,
        metrics: metrics.clone(),
        contest: certs::Contest::default(),
        bundle,
    };
    let certs = tokio::spawn(certs.run(client.clone(), leadership.clone(), term.clone()));
    let (stream_wanted, wanted) = channel::channel(Arc::default());
    let (told_in, told) = mpsc::channel(1024);
    let streams = Streams {
        args: args.collector.clone(),
        bundle: bundle_reader,
        wanted,
        out: told_in,
        metrics: metrics.clone(),
    };
    let streams = tokio::spawn(streams.run(term.clone()));
    let (poll_wanted, wanted) = channel::channel(Arc::default());
    let (polled_in, polled) = mpsc::channel(1024);
    let poller = Poller {
        client: client.clone(),
        wanted,
        external_period: args.collector.external_poll_period,
        fallback_period: args.collector.fallback_poll_period,
        out: polled_in,
        metrics: metrics.clone(),
    };
    let poller = tokio::spawn(poller.run(term.clone()));
    let parts = engine::Parts {
        client: client.clone(),
        applier: Applier::new(client.clone(), leadership.clone(), args.write_timeout),
        metrics: metrics.clone(),
        collector: args.collector.clone(),
        tick: args.tick,
        identity: args.identity.clone(),
        history_entries: args.history_entries,
        stream_wanted,
        told,
        poll_wanted,
        polled,
    };
    let engine = tokio::spawn(engine::run(parts, term.clone()));
    tokio::select! {
        () = stop.cancelled() => {}
        () = leadership.wait_for(false) => {}
    }
    term.cancel();
    for task in [certs, streams, poller, engine] {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task of the leader panicked");
        }
    }
}

/// Each version of an aggregated API is an object of its own.
const CUSTOM_METRICS: [&str; 2] = [
    "v1beta2.custom.metrics.k8s.io",
    "v1beta1.custom.metrics.k8s.io",
];

fn names(args: &Args) -> Names {
    let ns = &args.namespace;
    let mut dns_names = Vec::new();
    for service in ["ebpf-scaler-report", "ebpf-scaler-apiserver"] {
        dns_names.push(format!("{service}.{ns}.svc"));
        dns_names.push(format!("{service}.{ns}.svc.cluster.local"));
    }
    dns_names.push("localhost".into());
    let mut api_services = args.certs.api_service.clone();
    if args.certs.custom_metrics {
        api_services.extend(CUSTOM_METRICS.map(str::to_owned));
    }
    Names {
        namespace: ns.clone(),
        ca_secret: "ebpf-scaler-ca".into(),
        tls_secret: "ebpf-scaler-apiserver-tls".into(),
        bundle: "ebpf-scaler-ca-bundle".into(),
        api_services,
        service: "ebpf-scaler-apiserver".into(),
        dns_names,
    }
}

async fn on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut s) => {
                s.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    info!("stopping");
    stop.cancel();
}
