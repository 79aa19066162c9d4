//! A shim as the manager sees it.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{ExitRecord, NotifyState, SpawnFailure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::wire::Wire;
use super::{ClientError, Loss, ShimStatus, Started, StopRequest, instance_lock_held, read_record};
use crate::readiness::readable;
use crate::shim::protocol::{Request, RequestBody, ShimMessage, ShimPermit};

/// Requests waiting for the shim's task: more than anybody asks of one service
/// at a time. Who comes when it is full waits. (Pointers: a channel has room for 32 from its beginning.)
const REQUESTS: usize = 16;

/// Events waiting for the manager. When it is full the task stops reading, the shim's own buffer
/// fills and it cuts the connection; the next one begins with how things stand.
const EVENTS: usize = 64;

/// How long a shim may take to greet. It has one thread and may be busy writing a log.
const GREETING: Duration = Duration::from_secs(5);

/// How long a shim may take to answer a request.
const ANSWER: Duration = Duration::from_secs(5);

/// Between two looks whether a shim listens that was asked to, and how many of
/// them: it has one thread, and may be about to start its service.
const LISTENS: (Duration, u32) = (Duration::from_millis(20), 5);

/// Between two attempts to reach a live shim whose connection was lost.
const RETRY: Duration = Duration::from_secs(1);

/// What happens to a held instance.
#[derive(Debug, Clone, PartialEq)]
pub enum ShimEvent {
    /// The connection was lost and made again; this is how things stand.
    Status(Box<ShimStatus>),
    /// The service said something of itself.
    Notify(NotifyState),
    /// It has asked for time to come up: this much, from now on, in milliseconds.
    Extended(u64),
    /// Log lines or record writes were lost; counts since the start.
    Loss(Loss),
    /// A hook beside it has ended, or could not be run.
    Hook {
        /// Its name.
        hook: String,
        /// What went wrong; `None` is nothing.
        problem: Option<String>,
    },
    /// It was asked to end, or ended and its rest is being killed.
    Stopping,
    /// It has ended, and hooks run that follow.
    Ended,
    /// It failed and was started again by permit. All further events are the successor's.
    Restarted {
        /// How the one before ended.
        exit: ExitRecord,
        /// The successor.
        generation: Generation,
        /// Its pid and times.
        started: Started,
        /// Permits used since the spawn.
        restarts: u32,
    },
    /// It failed and could not be started again by permit. The last event.
    NotRestarted {
        /// How the one before ended.
        exit: ExitRecord,
        /// The successor that was to be.
        generation: Generation,
        /// Why it is not.
        failure: SpawnFailure,
    },
    /// It ended, nothing of it is left, its lock is free. The last event.
    Exited {
        /// How.
        exit: ExitRecord,
        /// What was lost in its life.
        loss: Loss,
    },
    /// The shim vanished without recording an end: its first process was killed
    /// by the kernel, others may live (see [`crate::shim::sweep`]). The last event.
    Gone,
}

/// The events of one shim, in order.
#[derive(Debug)]
pub struct ShimEvents {
    receiver: mpsc::Receiver<Box<ShimEvent>>,
}

impl ShimEvents {
    /// The next event; `None` after `Exited` or `Gone`. Cancel safe.
    pub async fn next(&mut self) -> Option<ShimEvent> {
        self.receiver.recv().await.map(|event| *event)
    }
}

#[derive(Debug)]
struct Ask {
    request: RequestBody,
    reply: oneshot::Sender<Result<Option<ShimStatus>, ClientError>>,
}

/// Sends requests to one shim. Cheap to clone. The service goes on when all are dropped.
#[derive(Debug, Clone)]
pub struct ShimHandle {
    shim_pid: u32,
    sender: mpsc::Sender<Box<Ask>>,
}

impl ShimHandle {
    /// Pid of the shim.
    pub fn shim_pid(&self) -> u32 {
        self.shim_pid
    }

    /// Asks the service to end. Returns when the shim has sent the signal and
    /// holds the timer; the end comes as [`ShimEvent::Exited`]. A second stop can
    /// only shorten the grace.
    ///
    /// # Errors
    /// When the shim is gone, out of reach or does not answer in 5 seconds, or the signal's number is none.
    pub async fn stop(&self, stop: StopRequest) -> Result<(), ClientError> {
        self.ask(RequestBody::Stop { stop }).await.map(drop)
    }

    /// Kills the whole tree. Returns when the shim has begun; the end comes as
    /// [`ShimEvent::Exited`].
    ///
    /// # Errors
    /// When the shim is gone, out of reach or does not answer in 5 seconds.
    pub async fn kill(&self, unhealthy: bool) -> Result<(), ClientError> {
        self.ask(RequestBody::Kill { unhealthy }).await.map(drop)
    }

