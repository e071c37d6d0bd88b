//! All metrics of each workload, or of each pod, over one window and in one pass over the pods. Values follow
//! the rules of `answer` to the letter; what has none says why. Knows no API type and keeps nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::answer::Others;
use crate::index::Pod;
use crate::metric::{Aggregation, Distribution, Family, Metric, Window};
use crate::narrow::Narrow;
use crate::node::STAND_IN;
use crate::quantile::Merged;
use crate::state::State;
use crate::sum::amount_and_events;
use crate::time::Time;
use crate::view::{View, is_too_little};

mod causes;

pub use causes::{Blame, Cause, Waiting, Who};

/// How many metrics there are.
const METRICS: usize = Metric::ALL.len();
/// A reason names at most this many nodes or pods.
const MAX_WHYS: usize = 10;
/// At most this many of those behind whom threads waited are named.
pub const MAX_BLAMED: usize = 5;

/// Why metrics have no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GapReason {
    /// No pod has to be measured: none runs, or none for long enough
    NoPods,
    /// Too many pods are not measured, or one for too long
    MissingPods,
    /// Nothing happened whose time could have been taken
    NoEvents,
}

impl GapReason {
    /// The reason as one word, for machines; the first two as in errors of `answer`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPods => "NoPods",
            Self::MissingPods => "MissingPods",
            Self::NoEvents => "NoEvents",
        }
    }
}

/// Metrics without a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What they are made of
    pub family: Family,
    /// Why, for machines
    pub reason: GapReason,
    /// Why, for people
    pub message: String,
    /// Which, in the order of the documentation
    pub metrics: Vec<Metric>,
}

/// The metrics of some pods over one window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    values: [Option<f64>; METRICS],
    /// What has no value
    pub gaps: Vec<Gap>,
    /// Pods that have to be measured: running on their node for 2 s, not being deleted
    pub expected: usize,
    /// Of these, pods whose live agents measure every family that has values here
    pub covered: usize,
    /// Pods of silent nodes whose last known values are in some value here
    pub estimated: usize,
    /// Nodes of these pods whose agent is not heard
    pub silent_nodes: Vec<String>,
    /// When the newest of the reports behind it came
    pub sampled: Option<Time>,
    /// Behind whom threads waited most lately, the most first; empty while the run queue has no values
    pub blamed: Vec<Blame>,
}

impl Signals {
    /// A metric's value in its unit, as `answer` gives it; but a quantile without events is none.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.values[metric as usize]
    }

    /// What the threads that waited waited for, the most first; empty if none waited.
    pub fn causes(&self) -> Vec<Waiting> {
        causes::waiting(|metric| self.value(metric))
    }

    /// Whether two say the same, whenever they were sampled, to the thousandth that is served.
    pub fn is_same(&self, other: &Self) -> bool {
        let close = |a: &Option<f64>, b: &Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a * 1000.0).round() == (b * 1000.0).round(),
            (a, b) => a.is_none() && b.is_none(),
        };
        let blamed = |list: &[Blame]| -> Vec<_> {
            let round = |b: &Blame| (b.who.clone(), (b.waiting_threads * 1000.0).round());
            list.iter().map(round).collect()
        };
        self.values
            .iter()
            .zip(&other.values)
            .all(|(a, b)| close(a, b))
            && (self.expected, self.covered, self.estimated)
                == (other.expected, other.covered, other.estimated)
            && self.silent_nodes == other.silent_nodes
            && self.gaps == other.gaps
            && blamed(&self.blamed) == blamed(&other.blamed)
    }
}

/// Kind and name of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadRef {
    /// `Deployment`, `StatefulSet`, ...; `Pod` for a pod that nothing owns
    pub kind: String,
    /// Its name
    pub name: String,
}

/// A workload's signals.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadSignals {
    /// Its namespace
    pub namespace: Arc<str>,
    /// What owns the pods at the top
    pub workload: WorkloadRef,
    /// Labels that all of its pods have, those that are ending excepted
    pub labels: BTreeMap<String, String>,
    /// What its pods do
    pub signals: Signals,
}

/// A pod's signals.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSignals {
    /// Its namespace
    pub namespace: Arc<str>,
    /// Its name
    pub name: String,
    /// Its UID in the API
    pub uid: Arc<str>,
    /// Where it runs
    pub node: Option<Arc<str>>,
    /// What owns it at the top
    pub workload: WorkloadRef,
    /// Condition Ready
    pub ready: bool,
    /// Its labels
    pub labels: BTreeMap<String, String>,
    /// What it does
    pub signals: Signals,
}

