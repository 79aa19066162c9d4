//! An operator's commands.
//!
//! - `start` lifts the wish of the services and of all they require, and is
//!   answered when they are ready (one-shots: completed). One that runs or is
//!   through is left as it is. An open circuit is refused: `reset` closes it.
//! - `stop` stops the services, but what requires them first. Those dependents
//!   keep their own wish: they wait, and return when the service is started again.
//!   A one-shot that was through is not any more, failures are forgotten and an
//!   open circuit is closed: whatever starts it next is an operator's word too.
//! - `restart` stops and starts the services, and around them what requires
//!   them and runs. A one-shot runs again. A service of several replicas that
//!   requires nothing that ends with it is restarted one replica after the other
//!   (`roll.rs`): it is there all the time, and what requires it goes on.
//! - `reset` closes circuits, forgets failures, and starts what should run.
//!
//! A wish is written to the disk before anything is done about it. "All" are
//! the services of the configuration; for `start` and `restart` only those that
//! are started with the system or were started by an operator.

use std::collections::BTreeSet;
use std::time::Duration;

use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{Circuit, Desired, Target};

use super::Core;
use super::deps::{Setup, failed};
use super::end::exit_words;
use super::instance::{Grant, Instance};
use super::io::{Action, Operator, Ticket};
use super::tickets::{Goal, Pending, Waiting};

/// Most commands that wait for their answer at one time. Each is held by a
/// client that waits; more than this is a client gone wild, and is refused.
const MOST_TICKETS: usize = 1024;

/// Names told to somebody who asked for one that does not exist.
const MOST_NAMES: usize = 10;

impl Core {
    pub(super) fn command(&mut self, ticket: Ticket, deadline: Duration, command: Operator) {
        let begun = if self.tickets.len() >= MOST_TICKETS {
            let text = format!("{MOST_TICKETS} commands wait for their answers already");
            Err(Status::new(Code::ResourceExhausted, text))
        } else {
            self.begin(&command)
        };
        match begun {
            Ok(goal) => {
                self.alarm = true;
                self.tickets.insert(ticket, Pending { goal, deadline });
            }
            Err(status) => self.actions.push(Action::Answer {
                ticket,
                result: Err(status),
            }),
        }
    }

    /// Does what a command asks for, once, and tells what it waits for.
    fn begin(&mut self, command: &Operator) -> Result<Goal, Status> {
        if self.is_repeated(command) {
            return self.goal_of(command);
        }
        let goal = match command {
            Operator::Start(target) => self.start(target),
            Operator::Stop { target, transient } => self.stop_services(target, *transient),
            Operator::Restart(target) => self.restart(target),
            Operator::Reset(target) => self.reset(target),
        }?;
        self.remember(command);
        Ok(goal)
    }

    /// What a command waits for that has taken effect in an earlier life.
    fn goal_of(&self, command: &Operator) -> Result<Goal, Status> {
        match command {
            Operator::Stop { target, .. } => {
                let targets = self.resolve(target, false)?;
                Ok(self.gone(targets))
            }
            Operator::Start(target) => {
                let targets = self.resolve(target, true)?;
                Ok(self.up(&targets, Vec::new()))
            }
            Operator::Reset(target) => {
                let targets = self.resolve(target, false)?;
                Ok(self.up(&self.runnable(targets), Vec::new()))
            }
            Operator::Restart(target) => {
                let targets = self.resolve(target, true)?;
                let around = self.with_dependents(&targets);
                let bouncing = around
                    .iter()
                    .flat_map(|service| self.instances_of(service))
                    .filter(|instance| {
                        instance.bouncing() && !targets.contains(instance.name.service())
                    })
                    .map(|instance| instance.name.clone());
                Ok(self.up(&targets, bouncing.collect()))
            }
        }
    }

    /// These services and these instances are there.
    fn up(&self, targets: &[ServiceName], more: Vec<InstanceName>) -> Goal {
        let mut instances = self.names_of(targets);
        instances.extend(more);
        let number = |name: &ServiceName| Some((name.clone(), self.rolls.number(name)?));
        Goal::Up {
            instances: Waiting::of(instances),
            about: self.with_requirements(targets),
            rolls: targets.iter().filter_map(number).collect(),
        }
    }

    /// Nothing of these services and of what requires them is left.
    fn gone(&self, targets: Vec<ServiceName>) -> Goal {
        let instances = self
            .with_dependents(&targets)
            .iter()
            .flat_map(|name| self.members.get(name))
            .flatten()
            .cloned()
            .collect();
        Goal::Gone {
            instances: Waiting::of(instances),
            targets,
        }
    }

