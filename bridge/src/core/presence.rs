//! Connections that were admitted, counted by instance: also those that have
//! never said a word.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::{InstanceName, ServiceName};

use super::{Action, Conn, Core};

/// Connections that one instance may have: it needs one, and workers of it may each
/// open one. Further ones are ended: what is read ahead of each is bounded in messages,
/// not in bytes.
pub(super) const CONNECTIONS_OF_ONE: usize = 8;
/// Time that a connection has to say something.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(30);

/// Connections of all instances together, where nobody says what there is room for.
pub const CONNECTIONS: usize = 8192;
/// The part of them that one service may have, at least as much as one instance.
const SHARE: usize = 4;

#[derive(Debug, Default)]
struct Present {
    connections: usize,
    /// Which, of an instance.
    which: Vec<Conn>,
    /// Whether it was told that there are too many.
    told: bool,
}

impl Present {
    /// Whether there is no room for one more. Then: whether that is new.
    fn full(&mut self, most: usize) -> Option<bool> {
        (self.connections >= most).then(|| !std::mem::replace(&mut self.told, true))
    }
}

/// Who is there.
#[derive(Debug)]
pub(super) struct Presence {
    instances: HashMap<InstanceName, Present>,
    services: HashMap<ServiceName, Present>,
    all: Present,
    most: usize,
    /// When each connection must have said something, oldest first. As many as
    /// handshakes are made in [`FIRST_WORD`], 24 bytes each.
    first_words: VecDeque<(Instant, Conn)>,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            instances: HashMap::new(),
            services: HashMap::new(),
            all: Present::default(),
            most: CONNECTIONS,
            first_words: VecDeque::new(),
        }
    }
}

impl Presence {
    pub(super) fn at_most(&mut self, connections: usize) {
        self.most = connections;
    }

    /// Counts a connection, unless it is one too many. Then: what to say of it, once.
    pub(super) fn enter(
        &mut self,
        conn: Conn,
        instance: &InstanceName,
    ) -> Result<(), Option<String>> {
        let share = (self.most / SHARE).max(CONNECTIONS_OF_ONE);
        let own = self.instances.get_mut(instance);
        if let Some(news) = own.and_then(|own| own.full(CONNECTIONS_OF_ONE)) {
            let what = || format!("has more than {CONNECTIONS_OF_ONE} connections: ended");
            return Err(news.then(what));
        }
        let service = self.services.get_mut(instance.service());
        if let Some(news) = service.and_then(|service| service.full(share)) {
            let what = || format!("is of a service with more than {share} connections: ended");
            return Err(news.then(what));
        }
        if let Some(news) = self.all.full(self.most) {
            let most = self.most;
            let what = || format!("has one of more than {most} connections of all: ended");
            return Err(news.then(what));
        }
        self.all.connections += 1;
        let service = instance.service().clone();
        self.services.entry(service).or_default().connections += 1;
        let own = self.instances.entry(instance.clone()).or_default();
        own.connections += 1;
        own.which.push(conn);
        Ok(())
    }

    /// The connections of an instance.
    pub(super) fn connections(&self, instance: &InstanceName) -> impl Iterator<Item = Conn> {
        let own = self.instances.get(instance);
        own.into_iter().flat_map(|own| own.which.iter().copied())
    }

    pub(super) fn leave(&mut self, conn: Conn, instance: &InstanceName) {
        if let Some(own) = self.instances.get_mut(instance) {
            own.which.retain(|other| *other != conn);
        }
        leave(&mut self.instances, instance);
        leave(&mut self.services, instance.service());
        self.all.connections = self.all.connections.saturating_sub(1);
        // Told again when it is full again after there was some room.
        if self.all.connections < self.most / 2 {
            self.all.told = false;
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.services.is_empty() && self.all.connections == 0
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.first_words.front().map(|(at, _)| *at)
    }
}

fn leave<K: Eq + Hash>(all: &mut HashMap<K, Present>, who: &K) {
    if let Some(present) = all.get_mut(who) {
        present.connections = present.connections.saturating_sub(1);
        if present.connections == 0 {
            all.remove(who);
        }
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
