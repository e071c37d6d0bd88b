//! The agent's loop as it runs on a node, on the real kernel and a real cgroup tree, and what it would report.
//! It has no API server; what it publishes is kept here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ebpf_scaler_collector::agent::cgroup::Kubepods;
use ebpf_scaler_collector::agent::demand::Division;
use ebpf_scaler_collector::agent::probes::{Family, Options, Probes};
use ebpf_scaler_collector::agent::report::Wanted;
use ebpf_scaler_collector::agent::sampler::{self, Sampler};
use ebpf_scaler_collector::agent::tls::Allowed;
use ebpf_scaler_collector::agent::{metrics, store::Store};
use ebpf_scaler_proto::{Counters, PodSample, ReportRequest};
use prometheus_client::registry::Registry;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{EXCLUDED, eventually};

/// What has not happened by then does not happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What was published so far.
#[derive(Default)]
pub struct Published {
    /// The newest counters of each epoch of each pod.
    pub newest: HashMap<(String, u64), Counters>,
    pub gone: BTreeSet<String>,
    /// The newest sample of each epoch of each part of a pod.
    pub parts: HashMap<u64, PodSample>,
    batches: u64,
}

impl Published {
    fn take(&mut self, batch: &ReportRequest) {
        self.batches += 1;
        for sample in &batch.samples {
            let counters = sample.counters.unwrap();
            let key = (sample.pod_uid.clone(), sample.epoch);
            if let Some(before) = self.newest.insert(key, counters) {
                assert!(
                    before.requests <= counters.requests
                        && before.receive_bytes <= counters.receive_bytes
                        && before.connections_opened <= counters.connections_opened,
                    "a counter of {} went down: {before:?}, then {counters:?}",
                    sample.pod_uid
                );
            }
        }
        for part in &batch.parts {
            self.parts.insert(part.epoch, part.clone());
        }
        self.gone.extend(batch.gone.iter().cloned());
    }

    /// Requests of all parts of a pod that have that container and port, whenever they were counted apart.
    pub fn part(&self, uid: &str, container: &str, port: u32) -> Option<u64> {
        let is_it = |sample: &&PodSample| {
            let part = sample.part.as_ref().unwrap();
            sample.pod_uid == uid && part.container_id == container && part.port == port
        };
        let counts = self.parts.values().filter(is_it);
        let counts = counts.map(|sample| sample.counters.unwrap().requests);
        counts.reduce(|a, b| a + b)
    }

    /// Requests of all epochs of a pod.
    pub fn requests(&self, uid: &str) -> u64 {
        self.of(uid).map(|(_, c)| c.requests).sum()
    }

    pub fn epochs(&self, uid: &str) -> BTreeMap<u64, u64> {
        self.of(uid).map(|(e, c)| (e, c.requests)).collect()
    }

    fn of(&self, uid: &str) -> impl Iterator<Item = (u64, &Counters)> {
        self.newest
            .iter()
            .filter(move |((u, _), _)| u == uid)
            .map(|((_, epoch), counters)| (*epoch, counters))
    }
}

/// A running agent; dropping it ends it as SIGTERM does.
pub struct Agent {
    published: Arc<Mutex<Published>>,
    registry: Registry,
    wants: mpsc::Sender<Wanted>,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// How an agent is started.
#[derive(Clone, Copy)]
pub struct Setup {
    pub interval: Duration,
    pub max_pods: u32,
    pub first_epoch: u64,
    pub tls: Allowed,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            interval: Duration::from_millis(100),
            max_pods: 512,
            first_epoch: 1,
            tls: Allowed::Never,
        }
    }
}

impl Agent {
    /// Starts an agent on a kubepods directory and waits until it has published.
    pub fn start(kubepods: &Path, setup: Setup) -> Agent {
        Agent::start_prepared(kubepods, setup, |_| {})
    }

