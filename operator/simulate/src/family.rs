//! Synthetic loads, each a family with a seed: where the seed says, and by how much, the load does what
//! the family is named after. Never a Poisson arrival: that is drawn later.

use crate::{random::Random, trace::Trace};

/// The families, in the order in which they are shown.
pub const FAMILIES: [Family; 7] = [
    Family::Step,
    Family::Ramp,
    Family::Spikes,
    Family::Diurnal,
    Family::Flash,
    Family::Noise,
    Family::Deploy,
];

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Rises at once, stays, and falls at once.
    Step,
    /// Rises over minutes, stays, and falls over minutes.
    Ramp,
    /// Spikes of some seconds each, again and again.
    Spikes,
    /// A sine over the whole trace, whatever its length: a day in less time is a harder day.
    Diurnal,
    /// Rises within a minute, and decays over many.
    Flash,
    /// Wanders about its mean, beyond what chance does to independent requests.
    Noise,
    /// A rollout, and while it goes on the load rises by half.
    Deploy,
}

impl Family {
    /// As in a trace's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Ramp => "ramp",
            Self::Spikes => "spikes",
            Self::Diurnal => "diurnal",
            Self::Flash => "flash",
            Self::Noise => "noise",
            Self::Deploy => "deploy",
        }
    }
}

/// A family with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Synthetic {
    /// What it does.
    pub family: Family,
    /// Which of its members.
    pub seed: u64,
    /// Requests per second at rest.
    pub base: f64,
    /// Requests per second at the top, before the seed varies it by up to a fifth.
    pub peak: f64,
    /// Seconds.
    pub duration: u64,
}

