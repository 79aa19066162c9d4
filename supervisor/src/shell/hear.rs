//! What the links bring, as inputs.

use blackhole_bus_schema::bus::{self, LinkEvent, Received};
use blackhole_bus_schema::health::ProbeResult;
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::process::{InstanceRecord, ProcessChanged, ProcessNotified};
use blackhole_bus_schema::registry::{Registration, RegistryChanged};

use super::{Shell, chain};
use crate::core::{Input, ManagerId};

impl Shell {
    pub(super) fn manager_event(&mut self, manager: ManagerId, event: LinkEvent) {
        match event {
            LinkEvent::Up(info) => {
                tracing::info!(
                    incarnation = info.incarnation,
                    pid = info.pid,
                    "{} is there",
                    info.component
                );
                self.take(Input::ManagerUp(manager), None);
            }
            LinkEvent::Down => {
                let who = Component::ProcessManager(manager.clone());
                tracing::warn!("{who} is away: its services run on");
                self.take(Input::ManagerDown(manager), None);
            }
            LinkEvent::Snapshot { items, .. } => {
                let records: Result<Vec<InstanceRecord>, _> =
                    items.into_iter().map(bus::item).collect();
                match records {
                    Ok(records) => {
                        let input = Input::ManagerSnapshot(manager, records);
                        self.take(input, None);
                    }
                    // What is not in a snapshot does not exist: half of one would be a lie.
                    Err(error) => {
                        tracing::error!(%error, "the process-manager's records are not understood: are both of one version?")
                    }
                }
            }
            LinkEvent::Event(received) => self.manager_message(manager, &received),
            // A snapshot follows.
            LinkEvent::Lagged { .. } => {}
        }
    }

    fn manager_message(&mut self, manager: ManagerId, received: &Received) {
        let input = match received.kind() {
            ProcessChanged::KIND => received
                .parse::<ProcessChanged>()
                .map(|changed| Input::ProcessChanged(manager, Box::new(changed.record))),
            ProcessNotified::KIND => received.parse().map(Input::ProcessNotified),
            ProbeResult::KIND => received.parse().map(Input::Probe),
            _ => return,
        };
        match input {
            Ok(input) => self.take(input, Some(received.envelope.id)),
            Err(error) => {
                tracing::error!(error = chain(&error), topic = %received.topic, "not understood")
            }
        }
    }

    pub(super) fn controller_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(info) => {
                tracing::info!(
                    incarnation = info.incarnation,
                    pid = info.pid,
                    "resource-controller is there"
                );
                self.take(Input::ControllerUp, None);
            }
            LinkEvent::Down => {
                tracing::warn!("resource-controller is away: limits stay as they are");
                self.take(Input::ControllerDown, None);
            }
            LinkEvent::Snapshot { .. } | LinkEvent::Event(_) | LinkEvent::Lagged { .. } => {}
        }
    }

    pub(super) fn bridge_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(info) => {
                tracing::info!(
                    incarnation = info.incarnation,
                    pid = info.pid,
                    "bridge is there"
                );
                self.take(Input::BridgeUp, None);
            }
            LinkEvent::Down => {
                tracing::warn!("bridge is away: calls are not finished before stops");
                self.take(Input::BridgeDown, None);
            }
            LinkEvent::Snapshot { items, .. } => {
                let all: Result<Vec<Registration>, _> = items.into_iter().map(bus::item).collect();
                match all {
                    Ok(all) => self.take(Input::RegistrySnapshot(all), None),
                    Err(error) => {
                        tracing::error!(%error, "the bridge's registrations are not understood: are both of one version?");
                    }
                }
            }
            LinkEvent::Event(received) if received.kind() == RegistryChanged::KIND => {
                match received.parse() {
                    Ok(changed) => {
                        let changed = Input::RegistryChanged(Box::new(changed));
                        self.take(changed, Some(received.envelope.id));
                    }
                    Err(error) => {
                        tracing::error!(error = chain(&error), topic = %received.topic, "not understood");
                    }
                }
            }
            // A snapshot follows.
            LinkEvent::Event(_) | LinkEvent::Lagged { .. } => {}
        }
    }
}
