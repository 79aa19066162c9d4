//! The supervisor under test: its lives, its actions, and what is checked of them.

use std::time::Duration;

use blackhole_bus_schema::config::Condition::{Completed, Ready, Started};
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::SpawnSpec;
use blackhole_bus_schema::supervision::Phase;
use blackhole_supervisor::core::{Action, Core, Input, ManagerId, Random, Ticket};
use uuid::Uuid;

use super::plan::GRACE_MS;
use super::world::{Asked, Begun, Event, Request, World};

fn whom(manager: &ManagerId) -> usize {
    usize::from(manager.is_some())
}

impl World {
    pub(crate) fn supervisor_returns(&mut self) {
        self.life += 1;
        self.link = Default::default();
        let seed = self.random.number();
        self.core = Some(Core::new(
            Some(&self.config),
            &self.disk,
            Random::new(seed),
            self.clock(),
        ));
        self.tell(Input::Tick);
        self.believed.clear();
        self.committed = self
            .disk
            .instances
            .iter()
            .map(|row| (row.instance.clone(), row.bounce))
            .collect();
        if self.controller {
            self.tell(Input::ControllerUp);
        }
        if self.bridge {
            self.tell_of_bridge();
        }
        self.at(self.now + 500, Event::Listens { life: self.life });
        // Clients notice and ask again, under the same id.
        for (_, asked) in std::mem::take(&mut self.open) {
            if self.core.is_some() {
                self.ask(asked);
            }
        }
    }

    pub(crate) fn supervisor_dies(&mut self, back: u64) {
        self.core = None;
        self.die_after = None;
        // What it sent may still arrive, but nobody waits for the answers.
        for call in self.calls.values_mut() {
            call.open = false;
        }
        self.at(self.now + back, Event::SupervisorReturns);
    }

