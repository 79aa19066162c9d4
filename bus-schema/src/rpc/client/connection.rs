//! The task that owns a client's connection: registers, receives, runs handlers.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::super::HEARTBEAT;
use super::super::header::{self, Header, HeaderError, Register};
use super::direct::Socket;
use super::methods::Methods;
use super::work::{Back, Work};
use super::{Shared, Standing};
use crate::transport::rpc::{DealerEvent, DealerWatch, Frame};

/// Messages taken before anything else has a turn.
const BURST: usize = 64;
/// Messages taken when the connection is lost: those that its queue holds.
const LAST_WORDS: usize = 1024;
/// There is one connection to the bridge at a time.
const BRIDGE: u64 = 0;

pub(super) struct Connection {
    shared: Arc<Shared>,
    events: DealerWatch,
    ending: mpsc::Receiver<oneshot::Sender<()>>,
    back: Back,
    work: Work,
    methods: watch::Receiver<Methods>,
    /// The service's own socket, while its methods are served directly.
    socket: Option<Socket>,
    /// Whether a path to a bridge is there, registered or not.
    connected: bool,
    /// Registrations sent on this connection that have not been confirmed.
    unconfirmed: u32,
}

impl Connection {
    pub(super) fn new(
        shared: Arc<Shared>,
        events: DealerWatch,
        ending: mpsc::Receiver<oneshot::Sender<()>>,
    ) -> Self {
        let [working, _] = &shared.working;
        Self {
            back: Back::Bridge(shared.calls.dealer.clone()),
            work: Work::new(
                shared.instance.clone(),
                working.clone(),
                shared.busy.clone(),
            ),
            methods: shared.methods.subscribe(),
            shared,
            events,
            ending,
            socket: None,
            connected: false,
            unconfirmed: 0,
        }
    }

    /// Runs until the client is dropped.
    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        let dealer = &shared.calls.dealer;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every arm is cancel safe: it takes something only when it completes.
            tokio::select! {
                received = dealer.recv() => {
                    let Ok((header, payload)) = received else { return };
                    self.received(header, payload).await;
                    for _ in 1..BURST {
                        let Some((header, payload)) = dealer.try_recv() else { break };
                        self.received(header, payload).await;
                    }
                }
                event = self.events.next() => self.event(event).await,
                Some(told) = self.ending.recv() => {
                    self.farewell("the service ends").await;
                    let _ = told.send(());
                }
                changed = self.methods.changed() => {
                    if changed.is_ok() && self.connected {
                        self.register().await;
                    }
                }
                () = self.work.finished() => {}
                _ = heartbeat.tick() => {
                    if self.connected {
                        self.send(&Header::Heartbeat { registered: None }).await;
                    }
                }
            }
        }
    }

    /// Tells the bridge and direct callers that no more calls are wanted.
    async fn farewell(&mut self, reason: &str) {
        if let Some(socket) = &self.socket {
            socket.go_away(reason);
        }
        let reason = reason.into();
        self.send(&Header::Goaway {
            reason,
            ends: false,
        })
        .await;
    }

    async fn event(&mut self, event: DealerEvent) {
        match event {
            DealerEvent::Up => {
                self.connected = true;
                self.register().await;
            }
            DealerEvent::Down => {
                self.last_words();
                self.connected = false;
                self.unconfirmed = 0;
                self.shared.standing.send_replace(Standing::Away);
                // Nobody waits for these answers any more: their calls failed with the
                // connection. Direct callers have theirs.
                self.work.lost_all();
                self.shared.calls.fail_all();
            }
            DealerEvent::Refused(reason) => {
                tracing::error!(instance = %self.shared.instance, reason, "the bridge refused this service's token");
                self.shared.standing.send_replace(Standing::Refused(reason));
            }
        }
    }

    /// Answers that came before a loss have come, and parts of them. Who made the calls
    /// that came with them waits no longer: they are not begun.
    fn last_words(&self) {
        let calls = &self.shared.calls;
        for _ in 0..LAST_WORDS {
            let Some((header, payload)) = calls.dealer.try_recv() else {
                break;
            };
            if let Ok(header) = Header::decode(header.as_ref()) {
                calls.received(header, payload);
            }
        }
    }

    async fn send(&self, header: &Header<'_>) {
        if let Err(error) = self.back.send(header, Bytes::new()).await {
            tracing::debug!(%error, kind = header.kind(), "not sent");
        }
    }

    async fn register(&mut self) {
        let methods = self.methods.borrow_and_update().clone();
        self.socket = match (methods.direct, self.socket.take()) {
            (false, _) => None,
            (true, Some(socket)) => Some(socket),
            (true, None) => self.open_socket().await,
        };
        let own = self.socket.as_ref().map(|socket| socket.endpoint.clone());
        let register = Register {
            version: header::VERSION,
            methods: methods
                .handlers
                .keys()
                .map(|method| method.to_string())
                .collect(),
            capacity: methods.capacity,
            endpoint: own.or(methods.endpoint),
        };
        self.unconfirmed += 1;
        self.send(&Header::Register(register)).await;
    }

    async fn open_socket(&self) -> Option<Socket> {
        let Shared {
            address,
            instance,
            methods,
            working: [_, working],
            busy,
            ..
        } = &*self.shared;
        let work = Work::new(instance.clone(), working.clone(), busy.clone());
        match Socket::bind(address, work, methods.clone()).await {
            Ok(socket) => Some(socket),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%instance, error, "no socket for direct calls: only the bridge carries them");
                None
            }
        }
    }

    async fn received(&mut self, frame: Frame, payload: Frame) {
        let header = match Header::decode(frame.as_ref()) {
            Ok(header) => header,
            // From a newer bridge: not for this version.
            Err(HeaderError::UnknownKind(_)) => return,
            Err(error) => {
                tracing::warn!(%error, "a message of the bridge is not understood");
                return;
            }
        };
        let Some((header, payload)) = self.shared.calls.received(header, payload) else {
            return;
        };
        match header {
            Header::Request(request) => {
                let methods = &self.shared.methods;
                let payload = payload.into_bytes();
                self.work
                    .request(methods, BRIDGE, &self.back, request, payload)
                    .await;
            }
            Header::Cancel { id } => self.work.cancel(BRIDGE, id),
            Header::Credit { id, bytes } => self.work.credit(BRIDGE, id, bytes),
            Header::Registered(registered) => {
                if let (Some(socket), Some(key)) = (&self.socket, &registered.direct_key) {
                    socket.admit(key);
                }
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
            Header::Goaway { reason, ends } => {
                // What is under way goes on, and so do this service's own calls, unless
                // the bridge itself ends: then they wait for its successor.
                tracing::info!(
                    reason = reason.as_ref(),
                    "no more calls will come on this connection"
                );
                if ends {
                    self.shared.standing.send_replace(Standing::Away);
                } else if let Some(socket) = &self.socket {
                    socket.go_away(&reason);
                }
            }
            _ => {}
        }
    }
}

