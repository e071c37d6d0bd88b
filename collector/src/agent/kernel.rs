//! What the agent asks of the kernel side, as a trait: the loop is tested against a scripted kernel, and
//! runs on [`Probes`]. No behaviour lives here.

use std::collections::BTreeSet;

use super::probes::{Culprit, Family, ProbeError, Probes, Reading, Slot, Statistics};
use super::tls::{FileId, Library};

/// See the method of the same name of [`Probes`] for each.
pub trait Kernel: Send + 'static {
    /// Families that can not be measured, with the reason.
    fn degraded(&self) -> Vec<(Family, String)>;
    /// Follows demand; returns what failed.
    fn set_wanted(&mut self, families: &BTreeSet<Family>) -> Vec<(Family, String)>;
    /// Families that are measured now.
    fn active(&self) -> BTreeSet<Family>;
    /// A zeroed slot, if one is free.
    fn allocate(&mut self) -> Option<Slot>;
    /// Gives a slot back.
    fn release(&mut self, slot: Slot);
    /// Counts a cgroup in a slot.
    fn assign(&mut self, cgroup_id: u64, slot: Slot) -> Result<(), ProbeError>;
    /// A zeroed slot for a part of a pod, if one is free.
    fn allocate_part(&mut self, pod: Slot) -> Option<Slot>;
    /// Counts new sockets at a local port of a slot in another slot, or no longer.
    fn divide(&mut self, slot: Slot, port: u16, part: Option<Slot>) -> Result<(), ProbeError>;
    /// Lets the sockets of these slots follow what has changed; with it, whether ports of the slot are counted apart.
    fn settle(&mut self, slots: &[(Slot, bool)]);
    /// Forgets a cgroup.
    fn unassign(&mut self, cgroup_id: u64);
    /// Cgroups seen before they were assigned, with their provisional slots.
    fn quarantined(&mut self) -> Vec<(u64, Slot)>;
    /// Drops a quarantined cgroup that nobody claimed.
    fn forget_quarantined(&mut self, cgroup_id: u64);
    /// Slots that changed since the last call.
    fn changed(&mut self) -> Vec<Slot>;
    /// What a slot has counted.
    fn read(&self, slot: Slot) -> Reading;
    /// Behind whom a slot's threads waited since the last call, nanoseconds.
    fn take_culprits(&self, slot: Slot) -> Vec<(Culprit, u64)>;
    /// Counts requests inside TLS that pass through a library.
    fn probe(&mut self, library: &Library) -> Result<(), String>;
    /// Takes the probes off a library.
    fn spare(&mut self, library: FileId);
    /// Clears away sessions of TLS that their processes left behind.
    fn clear_tls_sessions(&mut self);
    /// Whether requests inside TLS are counted of every pod.
    fn count_tls_of_all(&mut self, all: bool);
    /// Whether requests inside TLS are counted of a slot's pod.
    fn count_tls(&mut self, slot: Slot, counted: bool);
    /// Drops and other facts about the programs.
    fn statistics(&self) -> Statistics;
}

impl Kernel for Probes {
    fn degraded(&self) -> Vec<(Family, String)> {
        Self::degraded(self)
    }

    fn set_wanted(&mut self, families: &BTreeSet<Family>) -> Vec<(Family, String)> {
        Self::set_wanted(self, families)
    }

    fn active(&self) -> BTreeSet<Family> {
        Self::active(self)
    }

    fn allocate(&mut self) -> Option<Slot> {
        Self::allocate(self)
    }

    fn release(&mut self, slot: Slot) {
        Self::release(self, slot);
    }

    fn assign(&mut self, cgroup_id: u64, slot: Slot) -> Result<(), ProbeError> {
        Self::assign(self, cgroup_id, slot)
    }

    fn allocate_part(&mut self, pod: Slot) -> Option<Slot> {
        Self::allocate_part(self, pod)
    }

    fn divide(&mut self, slot: Slot, port: u16, part: Option<Slot>) -> Result<(), ProbeError> {
        Self::divide(self, slot, port, part)
    }

    fn settle(&mut self, slots: &[(Slot, bool)]) {
        Self::settle(self, slots);
    }

    fn unassign(&mut self, cgroup_id: u64) {
        Self::unassign(self, cgroup_id);
    }

    fn quarantined(&mut self) -> Vec<(u64, Slot)> {
        Self::quarantined(self)
    }

    fn forget_quarantined(&mut self, cgroup_id: u64) {
        Self::forget_quarantined(self, cgroup_id);
    }

    fn changed(&mut self) -> Vec<Slot> {
        Self::changed(self)
    }

    fn read(&self, slot: Slot) -> Reading {
        Self::read(self, slot)
    }

    fn take_culprits(&self, slot: Slot) -> Vec<(Culprit, u64)> {
        Self::take_culprits(self, slot)
    }

    fn probe(&mut self, library: &Library) -> Result<(), String> {
        Self::probe(self, library)
    }

    fn spare(&mut self, library: FileId) {
        Self::spare(self, library);
    }

    fn clear_tls_sessions(&mut self) {
        Self::clear_tls_sessions(self);
    }

    fn count_tls_of_all(&mut self, all: bool) {
        Self::count_tls_of_all(self, all);
    }

    fn count_tls(&mut self, slot: Slot, counted: bool) {
        Self::count_tls(self, slot, counted);
    }

    fn statistics(&self) -> Statistics {
        Self::statistics(self)
    }
}
