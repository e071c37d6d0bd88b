//! Knative's pod autoscaler as it is documented, with its defaults: what our decisions are held against.
//! It counts a request rate or requests in flight, and has no activator before it: nothing is held back
//! for pods that do not exist yet. Never asks what another decider would do.

use std::collections::VecDeque;

/// It decides this often; microseconds, as all times here.
const TICK: u64 = 2_000_000;
/// Pods are asked for their numbers this often.
const SCRAPE: u64 = 1_000_000;
const STABLE: u64 = 60_000_000;
/// `panic-window-percentage` 10.
const PANIC: u64 = STABLE / 10;
/// `panic-threshold-percentage` 200.
const PANIC_THRESHOLD: f64 = 2.0;
const MAX_SCALE_UP_RATE: f64 = 1000.0;
const MAX_SCALE_DOWN_RATE: f64 = 2.0;
/// `target-utilization-percentage`: of what a pod can take, so much is aimed at.
pub const TARGET_UTILIZATION: f64 = 0.7;

/// What it scales on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// What each pod should have: the pod's limit times the target utilization.
    pub target: f64,
    /// Whether that is requests in flight; otherwise requests per second.
    pub in_flight: bool,
    /// Never fewer pods.
    pub min: i32,
    /// Never more.
    pub max: i32,
}

/// Its state.
#[derive(Debug)]
pub struct Kpa {
    config: Config,
    phase: u64,
    /// Cumulative values, one a second: requests, or requests in flight times seconds.
    scrapes: VecDeque<(u64, f64)>,
    panicking_since: Option<u64>,
    most_in_panic: f64,
}

impl Kpa {
    /// With `ready` pods at time 0. Above one it begins in panic mode, so that a restart lowers nothing.
    #[must_use]
    pub fn new(config: Config, phase: u64, ready: i32) -> Self {
        Self {
            config,
            phase: phase % TICK,
            scrapes: VecDeque::new(),
            panicking_since: (ready > 1).then_some(0),
            most_in_panic: f64::from(ready),
        }
    }

    /// When it scrapes next, after `now`; at every second time it decides.
    #[must_use]
    pub fn next(&self, now: u64) -> u64 {
        now + SCRAPE - (now + TICK - self.phase) % SCRAPE
    }

    /// Takes what was counted until `now`, and says how many pods there should be, if it is time to.
    pub fn tick(&mut self, now: u64, begun: u64, in_flight: u128, ready: i32) -> Option<i32> {
        let value = if self.config.in_flight {
            in_flight as f64 / 1e6
        } else {
            begun as f64
        };
        self.scrapes.push_back((now, value));
        while self.scrapes.front().is_some_and(|(t, _)| now - t > STABLE) {
            self.scrapes.pop_front();
        }
        if (now + TICK - self.phase) % TICK >= SCRAPE {
            return None;
        }
        let (stable, panic) = (self.average(now, STABLE)?, self.average(now, PANIC)?);
        Some(self.scale(now, stable, panic, ready))
    }

    /// The mean over a window, or over what of it was seen.
    fn average(&self, now: u64, window: u64) -> Option<f64> {
        let from = self.scrapes.partition_point(|(t, _)| now - t > window);
        let (first, last) = (self.scrapes.get(from)?, self.scrapes.back()?);
        let seconds = (last.0 - first.0) as f64 / 1e6;
        (seconds > 0.0).then(|| (last.1 - first.1) / seconds)
    }

    fn scale(&mut self, now: u64, stable: f64, panic: f64, ready: i32) -> i32 {
        let ready = f64::from(ready.max(1));
        let most = (MAX_SCALE_UP_RATE * ready).ceil();
        let least = (ready / MAX_SCALE_DOWN_RATE).floor();
        let wanted = |value: f64| (value / self.config.target).ceil();
        let within = |pods: f64| pods.max(least).min(most);
        let over = wanted(panic) / ready >= PANIC_THRESHOLD;
        let (stable, panic) = (within(wanted(stable)), within(wanted(panic)));
        if over {
            self.panicking_since = Some(now);
        } else if self.panicking_since.is_some_and(|t| now - t > STABLE) {
            self.panicking_since = None;
            self.most_in_panic = 0.0;
        }
        let mut pods = stable;
        if self.panicking_since.is_some() {
            // What it went up to stays until the panic is over.
            self.most_in_panic = self.most_in_panic.max(stable.max(panic));
            pods = self.most_in_panic;
        }
        (pods as i32).clamp(self.config.min, self.config.max.max(self.config.min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kpa(ready: i32) -> Kpa {
        let config = Config {
            target: 10.0,
            in_flight: false,
            min: 1,
            max: 100,
        };
        Kpa::new(config, 0, ready)
    }

    /// Seconds at a rate, with as many pods as it asks for: what it asks for each 2 s.
    fn run(
        kpa: &mut Kpa,
        now: &mut u64,
        begun: &mut u64,
        ready: &mut i32,
        load: &[(u64, u64)],
    ) -> Vec<i32> {
        let mut asked = Vec::new();
        for (seconds, rate) in load {
            for _ in 0..*seconds {
                *now = kpa.next(*now);
                *begun += rate;
                if let Some(n) = kpa.tick(*now, *begun, 0, *ready) {
                    *ready = n;
                    asked.push(n);
                }
            }
        }
        asked
    }

    #[test]
    fn it_panics_at_twice_its_pods_and_comes_down_a_stable_window_later() {
        let (mut kpa, mut now, mut begun, mut ready) = (kpa(1), 0, 0, 1);
        let mut load = |load: &[(u64, u64)]| run(&mut kpa, &mut now, &mut begun, &mut ready, load);
        assert!(load(&[(120, 10)]).iter().all(|n| *n == 1));
        // 6 s hold the new load: 40/s. Until it needs twice the pods, the stable window decides.
        assert_eq!(load(&[(8, 40)]), [2, 3, 4, 4]);
        // It panicked at once, and holds for a minute after that, although the load is gone.
        let after = load(&[(90, 10)]);
        assert!(after[..26].iter().all(|n| *n == 4), "{after:?}");
        assert_eq!(after.last(), Some(&1));
    }

    #[test]
    fn it_halves_at_most_and_a_restart_lowers_nothing_for_a_minute() {
        let (mut kpa, mut now, mut begun, mut ready) = (kpa(8), 0, 0, 8);
        let asked = run(&mut kpa, &mut now, &mut begun, &mut ready, &[(80, 10)]);
        assert!(asked[..29].iter().all(|n| *n == 8), "{asked:?}");
        assert!(
            asked[29..].starts_with(&[8, 4, 2, 1]) || asked[29..].starts_with(&[4, 2, 1]),
            "{asked:?}"
        );
    }
}
