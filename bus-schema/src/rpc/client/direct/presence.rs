//! Who is connected to a direct socket, and how many may be.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::time::Instant;

/// Connections that one caller may have: workers of a service may each open one.
pub(super) const OF_ONE: usize = 16;
/// Connections of all callers together, and no more than half of the files that the
/// service may open. Each may have cost some 600 KiB once its queues have been full.
const OF_ALL: usize = 1024;
/// Time that a connection has to say something.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(30);

/// The callers that are connected.
#[derive(Debug)]
pub(super) struct Presence {
    /// By connection: whose it is, and whether it has said anything.
    there: HashMap<u64, (String, bool)>,
    callers: HashMap<String, usize>,
    most: usize,
    /// When each connection must have said something, oldest first; at most twice as
    /// many as there may be connections.
    first_words: VecDeque<(Instant, u64)>,
}

impl Presence {
    pub(super) fn new() -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 2;
        Self::of(usize::try_from(files).map_or(OF_ALL, |files| files.clamp(OF_ONE, OF_ALL)))
    }

    fn of(most: usize) -> Self {
        Self {
            there: HashMap::new(),
            callers: HashMap::new(),
            most,
            first_words: VecDeque::new(),
        }
    }

    /// Counts a connection, unless it is one too many; whether it may stay.
    pub(super) fn enter(&mut self, now: Instant, connection: u64, caller: &str) -> bool {
        if self.there.contains_key(&connection) {
            return true;
        }
        let own = self.callers.get(caller).copied().unwrap_or_default();
        if own >= OF_ONE || self.there.len() >= self.most {
            return false;
        }
        self.callers.insert(caller.to_owned(), own + 1);
        self.there.insert(connection, (caller.to_owned(), false));
        // Those that came and went leave theirs behind.
        if self.first_words.len() >= 2 * self.most {
            let there = &self.there;
            self.first_words
                .retain(|(_, connection)| there.get(connection).is_some_and(|(_, spoke)| !spoke));
        }
        self.first_words.push_back((now + FIRST_WORD, connection));
        true
    }

    pub(super) fn spoke(&mut self, connection: u64) {
        if let Some((_, spoke)) = self.there.get_mut(&connection) {
            *spoke = true;
        }
    }

    pub(super) fn leave(&mut self, connection: u64) {
        let Some((caller, _)) = self.there.remove(&connection) else {
            return;
        };
        if let Some(own) = self.callers.get_mut(&caller) {
            *own -= 1;
            if *own == 0 {
                self.callers.remove(&caller);
            }
        }
    }

    /// The connections that are counted.
    pub(super) fn connections(&self) -> Vec<u64> {
        self.there.keys().copied().collect()
    }

    /// When the next connection must have said something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.first_words.front().map(|(at, _)| *at)
    }

    /// Those that have never said anything in their time.
    pub(super) fn silent(&mut self, now: Instant) -> Vec<u64> {
        let mut silent = Vec::new();
        while let Some((at, connection)) = self.first_words.front().copied()
            && at <= now
        {
            self.first_words.pop_front();
            if let Some((_, false)) = self.there.get(&connection) {
                silent.push(connection);
            }
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_and_all_have_so_many_and_no_more() {
        let now = Instant::now();
        let mut presence = Presence::of(OF_ONE + 1);
        for connection in 0..OF_ONE as u64 {
            assert!(presence.enter(now, connection, "front.1"));
        }
        assert!(!presence.enter(now, 100, "front.1"));
        assert!(presence.enter(now, 5, "front.1"), "it is there");
        assert!(presence.enter(now, 101, "front.2"));
        assert!(!presence.enter(now, 102, "front.3"));
        presence.leave(5);
        presence.leave(5);
        presence.leave(102);
        assert!(presence.enter(now, 102, "front.1"));
        assert!(!presence.enter(now, 103, "front.1"));
        for connection in presence.connections() {
            presence.leave(connection);
        }
        assert!(presence.there.is_empty() && presence.callers.is_empty());
        for connection in 200..1000 {
            assert!(presence.enter(now, connection, "front.1"));
            presence.leave(connection);
        }
        assert!(presence.first_words.len() <= 2 * presence.most);
        assert!((OF_ONE..=OF_ALL).contains(&Presence::new().most));
    }

    #[test]
    fn who_says_nothing_is_named_once() {
        let now = Instant::now();
        let mut presence = Presence::of(OF_ALL);
        for connection in 1..=3 {
            presence.enter(now, connection, "front.1");
        }
        presence.spoke(1);
        presence.leave(2);
        assert_eq!(presence.next_deadline(), Some(now + FIRST_WORD));
        assert!(presence.silent(now).is_empty());
        assert_eq!(presence.silent(now + FIRST_WORD), [3]);
        assert_eq!(presence.next_deadline(), None);
    }
}
