//! From what one pod's signals of one family can be read now, or why they can not: the rules that answers and signals
//! share. Adds nothing up.

use crate::index::Pod;
use crate::metric::Family;
use crate::narrow::Narrow;
use crate::node::{LIVE, Log, MIN_SEEN, Source, Tracked};
use crate::series::Series;
use crate::state::State;
use crate::time::Time;

/// A pod's readings as one family may use them.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub tracked: &'a Tracked,
    found: Found<'a>,
    /// Where windows end, and before when nothing was measured, by the node's clock.
    pub span: (u64, u64),
    /// From an agent that is heard; otherwise these are its last known values.
    pub live: bool,
    /// When the latest report came.
    pub arrived: Option<Time>,
}

impl<'a> View<'a> {
    /// What of the pod counts.
    pub fn series(&self) -> &[&'a Series] {
        match &self.found {
            Found::Whole(one) => one,
            Found::Parts(parts) => parts,
        }
    }
}

#[derive(Debug)]
enum Found<'a> {
    Whole([&'a Series; 1]),
    Parts(Vec<&'a Series>),
}

impl<'a> Found<'a> {
    /// What `narrow` means of the pod, and since when by the node's clock all of it is counted; none if it is not.
    fn of(log: &'a Log, tracked: &'a Tracked, pod: &Pod, narrow: &Narrow) -> Option<(Self, u64)> {
        if narrow.is_whole() {
            return Some((Self::Whole([&tracked.series]), 0));
        }
        let (parts, since) = narrow.find(log, pod)?;
        Some((Self::Parts(parts), since))
    }
}

/// What looking for a pod that has to be measured found.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    pub view: Option<View<'a>>,
    /// The pod's node, if its agent is not heard
    pub silent: Option<&'a str>,
    /// What is wrong, for people
    pub why: Option<String>,
}

/// Whether so much is missing that there is no answer: less than half is covered, or something has been
/// missing for longer than last known values may stand in.
pub(crate) fn is_too_little(
    expected: usize,
    covered: usize,
    estimated: usize,
    overdue: bool,
) -> bool {
    covered * 2 < expected || (covered + estimated < expected && overdue)
}

impl State {
    /// A pod that is expected to be measured.
    pub(crate) fn look<'a>(
        &'a self,
        pod: &'a Pod,
        family: Family,
        narrow: &Narrow,
        now: Time,
    ) -> Look<'a> {
        let name = pod.facts.node.as_deref().unwrap_or_default();
        let node = self.node(name);
        let (log, live) = match node.map_or(Source::Nothing, |n| n.source(now)) {
            Source::Live(log) => (Some(log), true),
            Source::LastKnown(log) => (Some(log), false),
            Source::Nothing => (None, false),
        };
        let why = (!live).then(|| match node.and_then(|n| n.log()?.arrived()) {
            Some(t) => format!("node {name} is silent for {} s", now.since(t) / 1_000_000),
            None => format!("no agent reports from node {name}"),
        });
        let mut look = Look {
            view: None,
            silent: (!live).then_some(name),
            why,
        };
        let Some(log) = log else { return look };
        let measured = log.measures_since(family).zip(log.pod(pod.cgroup_uid()));
        let found = measured.and_then(|(not_before, tracked)| {
            let (found, since) = Found::of(log, tracked, pod, narrow)?;
            Some((not_before.max(since), tracked, found))
        });
        let Some((not_before, tracked, found)) = found else {
            if live {
                look.why = Some(unseen(log, family, narrow, name, pod));
            }
            return look;
        };
        // A family that has just been switched on has seen too little yet; so has a part.
        if live && log.last().saturating_sub(not_before) < MIN_SEEN {
            look.why = Some(if narrow.is_whole() {
                format!("node {name} has just begun to measure {family}")
            } else {
                let pod = &pod.facts.name;
                format!("node {name} has just begun to count {narrow} of pod {pod} apart")
            });
            return look;
        }
        look.view = Some(View {
            tracked,
            found,
            span: (log.last(), not_before),
            live,
            arrived: log.arrived(),
        });
        look
    }

    /// A pod that has gone, or is starting or ending: what it did in the window counts, nothing is missed.
    pub(crate) fn look_back(
        &self,
        pod: &Pod,
        family: Family,
        narrow: &Narrow,
        now: Time,
    ) -> Option<View<'_>> {
        let name = pod.facts.node.as_deref().unwrap_or_default();
        let log = self.node(name)?.log()?;
        let (not_before, arrived) = (log.measures_since(family)?, log.arrived()?);
        let tracked = log.pod(pod.cgroup_uid())?;
        let (found, since) = Found::of(log, tracked, pod, narrow)?;
        // Nothing more comes from it where its node is silent, so its part leaves the window as time goes.
        let silent = now.since(arrived);
        let live = silent <= LIVE;
        let end = log.last().saturating_add(if live { 0 } else { silent });
        Some(View {
            tracked,
            found,
            span: (end, not_before.max(since)),
            live,
            arrived: Some(arrived),
        })
    }
}

/// Why a live agent has no value for a pod.
fn unseen(log: &Log, family: Family, narrow: &Narrow, node: &str, pod: &Pod) -> String {
    let name = &pod.facts.name;
    match (log.degraded(family), log.measures_since(family)) {
        (Some(reason), _) => format!("node {node} can not measure {family}: {reason}"),
        (None, None) => format!("node {node} does not measure {family} yet; it has been asked to"),
        (None, Some(_)) if log.pod(pod.cgroup_uid()).is_some() => {
            format!(
                "node {node} does not count {narrow} of pod {name} apart yet; it has been asked to"
            )
        }
        (None, Some(_)) => format!("the agent of node {node} does not see pod {name}"),
    }
}
