//! CPU work of a known amount: time that the thread really ran, not time that passed.

use std::time::Duration;

/// Keeps the calling thread busy until it has used this much CPU time. Waiting for a CPU does not count, so a
/// contended request costs the same work and only takes longer.
pub fn burn(amount: Duration) {
    if amount.is_zero() {
        return;
    }
    let begun = thread_cpu_time();
    while thread_cpu_time().saturating_sub(begun) < amount {
        for _ in 0..64 {
            std::hint::spin_loop();
        }
    }
}

/// CPU time that the calling thread has used so far.
pub fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call to write to.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if result != 0 {
        return Duration::MAX;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burns_the_cpu_time_it_was_asked_to() {
        let amount = Duration::from_millis(5);
        let begun = thread_cpu_time();
        burn(amount);
        let used = thread_cpu_time() - begun;
        assert!(used >= amount, "used only {used:?}");
        assert!(used < amount * 4, "used {used:?}, far more than asked");
    }
}
