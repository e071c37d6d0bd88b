//! Who holds which slot. Pure bookkeeping: it never touches a map.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Slot;

/// A slot rests for as long as a program could still be at work with it.
const REST: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// The kernel, for the next unknown cgroup or for one it has seen.
    Quarantine,
    Caller,
    /// A caller, for a part of a pod.
    Part,
}

/// All slots.
#[derive(Debug)]
pub struct Pool {
    holders: Vec<Holder>,
    generations: Vec<u32>,
    free: VecDeque<(u32, Option<Instant>)>,
    callers: u32,
    max_callers: u32,
    parts: u32,
    max_parts: u32,
}

impl Pool {
    /// `max_callers` slots for callers, `max_parts` for parts of pods and `spare` more for the quarantine.
    pub fn new(max_callers: u32, max_parts: u32, spare: u32) -> Pool {
        let all = max_callers + max_parts + spare;
        Pool {
            holders: vec![Holder::Nobody; all as usize],
            generations: vec![0; all as usize],
            free: (0..all).map(|index| (index, None)).collect(),
            callers: 0,
            max_callers,
            parts: 0,
            max_parts,
        }
    }

    /// A free slot for a caller.
    pub fn take(&mut self) -> Option<Slot> {
        if self.callers >= self.max_callers {
            return None;
        }
        let slot = self.take_for(Holder::Caller)?;
        self.callers += 1;
        Some(slot)
    }

    /// A free slot for a part of a pod.
    pub fn take_part(&mut self) -> Option<Slot> {
        if self.parts >= self.max_parts {
            return None;
        }
        let slot = self.take_for(Holder::Part)?;
        self.parts += 1;
        Some(slot)
    }

    /// A free slot for the quarantine.
    pub fn lend(&mut self) -> Option<Slot> {
        self.take_for(Holder::Quarantine)
    }

    fn take_for(&mut self, holder: Holder) -> Option<Slot> {
        let (index, since) = self.free.pop_front()?;
        if let Some(left) = since.and_then(|since| REST.checked_sub(since.elapsed())) {
            std::thread::sleep(left);
        }
        *self.holders.get_mut(index as usize)? = holder;
        // Odd while somebody holds it.
        let generation = self.generations.get_mut(index as usize)?;
        *generation = generation.wrapping_add(1);
        Some(Slot {
            index,
            generation: *generation,
        })
    }

    /// A provisional slot becomes a caller's.
    pub fn claim(&mut self, slot: Slot) {
        if self.is_lent(slot)
            && let Some(holder) = self.holders.get_mut(slot.index as usize)
        {
            *holder = Holder::Caller;
            self.callers += 1;
        }
    }

    /// Takes a slot back from whoever holds it; false if it was not held in this generation. The generation
    /// that the map must show is then [`Pool::generation`].
    pub fn put_back(&mut self, slot: Slot) -> bool {
        if !self.is_current(slot) {
            return false;
        }
        let Some(holder) = self.holders.get_mut(slot.index as usize) else {
            return false;
        };
        match holder {
            Holder::Caller => self.callers -= 1,
            Holder::Part => self.parts -= 1,
            Holder::Nobody | Holder::Quarantine => {}
        }
        *holder = Holder::Nobody;
        if let Some(generation) = self.generations.get_mut(slot.index as usize) {
            *generation = generation.wrapping_add(1);
        }
        self.free.push_back((slot.index, Some(Instant::now())));
        true
    }

    /// The generation that a slot has now.
    pub fn generation(&self, index: u32) -> u32 {
        self.generations
            .get(index as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Whether somebody holds the slot in this generation.
    pub fn is_current(&self, slot: Slot) -> bool {
        slot.generation % 2 == 1
            && self.generations.get(slot.index as usize) == Some(&slot.generation)
    }

    /// Whether the quarantine holds the slot.
    pub fn is_lent(&self, slot: Slot) -> bool {
        self.is_current(slot) && self.holders.get(slot.index as usize) == Some(&Holder::Quarantine)
    }

    /// How many slots callers hold, without those for parts.
    pub fn held(&self) -> u32 {
        self.callers
    }

    /// How many slots callers hold for parts of pods.
    pub fn parts(&self) -> u32 {
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_back_as_another_generation() {
        let mut pool = Pool::new(1, 0, 0);
        let first = pool.take().unwrap();
        assert!(pool.is_current(first));
        assert_eq!(pool.take(), None);
        assert!(pool.put_back(first));
        assert!(!pool.put_back(first), "twice");
        let second = pool.take().unwrap();
        assert_eq!(second.index, first.index);
        assert_ne!(second.generation, first.generation);
        assert!(!pool.is_current(first));
    }

    #[test]
    fn claimed_slots_count_as_callers_and_lent_ones_do_not() {
        let mut pool = Pool::new(2, 0, 1);
        let lent = pool.lend().unwrap();
        assert!(pool.is_lent(lent));
        pool.claim(lent);
        pool.claim(lent);
        assert_eq!(pool.held(), 1);
        let taken = pool.take().unwrap();
        assert_eq!(pool.take(), None);
        assert!(pool.put_back(lent) && pool.put_back(taken));
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn parts_take_no_room_from_pods_nor_pods_from_parts() {
        let mut pool = Pool::new(1, 1, 1);
        let part = pool.take_part().unwrap();
        assert_eq!(pool.take_part(), None);
        let pod = pool.take().unwrap();
        assert_eq!(pool.take(), None);
        assert!(pool.lend().is_some());
        assert_eq!((pool.held(), pool.parts()), (1, 1));
        assert!(pool.put_back(part) && pool.put_back(pod));
        assert_eq!((pool.held(), pool.parts()), (0, 0));
    }
}
