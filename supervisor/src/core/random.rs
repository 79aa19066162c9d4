//! A small generator for jitter. Nothing secret depends on it; a seed makes a
//! run repeatable.

use std::time::Duration;

/// `SplitMix64` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators, 2014): one addition and a few shifts a number.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// `wait`, longer or shorter by up to `percent` of itself (more than 100 counts as 100).
    pub fn jitter(&mut self, wait: Duration, percent: u8) -> Duration {
        // 53 bits: all that an f64 holds exactly; from -1 to 1.
        let unit = (self.number() >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
        let factor = 1.0 + unit * f64::from(percent.min(100)) / 100.0;
        wait.mul_f64(factor.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_bounds_and_varies() {
        let mut random = Random::new(7);
        let wait = Duration::from_secs(4);
        let waits: Vec<_> = (0..1000).map(|_| random.jitter(wait, 10)).collect();
        let least = waits.iter().min().unwrap();
        let most = waits.iter().max().unwrap();
        assert!(
            *least >= wait.mul_f64(0.9) && *least < wait.mul_f64(0.92),
            "{least:?}"
        );
        assert!(
            *most <= wait.mul_f64(1.1) && *most > wait.mul_f64(1.08),
            "{most:?}"
        );
    }

    #[test]
    fn one_seed_gives_one_row() {
        let row = |seed| {
            let mut random = Random::new(seed);
            [random.number(), random.number(), random.number()]
        };
        assert_eq!(row(1), row(1));
        assert_ne!(row(1), row(2));
    }
}