    fn runnable(&self, services: Vec<ServiceName>) -> Vec<ServiceName> {
        let runnable = |name: &ServiceName| {
            let service = self.services.get(name);
            service.is_some_and(|service| service.wanted && service.config().is_some())
        };
        services.into_iter().filter(runnable).collect()
    }

    fn start(&mut self, target: &Target) -> Result<Goal, Status> {
        let targets = self.resolve(target, true)?;
        let about = self.with_requirements(&targets);
        self.check_startable(&about)?;
        self.want(&about);
        for service in &about {
            let explicit = targets.contains(service);
            self.each(service, |instance| {
                if instance.is_gone() {
                    forget_failures(instance);
                    instance.spent = false;
                    if explicit {
                        instance.restarts.reset();
                    }
                }
            });
        }
        self.rewish(&about);
        Ok(Goal::Up {
            instances: Waiting::of(self.names_of(&targets)),
            about,
            rolls: Vec::new(),
        })
    }

    fn stop_services(&mut self, target: &Target, transient: bool) -> Result<Goal, Status> {
        let targets = self.resolve(target, false)?;
        for name in &targets {
            self.rolls.forget(name);
            if let Some(service) = self.services.get_mut(name) {
                if transient {
                    service.paused = true;
                } else {
                    service.wish = Some(Desired::Down);
                    service.paused = false;
                    self.save_service(name, true);
                }
            }
            self.each(name, |instance| {
                instance.completed = false;
                instance.spent = false;
                // What starts it next is an operator's word too: it begins anew.
                instance.restarts.reset();
                instance.why = Some("stopped by an operator".to_owned());
            });
        }
        self.rewish(&targets);
        Ok(self.gone(targets))
    }

    fn restart(&mut self, target: &Target) -> Result<Goal, Status> {
        let targets = self.resolve(target, true)?;
        let required = self.with_requirements(&targets);
        self.check_startable(&required)?;
        self.want(&required);
        self.rewish(&required);
        let single: Vec<_> = targets
            .iter()
            .filter(|name| !self.can_roll(name))
            .cloned()
            .collect();
        // What requires something that goes down whole goes down with it.
        let whole = self.with_dependents(&single);
        let mut more = Vec::new();
        for service in &whole {
            self.cancel_roll(service);
            let explicit = targets.contains(service);
            let bounced = self.bounce(service, explicit);
            if !explicit {
                more.extend(bounced);
            }
        }
        for service in targets.iter().filter(|name| !whole.contains(*name)) {
            self.each(service, begin_anew);
            self.begin_roll(service);
        }
        let concerned = self.with_all_above(whole.iter().chain(&targets));
        self.touch_around(&concerned);
        Ok(self.up(&targets, more))
    }

    /// Restarts what runs of a service, all at once. Tells whom that concerns.
    fn bounce(&mut self, service: &ServiceName, explicit: bool) -> Vec<InstanceName> {
        let wanted = self
            .services
            .get(service)
            .is_some_and(|service| service.wanted);
        let mut bounced = Vec::new();
        self.each(service, |instance| {
            if let (Some(current), true) = (instance.current(), wanted) {
                instance.bounce = instance.generation.max(current);
                let words = if explicit {
                    "restarted by an operator"
                } else {
                    "restarted with what it requires"
                };
                instance.why = Some(words.to_owned());
                bounced.push(instance.name.clone());
            }
            // A migration of a store that begins anew.
            if !explicit && instance.completed && wanted {
                instance.completed = false;
                instance.why = Some("runs again with what it requires".to_owned());
                bounced.push(instance.name.clone());
            }
            if explicit {
                begin_anew(instance);
            }
        });
        bounced
    }

    fn reset(&mut self, target: &Target) -> Result<Goal, Status> {
        let targets = self.resolve(target, false)?;
        for service in &targets {
            self.each(service, |instance| {
                instance.spent &= !failed(instance);
                instance.restarts.reset();
                forget_failures(instance);
                instance.why = Some("reset by an operator".to_owned());
            });
        }
        self.rewish(&targets);
        Ok(self.up(&self.runnable(targets), Vec::new()))
    }

