//! How old a log is, by a clock that nobody sets.
//!
//! When a file was written is known by the wall clock alone, and that may jump: by
//! years, where a board without a battery learns the time, and back again. So it is
//! asked once a file, when the file is seen first; from then on its age grows
//! with the time since boot (`CLOCK_BOOTTIME`, see clock_gettime(2)). One that is
//! found too old already, because nobody looked for a while or because the clock was
//! set, stays as long as it may live once more, at most an [`PATIENCE`]: time for a
//! clock to be put right before all logs are gone. One from the future is new.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// The longest that a file stays which is too old when it is seen first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3600);

/// One moment by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) wall: SystemTime,
    /// Time since boot, suspends included.
    pub(crate) up: Duration,
}

impl Now {
    pub(crate) fn read() -> Self {
        let up = clock_gettime(ClockId::Boottime);
        Self {
            wall: SystemTime::now(),
            up: Duration::new(
                u64::try_from(up.tv_sec).unwrap_or(0),
                u32::try_from(up.tv_nsec).unwrap_or(0),
            ),
        }
    }

    /// Time since then by the wall clock; none since a moment of the future.
    pub(crate) fn since(&self, then: SystemTime) -> Duration {
        self.wall.duration_since(then).unwrap_or_default()
    }
}

/// What is known of the ages of one instance's rotated files, by their numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ages {
    seen: HashMap<u64, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    age: Duration,
    up: Duration,
}

impl Ages {
    /// The time since boot at which a file that was written until `last` gets
    /// older than `most`.
    pub(crate) fn expires(
        &mut self,
        number: u64,
        last: SystemTime,
        most: Duration,
        now: Now,
    ) -> Duration {
        let new = Seen {
            age: now.since(last),
            up: now.up,
        };
        let seen = self.seen.entry(number).or_insert(new);
        let left = match most.checked_sub(seen.age) {
            Some(left) if !left.is_zero() => left,
            _ => most.min(PATIENCE),
        };
        seen.up.saturating_add(left)
    }

    /// Forgets all but these.
    pub(crate) fn keep(&mut self, numbers: impl Fn(u64) -> bool) {
        self.seen.retain(|number, _| numbers(*number));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}
