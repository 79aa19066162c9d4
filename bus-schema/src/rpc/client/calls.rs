//! Calls that this client has made, on one connection: to the bridge, or to a
//! service directly.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};

use super::super::header::{Endpoint, Header, MAX_PARTS, MAX_WINDOW};
use super::super::{Code, MAX_CALLS, Status};
use crate::transport::rpc::{Dealer, Frame};

pub(super) type Answer = Result<(Bytes, Vec<Endpoint>), Status>;

/// Wait before credit is sent again that found the queue full.
const SAY_AGAIN: Duration = Duration::from_millis(10);

/// Time for which who has refused a call for want of room is taken to be full.
const FULL: Duration = Duration::from_millis(50);

/// Room for a streamed answer, in bytes, when the caller names none.
pub const DEFAULT_WINDOW: u32 = 256 * 1024;

/// Calls under way on one connection; at most [`MAX_CALLS`].
pub(super) struct Calls {
    pub(super) dealer: Arc<Dealer>,
    pending: Mutex<HashMap<u64, Pending>>,
    under_way: AtomicUsize,
    next_id: AtomicU64,
    /// When the peer last refused a call for want of room.
    refused: Mutex<Option<Instant>>,
    /// Whether that may be so recent that it counts: else nobody looks at the clock.
    full: AtomicBool,
    /// To whom, for a person.
    peer: String,
}

enum Pending {
    Once(oneshot::Sender<Answer>),
    Parts {
        /// Bounded by the window: who sends more is cut off.
        sender: mpsc::UnboundedSender<Result<Bytes, Status>>,
        room: Arc<Room>,
    },
}

/// What has come of a streamed answer and was not taken.
struct Room {
    window: u32,
    bytes: AtomicU32,
    parts: AtomicU32,
}

impl Room {
    fn take(&self, bytes: usize) -> bool {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let out = self.bytes.load(Ordering::Relaxed).saturating_add(bytes);
        let parts = self.parts.load(Ordering::Relaxed) + 1;
        let room = out <= self.window && parts as usize <= MAX_PARTS;
        if room {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.parts.fetch_add(1, Ordering::Relaxed);
        }
        room
    }
}

