//! Log-linear latency buckets in whole microseconds: the same arithmetic fills them in the kernel and reads
//! them in user space. It knows nothing of quantiles or of where counts are kept.
//!
//! Values below 8 have a bucket each; above, each octave has 8 equal sub-buckets, so a bucket's midpoint is
//! within 1/16 = 6.25 % of every value in it. The last bucket also takes everything above 2^26 us = 67 s.

const SUB_BITS: u32 = 3;
const SUB: u64 = 1 << SUB_BITS;
const OCTAVES: u32 = 26;

/// How many buckets a histogram has.
pub const BUCKETS: usize = ((OCTAVES - SUB_BITS + 1) * SUB as u32) as usize;

/// Nanoseconds as whole microseconds. Below four seconds by a multiplication: BPF leaves a division to the CPU.
#[inline(always)]
pub const fn micros(nanos: u64) -> u64 {
    // 2^38 / 1000, rounded up: exact for 32 bits (Granlund and Montgomery, 1994).
    const RECIPROCAL: u64 = (1 << 38) / 1000 + 1;
    if nanos <= u32::MAX as u64 {
        (nanos * RECIPROCAL) >> 38
    } else {
        nanos / 1000
    }
}

/// The bucket of a value in microseconds; always below [`BUCKETS`].
#[inline(always)]
pub const fn index(micros: u64) -> usize {
    if micros < SUB {
        return micros as usize;
    }
    if micros >= 1 << OCTAVES {
        return BUCKETS - 1;
    }
    let exponent = floor_log2(micros as u32);
    let sub = (micros >> (exponent - SUB_BITS)) & (SUB - 1);
    (((exponent - SUB_BITS + 1) as usize) << SUB_BITS) + sub as usize
}

/// The bucket's values in microseconds, lowest included, highest excluded. The last bucket's upper bound is
/// `u64::MAX`; an index that does not exist is taken for the last.
pub const fn bounds(index: usize) -> (u64, u64) {
    let index = if index < BUCKETS {
        index as u64
    } else {
        BUCKETS as u64 - 1
    };
    let low = lower(index);
    let high = if index == BUCKETS as u64 - 1 {
        u64::MAX
    } else {
        lower(index + 1)
    };
    (low, high)
}

/// The value in microseconds that stands for a bucket: its middle, or for the last its lower bound.
pub const fn midpoint(index: usize) -> u64 {
    let (low, high) = bounds(index);
    if high == u64::MAX {
        return low;
    }
    low + (high - 1 - low) / 2
}

const fn lower(index: u64) -> u64 {
    if index < SUB {
        return index;
    }
    let exponent = (index >> SUB_BITS) + SUB_BITS as u64 - 1;
    (SUB + (index & (SUB - 1))) << (exponent - SUB_BITS as u64)
}

/// Without the compiler's leading_zeros, which needs a table that BPF has no place for.
#[inline(always)]
const fn floor_log2(mut value: u32) -> u32 {
    let mut log = 0;
    if value >= 1 << 16 {
        value >>= 16;
        log += 16;
    }
    if value >= 1 << 8 {
        value >>= 8;
        log += 8;
    }
    if value >= 1 << 4 {
        value >>= 4;
        log += 4;
    }
    if value >= 1 << 2 {
        value >>= 2;
        log += 2;
    }
    if value >= 1 << 1 {
        log += 1;
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap() {
        assert_eq!(bounds(0), (0, 1));
        for i in 1..BUCKETS {
            assert_eq!(bounds(i - 1).1, bounds(i).0, "bucket {i}");
            assert_eq!(index(bounds(i).0), i);
            assert_eq!(index(bounds(i).0 - 1), i - 1);
        }
        assert!(bounds(BUCKETS - 1).0 > 60_000_000);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn microseconds_are_whole_thousands(nanos in prop_oneof![0..1u64 << 33, any::<u64>()], near in 0u64..2000) {
            prop_assert_eq!(micros(nanos), nanos / 1000);
            let edge = u64::from(u32::MAX) - near;
            prop_assert_eq!(micros(edge), edge / 1000);
        }

        #[test]
        fn a_midpoint_is_within_a_sixteenth_of_every_value(micros in 1u64..(1 << 26)) {
            let i = index(micros);
            let (low, high) = bounds(i);
            prop_assert!(low <= micros && (micros < high));
            let last = i == BUCKETS - 1;
            let error = (midpoint(i) as f64 - micros as f64).abs() / micros as f64;
            prop_assert!(last || error <= 0.0625, "{micros}: {error}");
        }
    }
}
