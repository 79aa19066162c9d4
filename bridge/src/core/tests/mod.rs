//! The core in virtual time.

use std::collections::HashMap;

use bytes::Bytes;

use super::*;
use blackhole_bus_schema::names::{Generation, ServiceName};
use blackhole_bus_schema::rpc::header::{Register, Registered, Request};
use blackhole_bus_schema::rpc::{DEFAULT_BUDGET, MAX_CALLS, MAX_CAPACITY};

mod calls;
mod drains;
mod lives;
mod property;
mod registrations;
mod shares;
mod streams;

const MS: Duration = Duration::from_millis(1);

/// An action, its header read again.
#[derive(Debug, Clone, PartialEq)]
enum Did {
    Send {
        conn: Conn,
        header: Header<'static>,
        payload: Bytes,
        what: What,
    },
    Publish(RegistryChanged),
    Disconnect(Conn),
    Drained {
        ticket: u64,
        result: Drained,
    },
    Offence {
        what: String,
    },
}

impl From<Action> for Did {
    fn from(action: Action) -> Self {
        match action {
            Action::Send {
                conn,
                header,
                payload,
                what,
            } => Self::Send {
                conn,
                header: Header::decode(header.as_ref()).unwrap().into_owned(),
                payload: payload.into_bytes(),
                what,
            },
            Action::Publish(changed) => Self::Publish(changed),
            Action::Disconnect(conn) => Self::Disconnect(conn),
            Action::Drained { ticket, result } => Self::Drained { ticket, result },
            Action::Offence { what, .. } => Self::Offence { what },
        }
    }
}

fn key() -> Key {
    Key::from_bytes([7; 32])
}

/// A bridge in virtual time, and what came out of it.
struct World {
    core: Core,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let mut core = Core::new(7, key());
        let now = Instant::now();
        core.configured(["web", "db", "pricing"].map(service));
        core.settled(now);
        Self { core, now }
    }

    fn take(&mut self) -> Vec<Did> {
        self.core
            .take_actions()
            .into_iter()
            .map(Did::from)
            .collect()
    }

    fn say(&mut self, conn: Conn, who: &str, header: Header<'_>) -> Vec<Did> {
        self.say_as(conn, who, 1, header, "")
    }

    fn say_as(
        &mut self,
        conn: Conn,
        who: &str,
        generation: u64,
        header: Header<'_>,
        payload: &'static str,
    ) -> Vec<Did> {
        let who = Credentials {
            instance: instance(who),
            generation: Generation(generation),
        };
        if self.core.knows(conn) || self.core.connected(self.now, conn, who) {
            let payload = Bytes::from_static(payload.as_bytes()).into();
            self.core.message(self.now, conn, header, payload);
        }
        self.take()
    }

    fn register(&mut self, conn: Conn, who: &str, methods: &[&str]) -> Vec<Did> {
        self.say(conn, who, register(methods))
    }

    fn request(&mut self, conn: Conn, who: &str, id: u64, service: &str) -> Vec<Did> {
        self.say_as(conn, who, 1, request(id, service, "get", 1000), "question")
    }

    fn pass(&mut self, time: Duration) -> Vec<Did> {
        self.now += time;
        self.core.tick(self.now);
        self.take()
    }

    fn gone(&mut self, conn: Conn) -> Vec<Did> {
        self.core.disconnected(self.now, conn);
        self.take()
    }

    fn process(&mut self, who: &str, generation: u64, live: bool) -> Vec<Did> {
        let report = ProcessReport {
            instance: instance(who),
            generation: Generation(generation),
            live,
        };
        self.core.process(self.now, report);
        self.take()
    }
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn instance(name: &str) -> InstanceName {
    name.parse().unwrap()
}

fn register(methods: &[&str]) -> Header<'static> {
    Header::Register(Register {
        version: 1,
        methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        capacity: None,
        endpoint: None,
    })
}

fn request<'a>(id: u64, service: &'a str, method: &'a str, budget_ms: u64) -> Header<'a> {
    Header::Request(Request {
        id,
        service: service.into(),
        method: method.into(),
        budget_ms: Some(budget_ms),
        caller: Some("liar.1".into()),
        ..Request::default()
    })
}

fn answer(id: u64) -> Header<'static> {
    Header::Response(Response::new(id, Ok(())))
}

/// The calls among the actions: (to, id, payload).
fn calls(actions: &[Did]) -> Vec<(Conn, u64, Bytes)> {
    let call = |action: &Did| match action {
        Did::Send {
            conn,
            header: Header::Request(request),
            payload,
            ..
        } => Some((*conn, request.id, payload.clone())),
        _ => None,
    };
    actions.iter().filter_map(call).collect()
}

/// The responses among the actions: (to, id, code).
fn responses(actions: &[Did]) -> Vec<(Conn, u64, Code)> {
    let response = |action: &Did| match action {
        Did::Send {
            conn,
            header: Header::Response(response),
            ..
        } => Some((*conn, response.id, response.code)),
        _ => None,
    };
    actions.iter().filter_map(response).collect()
}

/// The parts among the actions: (to, id, bytes).
fn parts(actions: &[Did]) -> Vec<(Conn, u64, usize)> {
    let part = |action: &Did| match action {
        Did::Send {
            conn,
            header: Header::Part { id },
            payload,
            ..
        } => Some((*conn, *id, payload.len())),
        _ => None,
    };
    actions.iter().filter_map(part).collect()
}

/// The credit among the actions: (to, id, bytes).
fn credits(actions: &[Did]) -> Vec<(Conn, u64, u32)> {
    let credit = |action: &Did| match action {
        Did::Send {
            conn,
            header: Header::Credit { id, bytes },
            ..
        } => Some((*conn, *id, *bytes)),
        _ => None,
    };
    actions.iter().filter_map(credit).collect()
}

fn cancels(actions: &[Did]) -> Vec<(Conn, u64)> {
    let cancel = |action: &Did| match action {
        Did::Send {
            conn,
            header: Header::Cancel { id },
            ..
        } => Some((*conn, *id)),
        _ => None,
    };
    actions.iter().filter_map(cancel).collect()
}

fn published(actions: &[Did]) -> Vec<(String, bool)> {
    let change = |action: &Did| match action {
        Did::Publish(changed) => {
            Some((changed.instance.to_string(), changed.registration.is_some()))
        }
        _ => None,
    };
    actions.iter().filter_map(change).collect()
}

fn offences(actions: &[Did]) -> usize {
    actions
        .iter()
        .filter(|action| matches!(action, Did::Offence { .. }))
        .count()
}

fn goaways(actions: &[Did]) -> usize {
    let goaway = |action: &&Did| {
        matches!(
            action,
            Did::Send {
                header: Header::Goaway { .. },
                ..
            }
        )
    };
    actions.iter().filter(goaway).count()
}