    /// Sends a signal to the first process.
    ///
    /// # Errors
    /// When the shim is gone, out of reach or does not answer in 5 seconds, or the signal's number is none.
    pub async fn signal(&self, signal: i32) -> Result<(), ClientError> {
        self.ask(RequestBody::Signal { signal }).await.map(drop)
    }

    /// Grants a restart ahead, or takes it back, if `generation` lives.
    ///
    /// # Errors
    /// When the shim is gone, out of reach or does not answer in 5 seconds, when
    /// another generation lives, or the shim is of a version that knows no permits.
    pub async fn permit(
        &self,
        generation: Generation,
        permit: Option<ShimPermit>,
    ) -> Result<(), ClientError> {
        let request = RequestBody::Permit { generation, permit };
        self.ask(request).await.map(drop)
    }

    /// Has the service read its configuration again, which may take `within`.
    ///
    /// # Errors
    /// When the shim is gone, out of reach or does not answer in that time and 5
    /// seconds, when the service has no `reload` or is ending, when the reload
    /// failed, or the shim is of a version that knows none.
    pub async fn reload(&self, within: Duration) -> Result<(), ClientError> {
        let within = within.saturating_add(ANSWER);
        self.ask_within(RequestBody::Reload, within).await.map(drop)
    }

    /// Asks how things stand.
    ///
    /// # Errors
    /// When the shim is gone, out of reach or does not answer in 5 seconds.
    pub async fn status(&self) -> Result<ShimStatus, ClientError> {
        self.ask(RequestBody::Status)
            .await?
            .ok_or(ClientError::Closed)
    }

    /// Waits until nothing more will come of the shim: after its last event.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }

    async fn ask(&self, request: RequestBody) -> Result<Option<ShimStatus>, ClientError> {
        self.ask_within(request, ANSWER).await
    }

    async fn ask_within(
        &self,
        request: RequestBody,
        within: Duration,
    ) -> Result<Option<ShimStatus>, ClientError> {
        let (reply, answer) = oneshot::channel();
        let work = async {
            self.sender
                .send(Box::new(Ask { request, reply }))
                .await
                .map_err(|_| ClientError::Closed)?;
            answer.await.map_err(|_| ClientError::Closed)?
        };
        timeout(within, work)
            .await
            .unwrap_or(Err(ClientError::Mute {
                shim_pid: self.shim_pid,
                after: within,
            }))
    }
}

/// A shim that was found alive.
#[derive(Debug)]
pub struct Attached {
    /// How things stand.
    pub status: ShimStatus,
    /// To ask it.
    pub handle: ShimHandle,
    /// What happens from now on.
    pub events: ShimEvents,
}

/// Connects to the live shim of an instance.
///
/// # Errors
/// [`ClientError::NoShim`] when none holds the instance: its record tells the
/// rest. [`ClientError::Unreachable`] when one does and does not answer.
pub async fn attach(dirs: &Dirs, instance: &InstanceName) -> Result<Attached, ClientError> {
    let (dir, socket) = (dirs.instance(instance), dirs.shim_socket(instance));
    let Some(shim_pid) = lock_holder(&dir)? else {
        return Err(ClientError::NoShim { dir });
    };
    let (wire, status) = match reach(&dir, &socket, shim_pid).await {
        // Not another instance whose name has the same hash.
        Ok((wire, status)) if status.instance == *instance => (wire, status),
        Ok(_) => {
            return Err(ClientError::Unreachable {
                shim_pid,
                socket,
                source: None,
            });
        }
        Err(error) => {
            // It may have ended while this asked.
            if lock_holder(&dir)?.is_none() {
                return Err(ClientError::NoShim { dir });
            }
            let source = match error {
                ClientError::Io { source, .. } => Some(source),
                _ => None,
            };
            return Err(ClientError::Unreachable {
                shim_pid,
                socket,
                source,
            });
        }
    };
    let place = Place {
        dir,
        socket,
        generation: status.generation,
    };
    let (handle, events) = hold(wire, place, status.started.shim_pid);
    Ok(Attached {
        status,
        handle,
        events,
    })
}

fn lock_holder(dir: &Path) -> Result<Option<u32>, ClientError> {
    instance_lock_held(dir).map_err(|source| ClientError::Io {
        operation: "ask who holds the lock in",
        path: dir.to_owned(),
        source,
    })
}