/// However the task ends: nobody goes on waiting for what it would have done.
impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.standing.send_replace(Standing::Ended);
        self.shared.calls.fail_all();
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::super::header::Response;
    use super::super::plain;
    use super::*;
    use crate::rpc::Code;
    use crate::rpc::client::calls::Calls;
    use crate::transport::rpc::{Dealer, Router};

    /// A connection to a router that is not a bridge, and with methods.
    async fn to(path: &std::path::Path, methods: Methods) -> (Arc<Shared>, Connection) {
        let dealer = Arc::new(Dealer::new("echo.1", "token"));
        let shared = Arc::new(Shared {
            calls: Arc::new(Calls::new(dealer.clone(), "the bridge".to_owned())),
            instance: "echo.1".parse().unwrap(),
            address: String::new(),
            direct_dirs: None,
            standing: watch::Sender::new(Standing::Registered),
            methods: watch::Sender::new(methods),
            working: Default::default(),
            busy: Arc::default(),
        });
        let (_ending, ends) = mpsc::channel(1);
        let mut connection = Connection::new(shared.clone(), dealer.watch(), ends);
        dealer.connect(path).await.unwrap();
        assert_eq!(connection.events.next().await, DealerEvent::Up);
        (shared, connection)
    }

    #[tokio::test]
    async fn nobody_waits_for_a_task_that_is_over() {
        const PATIENCE: Duration = Duration::from_secs(30);
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("router");
        let router = Router::bind(&path, |_, _| Some(Bytes::new()));
        let router = router.await.unwrap();
        let (shared, connection) = to(&path, Methods::new()).await;
        let deadline = Instant::now() + PATIENCE;
        let calls = shared.calls.clone();
        let own = tokio::spawn(async move {
            let header = |id, left| plain("other", "ask", id, left);
            let asked = calls.exchange(deadline, PATIENCE, header, Bytes::new());
            asked.await
        });
        router.recv().await.unwrap();
        drop(connection);
        assert_eq!(own.await.unwrap().unwrap_err().code, Code::Unavailable);
        let told = shared.standing(deadline).await.unwrap_err();
        assert_eq!(told.message, "this client is closed");
    }

    #[tokio::test]
    async fn with_a_loss_answers_count_and_no_call_is_begun() {
        const PATIENCE: Duration = Duration::from_secs(30);
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("router");
        let router = Router::bind(&path, |_, _| Some(Bytes::new()));
        let router = router.await.unwrap();
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let methods = Methods::new().on("work", move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Ok(Bytes::new()) }
        });
        let (shared, mut connection) = to(&path, methods).await;
        let calls = shared.calls.clone();
        let own = tokio::spawn(async move {
            let header = |id, left| plain("other", "ask", id, left);
            let deadline = Instant::now() + PATIENCE;
            calls
                .exchange(deadline, PATIENCE, header, Bytes::new())
                .await
        });
        let asked = router.recv().await.unwrap();
        let Ok(Header::Request(request)) = Header::decode(asked.header.as_ref()) else {
            panic!("no request");
        };
        let route = asked.peer.route.as_ref();
        let call = plain("", "work", 7, 60_000).encode();
        router.send(route, call, Bytes::new()).unwrap();
        let answer = Header::Response(Response::new(request.id, Ok(()))).encode();
        router
            .send(route, answer, Bytes::from_static(b"told"))
            .unwrap();
        // All of it is in the queue when the loss is told.
        router.close().await;
        assert_eq!(connection.events.next().await, DealerEvent::Down);
        connection.event(DealerEvent::Down).await;
        let (payload, _) = own.await.unwrap().unwrap();
        assert_eq!(payload, "told");
        assert_eq!(begun.load(Ordering::SeqCst), 0);
        assert!(shared.calls.dealer.try_recv().is_none());
    }
}
