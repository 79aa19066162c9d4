//! Handlers at work, for the calls of the bridge or of direct callers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::super::header::{self, Header};
use super::super::trace::TraceContext;
use super::super::{Code, DEFAULT_BUDGET, MAX_BUDGET, Status};
use super::methods::{Methods, Parts, Request, Serving};
use super::response;
use crate::names::InstanceName;
use crate::transport::TransportError;
use crate::transport::rpc::{Dealer, Frame, Ledger, Route, Router, SendError};

/// Where answers go.
#[derive(Clone)]
pub(super) enum Back {
    Bridge(Arc<Dealer>),
    Direct {
        router: Arc<Router>,
        route: Route,
        ledger: Ledger,
    },
}

impl Back {
    /// Waits while a queue to the bridge is full. A direct caller that does not
    /// read has its answers dropped, and lives with its budget.
    pub(super) async fn send(
        &self,
        header: &Header<'_>,
        payload: Bytes,
    ) -> Result<(), TransportError> {
        let frame = Frame::copy_of(&header.encode());
        match self {
            Self::Bridge(dealer) => dealer.send(frame, payload).await,
            Self::Direct {
                router,
                route,
                ledger,
            } => router
                .send_counted(route, ledger, frame, payload.into())
                .map_err(|_: SendError| TransportError::Closed),
        }
    }

    /// Sends at once, or gives back what there is no room for.
    fn try_send(&self, header: &Header<'_>, payload: Bytes) -> Result<(), Bytes> {
        let frame = Frame::copy_of(&header.encode());
        match self {
            Self::Bridge(dealer) => dealer.try_send(frame, payload),
            Self::Direct {
                router,
                route,
                ledger,
            } => {
                let _ = router.send_counted(route, ledger, frame, payload.into());
                Ok(())
            }
        }
    }
}

/// Handlers that are over and have not ended: as many as a queue holds requests, each of
/// which may have taken the place of one that was cancelled.
const ENDING: usize = 1024;

/// A call by the connection it came on, and its id there.
type JobId = (u64, u64);

struct Job {
    handler: AbortHandle,
    parts: Option<Parts>,
    place: Arc<Place>,
}

/// One of the calls that a limit allows. It is free before the answer is sent: who has
/// the answer may send the next call at once, long before this one's task is joined.
struct Place {
    busy: Arc<AtomicUsize>,
    free: AtomicBool,
}

impl Place {
    fn take(busy: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let one_more = |now| (now < limit).then_some(now + 1);
        busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        Some(Self {
            busy: busy.clone(),
            free: AtomicBool::new(false),
        })
    }

    fn is_free(&self) -> bool {
        self.free.load(Ordering::Relaxed)
    }

    fn release(&self) {
        if !self.free.swap(true, Ordering::Relaxed) {
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.release();
    }
}

/// The handlers of one connection to the bridge, or of all direct callers.
pub(super) struct Work {
    instance: InstanceName,
    /// Those at work, at most the capacity of the methods, and at most [`ENDING`] that have
    /// yet to send their answers, or to end after a cancel.
    handlers: JoinSet<JobId>,
    /// Those at work, for the bridge and for direct callers together.
    busy: Arc<AtomicUsize>,
    jobs: HashMap<JobId, Job>,
    /// How many there are, for who waits for their end.
    working: watch::Sender<usize>,
    /// Whether a handler may run here until it first waits: where there is only one
    /// thread, it would wait for this task anyway.
    at_once: bool,
    /// The last caller: most calls in a row come from one.
    caller: Option<InstanceName>,
    caller_text: String,
}

impl Work {
    /// `busy` is the same for all that share a capacity.
    pub(super) fn new(
        instance: InstanceName,
        working: watch::Sender<usize>,
        busy: Arc<AtomicUsize>,
    ) -> Self {
        let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
        Self {
            instance,
            handlers: JoinSet::new(),
            busy,
            jobs: HashMap::new(),
            working,
            at_once: matches!(flavor, Ok(RuntimeFlavor::CurrentThread)),
            caller: None,
            caller_text: String::new(),
        }
    }

