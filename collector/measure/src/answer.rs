//! From a query to its answer, by the rules of truth: missing is not zero and is never guessed. Says for
//! every answer how much of what was asked about is covered, and refuses when that is too little.

use std::collections::BTreeSet;

use crate::index::{Phase, Pod};
use crate::metric::{Aggregation, Family, Metric, Window};
use crate::node::STAND_IN;
use crate::query::Query;
pub use crate::refusal::AnswerError;
use crate::refusal::Without;
use crate::series::Series;
use crate::state::State;
use crate::sum::Sum;
use crate::time::Time;
use crate::view::is_too_little;

/// A metric's value over one window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowValue {
    /// The window
    pub window: Window,
    /// In the metric's unit. A quantile without events is 0: nobody waited, and `events` says so.
    pub value: f64,
    /// Events behind the value, for its significance: requests, waits, packets
    pub events: u64,
    /// How much of the window was seen, on average over the pods
    pub covered_seconds: f64,
}

/// One pod's own values.
#[derive(Clone, Debug, PartialEq)]
pub struct PodValue {
    /// The pod's name
    pub pod: String,
    /// Its node
    pub node: String,
    /// When the report behind it came
    pub sampled: Time,
    /// Whether it is a silent node's last known value
    pub estimated: bool,
    /// One value a window
    pub windows: Vec<WindowValue>,
}

/// What a query gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// One value for each window asked for
    pub windows: Vec<WindowValue>,
    /// Pods that have to be measured: running on their node for 2 s, not being deleted
    pub expected: usize,
    /// Those that a live agent sees
    pub covered: usize,
    /// Those of silent nodes whose last known values are in the answer
    pub estimated: usize,
    /// Nodes whose agent is not heard
    pub silent_nodes: Vec<String>,
    /// When the least recent of the reports behind it came
    pub sampled: Time,
    /// Each pod's own values, if the query asked for them
    pub pods: Vec<PodValue>,
}

impl Answer {
    /// Share of the expected pods that live agents cover, 0 to 1.
    pub fn coverage(&self) -> f64 {
        self.covered as f64 / self.expected.max(1) as f64
    }
}

/// Everything that adding up the pods has found.
struct Tally<'a> {
    metric: Metric,
    query: &'a Query,
    windows: &'a [Window],
    without_container: Without,
    sums: Vec<Sum>,
    expected: usize,
    covered: usize,
    estimated: usize,
    silent: BTreeSet<String>,
    why: BTreeSet<String>,
    overdue: bool,
    sampled: Option<Time>,
    pods: Vec<PodValue>,
}

impl State {
    /// Answers a query about the pods of a namespace at `now`, over each of `windows`.
    ///
    /// - Expected is a pod that is seen running for 2 s, bound to a node, and not being deleted.
    /// - A live agent that sees the pod covers it; without events that is a true zero.
    /// - Pods of a silent node contribute their last known values for 15 s, which the answer declares;
    ///   a pod that no agent has seen contributes nothing for as long, which lowers the coverage.
    ///   After that, or below half coverage, there is no answer.
    /// - Pods that have gone, or are just starting or ending, count with what they did in the window,
    ///   so that a rolling update or a step of replicas never changes the sum.
    pub fn answer(
        &self,
        namespace: &str,
        metric: Metric,
        query: &Query,
        windows: &[Window],
        now: Time,
    ) -> Result<Answer, AnswerError> {
        let tally = self.tally(namespace, (metric, windows), query, query.by_pod, now)?;
        tally.close(now)
    }

    /// Answers for each pod on its own at `now`: for those who judge themselves what it means that some are
    /// missing, as HPAs of type Pods do.
    ///
    /// - A pod without a value is left out; it is in `expected`, but not in `pods`.
    /// - So are pods that are starting or ending: they are not expected.
    /// - Without a value of any pod there is no answer.
    pub fn answer_each(
        &self,
        namespace: &str,
        metric: Metric,
        query: &Query,
        windows: &[Window],
        now: Time,
    ) -> Result<Answer, AnswerError> {
        let tally = self.tally(namespace, (metric, windows), query, true, now)?;
        if tally.pods.is_empty() {
            return Err(tally.missing());
        }
        Ok(tally.answer(now))
    }

