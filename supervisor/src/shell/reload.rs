//! `supervision.reload`: services read their own configuration again. Nothing of
//! what is decided or remembered here changes by it, so the core is only asked
//! what runs; the process-manager does it.

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::bus::{Incoming, Link, RequestError};
use blackhole_bus_schema::component::Ping;
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::process::{Reload, StateName};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{InstanceStatus, ReloadServices, Reloaded, Target};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::Shell;
use super::operator::ANSWER_TAKES;
use crate::core::ManagerId;

/// How long a process-manager that was there may take to say that it still is. What
/// is asked of one that is away would wait for it until the command is out of time.
const ECHO: Duration = Duration::from_secs(2);

/// One instance, and whom to ask for it; or why it is not asked for.
type Asked = (InstanceName, Result<ManagerId, Status>);

impl Shell {
    /// Reloads one instance after the other, and tells what became of each.
    pub(super) async fn reload(&mut self, incoming: Incoming) {
        let command = match incoming.parse::<ReloadServices>() {
            Ok(command) => command,
            Err(status) => return incoming.fail(status).await,
        };
        let asked = match self.meant(&command.target) {
            Ok(asked) => asked,
            Err(status) => return incoming.fail(status).await,
        };
        tracing::info!(client = %incoming.client, ?command, "asked");
        let managers = asked.iter().filter_map(|(_, home)| home.as_ref().ok());
        let links: BTreeMap<ManagerId, Link> = managers
            .filter_map(|home| Some((home.clone(), self.managers.link(home)?.clone())))
            .collect();
        incoming.accept().await;
        tokio::spawn(async move {
            let cause = Some(incoming.id);
            let left = incoming.deadline.saturating_duration_since(Instant::now());
            // Early enough for the word of what was done to be there in time.
            let deadline = incoming.deadline - ANSWER_TAKES.min(left / 10);
            let links = answering(links).await;
            let mut outcome = Vec::with_capacity(asked.len());
            for (instance, home) in asked {
                let result = match home {
                    Ok(home) => match links.get(&home) {
                        Some(link) => reload(link, &instance, deadline, cause).await,
                        None => Err(away(home)),
                    },
                    Err(status) => Err(status),
                };
                let status = result.err();
                outcome.push(Reloaded {
                    instance,
                    code: status.as_ref().map_or(Code::Ok, |status| status.code),
                    message: status.map(|status| status.message).unwrap_or_default(),
                });
            }
            incoming.reply::<ReloadServices>(Ok(outcome)).await;
        });
    }

    /// The instances that run of the services meant, and of a service that was named
    /// those that do not where none does. "All" are those that can be reloaded.
    fn meant(&self, target: &Target) -> Result<Vec<Asked>, Status> {
        let runs = |status: &InstanceStatus| status.state == Some(StateName::Running);
        let mut all: Vec<InstanceStatus> = match target {
            Target::All => self
                .core
                .statuses()
                .filter(|status| self.core.can_reload(&status.service))
                .collect(),
            Target::Services(names) => {
                if let Some(unknown) = names.iter().find(|name| !self.core.knows(name)) {
                    return Err(self.core.unknown(unknown));
                }
                let meant = |status: &InstanceStatus| names.contains(&status.service);
                self.core.statuses().filter(meant).collect()
            }
        };
        if !all.iter().any(runs) {
            return Err(Status::new(
                Code::FailedPrecondition,
                "nothing of it runs: what is started reads its configuration anyway",
            ));
        }
        let running: Vec<_> = all
            .iter()
            .filter(|status| runs(status))
            .map(|status| status.service.clone())
            .collect();
        let named = matches!(target, Target::Services(_));
        all.retain(|status| runs(status) || (named && !running.contains(&status.service)));
        let asked = all.into_iter().map(|status| {
            let home = match runs(&status) {
                true => Ok(self.core.home(&status.instance).unwrap_or_default()),
                false => Err(Status::new(
                    Code::FailedPrecondition,
                    "does not run: what is started reads its configuration anyway",
                )),
            };
            (status.instance, home)
        });
        Ok(asked.collect())
    }
}

/// Those that answer, all asked at once.
async fn answering(links: BTreeMap<ManagerId, Link>) -> BTreeMap<ManagerId, Link> {
    let mut tasks = JoinSet::new();
    for (manager, link) in links {
        // One whose silence is known already is not waited for.
        if link.info().is_some() {
            tasks.spawn(async move {
                let there = link.request(&Ping {}, ECHO).await.is_ok();
                there.then_some((manager, link))
            });
        }
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

fn away(manager: ManagerId) -> Status {
    let who = Component::ProcessManager(manager);
    Status::new(
        Code::Unavailable,
        format!("its {who} does not answer: the service runs on as it is"),
    )
}

async fn reload(
    manager: &Link,
    instance: &InstanceName,
    deadline: Instant,
    cause: Option<Uuid>,
) -> Result<(), Status> {
    let command = Reload {
        instance: instance.clone(),
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let asked = manager.request_caused(&command, left, cause).await;
    asked.map_err(|error| match error {
        RequestError::Status(status) => status,
        error => Status::new(error.code(), super::chain(&error)),
    })
}