    /// Waits for the end of a handler. Cancel safe; waits for ever while there is none.
    pub(super) async fn finished(&mut self) {
        match self.handlers.join_next_with_id().await {
            Some(ended) => {
                self.ended(ended);
                self.join();
            }
            None => std::future::pending().await,
        }
    }

    /// Forgets all handlers that have ended.
    fn join(&mut self) {
        while let Some(ended) = self.handlers.try_join_next_with_id() {
            self.ended(ended);
        }
        self.count();
    }

    fn ended(&mut self, ended: Result<(Id, JobId), JoinError>) {
        // Aborted: its job is gone already.
        let Ok((task, job)) = ended else { return };
        // A caller may have used the id again as soon as it had its answer.
        if self
            .jobs
            .get(&job)
            .is_some_and(|job| job.handler.id() == task)
        {
            self.jobs.remove(&job);
        }
    }

    pub(super) fn cancel(&mut self, connection: u64, id: u64) {
        if let Some(job) = self.jobs.remove(&(connection, id)) {
            job.place.release();
            job.handler.abort();
        }
    }

    pub(super) fn credit(&mut self, connection: u64, id: u64, bytes: u32) {
        if let Some(Job {
            parts: Some(parts), ..
        }) = self.jobs.get(&(connection, id))
        {
            parts.credit(bytes);
        }
    }

    /// A connection is gone: nobody waits for its answers any more.
    pub(super) fn lost(&mut self, connection: u64) {
        self.jobs.retain(|(other, _), job| {
            let lost = *other == connection;
            if lost {
                job.place.release();
                job.handler.abort();
            }
            !lost
        });
    }

    /// All connections are.
    pub(super) fn lost_all(&mut self) {
        for (_, job) in self.jobs.drain() {
            job.place.release();
        }
        self.handlers.abort_all();
    }

    fn count(&mut self) {
        let now = self.handlers.len();
        self.working
            .send_if_modified(|count| std::mem::replace(count, now) != now);
    }

    fn caller(&mut self, text: Option<Cow<'_, str>>) -> Option<InstanceName> {
        let text = text?;
        if self.caller_text != text {
            self.caller = text.parse().ok();
            self.caller_text = text.into_owned();
        }
        self.caller.clone()
    }

