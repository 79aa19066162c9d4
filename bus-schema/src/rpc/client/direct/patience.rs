//! How soon an endpoint that failed is tried again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::super::super::HEARTBEAT;
use super::super::request::jittered;

/// First wait before an endpoint that failed is tried again. Doubled up to [`LONGEST`].
pub(super) const FIRST: Duration = Duration::from_millis(100);
/// Longest such wait.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// A connection that lived so long was a good one.
const GOOD: Duration = HEARTBEAT;

/// The endpoints that failed; at most those of the bridge's last answer and those
/// that have failed since.
#[derive(Debug, Default)]
pub(super) struct Patience {
    failed: HashMap<String, Failed>,
}

#[derive(Debug)]
struct Failed {
    pause: Duration,
    /// Not to be tried before.
    until: Instant,
}

impl Patience {
    /// A connection is over that was admitted at this time, or never was.
    pub(super) fn closed(&mut self, now: Instant, endpoint: &str, up: Option<Instant>) {
        if up.is_some_and(|up| now.saturating_duration_since(up) >= GOOD) {
            self.failed.remove(endpoint);
            return;
        }
        let pause = match self.failed.get(endpoint) {
            Some(failed) => (failed.pause * 2).min(LONGEST),
            None => FIRST,
        };
        // Callers that were refused together do not come back together.
        let until = now + pause / 2 + jittered(pause / 2);
        self.failed
            .insert(endpoint.to_owned(), Failed { pause, until });
    }

    /// Whether an endpoint may be tried.
    pub(super) fn allows(&self, now: Instant, endpoint: &str) -> bool {
        let failed = self.failed.get(endpoint);
        failed.is_none_or(|failed| failed.until <= now)
    }

    /// When the next endpoint may be tried that may not be now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let untils = self.failed.values().map(|failed| failed.until);
        untils.filter(|until| *until > now).min()
    }

    /// The bridge knows these alone.
    pub(super) fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.failed.retain(|endpoint, _| known(endpoint));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_doubled_until_a_connection_was_good() {
        let mut now = Instant::now();
        let mut patience = Patience::default();
        assert!(patience.allows(now, "a"));
        let mut pause = FIRST;
        for turn in 0..12 {
            // Refused, or lost as soon as it was admitted.
            patience.closed(now, "a", (turn % 2 == 0).then_some(now));
            assert!(!patience.allows(now, "a") && patience.allows(now, "b"));
            let until = patience.next(now).unwrap();
            assert!((pause / 2..=pause).contains(&(until - now)), "{turn}");
            now = until;
            assert!(patience.allows(now, "a"));
            assert_eq!(patience.next(now), None);
            pause = (pause * 2).min(LONGEST);
        }
        assert_eq!(pause, LONGEST);
        patience.closed(now + GOOD, "a", Some(now));
        assert!(patience.allows(now + GOOD, "a"));
        patience.closed(now, "a", None);
        patience.retain(|endpoint| endpoint != "a");
        assert!(patience.failed.is_empty());
    }
}