/// A place among the calls of a connection.
struct Place(Arc<Calls>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Calls {
    pub(super) fn new(dealer: Arc<Dealer>, peer: String) -> Self {
        Self {
            dealer,
            pending: Mutex::default(),
            under_way: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            refused: Mutex::default(),
            full: AtomicBool::new(false),
            peer,
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Whether the peer has just refused a call for want of room: others may have filled
    /// it, and it refuses so fast that it has the fewest calls under way of all.
    pub(super) fn is_full(&self) -> bool {
        if !self.full.load(Ordering::Relaxed) {
            return false;
        }
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let full = refused.is_some_and(|at| at.elapsed() < FULL);
        if !full {
            self.full.store(false, Ordering::Relaxed);
        }
        full
    }

    fn refused(&self, at: Instant) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        self.full.store(true, Ordering::Relaxed);
    }

    pub(super) fn lost(&self) -> Status {
        let message = format!("the connection to {} was lost", self.peer);
        Status::new(Code::Unavailable, message)
    }

    /// The connection is lost, and all calls with it.
    pub(super) fn fail_all(&self) {
        let pending: Vec<_> = self.pending().drain().collect();
        for (_, call) in pending {
            match call {
                Pending::Once(sender) => drop(sender.send(Err(self.lost()))),
                Pending::Parts { sender, .. } => drop(sender.send(Err(self.lost()))),
            }
        }
    }

    /// An answer or a part of one; the header is given back if it is neither.
    pub(super) fn received<'a>(
        &self,
        header: Header<'a>,
        payload: Frame,
    ) -> Option<(Header<'a>, Frame)> {
        match header {
            Header::Response(response) => {
                let call = self.pending().remove(&response.id);
                let payload = payload.into_bytes();
                if response.code == Code::ResourceExhausted {
                    self.refused(Instant::now());
                }
                match call {
                    Some(Pending::Once(sender)) => {
                        let status = response.status();
                        let _ = sender.send(status.map(|()| (payload, response.endpoints)));
                    }
                    Some(Pending::Parts { sender, .. }) => match response.status() {
                        // The last part needs no room: it is the whole rest.
                        Ok(()) if payload.is_empty() => {}
                        Ok(()) => drop(sender.send(Ok(payload))),
                        Err(status) => drop(sender.send(Err(status))),
                    },
                    None => {}
                }
                None
            }
            Header::Part { id } => {
                let mut pending = self.pending();
                let Some(Pending::Parts { sender, room }) = pending.get(&id) else {
                    return None; // The call is over.
                };
                if room.take(payload.len()) {
                    let _ = sender.send(Ok(payload.into_bytes()));
                } else {
                    let message = "the answer was streamed beyond its window";
                    let _ = sender.send(Err(Status::new(Code::ResourceExhausted, message)));
                    pending.remove(&id);
                    drop(pending);
                    self.say(&Header::Cancel { id });
                }
                None
            }
            other => Some((other, payload)),
        }
    }

    /// Sends what may be lost: a full queue means that the peer has stopped reading.
    fn say(&self, header: &Header<'_>) -> bool {
        let frame = Frame::copy_of(&header.encode());
        self.dealer.try_send(frame, Frame::new()).is_ok()
    }

    fn place(self: &Arc<Self>) -> Result<Place, Status> {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= MAX_CALLS {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            let message = format!("{MAX_CALLS} calls of this client are under way");
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        Ok(Place(self.clone()))
    }

    async fn send(&self, header: &Header<'_>, payload: Bytes) -> Result<(), Status> {
        let frame = Frame::copy_of(&header.encode());
        // Nearly always there is room; then nothing is waited for.
        let Err(payload) = self.dealer.try_send(frame, payload) else {
            return Ok(());
        };
        self.dealer
            .send(header.encode(), payload)
            .await
            .map_err(|_| self.lost())
    }

    /// Sends a request and waits for its answer. Dropping the future cancels the call.
    pub(super) async fn exchange<'h>(
        self: &Arc<Self>,
        deadline: Instant,
        budget: Duration,
        header: impl FnOnce(u64, u64) -> Header<'h>,
        payload: Bytes,
    ) -> Answer {
        let place = self.place()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.pending().insert(id, Pending::Once(sender));
        let header = header(id, left_ms(deadline));
        // Dropped with this future, it takes the entry back and tells the peer.
        let _call = Call { place, id };
        let exchanged = async {
            self.send(&header, payload).await?;
            answer.await.unwrap_or_else(|_| Err(self.lost()))
        };
        tokio::time::timeout_at(deadline, exchanged)
            .await
            .unwrap_or_else(|_| Err(too_late(budget)))
    }

    /// Sends a request whose answer comes in parts.
    pub(super) async fn open<'h>(
        self: &Arc<Self>,
        deadline: Instant,
        budget: Duration,
        window: u32,
        header: impl FnOnce(u64, u64) -> Header<'h>,
        payload: Bytes,
    ) -> Result<Answers, Status> {
        let place = self.place()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, parts) = mpsc::unbounded_channel();
        let room = Arc::new(Room {
            window: window.clamp(1, MAX_WINDOW),
            bytes: AtomicU32::new(0),
            parts: AtomicU32::new(0),
        });
        let call = Pending::Parts {
            sender,
            room: room.clone(),
        };
        self.pending().insert(id, call);
        let header = header(id, left_ms(deadline));
        let answers = Answers {
            call: Call { place, id },
            parts,
            room,
            taken: 0,
            say_again: None,
            over: false,
            budget,
            clock: Box::pin(tokio::time::sleep_until(deadline)),
        };
        tokio::time::timeout_at(deadline, self.send(&header, payload))
            .await
            .unwrap_or_else(|_| Err(too_late(budget)))?;
        Ok(answers)
    }
}

