//! Narrowing a metric to ports and containers: which parts of pods a query means, which agents have to count them
//! apart, and what is known of each. A part that is not counted yet is missing, never zero.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::index::{Phase, Pod};
use crate::metric::{Family, Metric};
use crate::node::{Log, MIN_SEEN};
use crate::query::Query;
use crate::series::{Sample, Series};
use crate::state::State;
use crate::time::Time;

/// More ports in one query than this are refused; agents count no more apart in a pod.
pub const MAX_PORTS: usize = 8;
/// More containers in one query than this are refused.
pub const MAX_CONTAINERS: usize = 16;
/// At most this many parts of a node's pods are kept, those that have ended lately included.
const MAX_PARTS: usize = 2048;
/// A part that has ended still counts in the windows in which it was counted; the longest is 5 minutes.
const REMEMBER: u64 = 310_000_000;

/// What of each pod counts; without ports and containers, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Narrow {
    /// Local ports, any of which; sorted and unique
    pub ports: Vec<u16>,
    /// Names of containers, any of which; sorted and unique
    pub containers: Vec<String>,
}

impl Narrow {
    /// Whether the whole pod counts.
    pub fn is_whole(&self) -> bool {
        self.ports.is_empty() && self.containers.is_empty()
    }

    /// Which key can not narrow the metric, and why.
    pub fn misfit(&self, metric: Metric) -> Option<(&'static str, &'static str)> {
        if !self.ports.is_empty() && metric.family() == Family::RunQueue {
            return Some(("port", "threads have no port"));
        }
        if !self.containers.is_empty() && metric == Metric::CpuThrottledRatio {
            return Some(("container", "CPU limits are measured for whole pods"));
        }
        None
    }

    /// Whether the pod has any of the containers.
    pub fn has_container(&self, pod: &Pod) -> bool {
        let mut names = pod.facts.containers.iter().map(|c| &c.name);
        self.containers.is_empty()
            || names.any(|name| self.containers.iter().any(|n| **n == **name))
    }

    /// What is counted of it in a pod, and since when by the node's clock all of it is; none if it is not.
    pub(crate) fn find<'a>(&self, log: &'a Log, pod: &Pod) -> Option<(Vec<&'a Series>, u64)> {
        let parts = log.parts(pod.cgroup_uid());
        let mut since = 0;
        for whole in self.wholes(pod) {
            // What has gone was counted as long as it was there.
            let is_known = |part: &Part| part.ended.is_none() || part.gone || pod.gone.is_some();
            let found = parts
                .iter()
                .find(|(key, part)| *key == whole && is_known(part));
            since = since.max(found?.1.series.seen_from());
        }
        let counts = |key: &Key| {
            let of_port = key.port.is_some_and(|port| self.ports.contains(&port));
            let of_container = |name: &String| {
                let id = key.container.as_deref();
                id.is_some_and(|id| pod.ran_as(name, id))
            };
            (of_port || self.ports.is_empty())
                && (self.containers.is_empty() || self.containers.iter().any(of_container))
        };
        let parts = parts.iter().filter(|(key, _)| counts(key));
        Some((parts.map(|(_, part)| &part.series).collect(), since))
    }

    /// The parts of a pod that are there exactly if all that is meant is counted apart. A container that does not run
    /// now does nothing.
    fn wholes(&self, pod: &Pod) -> Vec<Key> {
        let runs = pod.facts.containers.iter().filter(|c| c.running);
        let meant = runs.filter(|c| self.containers.iter().any(|name| **name == *c.name));
        let containers: Vec<Option<Arc<str>>> = if self.containers.is_empty() {
            vec![None]
        } else {
            meant.filter_map(|c| c.id.clone()).map(Some).collect()
        };
        let ports: Vec<Option<u16>> = if self.ports.is_empty() {
            vec![None]
        } else {
            self.ports.iter().copied().map(Some).collect()
        };
        let of = |container: &Option<Arc<str>>| {
            let container = container.clone();
            ports.iter().map(move |port| Key {
                container: container.clone(),
                port: *port,
            })
        };
        containers.iter().flat_map(of).collect()
    }
}

impl std::fmt::Display for Narrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let mut parts = Vec::new();
        if !self.containers.is_empty() {
            parts.push(format!("container {}", self.containers.join(" or ")));
        }
        if !ports.is_empty() {
            parts.push(format!("port {}", ports.join(" or ")));
        }
        f.write_str(&parts.join(", "))
    }
}

/// Which part of its pod. No two of a pod have anything in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// A container's id; none: containers that have no parts of their own
    pub container: Option<Arc<str>>,
    /// A local port; none: ports that have no parts of their own
    pub port: Option<u16>,
}

/// What an agent says of a part of a pod at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartSample {
    /// The pod's UID
    pub uid: Arc<str>,
    /// Which part
    pub key: Key,
    /// Counted since the pod or the container began
    pub from_birth: bool,
    /// No longer counted
    pub ended: bool,
    /// Ended with its container or pod, which does no more
    pub gone: bool,
    /// The counters
    pub sample: Sample,
}

