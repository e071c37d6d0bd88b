//! From what one pod's signals of one family can be read now, or why they can not. The rules are those of
//! `answer`, to which `signals_tests` holds every value. Adds nothing up.

use crate::index::Pod;
use crate::metric::Family;
use crate::node::{LIVE, Log, MIN_SEEN, Source, Tracked};
use crate::state::State;
use crate::time::Time;

/// A pod's readings as one family may use them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub tracked: &'a Tracked,
    /// Where windows end, and before when nothing was measured, by the node's clock.
    pub span: (u64, u64),
    /// From an agent that is heard; otherwise these are its last known values.
    pub live: bool,
    /// When the latest report came.
    pub arrived: Option<Time>,
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
    pub(crate) fn look<'a>(&'a self, pod: &'a Pod, family: Family, now: Time) -> Look<'a> {
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
        let found = log.measures_since(family).zip(log.pod(pod.cgroup_uid()));
        let Some((not_before, tracked)) = found else {
            if live {
                look.why = Some(unseen(log, family, name, &pod.facts.name));
            }
            return look;
        };
        // A family that has just been switched on has seen too little yet.
        if live && log.last().saturating_sub(not_before) < MIN_SEEN {
            look.why = Some(format!("node {name} has just begun to measure {family}"));
            return look;
        }
        look.view = Some(View {
            tracked,
            span: (log.last(), not_before),
            live,
            arrived: log.arrived(),
        });
        look
    }

    /// A pod that has gone, or is starting or ending: what it did in the window counts, nothing is missed.
    pub(crate) fn look_back(&self, pod: &Pod, family: Family, now: Time) -> Option<View<'_>> {
        let name = pod.facts.node.as_deref().unwrap_or_default();
        let log = self.node(name)?.log()?;
        let (not_before, arrived) = (log.measures_since(family)?, log.arrived()?);
        // Nothing more comes from it where its node is silent, so its part leaves the window as time goes.
        let silent = now.since(arrived);
        let live = silent <= LIVE;
        let end = log.last().saturating_add(if live { 0 } else { silent });
        Some(View {
            tracked: log.pod(pod.cgroup_uid())?,
            span: (end, not_before),
            live,
            arrived: Some(arrived),
        })
    }
}

/// Why a live agent has no value for a pod.
fn unseen(log: &Log, family: Family, node: &str, pod: &str) -> String {
    match (log.degraded(family), log.measures_since(family)) {
        (Some(reason), _) => format!("node {node} can not measure {family}: {reason}"),
        (None, None) => format!("node {node} does not measure {family} yet; it has been asked to"),
        (None, Some(_)) => format!("the agent of node {node} does not see pod {pod}"),
    }
}
