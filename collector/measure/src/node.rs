//! What one node's agent has reported: which pods it sees, since when, and whether it is still heard.
//! Each run of the agent has a log of its own, so that no window mixes epochs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::metric::Family;
use crate::narrow::{Key, Part, PartSample, Parts};
use crate::series::{MAX_PREEMPTORS, Preemptor, Sample, Series};
use crate::time::Time;

/// An agent that has not been heard for longer is silent. Agents report every 250 ms.
pub const LIVE: u64 = 1_500_000;
/// A silent agent's last values stand in for this long, and a pod may stay unseen for this long.
pub const STAND_IN: u64 = 15_000_000;
/// A log covers its pods once it is this long: rates over less are noise.
pub const MIN_SEEN: u64 = 1_000_000;
/// At most this many pods of a node are kept, those that have gone lately included; more are refused. A
/// kubelet runs some hundreds at most.
pub const MAX_PODS: usize = 1024;
/// At most this many pods new to it may a node report within [`NEWCOMERS_PERIOD`]: room for an agent that starts
/// anew every half minute on a full node, and an end to one that invents pods.
pub const MAX_NEWCOMERS: usize = 2 * MAX_PODS;
/// How long newcomers are counted together, microseconds.
pub const NEWCOMERS_PERIOD: u64 = 60_000_000;
/// At most this many bytes of history are kept of a node. [`MAX_PODS`] busy pods take half of it; only histograms
/// that no pod has take more.
pub const MAX_BYTES: usize = 32 << 20;

/// How an agent introduces itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Differs for each run of the agent
    pub agent_epoch: u64,
    /// What can not be measured on the node, with the reason
    pub degraded: BTreeMap<Family, String>,
}

/// One report of an agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// A checkpoint of the past
    pub replay: bool,
    /// The node's monotonic clock at the reading, microseconds. Batches of one time are one reading in parts.
    pub at: u64,
    /// Pods that changed or are new; the first reading that is no replay has all
    pub samples: Vec<(Arc<str>, Sample)>,
    /// Parts of pods that are counted apart, as `samples`
    pub parts: Vec<PartSample>,
    /// Pods whose cgroup is gone
    pub gone: Vec<Arc<str>>,
    /// What was measured then; in a replay, empty means that the agent does not say
    pub families: Vec<Family>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Samples taken in
    pub accepted: usize,
    /// Samples of pods that run on other nodes
    pub foreign: usize,
    /// Samples beyond [`MAX_PODS`] or [`MAX_NEWCOMERS`]
    pub overflow: usize,
    /// Samples beyond [`MAX_BYTES`]
    pub heavy: usize,
    /// Not newer than what is known, so nothing was taken from it
    pub late: bool,
}

/// A pod as the agent sees it.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// Its counters over time
    pub series: Series,
    /// Behind whom its threads waited most lately
    pub preemptors: Vec<Preemptor>,
    /// When it was first reported here
    pub first_seen: Time,
    /// When the agent said that its cgroup is gone
    pub gone: Option<Time>,
}

/// The reports of one run of an agent.
#[derive(Clone, Debug)]
pub struct Log {
    agent_epoch: u64,
    degraded: BTreeMap<Family, String>,
    /// The node's clock at the first reading.
    first: Option<u64>,
    /// At the reading before the latest, and at the latest.
    before: u64,
    last: u64,
    arrived: Option<Time>,
    /// The node's clock at the first current reading, which has every pod.
    loaded: Option<u64>,
    since: BTreeMap<Family, u64>,
    pods: HashMap<Arc<str>, Tracked>,
    parts: Parts,
    /// Of the pods' histories; sweeping counts it anew.
    bytes: usize,
}

/// Pods that a node has reported for the first time lately.
#[derive(Clone, Copy, Debug, Default)]
struct Newcomers {
    since: Time,
    count: usize,
}

impl Newcomers {
    /// Whether there may be one more.
    fn admit(&mut self, now: Time) -> bool {
        if now.since(self.since) > NEWCOMERS_PERIOD {
            *self = Self {
                since: now,
                count: 0,
            };
        }
        self.count += 1;
        self.count <= MAX_NEWCOMERS
    }
}

impl Log {
    fn new(hello: &Hello) -> Self {
        Self {
            agent_epoch: hello.agent_epoch,
            degraded: hello.degraded.clone(),
            first: None,
            before: 0,
            last: 0,
            arrived: None,
            loaded: None,
            since: BTreeMap::new(),
            pods: HashMap::new(),
            parts: Parts::default(),
            bytes: 0,
        }
    }

