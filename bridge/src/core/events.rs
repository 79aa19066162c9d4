//! What happens to the core besides messages: connections and processes come
//! and go, time passes, the bridge ends.

use std::collections::HashSet;
use std::time::Instant;

use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::rpc::header::Header;
use blackhole_bus_schema::rpc::{Code, Status};
use bytes::Bytes;

use super::calls::CallId;
use super::{Action, Conn, Core, Outlook, ProcessReport, SILENCE, Undelivered};

impl Core {
    /// A connection is gone: its calls are cancelled, those it worked on fail.
    pub fn disconnected(&mut self, now: Instant, conn: Conn) {
        self.gone.remember(conn);
        let Some(connection) = self.connections.remove(&conn) else {
            return;
        };
        let instance = connection.who.instance;
        if self.directory.is_registered(&instance, conn) {
            self.unregister(&instance);
        }
        for id in connection.made.into_values() {
            self.abandon(id);
        }
        self.fail_working(now, connection.working_on, &instance);
    }

    fn fail_working(&mut self, now: Instant, calls: HashSet<CallId>, instance: &InstanceName) {
        let mut calls: Vec<CallId> = calls.into_iter().collect();
        calls.sort_unstable();
        for id in calls {
            self.calls.measure(now, id, Code::Unavailable);
            let message = format!("{instance} ended before it answered");
            self.finish(
                id,
                Err(Status::new(Code::Unavailable, message)),
                Bytes::new(),
            );
        }
    }

    /// Only these connections are left: all others are gone.
    pub fn retain(&mut self, now: Instant, there: &HashSet<Conn>) {
        let lost: Vec<Conn> = self
            .connections
            .keys()
            .filter(|conn| !there.contains(conn))
            .copied()
            .collect();
        for conn in lost {
            self.disconnected(now, conn);
        }
    }

    /// A message could not be sent.
    pub fn undelivered(
        &mut self,
        now: Instant,
        conn: Conn,
        header: Header,
        payload: Bytes,
        why: Undelivered,
    ) {
        if why == Undelivered::Gone {
            // The call never reached it: another instance may have it.
            let never_sent = match header {
                Header::Request(request) => self.calls.take_back(request.id, conn, payload),
                _ => None,
            };
            if let (Some(id), Some(connection)) = (never_sent, self.connections.get_mut(&conn)) {
                connection.working_on.remove(&id);
            }
            self.disconnected(now, conn);
            if let Some(id) = never_sent {
                self.dispatch(now, id);
            }
            return;
        }
        match header {
            Header::Request(request) => {
                let message = "the service has stopped reading its calls".to_owned();
                let status = Status::new(Code::ResourceExhausted, message);
                self.finish(request.id, Err(status), Bytes::new());
            }
            // A caller that does not read its answers has to live with its budget.
            _ => self.offence(conn, "has stopped reading, messages to it are dropped"),
        }
    }

    /// The services of the configuration.
    pub fn configured(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        self.directory.configured(services);
    }

    /// All that is known of services has been told: calls of unknown ones are
    /// answered with `NotFound` from now on.
    pub fn settled(&mut self, now: Instant) {
        let parked = self.directory.settle();
        self.dispatch_all(now, parked);
    }

    /// A process-manager tells of an instance's process. Connections of spawns
    /// that are over are ended, wherever a forgotten child may hold one.
    pub fn process(&mut self, now: Instant, report: ProcessReport) {
        self.directory.process(&report);
        let over: Vec<Conn> = self
            .connections
            .iter()
            .filter(|(_, c)| c.who.instance == report.instance && self.directory.is_over(&c.who))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in over {
            self.actions.push(Action::Disconnect(conn));
            self.disconnected(now, conn);
        }
    }

    /// The supervisor tells what is to be expected of an instance.
    pub fn outlook(&mut self, now: Instant, instance: &InstanceName, outlook: Outlook) {
        let parked = self.directory.outlook(instance, outlook);
        self.dispatch_all(now, parked);
    }

    /// The supervisor is gone: what it said of readiness no longer counts.
    pub fn unjudged(&mut self, now: Instant) {
        let parked = self.directory.unjudged();
        self.dispatch_all(now, parked);
    }

    /// The bridge ends: nothing new is taken, what is under way may finish.
    pub fn end(&mut self) {
        self.ending = true;
        let mut all: Vec<Conn> = self.connections.keys().copied().collect();
        all.sort_unstable();
        for conn in all {
            let reason = "the bridge ends".to_owned();
            self.send(conn, Header::Goaway { reason }, Bytes::new());
        }
        for id in self.calls.parked() {
            let status = Status::new(Code::Unavailable, "the bridge ends");
            self.finish(id, Err(status), Bytes::new());
        }
    }

    /// Whatever is due at `now`.
    pub fn tick(&mut self, now: Instant) {
        self.finish_drains(Some(now));
        while let Some(id) = self.calls.expired(now) {
            let Some(call) = self.calls.get(id) else {
                continue;
            };
            let (message, callee) = call.expiry();
            if let Some(callee) = callee {
                self.calls.measure(now, id, Code::DeadlineExceeded);
                self.send(callee, Header::Cancel { id }, Bytes::new());
            }
            let status = Status::new(Code::DeadlineExceeded, message);
            self.finish(id, Err(status), Bytes::new());
        }
        while let Some((at, conn)) = self.silences.first().copied() {
            if at > now {
                break;
            }
            self.silences.remove(&(at, conn));
            let Some(connection) = self.connections.get_mut(&conn) else {
                continue;
            };
            let instance = connection.who.instance.clone();
            let due = connection.last_heard + SILENCE;
            connection.watched = self.directory.is_registered(&instance, conn) && due > now;
            if connection.watched {
                self.silences.insert((due, conn));
                continue;
            }
            if !self.directory.is_registered(&instance, conn) {
                continue;
            }
            let working_on = std::mem::take(&mut connection.working_on);
            self.unregister(&instance);
            self.fail_working(now, working_on, &instance);
        }
    }
}
