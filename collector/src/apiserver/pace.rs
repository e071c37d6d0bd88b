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

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_through_and_a_flood_is_slowed_to_the_rate() {
        let mut pace = Pace::new(10.0, 100.0);
        let began = Instant::now();
        for _ in 0..100 {
            tokio::time::sleep(pace.take(1.0)).await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..50 {
            tokio::time::sleep(pace.take(1.0)).await;
        }
        let took = began.elapsed().as_secs_f64();
        assert!((4.9..5.2).contains(&took), "{took}");
    }
}