    /// The node's clock at the latest reading.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// When the latest current batch came.
    pub fn arrived(&self) -> Option<Time> {
        self.arrived
    }

    /// The node's clock when `family` was switched on, if it is on.
    pub fn measures_since(&self, family: Family) -> Option<u64> {
        self.since.get(&family).copied()
    }

    /// Why `family` can not be measured on this node, if the agent said so.
    pub fn degraded(&self, family: Family) -> Option<&str> {
        self.degraded.get(&family).map(String::as_str)
    }

    /// The pod of this UID, if the agent sees it.
    pub fn pod(&self, uid: &str) -> Option<&Tracked> {
        self.pods.get(uid)
    }

    /// What of the pod is or was counted apart.
    pub fn parts(&self, uid: &str) -> &[(Key, Part)] {
        self.parts.of(uid)
    }

    /// How many pods the agent sees or saw.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// Roughly the bytes that its pods' histories take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_ready(&self) -> bool {
        let first = self.first.unwrap_or(self.last);
        self.loaded.is_some() && self.last - first >= MIN_SEEN
    }

    fn receive(
        &mut self,
        batch: Batch,
        foreign: impl Fn(&str) -> bool,
        newcomers: &mut Newcomers,
        now: Time,
    ) -> Received {
        let mut received = Received::default();
        if batch.at < self.last {
            received.late = true;
            return received;
        }
        if batch.at > self.last {
            self.before = self.first.map_or(batch.at, |_| self.last);
            self.last = batch.at;
        }
        let first = *self.first.get_or_insert(batch.at);
        self.families(&batch, first);
        if !batch.replay {
            self.arrived = Some(now);
            self.loaded.get_or_insert(batch.at);
        }
        for (uid, sample) in batch.samples {
            if foreign(&uid) {
                received.foreign += 1;
            } else if self.bytes > MAX_BYTES {
                received.heavy += 1;
            } else if !self.has_room_for(&uid, newcomers, now) {
                received.overflow += 1;
            } else {
                self.take(uid, &sample, first, now);
                received.accepted += 1;
            }
        }
        let reading = (first, self.before, self.last);
        let loaded = self.loaded;
        for part in batch.parts {
            if foreign(&part.uid) {
                received.foreign += 1;
            } else if self.parts.take(part, reading, loaded, now) {
                received.accepted += 1;
            } else {
                received.overflow += 1;
            }
        }
        if !batch.replay {
            self.parts.checked(self.last, now);
        }
        for uid in batch.gone {
            if let Some(tracked) = self.pods.get_mut(&uid) {
                tracked.gone.get_or_insert(now);
            }
        }
        received
    }

    /// Makes room for a new pod, if it has to, by letting go of the one that has been gone the longest.
    fn has_room_for(&mut self, uid: &str, newcomers: &mut Newcomers, now: Time) -> bool {
        if self.pods.contains_key(uid) {
            return true;
        }
        if self.pods.len() < MAX_PODS {
            return newcomers.admit(now);
        }
        let gone = self.pods.iter().filter_map(|(u, t)| Some((t.gone?, u)));
        let Some(oldest) = gone.min().map(|(_, uid)| uid.clone()) else {
            return false;
        };
        if !newcomers.admit(now) {
            return false;
        }
        if let Some(removed) = self.pods.remove(&oldest) {
            self.bytes = self.bytes.saturating_sub(removed.series.size());
        }
        true
    }

    fn families(&mut self, batch: &Batch, first: u64) {
        if batch.replay && batch.families.is_empty() {
            return;
        }
        self.since.retain(|f, _| batch.families.contains(f));
        for family in &batch.families {
            // What is always on was on in the replay too; what follows demand is only known to be on now.
            let always = matches!(family, Family::Requests | Family::Network);
            let since = if always && self.loaded.is_none() {
                first
            } else {
                batch.at
            };
            self.since.entry(*family).or_insert(since);
        }
    }

    fn take(&mut self, uid: Arc<str>, sample: &Sample, first: u64, now: Time) {
        let (before, at) = (self.before, self.last);
        let preemptors = sample.preemptors.iter().take(MAX_PREEMPTORS);
        if let Some(tracked) = self.pods.get_mut(&uid) {
            self.bytes = self.bytes.saturating_sub(tracked.series.size());
            tracked.preemptors.clear();
            tracked.preemptors.extend(preemptors.cloned());
            tracked.gone = None;
            if tracked.series.epoch() == sample.epoch {
                tracked.series.push(sample, before, at);
            } else {
                // Counting began anew after the batch before; what was before that is another epoch.
                tracked.series = Series::from_birth(sample, before, before, at);
            }
            self.bytes += tracked.series.size();
            return;
        }
        // After the first full reading a pod that appears is new: all it has done, it did since the reading
        // before. Until then a pod may just not have been told yet, and its past is not ours to count.
        let series = if self.loaded.is_some_and(|loaded| at > loaded) {
            Series::from_birth(sample, first, before, at)
        } else {
            Series::from_reading(sample, first, at)
        };
        self.bytes += series.size();
        let tracked = Tracked {
            series,
            preemptors: preemptors.cloned().collect(),
            first_seen: now,
            gone: None,
        };
        self.pods.insert(uid, tracked);
    }
}

