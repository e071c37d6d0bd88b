//! Slots for parts of pods: a container, a local port, or a container's port. Each count goes to one slot only, the
//! narrowest; whoever wants the pod's adds them up. It knows nothing of which parts a pod has.

use std::mem::offset_of;
use std::time::Duration;

use ebpf_scaler_common::record::{SlotRecord, layout, port_key};

use super::{ProbeError, Probes, Slot, kernel};

/// No program is at work for so long with what it has looked up before.
const REST: Duration = Duration::from_millis(2);

impl Probes {
    /// A zeroed slot for a part of the pod in `pod`; None when all are taken. Assigned to cgroups it counts as any
    /// other, but waits behind other parts of the pod are waits behind the pod itself. What is wanted of the pod is wanted
    /// of it, too.
    pub fn allocate_part(&mut self, pod: Slot) -> Option<Slot> {
        let part = self.pool.take_part()?;
        self.open(part);
        let maps = &self.kernel.maps;
        let (of_pod, wanted) = (offset_of!(SlotRecord, pod), offset_of!(SlotRecord, wanted));
        let as_pod = maps.slots.word(maps.records(pod.index).start, wanted);
        for record in maps.records(part.index) {
            maps.slots.store(record, of_pod, pod.to_ref());
            maps.slots.store(record, wanted, as_pod);
        }
        Some(part)
    }

    /// New sockets of `slot` at that local port count in `part`, or, without one, in `slot` again; those that exist do
    /// from the next [`Probes::settle`] on.
    pub fn divide(&mut self, slot: Slot, port: u16, part: Option<Slot>) -> Result<(), ProbeError> {
        let key = port_key(slot.index, port.into());
        let ports = &mut self.kernel.maps.ports;
        let Some(part) = part else {
            // It may never have come to that.
            let _ = ports.remove(&key);
            return Ok(());
        };
        ports
            .insert(key, part.to_ref(), 0)
            .map_err(|e| kernel::failed("count a port apart", &e))?;
        self.set_layout(slot, |layout| layout | layout::PORTS);
        Ok(())
    }

    /// Sockets of these slots look again in which one they count, those that exist too; the flag tells whether ports
    /// of the slot are counted apart.
    pub fn settle(&mut self, slots: &[(Slot, bool)]) {
        if slots.is_empty() {
            return;
        }
        // A program that still has the former assignments must not remember the new version with them.
        std::thread::sleep(REST);
        for (slot, ports) in slots.iter().filter(|(slot, _)| self.pool.is_current(*slot)) {
            let ports = if *ports { layout::PORTS } else { 0 };
            self.set_layout(*slot, |layout| {
                layout.wrapping_add(1) & layout::VERSION | ports
            });
        }
    }

    fn set_layout(&self, slot: Slot, change: impl Fn(u32) -> u32) {
        let maps = &self.kernel.maps;
        // Both in one word, so that neither is ever seen without the other.
        let offset = offset_of!(SlotRecord, generation);
        for record in maps.records(slot.index) {
            let word = maps.slots.word(record, offset);
            let layout = u64::from(change((word >> 32) as u32));
            let generation = word & u64::from(u32::MAX);
            maps.slots.store(record, offset, layout << 32 | generation);
        }
    }
}

const _: () = assert!(
    offset_of!(SlotRecord, layout) == offset_of!(SlotRecord, generation) + 4
        && offset_of!(SlotRecord, generation).is_multiple_of(8)
);