fn left_ms(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn too_late(budget: Duration) -> Status {
    let message = format!("no answer within {} ms", budget.as_millis());
    Status::new(Code::DeadlineExceeded, message)
}

/// A call under way.
struct Call {
    place: Place,
    id: u64,
}

impl Drop for Call {
    fn drop(&mut self) {
        let calls = &self.place.0;
        // Still there: it was not answered. A notice that is lost costs the peer the
        // rest of the call's budget.
        if calls.pending().remove(&self.id).is_some() {
            calls.say(&Header::Cancel { id: self.id });
        }
    }
}

/// The parts of an answer, as they come; see [`super::Client::stream`]. The end
/// of the stream is the end of the answer, an error ends it too. The callee is
/// given room for more as parts are taken. Dropping it cancels the call.
pub struct Answers {
    call: Call,
    parts: mpsc::UnboundedReceiver<Result<Bytes, Status>>,
    room: Arc<Room>,
    /// Bytes taken and not acknowledged.
    taken: u32,
    /// While a queue is full that the credit has to go through.
    say_again: Option<Pin<Box<Sleep>>>,
    over: bool,
    budget: Duration,
    clock: Pin<Box<Sleep>>,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    /// The next part; `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        std::future::poll_fn(|context| self.poll_part(context)).await
    }

    /// All parts that are still to come, as one. More than `most` bytes are an error.
    ///
    /// # Errors
    /// What ended the answer, or `ResourceExhausted`.
    pub async fn collect(mut self, most: usize) -> Result<Bytes, Status> {
        let mut all = bytes::BytesMut::new();
        while let Some(part) = self.next().await {
            let part = part?;
            if all.len() + part.len() > most {
                let message = format!("an answer of more than {most} bytes");
                return Err(Status::new(Code::ResourceExhausted, message));
            }
            all.extend_from_slice(&part);
        }
        Ok(all.freeze())
    }

    /// Tells the callee what was taken.
    fn acknowledge(&mut self) {
        let (id, bytes) = (self.call.id, self.taken);
        if bytes > 0 && self.call.place.0.say(&Header::Credit { id, bytes }) {
            self.taken = 0;
        }
    }

    /// Sees to it that what is owed is sent when there is room: the callee may wait for
    /// it, and then nothing else would wake this.
    fn poll_credit(&mut self, context: &mut Context<'_>) {
        while self.taken > 0 {
            let wait = || Box::pin(tokio::time::sleep(SAY_AGAIN));
            let timer = self.say_again.get_or_insert_with(wait);
            if timer.as_mut().poll(context).is_pending() {
                return;
            }
            self.say_again = None;
            self.acknowledge();
        }
        self.say_again = None;
    }

    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let part = match self.parts.poll_recv(context) {
            Poll::Ready(part) => part,
            Poll::Pending => {
                // All is taken: whatever the callee waits for, it has room now.
                self.acknowledge();
                self.poll_credit(context);
                if self.clock.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                Some(Err(too_late(self.budget)))
            }
        };
        match &part {
            Some(Ok(part)) => {
                // The last part, in the response, was not counted as it came.
                let counted = self.room.bytes.load(Ordering::Relaxed);
                let bytes = u32::try_from(part.len()).unwrap_or(u32::MAX).min(counted);
                self.room.bytes.fetch_sub(bytes, Ordering::Relaxed);
                let parts = self.room.parts.load(Ordering::Relaxed);
                self.room
                    .parts
                    .store(parts.saturating_sub(1), Ordering::Relaxed);
                self.taken = self.taken.saturating_add(bytes);
                if self.taken >= self.room.window / 4 {
                    self.acknowledge();
                }
            }
            Some(Err(_)) | None => self.over = true,
        }
        Poll::Ready(part)
    }
}

impl Stream for Answers {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_part(context)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plain;
    use super::*;
    use crate::rpc::header::Response;
    use crate::transport::rpc::{DealerEvent, Router};

    #[tokio::test]
    async fn credit_that_met_a_full_queue_is_sent_again() {
        const PATIENCE: Duration = Duration::from_secs(30);
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("router");
        let router = Router::bind(&path, |_, _| Some(Bytes::new()))
            .await
            .unwrap();
        let dealer = Arc::new(Dealer::new("web.1", "token"));
        let mut events = dealer.watch();
        dealer.connect(&path).await.unwrap();
        assert_eq!(events.next().await, DealerEvent::Up);
        let calls = Arc::new(Calls::new(dealer.clone(), "db.1".to_owned()));
        let deadline = Instant::now() + PATIENCE;
        let header = |id, left| plain("db", "rows", id, left);
        let opened = calls.open(deadline, PATIENCE, 4000, header, Bytes::new());
        let mut answers = opened.await.unwrap();
        calls.received(Header::Part { id: 1 }, Frame::copy_of(&[7; 4000]));
        // Nothing leaves the queue meanwhile: its task has no turn.
        let heartbeat = || Frame::copy_of(&Header::Heartbeat { registered: None }.encode());
        while dealer.try_send(heartbeat(), Frame::new()).is_ok() {}
        // All that the callee may send is here: it waits for credit.
        assert_eq!(answers.next().await.unwrap().unwrap().len(), 4000);
        assert_eq!(answers.taken, 4000);
        let ends = calls.clone();
        let peer = tokio::spawn(async move {
            loop {
                let message = router.recv().await.unwrap();
                if let Ok(Header::Credit { id, bytes }) = Header::decode(message.header.as_ref()) {
                    let answer = Header::Response(Response::new(id, Ok(())));
                    ends.received(answer, Frame::new());
                    return (id, bytes);
                }
            }
        });
        // Polled here alone, and with the queue still full: nothing else wakes it.
        assert_eq!(answers.next().await, None);
        assert_eq!(peer.await.unwrap(), (1, 4000));
    }
}