impl State {
    /// The signals of every workload of a namespace that has a pod which has not ended, by name and kind.
    ///
    /// Pods that have gone count with what they did in the window, as in `answer`.
    pub fn workload_signals(
        &self,
        namespace: &str,
        window: Window,
        now: Time,
    ) -> Vec<WorkloadSignals> {
        let mut adder = Adder::new(self, window, now);
        let mut found = Vec::new();
        for ((name, kind), pods) in self.by_workload(namespace) {
            let mut alive = pods.iter().filter(|pod| is_alive(pod));
            let Some(first) = alive.next() else { continue };
            let mut labels = first.facts.labels.clone();
            for pod in alive.filter(|pod| !pod.facts.deleting) {
                labels.retain(|key, value| pod.facts.labels.get(key) == Some(value));
            }
            found.push(WorkloadSignals {
                namespace: first.facts.namespace.clone(),
                workload: WorkloadRef {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                },
                labels,
                signals: adder.add_up(&pods),
            });
        }
        found
    }

    /// The signals of every pod of a namespace that runs or is about to, by name.
    pub fn pod_signals(&self, namespace: &str, window: Window, now: Time) -> Vec<PodSignals> {
        let mut adder = Adder::new(self, window, now);
        let alive = self.index.of_namespace(namespace).filter(is_alive);
        let mut found: Vec<_> = alive
            .map(|pod| self.of_pod(pod, adder.add_up(&[pod])))
            .collect();
        found.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        found
    }

    /// Pods of a namespace that were over at `since` or later; without values.
    pub fn pods_over(&self, namespace: &str, since: Time) -> Vec<PodSignals> {
        let pods = self.index.of_namespace(namespace);
        let over = pods.filter(|pod| pod.over().is_some_and(|at| at >= since));
        over.map(|pod| self.of_pod(pod, Signals::default()))
            .collect()
    }

    /// Workloads of a namespace whose last pod was over at `since` or later; without values.
    pub fn workloads_over(&self, namespace: &str, since: Time) -> Vec<WorkloadSignals> {
        let groups = self.by_workload(namespace).into_iter();
        let over = groups.filter_map(|((name, kind), pods)| {
            // One pod that goes on is enough.
            let ends: Option<Vec<_>> = pods.iter().map(|pod| pod.over()).collect();
            let last = ends?.into_iter().max()?;
            (last >= since).then(|| WorkloadSignals {
                namespace: namespace.into(),
                workload: WorkloadRef {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                },
                labels: BTreeMap::new(),
                signals: Signals::default(),
            })
        });
        over.collect()
    }

    /// A namespace's pods, those that have gone lately too, by name and kind of their workload.
    fn by_workload(&self, namespace: &str) -> BTreeMap<(&str, &str), Vec<&Pod>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for pod in self.index.of_namespace(namespace) {
            let (kind, name) = self.owner(pod);
            groups.entry((name, kind)).or_default().push(pod);
        }
        groups
    }

    fn of_pod(&self, pod: &Pod, signals: Signals) -> PodSignals {
        let (kind, name) = self.owner(pod);
        PodSignals {
            namespace: pod.facts.namespace.clone(),
            name: pod.facts.name.clone(),
            uid: pod.facts.uid.clone(),
            node: pod.facts.node.clone(),
            workload: WorkloadRef {
                kind: kind.to_owned(),
                name: name.to_owned(),
            },
            ready: pod.facts.ready,
            labels: pod.facts.labels.clone(),
            signals,
        }
    }

    /// What owns a pod at the top; it is its own workload if nothing does.
    pub(crate) fn owner<'a>(&'a self, pod: &'a Pod) -> (&'a str, &'a str) {
        let owner = self.index.workload(pod);
        owner.unwrap_or(("Pod", &pod.facts.name))
    }
}

fn is_alive(pod: &&Pod) -> bool {
    pod.over().is_none()
}

/// One family's sums and coverage.
#[derive(Default)]
struct Tally {
    covered: usize,
    estimated: usize,
    overdue: bool,
    why: BTreeSet<String>,
}

/// Adds pods up, one group after the other, in buffers that it keeps.
struct Adder<'a> {
    state: &'a State,
    window: Window,
    now: Time,
    sums: [f64; METRICS],
    merged: [Merged; 3],
}

/// Those that metrics are of. Requests inside TLS are in those of requests, where somebody has them counted.
const FAMILIES: [Family; 3] = [Family::Requests, Family::Network, Family::RunQueue];

const DISTRIBUTIONS: [(Distribution, Family); 3] = [
    (Distribution::RequestLatency, Family::Requests),
    (Distribution::RunQueueLatency, Family::RunQueue),
    (Distribution::TcpRtt, Family::Network),
];

impl<'a> Adder<'a> {
    fn new(state: &'a State, window: Window, now: Time) -> Self {
        Self {
            state,
            window,
            now,
            sums: [0.0; METRICS],
            merged: Default::default(),
        }
    }

