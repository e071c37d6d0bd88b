//! Behind whom a slot's threads waited, as the programs rank them. Knows the layout, not whose a slot is.

use std::sync::atomic::{AtomicU64, Ordering};

use ebpf_scaler_common::record::{self, SYSTEM};

use super::Slot;

/// Who had the CPU while others waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Culprit {
    /// A pod.
    Slot(Slot),
    /// What is no pod: the kernel's threads, the node's services.
    System,
}

/// The words of a [`record::Culprit`].
const WORDS: usize = size_of::<record::Culprit>() / 8;

/// Takes out what the programs put in: who, and for how many nanoseconds, longest first.
pub fn take(words: &[AtomicU64]) -> Vec<(Culprit, u64)> {
    let mut taken: Vec<(Culprit, u64)> = words
        .chunks_exact(WORDS)
        .filter_map(|place| {
            let [who, nanos, rivals] = place else {
                return None;
            };
            let (who, nanos) = (
                who.load(Ordering::Relaxed),
                // The place then falls to who comes next.
                nanos.swap(0, Ordering::Relaxed),
            );
            rivals.store(0, Ordering::Relaxed);
            let culprit = match who {
                SYSTEM => Culprit::System,
                slot => Culprit::Slot(Slot::from_ref(slot)),
            };
            (nanos > 0).then_some((culprit, nanos))
        })
        .collect();
    taken.sort_unstable_by_key(|(culprit, nanos)| (std::cmp::Reverse(*nanos), *culprit));
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_scaler_common::record::slot_ref;

    #[test]
    fn what_is_taken_is_ranked_and_gone() {
        let words: Vec<AtomicU64> = [SYSTEM, 5, 1, slot_ref(3, 7), 9, 0, 0, 0, 0]
            .into_iter()
            .map(AtomicU64::new)
            .collect();
        let pod = Slot {
            index: 3,
            generation: 7,
        };
        let expected = [(Culprit::Slot(pod), 9), (Culprit::System, 5)];
        assert_eq!(take(&words), expected);
        assert_eq!(take(&words), []);
    }
}
