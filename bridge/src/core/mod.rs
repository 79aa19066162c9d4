//! What the bridge decides, without clock, socket or task: inputs in, actions
//! out. Time is passed in; [`Core::next_deadline`] says when to call
//! [`Core::tick`].
//!
//! ```text
//!  request ──► dispatch ──► instance with room, fewest calls ──► Sent ──► response
//!                 │  none registered: Parked until one is, or the budget ends
//!                 └─ NOT_FOUND · UNIMPLEMENTED · UNAVAILABLE · RESOURCE_EXHAUSTED
//! ```
//!
//! Bounds: 65,536 calls under way and 512 MiB of their payloads and windows, of
//! one connection 1024 and 64 MiB; 1024 calls that wait for a service, and 64 MiB
//! for all. One service, all its instances and connections together, never has more
//! than a quarter of any of these. 8 connections of one instance, and what there is
//! room for of all (each instance's first comes before any further one), a quarter of
//! the further ones of one service; a window of 4 MiB and 4096 parts for
//! each streamed answer. A caller or callee that does not read is disconnected
//! when 8192 messages or 64 MiB are queued for it, see
//! [`blackhole_bus_schema::transport::rpc`]. A spawn changes what it serves 10 times
//! at once, and once a second.

mod calls;
mod directory;
mod dispatch;
mod drains;
mod events;
mod ids;
mod presence;
mod registration;
mod streams;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::registry::{CallStats, Drained, Registration, RegistryChanged};
use blackhole_bus_schema::rpc::header::{self, Header, Response};
use blackhole_bus_schema::rpc::{Code, Credentials, HEARTBEAT, Key, Status};
use blackhole_bus_schema::transport::rpc::Frame;

use calls::{CallId, Calls, NameId};
pub use calls::{Measurement, Route};
use directory::Directory;
pub use directory::{Outlook, ProcessReport};
use drains::Drains;
pub use ids::{IdMap, IdSet};
use presence::Presence;
pub use presence::{CONNECTIONS, Room};
use registration::Paces;

/// Silence after which a registered connection counts as hung: it no longer
/// gets calls until it speaks again.
pub const SILENCE: Duration = Duration::from_millis(HEARTBEAT.as_millis() as u64 * 6);
/// Connections that are gone and whose last messages may still come out of the
/// queue; the oldest is forgotten first.
const REMEMBERED: usize = 4096;

/// A connection of the ROUTER, never used again.
pub type Conn = u64;

/// What a message is about, to know what is lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A call, to its callee.
    Request(u64),
    /// More room for a streamed answer, to its callee.
    Credit(u64),
    /// A part of a streamed answer, to its caller.
    Part(u64),
    /// The end of a call, to its caller, who knows it by this id.
    Response(u64),
    /// Nothing that anybody waits for.
    Other,
}

/// Something to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a message. When that fails, hand it to [`Core::undelivered`].
    Send {
        /// To which connection.
        conn: Conn,
        /// First frame.
        header: Frame,
        /// Second frame.
        payload: Frame,
        /// What it is.
        what: What,
    },
    /// Tell the bus.
    Publish(RegistryChanged),
    /// End a connection.
    Disconnect(Conn),
    /// A drain is over, see [`Core::drain`].
    Drained {
        /// Which one.
        ticket: u64,
        /// What to answer.
        result: Drained,
    },
    /// Tell the log of a connection that does what it must not; once for each.
    Offence {
        /// Who.
        who: InstanceName,
        /// What it did.
        what: String,
    },
}

/// Why a message could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undelivered {
    /// The peer has stopped reading.
    Full,
    /// Too much is queued for all peers together.
    NoRoom,
    /// The peer is gone.
    Gone,
}

#[derive(Debug)]
struct Connection {
    who: Credentials,
    /// The instance as text, for the calls it makes.
    name: String,
    /// Its service, for what is measured.
    service: NameId,
    last_heard: Instant,
    /// Calls it was sent and has not answered.
    working_on: IdSet<CallId>,
    /// Calls it made, by its own ids.
    made: IdMap<u64, CallId>,
    /// What they count for together.
    made_bytes: usize,
    offended: bool,
    /// Whether a message came; before, none is sent.
    spoke: bool,
    /// Whether it stands in `Core::silences`.
    watched: bool,
    /// Whether its spawn is over, as of this version of the directory.
    over: (u64, bool),
}

/// The last connections that are gone.
#[derive(Debug, Default)]
struct Gone {
    set: IdSet<Conn>,
    order: VecDeque<Conn>,
}

impl Gone {
    fn contains(&self, conn: Conn) -> bool {
        self.set.contains(&conn)
    }

