//! Services and what they need of each other.
//!
//! A condition holds when it holds for *every* instance of the dependency (for
//! one with no replicas: always). A one-shot that is through fulfils every
//! condition. A dependency has a say when its dependent is started (also when
//! it is restarted) and when an operator stops it, but a running dependent
//! carries on when its dependency crashes.

use std::collections::{BTreeMap, BTreeSet};

use blackhole_bus_schema::config::{Condition, Dependency, ServiceConfig};
use blackhole_bus_schema::names::ServiceName;
use blackhole_bus_schema::supervision::{Desired, Phase};

use super::Core;
use super::instance::Instance;

/// What the supervisor may do with a service.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Setup {
    /// It is in the configuration.
    Managed(Box<ServiceConfig>),
    /// It was: stop it in order, then forget it.
    Removed {
        /// What it needed.
        requires: Vec<ServiceName>,
    },
    /// There is no configuration to judge by, or it was started by somebody
    /// else: it is shown and left alone until an operator stops it.
    Left {
        /// What it needed.
        requires: Vec<ServiceName>,
        /// It is not remembered either.
        foreign: bool,
    },
}

/// One service.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) setup: Setup,
    /// An operator's lasting word.
    pub(super) wish: Option<Desired>,
    /// It is stopped for now; the next run starts it again.
    pub(super) paused: bool,
    /// What the configuration says without an operator's word.
    pub(super) default: Desired,
    /// It and everything it requires are wanted.
    pub(super) wanted: bool,
    /// Who depends on it, hard or soft, by whatever chain: it ends after all of
    /// them, also where one in the middle is gone already.
    pub(super) dependents: Vec<ServiceName>,
    /// On whom it depends, by whatever chain.
    pub(super) foundations: Vec<ServiceName>,
}

impl Service {
    pub(super) fn new(setup: Setup, wish: Option<Desired>) -> Self {
        Self {
            setup,
            wish,
            paused: false,
            default: Desired::Up,
            wanted: false,
            dependents: Vec::new(),
            foundations: Vec::new(),
        }
    }

    /// What is wanted of it now.
    pub(super) fn desired(&self) -> Desired {
        if self.paused {
            Desired::Down
        } else {
            self.wish.unwrap_or(self.default)
        }
    }

    /// Its configuration, while it has one.
    pub(super) fn config(&self) -> Option<&ServiceConfig> {
        match &self.setup {
            Setup::Managed(config) => Some(config),
            Setup::Removed { .. } | Setup::Left { .. } => None,
        }
    }

    /// Everything it depends on.
    pub(super) fn dependencies(&self) -> Vec<(&ServiceName, Dependency)> {
        match &self.setup {
            Setup::Managed(config) => config
                .depends_on
                .iter()
                .map(|(name, on)| (name, *on))
                .collect(),
            Setup::Removed { requires } | Setup::Left { requires, .. } => requires
                .iter()
                .map(|name| {
                    (
                        name,
                        Dependency {
                            condition: Condition::Started,
                            required: true,
                        },
                    )
                })
                .collect(),
        }
    }

    /// What it cannot do without.
    pub(super) fn requires(&self) -> Vec<ServiceName> {
        let required = self
            .dependencies()
            .into_iter()
            .filter(|(_, on)| on.required);
        required.map(|(name, _)| name.clone()).collect()
    }
}

