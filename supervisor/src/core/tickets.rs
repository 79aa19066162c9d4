//! When an operator's command is answered.

use std::collections::BTreeSet;
use std::time::Duration;

use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{Desired, Outcome, Phase};

use super::Core;
use super::deps::Service;
use super::end::exit_words;
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
        instances: Waiting,
        /// A failure of one of those, or of these that they require, ends it.
        about: BTreeSet<ServiceName>,
        /// The end of one of these rolling restarts before its time, too.
        rolls: Vec<(ServiceName, u64)>,
    },
    /// Nothing of these is left.
    Gone {
        instances: Waiting,
        /// A start of one of these ends it.
        targets: Vec<ServiceName>,
    },
}

/// Instances that all have to come somewhere. That one has not is seen from one of them: a
/// thousand are not looked through after each event.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    all: Vec<InstanceName>,
    /// One that was not there when it was looked for last; 0 at first.
    last: usize,
}

impl Waiting {
    pub(super) fn of(all: Vec<InstanceName>) -> Self {
        Self { all, last: 0 }
    }

    /// Whether all are there.
    fn is_over(&mut self, there: impl Fn(&InstanceName) -> bool) -> bool {
        // Those behind it first: they come in the order of their names, more or less.
        let (before, from) = self.all.split_at(self.last.min(self.all.len()));
        let missing = |(_, name): &(usize, &InstanceName)| !there(name);
        let behind = (self.last..).zip(from).find(missing);
        match behind.or_else(|| (0..).zip(before).find(missing)) {
            Some((index, _)) => self.last = index,
            None => return true,
        }
        false
    }
}

impl Core {
    pub(super) fn look_after_tickets(&mut self, now: Now) {
        let alarm = std::mem::take(&mut self.alarm);
        let mut tickets = std::mem::take(&mut self.tickets);
        tickets.retain(|ticket, pending| {
            let result = self.result(&mut pending.goal, alarm).or_else(|| {
                (pending.deadline <= now.mono).then(|| Err(self.too_late(&pending.goal)))
            });
            let Some(result) = result else {
                return true;
            };
            let ticket = *ticket;
            self.actions.push(Action::Answer { ticket, result });
            false
        });
        self.tickets = tickets;
    }

    /// The answer, when there is one. What stands in the way of a command is looked for
    /// where something has come to (`alarm`).
    fn result(&self, goal: &mut Goal, alarm: bool) -> Option<Result<Outcome, Status>> {
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
                if instances.is_over(|name| self.is_up(name)) && rolls.iter().all(rolled) {
                    return Some(Ok(self.outcome(&instances.all)));
                }
                let hindrance = || self.hindrance(&instances.all, about);
                alarm.then(hindrance).flatten().map(Err)
            }
            Goal::Gone { instances, targets } => {
                if instances.is_over(|name| self.is_gone(name)) {
                    return Some(Ok(self.outcome(&instances.all)));
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
                let last = instance.last_exit.as_ref().map(exit_words);
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
            .all
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