    /// Starts the handler of a call, or answers why not.
    pub(super) async fn request(
        &mut self,
        methods: &watch::Sender<Methods>,
        connection: u64,
        back: &Back,
        request: header::Request<'_>,
        payload: Bytes,
    ) {
        let id = request.id;
        let job = (connection, id);
        // Nothing to do in nearly all cases: who has ended is joined as it ends.
        self.join();
        if self.jobs.get(&job).is_some_and(|job| !job.place.is_free()) {
            // Any answer would be taken for that of the call under way.
            let caller = request.caller.as_deref().unwrap_or("a caller");
            tracing::debug!(
                caller,
                id,
                "the id of a call that is under way, again: skipped"
            );
            return;
        }
        let found = {
            let methods = methods.borrow();
            let limit = methods.limit();
            let serving = methods.handlers.get_key_value(request.method.as_ref());
            match serving {
                None => Err(self.unknown(&request.method)),
                Some((method, serving)) => match self.place(limit) {
                    Some(place) => Ok((method.clone(), serving.clone(), place)),
                    None => Err(self.busy(limit)),
                },
            }
        };
        let (method, serving, place) = match found {
            Ok(found) => found,
            Err(status) => return answer(back, id, Err(status)).await,
        };
        let budget = request
            .budget_ms
            .map_or(DEFAULT_BUDGET, Duration::from_millis);
        let deadline = Instant::now() + budget.min(MAX_BUDGET);
        let trace = request.trace.as_deref().and_then(|text| text.parse().ok());
        let asked = Request {
            method,
            caller: self.caller(request.caller),
            payload,
            deadline,
            trace,
        };
        let parts = match &serving {
            Serving::Once(_) => None,
            Serving::Parts(_) => Some(Parts::new(id, request.window, back.clone())),
        };
        let given = parts.clone();
        // What a handler does before it gives its future is its work too: it is begun
        // where a panic is caught, and in the caller's tracing context.
        let work = async move {
            match (serving, given) {
                (Serving::Once(handler), _) => handler(asked).await,
                (Serving::Parts(handler), Some(parts)) => {
                    handler(asked, parts.clone()).await?;
                    Ok(parts.rest())
                }
                (Serving::Parts(_), None) => Ok(Bytes::new()),
            }
        };
        let mut work = Box::pin(in_context(trace, work));
        if self.at_once
            && let Some(result) = poll_once(work.as_mut())
        {
            drop(place);
            return answer(back, id, result).await;
        }
        let place = Arc::new(place);
        let held = place.clone();
        let back = back.clone();
        let handler = self.handlers.spawn(async move {
            let result = match tokio::time::timeout_at(deadline, work).await {
                Ok(result) => result,
                Err(_) => Err(Status::new(
                    Code::DeadlineExceeded,
                    "the method took too long",
                )),
            };
            let (header, payload) = response(id, result);
            held.release();
            if let Err(error) = back.send(&header, payload).await {
                tracing::debug!(%error, "a response was not sent");
            }
            job
        });
        let new = Job {
            handler,
            parts,
            place,
        };
        self.jobs.insert(job, new);
        self.count();
    }

    fn unknown(&self, method: &str) -> Status {
        let message = format!("{} does not serve {method:?}", self.instance);
        Status::new(Code::Unimplemented, message)
    }

    fn place(&self, limit: usize) -> Option<Place> {
        match self.handlers.len() < limit.saturating_add(ENDING) {
            true => Place::take(&self.busy, limit),
            false => None,
        }
    }

