//! Puts the role together: binds the ports, starts what follows and serves, decides when it is ready, and
//! ends everything in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::args::Args;
use super::delegate::{self, Delegates};
use super::demand::Demand;
use super::discovery::Catalogue;
use super::hub::Hub;
use super::metrics::Metrics;
use super::tls::{Serving, server_config};
use super::{api, follow, grpc, pods, serve};
use crate::admin::{self, Readiness};

/// A running role.
pub struct Running {
    /// Where the metrics API listens
    pub api: SocketAddr,
    /// Where agents and operators connect
    pub report: SocketAddr,
    /// Where /metrics and the probes are
    pub admin: SocketAddr,
    /// Whether it can do its work
    pub readiness: Readiness,
    servers: JoinSet<anyhow::Result<()>>,
    // Dropped, and so ended, after the servers have drained.
    _background: JoinSet<()>,
}

impl Running {
    /// Waits until everything has ended after the shutdown, or the first part that failed.
    pub async fn finished(mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.servers.join_next().await {
            ended.context("a part of the role panicked")??;
        }
        tracing::info!("ended");
        Ok(())
    }
}

/// Starts the role; it runs until `shutdown`.
pub async fn start(
    args: Args,
    client: kube::Client,
    shutdown: CancellationToken,
) -> anyhow::Result<Running> {
    let Args {
        address,
        report_address,
        admin_address,
        namespace,
        tls_secret,
        tls_cert_file,
        tls_key_file,
        agent_service_account,
        agents_timeout,
        shutdown_delay,
        custom_metrics,
        delegate,
        delegate_ca_file,
        delegate_token_file,
        delegate_timeout,
        delegate_discovery_period,
        demand_hold,
        token_review_period,
        max_connections,
        handshake_timeout,
        header_timeout,
        idle_timeout,
    } = args;
    let limits = serve::Limits {
        connections: max_connections,
        handshake: handshake_timeout,
        headers: header_timeout,
        idle: idle_timeout,
        // A selector of 16 KiB, each byte escaped, and as much again.
        head: 64 * 1024,
        streams: 256,
        // Nothing here has a body that is read.
        window: 64 * 1024,
        // As many as kube-apiserver itself allows by default.
        in_flight: 400,
    };
    let api = bind(address, "--address").await?;
    let report = bind(report_address, "--report-address").await?;
    let admin = bind(admin_address, "--admin-address").await?;
    let (api_address, report_address) = (api.local_addr()?, report.local_addr()?);
    let admin_address = admin.local_addr()?;

    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let settings = delegate::Settings {
        ca_file: delegate_ca_file,
        token_file: delegate_token_file,
        timeout: delegate_timeout,
        period: delegate_discovery_period,
    };
    let delegates = Delegates::new(&delegate, &settings, custom_metrics, &metrics)?;
    let demand = Demand::new(demand_hold);
    let hub = Hub::new(client.clone(), demand, metrics.clone(), delegates);
    let catalogue = Arc::new(Catalogue::new(api::groups(&hub, custom_metrics)));
    let serving = Arc::new(Serving::default());
    let synced = Arc::new(AtomicBool::new(false));
    let readiness = Readiness::default();

    let mut background = JoinSet::new();
    match (tls_cert_file, tls_key_file) {
        (Some(cert), Some(key)) => {
            background.spawn(follow::files(cert, key, serving.clone()));
        }
        _ => {
            let (client, serving, namespace) = (client.clone(), serving.clone(), namespace.clone());
            background.spawn(async move {
                follow::secret(client, &namespace, &tls_secret, serving).await;
            });
        }
    }
    background.spawn(follow::trust(client.clone(), hub.trust.clone()));
    background.spawn(pods::pods(client.clone(), hub.clone(), synced.clone()));
    background.spawn(pods::replica_sets(client, hub.clone()));
    for delegate in hub.delegates.all() {
        background.spawn(delegate::follow(delegate.clone(), catalogue.clone()));
    }
    background.spawn({
        let hub = hub.clone();
        async move {
            let mut tick = tokio::time::interval(Duration::from_secs(2));
            let mut sweep = tokio::time::interval(Duration::from_secs(10));
            for interval in [&mut tick, &mut sweep] {
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            loop {
                tokio::select! {
                    _ = tick.tick() => hub.tick().await,
                    _ = sweep.tick() => hub.sweep().await,
                }
            }
        }
    });

    // Serving goes on for a while after the order to end, until nobody is sent here any more.
    let stop = CancellationToken::new();
    background.spawn({
        let (hub, serving, readiness) = (hub.clone(), serving.clone(), readiness.clone());
        let (stop, shutdown) = (stop.clone(), shutdown.clone());
        async move {
            tokio::select! {
                () = become_ready(&hub, &serving, &synced, &readiness, agents_timeout) => {
                    shutdown.cancelled().await;
                }
                () = shutdown.cancelled() => {}
            }
            readiness.set_not_ready("shutting down");
            tokio::time::sleep(shutdown_delay).await;
            stop.cancel();
            hub.signals.closed.cancel();
        }
    });

    let mut servers = JoinSet::new();
    let api_tls = server_config(serving.clone(), true, &["h2", "http/1.1"])?;
    let api_router = api::router(hub.clone(), readiness.clone(), custom_metrics, &catalogue);
    servers.spawn(serve_with_certificate(
        serving.clone(),
        (api, api_tls, api_router),
        (limits, metrics.clone()),
        stop.clone(),
    ));
    let report_tls = server_config(serving.clone(), false, &["h2"])?;
    let service = grpc::Service::new(
        hub,
        &namespace,
        &agent_service_account,
        token_review_period,
        stop.clone(),
    );
    let report_limits = serve::Limits {
        // A token, and little else.
        head: 16 * 1024,
        // An agent needs one, an operator too.
        streams: 16,
        // A full node's snapshot takes two or three rounds.
        window: 256 * 1024,
        // After a restart all agents come at once.
        in_flight: max_connections / 2,
        ..limits
    };
    servers.spawn(serve_with_certificate(
        serving,
        (report, report_tls, service.router()),
        (report_limits, metrics.clone()),
        stop.clone(),
    ));
    let admin_router = admin::router(Arc::new(registry), readiness.clone());
    servers.spawn(async move {
        serve::serve(admin, None, admin_router, limits, metrics, stop).await;
        Ok(())
    });
    tracing::info!(api = %api_address, report = %report_address, admin = %admin_address, "serving");
    Ok(Running {
        api: api_address,
        report: report_address,
        admin: admin_address,
        readiness,
        servers,
        _background: background,
    })
}

/// Serves from when there is a certificate. Who connects earlier waits for its handshake and is not turned away: after a
/// crash kube-apiserver still sends us queries.
async fn serve_with_certificate(
    serving: Arc<Serving>,
    (listener, tls, router): (TcpListener, ServerConfig, Router),
    (limits, metrics): (serve::Limits, Metrics),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = serving.given() => {}
        () = stop.cancelled() => return Ok(()),
    }
    serve::serve(listener, Some(tls), router, limits, metrics, stop).await;
    Ok(())
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("can not listen on {address}; choose another {flag}"))
}

/// Waits for what the role can not do without, once. Afterwards nothing that happens to data makes it unready:
/// an unavailable APIService would block the deletion of namespaces in the whole cluster.
async fn become_ready(
    hub: &Hub,
    serving: &Serving,
    synced: &AtomicBool,
    readiness: &Readiness,
    agents_timeout: Duration,
) {
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let mut known_since = None;
    loop {
        look.tick().await;
        let missing = if !serving.is_set() {
            "waiting for the serving certificate"
        } else if hub.trust.load().is_none() {
            "waiting for kube-system/extension-apiserver-authentication"
        } else if !synced.load(Ordering::Relaxed) {
            "waiting for the list of pods"
        } else {
            let since = *known_since.get_or_insert_with(tokio::time::Instant::now);
            let (live, nodes) = hub.state().connected(hub.clock.now());
            let enough = live * 10 >= nodes * 9;
            if enough || since.elapsed() >= agents_timeout {
                if enough {
                    tracing::info!(live, nodes, "agents are connected");
                } else {
                    tracing::warn!(live, nodes, "starting without the agents of all nodes");
                }
                readiness.set_ready();
                return;
            }
            "waiting for the agents of 90 % of the nodes"
        };
        readiness.set_not_ready(missing);
    }
}
