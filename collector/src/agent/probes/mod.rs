//! The user side of the BPF programs: loads and attaches them, hands out slots, reads counters. It knows
//! cgroup ids, never paths or pods, and never blocks on the kernel while reading.

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use ebpf_scaler_common::{Counters, Family, histogram};

/// What the programs need to know when they are loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cgroup v2 directory whose descendants are pods, for example /sys/fs/cgroup/kubepods.
    pub cgroup: PathBuf,
    /// Requests to these local TCP ports are counted apart (metrics scrapes).
    pub excluded_ports: Vec<u16>,
    /// How many slots, thus pods, can be measured at once.
    pub max_pods: u32,
}

/// Why the programs can not measure.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// This binary was built without the BPF object.
    #[error(
        "this binary was built without the BPF programs: run hack/setup/bpf.sh, then build again (or set EBPF_SCALER_BPF_OBJECT)"
    )]
    NoObject,
    /// An act on the kernel failed.
    #[error("{act}: {reason}")]
    Kernel {
        /// What was tried.
        act: String,
        /// What the kernel or the loader said.
        reason: String,
    },
}

/// One pod's place in the maps. A released slot's generation never comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// Position in the maps.
    pub index: u32,
    /// Tells this tenant from former ones.
    pub generation: u32,
}

/// Counts per bucket of [`histogram`].
pub type Buckets = [u64; histogram::BUCKETS];

/// Everything counted in a slot since it was allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Counters, and the gauge of requests in flight.
    pub counters: Counters,
    /// First byte in to first byte out.
    pub request_latency: Buckets,
    /// Waits of runnable threads for a CPU.
    pub runqueue_latency: Buckets,
}

impl Default for Reading {
    fn default() -> Self {
        Reading {
            counters: Counters::default(),
            request_latency: [0; histogram::BUCKETS],
            runqueue_latency: [0; histogram::BUCKETS],
        }
    }
}

/// What the programs could not do, and what they hold; each is cumulative unless its name begins with `live_`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Name and value, in a stable order. Names are metric suffixes: lower case, underscores.
    pub values: Vec<(&'static str, u64)>,
}

/// The loaded programs. Dropping it detaches them; so does the end of the process, however it ends.
#[derive(Debug)]
pub struct Probes {}

impl Probes {
    /// Loads the programs and attaches those of requests and network, which must succeed.
    pub fn load(_options: &Options) -> Result<Probes, ProbeError> {
        Err(ProbeError::NoObject)
    }

    /// Families that can not be measured on this node, with a reason that a person can read.
    pub fn degraded(&self) -> Vec<(Family, String)> {
        Vec::new()
    }

    /// Attaches and detaches what is optional (the run queue) to follow demand; returns what failed.
    pub fn set_wanted(&mut self, _families: &BTreeSet<Family>) -> Vec<(Family, String)> {
        Vec::new()
    }

    /// Families that are measured now.
    pub fn active(&self) -> BTreeSet<Family> {
        BTreeSet::new()
    }

    /// A zeroed slot of a new generation; None when all are taken, which is counted.
    pub fn allocate(&mut self) -> Option<Slot> {
        None
    }

    /// Gives the slot back; cgroups still assigned to it become unknown.
    pub fn release(&mut self, _slot: Slot) {}

    /// Counts a cgroup in a slot; many cgroups may share one. Takes the cgroup out of quarantine; its
    /// provisional slot then belongs to the caller, who reads it and releases it (or goes on using it as the pod's slot).
    pub fn assign(&mut self, _cgroup_id: u64, _slot: Slot) -> Result<(), ProbeError> {
        Ok(())
    }

    /// Forgets a cgroup.
    pub fn unassign(&mut self, _cgroup_id: u64) {}

    /// Cgroups that were seen in the kernel before they were assigned, with the provisional slot that counts for them.
    pub fn quarantined(&mut self) -> Vec<(u64, Slot)> {
        Vec::new()
    }

    /// Drops a quarantined cgroup that nobody claimed; what it counted goes to the statistics.
    pub fn forget_quarantined(&mut self, _cgroup_id: u64) {}

    /// Slots that changed since the last call.
    pub fn changed(&mut self) -> Vec<Slot> {
        Vec::new()
    }

    /// What a slot has counted; all zero for a slot that is no longer this generation's.
    pub fn read(&self, _slot: Slot) -> Reading {
        Reading::default()
    }

    /// Drops, desyncs, lost races, full maps, unknown cgroups, live socket storages.
    pub fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}

impl Reading {
    /// Adds what a former slot of the same pod had counted; its gauge is not carried over, because what was
    /// in flight there has gone with it.
    pub fn absorb(&mut self, past: &Reading) {
        let (into, from) = (&mut self.counters, &past.counters);
        into.requests += from.requests;
        into.responses_1xx += from.responses_1xx;
        into.responses_2xx += from.responses_2xx;
        into.responses_3xx += from.responses_3xx;
        into.responses_4xx += from.responses_4xx;
        into.responses_5xx += from.responses_5xx;
        into.requests_aborted += from.requests_aborted;
        into.request_latency_sum_micros += from.request_latency_sum_micros;
        into.requests_probe += from.requests_probe;
        into.requests_excluded_port += from.requests_excluded_port;
        into.requests_loopback += from.requests_loopback;
        into.receive_bytes += from.receive_bytes;
        into.transmit_bytes += from.transmit_bytes;
        into.receive_packets += from.receive_packets;
        into.transmit_packets += from.transmit_packets;
        into.connections_opened += from.connections_opened;
        into.connections_closed += from.connections_closed;
        into.tcp_retransmits += from.tcp_retransmits;
        into.runqueue_wait_nanos += from.runqueue_wait_nanos;
        into.runqueue_waits += from.runqueue_waits;
        into.cpu_throttled_micros += from.cpu_throttled_micros;
        for (into, from) in self.request_latency.iter_mut().zip(past.request_latency) {
            *into += from;
        }
        for (into, from) in self.runqueue_latency.iter_mut().zip(past.runqueue_latency) {
            *into += from;
        }
    }
}
