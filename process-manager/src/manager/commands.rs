//! Commands, as they come from the bus.

use blackhole_bus_schema::bus::Incoming;
use blackhole_bus_schema::message::{Command, Message};
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::{
    FollowLog, Forget, GrantPermit, ListProcesses, ReadLog, Reload, Signal, Spawn, Stop,
};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::topic::{self, Topic};

use tokio::time::Instant;

use super::Manager;
use crate::adopt;
use crate::launch::chain;
use crate::log;
use crate::table::{Action, Ticket};

impl Manager {
    /// Takes in one command. It is answered now or by what follows from it.
    pub(super) async fn command(&mut self, incoming: Incoming) {
        tracing::debug!(kind = incoming.kind, client = %incoming.client, "command");
        if incoming.deadline <= Instant::now() {
            // Whoever asked has given up, and may have decided otherwise since.
            let text = "it waited here for longer than its budget; nothing was done";
            return incoming
                .fail(Status::new(Code::DeadlineExceeded, text))
                .await;
        }
        let actions = match incoming.kind.as_str() {
            Spawn::KIND => {
                let Some((command, incoming)) = parse::<Spawn>(incoming).await else {
                    return;
                };
                if let Some(status) = self.belongs_to_another(&command.spec.instance) {
                    return incoming.fail(status).await;
                }
                let cause = incoming.id;
                let ticket = self.ticket(incoming);
                self.table.spawn(ticket, cause, Box::new(command.spec))
            }
            Stop::KIND => {
                let Some((command, incoming)) = parse::<Stop>(incoming).await else {
                    return;
                };
                // A grace may be long: the client is told that it is under way.
                incoming.accept().await;
                let cause = incoming.id;
                let ticket = self.ticket(incoming);
                self.table.stop(ticket, cause, command)
            }
            GrantPermit::KIND => {
                let Some((command, incoming)) = parse::<GrantPermit>(incoming).await else {
                    return;
                };
                let ticket = self.ticket(incoming);
                vec![self.table.permit(ticket, command)]
            }
            Signal::KIND => {
                let Some((command, incoming)) = parse::<Signal>(incoming).await else {
                    return;
                };
                let ticket = self.ticket(incoming);
                self.table.signal(ticket, &command)
            }
            Reload::KIND => {
                let Some((command, incoming)) = parse::<Reload>(incoming).await else {
                    return;
                };
                let ticket = self.ticket(incoming);
                vec![self.table.reload(ticket, &command.instance)]
            }
            Forget::KIND => {
                let Some((command, incoming)) = parse::<Forget>(incoming).await else {
                    return;
                };
                let ticket = self.ticket(incoming);
                self.table.forget(ticket, &command)
            }
            ListProcesses::KIND => return self.list(incoming).await,
            ReadLog::KIND => return self.read_log(incoming).await,
            FollowLog::KIND => {
                if let Some((command, incoming)) = parse::<FollowLog>(incoming).await {
                    self.follower.follow(command, incoming).await;
                }
                return;
            }
            _ => return incoming.unknown().await,
        };
        self.carry_out(actions).await;
    }

    /// Why an instance is not to be started here: it lives at another manager, and
    /// whoever asks did not know.
    fn belongs_to_another(&self, instance: &InstanceName) -> Option<Status> {
        let own = self.server.component().to_string();
        let text = match adopt::lives_elsewhere(&self.dirs, instance, &own) {
            Ok(None) => return None,
            Ok(Some(whose)) => format!("{instance} lives at the {whose}: stop it there first"),
            Err(error) => format!("whether {instance} lives elsewhere cannot be seen: {error}"),
        };
        Some(Status::new(Code::AlreadyExists, text))
    }

    fn ticket(&mut self, incoming: Incoming) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.insert(ticket, incoming);
        ticket
    }

    /// One page of all records. Where it is asked for, the latest probe results
    /// of its instances are published after it.
    async fn list(&mut self, incoming: Incoming) {
        let Some((ListProcesses { after, probes }, incoming)) =
            parse::<ListProcesses>(incoming).await
        else {
            return;
        };
        let page = {
            let records = self.table.records().into_iter();
            let rest = records.filter(|(name, _)| after.as_ref().is_none_or(|after| name > after));
            let cloned = rest.map(|(name, record)| (name, record.clone()));
            self.server
                .snapshot(topic::PROCESS, cloned, after.as_deref())
        };
        let results: Vec<_> = page
            .items
            .iter()
            .filter(|_| probes)
            .flat_map(|record| self.schedule.latest(&record.instance))
            .collect();
        // Whoever did not ask knows them already: the cause says so.
        let cause = Some(incoming.id);
        incoming.reply::<ListProcesses>(Ok(page)).await;
        for result in results {
            self.server
                .publish(Topic::health(&result.instance), &result, cause)
                .await;
        }
    }

    /// Files are read on the blocking pool; the answer does not pass here again.
    async fn read_log(&mut self, incoming: Incoming) {
        let Some((command, incoming)) = parse::<ReadLog>(incoming).await else {
            return;
        };
        let Ok(place) = self.log_readers.clone().try_acquire_owned() else {
            let text = "too many logs are being read: try again later";
            return incoming
                .fail(Status::new(Code::ResourceExhausted, text))
                .await;
        };
        let folder = self.dirs.instance(&command.instance);
        let known = self.table.record(&command.instance).is_some();
        tokio::spawn(async move {
            let read = tokio::task::spawn_blocking(move || {
                if !known && !folder.is_dir() {
                    return Err(Status::new(
                        Code::NotFound,
                        format!("there is no instance {}", command.instance),
                    ));
                }
                log::read(&folder, &command)
                    .map_err(|error| Status::new(Code::DataLoss, chain(&error)))
            });
            let result = read
                .await
                .unwrap_or_else(|error| Err(Status::new(Code::Internal, error.to_string())));
            incoming.reply::<ReadLog>(result).await;
            drop(place);
        });
    }

    /// Answers a spawn or stop.
    pub(super) async fn answer(&mut self, action: Action) {
        let Action::Reply { ticket, result } = action else {
            return;
        };
        if let Some(incoming) = self.waiting.remove(&ticket) {
            // Spawn and stop have the same answer; refusals are alike for all.
            incoming.reply::<Stop>(result.map(|record| *record)).await;
        }
    }
}

/// The body of a command; one that does not fit is refused.
async fn parse<C: Command>(incoming: Incoming) -> Option<(C, Incoming)> {
    match incoming.parse::<C>() {
        Ok(command) => Some((command, incoming)),
        Err(status) => {
            incoming.fail(status).await;
            None
        }
    }
}
