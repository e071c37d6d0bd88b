//! Brings every batch to every API server replica: finds the replicas, keeps one stream to each, and takes
//! their demand back. Never holds up the sampling loop, and gives up on nobody.

mod credentials;
mod discover;
mod replica;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::demand::Division;
use super::metrics::ReportMetrics;
use super::probes::Family;
use super::store::Store;
pub use credentials::Credentials;
pub use discover::{Discovery, Target};

/// How often the replicas' addresses are looked up.
const LOOKUP: Duration = Duration::from_secs(3);
/// An address may be missing from so many answers in a row before its stream is ended.
const ABSENCES: u32 = 3;
/// More addresses than anybody runs replicas; a wrong name must not make the agent open thousands.
const MAX_REPLICAS: usize = 16;

/// What a replica wants measured.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Who wants it.
    pub replica: SocketAddr,
    /// The families.
    pub families: Vec<Family>,
    /// Parts of pods, by UID.
    pub divide: HashMap<String, Division>,
    /// UIDs of the pods whose requests inside TLS are to be counted.
    pub tls_pods: Vec<String>,
    /// For how long.
    pub ttl: Duration,
}

/// How and to whom to report.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name.
    pub node: String,
    /// Differs for each run of the agent.
    pub agent_epoch: u64,
    /// Host and port of the replicas.
    pub address: String,
    /// The name in their certificate.
    pub server_name: String,
    /// The token to present.
    pub token_file: PathBuf,
    /// The CA to believe.
    pub ca_file: PathBuf,
}

struct Stream {
    absent: u32,
    // Ends the task with the entry.
    _task: AbortOnDropHandle<()>,
}

/// Runs until `shutdown`; then lets the streams send what was published last.
pub async fn run(
    options: Options,
    store: Store,
    metrics: ReportMetrics,
    wanted: mpsc::Sender<Wanted>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let discovery = Discovery::new(options.address.parse()?)?;
    let credentials = Credentials::new(&options.token_file, &options.ca_file);
    let (ca_changed, ca_version) = watch::channel(credentials.ca_fingerprint());
    let mut streams: HashMap<SocketAddr, Stream> = HashMap::new();
    let mut failing = false;
    let mut interval = tokio::time::interval(LOOKUP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.cancelled() => break,
        }
        let fingerprint = credentials.ca_fingerprint();
        ca_changed.send_if_modified(|known| {
            let changed = fingerprint.is_some() && *known != fingerprint;
            if changed {
                *known = fingerprint;
            }
            changed
        });
        match discovery.lookup().await {
            Ok(mut found) => {
                failing = false;
                if found.len() > MAX_REPLICAS {
                    tracing::warn!(
                        found = found.len(),
                        MAX_REPLICAS,
                        "too many replicas, using the first"
                    );
                    found = found.into_iter().take(MAX_REPLICAS).collect();
                }
                reconcile(&mut streams, &found, |replica| {
                    let connection = replica::Replica {
                        address: replica,
                        options: options.clone(),
                        credentials: credentials.clone(),
                        store: store.clone(),
                        metrics: metrics.clone(),
                        wanted: wanted.clone(),
                        ca_version: ca_version.clone(),
                    };
                    tokio::spawn(connection.run(shutdown.clone()))
                });
            }
            // The streams that exist do not need the name.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(address = options.address, %error, "can not look up the API server replicas");
            }
            Err(_) => {}
        }
        if failing {
            metrics.lookup_errors.inc();
        }
        metrics
            .replicas
            .set(i64::try_from(streams.len()).unwrap_or(i64::MAX));
    }
    for stream in streams.into_values() {
        // Each ends by itself, in bounded time, because it has the shutdown token too.
        let _ = stream._task.await;
    }
    Ok(())
}

/// Starts streams to new addresses; ends those that stayed away.
fn reconcile(
    streams: &mut HashMap<SocketAddr, Stream>,
    found: &BTreeSet<SocketAddr>,
    start: impl Fn(SocketAddr) -> tokio::task::JoinHandle<()>,
) {
    streams.retain(|address, stream| {
        stream.absent = if found.contains(address) {
            0
        } else {
            stream.absent + 1
        };
        let keep = stream.absent < ABSENCES;
        if !keep {
            tracing::info!(replica = %address, "the replica is gone");
        }
        keep
    });
    for address in found {
        streams.entry(*address).or_insert_with(|| Stream {
            absent: 0,
            _task: AbortOnDropHandle::new(start(*address)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_bad_answer_does_not_end_a_stream_but_absence_does() {
        let mut streams = HashMap::new();
        let both: BTreeSet<SocketAddr> = ["10.0.0.1:9443", "10.0.0.2:9443"]
            .map(|a| a.parse().unwrap())
            .into();
        let one: BTreeSet<SocketAddr> = both.iter().take(1).copied().collect();
        let start = |_| tokio::spawn(std::future::pending());
        reconcile(&mut streams, &both, start);
        reconcile(&mut streams, &one, start);
        reconcile(&mut streams, &both, start);
        for _ in 0..ABSENCES - 1 {
            reconcile(&mut streams, &one, start);
            assert_eq!(streams.len(), 2);
        }
        reconcile(&mut streams, &one, start);
        assert_eq!(streams.len(), 1);
    }
}
