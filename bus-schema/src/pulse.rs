//! Work that is done again and again by each daemon: all do it in the same moment.
//!
//! A daemon that wakes up finds what the others have sent it, and cores that are awake. Each in
//! its own moment, four daemons that tell each other once a second that they live wake each
//! other some twenty times.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Ticks at once, then whenever the host's monotonic clock is at a multiple of a period.
#[derive(Debug)]
pub struct Pulse {
    begun: bool,
    ticks: Interval,
}

impl Pulse {
    /// With a period of at least a millisecond.
    pub fn new(period: Duration) -> Self {
        let period = period.max(Duration::from_millis(1));
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u128::try_from(now.tv_sec).unwrap_or(0);
        let nanoseconds = u128::try_from(now.tv_nsec).unwrap_or(0);
        let past = (seconds * 1_000_000_000 + nanoseconds) % period.as_nanos();
        let past = Duration::from_nanos(u64::try_from(past).unwrap_or(0));
        let mut ticks = interval_at(Instant::now() + period.saturating_sub(past), period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            begun: false,
            ticks,
        }
    }

    /// Waits for the next tick; those that were missed are left out. Cancel safe.
    pub async fn tick(&mut self) -> Instant {
        if !self.begun {
            self.begun = true;
            return Instant::now();
        }
        self.ticks.tick().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ticks_at_once_then_within_a_period_and_keeps_step() {
        let period = Duration::from_millis(20);
        let mut pulse = Pulse::new(period);
        let begin = Instant::now();
        pulse.tick().await;
        let first = pulse.tick().await;
        assert!(first <= begin + period);
        // Whoever comes late leaves out what was missed and keeps step.
        for late in [period / 2, period * 5 / 2] {
            let before = pulse.tick().await;
            tokio::time::sleep(late).await;
            pulse.tick().await;
            let after = pulse.tick().await;
            let periods = (after - before).as_nanos();
            assert_eq!(periods % period.as_nanos(), 0, "{periods} ns");
        }
    }

    #[tokio::test]
    async fn all_tick_in_the_same_moment() {
        let period = Duration::from_millis(40);
        let next = |mut pulse: Pulse| async move {
            pulse.tick().await;
            pulse.tick().await
        };
        let first = next(Pulse::new(period)).await;
        // A busy host may come between its clock and its timer.
        loop {
            let apart = (next(Pulse::new(period)).await - first).as_nanos() % period.as_nanos();
            if apart.min(period.as_nanos() - apart) < 5_000_000 {
                break;
            }
        }
    }
}