    /// The services meant, or who is not known.
    fn resolve(&self, target: &Target, to_start: bool) -> Result<Vec<ServiceName>, Status> {
        match target {
            Target::All => {
                let meant = |name: &&ServiceName| match self.services.get(*name) {
                    Some(service) if to_start => {
                        let up =
                            service.default == Desired::Up || service.wish == Some(Desired::Up);
                        service.config().is_some() && up
                    }
                    Some(service) => !matches!(service.setup, Setup::Left { foreign: true, .. }),
                    None => false,
                };
                Ok(self.services.keys().filter(meant).cloned().collect())
            }
            Target::Services(names) => {
                let unknown: Vec<Status> = names
                    .iter()
                    .filter(|name| !self.services.contains_key(name))
                    .map(|name| self.unknown(name))
                    .collect();
                match unknown.first() {
                    Some(first) => {
                        let code = first.code;
                        let all: Vec<String> =
                            unknown.into_iter().map(|status| status.message).collect();
                        Err(Status::new(code, all.join("; ")))
                    }
                    None => Ok(names
                        .iter()
                        .cloned()
                        .collect::<BTreeSet<_>>()
                        .into_iter()
                        .collect()),
                }
            }
        }
    }

    /// There is no such service, and which there are.
    pub fn unknown(&self, name: &ServiceName) -> Status {
        let mut near: Vec<(usize, &str)> = self
            .services
            .keys()
            .map(|known| {
                (
                    strsim::damerau_levenshtein(known.as_str(), name.as_str()),
                    known.as_str(),
                )
            })
            .filter(|(distance, _)| *distance <= 2.max(name.as_str().len() / 3))
            .collect();
        near.sort_unstable();
        let list = |names: Vec<&str>| names.join(", ");
        let hint = if !near.is_empty() {
            format!(
                "did you mean {}?",
                list(near.into_iter().take(3).map(|(_, name)| name).collect())
            )
        } else if self.services.is_empty() {
            "there are no services: start the supervisor with -c FILE".to_owned()
        } else {
            let more = if self.services.len() > MOST_NAMES {
                " …"
            } else {
                ""
            };
            let known = self
                .services
                .keys()
                .take(MOST_NAMES)
                .map(ServiceName::as_str)
                .collect();
            format!("there are {}{more}", list(known))
        };
        Status::new(Code::NotFound, format!("no service {name}: {hint}"))
    }

    fn check_startable(&self, services: &BTreeSet<ServiceName>) -> Result<(), Status> {
        for name in services {
            let configured = self
                .services
                .get(name)
                .is_some_and(|service| service.config().is_some());
            if !configured {
                let text = format!(
                    "{name} is not in the configuration of the supervisor: add it, or start the supervisor with -c FILE"
                );
                return Err(Status::new(Code::FailedPrecondition, text));
            }
            let open = self
                .instances_of(name)
                .find(|i| !i.surplus && i.restarts.circuit == Circuit::Open);
            if let Some(instance) = open {
                return Err(circuit_open(instance));
            }
        }
        Ok(())
    }

    /// Sets the wish of services that are not wanted, durably.
    fn want(&mut self, services: &BTreeSet<ServiceName>) {
        for name in services {
            let Some(service) = self.services.get_mut(name) else {
                continue;
            };
            service.paused = false;
            if service.desired() != Desired::Up {
                service.wish = Some(Desired::Up);
                self.save_service(name, true);
            }
        }
    }

    fn names_of(&self, services: &[ServiceName]) -> Vec<InstanceName> {
        let instances = services.iter().flat_map(|name| self.instances_of(name));
        instances
            .filter(|instance| !instance.surplus)
            .map(|instance| instance.name.clone())
            .collect()
    }

    fn each(&mut self, service: &ServiceName, mut change: impl FnMut(&mut Instance)) {
        for name in self.members.get(service).into_iter().flatten() {
            if let Some(instance) = self.instances.get_mut(name) {
                change(instance);
            }
        }
    }
}

/// What is refused because of an open circuit, and what to do.
pub(super) fn circuit_open(instance: &Instance) -> Status {
    let last = match (&instance.last_exit, &instance.last_error) {
        (_, Some(error)) => format!(" (last: {error})"),
        (Some(exit), None) => format!(" (last end: {})", exit_words(exit)),
        (None, None) => String::new(),
    };
    let (name, service) = (&instance.name, instance.name.service());
    let text = format!(
        "the circuit of {name} is open{last}: find out why it fails, then `blackhole reset {service}`"
    );
    Status::new(Code::FailedPrecondition, text)
}

/// It runs again, whatever it has been through.
fn begin_anew(instance: &mut Instance) {
    instance.completed = false;
    instance.spent = false;
    instance.restarts.reset();
    forget_failures(instance);
}

/// What would keep it from being started at once.
fn forget_failures(instance: &mut Instance) {
    instance.restarts.due = None;
    instance.restarts.slot = false;
    instance.start_failed = false;
    instance.last_error = None;
    instance.refused = None;
    instance.retry.clear();
    if matches!(instance.grant, Grant::Refused(_) | Grant::Unavailable(_)) {
        instance.grant = Grant::Unasked;
    }
}
