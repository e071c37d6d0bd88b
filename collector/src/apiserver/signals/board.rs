//! Snapshots for everybody who lists or watches: computed when somebody asks, at most once in a while for all
//! of them together, and not at all when nobody asks. The versions that it gives are times.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ebpf_scaler_measure::{Family, State, Window};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::item::{self, Item, Resource};
use super::snapshot::{Entry, Snapshot};
use crate::apiserver::hub::Hub;
use crate::apiserver::status::Failure;

/// Snapshots kept of a topic, so that a watch that was interrupted goes on where it was.
const HISTORY: usize = 8;
/// Objects kept of a topic beside the newest snapshot's: large clusters begin a watch with everything instead.
const MAX_KEPT: usize = 40_000;
/// A topic that nobody asks for is forgotten after this.
const LINGER: Duration = Duration::from_secs(30);
/// Topics at most: beyond, the one that has not been asked for the longest is forgotten.
const MAX_TOPICS: usize = 256;
/// Watches at most, of all clients.
pub const MAX_WATCHES: usize = 1000;
/// A resourceVersion is the time in milliseconds times this, and then a number that differs between replicas.
const MARKS: u64 = 1000;

/// What is computed together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    /// Of what
    pub resource: Resource,
    /// Over which window
    pub window: Window,
    /// In which namespace; `None`: in all
    pub namespace: Option<String>,
}

impl Topic {
    fn namespaces(&self, state: &State) -> Vec<Arc<str>> {
        match &self.namespace {
            Some(namespace) => vec![namespace.as_str().into()],
            None => state.index.namespaces().into_iter().collect(),
        }
    }
}

#[derive(Default)]
struct Kept {
    history: VecDeque<Arc<Snapshot>>,
}

impl Kept {
    /// Lets the oldest go, the newest never.
    fn trim(&mut self) {
        let objects =
            |h: &VecDeque<Arc<Snapshot>>| h.iter().map(|s| s.entries.len()).sum::<usize>();
        while self.history.len() > HISTORY
            || (self.history.len() > 1 && objects(&self.history) > MAX_KEPT)
        {
            self.history.pop_front();
        }
    }
}

struct Slot {
    kept: Arc<tokio::sync::Mutex<Kept>>,
    used: Instant,
}

/// The shared snapshots.
pub struct Board {
    mark: u64,
    started: u64,
    last: AtomicU64,
    topics: Mutex<HashMap<Topic, Slot>>,
    watches: AtomicUsize,
    /// Ends all watches.
    pub closed: CancellationToken,
}

