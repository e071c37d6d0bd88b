//! Sparse histograms over the buckets that the kernel fills, and quantiles of merged ones. Never an
//! average of quantiles: counts are added first.

use ebpf_scaler_common::histogram::{BUCKETS, bounds};

/// Counts of the buckets that are not empty, sorted by bucket. Cumulative as agents report it, or of a
/// span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse(Vec<(u16, u64)>);

impl Sparse {
    /// From pairs of bucket and count in any order. Buckets that do not exist are left out; their
    /// number comes back, so that the caller can count them.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (u32, u64)>) -> (Self, usize) {
        let mut unknown = 0;
        let mut kept: Vec<(u16, u64)> = Vec::new();
        for (bucket, count) in pairs {
            match u16::try_from(bucket) {
                Ok(b) if usize::from(b) < BUCKETS => kept.push((b, count)),
                _ => unknown += 1,
            }
        }
        kept.sort_unstable_by_key(|(bucket, _)| *bucket);
        kept.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1 = first.1.saturating_add(later.1);
            }
            same
        });
        (Self(kept), unknown)
    }

    /// The buckets that are not empty, lowest first.
    pub fn pairs(&self) -> &[(u16, u64)] {
        &self.0
    }

    /// What was added since `earlier`; a bucket that shrank counts as unchanged.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut old = earlier.0.iter().peekable();
        let added = self.0.iter().filter_map(|&(bucket, count)| {
            while old.next_if(|(b, _)| *b < bucket).is_some() {}
            let before = old.next_if(|(b, _)| *b == bucket).map_or(0, |(_, c)| *c);
            let more = count.saturating_sub(before);
            (more > 0).then_some((bucket, more))
        });
        Self(added.collect())
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        for &(bucket, count) in &other.0 {
            match self.0.binary_search_by_key(&bucket, |(b, _)| *b) {
                Ok(i) => self.0[i].1 = self.0[i].1.saturating_add(count),
                Err(i) => self.0.insert(i, (bucket, count)),
            }
        }
    }

    /// Raises each bucket to at least its count in `other`: the next state of a cumulative histogram,
    /// which a glitch can not lower.
    pub fn raise(&mut self, other: &Self) {
        for &(bucket, count) in &other.0 {
            match self.0.binary_search_by_key(&bucket, |(b, _)| *b) {
                Ok(i) => self.0[i].1 = self.0[i].1.max(count),
                Err(i) => self.0.insert(i, (bucket, count)),
            }
        }
    }
}

/// From pairs that are sorted by bucket, each once.
impl FromIterator<(u16, u64)> for Sparse {
    fn from_iter<I: IntoIterator<Item = (u16, u64)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// A histogram of everything that is merged into it, for one answer.
#[derive(Clone, Debug)]
pub struct Merged {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
}

impl Default for Merged {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
        }
    }
}

impl Merged {
    /// Adds all of `part`.
    pub fn add(&mut self, part: &Sparse) {
        self.add_share(part.pairs().iter().copied(), 1, 1);
    }

    /// Adds `numerator / denominator` of the counts of buckets, each rounded.
    pub fn add_share(
        &mut self,
        part: impl Iterator<Item = (u16, u64)>,
        numerator: u64,
        denominator: u64,
    ) {
        let denominator = u128::from(denominator.max(1));
        for (bucket, count) in part {
            let share = (u128::from(count) * u128::from(numerator) + denominator / 2) / denominator;
            let share = u64::try_from(share).unwrap_or(u64::MAX);
            if let Some(slot) = self.counts.get_mut(usize::from(bucket)) {
                *slot = slot.saturating_add(share);
                self.total = self.total.saturating_add(share);
            }
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (slot, count) in self.counts.iter_mut().zip(other.counts.iter()) {
            *slot = slot.saturating_add(*count);
        }
        self.total = self.total.saturating_add(other.total);
    }

    /// Makes it empty again.
    pub fn clear(&mut self) {
        if self.total > 0 {
            self.counts.fill(0);
            self.total = 0;
        }
    }

    /// How many events are in it.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The value in whole microseconds below or at which the share `q` (0 to 1) of the events lies,
    /// interpolated inside its bucket, so within 12.5 % of the true one. `None` without events.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if self.total == 0 {
            return None;
        }
        // The nearest rank, at least the first event.
        let rank = (q.clamp(0.0, 1.0) * self.total as f64).ceil().max(1.0) as u64;
        let mut below = 0u64;
        for (bucket, &count) in self.counts.iter().enumerate() {
            if count == 0 || below + count < rank {
                below += count;
                continue;
            }
            let (low, high) = bounds(bucket);
            if high == u64::MAX {
                return Some(low);
            }
            let into = (rank - below) as f64 - 0.5;
            return Some(low + ((high - low) as f64 * into / count as f64) as u64);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_scaler_common::histogram::index;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Sparse {
        Sparse::from_pairs(values.iter().map(|v| (index(*v) as u32, 1))).0
    }

    #[test]
    fn no_events_have_no_quantile() {
        assert_eq!(Merged::default().quantile(0.99), None);
    }

    #[test]
    fn quantiles_come_from_the_merged_counts_and_are_no_average() {
        let mut merged = Merged::default();
        // 99 fast requests on one pod, one slow on another: the p50 stays fast, the p99 too.
        merged.add(&of(&[100; 99]));
        merged.add(&of(&[1_000_000]));
        let p50 = merged.quantile(0.5).unwrap() as f64;
        assert!((p50 - 100.0).abs() <= 6.25, "{p50}");
        assert!(merged.quantile(0.99).unwrap() < 110);
        assert!(merged.quantile(1.0).unwrap() > 900_000);
    }

    #[test]
    fn buckets_that_do_not_exist_are_left_out_and_told() {
        let (sparse, unknown) =
            Sparse::from_pairs([(3, 1), (100_000, 7), (BUCKETS as u32, 1), (3, 2)]);
        assert_eq!(sparse.pairs(), [(3, 3)]);
        assert_eq!(unknown, 2);
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_a_bucket_of_the_true_one(
            mut values in prop::collection::vec(0u64..60_000_000, 1..300),
            q in 0.01f64..1.0,
        ) {
            let mut merged = Merged::default();
            merged.add(&of(&values));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            let truth = values[rank - 1];
            let got = merged.quantile(q).unwrap();
            prop_assert_eq!(index(got), index(truth), "{} for {}", got, truth);
        }

        #[test]
        fn what_was_added_since_is_what_was_added(
            first in prop::collection::vec(0u64..100_000, 0..50),
            more in prop::collection::vec(0u64..100_000, 0..50),
        ) {
            let earlier = of(&first);
            let mut later = earlier.clone();
            later.add(&of(&more));
            prop_assert_eq!(later.since(&earlier), of(&more));
        }
    }
}