/// Greets a shim; one whose socket is not there is asked to make it again.
async fn reach(
    dir: &Path,
    socket: &Path,
    shim_pid: u32,
) -> Result<(Wire, ShimStatus), ClientError> {
    let mut greeted = greet(socket).await;
    for _ in 0..LISTENS.1 {
        let absent = matches!(&greeted, Err(ClientError::Io { source, .. })
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused));
        if !absent || !ask_to_listen(dir, shim_pid) {
            break;
        }
        // No event tells that a socket has come to listen.
        tokio::time::sleep(LISTENS.0).await;
        greeted = greet(socket).await;
    }
    greeted
}

/// Asks a shim by SIGHUP to listen again; false when it does not hold the
/// instance any more. One of an earlier version has the signal blocked.
fn ask_to_listen(dir: &Path, shim_pid: u32) -> bool {
    let Some(pid) = i32::try_from(shim_pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // Only if it is still the holder is the descriptor known to be its own.
    matches!(lock_holder(dir), Ok(holder) if holder == Some(shim_pid))
        && pidfd_send_signal(&process, Signal::HUP).is_ok()
}

/// Connects, subscribes to changes, and returns how things stand at that moment.
async fn greet(socket: &Path) -> Result<(Wire, ShimStatus), ClientError> {
    let work = async {
        let mut wire = Wire::connect(socket)
            .await
            .map_err(|source| ClientError::Io {
                operation: "connect to",
                path: socket.to_owned(),
                source,
            })?;
        wire.send(&Request {
            id: 0,
            request: RequestBody::Watch,
        })
        .await?;
        let mut latest = None;
        loop {
            match wire.next().await? {
                // The first greets, the second comes with the subscription.
                Some(ShimMessage::Hello { status, .. }) => latest = Some(*status),
                Some(ShimMessage::Answer { id: 0, .. }) => {
                    if let Some(status) = latest {
                        return Ok((wire, status));
                    }
                }
                Some(_) => {}
                None => return Err(ClientError::Closed),
            }
        }
    };
    timeout(GREETING, work)
        .await
        .unwrap_or(Err(ClientError::Closed))
}

/// Where an instance is, and which of its lives is meant.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) generation: Generation,
}

/// Holds on to a shim over a connection that hears of changes: one task, which
/// ends with the shim, or when handle and events are dropped.
pub(super) fn hold(wire: Wire, place: Place, shim_pid: u32) -> (ShimHandle, ShimEvents) {
    let (sender, requests) = mpsc::channel(REQUESTS);
    let (events, receiver) = mpsc::channel(EVENTS);
    let process = i32::try_from(shim_pid).ok().and_then(Pid::from_raw);
    let process = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let holder = Holder {
        place,
        shim_pid,
        process: process.and_then(|fd| readable(fd).ok()),
        requests,
        events,
        next_id: 1,
        pending: HashMap::new(),
        status: None,
    };
    tokio::spawn(holder.run(wire));
    (ShimHandle { shim_pid, sender }, ShimEvents { receiver })
}

struct Holder {
    place: Place,
    shim_pid: u32,
    /// Readable when the shim has ended.
    process: Option<AsyncFd<OwnedFd>>,
    requests: mpsc::Receiver<Box<Ask>>,
    events: mpsc::Sender<Box<ShimEvent>>,
    next_id: u64,
    /// Asked and not yet answered; as many as callers wait.
    pending: HashMap<u64, oneshot::Sender<Result<Option<ShimStatus>, ClientError>>>,
    /// The latest greeting, for the answer that follows it.
    status: Option<ShimStatus>,
}

/// Why a connection is not used any more.
enum Over {
    /// The last event was sent, or nobody listens.
    Done,
    /// It was lost.
    Lost,
}

impl Holder {
    async fn run(mut self, wire: Wire) {
        let mut wire = wire;
        loop {
            match self.converse(&mut wire).await {
                Over::Done => return,
                Over::Lost => {}
            }
            // Those who asked cannot know what became of it.
            self.pending.clear();
            match Box::pin(self.reconnect()).await {
                Some(again) => wire = again,
                None => return,
            }
        }
    }

    async fn converse(&mut self, wire: &mut Wire) -> Over {
        let mut asked = true;
        loop {
            tokio::select! {
                // Cancel safe: what has been read stays in the wire.
                message = wire.next() => match message {
                    Ok(Some(message)) => {
                        if self.hear(message).await {
                            return Over::Done;
                        }
                    }
                    Ok(None) | Err(_) => return Over::Lost,
                },
                // Cancel safe: a request is taken or stays in the queue.
                ask = self.requests.recv(), if asked => match ask {
                    Some(ask) => {
                        let id = self.next_id;
                        self.next_id += 1;
                        self.pending.insert(id, ask.reply);
                        // An error shows in the next read.
                        let _ = wire.send(&Request { id, request: ask.request }).await;
                    }
                    None => asked = false,
                },
                () = self.events.closed(), if !asked => return Over::Done,
            }
        }
    }