    fn busy(&self, limit: usize) -> Status {
        let message = format!("{} works on {limit} calls", self.instance);
        Status::new(Code::ResourceExhausted, message)
    }
}

/// Runs a future until it first waits. Polled again by a task, it goes on.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

async fn answer(back: &Back, id: u64, result: Result<Bytes, Status>) {
    let (header, payload) = response(id, result);
    if let Err(payload) = back.try_send(&header, payload)
        && let Err(error) = back.send(&header, payload).await
    {
        tracing::debug!(%error, "a response was not sent");
    }
}

/// A handler's work in its caller's tracing context; a panic of it is a status.
async fn in_context<F>(trace: Option<TraceContext>, work: F) -> Result<Bytes, Status>
where
    F: Future<Output = Result<Bytes, Status>>,
{
    let guarded = AssertUnwindSafe(work).catch_unwind();
    let result = match trace {
        Some(trace) => trace.scope(guarded).await,
        None => guarded.await,
    };
    result.unwrap_or_else(|_| Err(Status::new(Code::Internal, "the method panicked")))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::Notify;

    use super::*;
    use crate::transport::rpc::DealerEvent;

    /// A service with room for so many calls, whose handlers wait until they are let go.
    struct Desk {
        methods: watch::Sender<Methods>,
        back: Back,
        work: Work,
        started: Arc<Mutex<u32>>,
        go: Arc<Notify>,
        /// Takes the answers.
        _bridge: (Router, tempfile::TempDir),
    }

    impl Desk {
        async fn new(capacity: u32) -> Self {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("router");
            let router = Router::bind(&path, |_, _| Some(Bytes::new()));
            let router = router.await.unwrap();
            let dealer = Dealer::new("echo.1", "token");
            let mut events = dealer.watch();
            dealer.connect(&path).await.unwrap();
            assert_eq!(events.next().await, DealerEvent::Up);
            let (started, go) = (Arc::<Mutex<u32>>::default(), Arc::new(Notify::new()));
            let (count, wait) = (started.clone(), go.clone());
            let methods = Methods::new()
                .capacity(capacity)
                .on("wait", move |request| {
                    *count.lock().unwrap() += 1;
                    let wait = wait.clone();
                    async move {
                        wait.notified().await;
                        Ok(request.payload)
                    }
                });
            Self {
                methods: watch::Sender::new(methods),
                back: Back::Bridge(Arc::new(dealer)),
                work: Work::new(
                    "echo.1".parse().unwrap(),
                    watch::Sender::new(0),
                    Arc::default(),
                ),
                started,
                go,
                _bridge: (router, temp),
            }
        }

        async fn request(&mut self, id: u64) {
            let header = super::super::plain("echo", "wait", id, 60_000);
            let Header::Request(request) = header else {
                unreachable!()
            };
            self.work
                .request(&self.methods, 0, &self.back, request, Bytes::new())
                .await;
        }

        fn started(&self) -> u32 {
            *self.started.lock().unwrap()
        }
    }

    #[tokio::test]
    async fn who_has_answered_and_is_not_joined_is_not_busy() {
        let mut desk = Desk::new(1).await;
        desk.request(1).await;
        desk.request(2).await;
        assert_eq!(desk.started(), 1, "there is room for one");
        desk.go.notify_one();
        while desk.work.busy.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        desk.request(3).await;
        assert_eq!(desk.started(), 2);
    }

    #[tokio::test]
    async fn calls_by_the_bridge_and_direct_ones_share_a_capacity() {
        let mut desk = Desk::new(1).await;
        let name = "echo.1".parse().unwrap();
        let mut direct = Work::new(name, watch::Sender::new(0), desk.work.busy.clone());
        desk.request(1).await;
        std::mem::swap(&mut desk.work, &mut direct);
        desk.request(1).await;
        assert_eq!(desk.started(), 1);
        direct.cancel(0, 1);
        desk.request(1).await;
        assert_eq!(desk.started(), 2);
    }

    #[tokio::test]
    async fn an_id_under_way_is_no_other_calls() {
        let mut desk = Desk::new(2).await;
        desk.request(1).await;
        desk.request(1).await;
        assert_eq!((desk.started(), desk.work.jobs.len()), (1, 1));
        // The call that it belongs to can still be cancelled, and then it may be used again.
        desk.work.cancel(0, 1);
        assert_eq!(desk.work.busy.load(Ordering::Relaxed), 0);
        desk.request(1).await;
        assert_eq!(desk.started(), 2);
        desk.go.notify_one();
        while desk.work.busy.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        desk.request(1).await;
        assert_eq!(desk.started(), 3);
    }

    /// Cancelled calls whose handlers had no turn to end yet, as in one burst of messages.
    #[tokio::test]
    async fn many_cancels_at_once_leave_room() {
        let mut desk = Desk::new(1).await;
        for id in 0..500 {
            desk.request(id).await;
            desk.work.cancel(0, id);
        }
        assert_eq!(desk.started(), 500);
    }

    #[tokio::test]
    async fn who_was_cancelled_or_lost_and_is_not_joined_is_not_busy() {
        let mut desk = Desk::new(1).await;
        desk.request(1).await;
        desk.work.cancel(0, 1);
        desk.request(2).await;
        assert_eq!(desk.started(), 2);
        while desk.work.handlers.len() > 1 {
            desk.work.finished().await;
        }
        desk.work.lost(0);
        desk.request(3).await;
        assert_eq!(desk.started(), 3);
        desk.work.lost_all();
        while !desk.work.handlers.is_empty() {
            desk.work.finished().await;
        }
        desk.request(4).await;
        assert_eq!(desk.started(), 4);
        assert_eq!(desk.work.busy.load(Ordering::Relaxed), 1);
    }
}
