//! The simulated bridge: who is registered, and drains, whose answers are
//! late, lost, or never given.

use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::registry::{Registration, RegistryChanged};
use blackhole_supervisor::core::Input;

use super::world::{Event, Reply, World};

fn registration(instance: &InstanceName, generation: Generation) -> Registration {
    Registration {
        instance: instance.clone(),
        generation,
        methods: Vec::new(),
        endpoint: None,
        outstanding: 0,
        draining: false,
    }
}

impl World {
    /// A live process registers, if the bridge is there.
    pub(crate) fn registers(&mut self, instance: &InstanceName) {
        let Some(process) = self.host.processes.get(instance).filter(|_| self.bridge) else {
            return;
        };
        let generation = process.generation;
        self.registered.insert(instance.clone(), generation);
        let registration = Some(registration(instance, generation));
        let changed = RegistryChanged {
            instance: instance.clone(),
            registration,
        };
        self.tell(Input::RegistryChanged(Box::new(changed)));
    }

    pub(crate) fn unregister(&mut self, instance: &InstanceName) {
        if self.registered.remove(instance).is_some() {
            let changed = RegistryChanged {
                instance: instance.clone(),
                registration: None,
            };
            self.tell(Input::RegistryChanged(Box::new(changed)));
        }
    }

    pub(crate) fn bridge_dies(&mut self, back: u64) {
        if std::mem::replace(&mut self.bridge, false) {
            self.registered.clear();
            // It is missed a little later.
            let missed = self.now + self.below(3500).min(back);
            self.at(missed, Event::BridgeMissed);
            self.at(self.now + back, Event::BridgeReturns);
        }
    }

    pub(crate) fn bridge_returns(&mut self) {
        self.bridge = true;
        self.tell_of_bridge();
        let alive: Vec<_> = self.host.processes.keys().cloned().collect();
        for instance in alive {
            let at = self.now + 1 + self.below(1000);
            self.at(at, Event::Registers(instance));
        }
    }

    /// The supervisor and the bridge meet.
    pub(crate) fn tell_of_bridge(&mut self) {
        self.tell(Input::BridgeUp);
        let all = self.registered.iter();
        let all = all.map(|(instance, generation)| registration(instance, *generation));
        self.tell(Input::RegistrySnapshot(all.collect()));
    }

    /// In time, late, or not at all.
    pub(crate) fn drain_arrives(&mut self, id: u64, within: u64) {
        if self.bridge && self.below(4) > 0 {
            let takes = 1 + self.below(within * 3 / 2);
            self.at(self.now + takes, Event::Answered(id, Reply::Done));
        }
    }
}
