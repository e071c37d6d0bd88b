//! How fast one client may send: a bucket of tokens. Who is too fast waits, and by that holds up nobody but itself.

use std::time::Duration;

use tokio::time::Instant;

/// A client's bucket.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    most: f64,
    left: f64,
    at: Instant,
}

impl Pace {
    /// `burst` at once, `per_second` for ever.
    pub fn new(per_second: f64, burst: f64) -> Self {
        Self {
            per_second,
            most: burst,
            left: burst,
            at: Instant::now(),
        }
    }

    /// Takes `cost`; how long to wait before going on.
    pub fn take(&mut self, cost: f64) -> Duration {
        let now = Instant::now();
        let earned = (now - self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + earned).min(self.most) - cost;
        self.at = now;
        if self.left >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.left / self.per_second).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_a_flood_is_slowed_to_the_rate() {
        // A rate at which the time that the test takes earns nothing to speak of.
        let mut pace = Pace::new(0.001, 100.0);
        for _ in 0..100 {
            assert_eq!(pace.take(1.0), Duration::ZERO);
        }
        for taken in 1..50 {
            let wait = pace.take(1.0).as_secs_f64();
            let due = 1000.0 * f64::from(taken);
            assert!((due - 300.0..=due).contains(&wait), "{wait} of {due}");
        }
    }
}
