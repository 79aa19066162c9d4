//! A long reason is told once: what fails again for the same reason is told in short.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Reasons up to this many bytes are short enough.
const SHORT: usize = 40;
/// After this long the reason is told again.
const FORGOTTEN: Duration = Duration::from_secs(10 * 60);
/// Reasons that are kept; then all are forgotten, and told once more.
const MOST: usize = 256;

/// What a failure is called before its reason.
const MARK: &str = "FAILED: ";

/// The reasons told so far. Pure: the time is passed in.
#[derive(Debug, Default)]
pub(super) struct Said {
    reasons: BTreeMap<String, Instant>,
}

impl Said {
    /// The text of an event, without a reason that was told before. `reason` is the latest of the
    /// instance, where the supervisor has told one.
    pub(super) fn event(&mut self, now: Instant, text: &str, reason: Option<&str>) -> String {
        let short = self.short(now, text);
        let told = reason.filter(|reason| text.contains(reason));
        if short == text
            && let Some(reason) = told.or(text.split_once(MARK).map(|(_, reason)| reason))
            && reason.len() > SHORT
        {
            if self.reasons.len() >= MOST {
                self.reasons.clear();
            }
            self.reasons.insert(reason.to_owned(), now);
        }
        short
    }

    /// A text without the reasons that were told before.
    pub(super) fn short(&self, now: Instant, text: &str) -> String {
        let mut short = text.to_owned();
        for (reason, at) in &self.reasons {
            if now.saturating_duration_since(*at) < FORGOTTEN {
                short = short.replace(reason, "for the reason above");
            }
        }
        short
    }

    /// Everything is told in full again.
    pub(super) fn forget(&mut self) {
        self.reasons.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_told_once() {
        let now = Instant::now();
        let mut said = Said::default();
        let reason = "exec /opt/web/bin/server: No such file or directory (os error 2): install it";
        let event = format!("SPAWN → FAILED: {reason}");
        assert_eq!(said.event(now, &event, None), event);
        let again = said.event(now, &event, None);
        assert_eq!(again, "SPAWN → FAILED: for the reason above");
        let backoff = format!("backing off: restart 1 of 5 in 1.0 s: {reason}");
        assert_eq!(
            said.event(now, &backoff, None),
            "backing off: restart 1 of 5 in 1.0 s: for the reason above"
        );
        let late = now + FORGOTTEN;
        assert_eq!(said.event(late, &event, None), event);
        said.forget();
        assert_eq!(said.short(now, &event), event);
        // The supervisor's word may come first.
        assert_eq!(said.event(now, &backoff, Some(reason)), backoff);
        assert_eq!(said.event(now, &event, Some(reason)), again);
        // As short as what would stand in its place.
        let short = "RUNNING → FAILED: exit code 3";
        assert_eq!(said.event(now, short, None), short);
        assert_eq!(said.event(now, short, None), short);
    }
}