impl Core {
    pub(super) fn instances_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = &'a Instance> + 'a {
        self.members
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|name| self.instances.get(name))
    }

    /// These services and all they require, directly or not.
    pub(super) fn with_requirements(&self, targets: &[ServiceName]) -> BTreeSet<ServiceName> {
        self.reach(targets, |service| service.requires())
    }

    /// These services and all that require them, directly or not.
    pub(super) fn with_dependents(&self, targets: &[ServiceName]) -> BTreeSet<ServiceName> {
        let mut hard: BTreeMap<&ServiceName, Vec<ServiceName>> = BTreeMap::new();
        for (name, service) in &self.services {
            for (on, dependency) in service.dependencies() {
                if dependency.required {
                    hard.entry(on).or_default().push(name.clone());
                }
            }
        }
        let mut found = BTreeSet::new();
        let mut open: Vec<ServiceName> = targets.to_vec();
        while let Some(name) = open.pop() {
            open.extend(hard.remove(&name).unwrap_or_default());
            found.insert(name);
        }
        found
    }

    fn reach(
        &self,
        targets: &[ServiceName],
        next: impl Fn(&Service) -> Vec<ServiceName>,
    ) -> BTreeSet<ServiceName> {
        let mut found = BTreeSet::new();
        let mut open: Vec<ServiceName> = targets.to_vec();
        while let Some(name) = open.pop() {
            let Some(service) = self.services.get(&name) else {
                continue;
            };
            if found.insert(name) {
                open.extend(next(service));
            }
        }
        found
    }

    /// Works out anew who depends on whom and who is wanted, after what there is has
    /// changed. Everything is looked at again after it.
    pub(super) fn rewire(&mut self) {
        let mut dependents: BTreeMap<ServiceName, Vec<ServiceName>> = BTreeMap::new();
        let mut foundations: BTreeMap<ServiceName, Vec<ServiceName>> = BTreeMap::new();
        for name in self.services.keys() {
            let below = self.reach(std::slice::from_ref(name), |service| {
                let direct = service.dependencies().into_iter();
                direct.map(|(on, _)| on.clone()).collect()
            });
            // Not itself, even where rows of an earlier run go in a circle.
            for on in below.into_iter().filter(|on| on != name) {
                dependents.entry(on.clone()).or_default().push(name.clone());
                foundations.entry(name.clone()).or_default().push(on);
            }
        }
        let mut wanted = BTreeMap::new();
        for name in self.services.keys() {
            self.find_wanted(name, &mut wanted);
        }
        for (name, service) in &mut self.services {
            service.dependents = dependents.remove(name).unwrap_or_default();
            service.foundations = foundations.remove(name).unwrap_or_default();
            service.wanted = wanted.get(name).copied().unwrap_or(false);
        }
        self.alarm = true;
        self.touch_all();
    }

    /// Works out anew who is wanted, after the wishes for these services have changed, and has
    /// all looked at again whom that may concern. Costs what these cost, not what all do.
    pub(super) fn rewish<'a>(&mut self, services: impl IntoIterator<Item = &'a ServiceName>) {
        let concerned = self.with_all_above(services);
        let mut wanted = BTreeMap::new();
        for name in &concerned {
            self.find_wanted(name, &mut wanted);
        }
        for name in &concerned {
            if let Some(service) = self.services.get_mut(name) {
                service.wanted = wanted.get(name).copied().unwrap_or(false);
            }
        }
        self.alarm = true;
        self.touch_around(&concerned);
    }

    /// These services and all that wait for them, directly or not.
    pub(super) fn with_all_above<'a>(
        &self,
        services: impl IntoIterator<Item = &'a ServiceName>,
    ) -> BTreeSet<ServiceName> {
        let mut all = BTreeSet::new();
        for name in services {
            if let Some(service) = self.services.get(name) {
                all.extend(service.dependents.iter().cloned());
                all.insert(name.clone());
            }
        }
        all
    }

    /// Marks the instances of these services, and of all that they wait for.
    pub(super) fn touch_around(&mut self, services: &BTreeSet<ServiceName>) {
        let below = services.iter().filter_map(|name| self.services.get(name));
        let below = below.flat_map(|service| &service.foundations);
        let instances = services.iter().chain(below);
        let instances = instances.filter_map(|name| self.members.get(name));
        self.dirty.extend(instances.flatten().cloned());
    }

    /// Depth is bounded by the length of a chain of dependencies. A cycle (the
    /// configuration has none, but rows of two configurations might make one) is unwanted.
    pub(super) fn find_wanted(
        &self,
        name: &ServiceName,
        known: &mut BTreeMap<ServiceName, bool>,
    ) -> bool {
        if let Some(wanted) = known.get(name) {
            return *wanted;
        }
        let Some(service) = self.services.get(name) else {
            return false;
        };
        known.insert(name.clone(), false);
        let wanted = service.desired() == Desired::Up
            && match &service.setup {
                Setup::Managed(_) => service
                    .requires()
                    .iter()
                    .all(|on| self.find_wanted(on, known)),
                Setup::Removed { .. } => false,
                // Left alone even when what it needed is not there any more.
                Setup::Left { .. } => true,
            };
        known.insert(name.clone(), wanted);
        wanted
    }

    /// What a service has to wait for before it may start, with the reason.
    pub(super) fn missing(&self, service: &Service) -> Vec<String> {
        let mut missing = Vec::new();
        for (name, on) in service.dependencies() {
            let Some(dependency) = self.services.get(name) else {
                if on.required {
                    missing.push(format!("{name} {} (not configured)", word(on.condition)));
                }
                continue;
            };
            if self.holds(name, dependency, on.condition) {
                continue;
            }
            if on.required || self.is_coming(name, dependency) {
                missing.push(format!(
                    "{name} {} ({})",
                    word(on.condition),
                    self.reason(name, dependency)
                ));
            }
        }
        missing
    }

    fn holds(&self, name: &ServiceName, service: &Service, condition: Condition) -> bool {
        service.wanted
            && self
                .instances_of(name)
                .filter(|instance| !instance.surplus)
                .all(|instance| {
                    if instance.completed {
                        return true;
                    }
                    let running = instance.is_running() && !instance.bouncing();
                    match condition {
                        Condition::Started => running,
                        Condition::Ready => running && self.is_ready(instance),
                        Condition::Completed => {
                            instance.spent && instance.is_gone() && !failed(instance)
                        }
                    }
                })
    }

    /// Whether a soft dependency may still come up without anybody's help.
    fn is_coming(&self, name: &ServiceName, service: &Service) -> bool {
        service.wanted
            && self
                .instances_of(name)
                .all(|instance| match &instance.phase {
                    Phase::Refused { .. }
                    | Phase::BackingOff { .. }
                    | Phase::CircuitOpen
                    | Phase::GaveUp
                    | Phase::NotReady => false,
                    Phase::Probing => !instance.probing.refuses(),
                    // Ended in order and not to be started again.
                    Phase::Idle => !instance.spent,
                    _ => true,
                })
            && service
                .dependencies()
                .iter()
                .filter(|(_, on)| on.required)
                .all(|(name, on)| {
                    self.services.get(*name).is_some_and(|dependency| {
                        self.holds(name, dependency, on.condition)
                            || self.is_coming(name, dependency)
                    })
                })
    }

    fn reason(&self, name: &ServiceName, service: &Service) -> String {
        if service.desired() == Desired::Down {
            return "stopped".to_owned();
        }
        let worst = self
            .instances_of(name)
            .filter(|instance| !instance.completed)
            .max_by_key(|instance| match instance.phase {
                Phase::Ready => 0,
                Phase::CircuitOpen | Phase::GaveUp => 3,
                Phase::Refused { .. } => 2,
                _ => 1,
            });
        match worst.map(|instance| &instance.phase) {
            Some(Phase::Ready) => "running".to_owned(),
            Some(Phase::Idle) => "not started yet".to_owned(),
            Some(phase) => phase.word().to_owned(),
            None => "no instances".to_owned(),
        }
    }

    /// Whether a service that is to end has to wait: dependents end first.
    pub(super) fn outlived(&self, service: &Service) -> bool {
        service.dependents.iter().any(|name| {
            let wanted = self
                .services
                .get(name)
                .is_some_and(|dependent| dependent.wanted);
            self.instances_of(name).any(|instance| {
                !instance.is_gone() && (!wanted || instance.surplus || instance.bouncing())
            })
        })
    }

    pub(super) fn is_ready(&self, instance: &Instance) -> bool {
        let config = self
            .services
            .get(instance.name.service())
            .and_then(Service::config);
        instance.is_running() && config.is_none_or(|config| instance.probing.ready(&config.probes))
    }
}

/// Whether the last end was a failure.
pub(super) fn failed(instance: &Instance) -> bool {
    instance.start_failed
        || instance
            .last_exit
            .as_ref()
            .is_some_and(|exit| exit.result.is_failure())
}

fn word(condition: Condition) -> &'static str {
    match condition {
        Condition::Started => "started",
        Condition::Ready => "ready",
        Condition::Completed => "completed",
    }
}
