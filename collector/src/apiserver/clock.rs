//! The process's clock: the time that the pure parts are given, and its relation to the wall clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ebpf_scaler_measure::Time;

/// Monotonic time since an hour before the process began, so that "an hour ago" can be said at the start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

const HEAD_START: Duration = Duration::from_secs(3600);

impl Default for Clock {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Clock {
    /// Now.
    pub fn now(&self) -> Time {
        let elapsed = self.origin.elapsed() + HEAD_START;
        Time(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    /// The wall clock's reading at `time`, Unix microseconds, if the wall clock was not set meanwhile.
    pub fn unix_micros(&self, time: Time) -> i64 {
        let ago = Duration::from_micros(self.now().since(time));
        let wall = SystemTime::now() - ago;
        let since_epoch = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
    }
}
