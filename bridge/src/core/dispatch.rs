//! The way of a call: to an instance, or to where it waits; and of its answer.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::ServiceName;
use blackhole_bus_schema::rpc::header::{self, Callee, Header, Response};
use blackhole_bus_schema::rpc::{Code, DEFAULT_BUDGET, MAX_BUDGET, Status};
use blackhole_bus_schema::transport::rpc::Frame;

use super::calls::{Call, CallId, Unsent};
use super::directory::{Pick, ServiceId};
use super::streams::Stream;
use super::{Action, Conn, Core, What};

impl Core {
    pub(super) fn request(
        &mut self,
        now: Instant,
        conn: Conn,
        request: header::Request<'_>,
        payload: Frame,
    ) {
        let Some(connection) = self.connections.get(&conn) else {
            return;
        };
        if connection.made.contains_key(&request.id) {
            // Any answer would be taken for that of the call under way.
            let what = "used the id of a call that is under way for another one";
            return self.offence(conn, what);
        }
        let window = request
            .window
            .filter(|window| *window > 0)
            .map(|window| window.min(header::MAX_WINDOW));
        let bytes = payload.len() + window.unwrap_or(0) as usize;
        let of_connection = (connection.made.len(), connection.made_bytes);
        let caller_name = connection.service;
        let admitted = self
            .calls
            .admit(caller_name, of_connection, bytes, self.ending);
        let callee = match admitted.and_then(|()| self.callee(&request.service)) {
            Ok(callee) => callee,
            Err(status) => return self.respond(conn, request.id, Err(status)),
        };
        let (service, index) = callee;
        let pick = self.pick(now, service, index, &request.method);
        let budget = request
            .budget_ms
            .map_or(DEFAULT_BUDGET, Duration::from_millis);
        let trace = request
            .trace
            .filter(|trace| trace.len() <= header::MAX_TRACE_BYTES);
        let mut call = Call {
            caller: conn,
            caller_id: request.id,
            caller_name,
            service,
            index,
            method: "".into(),
            method_id: 0,
            sent_to: None,
            batch: 0,
            started: now,
            deadline: now + budget.min(MAX_BUDGET),
            bytes,
            window,
            stream: window.map(|window| Box::new(Stream::new(window))),
            unsent: None,
            parked: false,
        };
        match pick {
            Pick::Instance {
                conn: callee,
                method,
                method_id,
            } => {
                call.method = method;
                call.method_id = method_id;
                let id = self.keep(call);
                self.hand_over(now, id, callee, trace, payload);
            }
            Pick::Park if request.method.len() <= header::MAX_METHOD_BYTES => {
                call.method = request.method.into();
                call.unsent = Some(Box::new(Unsent {
                    payload,
                    trace: trace.map(|trace| trace.into_owned().into_boxed_str()),
                }));
                let id = self.keep(call);
                self.park(id);
            }
            Pick::Park => {
                self.directory.forget_unknown(service);
                let message = format!(
                    "a method's name has 1 to {} bytes",
                    header::MAX_METHOD_BYTES
                );
                let status = Status::new(Code::InvalidArgument, message);
                self.respond(conn, request.id, Err(status));
            }
            Pick::Refuse(status) => {
                self.directory.forget_unknown(service);
                self.respond(conn, request.id, Err(status));
            }
        }
    }

    /// Who is meant by the text of a request.
    fn callee(&mut self, text: &str) -> Result<(ServiceId, Option<u32>), Status> {
        if let Some(service) = self.directory.find(text) {
            return Ok((service, None));
        }
        let callee: Callee = text
            .parse()
            .map_err(|error| Status::new(Code::InvalidArgument, format!("{error}")))?;
        Ok((self.directory.find_or_keep(&callee.service), callee.index))
    }

    fn keep(&mut self, call: Call) -> CallId {
        let (caller, caller_id, bytes) = (call.caller, call.caller_id, call.bytes);
        let id = self.calls.insert(call);
        if let Some(connection) = self.connections.get_mut(&caller) {
            connection.made.insert(caller_id, id);
            connection.made_bytes += bytes;
        }
        id
    }

    fn pick(&mut self, now: Instant, service: ServiceId, index: Option<u32>, method: &str) -> Pick {
        let connections = &self.connections;
        let outstanding = |conn: Conn| {
            connections
                .get(&conn)
                .map_or(usize::MAX, |c| c.working_on.len())
        };
        self.directory
            .pick(now, service, index, method, outstanding)
    }

    fn park(&mut self, id: CallId) {
        let Some(service) = self.calls.get(id).map(|call| call.service) else {
            return;
        };
        let waiting = self.directory.parked(service);
        let name = self.directory.name(service);
        match self.calls.may_park(id, name, waiting) {
            Ok(()) => self.directory.park(service, id),
            Err(status) => self.finish(id, Err(status), Frame::new()),
        }
    }

    /// Sends a call that waited on, lets it wait again, or answers why neither can be.
    pub(super) fn dispatch(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get(id) else {
            return;
        };
        let (service, index, method) = (call.service, call.index, call.method.clone());
        match self.pick(now, service, index, &method) {
            Pick::Instance {
                conn,
                method,
                method_id,
            } => {
                let Some(call) = self.calls.get_mut(id) else {
                    return;
                };
                call.method = method;
                call.method_id = method_id;
                let (trace, payload) = match call.unsent.take() {
                    Some(unsent) => (unsent.trace, unsent.payload),
                    None => (None, Frame::new()),
                };
                let trace = trace.as_deref().map(Cow::Borrowed);
                self.hand_over(now, id, conn, trace, payload);
            }
            Pick::Park => self.park(id),
            Pick::Refuse(status) => self.finish(id, Err(status), Frame::new()),
        }
    }

