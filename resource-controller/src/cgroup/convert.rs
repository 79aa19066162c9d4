//! Units: from the configuration's scales (percent of a core, weights of 1 to
//! 10000 around 100) to the kernel's, and back for the report. Pure.

/// Length of a bandwidth period, in microseconds. The kernel's own default;
/// the smallest quota it takes (1 ms) is then exactly one percent.
pub const CPU_PERIOD_USEC: u64 = 100_000;

/// CPU quota in microseconds a period for `percent` of one core.
pub fn cpu_quota(percent: u32) -> u64 {
    u64::from(percent) * CPU_PERIOD_USEC / 100
}

/// Percent of one core that a quota allows, rounded to the nearest.
pub fn cpu_percent(quota_usec: u64, period_usec: u64) -> u64 {
    let period = period_usec.max(1);
    (quota_usec.saturating_mul(100) + period / 2) / period
}

/// v1 `cpu.shares` (2 to 262144, 1024 is normal) for a weight: the same ratios.
pub fn weight_to_shares(weight: u32) -> u64 {
    (u64::from(weight) * 1024 / 100).clamp(2, 262_144)
}

/// The weight that `cpu.shares` stands for, to the nearest.
pub fn shares_to_weight(shares: u64) -> u64 {
    (shares.saturating_mul(100) + 512) / 1024
}

/// The range of an interface for I/O weights, and which of its values is "normal".
///
/// Weights are proportions, so they are scaled by one factor and cut at the
/// ends of the range (and reported as held in part then): 200 beside 100 must
/// stay two to one, which the piecewise scales of other programs lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightRange {
    /// Smallest value.
    pub min: u64,
    /// Largest value.
    pub max: u64,
    /// The value of weight 100.
    pub normal: u64,
}

impl WeightRange {
    /// `blkio.bfq.weight` and `io.bfq.weight`, see block/bfq-iosched.rst.
    pub const BFQ: Self = Self {
        min: 1,
        max: 1000,
        normal: 100,
    };
    /// `blkio.weight` of the old CFQ scheduler, see cgroup-v1/blkio-controller.rst of Linux 4.
    pub const CFQ: Self = Self {
        min: 10,
        max: 1000,
        normal: 500,
    };
    /// v2 `io.weight`, see cgroup-v2.rst.
    pub const IO: Self = Self {
        min: 1,
        max: 10_000,
        normal: 100,
    };

    /// The interface's value for a weight.
    pub fn value(self, weight: u32) -> u64 {
        (u64::from(weight) * self.normal / 100).clamp(self.min, self.max)
    }

    /// The weight that a value stands for, to the nearest.
    pub fn weight(self, value: u64) -> u64 {
        (value.saturating_mul(100) + self.normal / 2) / self.normal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        assert_eq!(cpu_quota(10), 10_000);
        assert_eq!(cpu_quota(250), 250_000);
        assert_eq!(cpu_percent(10_000, 100_000), 10);
        assert_eq!(cpu_percent(1_000, 1_000_000), 0);
        assert_eq!(weight_to_shares(100), 1024);
        assert_eq!(weight_to_shares(10_000), 102_400);
        assert_eq!(weight_to_shares(1), 10);
        assert_eq!(WeightRange::BFQ.value(200), 200);
        assert_eq!(WeightRange::BFQ.value(10_000), 1000);
        assert_eq!(WeightRange::CFQ.value(100), 500);
        assert_eq!(WeightRange::CFQ.value(1), 10);
        assert_eq!(WeightRange::IO.value(10_000), 10_000);
    }

    proptest! {
        #[test]
        fn every_weight_survives_the_way_to_shares_and_back(weight in 1u32..=10_000) {
            prop_assert_eq!(shares_to_weight(weight_to_shares(weight)), u64::from(weight));
        }

        #[test]
        fn weights_within_the_range_survive(weight in 1u32..=1_000) {
            prop_assert_eq!(WeightRange::BFQ.weight(WeightRange::BFQ.value(weight)), u64::from(weight));
            prop_assert_eq!(WeightRange::IO.weight(WeightRange::IO.value(weight)), u64::from(weight));
        }

        #[test]
        fn more_weight_is_never_less(a in 1u32..=10_000, b in 1u32..=10_000) {
            let (low, high) = (a.min(b), a.max(b));
            for range in [WeightRange::BFQ, WeightRange::CFQ, WeightRange::IO] {
                prop_assert!(range.value(low) <= range.value(high));
            }
            prop_assert!(weight_to_shares(low) <= weight_to_shares(high));
        }

        #[test]
        fn every_percentage_survives(percent in 1u32..=100_000) {
            prop_assert_eq!(cpu_percent(cpu_quota(percent), CPU_PERIOD_USEC), u64::from(percent));
        }
    }
}
