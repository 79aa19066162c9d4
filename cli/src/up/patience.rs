//! How long a stop of everything is left to the supervisor. That waits for the
//! word of the process-managers; one that is away or hangs says nothing. What a
//! shim holds is known without anybody's word, by its lock.

use std::collections::BTreeSet;
use std::time::Duration;

use blackhole_bus_schema::names::InstanceName;
use tokio::time::{Instant, sleep_until};

/// Between two looks at the locks: no event tells of them.
const LOOK: Duration = Duration::from_secs(1);
/// Looks that find nothing alive, one after the other, before the word of it is
/// not waited for any more: it is usually on its way.
const EMPTY: u32 = 3;
/// What a process-manager may need on top of a grace, to end by force what hangs.
const SLACK: Duration = Duration::from_secs(15);

/// Why the supervisor is not waited for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// Nothing lives any more.
    Nothing,
    /// Nothing has ended for so long.
    Stuck(Duration),
}

/// Pure but for [`Patience::due`]: the time and what lives are passed in.
#[derive(Debug)]
pub(super) struct Patience {
    /// Within this something ends, or the stop has come to a stand.
    within: Duration,
    /// When something ended last.
    moved: Instant,
    next: Instant,
    live: BTreeSet<InstanceName>,
    /// What ended counts once: one that comes back again and again is no progress.
    ended: BTreeSet<InstanceName>,
    empty: u32,
}

impl Patience {
    /// For services of which none may take longer than `longest` to end.
    pub(super) fn new(now: Instant, longest: Duration) -> Self {
        Self {
            within: longest.saturating_add(SLACK),
            moved: now,
            next: now + LOOK,
            live: BTreeSet::new(),
            ended: BTreeSet::new(),
            empty: 0,
        }
    }

    /// Waits until it is time for the next look. Cancel safe.
    pub(super) async fn due(&self) {
        sleep_until(self.next).await;
    }

    /// Takes in what lives now; `None` where nobody can tell, and only time counts.
    pub(super) fn look(&mut self, now: Instant, live: Option<Vec<InstanceName>>) -> Option<Over> {
        self.next = now + LOOK;
        let Some(live) = live else {
            self.empty = 0;
            let stands = now.saturating_duration_since(self.moved);
            return (stands >= self.within).then_some(Over::Stuck(self.within));
        };
        let live: BTreeSet<_> = live.into_iter().collect();
        for gone in self.live.difference(&live) {
            if self.ended.insert(gone.clone()) {
                self.moved = now;
            }
        }
        self.live = live;
        self.empty = if self.live.is_empty() {
            self.empty + 1
        } else {
            0
        };
        if self.empty >= EMPTY {
            return Some(Over::Nothing);
        }
        let stands = now.saturating_duration_since(self.moved);
        (stands >= self.within).then_some(Over::Stuck(self.within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn names(all: &[&str]) -> Vec<InstanceName> {
        all.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn what_holds_no_lock_has_ended_whoever_does_not_say_so() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now, GRACE);
        let mut look = |live: &[&str]| {
            now += LOOK;
            patience.look(now, Some(names(live)))
        };
        assert_eq!(look(&["a.1"]), None);
        assert_eq!(look(&[]), None);
        // Started just before.
        assert_eq!(look(&["a.1"]), None);
        assert_eq!(look(&[]), None);
        assert_eq!(look(&[]), None);
        assert_eq!(look(&[]), Some(Over::Nothing));
    }

    #[test]
    fn where_nobody_can_tell_what_lives_it_is_not_said_to_be_nothing() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now, GRACE);
        for _ in 0..10 {
            now += LOOK;
            assert_eq!(patience.look(now, None), None);
        }
        now += GRACE + SLACK;
        let stuck = Some(Over::Stuck(GRACE + SLACK));
        assert_eq!(patience.look(now, None), stuck);
    }

    #[test]
    fn a_row_of_graces_is_no_standstill() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now, GRACE);
        let mut left = names(&["a.1", "b.1", "c.1", "d.1", "e.1"]);
        while left.len() > 1 {
            now += GRACE;
            assert_eq!(patience.look(now, Some(left.clone())), None);
            left.pop();
        }
        now += GRACE;
        assert_eq!(patience.look(now, Some(left.clone())), None);
        now += GRACE + SLACK;
        let stuck = Some(Over::Stuck(GRACE + SLACK));
        assert_eq!(patience.look(now, Some(left)), stuck);
    }

    #[test]
    fn one_that_comes_back_again_and_again_is_no_progress() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now, GRACE);
        let mut looks = 0;
        loop {
            now += LOOK;
            looks += 1;
            let live: &[&str] = match looks % 2 {
                0 => &["a.1"],
                _ => &["a.1", "b.1"],
            };
            match patience.look(now, Some(names(live))) {
                None => assert!(looks < 100),
                Some(over) => break assert!(matches!(over, Over::Stuck(_))),
            }
        }
    }
}
