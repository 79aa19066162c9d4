//! Registrations: what a service serves, and how often it may change that.
//!
//! A change is told on the bus and lets calls go that waited, so each spawn has
//! [`AT_ONCE`] of them at once and one more each [`REFILL`], on whatever
//! connections. What it says beyond that waits, the latest alone: it counts what
//! is served in the end. A registration that says nothing new costs nothing.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::rpc::header::{self, Header, Register, Registered};
use blackhole_bus_schema::rpc::{
    Credentials, DEFAULT_CAPACITY, DirectEndpoint, HEARTBEAT, MAX_CAPACITY,
};

use super::{Conn, Core, SILENCE, directory};

/// Changes that a spawn may make at once.
const AT_ONCE: u32 = 10;
/// Longest endpoint.
const MAX_ENDPOINT_BYTES: usize = 1024;
/// Time in which it may make one more.
const REFILL: Duration = Duration::from_secs(1);

/// How fast a spawn changes what it serves.
#[derive(Debug)]
struct Pace {
    generation: Generation,
    /// When it may make [`AT_ONCE`] changes again.
    full_at: Instant,
    waiting: Option<Waiting>,
}

/// A registration that is too early.
#[derive(Debug)]
struct Waiting {
    conn: Conn,
    register: Register,
    due: Instant,
}

/// The spawns that register, by their instances: as many as there are tokens of
/// services. One registration of each may wait, at most 128 KiB.
#[derive(Debug, Default)]
pub(super) struct Paces {
    instances: HashMap<InstanceName, Pace>,
    due: BTreeSet<(Instant, InstanceName)>,
}

impl Paces {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether a registration of this connection waits.
    fn waits(&self, instance: &InstanceName, conn: Conn) -> bool {
        let waiting = self
            .instances
            .get(instance)
            .and_then(|p| p.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.conn == conn)
    }

    /// Takes back what waits of an instance.
    fn withdraw(&mut self, instance: &InstanceName) -> Option<(Conn, Register)> {
        let waiting = self.instances.get_mut(instance)?.waiting.take()?;
        self.due.remove(&(waiting.due, instance.clone()));
        Some((waiting.conn, waiting.register))
    }

    /// Counts a change, or tells when it may be made.
    fn take(&mut self, now: Instant, who: &Credentials) -> Result<(), Instant> {
        let pace = self
            .instances
            .entry(who.instance.clone())
            .or_insert_with(|| Pace {
                generation: who.generation,
                full_at: now,
                waiting: None,
            });
        if pace.generation != who.generation {
            // A successor does not pay for it. None has more than one token.
            pace.generation = who.generation;
            pace.full_at = now;
        }
        let full_at = pace.full_at.max(now);
        let most = now + REFILL * (AT_ONCE - 1);
        if full_at > most {
            return Err(now + full_at.saturating_duration_since(most));
        }
        pace.full_at = full_at + REFILL;
        Ok(())
    }

    /// Keeps a registration until it is due.
    fn wait(&mut self, instance: &InstanceName, conn: Conn, register: Register, due: Instant) {
        if let Some(pace) = self.instances.get_mut(instance) {
            pace.waiting = Some(Waiting {
                conn,
                register,
                due,
            });
            self.due.insert((due, instance.clone()));
        }
    }

    /// One that is due.
    fn due(&mut self, now: Instant) -> Option<(Conn, Register)> {
        let (at, instance) = self.due.first()?;
        if *at > now {
            return None;
        }
        let instance = instance.clone();
        self.withdraw(&instance)
    }

    /// Forgets what a connection that is gone wanted, and an instance that says nothing.
    pub(super) fn leave(&mut self, now: Instant, instance: &InstanceName, conn: Conn) {
        if self.waits(instance, conn) {
            self.withdraw(instance);
        }
        let spent = |pace: &Pace| pace.waiting.is_some() || pace.full_at > now;
        if self
            .instances
            .get(instance)
            .is_some_and(|pace| !spent(pace))
        {
            self.instances.remove(instance);
        }
    }
}

impl Core {
    /// A connection says what it serves.
    pub(super) fn register(&mut self, now: Instant, conn: Conn, mut register: Register) {
        let Some(who) = self.connections.get(&conn).map(|c| c.who.clone()) else {
            return;
        };
        if let Err(reason) = self.check(&register) {
            self.offence(conn, &reason);
            return self.go_away(conn, &reason);
        }
        // It is about to serve something else. Who only calls replaces nothing of another
        // connection, nor what that one waits to serve.
        if !only_calls(&register) || self.paces.waits(&who.instance, conn) {
            self.confirm_waiting(&who.instance);
        }
        register.methods.sort_unstable();
        register.methods.dedup();
        if !self.changes(conn, &who.instance, &register) {
            return self.confirm(conn, &register);
        }
        match self.paces.take(now, &who) {
            Ok(()) => self.serve(now, conn, register),
            Err(due) => self.paces.wait(&who.instance, conn, register, due),
        }
    }

