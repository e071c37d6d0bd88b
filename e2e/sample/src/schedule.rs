//! When each request is due: a function of the phases alone, so that a slow server cannot slow the load down.

use std::{str::FromStr, time::Duration};

/// A stretch of constant rate, written `DURATION@RATE`, for example `20s@240` or `1m@0.5`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// How long it lasts.
    pub duration: Duration,
    /// Requests per second.
    pub rate: f64,
}

impl Phase {
    /// Requests that fall into the phase.
    pub fn requests(&self) -> u64 {
        // In micro-requests, so that 0.1 s at 30/s is 3 and not 2.9999.
        let exact = self.duration.as_secs_f64() * self.rate;
        ((exact * 1e6).round() / 1e6).ceil() as u64
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not DURATION@RATE, for example 20s@240");
        let (duration, rate) = text.split_once('@').ok_or_else(wrong)?;
        let duration = humantime::parse_duration(duration).map_err(|_| wrong())?;
        let rate: f64 = rate.parse().map_err(|_| wrong())?;
        if !rate.is_finite() || rate < 0.0 {
            return Err(format!("the rate in {text:?} must be 0 or more"));
        }
        Ok(Self { duration, rate })
    }
}

/// How requests are spaced within a phase.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly
    #[default]
    Constant,
    /// As independent users would send them: exponential gaps, the same on average
    Poisson,
}

/// One request that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Time since the schedule began.
    pub at: Duration,
    /// Index of the phase it belongs to.
    pub phase: usize,
}

/// Every request of the phases in order of time.
pub fn due(phases: &[Phase], spacing: Spacing, seed: u64) -> impl Iterator<Item = Due> + use<> {
    let phases = phases.to_vec();
    let mut phase = 0;
    let mut begun = Duration::ZERO;
    let mut sent_in_phase = 0_u64;
    let mut random = Random(seed);
    let mut gap_end = 0.0_f64;
    std::iter::from_fn(move || {
        loop {
            let current = phases.get(phase)?;
            let offset = match spacing {
                Spacing::Constant if sent_in_phase < current.requests() => {
                    Some(sent_in_phase as f64 / current.rate)
                }
                Spacing::Poisson if current.rate > 0.0 => {
                    let at = gap_end;
                    gap_end += -(1.0 - random.unit()).ln() / current.rate;
                    (at < current.duration.as_secs_f64()).then_some(at)
                }
                Spacing::Constant | Spacing::Poisson => None,
            };
            if let Some(offset) = offset {
                sent_in_phase += 1;
                let at = begun + Duration::from_secs_f64(offset);
                return Some(Due { at, phase });
            }
            begun += current.duration;
            phase += 1;
            sent_in_phase = 0;
            gap_end = 0.0;
        }
    })
}

/// SplitMix64 (Steele, Lea and Flood, 2014): enough for spacing and jitter, and the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to but without 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(texts: &[&str]) -> Vec<Phase> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn constant_spacing_is_exact() {
        let phases = phases(&["2s@5", "1s@0", "500ms@10"]);
        let all: Vec<Due> = due(&phases, Spacing::Constant, 0).collect();
        assert_eq!(all.len(), 15);
        assert_eq!(all[1].at, Duration::from_millis(200));
        assert_eq!(all[9].at, Duration::from_millis(1800));
        let first_of_last = Due {
            at: Duration::from_secs(3),
            phase: 2,
        };
        assert_eq!(all[10], first_of_last, "a silent phase passes its time");
        assert_eq!(all[14].at, Duration::from_millis(3400));
    }

    #[test]
    fn a_phase_holds_its_duration_times_its_rate() {
        for (text, requests) in [
            ("100ms@30", 3),
            ("20s@240", 4800),
            ("1m@0.5", 30),
            ("5s@0", 0),
        ] {
            let phase: Phase = text.parse().unwrap();
            assert_eq!(phase.requests(), requests, "{text}");
            assert_eq!(
                due(&[phase], Spacing::Constant, 0).count() as u64,
                requests,
                "{text}"
            );
        }
    }

    #[test]
    fn poisson_spacing_has_the_rate_on_average_and_begins_at_the_phase() {
        let phases = phases(&["100s@100", "10s@1000"]);
        let all: Vec<Due> = due(&phases, Spacing::Poisson, 7).collect();
        let first = all.iter().filter(|due| due.phase == 0).count() as f64;
        // Five standard deviations of a Poisson count of 10,000.
        assert!((first - 10_000.0).abs() < 500.0, "{first}");
        let step = all.iter().find(|due| due.phase == 1).unwrap();
        assert_eq!(step.at, Duration::from_secs(100));
        assert!(all.is_sorted_by_key(|due| due.at));
    }

    #[test]
    fn a_wrong_phase_says_what_would_be_right() {
        for text in ["20s", "20s@", "fast@3", "3s@-1", "1s@NaN"] {
            assert!(text.parse::<Phase>().is_err(), "{text}");
        }
        assert!("20s".parse::<Phase>().unwrap_err().contains("20s@240"));
    }
}
