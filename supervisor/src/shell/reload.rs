//! `supervision.reload`: services read their own configuration again. Nothing of
//! what is decided or remembered here changes by it, so the core is only asked
//! what runs; the process-manager does it.

use blackhole_bus_schema::bus::{Incoming, RequestError};
use blackhole_bus_schema::process::{Reload, StateName};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{InstanceStatus, ReloadServices, Target};
use tokio::time::Instant;

use super::Shell;

impl Shell {
    /// Reloads one instance after the other; the first that fails ends it.
    pub(super) async fn reload(&mut self, incoming: Incoming) {
        let command = match incoming.parse::<ReloadServices>() {
            Ok(command) => command,
            Err(status) => return incoming.fail(status).await,
        };
        let meant = match self.meant(&command.target) {
            Ok(meant) => meant,
            Err(status) => return incoming.fail(status).await,
        };
        tracing::info!(client = %incoming.client, ?command, "asked");
        let mut asked = Vec::new();
        for status in &meant {
            let home = self.core.home(&status.instance).unwrap_or_default();
            if let Some(link) = self.managers.link(&home) {
                asked.push((status.instance.clone(), link.clone()));
            }
        }
        incoming.accept().await;
        tokio::spawn(async move {
            let cause = Some(incoming.id);
            let mut result = Ok(());
            for (instance, manager) in asked {
                let left = incoming.deadline.saturating_duration_since(Instant::now());
                let command = Reload {
                    instance: instance.clone(),
                };
                let asked = manager.request_caused(&command, left, cause).await;
                if let Err(error) = asked {
                    result = Err(match error {
                        RequestError::Status(status) => {
                            let text = match status.message.contains(&instance.to_string()) {
                                true => status.message,
                                false => format!("{instance}: {}", status.message),
                            };
                            Status::new(status.code, text)
                        }
                        error => {
                            let text = format!("{instance}: {}", super::chain(&error));
                            Status::new(error.code(), text)
                        }
                    });
                    break;
                }
            }
            incoming
                .reply::<ReloadServices>(result.map(|()| meant))
                .await;
        });
    }

    /// The instances that run of the services meant. "All" are those that can be reloaded.
    fn meant(&self, target: &Target) -> Result<Vec<InstanceStatus>, Status> {
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
        all.retain(|status| status.state == Some(StateName::Running));
        match all.is_empty() {
            true => Err(Status::new(
                Code::FailedPrecondition,
                "nothing of it runs: what is started reads its configuration anyway",
            )),
            false => Ok(all),
        }
    }
}
