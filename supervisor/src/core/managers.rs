//! Whose an instance is, where there are several process-managers.
//!
//! The configuration says which manager starts a service. An instance that lives,
//! or may, belongs to the one that was asked to start it (its home), whatever the
//! configuration says by now: only that one is asked to stop it, and as long as it
//! is silent nothing is started in its place. When the end has been told, or when
//! the home has confirmed that it never began and never will, the next spawn goes
//! to the manager of the configuration. The home is written down with the
//! generation, before the spawn is sent.
//!
//! An end may have been followed by a restart by permit that has not been heard of
//! yet. Where the spawn that is decided then goes to another manager, that one
//! refuses it: the shim's lock tells it. What lives is met again when its own
//! manager tells of it.

use std::collections::{BTreeMap, BTreeSet};

use blackhole_bus_schema::names::{Component, Generation, ServiceName};
use blackhole_bus_schema::process::{InstanceRecord, StateName};

use super::Core;
use super::deps::Service;
use super::end::End;
use super::instance::{Instance, Life, Source};
use super::io::{Action, ManagerId, Now};

/// Instances that a note names.
const MOST_NAMED: usize = 5;

impl Core {
    /// Whether a manager is there and all its records are known.
    pub(super) fn synced(&self, manager: &ManagerId) -> bool {
        self.managers
            .get(manager)
            .is_some_and(|manager| manager.synced)
    }

    /// Whether that holds of all managers that a service has to do with.
    pub(super) fn all_synced(&self, service: &ServiceName) -> bool {
        let config = self.services.get(service).and_then(Service::config);
        config.is_none_or(|config| self.synced(&config.manager))
            && self
                .instances_of(service)
                .all(|instance| self.synced(&instance.home))
    }

    /// The instances of a manager.
    pub(super) fn homed(&mut self, manager: &ManagerId) -> impl Iterator<Item = &mut Instance> {
        self.instances
            .values_mut()
            .filter(move |instance| instance.home == *manager)
    }

    /// Whether what a manager tells of an instance is to be believed: it is that
    /// one's, or nobody's. One that lives at another manager than it should is that
    /// one's from now on: where it lives is not a matter of opinion.
    pub(super) fn concerns(
        &mut self,
        now: Now,
        manager: &ManagerId,
        record: &InstanceRecord,
    ) -> bool {
        let Some(instance) = self.instances.get_mut(&record.instance) else {
            return true;
        };
        if instance.home == *manager {
            return true;
        }
        if !record.state.is_live() {
            let lives = matches!(instance.life(), Life::Live(..));
            let lives_or_may = !instance.is_gone();
            let last = instance.generation.max(instance.ended);
            if !lives && record.generation >= last && instance.ended < record.generation {
                // Of an earlier life, unknown here, or by a permit while its manager was
                // away: generations go on from there.
                let decided = instance.generation == record.generation;
                instance.remember_sent();
                instance.end_told(manager, record.generation);
                instance.generation = record.generation;
                self.dirty.insert(record.instance.clone());
                match End::of(&record.state) {
                    // The restart that was decided here for its home: it has had it.
                    Some(end) if decided && lives_or_may => {
                        self.ended(now, &record.instance, record.generation, end);
                        return false;
                    }
                    _ => instance.ended = record.generation,
                }
            }
            if let Life::Live(StateName::Running, lives) = instance.life()
                && lives > record.generation
            {
                // It has moved on: nothing but the memory of it is forgotten there.
                self.actions.push(Action::Forget {
                    manager: manager.clone(),
                    instance: record.instance.clone(),
                });
            }
            return false;
        }
        let told = instance.ended_at(manager);
        let known = match instance.life() {
            Life::Live(_, known) => known.max(told),
            Life::Sent(_) | Life::None => told,
        };
        if record.generation <= known {
            return false;
        }
        instance.remember_sent();
        if record.generation <= instance.ended {
            // It was begun here when the same had ended at another one: another life, with
            // an end of its own.
            instance.ended = Generation(record.generation.0.saturating_sub(1));
        }
        instance.home = manager.clone();
        instance.left = None;
        instance.record = None;
        instance.source = Source::Stream;
        instance.stopping = None;
        instance.permit = None;
        instance.why = Some(format!("lives at {}", component(manager)));
        self.dirty.insert(record.instance.clone());
        true
    }

    /// Says which managers are missing, and what of.
    pub(super) fn note_managers(&self, notes: &mut Vec<String>) {
        let mut needed: BTreeMap<&ManagerId, Vec<String>> = BTreeMap::new();
        for manager in &self.declared {
            needed.entry(manager).or_default();
        }
        for instance in self.instances.values().filter(|one| !one.is_gone()) {
            let names = needed.entry(&instance.home).or_default();
            // This is asked after each input: names only where they are told.
            if !self.synced(&instance.home) {
                names.push(instance.name.to_string());
            }
        }
        let several = needed.len() > 1;
        for (manager, names) in needed {
            if self.synced(manager) {
                continue;
            }
            let who = component(manager);
            let more = names.len().saturating_sub(MOST_NAMED);
            let mut whom = names
                .into_iter()
                .take(MOST_NAMED)
                .collect::<Vec<_>>()
                .join(", ");
            if more > 0 {
                whom.push_str(&format!(" and {more} more"));
            }
            notes.push(match manager {
                Some(name) if !self.declared.contains(manager) => format!(
                    "waits for {who}, which has {whom} and is in no configuration: nothing is \
                     started elsewhere; `blackhole up` runs it, or run blackhole-process-manager \
                     --name {name}, or add it"
                ),
                _ if several => {
                    format!("waits for {who}: nothing of it can be started or stopped")
                }
                _ => format!("waits for {who}: nothing can be started or stopped"),
            });
        }
    }

    /// The managers that instances belong to or are to be started by.
    pub fn managers(&self) -> BTreeSet<ManagerId> {
        let homes = self.instances.values().map(|one| one.home.clone());
        self.declared.iter().cloned().chain(homes).collect()
    }
}

impl Instance {
    /// A manager has told the end of a spawn.
    pub(super) fn end_told(&mut self, manager: &ManagerId, generation: Generation) {
        if generation >= self.told_end {
            self.told_end = generation;
            self.told_by = manager.clone();
        }
    }

    /// The latest spawn that cannot live at a manager any more. Where another one has told
    /// the end, the same generation may have been begun here afterwards: a permit was used
    /// there while it was on its way.
    pub(super) fn ended_at(&self, manager: &ManagerId) -> Generation {
        match self.told_by == *manager {
            true => self.told_end,
            false => Generation(self.told_end.0.saturating_sub(1)),
        }
    }

    /// Its next spawn goes to another manager than the one before.
    pub(super) fn moves(&mut self, to: &ManagerId) {
        let from = std::mem::replace(&mut self.home, to.clone());
        if self.generation.0 > 0 {
            self.why = Some(format!(
                "moves from {} to {}",
                component(&from),
                component(to)
            ));
            self.left = Some(from);
        }
        self.source = Source::Stream;
    }
}

fn component(manager: &ManagerId) -> Component {
    Component::ProcessManager(manager.clone())
}