    /// An operator's command, for the first time or again.
    pub(crate) fn ask(&mut self, asked: Asked) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.open.insert(ticket, asked.clone());
        let input = Input::Command {
            ticket,
            deadline: self.clock().mono + Duration::from_secs(20),
            command: asked.command,
        };
        self.tell_caused(input, Some(asked.id));
    }

    pub(crate) fn tell(&mut self, input: Input) {
        self.tell_caused(input, None);
    }

    fn tell_caused(&mut self, input: Input, cause: Option<Uuid>) {
        let now = self.clock();
        let Some(core) = &mut self.core else {
            return;
        };
        let trace = self.trace && !matches!(input, Input::Tick);
        let told = trace.then(|| format!("{input:?}"));
        // Several inputs are taken in together now and then.
        let alone = matches!(input, Input::Tick) || !self.inputs_told.is_multiple_of(3);
        self.inputs_told += 1;
        let mut actions = core.take(now, input, cause);
        if alone {
            actions.extend(core.settle(now));
        }
        if let Some(told) = told {
            eprintln!("{:>7}   tell {told}\n        -> {actions:?}", self.now);
        }
        for action in actions {
            if let Some((left, back)) = &mut self.die_after {
                if *left == 0 {
                    let back = *back;
                    return self.supervisor_dies(back);
                }
                *left -= 1;
            }
            self.act(action);
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Persist { change, .. } => self.disk.apply(change),
            Action::Prepare { instance, .. } => {
                self.call(0, Request::Prepare(instance), 5000);
            }
            Action::Release { instance } => {
                self.call(0, Request::Release(instance), 5000);
            }
            Action::Spawn(manager, spec) => {
                self.check_dependencies(&spec);
                self.check_home(&manager, &spec);
                self.call(whom(&manager), Request::Spawn(spec), 5000);
            }
            Action::Permit {
                manager,
                instance,
                generation,
                permit,
            } => {
                let request = Request::Permit {
                    instance,
                    generation,
                    permit: permit.map(|permit| permit.generation),
                };
                self.call(whom(&manager), request, 5000);
            }
            Action::Stop {
                manager,
                instance,
                generation,
                unhealthy,
                grace_ms,
                ..
            } => {
                if !unhealthy && !self.is_called_back(&manager, &instance, generation) {
                    self.check_dependents(&instance);
                    self.check_replicas(&instance, generation);
                    self.check_drain(&instance, generation);
                }
                self.call(
                    whom(&manager),
                    Request::Stop {
                        instance,
                        generation,
                        unhealthy,
                    },
                    grace_ms + 5000,
                );
            }
            Action::Forget { manager, instance } => {
                self.call(whom(&manager), Request::Forget(instance), 5000);
            }
            Action::Drain {
                instance,
                generation,
                within_ms,
            } => {
                self.check_dependents(&instance);
                self.check_replicas(&instance, generation);
                let begun = Begun {
                    at: self.now,
                    links: self.links,
                    life: self.life,
                };
                let before = self.drains.insert((instance.clone(), generation), begun);
                assert!(
                    before.is_none_or(|before| before.life != self.life),
                    "{instance} is drained twice"
                );
                self.call(
                    0,
                    Request::Drain {
                        instance,
                        generation,
                        within: within_ms,
                    },
                    within_ms + 5000,
                );
            }
            Action::Publish { status, .. } => {
                self.believed.insert(status.instance.clone(), status.phase);
            }
            Action::Answer { ticket, result } => {
                let command = self.open.remove(&ticket);
                assert!(
                    command.is_some(),
                    "{ticket:?} answered twice, or never asked: {result:?}"
                );
                self.answered += 1;
            }
        }
    }

    /// Nothing is started at one manager while it lives, or may come to live, at the
    /// other: as far as a supervisor can know, which is not of what a dead one sent, nor
    /// of what a shim has just started by itself.
    fn check_home(&self, manager: &ManagerId, spec: &SpawnSpec) {
        let of = whom(manager);
        let process = self.host.processes.get(&spec.instance);
        let unheard = |process: &super::host::Process| {
            process.orphan || (process.by_permit && process.generation == spec.generation)
        };
        assert!(
            process.is_none_or(|process| process.of == of || unheard(process)),
            "{} is started at {manager:?} and lives elsewhere: {process:?}",
            spec.instance
        );
        let row = self
            .disk
            .instances
            .iter()
            .find(|row| row.instance == spec.instance);
        assert_eq!(
            row.map(|row| &row.manager),
            Some(manager),
            "whose {} is is written down first",
            spec.instance
        );
    }

    /// A drain delays a stop by half of the grace at most, where nothing else does.
    fn check_drain(&mut self, instance: &InstanceName, generation: Generation) {
        let Some(begun) = self.drains.get(&(instance.clone(), generation)) else {
            return;
        };
        // A manager that is away, or a new supervisor, is another matter.
        if begun.links == self.links && begun.life == self.life {
            let took = self.now - begun.at;
            let first = self.drained.insert((instance.clone(), generation));
            assert!(
                !first || took <= GRACE_MS / 2 + 1,
                "drained for {took} ms: {instance}"
            );
        }
    }

    /// Of a service that was only ever restarted one replica after the other, a
    /// replica that serves is taken away only while all others do.
    fn check_replicas(&mut self, instance: &InstanceName, generation: Generation) {
        let service = instance.service();
        let first = self.begun.insert((instance.clone(), generation));
        let decided_before = self.committed.get(instance) >= Some(&generation);
        if !first || decided_before || self.whole.contains(service) {
            return;
        }
        let served = self.believed.get(instance) == Some(&Phase::Ready);
        for (other, phase) in &self.believed {
            if other.service() == service && other != instance {
                assert!(
                    *phase == Phase::Ready || !served,
                    "{instance} is taken away while {other} is {phase:?}"
                );
                assert!(
                    *phase != Phase::Stopping || self.committed.contains_key(other),
                    "{instance} is taken away with {other}"
                );
            }
        }
    }

    /// A spawn that may never have arrived is made impossible, since another manager is
    /// to start it now, or since another one had started the same by permit.
    fn is_called_back(
        &self,
        manager: &ManagerId,
        instance: &InstanceName,
        generation: Generation,
    ) -> bool {
        let Some(core) = &self.core else { return false };
        let nobody = core
            .status(instance)
            .is_some_and(|status| status.pid.is_none());
        let rows = &self.disk.instances;
        let row = rows.iter().find(|row| row.instance == *instance);
        let elsewhere = row.is_some_and(|row| row.manager != *manager && row.ended >= generation);
        let moves = self.config.services[instance.service()].manager != *manager;
        nobody && (moves || elsewhere)
    }

    /// Nothing is stopped for an operator while what requires it is known to live.
    /// Not so for a replica: its service is still there.
    fn check_dependents(&self, instance: &InstanceName) {
        let Some(core) = &self.core else { return };
        if self.config.services[instance.service()].replicas > 1 {
            return;
        }
        for status in core.statuses() {
            let on = &self.config.services[&status.service].depends_on;
            let required = on.get(instance.service()).is_some_and(|on| on.required);
            assert!(
                !required || status.pid.is_none(),
                "{instance} is stopped before {status:#?}"
            );
        }
    }

    /// No start before what is required holds, as far as anybody could know:
    /// the dependency was truly ready (or through) in the very run that the
    /// supervisor now believes to be so.
    pub(crate) fn check_dependencies(&self, spec: &SpawnSpec) {
        let Some(core) = &self.core else { return };
        let service = &self.config.services[spec.instance.service()];
        for (on, dependency) in service.depends_on.iter().filter(|(_, on)| on.required) {
            for status in core.statuses().filter(|status| status.service == *on) {
                let through = self.host.was_through.contains(&status.instance);
                let started = status.state.is_some();
                let ready = self
                    .host
                    .was_ready
                    .get(&status.instance)
                    .is_some_and(|ready| ready.contains(&status.generation));
                let holds = match dependency.condition {
                    Started => started,
                    Ready => ready || through,
                    Completed => through,
                };
                assert!(
                    holds,
                    "{} is started before {dependency:?} of {status:#?}",
                    spec.instance
                );
            }
        }
    }
}
