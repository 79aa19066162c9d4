//! What the bridge decides, without clock, socket or task: inputs in, actions
//! out. Time is passed in; [`Core::next_deadline`] says when to call
//! [`Core::tick`].
//!
//! ```text
//!  request ──► dispatch ──► instance with room, fewest calls ──► Sent ──► response
//!                 │  none registered: Parked until one is, or the budget ends
//!                 └─ NOT_FOUND · UNIMPLEMENTED · UNAVAILABLE · RESOURCE_EXHAUSTED
//! ```

mod calls;
mod directory;
mod drains;
mod events;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::registry::{CallStats, Drained, Registration, RegistryChanged};
use blackhole_bus_schema::rpc::header::{self, Callee, Header, Registered, Response};
use blackhole_bus_schema::rpc::{
    Code, Credentials, DEFAULT_CAPACITY, HEARTBEAT, MAX_CAPACITY, Status,
};
use bytes::Bytes;

use calls::{Call, CallId, Calls};
pub use calls::{Measurement, Route};
use directory::{Directory, Pick};
pub use directory::{Outlook, ProcessReport};
use drains::Drains;

/// Silence after which a registered connection counts as hung: it no longer
/// gets calls until it speaks again.
pub const SILENCE: Duration = Duration::from_millis(HEARTBEAT.as_millis() as u64 * 6);
/// Connections that are gone and whose last messages may still come out of the
/// queue; the oldest is forgotten first.
const REMEMBERED: usize = 4096;

/// Connections that one instance may have: workers of a service may each open
/// one. Further ones are ended.
const CONNECTIONS_OF_ONE: usize = 64;

/// A connection of the ROUTER, never used again.
pub type Conn = u64;

/// Who sent a message.
#[derive(Debug, Clone)]
pub struct Sender {
    /// Its connection.
    pub conn: Conn,
    /// Opaque address to answer to.
    pub route: Bytes,
    /// What its token proved.
    pub who: Credentials,
}

/// Something to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a message. When that fails, hand it to [`Core::undelivered`].
    Send {
        /// To which connection.
        conn: Conn,
        /// Its address.
        route: Bytes,
        /// First frame.
        header: Header,
        /// Second frame.
        payload: Bytes,
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
    /// The peer is gone.
    Gone,
}

#[derive(Debug)]
struct Connection {
    route: Bytes,
    who: Credentials,
    last_heard: Instant,
    /// Calls it was sent and has not answered.
    working_on: HashSet<CallId>,
    /// Calls it made, by its own ids.
    made: HashMap<u64, CallId>,
    /// Their payloads together.
    made_bytes: usize,
    offended: bool,
    /// Whether it stands in `Core::silences`.
    watched: bool,
}

/// The last connections that are gone.
#[derive(Debug, Default)]
struct Gone {
    set: HashSet<Conn>,
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
    connections: HashMap<Conn, Connection>,
    gone: Gone,
    directory: Directory,
    calls: Calls,
    /// When to look whether a registered connection is silent, see `tick`.
    silences: BTreeSet<(Instant, Conn)>,
    drains: Drains,
    ending: bool,
    actions: Vec<Action>,
}