impl Default for Board {
    fn default() -> Self {
        let now = unix_millis();
        // Any number will do, as long as replicas that begin at one time mostly differ.
        let host = std::env::var("HOSTNAME").unwrap_or_default();
        let seed = format!("{host} {} {now}", std::process::id());
        let digest = Sha256::digest(seed.as_bytes());
        let number = digest
            .iter()
            .take(8)
            .fold(0u64, |n, b| n << 8 | u64::from(*b));
        Self {
            mark: number % MARKS,
            started: now,
            last: AtomicU64::new(now),
            topics: Mutex::default(),
            watches: AtomicUsize::new(0),
            closed: CancellationToken::new(),
        }
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Where a watch can go on from.
#[derive(Debug)]
pub enum Start {
    /// From this very snapshot
    Known(Arc<Snapshot>),
    /// From a time that another replica, or another list, has told: milliseconds ago
    Recent(u64),
    /// It can not
    Expired,
}

/// Counts a watch as long as it lives.
pub struct Watching(Arc<Hub>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.signals.watches.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.signals_watches.dec();
    }
}

impl Board {
    /// Room for one more watch, if there is.
    pub fn watch(hub: &Arc<Hub>) -> Option<Watching> {
        let watches = &hub.signals.watches;
        if watches.fetch_add(1, Ordering::Relaxed) >= MAX_WATCHES {
            watches.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        hub.metrics.signals_watches.inc();
        Some(Watching(hub.clone()))
    }

    /// A snapshot that is at most so old: one that is there, or a new one.
    pub async fn snapshot(
        hub: &Arc<Hub>,
        topic: &Topic,
        at_most: Duration,
    ) -> Result<Arc<Snapshot>, Failure> {
        let board = &hub.signals;
        let kept = board.kept(topic);
        // Who comes meanwhile waits here and then takes the new one.
        let mut kept = kept.lock().await;
        let before = kept.history.back().cloned();
        if let Some(last) = before.as_ref().filter(|s| s.taken.elapsed() <= at_most) {
            return Ok(last.clone());
        }
        hub.keep(Family::RunQueue);
        hub.metrics.signals_computed.inc();
        let version = board.next_version();
        let taken = Instant::now();
        let items = compute(hub.clone(), topic.clone(), version).await?;
        let new = Arc::new(Snapshot::after(before.as_deref(), version, items, taken));
        kept.history.push_back(new.clone());
        kept.trim();
        Ok(new)
    }

    /// Where a watch of a topic can go on from after `version`.
    pub async fn start(&self, topic: &Topic, version: u64) -> Start {
        let kept = self.kept(topic);
        let known = {
            let kept = kept.lock().await;
            kept.history.iter().find(|s| s.version == version).cloned()
        };
        if let Some(known) = known {
            return Start::Known(known);
        }
        let (at, now) = (version / MARKS, unix_millis());
        let ago = now.saturating_sub(at);
        // What went before this replica began, it can not tell. Another one's clock may be a little ahead.
        if at < self.started || ago > RECENT || at > now + AHEAD {
            return Start::Expired;
        }
        Start::Recent(ago)
    }

    /// Objects of a topic that went `micros` ago or later and are not in `snapshot` either.
    pub fn gone(hub: &Hub, topic: &Topic, micros: u64, snapshot: &Snapshot) -> Vec<Entry> {
        let state = hub.state();
        let since = hub.clock.now().minus(micros);
        let mut items = Vec::new();
        for namespace in topic.namespaces(&state) {
            items.extend(match topic.resource {
                Resource::Workloads => {
                    item::workloads(state.workloads_over(&namespace, since), snapshot.version)
                }
                Resource::Pods => item::pods(state.pods_over(&namespace, since), snapshot.version),
            });
        }
        let gone = |item: &Item| snapshot.find(item.key().0, item.key().1).is_none();
        items.retain(gone);
        let entry = |item| Entry {
            item: Arc::new(item),
            sampled: None,
        };
        items.into_iter().map(entry).collect()
    }

    fn kept(&self, topic: &Topic) -> Arc<tokio::sync::Mutex<Kept>> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if !topics.contains_key(topic) && topics.len() >= MAX_TOPICS {
            let oldest = topics.iter().min_by_key(|(_, slot)| slot.used);
            if let Some(oldest) = oldest.map(|(topic, _)| topic.clone()) {
                topics.remove(&oldest);
            }
        }
        let slot = topics.entry(topic.clone()).or_insert_with(|| Slot {
            kept: Arc::default(),
            used: Instant::now(),
        });
        slot.used = Instant::now();
        slot.kept.clone()
    }

    /// Larger than all before, and than all that were given a millisecond ago elsewhere.
    fn next_version(&self) -> u64 {
        let now = unix_millis();
        let next = |last: u64| Some(now.max(last + 1));
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let last = last.unwrap_or_else(|last| last);
        now.max(last + 1) * MARKS + self.mark
    }

    /// Forgets what nobody asks for any more.
    pub fn sweep(&self) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.retain(|_, slot| slot.used.elapsed() <= LINGER);
    }
}

/// A watch may go on from a version this old that is not of this replica, milliseconds.
const RECENT: u64 = 10_000;
/// How far another replica's clock may be ahead, milliseconds.
const AHEAD: u64 = 5_000;

/// Off the threads that serve, for it goes through all pods; a namespace at a time, so that reports wait for
/// one namespace at most.
async fn compute(hub: Arc<Hub>, topic: Topic, version: u64) -> Result<Vec<Item>, Failure> {
    let all = move || {
        let namespaces = topic.namespaces(&hub.state());
        let mut items = Vec::new();
        for namespace in namespaces {
            let state = hub.state();
            let now = hub.clock.now();
            items.extend(match topic.resource {
                Resource::Workloads => item::workloads(
                    state.workload_signals(&namespace, topic.window, now),
                    version,
                ),
                Resource::Pods => {
                    item::pods(state.pod_signals(&namespace, topic.window, now), version)
                }
            });
        }
        items
    };
    tokio::task::spawn_blocking(all).await.map_err(|error| {
        tracing::error!(%error, "can not compute signals");
        Failure::new(500, "the signals could not be computed")
    })
}
