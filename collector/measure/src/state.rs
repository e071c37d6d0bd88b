//! Everything a replica knows: the pod index and what each node's agent reports. Events go in with their
//! time, answers come out (see `answer`); it does nothing by itself.

use std::collections::HashMap;
use std::sync::Arc;

use crate::index::{Index, Phase};
use crate::metric::Family;
use crate::node::{Batch, Hello, Node, Received, Source};
use crate::tally::{Tally, Workload};
use crate::time::Time;

/// A UID that no pod is known to have is held this long with its history, then only with where it stands.
const HOLD_UNKNOWN: u64 = 10_000_000;

/// A replica's knowledge.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Pods and owners
    pub index: Index,
    nodes: HashMap<Arc<str>, Node>,
    tally: Tally,
}

impl State {
    /// What is known of a node's agent.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Every node that has ever reported, until it is forgotten.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(name, node)| (name.as_ref(), node))
    }

    /// The agent of `node` has connected.
    pub fn hello(&mut self, node: &str, hello: &Hello) {
        self.nodes.entry(node.into()).or_default().hello(hello);
    }

    /// The agent's run `agent_epoch` on `node` has reported. Samples of pods that the index knows on another
    /// node are refused; those of unknown pods are kept, for the watch may be behind.
    pub fn report(&mut self, node: &str, agent_epoch: u64, batch: Batch, now: Time) -> Received {
        let index = &self.index;
        let elsewhere = |uid: &str| {
            let pod = index.by_cgroup_uid(uid);
            pod.is_some_and(|p| p.facts.node.as_deref().is_some_and(|n| n != node))
        };
        let Some((name, _)) = self.nodes.get_key_value(node) else {
            return Received {
                late: true,
                ..Received::default()
            };
        };
        let name = name.clone();
        let known = self.nodes.entry(name.clone()).or_default();
        let own = batch.samples.iter().filter(|(uid, _)| !elsewhere(uid));
        let counters: Vec<_> = own
            .map(|(uid, s)| (uid.clone(), s.epoch, s.counters.requests))
            .collect();
        let received = known.receive(agent_epoch, batch, elsewhere, now);
        if !received.late {
            // What the log had no room for is not counted either: memory stays bounded.
            let log = known.log();
            for (uid, epoch, requests) in counters {
                if log.is_some_and(|l| l.pod(&uid).is_some()) {
                    self.tally.read((&uid, &name), (epoch, requests), now);
                }
            }
        }
        received
    }

    /// Requests that each workload has had since this was last asked.
    pub fn drain_requests(&mut self) -> HashMap<Workload, u64> {
        self.tally.drain(&self.index)
    }

    /// The same of a part of the pods (below [`crate::tally::PARTS`]).
    pub fn drain_requests_of(&mut self, part: usize) -> HashMap<Workload, u64> {
        self.tally.drain_part(part, &self.index)
    }

    /// How many of the nodes that run pods have a live agent, and how many there are.
    pub fn connected(&self, now: Time) -> (usize, usize) {
        let nodes = self.index.nodes();
        let live = |n: &&Arc<str>| self.node(n).is_some_and(|node| node.is_live(now));
        (nodes.iter().filter(live).count(), nodes.len())
    }

    /// Counts the pods of a namespace.
    pub fn count(&self, namespace: &str, census: &mut Census, now: Time) {
        for pod in self.index.of_namespace(namespace) {
            let name = pod.facts.node.as_ref();
            let node = name.and_then(|n| self.node(n));
            if let Some(name) = name
                && pod.gone.is_none()
                && pod.facts.phase == Phase::Running
                && !census.nodes.contains_key(name)
            {
                let live = node.is_some_and(|node| node.is_live(now));
                census.nodes.insert(name.clone(), live);
            }
            if pod.expected_since(now).is_none() {
                continue;
            }
            census.expected += 1;
            if let Some(Source::Live(log)) = node.map(|n| n.source(now))
                && log.pod(pod.cgroup_uid()).is_some()
            {
                for (family, covered) in Family::ALL.iter().zip(&mut census.covered) {
                    *covered += usize::from(log.measures_since(*family).is_some());
                }
            }
        }
    }

    /// Forgets what no window needs any more. Call it every few seconds, or its parts one after the other.
    pub fn sweep(&mut self, now: Time) {
        self.index.sweep(now);
        self.tally.sweep(&self.index, now);
        self.sweep_nodes(&self.node_names(), now);
    }

    /// A part (below [`crate::tally::PARTS`]) of [`Self::sweep`].
    pub fn sweep_requests(&mut self, part: usize, now: Time) {
        self.tally.sweep_part(part, &self.index, now);
    }

    /// The nodes for [`Self::sweep_nodes`].
    pub fn node_names(&self) -> Vec<Arc<str>> {
        self.nodes.keys().cloned().collect()
    }

    /// Some nodes' part of [`Self::sweep`].
    pub fn sweep_nodes(&mut self, names: &[Arc<str>], now: Time) {
        let index = &self.index;
        for name in names {
            let Some(node) = self.nodes.get_mut(name) else {
                continue;
            };
            let left = node.sweep(
                |uid, tracked| match index.by_cgroup_uid(uid) {
                    Some(_) => Some(true),
                    None if now.since(tracked.first_seen) <= HOLD_UNKNOWN => Some(true),
                    None => None,
                },
                now,
            );
            if !left {
                self.nodes.remove(name);
            }
        }
    }
}

/// What there is in the cluster and how much of it is measured, counted namespace by namespace.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Nodes on which pods run, and whether their agents are heard
    pub nodes: HashMap<Arc<str>, bool>,
    /// Pods that have to be measured
    pub expected: usize,
    /// Those that live agents cover, by family in the order of [`Family::ALL`]
    pub covered: [usize; Family::ALL.len()],
}
