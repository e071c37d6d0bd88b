//! What replicas are told: the current sample of every pod, the last minute as sparse checkpoints, and the
//! live batches. Bounded in bytes; it never waits for a replica.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ebpf_scaler_proto::{Degraded, Hello, PodSample, ReportRequest};
use prost::Message;
use tokio::sync::broadcast;

/// How far back a new replica is brought; the longest window that matters for a fast decision.
const HISTORY_MICROS: u64 = 60_000_000;
const CHECKPOINT_MICROS: u64 = 1_000_000;
/// Checkpoints are kept encoded. 250 busy pods need about 6 MiB for a minute.
const HISTORY_BYTES: usize = 8 * 1024 * 1024;
/// Live batches that a slow replica may be behind before it is brought up to date by a snapshot instead.
const BATCHES: usize = 16;
/// Pods in one message: far below gRPC's default bound of 4 MiB.
const PODS_PER_MESSAGE: usize = 200;
/// UIDs of pods that are gone, repeated in snapshots for a replica that missed the batch.
const GONE: usize = 1024;

/// Shared by the sampling loop, which publishes, and one task per replica.
#[derive(Clone, Debug)]
pub struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    batches: broadcast::Sender<Arc<ReportRequest>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Of pods and parts of pods, by [`key`].
    samples: HashMap<String, PodSample>,
    gone: VecDeque<(u64, String)>,
    /// The newest sample of each pod or part that is older than every checkpoint.
    base: BTreeMap<String, Vec<u8>>,
    base_time: Time,
    base_families: Vec<i32>,
    checkpoints: VecDeque<Arc<Checkpoint>>,
    /// Of checkpoints and base.
    bytes: usize,
    /// Changed since the last checkpoint.
    pending: BTreeMap<String, ()>,
    now: Time,
    families: Vec<i32>,
    degraded: Vec<Degraded>,
    /// Since the last batch.
    degraded_changed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Time {
    monotonic_micros: u64,
    wall_unix_micros: i64,
}

/// The pods that changed within a second, as they were at its end.
#[derive(Debug)]
struct Checkpoint {
    time: Time,
    families: Vec<i32>,
    samples: Vec<(String, Vec<u8>)>,
}

/// All that a replica needs before live batches make sense: an iterator of messages, oldest first.
#[derive(Debug)]
pub struct Snapshot {
    base_time: Time,
    base_families: Vec<i32>,
    base: Vec<Vec<u8>>,
    checkpoints: VecDeque<Arc<Checkpoint>>,
    current: VecDeque<ReportRequest>,
    /// For `Hello`.
    pub degraded: Vec<Degraded>,
}

impl Default for Store {
    fn default() -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::default(),
            batches: broadcast::Sender::new(BATCHES),
        }))
    }
}

impl Store {
    /// Families that cannot be measured. The next batch then has a `Hello` of which only this is filled in.
    pub fn set_degraded(&self, degraded: Vec<Degraded>) {
        let mut inner = self.lock();
        inner.degraded_changed |= inner.degraded != degraded;
        inner.degraded = degraded;
    }

    /// Takes the newest batch and passes it on to whoever listens.
    pub fn publish(&self, mut batch: ReportRequest) {
        let mut inner = self.lock();
        inner.apply(&batch);
        if std::mem::take(&mut inner.degraded_changed) {
            batch.hello = Some(Hello {
                degraded: inner.degraded.clone(),
                ..Hello::default()
            });
        }
        // Under the lock, so that a snapshot and the batches after it neither overlap nor leave a gap.
        // Without a listener there is nobody to tell: not an error.
        let _ = self.0.batches.send(Arc::new(batch));
    }

    /// Everything up to now, and the batches from now on.
    pub fn subscribe(&self) -> (Snapshot, broadcast::Receiver<Arc<ReportRequest>>) {
        let inner = self.lock();
        (inner.snapshot(true), self.0.batches.subscribe())
    }

    /// Only the current samples, for a replica that was too slow for the batches it skipped.
    pub fn current(&self, receiver: &mut broadcast::Receiver<Arc<ReportRequest>>) -> Snapshot {
        let inner = self.lock();
        *receiver = receiver.resubscribe();
        inner.snapshot(false)
    }

    /// Bytes held for the history.
    pub fn history_bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change that matters.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn apply(&mut self, batch: &ReportRequest) {
        let before = self.now;
        self.now = Time {
            monotonic_micros: batch.monotonic_micros,
            wall_unix_micros: batch.wall_unix_micros,
        };
        // The state so far is what it was at the end of the second that has just passed.
        if before.monotonic_micros / CHECKPOINT_MICROS
            != self.now.monotonic_micros / CHECKPOINT_MICROS
        {
            self.checkpoint(before);
        }
        self.families.clone_from(&batch.families);
        for sample in batch.samples.iter().chain(&batch.parts) {
            let key = key(sample);
            if sample.part.as_ref().is_some_and(|part| part.ended) {
                // It stays for those who have not heard of it, until it is too old.
                self.gone.push_back((batch.monotonic_micros, key.clone()));
            }
            self.samples.insert(key.clone(), sample.clone());
            self.pending.insert(key, ());
        }
        for uid in &batch.gone {
            // Its last seconds stay in the history until they are too old.
            self.checkpoint_of(uid, self.now);
            self.forget(uid);
            self.gone.push_back((batch.monotonic_micros, uid.clone()));
        }
        let oldest = batch.monotonic_micros.saturating_sub(HISTORY_MICROS);
        while self.gone.len() > GONE || self.gone.front().is_some_and(|(at, _)| *at < oldest) {
            let Some((_, key)) = self.gone.pop_front() else {
                break;
            };
            let ended = |s: &PodSample| s.part.as_ref().is_some_and(|part| part.ended);
            if self.samples.get(&key).is_some_and(ended) {
                self.checkpoint_of(&key, self.now);
                self.forget(&key);
            }
        }
    }

