//! When a start is through: everything that should run is ready and stays so
//! for a moment, or it is clear that something will not get there.

use std::time::Duration;

use tokio::time::Instant;

use crate::view::progress::Assessment;

/// How long all must stay ready. A service without probes counts as ready as
/// soon as it runs; one that dies of its own start does so within this time.
const HOLD: Duration = Duration::from_millis(500);

/// Watches the assessments of a start. Pure: the time is passed in.
#[derive(Debug, Default)]
pub(super) struct Settle {
    ready_since: Option<Instant>,
}

impl Settle {
    /// Takes in how things stand; `None` when that is not known yet. Tells
    /// whether the start is through.
    pub(super) fn look(&mut self, now: Instant, assessment: Option<&Assessment>) -> bool {
        match assessment {
            Some(assessment) if assessment.is_ready() => {
                let since = *self.ready_since.get_or_insert(now);
                now.saturating_duration_since(since) >= HOLD
            }
            Some(assessment) => {
                self.ready_since = None;
                assessment.is_settled()
            }
            None => {
                self.ready_since = None;
                false
            }
        }
    }

    /// Since when all is ready.
    pub(super) fn ready_since(&self) -> Option<Instant> {
        self.ready_since
    }

    /// Waits until it is time to look again although nothing changed. Cancel safe.
    pub(super) async fn due(&self) {
        match self.ready_since {
            Some(since) => tokio::time::sleep_until(since + HOLD).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Assessment {
        Assessment {
            ready: 2,
            ..Assessment::default()
        }
    }

    fn pending() -> Assessment {
        Assessment {
            ready: 1,
            pending: vec![("a.1".into(), "probing".into())],
            ..Assessment::default()
        }
    }

    #[test]
    fn a_flash_of_readiness_is_not_enough() {
        let now = Instant::now();
        let mut settle = Settle::default();
        assert!(!settle.look(now, None));
        assert!(!settle.look(now, Some(&ready())));
        assert!(!settle.look(now + HOLD / 2, Some(&pending())));
        assert!(
            !settle.look(now + HOLD, Some(&ready())),
            "the time counts from the second readiness"
        );
        assert!(settle.look(now + HOLD * 2, Some(&ready())));
        assert_eq!(settle.ready_since(), Some(now + HOLD));
    }

    #[test]
    fn a_failure_for_good_is_through_at_once() {
        let failed = Assessment {
            failed: vec![("a.1".into(), "circuit open".into())],
            ..Assessment::default()
        };
        assert!(Settle::default().look(Instant::now(), Some(&failed)));
    }
}