    /// Adds up the pods that a query means; an error if none has to be measured.
    fn tally<'a>(
        &self,
        namespace: &str,
        (metric, windows): (Metric, &'a [Window]),
        query: &'a Query,
        by_pod: bool,
        now: Time,
    ) -> Result<Tally<'a>, AnswerError> {
        if let Some((key, why)) = query.narrow.misfit(metric) {
            return Err(AnswerError::Misfit { metric, key, why });
        }
        let mut tally = Tally {
            metric,
            query,
            windows,
            without_container: Without::default(),
            sums: windows.iter().map(|_| Sum::of(query.protocol)).collect(),
            expected: 0,
            covered: 0,
            estimated: 0,
            silent: BTreeSet::new(),
            why: BTreeSet::new(),
            overdue: false,
            sampled: None,
            pods: Vec::new(),
        };
        let mut others = Others::default();
        for pod in self.index.matching(namespace, &query.selector) {
            match pod.expected_since(now) {
                Some(_) if !query.narrow.has_container(pod) => tally.without_container.add(pod),
                Some(since) => self.add_expected(pod, since, by_pod, &mut tally, now),
                None => {
                    others.count(pod);
                    self.add_other(pod, &mut tally, now);
                }
            }
        }
        let without = &tally.without_container;
        if tally.expected == 0 && without.pods > 0 {
            return Err(AnswerError::NoContainer {
                namespace: namespace.to_owned(),
                selector: query.selector.to_string(),
                asked: query.narrow.containers.join(" or "),
                pods: without.pods,
                there: without.there(),
            });
        }
        if tally.expected == 0 {
            return Err(AnswerError::NoPods {
                namespace: namespace.to_owned(),
                selector: query.selector.to_string(),
                matched: others.matched,
                why: others.to_string(),
            });
        }
        Ok(tally)
    }

    fn add_expected(&self, pod: &Pod, since: Time, by_pod: bool, tally: &mut Tally<'_>, now: Time) {
        tally.expected += 1;
        let query = tally.query;
        let look = self.look(pod, family(tally.metric, query), &query.narrow, now);
        tally.silent.extend(look.silent.map(str::to_owned));
        tally.why.extend(look.why);
        let Some(view) = look.view else {
            tally.overdue |= now.since(since) > STAND_IN;
            return;
        };
        let series = view.series();
        if view.live {
            tally.covered += 1;
        } else {
            tally.estimated += 1;
        }
        if let Some(t) = view.arrived {
            tally.sampled = Some(tally.sampled.map_or(t, |s| s.min(t)));
        }
        tally.add(series, view.span);
        if by_pod {
            tally.pods.push(PodValue {
                pod: pod.facts.name.clone(),
                node: pod.facts.node.as_deref().unwrap_or_default().to_owned(),
                sampled: view.arrived.unwrap_or(now),
                estimated: !view.live,
                windows: tally.own(series, view.span),
            });
        }
    }

    /// A pod that has gone, or is starting or ending: what it did in the window counts, nothing is missed.
    fn add_other(&self, pod: &Pod, tally: &mut Tally<'_>, now: Time) {
        // A mean is over the pods that are there.
        if tally.metric.aggregation() == Aggregation::MeanRatio {
            return;
        }
        let family = family(tally.metric, tally.query);
        let Some(view) = self.look_back(pod, family, &tally.query.narrow, now) else {
            return;
        };
        for (window, sum) in tally.windows.iter().zip(&mut tally.sums) {
            sum.absorb(tally.metric, view.series(), *window, view.span);
        }
    }
}

/// What a node must measure to answer. Who measures requests inside TLS measures those outside, too.
fn family(metric: Metric, query: &Query) -> Family {
    if query.tls && metric.is_found_inside_tls() {
        Family::Tls
    } else {
        metric.family()
    }
}

impl Tally<'_> {
    /// Adds a pod that is expected.
    fn add(&mut self, series: &[&Series], span: (u64, u64)) {
        for (window, sum) in self.windows.iter().zip(&mut self.sums) {
            sum.covered += sum.absorb(self.metric, series, *window, span);
        }
    }

    /// A pod's own values.
    fn own(&self, series: &[&Series], span: (u64, u64)) -> Vec<WindowValue> {
        let values = self.windows.iter().map(|window| {
            let mut sum = Sum::of(self.query.protocol);
            sum.covered = sum.absorb(self.metric, series, *window, span);
            sum.close(self.metric, *window, 1)
        });
        values.collect()
    }

    /// By the rules for one value over all pods.
    fn close(self, now: Time) -> Result<Answer, AnswerError> {
        if is_too_little(self.expected, self.covered, self.estimated, self.overdue) {
            return Err(self.missing());
        }
        Ok(self.answer(now))
    }

    fn missing(self) -> AnswerError {
        let why: Vec<_> = self.why.into_iter().take(10).collect();
        AnswerError::Missing {
            metric: self.metric,
            covered: self.covered,
            expected: self.expected,
            silent_nodes: self.silent.into_iter().collect(),
            why: why.join("; "),
        }
    }

    fn answer(self, now: Time) -> Answer {
        let known = self.covered + self.estimated;
        Answer {
            windows: self
                .windows
                .iter()
                .zip(&self.sums)
                .map(|(window, sum)| sum.close(self.metric, *window, known))
                .collect(),
            expected: self.expected,
            covered: self.covered,
            estimated: self.estimated,
            silent_nodes: self.silent.into_iter().collect(),
            sampled: self.sampled.unwrap_or(now),
            pods: self.pods,
        }
    }
}

/// Pods that match but are not expected, by what they are instead.
#[derive(Default)]
pub(crate) struct Others {
    matched: usize,
    pending: usize,
    settling: usize,
    ending: usize,
}

impl Others {
    pub(crate) fn count(&mut self, pod: &Pod) {
        if pod.gone.is_some() {
            return;
        }
        self.matched += 1;
        match pod.facts.phase {
            Phase::Running if pod.facts.deleting => self.ending += 1,
            Phase::Running => self.settling += 1,
            Phase::Pending | Phase::Unknown => self.pending += 1,
            Phase::Succeeded | Phase::Failed => self.ending += 1,
        }
    }
}

impl std::fmt::Display for Others {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} pending, {} running for less than 2 s, {} ended or ending",
            self.pending, self.settling, self.ending
        )
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