impl Core {
    /// `incarnation` tells the calls of this life from those of earlier ones.
    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            connections: HashMap::new(),
            gone: Gone::default(),
            directory: Directory::default(),
            calls: Calls::new(incarnation),
            silences: BTreeSet::new(),
            drains: Drains::default(),
            ending: false,
            actions: Vec::new(),
        }
    }

    /// What is to be done since the last call of this.
    pub fn take_actions(&mut self) -> Vec<Action> {
        self.finish_drains(None);
        std::mem::take(&mut self.actions)
    }

    /// When [`Core::tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let silence = self.silences.first().map(|(at, _)| *at);
        [
            self.calls.next_deadline(),
            silence,
            self.drains.next_deadline(),
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
            methods: entry.methods.iter().cloned().collect(),
            endpoint: entry.endpoint.clone(),
            outstanding: u32::try_from(outstanding).unwrap_or(u32::MAX),
            draining: entry.draining,
        }
    }

    /// Whether no call is under way.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// A message came in.
    pub fn message(&mut self, now: Instant, from: Sender, header: Header, payload: Bytes) {
        let conn = from.conn;
        if self.gone.contains(conn) {
            return;
        }
        if !self.connections.contains_key(&conn) && self.has_too_many(&from.who.instance) {
            self.gone.remember(conn);
            self.actions.push(Action::Disconnect(conn));
            return;
        }
        let connection = self.connections.entry(conn).or_insert_with(|| Connection {
            route: from.route,
            who: from.who,
            last_heard: now,
            working_on: HashSet::new(),
            made: HashMap::new(),
            made_bytes: 0,
            offended: false,
            watched: false,
        });
        connection.last_heard = now;
        let who = connection.who.clone();
        if self.directory.is_over(&who) {
            self.refuse_past(conn, &who, &header);
            return;
        }
        match header {
            Header::Register(register) => self.register(now, conn, &who, register),
            Header::Heartbeat { .. } => {
                let registered = self.directory.is_registered(&who.instance, conn);
                self.send(
                    conn,
                    Header::Heartbeat {
                        registered: Some(registered),
                    },
                    Bytes::new(),
                );
            }
            Header::Request(request) => self.request(now, conn, &who, request, payload),
            Header::Response(response) => self.response(now, conn, response, payload),
            Header::Cancel { id } => {
                let call = self
                    .connections
                    .get(&conn)
                    .and_then(|c| c.made.get(&id).copied());
                if let Some(call) = call {
                    self.abandon(call);
                }
            }
            Header::Resolve { id, service } => self.resolve(conn, id, &service),
            Header::Goaway { .. } => {
                if self.directory.drain(&who.instance, conn) {
                    self.announce(&who.instance);
                }
            }
            Header::Registered(_) => self.offence(conn, "sent a header that only the bridge sends"),
        }
    }

    fn has_too_many(&self, instance: &InstanceName) -> bool {
        self.connections
            .values()
            .filter(|c| c.who.instance == *instance)
            .count()
            >= CONNECTIONS_OF_ONE
    }

    /// A process that has been replaced, or is reported dead, still speaks.
    fn refuse_past(&mut self, conn: Conn, who: &Credentials, header: &Header) {
        let reason = format!("generation {} of {} is over", who.generation, who.instance);
        match header {
            Header::Register(_) => self.send(conn, Header::Goaway { reason }, Bytes::new()),
            Header::Request(header::Request { id, .. }) | Header::Resolve { id, .. } => {
                self.respond(conn, *id, Err(Status::new(Code::PermissionDenied, reason)));
            }
            _ => {}
        }
    }

    fn register(
        &mut self,
        now: Instant,
        conn: Conn,
        who: &Credentials,
        register: header::Register,
    ) {
        let malformed = register.methods.len() > header::MAX_METHODS
            || register
                .methods
                .iter()
                .any(|method| method.is_empty() || method.len() > header::MAX_METHOD_BYTES)
            || register
                .endpoint
                .as_ref()
                .is_some_and(|endpoint| endpoint.len() > 1024);
        if malformed {
            let reason = format!(
                "a registration has at most {} methods of 1 to {} bytes and an endpoint of at most 1024",
                header::MAX_METHODS,
                header::MAX_METHOD_BYTES
            );
            self.offence(conn, &reason);
            self.send(conn, Header::Goaway { reason }, Bytes::new());
            return;
        }
        self.send(
            conn,
            Header::Registered(Registered {
                version: header::VERSION,
                incarnation: self.incarnation,
                heartbeat_ms: u64::try_from(HEARTBEAT.as_millis()).unwrap_or(u64::MAX),
            }),
            Bytes::new(),
        );
        if register.methods.is_empty() && register.endpoint.is_none() {
            // It only calls. What it served before it serves no more.
            if self.directory.is_registered(&who.instance, conn) {
                self.unregister(&who.instance);
            }
            return;
        }
        let entry = directory::Entry {
            conn,
            generation: who.generation,
            methods: register.methods.into_iter().collect(),
            capacity: register
                .capacity
                .unwrap_or(DEFAULT_CAPACITY)
                .clamp(1, MAX_CAPACITY),
            endpoint: register.endpoint,
            draining: false,
            picked: 0,
        };
        if let Some(connection) = self.connections.get_mut(&conn)
            && !std::mem::replace(&mut connection.watched, true)
        {
            self.silences.insert((now + SILENCE, conn));
        }
        let (news, parked) = self.directory.register(&who.instance, entry);
        if news {
            self.announce(&who.instance);
        }
        self.dispatch_all(now, parked);
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

    fn request(
        &mut self,
        now: Instant,
        conn: Conn,
        who: &Credentials,
        request: header::Request,
        payload: Bytes,
    ) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if connection.made.contains_key(&request.id) {
            // Any answer would be taken for that of the call under way.
            self.offence(
                conn,
                "used the id of a call that is under way for another one",
            );
            return;
        }
        let of_caller = (connection.made.len(), connection.made_bytes);
        let admitted = self.calls.admit(of_caller, payload.len(), self.ending);
        let callee = request
            .service
            .parse::<Callee>()
            .map_err(|error| Status::new(Code::InvalidArgument, error.to_string()));
        let callee = match admitted.and(callee) {
            Ok(callee) => callee,
            Err(status) => return self.respond(conn, request.id, Err(status)),
        };
        let call = Call::new(now, conn, who.instance.clone(), request, callee, payload);
        let (caller_id, bytes) = (call.caller_id, call.bytes);
        let id = self.calls.insert(call);
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.made.insert(caller_id, id);
            connection.made_bytes += bytes;
        }
        self.dispatch(now, id);
    }

    /// Sends a call on, parks it, or answers why neither can be.
    fn dispatch(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get(id) else {
            return;
        };
        let connections = &self.connections;
        let outstanding = |conn: Conn| {
            connections
                .get(&conn)
                .map_or(usize::MAX, |c| c.working_on.len())
        };
        match self.directory.pick(&call.callee, &call.method, outstanding) {
            Pick::Instance(conn) => self.hand_over(now, id, conn),
            Pick::Park => {
                let service = call.callee.service.clone();
                let waiting = self.directory.parked(&service);
                match self.calls.may_park(id, waiting) {
                    Ok(()) => self.directory.park(&service, id),
                    Err(status) => self.finish(id, Err(status), Bytes::new()),
                }
            }
            Pick::Refuse(status) => self.finish(id, Err(status), Bytes::new()),
        }
    }

    fn dispatch_all(&mut self, now: Instant, calls: Vec<CallId>) {
        for id in calls {
            self.calls.unpark(id);
            self.dispatch(now, id);
        }
    }

    fn hand_over(&mut self, now: Instant, id: CallId, conn: Conn) {
        let Some((request, payload)) = self.calls.send(now, id, conn) else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.working_on.insert(id);
        }
        self.send(conn, Header::Request(request), payload);
    }

    fn response(&mut self, now: Instant, conn: Conn, response: Response, payload: Bytes) {
        let id = response.id;
        match self.calls.get(id).map(|call| call.sent_to) {
            Some(Some(callee)) if callee == conn => {
                self.calls.measure(now, id, response.code);
                let result = response.status();
                let payload = if result.is_ok() {
                    payload
                } else {
                    Bytes::new()
                };
                self.finish(id, result, payload);
            }
            // Another connection's call, or one that nobody was sent yet.
            Some(_) => self.offence(conn, "answered a call that it was not sent"),
            None if self.calls.was_issued(id) => {} // Late: the call is over.
            None if self.calls.is_of_this_life(id) => {
                self.offence(conn, "answered a call that never was");
            }
            None => {} // Of the bridge's earlier life.
        }
    }

    fn resolve(&mut self, conn: Conn, id: u64, service: &str) {
        let endpoints = service
            .parse::<ServiceName>()
            .map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))
            .and_then(|service| self.directory.endpoints(&service));
        let header = match endpoints {
            Ok(endpoints) => Response {
                endpoints,
                ..Response::new(id, Ok(()))
            },
            Err(status) => Response::new(id, Err(status)),
        };
        self.send(conn, Header::Response(header), Bytes::new());
    }

    /// The caller no longer wants a call.
    fn abandon(&mut self, id: CallId) {
        if let Some(callee) = self.calls.get(id).and_then(|call| call.sent_to) {
            self.send(callee, Header::Cancel { id }, Bytes::new());
        }
        self.remove(id);
    }

    /// Answers the caller and forgets the call.
    fn finish(&mut self, id: CallId, result: Result<(), Status>, payload: Bytes) {
        if let Some(call) = self.remove(id) {
            let response = Header::Response(Response::new(call.caller_id, result));
            self.send(call.caller, response, payload);
        }
    }

    fn remove(&mut self, id: CallId) -> Option<Call> {
        let call = self.calls.remove(id)?;
        if let Some(caller) = self.connections.get_mut(&call.caller) {
            caller.made.remove(&call.caller_id);
            caller.made_bytes = caller.made_bytes.saturating_sub(call.bytes);
        }
        match call.sent_to {
            Some(callee) => {
                if let Some(callee) = self.connections.get_mut(&callee) {
                    callee.working_on.remove(&id);
                }
            }
            None => self.directory.unpark(&call.callee.service, id),
        }
        Some(call)
    }

    fn respond(&mut self, conn: Conn, caller_id: u64, result: Result<(), Status>) {
        self.send(
            conn,
            Header::Response(Response::new(caller_id, result)),
            Bytes::new(),
        );
    }

    fn send(&mut self, conn: Conn, header: Header, payload: Bytes) {
        if let Some(connection) = self.connections.get(&conn) {
            let route = connection.route.clone();
            self.actions.push(Action::Send {
                conn,
                route,
                header,
                payload,
            });
        }
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
    pub fn measurements(&self) -> impl Iterator<Item = (&Route, &Measurement)> {
        self.calls.measurements()
    }

    /// [`Core::measurements`] as they are told, by a text to page through them.
    pub fn call_stats(&self) -> BTreeMap<String, CallStats> {
        let stats = self.measurements().map(|(route, measured)| {
            let name = format!("{} {} {}", route.caller, route.service, route.method);
            (name, measured.stats(route))
        });
        stats.collect()
    }
}