    pub(super) fn dispatch_all(&mut self, now: Instant, calls: Vec<CallId>) {
        for id in calls {
            self.calls.unpark(id);
            self.dispatch(now, id);
        }
    }

    pub(super) fn hand_over(
        &mut self,
        now: Instant,
        id: CallId,
        conn: Conn,
        trace: Option<Cow<'_, str>>,
        payload: Frame,
    ) {
        let Some(call) = self.calls.get_mut(id) else {
            return;
        };
        call.sent_to = Some(conn);
        call.batch = self.batch;
        let left = call.deadline.saturating_duration_since(now).as_millis();
        let caller = self.connections.get(&call.caller).map(|c| c.name.as_str());
        let request = Header::Request(header::Request {
            id,
            service: Cow::Borrowed(""),
            method: Cow::Borrowed(&call.method),
            budget_ms: Some(u64::try_from(left).unwrap_or(u64::MAX)),
            caller: caller.map(Cow::Borrowed),
            trace,
            window: call.window,
        });
        self.scratch.clear();
        request.encode_into(&mut self.scratch);
        self.actions.push(Action::Send {
            conn,
            header: Frame::copy_of(&self.scratch),
            payload,
            what: What::Request(id),
        });
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.working_on.insert(id);
        }
    }

    pub(super) fn response(
        &mut self,
        now: Instant,
        conn: Conn,
        response: Response<'_>,
        payload: Frame,
    ) {
        let id = response.id;
        let Some(call) = self.calls.get(id) else {
            return self.answers_nothing(conn, id);
        };
        if call.sent_to != Some(conn) {
            // Another connection's call, or one that nobody was sent yet.
            return self.offence(conn, "answered a call that it was not sent");
        }
        self.calls.measure(now, id, response.code);
        if response.code == Code::ResourceExhausted
            && let Some(callee) = self.connections.get(&conn)
        {
            self.directory.is_full(now, &callee.who.instance, conn);
        }
        if let Some(call) = self.remove(id) {
            let ok = response.code == Code::Ok;
            let response = Header::Response(Response {
                id: call.caller_id,
                code: response.code,
                message: if ok {
                    Cow::Borrowed("")
                } else {
                    response.message
                },
                endpoints: Vec::new(),
            });
            let payload = if ok { payload } else { Frame::new() };
            let what = What::Response(call.caller_id);
            self.send(call.caller, &response, payload, what);
        }
    }

    /// An answer to a call that is not there.
    pub(super) fn answers_nothing(&mut self, conn: Conn, id: CallId) {
        // Late, the call is over; or of the bridge's earlier life.
        if !self.calls.was_issued(id) && self.calls.is_of_this_life(id) {
            self.offence(conn, "answered a call that never was");
        }
    }

    pub(super) fn resolve(&mut self, conn: Conn, id: u64, service: &str) {
        let Some(asker) = self.connections.get(&conn).map(|c| &c.who.instance) else {
            return;
        };
        let endpoints = service
            .parse::<ServiceName>()
            .map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))
            .and_then(|service| self.directory.endpoints(&service));
        let header = match endpoints {
            Ok(endpoints) => {
                let with_ticket = endpoints.into_iter().map(|(mut endpoint, generation)| {
                    let key = self.key.direct_key(&endpoint.instance, generation);
                    endpoint.ticket = Some(key.ticket(asker));
                    endpoint
                });
                Response {
                    endpoints: with_ticket.collect(),
                    ..Response::new(id, Ok(()))
                }
            }
            Err(status) => Response::new(id, Err(status)),
        };
        self.tell(conn, &Header::Response(header));
    }

    /// The caller no longer wants a call.
    pub(super) fn abandon(&mut self, id: CallId) {
        let sent = self.calls.get(id).map(|call| (call.sent_to, call.batch));
        if let Some((Some(callee), batch)) = sent
            && !(batch == self.batch && self.take_out(id))
        {
            self.tell(callee, &Header::Cancel { id });
        }
        self.remove(id);
    }

    /// Takes a call out of the actions, where it still is: its callee never hears of it.
    fn take_out(&mut self, id: CallId) -> bool {
        let its = |action: &Action| matches!(action, Action::Send { what: What::Request(of), .. } if *of == id);
        let at = self.actions.iter().rposition(its);
        at.map(|at| self.actions.remove(at)).is_some()
    }

    /// Answers the caller and forgets the call.
    pub(super) fn finish(&mut self, id: CallId, result: Result<(), Status>, payload: Frame) {
        if let Some(call) = self.remove(id) {
            let response = Header::Response(Response::new(call.caller_id, result));
            let what = What::Response(call.caller_id);
            self.send(call.caller, &response, payload, what);
        }
    }

    pub(super) fn remove(&mut self, id: CallId) -> Option<Call> {
        let call = self.calls.remove(id)?;
        if let Some(caller) = self.connections.get_mut(&call.caller) {
            caller.made.remove(&call.caller_id);
            caller.made_bytes = caller.made_bytes.saturating_sub(call.bytes);
        }
        match call.sent_to {
            Some(callee) => {
                if let Some(callee) = self.connections.get_mut(&callee) {
                    callee.working_on.remove(&id);
                    self.drains.fewer(&callee.who.instance);
                }
            }
            None => self.directory.unpark(call.service, id),
        }
        Some(call)
    }
}