    /// Returns true after the last message.
    async fn hear(&mut self, message: ShimMessage) -> bool {
        let event = match message {
            ShimMessage::Hello { status, .. } => {
                self.status = Some(*status);
                return false;
            }
            ShimMessage::Answer { id, error } => {
                let result = match error {
                    Some(error) => Err(ClientError::Refused(error)),
                    None => Ok(self.status.take()),
                };
                if let Some(reply) = self.pending.remove(&id) {
                    let _ = reply.send(result);
                }
                return false;
            }
            ShimMessage::Notify { notify } => ShimEvent::Notify(notify),
            ShimMessage::Extended { left_ms } => ShimEvent::Extended(left_ms),
            ShimMessage::Loss { loss } => ShimEvent::Loss(loss),
            ShimMessage::Hook { hook, problem } => ShimEvent::Hook { hook, problem },
            ShimMessage::Stopping => ShimEvent::Stopping,
            ShimMessage::Ended => ShimEvent::Ended,
            ShimMessage::Restarted {
                exit,
                generation,
                started,
                restarts,
            } => {
                self.place.generation = generation;
                ShimEvent::Restarted {
                    exit,
                    generation,
                    started,
                    restarts,
                }
            }
            ShimMessage::NotRestarted {
                exit,
                generation,
                failure,
            } => ShimEvent::NotRestarted {
                exit,
                generation,
                failure,
            },
            ShimMessage::Exited { exit, loss } => ShimEvent::Exited { exit, loss },
            ShimMessage::Started { .. }
            | ShimMessage::SpawnFailed { .. }
            | ShimMessage::Unknown => {
                return false;
            }
        };
        let last = matches!(
            event,
            ShimEvent::Exited { .. } | ShimEvent::NotRestarted { .. }
        );
        // When nobody listens the requests still matter.
        let _ = self.events.send(Box::new(event)).await;
        last
    }

    /// After a lost connection: a new one while the shim lives, else its last event and `None`.
    async fn reconnect(&mut self) -> Option<Wire> {
        loop {
            let held = lock_holder(&self.place.dir);
            if matches!(held, Ok(holder) if holder != Some(self.shim_pid)) {
                let mut event = self.last_event().await;
                if let ShimEvent::Restarted { generation, .. } = event {
                    self.place.generation = generation;
                    let _ = self.events.send(Box::new(event)).await;
                    event = self.last_event().await;
                }
                let _ = self.events.send(Box::new(event)).await;
                return None;
            }
            match reach(&self.place.dir, &self.place.socket, self.shim_pid).await {
                Ok((wire, status)) if status.started.shim_pid == self.shim_pid => {
                    self.place.generation = status.generation;
                    let event = Box::new(ShimEvent::Status(Box::new(status)));
                    let _ = self.events.send(event).await;
                    return Some(wire);
                }
                _ => {}
            }
            if self.requests.is_closed() && self.events.is_closed() {
                return None;
            }
            // Its socket is gone. It still has a lock to give up and an end to record.
            match &self.process {
                Some(process) => drop(timeout(RETRY, process.readable()).await),
                None => tokio::time::sleep(RETRY).await,
            }
            // Whoever asks meanwhile is told.
            while let Ok(ask) = self.requests.try_recv() {
                let _ = ask.reply.send(Err(ClientError::Unreachable {
                    shim_pid: self.shim_pid,
                    socket: self.place.socket.clone(),
                    source: None,
                }));
            }
        }
    }

    /// What the record says of a shim that is gone: of the generation that was
    /// held, or of those that permits have led to since.
    async fn last_event(&self) -> ShimEvent {
        let dir = self.place.dir.clone();
        let record = tokio::task::spawn_blocking(move || read_record(&dir)).await;
        let Ok(Ok(Some(record))) = record else {
            return ShimEvent::Gone;
        };
        if record.generation == self.place.generation {
            return match record.exit {
                Some(exit) => ShimEvent::Exited {
                    exit,
                    loss: Loss::default(),
                },
                None => ShimEvent::Gone,
            };
        }
        let Some(before) = record.previous_exit else {
            return ShimEvent::Gone;
        };
        if before.generation != self.place.generation {
            return ShimEvent::Gone;
        }
        let generation = record.generation;
        match (record.failure, record.started) {
            (Some(failure), _) => ShimEvent::NotRestarted {
                exit: before,
                generation,
                failure,
            },
            // Its end, or that it was lost, comes as the next event.
            (None, Some(started)) => ShimEvent::Restarted {
                exit: before,
                generation,
                started,
                restarts: record.restarts,
            },
            (None, None) => ShimEvent::Gone,
        }
    }
}
