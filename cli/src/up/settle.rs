//! When a start is through: everything that should run is ready and stays so
//! for a moment, what has no probe a bit longer, or it is clear that something will not
//! get there.

use std::time::Duration;

use tokio::time::Instant;

use crate::view::progress::Assessment;

/// How long all must stay ready.
const HOLD: Duration = Duration::from_millis(500);

/// Watches the assessments of a start. Pure: the time is passed in.
#[derive(Debug, Default)]
pub(super) struct Settle {
    ready_since: Option<Instant>,
    /// When to look again although nothing changes.
    again: Option<Instant>,
}

impl Settle {
    /// Takes in how things stand; `None` when that is not known yet. Tells
    /// whether the start is through.
    pub(super) fn look(&mut self, now: Instant, assessment: Option<&Assessment>) -> bool {
        self.again = None;
        match assessment {
            Some(assessment) if assessment.is_ready() => {
                let since = *self.ready_since.get_or_insert(now);
                let until = (since + HOLD).max(now + assessment.watched);
                self.again = Some(until);
                until <= now
            }
            Some(assessment) => {
                self.ready_since = None;
                self.again = assessment.again.map(|left| now + left);
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
        match self.again {
            Some(at) => tokio::time::sleep_until(at).await,
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
    fn what_has_no_probe_is_watched_longer() {
        let now = Instant::now();
        let mut settle = Settle::default();
        let mut young = ready();
        young.watched = HOLD * 3;
        assert!(!settle.look(now, Some(&young)));
        young.watched = HOLD;
        assert!(!settle.look(now + HOLD * 2, Some(&young)));
        assert!(settle.look(now + HOLD * 3, Some(&ready())));
        assert_eq!(settle.ready_since(), Some(now), "it was ready then");
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
