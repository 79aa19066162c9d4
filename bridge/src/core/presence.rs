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
/// The part of the further connections that one service may have, at least as much as
/// one instance.
const SHARE: usize = 4;

/// How many connections there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// In all.
    pub all: usize,
    /// Of these, connections of instances that have one already. An instance's first is
    /// refused by nothing but `all`: how many instances run is the operator's to say.
    pub further: usize,
}

#[derive(Debug, Default)]
struct Present {
    connections: usize,
    /// Instances they belong to, of a service.
    instances: usize,
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

    /// Connections beyond each instance's first.
    fn further(&self) -> usize {
        self.connections.saturating_sub(self.instances)
    }
}

/// Who is there.
#[derive(Debug)]
pub(super) struct Presence {
    instances: HashMap<InstanceName, Present>,
    services: HashMap<ServiceName, Present>,
    all: Present,
    /// Whether it was told that there are too many further ones.
    told_further: bool,
    room: Room,
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
            told_further: false,
            room: Room {
                all: CONNECTIONS,
                further: CONNECTIONS / SHARE,
            },
            first_words: VecDeque::new(),
        }
    }
}

impl Presence {
    pub(super) fn at_most(&mut self, room: Room) {
        self.room = room;
    }

    /// Counts a connection, unless it is one too many. Then: what to say of it, once.
    pub(super) fn enter(
        &mut self,
        conn: Conn,
        instance: &InstanceName,
    ) -> Result<(), Option<String>> {
        let own = self.instances.get_mut(instance);
        if let Some(news) = own.and_then(|own| own.full(CONNECTIONS_OF_ONE)) {
            let what = || format!("has more than {CONNECTIONS_OF_ONE} connections: ended");
            return Err(news.then(what));
        }
        let first = !self.instances.contains_key(instance);
        if !first {
            self.may_have_further(instance.service())?;
        }
        if let Some(news) = self.all.full(self.room.all) {
            let most = self.room.all;
            let what = || format!("has one of more than {most} connections of all: ended");
            return Err(news.then(what));
        }
        let service = instance.service().clone();
        for present in [self.services.entry(service).or_default(), &mut self.all] {
            present.connections += 1;
            present.instances += usize::from(first);
        }
        let own = self.instances.entry(instance.clone()).or_default();
        own.connections += 1;
        own.which.push(conn);
        Ok(())
    }

    /// Whether an instance of this service may have one more than it has. If not: what
    /// to say of it, once.
    fn may_have_further(&mut self, service: &ServiceName) -> Result<(), Option<String>> {
        let further = self.room.further;
        let share = (further / SHARE).max(CONNECTIONS_OF_ONE - 1);
        if let Some(service) = self.services.get_mut(service)
            && service.further() >= share
        {
            let news = !std::mem::replace(&mut service.told, true);
            return Err(news.then(|| {
                format!(
                    "is of a service with more than {share} connections beyond the first of \
                     each instance: ended"
                )
            }));
        }
        if self.all.further() >= further {
            let news = !std::mem::replace(&mut self.told_further, true);
            return Err(news.then(|| {
                format!(
                    "has one of more than {further} connections beyond the first of each \
                     instance: ended"
                )
            }));
        }
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
        let last = leave(&mut self.instances, instance);
        if let Some(service) = self.services.get_mut(instance.service()) {
            service.instances = service.instances.saturating_sub(usize::from(last));
        }
        leave(&mut self.services, instance.service());
        self.all.connections = self.all.connections.saturating_sub(1);
        self.all.instances = self.all.instances.saturating_sub(usize::from(last));
        // Told again when it is full again after there was some room.
        if self.all.connections < self.room.all / 2 {
            self.all.told = false;
        }
        if self.all.further() < self.room.further / 2 {
            self.told_further = false;
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

/// Whether that was its last.
fn leave<K: Eq + Hash>(all: &mut HashMap<K, Present>, who: &K) -> bool {
    let Some(present) = all.get_mut(who) else {
        return false;
    };
    present.connections = present.connections.saturating_sub(1);
    let last = present.connections == 0;
    if last {
        all.remove(who);
    }
    last
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
