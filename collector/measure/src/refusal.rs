//! Why a question gets no answer, in words that name what was asked and what is missing. It decides nothing.

use std::collections::BTreeSet;

use crate::index::Pod;
use crate::metric::Metric;

/// Why there is no answer. Each is better than a number that is not true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Nothing to measure: a sum over no pods is not 0 requests/s, it is no measurement.
    #[error("no pod to measure in namespace {namespace} for {selector:?}: {matched} match, {why}")]
    NoPods {
        /// The namespace
        namespace: String,
        /// The selector, in one form
        selector: String,
        /// Pods that match but are not expected
        matched: usize,
        /// What they are instead
        why: String,
    },
    /// The pods have no container of that name.
    #[error(
        "ebpfscaler.io/container: none of the {pods} pods in namespace {namespace} for {selector:?} has a container {asked}; they have: {there}"
    )]
    NoContainer {
        /// The namespace
        namespace: String,
        /// The selector, in one form
        selector: String,
        /// What was asked for
        asked: String,
        /// Pods that are measured
        pods: usize,
        /// The names of their containers
        there: String,
    },
    /// A key that means nothing for the metric.
    #[error("ebpfscaler.io/{key} can not narrow {metric}: {why}")]
    Misfit {
        /// The metric
        metric: Metric,
        /// The key without its prefix
        key: &'static str,
        /// Why not
        why: &'static str,
    },
    /// Too much is missing for too long.
    #[error("{metric} is known of {covered} of {expected} pods only: {why}")]
    Missing {
        /// The metric
        metric: Metric,
        /// Pods that live agents cover
        covered: usize,
        /// Pods that should be
        expected: usize,
        /// Nodes whose agents are silent
        silent_nodes: Vec<String>,
        /// Which nodes or pods, and why, for people
        why: String,
    },
}

impl AnswerError {
    /// The HTTP status that fits. None of them makes client-go retry by itself, and an HPA holds on each.
    pub const fn code(&self) -> u16 {
        match self {
            Self::NoPods { .. } | Self::NoContainer { .. } => 404,
            Self::Misfit { .. } => 400,
            Self::Missing { .. } => 503,
        }
    }

    /// The case as one word, for machines.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoPods { .. } => "NoPods",
            Self::NoContainer { .. } => "NoContainer",
            Self::Misfit { .. } => "BadSelector",
            Self::Missing { .. } => "MissingPods",
        }
    }
}

/// Pods that would be measured, but have none of the containers asked for.
#[derive(Default)]
pub(crate) struct Without {
    pub(crate) pods: usize,
    names: BTreeSet<String>,
}

impl Without {
    pub(crate) fn add(&mut self, pod: &Pod) {
        self.pods += 1;
        let names = pod.facts.containers.iter().map(|c| c.name.to_string());
        // To be read by people: not of every pod.
        if self.names.len() < 20 {
            self.names.extend(names);
        }
    }

    pub(crate) fn there(&self) -> String {
        self.names.iter().cloned().collect::<Vec<_>>().join(", ")
    }
}
