//! The core in virtual time.

use super::*;
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::rpc::header::{Register, Request};
use blackhole_bus_schema::rpc::{DEFAULT_BUDGET, MAX_CALLS};

mod calls;
mod drains;
mod lives;
mod property;

const MS: Duration = Duration::from_millis(1);

/// A bridge in virtual time, and what came out of it.
struct World {
    core: Core,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let mut core = Core::new(7);
        let now = Instant::now();
        core.configured(["web", "db", "pricing"].map(service));
        core.settled(now);
        Self { core, now }
    }

    fn say(&mut self, conn: Conn, who: &str, header: Header) -> Vec<Action> {
        self.say_as(conn, who, 1, header, "")
    }

    fn say_as(
        &mut self,
        conn: Conn,
        who: &str,
        generation: u64,
        header: Header,
        payload: &'static str,
    ) -> Vec<Action> {
        let who = Credentials {
            instance: instance(who),
            generation: Generation(generation),
        };
        let sender = Sender {
            conn,
            route: route(conn),
            who,
        };
        self.core.message(
            self.now,
            sender,
            header,
            Bytes::from_static(payload.as_bytes()),
        );
        self.core.take_actions()
    }

    fn register(&mut self, conn: Conn, who: &str, methods: &[&str]) -> Vec<Action> {
        self.say(conn, who, register(methods))
    }

    fn request(&mut self, conn: Conn, who: &str, id: u64, service: &str) -> Vec<Action> {
        self.say_as(conn, who, 1, request(id, service, "get", 1000), "question")
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.core.tick(self.now);
        self.core.take_actions()
    }

    fn gone(&mut self, conn: Conn) -> Vec<Action> {
        self.core.disconnected(self.now, conn);
        self.core.take_actions()
    }

    fn process(&mut self, who: &str, generation: u64, live: bool) -> Vec<Action> {
        let report = ProcessReport {
            instance: instance(who),
            generation: Generation(generation),
            live,
        };
        self.core.process(self.now, report);
        self.core.take_actions()
    }
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn instance(name: &str) -> InstanceName {
    name.parse().unwrap()
}

fn route(conn: Conn) -> Bytes {
    Bytes::copy_from_slice(&conn.to_be_bytes())
}

fn register(methods: &[&str]) -> Header {
    Header::Register(Register {
        version: 1,
        methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        capacity: None,
        endpoint: None,
    })
}

fn request(id: u64, service: &str, method: &str, budget_ms: u64) -> Header {
    Header::Request(Request {
        id,
        service: service.to_owned(),
        method: method.to_owned(),
        budget_ms: Some(budget_ms),
        caller: Some(instance("liar.1")),
    })
}

fn answer(id: u64) -> Header {
    Header::Response(Response::new(id, Ok(())))
}

/// The calls among the actions: (to, id, payload).
fn calls(actions: &[Action]) -> Vec<(Conn, u64, Bytes)> {
    let call = |action: &Action| match action {
        Action::Send {
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
fn responses(actions: &[Action]) -> Vec<(Conn, u64, Code)> {
    let response = |action: &Action| match action {
        Action::Send {
            conn,
            header: Header::Response(response),
            ..
        } => Some((*conn, response.id, response.code)),
        _ => None,
    };
    actions.iter().filter_map(response).collect()
}

fn cancels(actions: &[Action]) -> Vec<(Conn, u64)> {
    let cancel = |action: &Action| match action {
        Action::Send {
            conn,
            header: Header::Cancel { id },
            ..
        } => Some((*conn, *id)),
        _ => None,
    };
    actions.iter().filter_map(cancel).collect()
}

fn published(actions: &[Action]) -> Vec<(String, bool)> {
    let change = |action: &Action| match action {
        Action::Publish(changed) => {
            Some((changed.instance.to_string(), changed.registration.is_some()))
        }
        _ => None,
    };
    actions.iter().filter_map(change).collect()
}

fn offences(actions: &[Action]) -> usize {
    actions
        .iter()
        .filter(|action| matches!(action, Action::Offence { .. }))
        .count()
}

fn goaways(actions: &[Action]) -> usize {
    let goaway = |action: &&Action| {
        matches!(
            action,
            Action::Send {
                header: Header::Goaway { .. },
                ..
            }
        )
    };
    actions.iter().filter(goaway).count()
}
