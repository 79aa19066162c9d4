//! The supervisor under test: its lives, its actions, and what is checked of them.

use blackhole_bus_schema::config::Condition::{Completed, Ready, Started};
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::SpawnSpec;
use blackhole_supervisor::core::{Action, Core, Input, Random};

use super::world::{Event, Link, Request, World};

impl World {
    pub(crate) fn supervisor_returns(&mut self) {
        self.life += 1;
        self.link = Link::default();
        let seed = self.random.number();
        self.core = Some(Core::new(
            Some(&self.config),
            &self.disk,
            Random::new(seed),
            self.clock(),
        ));
        self.tell(Input::Tick);
        if self.controller {
            self.tell(Input::ControllerUp);
        }
        self.at(self.now + 500, Event::Listens { life: self.life });
    }

    pub(crate) fn supervisor_dies(&mut self, back: u64) {
        self.core = None;
        self.die_after = None;
        // Whoever waits for an answer notices and asks again; not modelled.
        self.open.clear();
        // What it sent may still arrive, but nobody waits for the answers.
        for call in self.calls.values_mut() {
            call.open = false;
        }
        self.at(self.now + back, Event::SupervisorReturns);
    }

    pub(crate) fn tell(&mut self, input: Input) {
        let now = self.clock();
        let Some(core) = &mut self.core else {
            return;
        };
        let trace = self.trace && !matches!(input, Input::Tick);
        let told = trace.then(|| format!("{input:?}"));
        let actions = core.handle(now, input, None);
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
                self.call(Request::Prepare(instance), 5000);
            }
            Action::Release { instance } => {
                self.call(Request::Release(instance), 5000);
            }
            Action::Spawn(spec) => {
                self.check_dependencies(&spec);
                self.call(Request::Spawn(spec), 5000);
            }
            Action::Stop {
                instance,
                generation,
                unhealthy,
                grace_ms,
            } => {
                if !unhealthy {
                    self.check_dependents(&instance);
                }
                self.call(
                    Request::Stop {
                        instance,
                        generation,
                        unhealthy,
                    },
                    grace_ms + 5000,
                );
            }
            Action::Forget { instance } => {
                self.call(Request::Forget(instance), 5000);
            }
            Action::Publish { .. } => {}
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

    /// Nothing is stopped for an operator while what requires it is known to live.
    fn check_dependents(&self, instance: &InstanceName) {
        let Some(core) = &self.core else { return };
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
