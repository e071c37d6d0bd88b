//! One pod: its slots and what they have counted, added up. It changes nothing in the kernel.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_scaler_proto::{PodSample, Preemptor};

use super::LINGER;
use super::parts::{Key, Part};
use crate::agent::demand::Division;
use crate::agent::kernel::Kernel;
use crate::agent::probes::{Reading, Slot};
use crate::agent::sample;

/// A part's slot is kept for so long for the requests that were in flight in it.
const IN_FLIGHT: Duration = Duration::from_secs(600);

/// A slot in which the pod counts no more, but for what is under way.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) slot: Slot,
    quiet: Instant,
    /// Until when it is kept for what is in flight.
    until: Instant,
}

impl Claimed {
    /// A provisional slot: its connections come over when it is released.
    pub(super) fn provisional(slot: Slot, now: Instant) -> Self {
        Self {
            slot,
            quiet: now + LINGER,
            until: now + LINGER,
        }
    }

    /// A part's former slot: its connections come over with their next packets.
    pub(super) fn part(slot: Slot, now: Instant) -> Self {
        Self {
            slot,
            quiet: now + LINGER,
            until: now + IN_FLIGHT,
        }
    }

    pub(super) fn is_over(&self, kernel: &dyn Kernel, now: Instant) -> bool {
        let in_flight = || kernel.read(self.slot).counters.requests_in_flight;
        self.quiet <= now && (self.until <= now || in_flight() == 0)
    }
}

#[derive(Debug)]
pub(super) struct Pod {
    pub(super) epoch: u64,
    pub(super) slot: Option<Slot>,
    /// Further slots whose counts are this pod's, until each is quiet and absorbed.
    pub(super) claimed: Vec<Claimed>,
    /// What absorbed slots had counted.
    pub(super) past: Option<Box<Reading>>,
    pub(super) throttled_micros: u64,
    pub(super) preemptors: Vec<Preemptor>,
    /// Its cgroups, with the containers that they belong to.
    pub(super) cgroups: HashMap<u64, Option<Arc<str>>>,
    /// What is wanted apart.
    pub(super) wanted: Division,
    /// What is counted apart.
    pub(super) parts: BTreeMap<Key, Part>,
    /// Parts that have ended since the last reading.
    pub(super) ended: Vec<(Key, Part)>,
    pub(super) dirty: bool,
}

impl Pod {
    pub(super) fn new(epoch: u64, wanted: Division) -> Self {
        Self {
            epoch,
            slot: None,
            claimed: Vec::new(),
            past: None,
            throttled_micros: 0,
            preemptors: Vec::new(),
            cgroups: HashMap::new(),
            wanted,
            parts: BTreeMap::new(),
            ended: Vec::new(),
            dirty: false,
        }
    }

    /// Every slot that counts for it.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        let parts = self.parts.values().map(|part| part.slot);
        let claimed = self.claimed.iter().map(|claimed| claimed.slot);
        self.slot.into_iter().chain(parts).chain(claimed)
    }

    /// The slot in which a cgroup counts.
    pub(super) fn slot_of_cgroup(&self, cgroup_id: u64) -> Option<Slot> {
        let container = self.cgroups.get(&cgroup_id).and_then(Option::as_ref);
        self.slot_of(container)
    }

    /// All that is this pod's; none without a slot, for what is not measured is not zero.
    pub(super) fn read(&self, kernel: &dyn Kernel) -> Option<Reading> {
        self.slot?;
        let mut total: Option<Reading> = None;
        for slot in self.slots() {
            let reading = kernel.read(slot);
            match &mut total {
                None => total = Some(reading),
                Some(total) => {
                    total.absorb(&reading);
                    total.counters.requests_in_flight += reading.counters.requests_in_flight;
                }
            }
        }
        let mut total = total?;
        if let Some(past) = &self.past {
            total.absorb(past);
        }
        total.counters.cpu_throttled_micros = self.throttled_micros;
        Some(total)
    }

    /// Adds samples of the parts that have changed or ended since the last time.
    pub(super) fn read_parts(
        &mut self,
        kernel: &dyn Kernel,
        uid: &str,
        samples: &mut Vec<PodSample>,
    ) {
        let mut sample = |key: &Key, part: &Part, ended| {
            let mut sample = sample::of(uid, part.epoch, &kernel.read(part.slot), &[]);
            sample.part = Some(key.on_the_wire(part, ended));
            if ended && let Some(counters) = &mut sample.counters {
                // They come over to where it counts now.
                counters.requests_in_flight = 0;
            }
            samples.push(sample);
        };
        // First, for a part that has ended may have begun again.
        for (key, part) in self.ended.drain(..) {
            sample(&key, &part, true);
        }
        for (key, part) in &mut self.parts {
            if std::mem::take(&mut part.dirty) {
                sample(key, part, false);
            }
        }
    }
}
