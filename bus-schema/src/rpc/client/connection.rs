//! The task that owns a client's connection: registers, receives, runs handlers.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::super::header::{self, Header, HeaderError, Register};
use super::super::{Code, DEFAULT_BUDGET, HEARTBEAT, MAX_BUDGET, Status};
use super::{Methods, Request, Shared, Standing, response};
use crate::transport::rpc::{DealerEvent, DealerWatch};

pub(super) struct Connection {
    shared: Arc<Shared>,
    events: DealerWatch,
    cancelled: mpsc::Receiver<u64>,
    /// Handlers at work; at most the capacity of the methods.
    handlers: JoinSet<u64>,
    by_call: HashMap<u64, AbortHandle>,
    methods: watch::Receiver<Methods>,
    /// Whether a path to a bridge is there, registered or not.
    connected: bool,
    /// Registrations sent on this connection that have not been confirmed.
    unconfirmed: u32,
}

impl Connection {
    pub(super) fn new(
        shared: Arc<Shared>,
        events: DealerWatch,
        cancelled: mpsc::Receiver<u64>,
    ) -> Self {
        Self {
            methods: shared.methods.subscribe(),
            shared,
            events,
            cancelled,
            handlers: JoinSet::new(),
            by_call: HashMap::new(),
            connected: false,
            unconfirmed: 0,
        }
    }

    /// Runs until the client is dropped.
    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every arm is cancel safe: it takes something only when it completes.
            tokio::select! {
                received = shared.dealer.recv() => match received {
                    Ok((header, payload)) => {
                        self.received(header.as_ref(), payload.into_bytes()).await;
                    }
                    Err(_) => return,
                },
                event = self.events.next() => self.event(event).await,
                Some(id) = self.cancelled.recv() => {
                    self.send(Header::Cancel { id }, Bytes::new()).await;
                }
                changed = self.methods.changed() => {
                    if changed.is_ok() && self.connected {
                        self.register().await;
                    }
                }
                Some(finished) = self.handlers.join_next() => {
                    if let Ok(id) = finished {
                        self.by_call.remove(&id);
                    }
                    self.count();
                }
                _ = heartbeat.tick() => {
                    if self.connected {
                        self.send(Header::Heartbeat { registered: None }, Bytes::new()).await;
                    }
                }
            }
        }
    }

    async fn event(&mut self, event: DealerEvent) {
        match event {
            DealerEvent::Up => {
                self.connected = true;
                self.register().await;
            }
            DealerEvent::Down => {
                self.connected = false;
                self.unconfirmed = 0;
                self.shared.standing.send_replace(Standing::Away);
                self.shared.working.send_replace(0);
                // Nobody waits for these answers any more: their calls failed with the connection.
                self.handlers.abort_all();
                self.by_call.clear();
                let lost = Status::new(Code::Unavailable, "the connection to the bridge was lost");
                let pending: Vec<_> = self.shared.pending().drain().collect();
                for (_, call) in pending {
                    let _ = call.send(Err(lost.clone()));
                }
            }
            DealerEvent::Refused(reason) => {
                tracing::error!(instance = %self.shared.instance, reason, "the bridge refused this service's token");
                self.shared.standing.send_replace(Standing::Refused(reason));
            }
        }
    }

    async fn send(&self, header: Header<'_>, payload: Bytes) {
        if let Err(error) = self.shared.send(&header, payload).await {
            tracing::debug!(%error, kind = header.kind(), "not sent");
        }
    }

    async fn register(&mut self) {
        let register = {
            let methods = self.methods.borrow_and_update();
            Register {
                version: header::VERSION,
                methods: methods.handlers.keys().cloned().collect(),
                capacity: methods.capacity,
                endpoint: methods.endpoint.clone(),
            }
        };
        self.unconfirmed += 1;
        self.send(Header::Register(register), Bytes::new()).await;
    }

    async fn received(&mut self, frame: &[u8], payload: Bytes) {
        let header = match Header::decode(frame) {
            Ok(header) => header,
            // From a newer bridge: not for this version.
            Err(HeaderError::UnknownKind(_)) => return,
            Err(error) => {
                tracing::warn!(%error, "a message of the bridge is not understood");
                return;
            }
        };
        match header {
            Header::Registered(_) => {
                self.unconfirmed = self.unconfirmed.saturating_sub(1);
                // Not yet when other methods are on their way, or about to be.
                if self.unconfirmed == 0 && !self.methods.has_changed().unwrap_or(true) {
                    self.shared.standing.send_if_modified(|standing| {
                        standing.replace(&Standing::Away, Standing::Registered)
                    });
                }
            }
            Header::Heartbeat {
                registered: Some(false),
            } => self.register().await,
            Header::Request(request) => self.request(request, payload).await,
            Header::Response(response) => {
                let call = self.shared.pending().remove(&response.id);
                if let Some(call) = call {
                    let status = response.status();
                    let _ = call.send(status.map(|()| (payload, response.endpoints)));
                }
            }
            Header::Cancel { id } => {
                if let Some(handler) = self.by_call.remove(&id) {
                    handler.abort();
                }
            }
            Header::Goaway { reason, ends } => {
                if ends {
                    self.shared.standing.send_replace(Standing::Away);
                }
                // What is under way goes on, and so do this service's own calls.
                tracing::info!(reason = reason.as_ref(), "no more calls will come on this connection");
            }
            _ => {}
        }
    }

    /// Starts the handler of a call, or says why not.
    async fn request(&mut self, request: header::Request<'_>, payload: Bytes) {
        let refused = {
            let methods = self.shared.methods.borrow();
            self.handler(&methods, &request)
        };
        let handler = match refused {
            Ok(handler) => handler,
            Err(status) => {
                let (header, payload) = response(request.id, Err(status));
                self.send(header, payload).await;
                return;
            }
        };
        let id = request.id;
        let budget = request
            .budget_ms
            .map_or(DEFAULT_BUDGET, Duration::from_millis);
        let deadline = Instant::now() + budget.min(MAX_BUDGET);
        let future = handler(Request {
            method: request.method.into_owned(),
            caller: request.caller.and_then(|caller| caller.parse().ok()),
            payload,
            deadline,
        });
        let shared = self.shared.clone();
        let handler = self.handlers.spawn(async move {
            let guarded = AssertUnwindSafe(future).catch_unwind();
            let result = match tokio::time::timeout_at(deadline, guarded).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(Status::new(Code::Internal, "the method panicked")),
                Err(_) => Err(Status::new(
                    Code::DeadlineExceeded,
                    "the method took too long",
                )),
            };
            let (header, payload) = response(id, result);
            if let Err(error) = shared.send(&header, payload).await {
                tracing::debug!(%error, "a response was not sent");
            }
            id
        });
        self.by_call.insert(id, handler);
        self.count();
    }

    fn handler(
        &self,
        methods: &Methods,
        request: &header::Request<'_>,
    ) -> Result<super::Handler, Status> {
        let Some(handler) = methods.handlers.get(request.method.as_ref()) else {
            let message = format!(
                "{} does not serve {:?}",
                self.shared.instance, request.method
            );
            return Err(Status::new(Code::Unimplemented, message));
        };
        if self.handlers.len() >= methods.limit() {
            let message = format!(
                "{} works on {} calls",
                self.shared.instance,
                methods.limit()
            );
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        Ok(handler.clone())
    }

    fn count(&self) {
        let working = self.handlers.len();
        self.shared
            .working
            .send_if_modified(|count| std::mem::replace(count, working) != working);
    }
}