/// What is wrong with a family's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The family.
    #[error("no family {0:?}; there are step, ramp, spikes, diurnal, flash, noise, deploy")]
    Family(String),
    /// A key.
    #[error("no parameter {0:?}; there are seed, base, peak, duration")]
    Key(String),
    /// A value.
    #[error("{key}: expected {expected}, found {found:?}")]
    Value {
        /// Which.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

impl Synthetic {
    /// A member of a family: from 4 to 12 pods' work at 100 requests per second each, for 40 minutes.
    #[must_use]
    pub const fn new(family: Family, seed: u64) -> Self {
        Self {
            family,
            seed,
            base: 400.0,
            peak: 1200.0,
            duration: 2400,
        }
    }

    /// Reads `step?seed=1&base=400&peak=1200&duration=2400`; all parameters have defaults.
    ///
    /// # Errors
    /// When there is no such family or parameter, or a value is not a number in its range.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, parameters) = text.split_once('?').unwrap_or((text, ""));
        let family = FAMILIES
            .into_iter()
            .find(|f| f.as_str() == name)
            .ok_or_else(|| Error::Family(name.to_owned()))?;
        let mut this = Self::new(family, 1);
        for pair in parameters.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong = |key, expected| Error::Value {
                key,
                expected,
                found: value.to_owned(),
            };
            let rate = |key| {
                let rate = value.parse::<f64>().ok();
                rate.filter(|r| (0.0..=crate::trace::FASTEST / 2.0).contains(r))
                    .ok_or_else(|| wrong(key, "requests per second, from 0 to 50000"))
            };
            match key {
                "seed" => {
                    this.seed = value.parse().map_err(|_| wrong("seed", "a whole number"))?;
                }
                "base" => this.base = rate("base")?,
                "peak" => this.peak = rate("peak")?,
                "duration" => {
                    let seconds = value.parse::<u64>().ok();
                    this.duration = seconds
                        .filter(|s| (60..=604_800).contains(s))
                        .ok_or_else(|| wrong("duration", "seconds, from 60 to 604800"))?;
                }
                other => return Err(Error::Key(other.to_owned())),
            }
        }
        Ok(this)
    }

    /// The load.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let mut random = Random::new(self.seed, self.family as u64);
        let base = self.base;
        let top = base + (self.peak - base) * (0.8 + 0.4 * random.unit());
        // Where the seed puts a share of the duration.
        let d = self.duration as f64;
        let place = |random: &mut Random, from: f64, to: f64| {
            (d * (from + (to - from) * random.unit())).floor()
        };
        let random = &mut random;
        let mut rollouts = Vec::new();
        let shape: Box<dyn Fn(f64) -> f64> = match self.family {
            Family::Step => {
                let (up, down) = (place(random, 0.1, 0.2), place(random, 0.5, 0.6));
                Box::new(move |t| if t >= up && t < down { 1.0 } else { 0.0 })
            }
            Family::Ramp => {
                let (up, long, down) = (
                    place(random, 0.1, 0.2),
                    place(random, 0.05, 0.3),
                    place(random, 0.6, 0.7),
                );
                Box::new(move |t| ((t - up) / long).min(1.0 - (t - down) / long))
            }
            Family::Spikes => {
                let mut spikes = Vec::new();
                let mut at = place(random, 0.03, 0.06);
                while at < d {
                    let long = 15.0 + 45.0 * random.unit();
                    spikes.push((at, at + long));
                    at += 180.0 + 300.0 * random.unit();
                }
                Box::new(move |t| {
                    let on = spikes.iter().any(|(from, to)| t >= *from && t < *to);
                    if on { 1.0 } else { 0.0 }
                })
            }
            Family::Diurnal => {
                let phase = random.unit();
                Box::new(move |t| 0.5 - 0.5 * ((t / d + phase) * std::f64::consts::TAU).cos())
            }
            Family::Flash => {
                let up = place(random, 0.1, 0.3);
                let (rise, decay) = (10.0 + 50.0 * random.unit(), place(random, 0.1, 0.25));
                Box::new(move |t| match t - up {
                    since if since < 0.0 => 0.0,
                    since if since < rise => since / rise,
                    since => (-(since - rise) / decay).exp(),
                })
            }
            Family::Noise => return self.noise(random),
            Family::Deploy => {
                let (roll, up) = (place(random, 0.2, 0.3), place(random, 0.02, 0.03));
                rollouts.push(roll as u64 * 1000);
                let risen = self.base * 0.5 / (top - base).max(1.0);
                Box::new(move |t| if t >= roll + up.min(20.0) { risen } else { 0.0 })
            }
        };
        let rates =
            (0..self.duration).map(|t| base + (top - base) * shape(t as f64).clamp(0.0, 1.0));
        Trace {
            rollouts,
            ..Trace::each_second(&self.name(), rates)
        }
    }

    /// The logarithm wanders back to the mean within half a minute, with a deviation of 0.2.
    fn noise(&self, random: &mut Random) -> Trace {
        const DEVIATION: f64 = 0.2;
        const MEMORY: f64 = 10.0;
        let mean = (self.base + self.peak) / 2.0;
        let keep = (-1.0f64 / MEMORY).exp();
        let fresh = DEVIATION * (1.0 - keep * keep).sqrt();
        let mut x = 0.0;
        let rates = (0..self.duration).map(|_| {
            x = keep * x + fresh * random.normal();
            mean * x.exp()
        });
        Trace::each_second(&self.name(), rates)
    }

    fn name(&self) -> String {
        format!("{}?seed={}", self.family.as_str(), self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_does_what_it_is_named_after() {
        for family in FAMILIES {
            for seed in 0..20 {
                let trace = Synthetic::new(family, seed).trace();
                let rates = trace.seconds();
                assert_eq!(rates.len(), 2400);
                assert!(rates.iter().all(|r| (100.0..=2000.0).contains(r)));
                let steps = trace.steps().len();
                let wanted = match family {
                    Family::Step | Family::Flash | Family::Deploy => 1..=1,
                    Family::Spikes => 4..=14,
                    Family::Ramp | Family::Diurnal => 0..=3,
                    Family::Noise => 0..=20,
                };
                assert!(wanted.contains(&steps), "{family:?} {seed}: {steps} steps");
                assert_eq!(trace.rollouts.len(), usize::from(family == Family::Deploy));
            }
        }
    }

    #[test]
    fn a_seed_is_one_load() {
        let trace = |seed| Synthetic::new(Family::Noise, seed).trace();
        assert_eq!(trace(3), trace(3));
        assert_ne!(trace(3), trace(4));
    }

    #[test]
    fn parameters_are_read_and_checked() {
        let given = Synthetic::parse("ramp?seed=7&base=10&peak=20.5&duration=600").unwrap();
        assert_eq!((given.family, given.seed), (Family::Ramp, 7));
        assert_eq!((given.base, given.peak, given.duration), (10.0, 20.5, 600));
        assert_eq!(
            Synthetic::parse("step").unwrap(),
            Synthetic::new(Family::Step, 1)
        );
        for (text, wanted) in [
            ("steep", "no family \"steep\"; there are step"),
            ("step?sed=1", "no parameter \"sed\""),
            (
                "step?seed=one",
                "seed: expected a whole number, found \"one\"",
            ),
            ("step?base=-1", "base: expected requests per second"),
            ("step?duration=5", "duration: expected seconds, from 60"),
        ] {
            let error = Synthetic::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