    fn remember(&mut self, conn: Conn) {
        if self.set.insert(conn) {
            self.order.push_back(conn);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Core {
    incarnation: u64,
    /// Makes the keys and tickets of direct calls.
    key: Key,
    /// Where sockets for direct calls may be.
    direct_dirs: Option<Vec<PathBuf>>,
    connections: IdMap<Conn, Connection>,
    gone: Gone,
    presence: Presence,
    paces: Paces,
    directory: Directory,
    calls: Calls,
    /// When to look whether a registered connection is silent, see `tick`.
    silences: BTreeSet<(Instant, Conn)>,
    drains: Drains,
    ending: bool,
    actions: Vec<Action>,
    /// Raised when the actions are taken.
    batch: u64,
    /// Where headers are written.
    scratch: Vec<u8>,
}

impl Core {
    /// `incarnation` tells the calls of this life from those of earlier ones;
    /// `key` is what tokens are made with.
    pub fn new(incarnation: u64, key: Key) -> Self {
        Self {
            incarnation,
            key,
            direct_dirs: None,
            connections: IdMap::default(),
            gone: Gone::default(),
            presence: Presence::default(),
            paces: Paces::default(),
            directory: Directory::default(),
            calls: Calls::new(incarnation),
            silences: BTreeSet::new(),
            drains: Drains::default(),
            ending: false,
            actions: Vec::new(),
            batch: 0,
            scratch: Vec::with_capacity(256),
        }
    }

    /// Connections that there is room for; [`CONNECTIONS`], a quarter of them further
    /// ones, without this.
    pub fn connections_at_most(&mut self, room: Room) {
        self.presence.at_most(room);
    }

    /// Endpoints with a path are taken only below one of these; without this, with any.
    pub fn direct_below(&mut self, directories: Vec<PathBuf>) {
        self.direct_dirs = Some(directories);
    }

    /// What is to be done since the last call of this.
    pub fn take_actions(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.swap_actions(&mut actions);
        actions
    }

    /// [`Core::take_actions`] into a vector that is empty.
    pub fn swap_actions(&mut self, actions: &mut Vec<Action>) {
        self.finish_drains();
        self.batch += 1;
        std::mem::swap(&mut self.actions, actions);
    }

    /// When [`Core::tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let silence = self.silences.first().map(|(at, _)| *at);
        [
            self.calls.next_deadline(),
            silence,
            self.drains.next_deadline(),
            self.presence.next_deadline(),
            self.paces.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// All registrations by the text of their names.
    pub fn registrations(&self) -> BTreeMap<String, Registration> {
        let all = self
            .directory
            .registered()
            .filter_map(|(service, index, entry)| {
                let instance = InstanceName::new(service.clone(), index)?;
                Some((instance.to_string(), self.registration(instance, entry)))
            });
        all.collect()
    }

    fn registration(&self, instance: InstanceName, entry: &directory::Entry) -> Registration {
        let outstanding = self
            .connections
            .get(&entry.conn)
            .map_or(0, |c| c.working_on.len());
        Registration {
            instance,
            generation: entry.generation,
            methods: entry.methods.keys().map(|name| name.to_string()).collect(),
            endpoint: entry.endpoint.clone(),
            outstanding: u32::try_from(outstanding).unwrap_or(u32::MAX),
            draining: entry.draining,
        }
    }

    /// Whether no call is under way.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether messages of a connection are taken: [`Core::connected`] was told
    /// of it, and it is not gone.
    pub fn knows(&self, conn: Conn) -> bool {
        self.connections.contains_key(&conn)
    }

    /// A connection was admitted, or a first message came from it; whichever is
    /// told first. Returns whether its messages are taken; one that is gone may have
    /// left some behind.
    pub fn connected(&mut self, now: Instant, conn: Conn, who: Credentials) -> bool {
        if self.knows(conn) {
            return true;
        }
        if self.gone.contains(conn) {
            return false;
        }
        if let Err(news) = self.presence.enter(conn, &who.instance) {
            self.gone.remember(conn);
            self.actions.push(Action::Disconnect(conn));
            if let Some(what) = news {
                let who = who.instance;
                self.actions.push(Action::Offence { who, what });
            }
            return false;
        }
        self.await_first_word(now, conn);
        let connection = Connection {
            name: who.instance.to_string(),
            service: self.calls.name(who.instance.service().as_str()),
            who,
            last_heard: now,
            working_on: IdSet::default(),
            made: IdMap::default(),
            made_bytes: 0,
            offended: false,
            spoke: false,
            watched: false,
            over: (u64::MAX, false),
        };
        self.connections.insert(conn, connection);
        true
    }

    /// A message came in.
    pub fn message(&mut self, now: Instant, conn: Conn, header: Header<'_>, payload: Frame) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.last_heard = now;
        connection.spoke = true;
        let version = self.directory.version();
        if connection.over.0 != version {
            connection.over = (version, self.directory.is_over(&connection.who));
        }
        if connection.over.1 {
            return self.refuse_past(conn, &header);
        }
        if !payload.is_empty() && !carries_payload(&header) {
            self.offence(conn, "sent a payload with a header that has none: ended");
            self.actions.push(Action::Disconnect(conn));
            return self.disconnected(now, conn);
        }
        match header {
            Header::Request(request) => self.request(now, conn, request, payload),
            Header::Response(response) => self.response(now, conn, response, payload),
            Header::Part { id } => self.part(now, conn, id, payload),
            Header::Credit { id, bytes } => self.credit(conn, id, bytes),
            Header::Cancel { id } => {
                let made = self.connections.get(&conn).map(|c| &c.made);
                if let Some(call) = made.and_then(|made| made.get(&id).copied()) {
                    self.abandon(call);
                }
            }
            Header::Register(register) => self.register(now, conn, register),
            Header::Heartbeat { .. } => {
                let registered = Some(self.is_registered(conn));
                self.tell(conn, &Header::Heartbeat { registered });
            }
            Header::Resolve { id, service } => self.resolve(conn, id, &service),
            Header::Goaway { .. } => self.takes_no_more(conn),
            Header::Registered(_) => self.offence(conn, "sent a header that only the bridge sends"),
        }
    }

    /// A process that has been replaced, or is reported dead, still speaks.
    fn refuse_past(&mut self, conn: Conn, header: &Header<'_>) {
        let Some(who) = self.connections.get(&conn).map(|c| &c.who) else {
            return;
        };
        let reason = format!("generation {} of {} is over", who.generation, who.instance);
        match header {
            Header::Register(_) => self.go_away(conn, &reason),
            Header::Request(header::Request { id, .. }) | Header::Resolve { id, .. } => {
                self.respond(conn, *id, Err(Status::new(Code::PermissionDenied, reason)));
            }
            _ => {}
        }
    }

    fn announce(&mut self, instance: &InstanceName) {
        let registration = self
            .directory
            .entry(instance)
            .map(|entry| self.registration(instance.clone(), entry));
        let changed = RegistryChanged {
            instance: instance.clone(),
            registration,
        };
        self.actions.push(Action::Publish(changed));
    }

    /// Takes an instance out; its calls under way are not touched.
    fn unregister(&mut self, instance: &InstanceName) {
        if self.directory.unregister(instance) {
            self.announce(instance);
        }
    }

    fn respond(&mut self, conn: Conn, caller_id: u64, result: Result<(), Status>) {
        let response = Header::Response(Response::new(caller_id, result));
        self.send(conn, &response, Frame::new(), What::Response(caller_id));
    }

    fn go_away(&mut self, conn: Conn, reason: &str) {
        let reason = Cow::Borrowed(reason);
        let ends = false;
        self.tell(conn, &Header::Goaway { reason, ends });
    }

    fn tell(&mut self, conn: Conn, header: &Header<'_>) {
        self.send(conn, header, Frame::new(), What::Other);
    }

    fn send(&mut self, conn: Conn, header: &Header<'_>, payload: Frame, what: What) {
        if self.connections.contains_key(&conn) {
            self.scratch.clear();
            header.encode_into(&mut self.scratch);
            self.actions.push(Action::Send {
                conn,
                header: Frame::copy_of(&self.scratch),
                payload,
                what,
            });
        }
    }

    /// A message came in whose header is none. It is skipped.
    pub fn not_understood(&mut self, conn: Conn) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.spoke = true;
        }
        self.offence(conn, "sent a message that is not understood");
    }

    fn offence(&mut self, conn: Conn, what: &str) {
        if let Some(connection) = self.connections.get_mut(&conn)
            && !std::mem::replace(&mut connection.offended, true)
        {
            let who = connection.who.instance.clone();
            self.actions.push(Action::Offence {
                who,
                what: what.to_owned(),
            });
        }
    }

    /// How long calls took, by caller, service and method.
    pub fn measurements(&self) -> impl Iterator<Item = (Route, &Measurement)> {
        let all = self.calls.measurements();
        all.map(|(route, measurement)| {
            let named = route.and_then(|(caller, method)| {
                let (service, method) = self.directory.method(method)?;
                Some((caller, service, method))
            });
            let (caller, service, method) = named.unwrap_or_default();
            let route = Route {
                caller: caller.to_owned(),
                service: service.to_owned(),
                method: method.to_owned(),
            };
            (route, measurement)
        })
    }

    /// [`Core::measurements`] as they are told, by a text to page through them.
    pub fn call_stats(&self) -> BTreeMap<String, CallStats> {
        let stats = self.measurements().map(|(route, measured)| {
            let name = format!("{} {} {}", route.caller, route.service, route.method);
            (name, measured.stats(&route))
        });
        stats.collect()
    }
}

/// Whether a message of this kind may have a payload.
fn carries_payload(header: &Header<'_>) -> bool {
    matches!(
        header,
        Header::Request(_) | Header::Response(_) | Header::Part { .. }
    )
}
