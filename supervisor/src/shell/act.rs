//! Actions: requests to the other components, events, answers.

use std::time::Duration;

use blackhole_bus_schema::bus::{Link, RequestError};
use blackhole_bus_schema::message::Command;
use blackhole_bus_schema::process::{Forget, GrantPermit, Spawn, Stop};
use blackhole_bus_schema::registry::Drain;
use blackhole_bus_schema::reply::Code;
use blackhole_bus_schema::resource::{Prepare, Release};
use blackhole_bus_schema::supervision::{Phase, SupervisionChanged};
use blackhole_bus_schema::topic::Topic;
use uuid::Uuid;

use super::{Shell, chain};
use crate::core::{Action, Input, RequestFailure};

/// Budget of a request that needs no grace of a service.
const BUDGET: Duration = Duration::from_secs(15);
/// A spawn waits for a shim and for exec.
const SPAWN_BUDGET: Duration = Duration::from_secs(30);
/// Added to a drain for the way to the bridge and back.
const DRAIN_SLACK: Duration = Duration::from_secs(5);
/// Added to the grace of a service for its kill and the way back.
const STOP_SLACK: Duration = Duration::from_secs(20);

impl Shell {
    /// Performs one action; `spawns` says that a spawn is among those it goes together with.
    pub(super) async fn act(&mut self, action: Action, cause: Option<Uuid>, spawns: bool) {
        match action {
            // Gathered by `perform`.
            Action::Persist { .. } => {}
            Action::Prepare {
                instance,
                limits,
                oom_score_adj,
            } => {
                let command = Prepare {
                    instance: instance.clone(),
                    limits,
                    oom_score_adj: Some(oom_score_adj),
                };
                self.ask(&self.controller, command, BUDGET, cause, move |result| {
                    Input::PrepareReply {
                        instance,
                        result: result.map(Box::new),
                    }
                });
            }
            Action::Release { instance } => {
                let command = Release {
                    instance: instance.clone(),
                };
                self.ask(&self.controller, command, BUDGET, cause, move |result| {
                    Input::ReleaseReply { instance, result }
                });
            }
            Action::Spawn(manager, spec) => {
                let (instance, generation) = (spec.instance.clone(), spec.generation);
                let command = Spawn { spec: *spec };
                let Some(link) = self.managers.link(&manager) else {
                    return;
                };
                self.ask(link, command, SPAWN_BUDGET, cause, move |result| {
                    Input::SpawnReply {
                        manager,
                        instance,
                        generation,
                        result: result.map(Box::new),
                    }
                });
            }
            Action::Drain {
                instance,
                generation,
                within_ms,
            } => {
                let command = Drain {
                    instance: instance.clone(),
                    generation,
                    within_ms,
                };
                let budget = Duration::from_millis(within_ms).saturating_add(DRAIN_SLACK);
                self.ask(&self.bridge, command, budget, cause, move |result| {
                    Input::DrainReply {
                        instance,
                        generation,
                        result,
                    }
                });
            }
            Action::Permit {
                manager,
                instance,
                generation,
                permit,
            } => {
                let command = GrantPermit {
                    instance,
                    generation,
                    permit,
                };
                let Some(link) = self.managers.link(&manager).cloned() else {
                    return;
                };
                tokio::spawn(async move {
                    let asked = link.request_caused(&command, BUDGET, cause).await;
                    if let Err(error) = asked {
                        // Without it a restart takes its usual way.
                        tracing::debug!(instance = %command.instance, error = chain(&error), "permit");
                    }
                });
            }
            Action::Stop {
                manager,
                instance,
                generation,
                unhealthy,
                stop,
                grace_ms,
            } => {
                let command = Stop {
                    instance: instance.clone(),
                    generation,
                    stop,
                    unhealthy,
                    again: self.core.is_wanted(&instance),
                };
                let budget = Duration::from_millis(grace_ms).saturating_add(STOP_SLACK);
                let Some(link) = self.managers.link(&manager) else {
                    return;
                };
                self.ask(link, command, budget, cause, move |result| {
                    Input::StopReply {
                        manager,
                        instance,
                        generation,
                        result: result.map(Box::new),
                    }
                });
            }
            Action::Forget { manager, instance } => {
                let command = Forget {
                    instance: instance.clone(),
                };
                let Some(link) = self.managers.link(&manager) else {
                    return;
                };
                self.ask(link, command, BUDGET, cause, move |result| {
                    Input::ForgetReply {
                        manager,
                        instance,
                        result,
                    }
                });
            }
            Action::Publish { status, why, cause } => {
                tracing::info!(
                    service.instance = %status.instance,
                    state = status.state.map(tracing::field::display),
                    phase = status.phase.word(),
                    "{why}"
                );
                let topic = Topic::supervision(&status.service);
                let changed = SupervisionChanged {
                    status: *status,
                    why,
                };
                let server = &self.daemon.server;
                // The process-manager has been asked: it has better to do than anybody who only
                // looks on. A failure is told together with the start that follows it at once.
                match spawns || matches!(changed.status.phase, Phase::Spawning) {
                    true => server.publish_patiently(topic, &changed, cause).await,
                    false => server.publish(topic, &changed, cause).await,
                }
            }
            Action::Answer { ticket, result } => self.answer(ticket, result).await,
        }
    }

    /// Sends a request in a task of its own; its result comes back as an input.
    fn ask<C: Command + Sync>(
        &self,
        link: &Link,
        command: C,
        budget: Duration,
        cause: Option<Uuid>,
        input: impl FnOnce(Result<C::Reply, RequestFailure>) -> Input + Send + 'static,
    ) {
        let (link, replies) = (link.clone(), self.replies.clone());
        tokio::spawn(async move {
            let result = link
                .request_caused(&command, budget, cause)
                .await
                .map_err(failure);
            // The loop is gone only when the daemon ends.
            let _ = replies.send((input(result), cause)).await;
        });
    }
}

/// What a failed request tells: refused means that nothing was done, anything
/// else leaves it open, and the next snapshot or event tells.
fn failure(error: RequestError) -> RequestFailure {
    match error {
        RequestError::Status(status) => match status.code {
            Code::Internal
            | Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Aborted
            | Code::Cancelled => RequestFailure::Unknown(status.message),
            _ => RequestFailure::Refused(status),
        },
        error => RequestFailure::Unknown(chain(&error)),
    }
}
