//! What one pod added between two readings, in as few bytes as it takes: a busy pod keeps some 140 of these, and
//! most of their numbers are small or nought. Never lossy.

use crate::quantile::Sparse;
use crate::totals::{COUNT, Totals};

/// How many distributions a sample has.
pub const DISTRIBUTIONS: usize = 3;

/// Counters' growth and the distributions of what happened meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Of each counter
    pub totals: Totals,
    /// In the order of `Series`
    pub added: [Sparse; DISTRIBUTIONS],
}

impl Growth {
    /// Adds what happened next.
    pub fn add(&mut self, next: &Self) {
        self.totals = self.totals.plus(&next.totals);
        for (mine, more) in self.added.iter_mut().zip(&next.added) {
            mine.add(more);
        }
    }
}

/// A [`Growth`] in LEB128 numbers: a mask of the counters that grew, their growth, then for each distribution the
/// length of its part and pairs of the distance to the bucket before and the count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

impl Packed {
    /// Packs.
    pub fn new(growth: &Growth) -> Self {
        let mut bytes = Vec::with_capacity(96);
        let values = growth.totals.values();
        let grown = values.iter().enumerate().filter(|(_, v)| **v != 0);
        let mask = grown.clone().fold(0u64, |mask, (i, _)| mask | 1 << i);
        write(&mut bytes, mask);
        for (_, value) in grown {
            write(&mut bytes, *value);
        }
        let mut part = Vec::new();
        for sparse in &growth.added {
            part.clear();
            let mut before = 0;
            for &(bucket, count) in sparse.pairs() {
                write(&mut part, u64::from(bucket - before));
                write(&mut part, count);
                before = bucket;
            }
            write(&mut bytes, part.len() as u64);
            bytes.extend_from_slice(&part);
        }
        Self(bytes.into_boxed_slice())
    }

    /// The counters' growth alone.
    pub fn totals(&self) -> Totals {
        self.read_totals().0
    }

    /// One distribution's pairs of bucket and count, lowest first.
    pub fn distribution(&self, which: usize) -> impl Iterator<Item = (u16, u64)> + '_ {
        let mut rest = self.read_totals().1;
        let mut part: &[u8] = &[];
        for _ in 0..=which {
            let length = usize::try_from(read(&mut rest)).unwrap_or(usize::MAX);
            (part, rest) = rest.split_at(length.min(rest.len()));
        }
        let mut bucket = 0u64;
        std::iter::from_fn(move || {
            if part.is_empty() {
                return None;
            }
            bucket += read(&mut part);
            Some((u16::try_from(bucket).unwrap_or(u16::MAX), read(&mut part)))
        })
    }

    /// Unpacks all of it.
    pub fn growth(&self) -> Growth {
        Growth {
            totals: self.totals(),
            added: std::array::from_fn(|i| self.distribution(i).collect()),
        }
    }

    /// Bytes on the heap.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    fn read_totals(&self) -> (Totals, &[u8]) {
        let mut rest = &self.0[..];
        let mut mask = read(&mut rest);
        let mut values = [0; COUNT];
        while mask != 0 {
            let i = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            let value = read(&mut rest);
            if let Some(slot) = values.get_mut(i) {
                *slot = value;
            }
        }
        (Totals::from_values(values), rest)
    }
}

fn write(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Reads one number; what is cut off reads as nought.
fn read(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0u64, 0);
    while let Some((&byte, rest)) = bytes.split_first() {
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_scaler_common::histogram::BUCKETS;
    use proptest::prelude::*;

    fn sparse() -> impl Strategy<Value = Sparse> {
        prop::collection::vec((0..BUCKETS as u32, 1..u64::MAX), 0..20)
            .prop_map(|pairs| Sparse::from_pairs(pairs).0)
    }

    fn growth() -> impl Strategy<Value = Growth> {
        let values = prop::collection::vec(prop_oneof![Just(0), 0..1000u64, any::<u64>()], COUNT);
        (values, [sparse(), sparse(), sparse()]).prop_map(|(values, added)| Growth {
            totals: Totals::from_values(values.try_into().unwrap()),
            added,
        })
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(growth in growth()) {
            let packed = Packed::new(&growth);
            prop_assert_eq!(packed.totals(), growth.totals);
            prop_assert_eq!(packed.growth(), growth);
        }
    }

    #[test]
    fn nothing_takes_next_to_nothing() {
        assert_eq!(Packed::new(&Growth::default()).size(), 4);
        assert_eq!(Packed::default().growth(), Growth::default());
    }
}
