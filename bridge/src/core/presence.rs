//! Connections that were admitted, counted by instance: also those that have
//! never said a word.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::InstanceName;

use super::{Action, Conn, Core};

/// Connections that one instance may have: workers of a service may each open
/// one. Further ones are ended.
pub(super) const CONNECTIONS_OF_ONE: usize = 64;
/// Time that a connection has to say something.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Present {
    connections: usize,
    /// Whether it was told that it has too many.
    told: bool,
}

/// Who is there.
#[derive(Debug, Default)]
pub(super) struct Presence {
    instances: HashMap<InstanceName, Present>,
    /// When each connection must have said something, oldest first. As many as
    /// handshakes are made in [`FIRST_WORD`], 24 bytes each.
    first_words: VecDeque<(Instant, Conn)>,
}

impl Presence {
    /// Counts a connection, unless it is one too many. Then: whether that is new.
    pub(super) fn enter(&mut self, instance: &InstanceName) -> Result<(), bool> {
        let present = self.instances.entry(instance.clone()).or_default();
        if present.connections >= CONNECTIONS_OF_ONE {
            return Err(!std::mem::replace(&mut present.told, true));
        }
        present.connections += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self, instance: &InstanceName) {
        if let Some(present) = self.instances.get_mut(instance) {
            present.connections = present.connections.saturating_sub(1);
            if present.connections == 0 {
                self.instances.remove(instance);
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.first_words.front().map(|(at, _)| *at)
    }
}

impl Core {
    /// A connection has `FIRST_WORD` from now.
    pub(super) fn await_first_word(&mut self, now: Instant, conn: Conn) {
        self.presence
            .first_words
            .push_back((now + FIRST_WORD, conn));
    }

    /// Ends the connections that have never said anything in their time.
    pub(super) fn end_silent(&mut self, now: Instant) {
        while let Some((at, conn)) = self.presence.first_words.front().copied()
            && at <= now
        {
            self.presence.first_words.pop_front();
            if self.connections.get(&conn).is_some_and(|c| !c.spoke) {
                self.offence(conn, "said nothing on a connection: ended");
                self.actions.push(Action::Disconnect(conn));
                self.disconnected(now, conn);
            }
        }
    }
}
