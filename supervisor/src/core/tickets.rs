//! When an operator's command is answered.

use std::collections::BTreeSet;
use std::time::Duration;

use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{Desired, Outcome, Phase};

use super::Core;
use super::deps::Service;
use super::instance::Instance;
use super::io::{Action, Now};
use super::ops::circuit_open;
use super::perform::describe;

/// Instances named in the answer to a command that ran out of time.
const MOST_NAMED: usize = 8;

/// A command that has not been answered.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) goal: Goal,
    /// Monotonic.
    pub(super) deadline: Duration,
}

/// What it waits for.
#[derive(Debug, Clone)]
pub(super) enum Goal {
    /// These are ready or through.
    Up {
        instances: Vec<InstanceName>,
        /// A failure of one of those, or of these that they require, ends it.
        about: BTreeSet<ServiceName>,
        /// The end of one of these rolling restarts before its time, too.
        rolls: Vec<(ServiceName, u64)>,
    },
    /// Nothing of these is left.
    Gone {
        instances: Vec<InstanceName>,
        /// A start of one of these ends it.
        targets: Vec<ServiceName>,
    },
}

impl Core {
    pub(super) fn look_after_tickets(&mut self, now: Now) {
        let answers: Vec<_> = self
            .tickets
            .iter()
            .filter_map(|(ticket, pending)| {
                let result = self.result(&pending.goal).or_else(|| {
                    (pending.deadline <= now.mono).then(|| Err(self.too_late(&pending.goal)))
                });
                result.map(|result| (*ticket, result))
            })
            .collect();
        for (ticket, result) in answers {
            self.tickets.remove(&ticket);
            self.actions.push(Action::Answer { ticket, result });
        }
    }

    /// The answer, when there is one.
    fn result(&self, goal: &Goal) -> Option<Result<Outcome, Status>> {
        match goal {
            Goal::Up {
                instances,
                about,
                rolls,
            } => {
                let failure = |(name, number): &(_, _)| self.rolls.failure(name, *number);
                if let Some(status) = rolls.iter().find_map(failure) {
                    return Some(Err(status.clone()));
                }
                let rolled = |(name, number): &(_, _)| self.rolls.number(name) != Some(*number);
                if instances.iter().all(|name| self.is_up(name)) && rolls.iter().all(rolled) {
                    return Some(Ok(self.outcome(instances)));
                }
                self.hindrance(instances, about).map(Err)
            }
            Goal::Gone { instances, targets } => {
                if instances.iter().all(|name| self.is_gone(name)) {
                    return Some(Ok(self.outcome(instances)));
                }
                let wanted_again = targets.iter().find(|name| {
                    self.services
                        .get(name)
                        .is_some_and(|service| service.desired() == Desired::Up)
                })?;
                let text = format!("{wanted_again} was started by another command meanwhile");
                Some(Err(Status::new(Code::Aborted, text)))
            }
        }
    }

    fn is_gone(&self, name: &InstanceName) -> bool {
        let closes =
            |instance: &Instance| instance.stopping.is_some() && self.synced(&instance.home);
        self.instances
            .get(name)
            .is_none_or(|instance| instance.is_gone() && !closes(instance))
    }

    fn is_up(&self, name: &InstanceName) -> bool {
        self.instances.get(name).is_some_and(|instance| {
            let config = self.services.get(name.service()).and_then(Service::config);
            let ended_in_order =
                instance.spent && instance.phase == Phase::Idle && instance.is_gone();
            let serves = !config.is_some_and(|config| config.oneshot)
                && instance.phase == Phase::Ready
                && !instance.bouncing()
                && !instance.rolling();
            instance.completed || ended_in_order || serves
        })
    }

    /// Why it will not come up by itself, or not soon.
    fn hindrance(
        &self,
        instances: &[InstanceName],
        about: &BTreeSet<ServiceName>,
    ) -> Option<Status> {
        let mut before = None;
        for name in instances {
            // Replicas stand side by side.
            if before.replace(name.service()) == Some(name.service()) {
                continue;
            }
            let Some(service) = self.services.get(name.service()) else {
                let text = format!("{name} has gone from the configuration meanwhile");
                return Some(Status::new(Code::Aborted, text));
            };
            if service.desired() == Desired::Down {
                let text = format!(
                    "{} was stopped by another command meanwhile",
                    name.service()
                );
                return Some(Status::new(Code::Aborted, text));
            }
            if !service.wanted {
                let missing = self.missing(service).join(", ");
                let text = format!("{name} waits for {missing}, which was stopped meanwhile");
                return Some(Status::new(Code::Aborted, text));
            }
        }
        let own = instances
            .iter()
            .filter(|name| !about.contains(name.service()))
            .filter_map(|name| self.instances.get(name));
        let about = about.iter().flat_map(|service| self.instances_of(service));
        about
            .chain(own)
            .filter(|instance| !instance.surplus && !instance.is_running())
            .find_map(|instance| self.obstacle(instance))
    }

    pub(super) fn obstacle(&self, instance: &Instance) -> Option<Status> {
        let name = &instance.name;
        match &instance.phase {
            Phase::CircuitOpen => Some(circuit_open(instance)),
            Phase::GaveUp => {
                let last = instance
                    .last_exit
                    .as_ref()
                    .map(|exit| exit.status.to_string());
                let last = instance.last_error.clone().or(last).unwrap_or_default();
                let text = format!("{name} failed and is not restarted by its policy: {last}");
                Some(Status::new(Code::Aborted, text))
            }
            Phase::Refused { .. } => instance.refusal(),
            Phase::BackingOff { .. } if instance.start_failed => {
                let error = instance.last_error.as_deref().unwrap_or("no reason told");
                let text = format!(
                    "{name} could not be started: {error}; it is tried again by its policy"
                );
                Some(Status::new(Code::Aborted, text))
            }
            _ => None,
        }
    }

    fn outcome(&self, instances: &[InstanceName]) -> Outcome {
        instances
            .iter()
            .filter_map(|name| self.status(name))
            .collect()
    }

    /// What a command that ran out of time was waiting for.
    fn too_late(&self, goal: &Goal) -> Status {
        let instances = match goal {
            Goal::Up { instances, .. } | Goal::Gone { instances, .. } => instances,
        };
        let open: Vec<String> = instances
            .iter()
            .filter(|name| match goal {
                Goal::Up { .. } => !self.is_up(name),
                Goal::Gone { .. } => !self.is_gone(name),
            })
            .filter_map(|name| Some((self.instances.get(name)?, self.status(name)?)))
            .map(
                |(instance, status)| match instance.rolling() && !instance.bouncing() {
                    true => format!("{}: waits for its turn", status.instance),
                    false => format!("{}: {}", status.instance, describe(&status)),
                },
            )
            .collect();
        let more = match open.len().saturating_sub(MOST_NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let named: Vec<_> = open.into_iter().take(MOST_NAMED).collect();
        let text = format!("not done in time, it goes on: {}{more}", named.join("; "));
        Status::new(Code::DeadlineExceeded, text)
    }
}