    /// Why a registration is refused.
    fn check(&self, register: &Register) -> Result<(), String> {
        let most = header::MAX_METHOD_BYTES;
        let malformed = register.methods.len() > header::MAX_METHODS
            || register
                .methods
                .iter()
                .any(|method| method.is_empty() || method.len() > most);
        let endpoint = register.endpoint.as_deref();
        let too_long = endpoint.is_some_and(|endpoint| endpoint.len() > MAX_ENDPOINT_BYTES);
        if malformed || too_long {
            return Err(format!(
                "invalid_argument: a registration has at most {} methods of 1 to {most} bytes \
                 and an endpoint of at most {MAX_ENDPOINT_BYTES}",
                header::MAX_METHODS,
            ));
        }
        // Callers connect there with their rights.
        endpoint
            .map_or(Ok(()), |endpoint| {
                DirectEndpoint::parse(endpoint, self.direct_dirs.as_deref()).map(|_| ())
            })
            .map_err(|error| format!("invalid_argument: {error}"))
    }

    /// Whether a registration says anything new.
    fn changes(&self, conn: Conn, instance: &InstanceName, register: &Register) -> bool {
        let entry = self.directory.entry(instance);
        let Some(entry) = entry.filter(|entry| entry.conn == conn) else {
            return !only_calls(register);
        };
        let names = entry.methods.keys().map(|name| &**name);
        only_calls(register)
            || entry.draining
            || entry.capacity != capacity(register)
            || entry.endpoint != register.endpoint
            || !names.eq(register.methods.iter().map(String::as_str))
    }

    /// What waits of an instance is overtaken by what it says now.
    fn confirm_waiting(&mut self, instance: &InstanceName) {
        if let Some((conn, register)) = self.paces.withdraw(instance) {
            self.confirm(conn, &register);
        }
    }

    fn confirm(&mut self, conn: Conn, register: &Register) {
        let Some(who) = self.connections.get(&conn).map(|c| &c.who) else {
            return;
        };
        let direct_key = register.endpoint.is_some().then(|| {
            let key = self.key.direct_key(&who.instance, who.generation);
            key.to_hex()
        });
        let registered = Header::Registered(Registered {
            version: header::VERSION,
            incarnation: self.incarnation,
            heartbeat_ms: u64::try_from(HEARTBEAT.as_millis()).unwrap_or(u64::MAX),
            direct_key,
        });
        self.tell(conn, &registered);
    }

    /// Makes a registration count.
    fn serve(&mut self, now: Instant, conn: Conn, register: Register) {
        self.confirm(conn, &register);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let who = connection.who.clone();
        if only_calls(&register) {
            // What it served before it serves no more.
            if self.directory.is_registered(&who.instance, conn) {
                self.unregister(&who.instance);
            }
            return;
        }
        if !std::mem::replace(&mut connection.watched, true) {
            self.silences.insert((now + SILENCE, conn));
        }
        let capacity = capacity(&register);
        let methods = self
            .directory
            .number(who.instance.service(), register.methods);
        let entry = directory::Entry {
            conn,
            generation: who.generation,
            methods,
            capacity,
            endpoint: register.endpoint,
            draining: false,
            picked: 0,
            full_until: None,
        };
        let (news, parked) = self.directory.register(&who.instance, entry);
        if news {
            self.announce(&who.instance);
        }
        self.dispatch_all(now, parked);
    }

    /// Makes those count that have waited long enough.
    pub(super) fn serve_waiting(&mut self, now: Instant) {
        while let Some((conn, register)) = self.paces.due(now) {
            let Some(who) = self.connections.get(&conn).map(|c| c.who.clone()) else {
                continue;
            };
            match self.paces.take(now, &who) {
                Ok(()) => self.serve(now, conn, register),
                Err(due) => self.paces.wait(&who.instance, conn, register, due),
            }
        }
    }

    /// The answer to a heartbeat: a registration that waits needs no other.
    pub(super) fn is_registered(&self, conn: Conn) -> bool {
        let instance = self.connections.get(&conn).map(|c| &c.who.instance);
        instance.is_some_and(|instance| {
            self.directory.is_registered(instance, conn) || self.paces.waits(instance, conn)
        })
    }

    /// A service takes no more calls, nor those that it was about to take.
    pub(super) fn takes_no_more(&mut self, conn: Conn) {
        let Some(instance) = self.connections.get(&conn).map(|c| c.who.instance.clone()) else {
            return;
        };
        if self.paces.waits(&instance, conn) {
            self.confirm_waiting(&instance);
        }
        if self.directory.drain(&instance, conn) {
            self.announce(&instance);
        }
    }
}

fn only_calls(register: &Register) -> bool {
    register.methods.is_empty() && register.endpoint.is_none()
}

fn capacity(register: &Register) -> u32 {
    let named = register.capacity.unwrap_or(DEFAULT_CAPACITY);
    named.clamp(1, MAX_CAPACITY)
}
