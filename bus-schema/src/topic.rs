//! Topics. ZeroMQ matches a subscription by prefix of bytes, so each topic
//! ends with a dot: `evt.process.web.1.` is not a prefix of `evt.process.web.12.`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::names::{ClientName, Component, InstanceName, ServiceName};

/// Prefix of all events.
pub const EVENT: &str = "evt.";
/// Prefix of a process-manager's changes of state.
pub const PROCESS: &str = "evt.process.";
/// Prefix of a process-manager's probe results.
pub const HEALTH: &str = "evt.health.";
/// Prefix of the supervisor's events.
pub const SUPERVISION: &str = "evt.supervision.";
/// The resource-controller's topic.
pub const RESOURCE: &str = "evt.resource.";
/// Prefix of the bridge's registry events.
pub const REGISTRY: &str = "evt.registry.";
/// Prefix of presence events.
pub const COMPONENT: &str = "evt.component.";
/// Prefix of log lines.
pub const LOG: &str = "log.";
/// Prefix of commands, and of their repetitions by the component that took them.
pub const COMMAND: &str = "cmd.";

/// A whole topic, never longer than some 200 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Topic(String);

impl Topic {
    /// Commands to a component.
    pub fn command(component: &Component) -> Self {
        Self(format!("{COMMAND}{component}."))
    }

    /// Replies to a client.
    pub fn reply(client: &ClientName) -> Self {
        Self(format!("rep.{client}."))
    }

    /// Changes of an instance's process.
    pub fn process(instance: &InstanceName) -> Self {
        Self(format!("{PROCESS}{instance}."))
    }

    /// Probe results of an instance.
    pub fn health(instance: &InstanceName) -> Self {
        Self(format!("{HEALTH}{instance}."))
    }

    /// The supervisor's events about a service.
    pub fn supervision(service: &ServiceName) -> Self {
        Self(format!("{SUPERVISION}{service}."))
    }

    /// Usage and OOM kills.
    pub fn resource() -> Self {
        Self(RESOURCE.to_owned())
    }

    /// Registry events about a service.
    pub fn registry(service: &ServiceName) -> Self {
        Self(format!("{REGISTRY}{service}."))
    }

    /// Presence of a component.
    pub fn component(component: &Component) -> Self {
        Self(format!("{COMPONENT}{component}."))
    }

    /// Log lines of an instance.
    pub fn log(instance: &InstanceName) -> Self {
        Self(format!("{LOG}{instance}."))
    }

    /// A topic as received; any text, since a subscriber sees what others send.
    pub fn received(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The topic's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
