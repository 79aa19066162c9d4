//! What happens to the core besides messages: connections and processes come
//! and go, time passes, the bridge ends.

use std::time::Instant;

use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::rpc::header::Header;
use blackhole_bus_schema::rpc::{Code, Status};
use blackhole_bus_schema::transport::rpc::Frame;

use super::calls::{CallId, Unsent};
use super::{Action, Conn, Core, IdSet, Outlook, ProcessReport, SILENCE, Undelivered, What};

impl Core {
    /// A connection is gone: its calls are cancelled, those it worked on fail.
    pub fn disconnected(&mut self, now: Instant, conn: Conn) {
        self.gone.remember(conn);
        let Some(connection) = self.connections.remove(&conn) else {
            return;
        };
        let instance = connection.who.instance;
        self.presence.leave(conn, &instance);
        self.drains.fewer(&instance);
        self.paces.leave(now, &instance, conn);
        if self.directory.is_registered(&instance, conn) {
            self.unregister(&instance);
        }
        for id in connection.made.into_values() {
            self.abandon(id);
        }
        self.fail_working(now, connection.working_on, &instance);
    }

    fn fail_working(&mut self, now: Instant, calls: IdSet<CallId>, instance: &InstanceName) {
        let mut calls: Vec<CallId> = calls.into_iter().collect();
        calls.sort_unstable();
        for id in calls {
            self.calls.measure(now, id, Code::Unavailable);
            let message = format!("{instance} ended before it answered");
            self.finish(
                id,
                Err(Status::new(Code::Unavailable, message)),
                Frame::new(),
            );
        }
    }

    /// The connections there are, as far as it was told.
    pub fn known(&self) -> IdSet<Conn> {
        self.connections.keys().copied().collect()
    }

    /// Of the connections that were `known` before it was asked which there are, only
    /// these are left. Others came while it was asked: nothing is known of their end.
    pub fn retain(&mut self, now: Instant, known: &IdSet<Conn>, there: &IdSet<Conn>) {
        let mut lost: Vec<Conn> = known.difference(there).copied().collect();
        lost.sort_unstable();
        for conn in lost {
            self.disconnected(now, conn);
        }
    }

    /// A message could not be sent.
    pub fn undelivered(
        &mut self,
        now: Instant,
        conn: Conn,
        (header, payload): (Frame, Frame),
        what: What,
        why: Undelivered,
    ) {
        if why == Undelivered::Gone {
            // The call never reached it: another instance may have it.
            let never_sent = match what {
                What::Request(id) if self.take_back(conn, id, &header, payload) => Some(id),
                _ => None,
            };
            self.disconnected(now, conn);
            if let Some(id) = never_sent {
                self.dispatch(now, id);
            }
            return;
        }
        match (what, why) {
            (What::Request(id) | What::Credit(id), _) => {
                let what = "does not read its calls";
                self.end_stream(now, id, Code::ResourceExhausted, what);
            }
            (What::Part(_) | What::Response(_), Undelivered::Full) => {
                // Its answers have no place any more: it hears of that by the loss of the
                // connection, and its memory is free at once.
                self.offence(conn, "does not read its answers: disconnected");
                self.actions.push(Action::Disconnect(conn));
                self.disconnected(now, conn);
            }
            (What::Part(id), _) => {
                let what = "is not carried further: too much is queued for all services";
                self.end_stream(now, id, Code::ResourceExhausted, what);
            }
            // Without its payload it has room.
            (What::Response(id), _) => {
                let message = "the answer was dropped: too much is queued for all services";
                self.respond(conn, id, Err(Status::new(Code::ResourceExhausted, message)));
            }
            (What::Other, _) => {}
        }
    }

    /// A sent call never left: it has its payload again and is nobody's.
    fn take_back(&mut self, from: Conn, id: CallId, header: &Frame, payload: Frame) -> bool {
        let sent = self.calls.get_mut(id);
        let Some(call) = sent.filter(|call| call.sent_to == Some(from)) else {
            return false;
        };
        call.sent_to = None;
        let trace = match Header::decode(header.as_ref()) {
            Ok(Header::Request(request)) => request.trace.map(|trace| trace.into()),
            _ => None,
        };
        call.unsent = Some(Box::new(Unsent { payload, trace }));
        if let Some(connection) = self.connections.get_mut(&from) {
            connection.working_on.remove(&id);
            self.drains.fewer(&connection.who.instance);
        }
        true
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

    /// The supervisor tells of all instances that there are: others do not exist, and
    /// calls of them are answered with `NotFound`.
    pub fn outlooks(&mut self, now: Instant, all: Vec<(InstanceName, Outlook)>) {
        let parked = self.directory.outlooks(all);
        self.dispatch_all(now, parked);
    }

    /// The supervisor is gone: what it said of readiness, and of what there is, no
    /// longer counts.
    pub fn unjudged(&mut self, now: Instant) {
        let parked = self.directory.unjudged();
        self.dispatch_all(now, parked);
    }

    /// The bridge ends: nothing new is taken, what is under way may finish.
    pub fn end(&mut self) {
        self.ending = true;
        let spoke = self.connections.iter().filter(|(_, c)| c.spoke);
        let mut all: Vec<Conn> = spoke.map(|(conn, _)| *conn).collect();
        all.sort_unstable();
        for conn in all {
            let reason = "the bridge ends".into();
            self.tell(conn, &Header::Goaway { reason, ends: true });
        }
        for id in self.calls.parked() {
            let status = Status::new(Code::Unavailable, "the bridge ends");
            self.finish(id, Err(status), Frame::new());
        }
    }

    /// Whatever is due at `now`.
    pub fn tick(&mut self, now: Instant) {
        self.end_drains(now);
        self.end_silent(now);
        self.serve_waiting(now);
        while let Some(id) = self.calls.expired(now) {
            let Some(call) = self.calls.get(id) else {
                continue;
            };
            let budget = call.deadline.duration_since(call.started).as_millis();
            let service = self.directory.name(call.service);
            let message = match call.sent_to {
                Some(_) => format!("{service} did not answer within {budget} ms"),
                None => format!("no instance of {service} was there within {budget} ms"),
            };
            if let Some(callee) = call.sent_to {
                self.calls.measure(now, id, Code::DeadlineExceeded);
                self.tell(callee, &Header::Cancel { id });
            }
            let status = Status::new(Code::DeadlineExceeded, message);
            self.finish(id, Err(status), Frame::new());
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