    fn add_up(&mut self, pods: &[&Pod]) -> Signals {
        self.sums = [0.0; METRICS];
        self.merged.iter_mut().for_each(Merged::clear);
        let mut tallies: [Tally; 3] = Default::default();
        let mut signals = Signals::default();
        let mut silent = BTreeSet::new();
        let mut blamed = causes::Blamed::default();
        let mut others = Others::default();
        let whole = Narrow::default();
        for pod in pods {
            let Some(since) = pod.expected_since(self.now) else {
                others.count(pod);
                for family in FAMILIES {
                    if let Some(view) = self.state.look_back(pod, family, &whole, self.now) {
                        self.add(family, &view, false);
                    }
                }
                continue;
            };
            signals.expected += 1;
            for (family, tally) in FAMILIES.into_iter().zip(&mut tallies) {
                let look = self.state.look(pod, family, &whole, self.now);
                silent.extend(look.silent);
                if tally.why.len() < MAX_WHYS {
                    tally.why.extend(look.why);
                }
                let Some(view) = look.view else {
                    tally.overdue |= self.now.since(since) > STAND_IN;
                    continue;
                };
                if view.live {
                    tally.covered += 1;
                } else {
                    tally.estimated += 1;
                }
                signals.sampled = signals.sampled.max(view.arrived);
                self.add(family, &view, true);
                if family == Family::RunQueue && view.live {
                    blamed.add(&view.tracked.preemptors);
                }
            }
        }
        signals.silent_nodes = silent.into_iter().map(str::to_owned).collect();
        self.close(&mut signals, &tallies, &others);
        let runs = signals.value(Metric::RunQueueWaitingThreads).is_some();
        if runs {
            signals.blamed = blamed.name(self.state, MAX_BLAMED);
        }
        signals
    }

    fn add(&mut self, family: Family, view: &View<'_>, expected: bool) {
        let (series, window) = (&view.tracked.series, self.window.micros());
        let (end, not_before) = view.span;
        let added = series.added(end, window, not_before);
        if added.covered == 0 {
            return;
        }
        let seconds = added.covered as f64 / 1e6;
        for metric in Metric::ALL.iter().filter(|m| m.family() == family) {
            // A mean is over the pods that are there.
            if expected || metric.aggregation() != Aggregation::MeanRatio {
                let (amount, _) = amount_and_events(*metric, |total| added.amounts.get(total));
                self.sums[*metric as usize] += amount / seconds;
            }
        }
        for ((which, of), merged) in DISTRIBUTIONS.into_iter().zip(&mut self.merged) {
            if of == family {
                series.merge(which, (end, window, not_before), merged);
            }
        }
    }

    fn close(&self, signals: &mut Signals, tallies: &[Tally; 3], others: &Others) {
        let mut least: Option<usize> = None;
        for (family, tally) in FAMILIES.into_iter().zip(tallies) {
            let all = || Metric::ALL.iter().copied().filter(|m| m.family() == family);
            let (expected, covered, estimated) = (signals.expected, tally.covered, tally.estimated);
            let gap = if expected == 0 {
                Some((GapReason::NoPods, format!("no pod to measure: {others}")))
            } else if is_too_little(expected, covered, estimated, tally.overdue) {
                let why: Vec<_> = tally.why.iter().take(MAX_WHYS).cloned().collect();
                let why = why.join("; ");
                Some((
                    GapReason::MissingPods,
                    format!("known of {covered} of {expected} pods only: {why}"),
                ))
            } else {
                None
            };
            if let Some((reason, message)) = gap {
                signals.gaps.push(Gap {
                    family,
                    reason,
                    message,
                    metrics: all().collect(),
                });
                continue;
            }
            least = Some(least.map_or(covered, |l| l.min(covered)));
            signals.estimated = signals.estimated.max(estimated);
            let mut eventless = Vec::new();
            for metric in all() {
                let value = self.value(metric, covered + estimated);
                if value.is_none() {
                    eventless.push(metric);
                }
                signals.values[metric as usize] = value;
            }
            if !eventless.is_empty() {
                signals.gaps.push(Gap {
                    family,
                    reason: GapReason::NoEvents,
                    message: no_events(family).to_owned(),
                    metrics: eventless,
                });
            }
        }
        let most = || tallies.iter().map(|t| t.covered).max().unwrap_or(0);
        signals.covered = least.unwrap_or_else(most);
    }

    fn value(&self, metric: Metric, known: usize) -> Option<f64> {
        let sum = self.sums[metric as usize];
        match metric.aggregation() {
            Aggregation::SumOfRates | Aggregation::SumOfAverages => Some(sum),
            Aggregation::MeanRatio => Some(sum / known.max(1) as f64),
            Aggregation::Quantile(which, q) => {
                let at = DISTRIBUTIONS.iter().position(|(d, _)| *d == which)?;
                self.merged[at].quantile(q).map(|micros| micros as f64)
            }
        }
    }
}

const fn no_events(family: Family) -> &'static str {
    match family {
        Family::Requests | Family::Tls => "no request was answered in the window",
        Family::RunQueue => "no thread waited for a CPU in the window",
        Family::Network => "no round-trip time was taken in the window",
    }
}

#[cfg(test)]
#[path = "signals_tests.rs"]
mod tests;
