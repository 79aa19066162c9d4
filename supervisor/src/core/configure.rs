//! What there is to supervise: the configuration, and what earlier runs left.

use std::collections::BTreeSet;

use blackhole_bus_schema::config::{Config, ServiceConfig};
use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::supervision::Desired;

use super::Core;
use super::deps::{Service, Setup};
use super::instance::Instance;
use super::io::{Action, Now};
use super::saved::{Change, Restored, SavedInstance, SavedService};

impl Core {
    pub(super) fn restore(&mut self, config: Option<&Config>, restored: &Restored, now: Now) {
        for row in &restored.services {
            let setup = Setup::Left {
                requires: row.requires.clone(),
                foreign: false,
            };
            self.services
                .insert(row.name.clone(), Service::new(setup, row.wish));
        }
        for row in &restored.instances {
            let service = row.instance.service();
            let config = config.and_then(|config| config.services.get(service));
            let mut instance = Instance::new(row, now, config);
            instance.saved = Some(row.clone());
            instance.earlier = row.generation;
            if restored.rebooted {
                instance.completed = false;
                instance.rebooted = true;
                // A wait of the boot before has passed with it.
                instance.restarts.due = None;
            }
            let setup = Setup::Left {
                requires: Vec::new(),
                foreign: false,
            };
            self.services
                .entry(service.clone())
                .or_insert_with(|| Service::new(setup, None));
            self.insert(instance);
        }
        self.resume_rolls();
        match config {
            Some(config) => self.configure(config, now),
            None => self.rewire(),
        }
    }

    pub(super) fn configure(&mut self, config: &Config, now: Now) {
        let orchestrator = &config.orchestrator;
        self.storm
            .configure(orchestrator.restart_burst, orchestrator.restart_refill);
        self.declared = orchestrator.managers().collect();
        let wanted = autostarted(config);
        for (name, service) in &config.services {
            let setup = Setup::Managed(Box::new(service.clone()));
            let entry = self
                .services
                .entry(name.clone())
                .and_modify(|old| old.setup = setup.clone())
                .or_insert_with(|| Service::new(setup, None));
            entry.default = if wanted.contains(name) {
                Desired::Up
            } else {
                Desired::Down
            };
            for index in 1..=service.replicas {
                if let Some(instance) = InstanceName::new(name.clone(), index)
                    && !self.instances.contains_key(&instance)
                {
                    let row = SavedInstance {
                        manager: service.manager.clone(),
                        ..SavedInstance::new(instance)
                    };
                    self.insert(Instance::new(&row, now, Some(service)));
                }
            }
        }
        self.mark_surplus(config);
        let names: Vec<_> = self.services.keys().cloned().collect();
        for name in names {
            self.save_service(&name, false);
        }
        self.rewire();
        self.drop_empty_services();
    }

    fn mark_surplus(&mut self, config: &Config) {
        for (name, service) in &mut self.services {
            if config.services.contains_key(name) {
                continue;
            }
            let requires = service.requires();
            match service.setup {
                // Not ours, never was.
                Setup::Left { foreign: true, .. } => {}
                _ => service.setup = Setup::Removed { requires },
            }
        }
        for instance in self.instances.values_mut() {
            let service = instance.name.service();
            let surplus = match config.services.get(service) {
                Some(config) => instance.name.index() > config.replicas,
                None => self
                    .services
                    .get(service)
                    .is_some_and(|service| matches!(service.setup, Setup::Removed { .. })),
            };
            if surplus && !instance.surplus {
                instance.why =
                    Some("not in the configuration any more: stopped and forgotten".to_owned());
            }
            instance.surplus = surplus;
        }
    }

    pub(super) fn insert(&mut self, instance: Instance) {
        let name = instance.name.clone();
        self.members
            .entry(name.service().clone())
            .or_default()
            .insert(name.clone());
        self.touch(&name);
        self.instances.insert(name, instance);
    }

    /// Forgets an instance; its service too, when it was the last one and is
    /// not in the configuration.
    pub(super) fn remove(&mut self, name: &InstanceName) {
        // They may have waited for it to end.
        self.touch_neighbours(name);
        self.alarm = true;
        let Some(instance) = self.instances.remove(name) else {
            return;
        };
        if let Some(at) = instance.wake {
            self.timers.remove(&(at, name.clone()));
        }
        if instance.saved.is_some() {
            let change = Change::RemoveInstance(name.clone());
            self.actions.push(Action::Persist {
                change,
                durable: false,
            });
        }
        if let Some(members) = self.members.get_mut(name.service()) {
            members.remove(name);
        }
        self.drop_empty_services();
    }

    fn drop_empty_services(&mut self) {
        let empty: Vec<ServiceName> = self
            .services
            .iter()
            .filter(|(name, service)| {
                service.config().is_none() && self.members.get(*name).is_none_or(BTreeSet::is_empty)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in empty {
            self.members.remove(&name);
            if let Some(Service {
                setup: Setup::Removed { .. } | Setup::Left { foreign: false, .. },
                ..
            }) = self.services.remove(&name)
            {
                let change = Change::RemoveService(name);
                self.actions.push(Action::Persist {
                    change,
                    durable: false,
                });
            }
        }
    }

    /// Writes a service down. Foreign ones are not remembered.
    pub(super) fn save_service(&mut self, name: &ServiceName, durable: bool) {
        let Some(service) = self.services.get(name) else {
            return;
        };
        if matches!(service.setup, Setup::Left { foreign: true, .. }) {
            return;
        }
        let row = SavedService {
            name: name.clone(),
            wish: service.wish,
            requires: service.requires(),
        };
        self.actions.push(Action::Persist {
            change: Change::Service(row),
            durable,
        });
    }
}

/// Services that run without an operator's word: `autostart`, and what those require.
fn autostarted(config: &Config) -> BTreeSet<ServiceName> {
    let mut found = BTreeSet::new();
    let auto = |service: &&ServiceConfig| service.autostart;
    let mut open: Vec<&ServiceName> = config
        .services
        .iter()
        .filter(|(_, service)| auto(service))
        .map(|(name, _)| name)
        .collect();
    while let Some(name) = open.pop() {
        let Some(service) = config.services.get(name) else {
            continue;
        };
        if found.insert(name.clone()) {
            open.extend(
                service
                    .depends_on
                    .iter()
                    .filter(|(_, on)| on.required)
                    .map(|(name, _)| name),
            );
        }
    }
    found
}
