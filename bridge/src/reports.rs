//! What goes to the log because of what peers do: so much a minute, whatever they do.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Reports of one kind in a [`PERIOD`]; the number of the others is told after it.
const MOST: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);

/// Reports of one kind.
#[derive(Debug)]
pub(crate) struct Reports {
    kind: &'static str,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    made: u32,
    left_out: u64,
}

impl Reports {
    pub(crate) fn of(kind: &'static str) -> Self {
        Self {
            kind,
            state: Mutex::new(State {
                since: Instant::now(),
                made: 0,
                left_out: 0,
            }),
        }
    }

    /// Whether one more may be made. Tells of those that were left out before.
    pub(crate) fn may(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.since) >= PERIOD {
            let left_out = std::mem::take(&mut state.left_out);
            if left_out > 0 {
                tracing::warn!(left_out, "{} were not logged one by one", self.kind);
            }
            state.since = now;
            state.made = 0;
        }
        let may = state.made < MOST;
        match may {
            true => state.made += 1,
            false => state.left_out += 1,
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_its_number_of_reports() {
        let reports = Reports::of("tests");
        let made = (0..1000).filter(|_| reports.may()).count();
        assert_eq!(made, MOST as usize);
        reports.state.lock().unwrap().since -= PERIOD;
        assert!(reports.may());
        assert_eq!(reports.state.lock().unwrap().left_out, 0);
    }
}