/// Where a node's values come from now.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The agent is heard
    Live(&'a Log),
    /// The agent is silent or has just begun; these are its last values
    LastKnown(&'a Log),
    /// Silent for too long, or never heard
    Nothing,
}

/// One node: its agent's present run, and the one before while the present one is too short.
#[derive(Clone, Debug, Default)]
pub struct Node {
    current: Option<Log>,
    previous: Option<Log>,
    newcomers: Newcomers,
}

impl Node {
    /// An agent connects: again in the same run, or in a new one.
    pub fn hello(&mut self, hello: &Hello) {
        match &mut self.current {
            Some(log) if log.agent_epoch == hello.agent_epoch => {
                log.degraded.clone_from(&hello.degraded);
                // We may have missed that some have ended.
                log.parts.check();
            }
            current => {
                let old = current.replace(Log::new(hello));
                // A run that never became ready does not push out the last one that was.
                if let Some(old) = old.filter(Log::is_ready) {
                    self.previous = Some(old);
                }
            }
        }
    }

    /// Takes in a batch of the agent's run `agent_epoch`; `foreign` tells pods known on other nodes.
    pub fn receive(
        &mut self,
        agent_epoch: u64,
        batch: Batch,
        foreign: impl Fn(&str) -> bool,
        now: Time,
    ) -> Received {
        match &mut self.current {
            Some(log) if log.agent_epoch == agent_epoch => {
                let received = log.receive(batch, foreign, &mut self.newcomers, now);
                if log.is_ready() {
                    self.previous = None;
                }
                received
            }
            _ => Received {
                late: true,
                ..Received::default()
            },
        }
    }

    /// Whether the agent has been heard within [`LIVE`].
    pub fn is_live(&self, now: Time) -> bool {
        self.log()
            .and_then(Log::arrived)
            .is_some_and(|t| now.since(t) <= LIVE)
    }

    /// The present run's log.
    pub fn log(&self) -> Option<&Log> {
        self.current.as_ref()
    }

    /// Where values come from at `now`.
    pub fn source(&self, now: Time) -> Source<'_> {
        let ready = self.current.as_ref().filter(|log| log.is_ready());
        let Some(log) = ready.or(self.previous.as_ref()) else {
            return Source::Nothing;
        };
        match log.arrived.map(|t| now.since(t)) {
            Some(age) if age <= LIVE && ready.is_some() => Source::Live(log),
            Some(age) if age <= STAND_IN => Source::LastKnown(log),
            _ => Source::Nothing,
        }
    }

    /// Lets go of what no window needs: `keep` says of each pod whether its history still counts, or
    /// `None` if nobody knows the pod. Returns whether anything is left of the node.
    pub fn sweep(&mut self, keep: impl Fn(&str, &Tracked) -> Option<bool>, now: Time) -> bool {
        let recent = |log: &Log, span: u64| log.arrived.is_some_and(|t| now.since(t) <= span);
        self.previous.take_if(|log| !recent(log, STAND_IN));
        let Some(log) = &mut self.current else {
            return self.previous.is_some();
        };
        log.pods.retain(|uid, tracked| match keep(uid, tracked) {
            Some(kept) => kept,
            None => {
                // Its last counters stay: known later, it must not count its whole past at once.
                tracked.series.forget_history();
                tracked.gone.is_none()
            }
        });
        let pods = &log.pods;
        log.parts.sweep(|uid| pods.contains_key(uid), now);
        log.bytes = log.pods.values().map(|tracked| tracked.series.size()).sum();
        // A node that has gone is forgotten; one whose stream is only being opened has not arrived yet.
        log.arrived.is_none() || recent(log, 600_000_000)
    }
}
