//! The host-wide brake on restarts: a token bucket, kept as one moment.

use std::time::Duration;

/// At most `burst` restarts at once, then one each `refill`. Each restart is
/// given a slot of its own, in the order of asking, so that a thousand waiting
/// instances are woken once each and not all at every token.
#[derive(Debug, Clone)]
pub(super) struct Storm {
    burst: u32,
    refill: Duration,
    /// When the bucket will be full again, if nobody asks meanwhile.
    full_at: Duration,
}

impl Storm {
    /// A full bucket. A `burst` of 0 counts as 1: it must be possible to restart at all.
    pub(super) fn new(burst: u32, refill: Duration) -> Self {
        Self {
            burst: burst.max(1),
            refill,
            full_at: Duration::ZERO,
        }
    }

    /// Changes the settings; what has been taken stays taken.
    pub(super) fn configure(&mut self, burst: u32, refill: Duration) {
        self.burst = burst.max(1);
        self.refill = refill;
    }

    /// From when a token that is taken now could be used: `now`, or later.
    pub(super) fn next_token(&self, now: Duration) -> Duration {
        self.clone().reserve(now)
    }

    /// Takes a token and tells from when it may be used: `now`, or later when
    /// the bucket is empty.
    pub(super) fn reserve(&mut self, now: Duration) -> Duration {
        self.full_at = self.full_at.max(now).saturating_add(self.refill);
        let depth = self.refill.saturating_mul(self.burst);
        self.full_at.saturating_sub(depth).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_one_by_one() {
        let mut storm = Storm::new(3, S(2));
        let slots: Vec<_> = (0..6).map(|_| storm.reserve(S(100))).collect();
        assert_eq!(slots, [S(100), S(100), S(100), S(102), S(104), S(106)]);
    }

    #[test]
    fn it_fills_again_but_not_beyond_its_burst() {
        let mut storm = Storm::new(2, S(1));
        storm.reserve(S(10));
        storm.reserve(S(10));
        let slots: Vec<_> = (0..3).map(|_| storm.reserve(S(1000))).collect();
        assert_eq!(slots, [S(1000), S(1000), S(1001)]);
    }

    #[test]
    fn no_burst_is_one() {
        let mut storm = Storm::new(0, S(5));
        assert_eq!(storm.reserve(S(1)), S(1));
        assert_eq!(storm.reserve(S(1)), S(6));
    }
}