    fn forget(&mut self, key: &str) {
        self.samples.remove(key);
        if let Some(base) = self.base.remove(key) {
            self.bytes -= base.len();
        }
    }

    fn checkpoint_of(&mut self, uid: &str, time: Time) {
        if self.pending.remove(uid).is_some()
            && let Some(sample) = self.samples.get(uid)
        {
            let samples = vec![(uid.to_owned(), sample.encode_to_vec())];
            self.push(time, samples);
        }
    }

    fn checkpoint(&mut self, time: Time) {
        let pending = std::mem::take(&mut self.pending);
        let samples: Vec<_> = pending
            .into_keys()
            .filter_map(|uid| {
                let encoded = self.samples.get(&uid)?.encode_to_vec();
                Some((uid, encoded))
            })
            .collect();
        if !samples.is_empty() {
            self.push(time, samples);
        }
        let oldest = self.now.monotonic_micros.saturating_sub(HISTORY_MICROS);
        while self
            .checkpoints
            .front()
            .is_some_and(|c| c.time.monotonic_micros < oldest || self.bytes > HISTORY_BYTES)
        {
            self.fold_oldest();
        }
    }

    fn push(&mut self, time: Time, samples: Vec<(String, Vec<u8>)>) {
        let checkpoint = Checkpoint {
            time,
            families: self.families.clone(),
            samples,
        };
        self.bytes += checkpoint.bytes();
        self.checkpoints.push_back(Arc::new(checkpoint));
    }

    /// Turns the oldest checkpoint into the base from which the others count.
    fn fold_oldest(&mut self) {
        let Some(checkpoint) = self.checkpoints.pop_front() else {
            return;
        };
        self.bytes -= checkpoint.bytes();
        self.base_time = checkpoint.time;
        self.base_families.clone_from(&checkpoint.families);
        for (uid, sample) in &checkpoint.samples {
            if self.samples.contains_key(uid) {
                self.bytes += sample.len();
                if let Some(old) = self.base.insert(uid.clone(), sample.clone()) {
                    self.bytes -= old.len();
                }
            }
        }
    }

    fn snapshot(&self, history: bool) -> Snapshot {
        let pods: Vec<&PodSample> = self.samples.values().collect();
        let mut current: VecDeque<_> = pods
            .chunks(PODS_PER_MESSAGE)
            .map(|chunk| self.message(chunk.iter().map(|s| (*s).clone()).collect()))
            .collect();
        if current.is_empty() {
            current.push_back(self.message(Vec::new()));
        }
        if let Some(last) = current.back_mut() {
            // Parts say themselves that they have ended.
            let pods = self.gone.iter().filter(|(_, key)| !key.contains('/'));
            last.gone = pods.map(|(_, uid)| uid.clone()).collect();
            last.gone.retain(|uid| !self.samples.contains_key(uid));
        }
        Snapshot {
            base_time: self.base_time,
            base_families: self.base_families.clone(),
            base: if history {
                self.base.values().cloned().collect()
            } else {
                Vec::new()
            },
            checkpoints: if history {
                self.checkpoints.clone()
            } else {
                VecDeque::new()
            },
            current,
            degraded: self.degraded.clone(),
        }
    }

    fn message(&self, samples: Vec<PodSample>) -> ReportRequest {
        let (parts, samples) = samples.into_iter().partition(|s| s.part.is_some());
        ReportRequest {
            monotonic_micros: self.now.monotonic_micros,
            wall_unix_micros: self.now.wall_unix_micros,
            samples,
            parts,
            families: self.families.clone(),
            ..ReportRequest::default()
        }
    }
}

impl Checkpoint {
    fn bytes(&self) -> usize {
        self.samples
            .iter()
            .map(|(uid, s)| uid.len() + s.len())
            .sum()
    }
}

/// The messages to send; built one at a time, so that a minute of history is never decoded at once.
impl Iterator for Snapshot {
    type Item = ReportRequest;

    fn next(&mut self) -> Option<ReportRequest> {
        if !self.base.is_empty() {
            let rest = self.base.len().saturating_sub(PODS_PER_MESSAGE);
            let chunk = self.base.split_off(rest);
            return Some(replay(self.base_time, &self.base_families, chunk.iter()));
        }
        if let Some(checkpoint) = self.checkpoints.pop_front() {
            let samples = checkpoint.samples.iter().map(|(_, sample)| sample);
            return Some(replay(checkpoint.time, &checkpoint.families, samples));
        }
        self.current.pop_front()
    }
}

/// A pod's UID; of a part, what makes it that part behind a slash.
fn key(sample: &PodSample) -> String {
    match &sample.part {
        None => sample.pod_uid.clone(),
        Some(part) => format!("{}/{}:{}", sample.pod_uid, part.container_id, part.port),
    }
}

fn replay<'a>(
    time: Time,
    families: &[i32],
    samples: impl Iterator<Item = &'a Vec<u8>>,
) -> ReportRequest {
    // Encoded by ourselves a minute ago at most: what does not decode does not exist.
    let samples = samples.filter_map(|sample| PodSample::decode(sample.as_slice()).ok());
    let (parts, samples) = samples.partition(|s: &PodSample| s.part.is_some());
    ReportRequest {
        replay: true,
        monotonic_micros: time.monotonic_micros,
        wall_unix_micros: time.wall_unix_micros,
        families: families.to_vec(),
        samples,
        parts,
        ..ReportRequest::default()
    }
}
