//! Calls that are finished before an instance is stopped.
//!
//! Where an operator has something stopped or restarted, the bridge is asked
//! first to send the instance no more calls and to tell when those under way
//! are answered. That takes at most half of the grace, counts as part of it,
//! and is left out where there is nobody to ask: the bridge is away, the
//! instance has not registered, or it does not run. A drain cannot be taken
//! back (the instance was told to finish), so that one that has begun always
//! leads to a stop, also when an operator starts the service meanwhile: it is
//! then started anew. Stops for health, and kills, do not wait.

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::registry::{Drained, Registration, RegistryChanged};
use blackhole_bus_schema::supervision::Phase;

use super::Core;
use super::deps::Service;
use super::instance::{Instance, Life};
use super::io::{Action, Now, RequestFailure};
use super::step::Step;

/// Longest drain of an instance whose grace is not known.
const UNKNOWN: Duration = Duration::from_secs(5);

/// What is known of the bridge.
#[derive(Debug, Clone, Default)]
pub(super) struct Bridge {
    up: bool,
    /// Which spawn of an instance answers calls.
    registered: BTreeMap<InstanceName, Generation>,
}

impl Bridge {
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Whether the process that runs answers calls.
    pub(super) fn knows(&self, instance: &Instance) -> bool {
        let current = instance.current();
        current.is_some() && self.registered.get(&instance.name) == current.as_ref()
    }
}

/// The drain of one spawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drain {
    generation: Generation,
    begun: Duration,
    /// No longer than this.
    until: Duration,
    /// Nothing is left to wait for.
    over: bool,
}

impl Core {
    pub(super) fn bridge_up(&mut self) {
        // Who is registered is told by the snapshot.
        self.bridge.up = true;
        self.bridge.registered.clear();
    }

    pub(super) fn bridge_down(&mut self) {
        self.bridge = Bridge::default();
        self.look_at_drains();
    }

    pub(super) fn registry_snapshot(&mut self, all: Vec<Registration>) {
        self.bridge.up = true;
        self.bridge.registered = all
            .into_iter()
            .map(|one| (one.instance, one.generation))
            .collect();
        self.look_at_drains();
    }

    pub(super) fn registry_changed(&mut self, changed: RegistryChanged) {
        let RegistryChanged {
            instance,
            registration,
        } = changed;
        match registration {
            Some(one) => self
                .bridge
                .registered
                .insert(instance.clone(), one.generation),
            None => self.bridge.registered.remove(&instance),
        };
        if self
            .instances
            .get(&instance)
            .is_some_and(Instance::draining)
        {
            self.dirty.insert(instance);
        }
    }

    fn look_at_drains(&mut self) {
        let draining = self.instances.values().filter(|one| one.draining());
        self.dirty.extend(draining.map(|one| one.name.clone()));
    }

    pub(super) fn drain_reply(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        _result: &Result<Drained, RequestFailure>,
    ) {
        // Drained, refused or lost: there is nothing more to wait for.
        if let Some(instance) = self.instances.get_mut(name)
            && let Some(drain) = &mut instance.drain
            && drain.generation == generation
        {
            drain.over = true;
            self.dirty.insert(name.clone());
        }
    }

    /// What to do about the calls of an instance that is to be stopped; `None`:
    /// nothing, stop it.
    pub(super) fn decide_drain(
        &self,
        now: Now,
        instance: &Instance,
        generation: Generation,
    ) -> Option<Step> {
        let registered = self.bridge.up
            && self.bridge.registered.get(&instance.name) == Some(&generation)
            && instance.is_running();
        if !registered {
            return None;
        }
        match &instance.drain {
            Some(drain) if drain.generation == generation => {
                let waits = !drain.over && now.mono < drain.until;
                waits.then_some(Step::Rest(Phase::Stopping, Some(drain.until)))
            }
            _ if self.longest_drain(&instance.name) < Duration::from_millis(1) => None,
            _ => Some(Step::Drain(generation)),
        }
    }

    fn longest_drain(&self, name: &InstanceName) -> Duration {
        let config = self.services.get(name.service()).and_then(Service::config);
        config.map_or(UNKNOWN, |config| {
            Duration::from_millis(config.stop.grace_ms / 2)
        })
    }

    pub(super) fn drain(&mut self, now: Now, name: &InstanceName, generation: Generation) {
        let longest = self.longest_drain(name);
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        instance.drain = Some(Drain {
            generation,
            begun: now.mono,
            until: now.mono.saturating_add(longest),
            over: false,
        });
        // There is no way back, and its end is nobody's fault from here on.
        instance.bounce = instance.bounce.max(generation);
        instance.asked = instance.asked.max(generation);
        instance
            .why
            .get_or_insert_with(|| "finishes its calls, to be stopped".to_owned());
        self.save(name, false);
        self.actions.push(Action::Drain {
            instance: name.clone(),
            generation,
            within_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
        });
    }
}

impl Instance {
    /// Whether its calls are being finished.
    pub(super) fn draining(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| {
            let alive = matches!(self.life(), Life::Live(_, alive) if alive == drain.generation);
            alive && !drain.over && self.stopping.is_none()
        })
    }

    /// Whether it was told to finish: there is no way back.
    pub(super) fn drain_begun(&self, generation: Generation) -> bool {
        let drain = self.drain.as_ref();
        drain.is_some_and(|drain| drain.generation == generation)
    }

    /// How long its drain has taken, in milliseconds: at most half of its grace.
    pub(super) fn drained_for(&self, now: Now, generation: Generation) -> Option<u64> {
        let drain = self
            .drain
            .as_ref()
            .filter(|drain| drain.generation == generation)?;
        let took = now.mono.min(drain.until).saturating_sub(drain.begun);
        u64::try_from(took.as_millis()).ok()
    }
}
