//! A command to a component, and its answer.

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use super::dispatch::first_time;
use super::{Frames, Inner};
use crate::message::{Command, Message};
use crate::names::ClientName;
use crate::raw::Raw;
use crate::reply::{Code, DoneReply, Reply, Status, Verdict};
use crate::topic::Topic;

/// A command to this component. Dropped without an answer, it is answered with `Internal`.
#[derive(Debug)]
pub struct Incoming {
    /// Its id: the cause of what follows from it.
    pub id: Uuid,
    /// Which command.
    pub kind: String,
    /// Who asks.
    pub client: ClientName,
    /// After this nobody waits for an answer.
    pub deadline: Instant,
    pub(super) body: Raw,
    pub(super) inner: Option<Arc<Inner>>,
}

impl Incoming {
    /// The command's body.
    ///
    /// # Errors
    /// `InvalidArgument` when it does not fit the kind; `DeadlineExceeded` when
    /// its budget was spent before anybody looked at it: its client has given it
    /// up and reported so, and it must not take effect after that.
    pub fn parse<C: Command>(&self) -> Result<C, Status> {
        if Instant::now() >= self.deadline {
            if let Some(inner) = &self.inner {
                inner.counters.expired.up();
            }
            let text = format!("the budget of {} was spent before it was begun", self.kind);
            return Err(Status::new(Code::DeadlineExceeded, text));
        }
        if self.kind != C::KIND {
            let text = format!("a {} command is not a {}", self.kind, C::KIND);
            return Err(Status::new(Code::InvalidArgument, text));
        }
        // A body that is left out is one without fields.
        self.body.parse_fields().map_err(|error| {
            let text = format!("the body of {} is not understood: {error}", C::KIND);
            Status::new(Code::InvalidArgument, text)
        })
    }

    /// Tells the client that the command is being worked on. Optional: a repeated
    /// command is answered like this by itself.
    pub async fn accept(&self) {
        if let Some(inner) = &self.inner {
            let accepted = Reply {
                to: self.id,
                verdict: Verdict::Accepted {},
            };
            if let Some(body) = inner.encode(0, Some(self.id), &accepted) {
                inner.send_reply(&self.client, body).await;
            }
        }
    }

    /// Answers the command. A repetition of it gets the same answer again.
    pub async fn reply<C: Command>(mut self, result: Result<C::Reply, Status>) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        let (to, cause) = (self.id, Some(self.id));
        let body = match result {
            Ok(result) => inner.encode_as(Reply::KIND, 0, cause, &DoneReply::of(to, &result)),
            Err(error) => {
                let verdict = Verdict::Failed { error };
                inner.encode(0, cause, &Reply { to, verdict })
            }
        };
        if let Some(body) = body {
            match C::READS {
                true => inner.lock().replies.forget(self.id),
                false => inner.lock().replies.finish(self.id, body.clone()),
            }
            inner.send_reply(&self.client, body).await;
        }
    }

    /// Lets go of it without any answer.
    pub(super) fn disown(mut self) {
        self.inner = None;
    }

    /// Answers with a failure, whatever the command.
    pub async fn fail(mut self, error: Status) {
        if let Some(inner) = self.inner.take() {
            inner.refuse(&self.client, self.id, error).await;
        }
    }

    /// Answers a command that this component does not know. Reported once a kind.
    pub async fn unknown(self) {
        let component = match &self.inner {
            Some(inner) => {
                inner.counters.unknown.up();
                if first_time(inner, &self.kind) {
                    tracing::warn!(kind = self.kind, client = %self.client, "unknown command; reported once");
                }
                inner.component.to_string()
            }
            None => String::new(),
        };
        let text = format!("{component} does not know the command {:?}", self.kind);
        self.fail(Status::new(Code::Unimplemented, text)).await;
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        let error = Status::new(
            Code::Internal,
            format!("{} was given up without an answer", self.kind),
        );
        let reply = Reply {
            to: self.id,
            verdict: Verdict::Failed { error },
        };
        if let Some(body) = inner.encode(0, Some(self.id), &reply) {
            inner.lock().replies.finish(self.id, body.clone());
            let topic = Topic::reply(&self.client).as_str().to_owned().into();
            // When the queue is full the client asks again and gets the cached answer.
            let _ = inner.outgoing.try_send(Frames {
                topic,
                body,
                sent: None,
                patient: false,
            });
        }
    }
}