/// A part as the agent counts it.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its counters over time
    pub series: Series,
    /// When it was last told that it is no longer counted
    pub ended: Option<Time>,
    /// Whether its container or pod had gone then: it has done nothing since
    gone: bool,
    /// Whether it has been told of since the agent connected
    confirmed: bool,
}

/// The parts of a node's pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    pods: HashMap<Arc<str>, Vec<(Key, Part)>>,
    len: usize,
    check: Check,
}

/// Whether the parts that are known are compared with those that are told of.
#[derive(Clone, Copy, Debug, Default)]
enum Check {
    #[default]
    No,
    /// From the next reading on
    Next,
    /// Until the node's clock says so
    Until(u64),
}

impl Parts {
    pub(crate) fn of(&self, uid: &str) -> &[(Key, Part)] {
        self.pods.get(uid).map_or(&[], Vec::as_slice)
    }

    /// Takes in a sample of the reading at `at`, after that at `before`, of a log that began at `first` and has had
    /// every pod since `loaded`; false if there is no room.
    pub(crate) fn take(
        &mut self,
        part: PartSample,
        (first, before, at): (u64, u64, u64),
        loaded: Option<u64>,
        now: Time,
    ) -> bool {
        let ended = part.ended.then_some(now);
        let parts = self.pods.entry(part.uid).or_default();
        if let Some((_, known)) = parts.iter_mut().find(|(key, _)| *key == part.key) {
            (known.ended, known.gone) = (ended, part.gone);
            known.confirmed = true;
            if known.series.epoch() == part.sample.epoch {
                known.series.push(&part.sample, before, at);
                return true;
            }
        } else if self.len >= MAX_PARTS {
            return false;
        }
        let series = match loaded {
            // What its pod or container has done, it has done since the reading before.
            Some(loaded) if part.from_birth && at > loaded => {
                Series::from_birth(&part.sample, first, before, at)
            }
            None | Some(_) if part.from_birth => Series::from_reading(&part.sample, first, at),
            // It began a moment ago; what the pod did before is not in it.
            _ => Series::from_reading(&part.sample, at, at),
        };
        let new = Part {
            series,
            ended,
            gone: part.gone,
            confirmed: true,
        };
        match parts.iter_mut().find(|(key, _)| *key == part.key) {
            Some((_, known)) => *known = new,
            None => {
                parts.push((part.key, new));
                self.len += 1;
            }
        }
        true
    }

    /// The agent connects, and tells of each within a second if it still counts it.
    pub(crate) fn check(&mut self) {
        self.check = Check::Next;
        for (_, part) in self.pods.values_mut().flatten() {
            part.confirmed = false;
        }
    }

    /// A current reading at `at` has come.
    pub(crate) fn checked(&mut self, at: u64, now: Time) {
        match self.check {
            Check::No => {}
            Check::Next => self.check = Check::Until(at.saturating_add(MIN_SEEN)),
            Check::Until(time) if at < time => {}
            Check::Until(_) => {
                self.check = Check::No;
                let parts = self.pods.values_mut().flatten();
                for (_, part) in parts.filter(|(_, part)| !part.confirmed) {
                    part.ended.get_or_insert(now);
                }
            }
        }
    }

    /// Forgets those of pods that nobody knows, and what no window needs.
    pub(crate) fn sweep(&mut self, is_known: impl Fn(&str) -> bool, now: Time) {
        self.pods.retain(|uid, parts| {
            parts.retain(|(_, part)| part.ended.is_none_or(|t| now.since(t) <= REMEMBER));
            !parts.is_empty() && is_known(uid)
        });
        self.len = self.pods.values().map(Vec::len).sum();
    }
}

/// What of a pod has to be counted apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Division {
    /// Local ports
    pub ports: BTreeSet<u16>,
    /// Each container
    pub containers: bool,
}

/// What has to be counted apart, by node and pod UID as cgroups carry it.
pub type Divisions = BTreeMap<Arc<str>, BTreeMap<Arc<str>, Division>>;

impl State {
    /// Adds what a query needs counted apart. Also of pods that are only starting, so that nothing of them is missed.
    pub fn divide(&self, namespace: &str, query: &Query, into: &mut Divisions) {
        if query.narrow.is_whole() {
            return;
        }
        for pod in self.index.matching(namespace, &query.selector) {
            let over = matches!(pod.facts.phase, Phase::Succeeded | Phase::Failed);
            let Some(node) = pod.facts.node.as_ref().filter(|_| !over) else {
                continue;
            };
            if pod.gone.is_some() || !query.narrow.has_container(pod) {
                continue;
            }
            let pods = into.entry(node.clone()).or_default();
            let division = pods.entry(pod.cgroup_uid().clone()).or_default();
            division.ports.extend(&query.narrow.ports);
            division.containers |= !query.narrow.containers.is_empty();
        }
    }
}
