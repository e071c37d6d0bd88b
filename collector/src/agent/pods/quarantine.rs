//! Cgroups that the kernel saw before their path was known: they count in provisional slots, which become their
//! pod's or are forgotten. It never decides whose a cgroup is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Facts, Pods};
use crate::agent::kernel::Kernel;
use crate::agent::probes::Slot;

/// How long a cgroup may count in a provisional slot before its path must be known.
pub const QUARANTINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Quarantined {
    pub(super) slot: Slot,
    since: Instant,
}

impl Pods {
    /// The provisional slot of a cgroup, if the kernel saw it before we did.
    pub(super) fn provisional(
        &mut self,
        kernel: &mut dyn Kernel,
        cgroup_id: u64,
        now: Instant,
    ) -> Option<Slot> {
        self.refresh_quarantine(kernel, now);
        self.quarantine.get(&cgroup_id).map(|q| q.slot)
    }

    fn refresh_quarantine(&mut self, kernel: &mut dyn Kernel, now: Instant) {
        let listed = kernel.quarantined();
        self.quarantine
            .retain(|id, q| listed.iter().any(|(i, slot)| i == id && *slot == q.slot));
        for (cgroup_id, slot) in listed {
            self.quarantine
                .entry(cgroup_id)
                .or_insert(Quarantined { slot, since: now });
        }
    }

    /// Claims what has become known since, and forgets what stayed unknown.
    pub(super) fn look_after_quarantine(&mut self, kernel: &mut dyn Kernel, now: Instant) {
        self.refresh_quarantine(kernel, now);
        let known: Vec<(u64, Arc<str>)> = self
            .quarantine
            .keys()
            .filter_map(|id| Some((*id, self.by_cgroup.get(id)?.clone())))
            .collect();
        for (cgroup_id, uid) in known {
            let provisional = self.quarantine.get(&cgroup_id).map(|q| q.slot);
            self.claim(kernel, &uid, cgroup_id, provisional, now);
            self.divide(kernel, &uid, None, now);
            self.mark(&uid);
        }
        let Facts { forgotten, .. } = &mut self.facts;
        self.quarantine.retain(|cgroup_id, quarantined| {
            let keep = now.saturating_duration_since(quarantined.since) < QUARANTINE;
            if !keep {
                kernel.forget_quarantined(*cgroup_id);
                *forgotten += 1;
            }
            keep
        });
    }
}
