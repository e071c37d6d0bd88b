//! The agent role: measures the pods of one node and reports them to every API server replica. It has no
//! Kubernetes API rights and never asks for any: what it knows of pods comes from cgroup paths.

mod args;
pub mod cgroup;
pub mod demand;
pub mod kernel;
pub mod metrics;
pub mod pods;
mod preemptors;
pub mod probes;
pub mod report;
pub mod sample;
pub mod sampler;
pub mod store;
pub mod tls;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use args::Args;
use cgroup::Kubepods;
use probes::Probes;
use sampler::Sampler;
use store::Store;

use crate::admin::{self, Readiness};

/// When what cannot work yet is tried again (a kubelet that has not made its cgroups, a kernel without enough
/// memory for the maps): soon at first, and then seldom, because loading costs the node something.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_SELDOM: Duration = Duration::from_secs(60);
/// Demands on their way to the loop; each replica sends one now and then.
const WANTS: usize = 64;

/// Measures and reports until SIGTERM or SIGINT.
pub async fn run(args: Args) -> anyhow::Result<()> {
    args.validate()?;
    let node = args.node()?;
    let shutdown = admin::shutdown_signal()?;
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    let (metrics, report_metrics) = metrics::register(&mut registry);
    let admin = admin::serve(
        args.admin_address,
        registry,
        readiness.clone(),
        shutdown.clone(),
    );
    let admin = tokio::spawn(admin);

    let agent_epoch = u64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_micros(),
    )?;
    let measured = tokio::select! {
        ready = start(&args, &readiness) => Some(ready),
        () = shutdown.cancelled() => None,
    };
    if let Some((kubepods, probes)) = measured {
        let store = Store::default();
        let (wants, wanted) = mpsc::channel(WANTS);
        let options = sampler::Options {
            kubepods,
            interval: args.interval,
            max_pods: args.max_pods,
            first_epoch: agent_epoch,
            families: args.families.iter().copied().collect(),
            tls: args.tls_uprobes,
        };
        let (sampler, watcher) = Sampler::new(probes, options, store.clone(), metrics);
        let reporter = report::Options {
            node: node.clone(),
            agent_epoch,
            address: args.report_address.clone(),
            server_name: args.report_server_name.clone(),
            token_file: args.token_file.clone(),
            ca_file: args.ca_file.clone(),
        };
        let sampling = tokio::spawn(sampler.run(watcher?, wanted, shutdown.clone()));
        let reporting = tokio::spawn(report::run(
            reporter,
            store,
            report_metrics,
            wants,
            shutdown.clone(),
        ));
        tracing::info!(node, agent_epoch, "measuring");
        readiness.set_ready();
        until_one_ends(sampling, reporting, &shutdown).await?;
    }
    shutdown.cancel();
    admin.await??;
    Ok(())
}

/// Both run until the shutdown; if one ends before, the other must not go on alone.
async fn until_one_ends(
    mut sampling: tokio::task::JoinHandle<std::io::Result<()>>,
    mut reporting: tokio::task::JoinHandle<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        result = &mut sampling => {
            shutdown.cancel();
            result??;
            reporting.await?
        }
        result = &mut reporting => {
            shutdown.cancel();
            result??;
            Ok(sampling.await??)
        }
    }
}

/// Finds the pods and loads the programs, again and again until both worked.
async fn start(args: &Args, readiness: &Readiness) -> (Kubepods, Probes) {
    let mut wait = RETRY;
    loop {
        let args = args.clone();
        // The verifier takes seconds, and /healthz must answer meanwhile.
        match tokio::task::spawn_blocking(move || try_start(&args)).await {
            Ok(Ok(started)) => return started,
            Ok(Err(error)) => readiness.set_not_ready(format!("{error:#}")),
            Err(error) => readiness.set_not_ready(format!("loading the programs: {error}")),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_SELDOM);
    }
}

fn try_start(args: &Args) -> anyhow::Result<(Kubepods, Probes)> {
    let own_pod = args.own_pod_uid();
    let kubepods = cgroup::locate(
        &args.cgroup_root,
        own_pod.as_deref(),
        args.kubepods.as_deref(),
    )?;
    tracing::info!(dir = %kubepods.dir.display(), "found this node's pods");
    let probes = Probes::load(&probes::Options {
        cgroup: kubepods.dir.clone(),
        excluded_ports: args.excluded_ports.clone(),
        max_pods: args.max_pods,
        tls: args.tls_uprobes != tls::Allowed::Never,
    })?;
    return_unused_memory();
    Ok((kubepods, probes))
}

/// Loading takes several times the memory that measuring needs, and the allocator would keep it for ever.
fn return_unused_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer and may be called at any time; it gives free pages back to the kernel.
    unsafe {
        libc::malloc_trim(0);
    }
}
