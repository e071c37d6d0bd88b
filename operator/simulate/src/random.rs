//! A small reproducible generator and the distributions that a simulation draws from. Never takes a
//! seed from anywhere but its caller.

/// splitmix64: passes the usual statistical batteries, and two seeds give unrelated streams.
#[derive(Clone, Debug)]
pub struct Random(u64);

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Random {
    /// The stream number `stream` of `seed`.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut mixed = Self(seed ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03));
        Self(mixed.next() ^ GOLDEN)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Above 0 and below 1.
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.unit(), self.unit());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// A Poisson count; above a mean of 200 a normal one, which differs by less than it can show.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean.is_nan() || mean <= 0.0 {
            return 0;
        }
        if mean > 200.0 {
            let n = mean + self.normal() * mean.sqrt();
            return n.round().max(0.0) as u64;
        }
        let limit = (-mean).exp();
        let (mut k, mut p) = (0, self.unit());
        while p > limit {
            p *= self.unit();
            k += 1;
        }
        k
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and variance of many draws.
    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let n = 40_000;
        let values: Vec<f64> = (0..n).map(|_| draw()).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        (mean, square / f64::from(n))
    }

    #[test]
    fn the_distributions_have_their_moments() {
        let mut r = Random::new(1, 0);
        for (what, (mean, variance), (m, v)) in [
            ("unit", moments(|| r.unit()), (0.5, 1.0 / 12.0)),
            ("exponential", moments(|| r.exponential()), (1.0, 1.0)),
            ("normal", moments(|| r.normal()), (0.0, 1.0)),
            ("below", moments(|| r.below(7) as f64), (3.0, 4.0)),
            ("few", moments(|| r.poisson(3.0) as f64), (3.0, 3.0)),
            ("many", moments(|| r.poisson(400.0) as f64), (400.0, 400.0)),
        ] {
            let near = |a: f64, b: f64| (a - b).abs() < 0.05 * b.max(1.0);
            assert!(near(mean, m), "{what}: mean {mean}");
            assert!(near(variance, v), "{what}: variance {variance}");
        }
    }

    #[test]
    fn streams_of_a_seed_differ_and_repeat() {
        let draw = |seed, stream| Random::new(seed, stream).next();
        assert_eq!(draw(1, 1), draw(1, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
        assert_ne!(draw(1, 1), draw(2, 1));
        assert_eq!(Random::new(1, 1).below(0), 0);
        assert_eq!(Random::new(1, 1).poisson(f64::NAN), 0);
    }
}
