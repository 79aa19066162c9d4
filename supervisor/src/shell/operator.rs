//! Commands: who asks for what, and how it is answered.

use std::time::Duration;

use blackhole_bus_schema::bus::Incoming;
use blackhole_bus_schema::message::{Command, Message};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{
    ListStatus, Outcome, ReloadServices, ResetServices, RestartServices, StartServices,
    StopServices,
};
use blackhole_bus_schema::topic;

use super::Shell;
use crate::core::{Input, Operator, Ticket};

/// Time for an answer to reach its client.
pub(super) const ANSWER_TAKES: Duration = Duration::from_millis(250);

/// A command that waits for its answer.
pub(super) struct Asked {
    incoming: Incoming,
    answer: fn(Incoming, Result<Outcome, Status>) -> Answering,
}

type Answering = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn answer<C: Command<Reply = Outcome>>(
    incoming: Incoming,
    result: Result<Outcome, Status>,
) -> Answering {
    Box::pin(incoming.reply::<C>(result))
}

impl Shell {
    pub(super) async fn command(&mut self, incoming: Incoming) {
        match incoming.kind.as_str() {
            StartServices::KIND => {
                self.operator(incoming, |command: StartServices| {
                    Operator::Start(command.target)
                })
                .await;
            }
            StopServices::KIND => {
                self.operator(incoming, |command: StopServices| Operator::Stop {
                    target: command.target,
                    transient: command.transient,
                })
                .await;
            }
            RestartServices::KIND => {
                self.operator(incoming, |command: RestartServices| {
                    Operator::Restart(command.target)
                })
                .await;
            }
            ResetServices::KIND => {
                self.operator(incoming, |command: ResetServices| {
                    Operator::Reset(command.target)
                })
                .await;
            }
            ReloadServices::KIND => self.reload(incoming).await,
            ListStatus::KIND => match incoming.parse::<ListStatus>() {
                Ok(command) => {
                    let mut all: Vec<_> = self
                        .core
                        .statuses()
                        .map(|status| (status.instance.to_string(), status))
                        .collect();
                    // Pages go by the text of names: web.10 is before web.2.
                    all.sort_by(|one, two| one.0.cmp(&two.0));
                    let page = self.daemon.server.snapshot(
                        topic::SUPERVISION,
                        all.into_iter(),
                        command.after.as_deref(),
                    );
                    incoming.reply::<ListStatus>(Ok(page)).await;
                }
                Err(status) => incoming.fail(status).await,
            },
            _ => incoming.unknown().await,
        }
    }

    async fn operator<C: Command<Reply = Outcome>>(
        &mut self,
        incoming: Incoming,
        operator: impl FnOnce(C) -> Operator,
    ) {
        let command = match incoming.parse::<C>() {
            Ok(command) => operator(command),
            Err(status) => return incoming.fail(status).await,
        };
        // Not accepted in words: a client that repeats itself is told by the bus.
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let left = incoming
            .deadline
            .saturating_duration_since(tokio::time::Instant::now());
        // Early enough for the answer, which says what is waited for, to be
        // there before the client gives up.
        let left = left.saturating_sub(ANSWER_TAKES.min(left / 10));
        let deadline = self.clock.now().mono.saturating_add(left);
        let cause = Some(incoming.id);
        tracing::info!(client = %incoming.client, ?command, "asked");
        let answer = answer::<C>;
        self.tickets.insert(ticket, Asked { incoming, answer });
        let input = Input::Command {
            ticket,
            deadline,
            command,
        };
        self.take(input, cause);
    }

    /// Answers a command.
    pub(super) async fn answer(&mut self, ticket: Ticket, result: Result<Outcome, Status>) {
        let Some(asked) = self.tickets.remove(&ticket) else {
            return;
        };
        let result = match result {
            Ok(_) if self.wish_at_risk => Err(Status::new(
                Code::Internal,
                "done, but it cannot be written to the disk (is it full?): a supervisor that is \
                 started anew will not know of it",
            )),
            result => result,
        };
        (asked.answer)(asked.incoming, result).await;
    }

    /// Tells those who wait that they wait in vain.
    pub(super) async fn refuse_waiting(&mut self) {
        for (_, asked) in self.tickets.drain() {
            let text = "the supervisor ends; services run on, and what was asked for is remembered: \
                        the next supervisor goes on with it";
            let status = Status::new(Code::Unavailable, text);
            asked.incoming.fail(status).await;
        }
    }
}