    /// As [`Agent::start`], after something was done to its programs.
    pub fn start_prepared(
        kubepods: &Path,
        setup: Setup,
        prepare: impl FnOnce(&mut Probes),
    ) -> Agent {
        let mut probes = Probes::load(&Options {
            cgroup: kubepods.into(),
            excluded_ports: vec![EXCLUDED],
            max_pods: setup.max_pods,
            tls: setup.tls != Allowed::Never,
        })
        .unwrap();
        prepare(&mut probes);
        let mut registry = Registry::default();
        let (metrics, _) = metrics::register(&mut registry);
        let store = Store::default();
        let options = sampler::Options {
            kubepods: Kubepods {
                dir: kubepods.into(),
                cpu_v1: None,
            },
            interval: setup.interval,
            max_pods: setup.max_pods,
            first_epoch: setup.first_epoch,
            families: BTreeSet::from([Family::Requests, Family::Network]),
            tls: setup.tls,
        };
        let (_, mut batches) = store.subscribe();
        let (sampler, watcher) = Sampler::new(probes, options, store, metrics);
        let watcher = watcher.unwrap();
        let (wants, wanted) = mpsc::channel(1);
        let shutdown = CancellationToken::new();
        let published = Arc::new(Mutex::new(Published::default()));
        let (ended, log) = (shutdown.clone(), published.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let running = tokio::spawn(sampler.run(watcher, wanted, ended));
                loop {
                    match batches.recv().await {
                        Ok(batch) => log.lock().unwrap().take(&batch),
                        Err(RecvError::Closed) => break,
                        Err(RecvError::Lagged(n)) => panic!("{n} batches were missed"),
                    }
                }
                running.await.unwrap().unwrap();
            });
        });
        let agent = Agent {
            published,
            registry,
            wants,
            shutdown,
            thread: Some(thread),
        };
        assert!(eventually(PATIENCE, || agent.batches() > 0));
        agent
    }

    /// A replica wants these parts of a pod.
    pub fn want(&self, uid: &str, ports: &[u16], containers: bool) {
        let ports = ports.iter().copied().collect();
        self.ask(Wanted {
            replica: "127.0.0.1:9443".parse().unwrap(),
            families: Vec::new(),
            divide: HashMap::from([(uid.to_owned(), Division { ports, containers })]),
            tls_pods: Vec::new(),
            ttl: Duration::from_secs(600),
        });
    }

    /// Asks for something as a replica would.
    pub fn ask(&self, want: Wanted) {
        self.wants.blocking_send(want).unwrap();
    }

    fn batches(&self) -> u64 {
        self.published.lock().unwrap().batches
    }

    /// A metric of the agent's own; 0 if it has no such.
    pub fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("ebpf_scaler_agent_")?.strip_prefix(name))
            .map(|rest| rest.trim().to_owned());
        line.map_or(0, |value| value.parse().unwrap())
    }

    pub fn with<T>(&self, look: impl FnOnce(&Published) -> T) -> T {
        look(&self.published.lock().unwrap())
    }

    /// Waits until what was published satisfies.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Published) -> bool) {
        assert!(
            eventually(PATIENCE, || self.with(&mut holds)),
            "never: {what}; {}",
            self.troubles()
        );
    }

    /// Waits until a pod's requests are so many, and fails if they become more.
    pub fn counts(&self, uid: &str, expected: u64) {
        let ok = eventually(PATIENCE, || self.with(|p| p.requests(uid)) >= expected);
        let counted = self.with(|p| p.requests(uid));
        assert!(
            ok && counted == expected,
            "{uid}: {counted} of {expected}; {}",
            self.troubles()
        );
    }

    /// The metrics that tell of trouble and are not zero.
    pub fn troubles(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines()
            .filter(|l| !l.starts_with('#') && !l.contains("bucket") && !l.ends_with(" 0"))
            .filter_map(|l| l.strip_prefix("ebpf_scaler_agent_"))
            .fold(String::new(), |all, l| all + l + ", ")
    }

    /// Ends it, and gives what it published until its end.
    pub fn stop(mut self) -> Published {
        self.end();
        std::mem::take(&mut self.published.lock().unwrap())
    }

    fn end(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || std::thread::panicking());
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}
