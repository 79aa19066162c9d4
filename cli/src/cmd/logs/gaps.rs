//! Lines that were rotated away before they could be shown: said once of an instance, then
//! now and then with how many times it has happened since.

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::names::InstanceName;
use tokio::time::Instant;

use crate::human;
use crate::out;

/// Shortest time between two words on one instance.
const CALM: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Gap {
    told: Instant,
    untold: usize,
}

/// The gaps so far. What was not told is told when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    of: BTreeMap<InstanceName, Gap>,
}

impl Gaps {
    /// There were `times` more; tells what is to be said now.
    pub(super) fn met(
        &mut self,
        now: Instant,
        instance: &InstanceName,
        times: usize,
    ) -> Option<String> {
        if times == 0 {
            return None;
        }
        match self.of.get_mut(instance) {
            None => {
                let untold = times - 1;
                self.of.insert(instance.clone(), Gap { told: now, untold });
                Some(format!("{instance}: {}", words()))
            }
            Some(gap) => {
                gap.untold += times;
                let due = now.saturating_duration_since(gap.told) >= CALM;
                due.then(|| gap.tell(now, instance)).flatten()
            }
        }
    }

    /// What has been waiting for its turn.
    pub(super) fn due(&mut self, now: Instant) -> Vec<String> {
        let all = self.of.iter_mut();
        all.filter(|(_, gap)| now.saturating_duration_since(gap.told) >= CALM)
            .filter_map(|(instance, gap)| gap.tell(now, instance))
            .collect()
    }
}

impl Gap {
    fn tell(&mut self, now: Instant, instance: &InstanceName) -> Option<String> {
        let untold = std::mem::take(&mut self.untold);
        self.told = now;
        (untold > 0).then(|| {
            let times = human::count(untold, "more time");
            format!("{instance}: {} ({times})", words())
        })
    }
}

impl Drop for Gaps {
    fn drop(&mut self) {
        let now = Instant::now();
        for (instance, gap) in &mut self.of {
            if let Some(text) = gap.tell(now, instance) {
                out::note(text);
            }
        }
    }
}

fn words() -> &'static str {
    "older lines were rotated away before they could be shown"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_said_once_then_counted() {
        let now = Instant::now();
        let web: InstanceName = "web.1".parse().unwrap();
        let mut gaps = Gaps::default();
        assert_eq!(gaps.met(now, &web, 0), None);
        let first = "web.1: older lines were rotated away before they could be shown";
        assert_eq!(gaps.met(now, &web, 1).as_deref(), Some(first));
        for _ in 0..92 {
            assert_eq!(gaps.met(now + CALM / 2, &web, 1), None);
        }
        assert!(gaps.due(now + CALM / 2).is_empty());
        let counted = format!("{first} (93 more times)");
        assert_eq!(gaps.met(now + CALM, &web, 1), Some(counted));
        assert_eq!(gaps.met(now + CALM, &web, 1), None);
        assert_eq!(gaps.due(now + CALM * 2), [format!("{first} (1 more time)")]);
        assert!(gaps.due(now + CALM * 3).is_empty());
    }
}
