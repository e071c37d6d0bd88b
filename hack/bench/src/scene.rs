//! A site with the real programs attached to its pods, read in this process as the agent reads them.

use std::collections::BTreeMap;

use anyhow::Context;
use ebpf_scaler_collector::agent::probes::{Counters, Options, Probes, Slot};
use ebpf_scaler_testbed::Wire;

use crate::site::{Pod, Site};

/// More than any bench makes.
const MAX_PODS: u32 = 64;

/// What the programs could not do, by the names of the metrics.
pub type Statistics = BTreeMap<&'static str, u64>;

/// The programs go before the site does.
pub struct Scene {
    /// Attached to the site's kubepods.
    pub probes: Probes,
    /// Where pods and clients are.
    pub site: Site,
}

/// A pod that is counted.
pub struct Target {
    /// Its place.
    pub pod: Pod,
    slot: Slot,
}

impl Scene {
    /// A new site, measured.
    pub fn create(wire: Wire) -> anyhow::Result<Scene> {
        let site = Site::create(wire)?;
        let probes = load(&site)?;
        Ok(Scene { probes, site })
    }

    /// New programs in place of these, as when the agent restarts; targets are to be adopted again.
    pub fn reload(&mut self) -> anyhow::Result<()> {
        self.probes = load(&self.site)?;
        Ok(())
    }

    /// A new pod that is counted from its first packet.
    pub fn target(&mut self) -> anyhow::Result<Target> {
        let pod = self.site.pod()?;
        self.adopt(pod)
    }

    /// Counts a pod.
    pub fn adopt(&mut self, pod: Pod) -> anyhow::Result<Target> {
        let slot = self.probes.allocate().context("no free slot")?;
        self.probes.assign(pod.container.id(), slot)?;
        Ok(Target { pod, slot })
    }

    /// What a target has counted.
    pub fn counters(&self, target: &Target) -> Counters {
        self.probes.read(target.slot).counters
    }

    /// What went wrong so far, on all pods.
    pub fn statistics(&self) -> Statistics {
        self.probes.statistics().values.into_iter().collect()
    }
}

fn load(site: &Site) -> anyhow::Result<Probes> {
    Ok(Probes::load(&Options {
        cgroup: site.kubepods().to_owned(),
        excluded_ports: Vec::new(),
        max_pods: MAX_PODS,
        tls: false,
    })?)
}

/// What was added since; what is zero or only a level is left out.
pub fn since(before: &Statistics, after: &Statistics) -> Statistics {
    after
        .iter()
        .filter(|(name, _)| !name.starts_with("live_"))
        .map(|(name, value)| (*name, value - before.get(name).unwrap_or(&0)))
        .filter(|(_, value)| *value > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_grew_is_told() {
        let before = Statistics::from([("lost", 3), ("same", 1)]);
        let after = Statistics::from([("lost", 5), ("same", 1), ("live_slots", 9), ("new", 2)]);
        assert_eq!(
            since(&before, &after),
            Statistics::from([("lost", 2), ("new", 2)])
        );
    }
}
