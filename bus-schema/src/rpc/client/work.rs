//! Handlers at work, for the calls of the bridge or of direct callers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
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

/// A call by the connection it came on, and its id there.
type JobId = (u64, u64);

struct Job {
    handler: AbortHandle,
    parts: Option<Parts>,
}

/// The handlers of one connection to the bridge, or of all direct callers.
pub(super) struct Work {
    instance: InstanceName,
    /// At most the capacity of the methods.
    handlers: JoinSet<JobId>,
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
    pub(super) fn new(instance: InstanceName, working: watch::Sender<usize>) -> Self {
        let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
        Self {
            instance,
            handlers: JoinSet::new(),
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
            Some(Ok((task, job))) => {
                // A caller may have used the id again as soon as it had its answer.
                if self
                    .jobs
                    .get(&job)
                    .is_some_and(|job| job.handler.id() == task)
                {
                    self.jobs.remove(&job);
                }
                self.count();
            }
            // Aborted: its job is gone already.
            Some(Err(_)) => self.count(),
            None => std::future::pending().await,
        }
    }

    pub(super) fn cancel(&mut self, connection: u64, id: u64) {
        if let Some(job) = self.jobs.remove(&(connection, id)) {
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
                job.handler.abort();
            }
            !lost
        });
    }

    /// All connections are.
    pub(super) fn lost_all(&mut self) {
        self.jobs.clear();
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
        let found = {
            let methods = methods.borrow();
            let limit = methods.limit();
            let serving = methods.handlers.get_key_value(request.method.as_ref());
            match serving {
                None => Err(self.unknown(&request.method)),
                Some(_) if self.handlers.len() >= limit => Err(self.busy(limit)),
                Some((method, serving)) => Ok((method.clone(), serving.clone())),
            }
        };
        let (method, serving) = match found {
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
        let (work, parts) = match serving {
            Serving::Once(handler) => (handler(asked), None),
            Serving::Parts(handler) => {
                let parts = Parts::new(id, request.window, back.clone());
                let given = parts.clone();
                let whole = async move {
                    handler(asked, given.clone()).await?;
                    Ok(given.rest())
                };
                (
                    Box::pin(whole) as Pin<Box<dyn Future<Output = _> + Send>>,
                    Some(parts),
                )
            }
        };
        let mut work = Box::pin(in_context(trace, work));
        if self.at_once
            && let Some(result) = poll_once(work.as_mut())
        {
            return answer(back, id, result).await;
        }
        let job = (connection, id);
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
            if let Err(error) = back.send(&header, payload).await {
                tracing::debug!(%error, "a response was not sent");
            }
            job
        });
        self.jobs.insert(job, Job { handler, parts });
        self.count();
    }

    fn unknown(&self, method: &str) -> Status {
        let message = format!("{} does not serve {method:?}", self.instance);
        Status::new(Code::Unimplemented, message)
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
