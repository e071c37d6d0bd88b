//! A bounded memory of verdicts that forgets after a while. Who fills it pushes out old entries first, so a flood of
//! made-up questions does not make it forget what is asked all the time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Entries of a generation; there are two.
const CAPACITY: usize = 4096;

type Generation<V> = HashMap<[u8; 32], (Instant, V)>;

/// Answers by the digest of the question.
pub struct Memory<V> {
    remember: Duration,
    generations: Mutex<[Generation<V>; 2]>,
}

impl<V: Clone> Memory<V> {
    /// Forgets what is older than `remember`.
    pub fn new(remember: Duration) -> Self {
        Self {
            remember,
            generations: Mutex::default(),
        }
    }

    /// What was answered, if it is not too old.
    pub fn get(&self, key: &[u8; 32]) -> Option<V> {
        let mut generations = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((since, value)) = generations[0].get(key) {
            return (since.elapsed() < self.remember).then(|| value.clone());
        }
        let (since, value) = generations[1].get(key).cloned()?;
        if since.elapsed() >= self.remember {
            return None;
        }
        // What is asked for again moves up if there is room; how old it is stays.
        if generations[0].len() < CAPACITY {
            generations[1].remove(key);
            generations[0].insert(*key, (since, value.clone()));
        }
        Some(value)
    }

    /// Remembers an answer.
    pub fn put(&self, key: [u8; 32], value: V) {
        let mut generations = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if generations[0].len() >= CAPACITY {
            generations[1] = std::mem::take(&mut generations[0]);
        }
        generations[1].remove(&key);
        generations[0].insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> [u8; 32] {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_le_bytes());
        key
    }

    #[test]
    fn a_flood_is_bounded_and_does_not_push_out_what_is_asked_for_all_the_time() {
        let memory = Memory::new(Duration::from_secs(3600));
        memory.put(key(0), "kept");
        for n in 1..10 * CAPACITY {
            memory.put(key(n), "flood");
            assert_eq!(memory.get(&key(0)), Some("kept"), "after {n}");
        }
        let generations = memory.generations.lock().unwrap();
        assert!(generations.iter().map(HashMap::len).sum::<usize>() <= 2 * CAPACITY);
    }

    #[test]
    fn answers_grow_old() {
        let memory = Memory::new(Duration::ZERO);
        memory.put(key(1), ());
        assert_eq!(memory.get(&key(1)), None);
    }
}
