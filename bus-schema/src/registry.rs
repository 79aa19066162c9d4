//! The bridge's registry: which instances of a service answer RPC. Events come
//! on `evt.registry.<service>.`, commands go to `cmd.bridge.`.

use serde::{Deserialize, Serialize};

use crate::message::{Command, Message, Snapshot};
use crate::names::{Generation, InstanceName};
use crate::process::query;

/// One registered instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Who.
    pub instance: InstanceName,
    /// Which spawn of it.
    pub generation: Generation,
    /// Methods it serves.
    pub methods: Vec<String>,
    /// Its own endpoint for direct calls, where it offers one.
    pub endpoint: Option<String>,
    /// Calls sent to it and not answered.
    pub outstanding: u32,
    /// It finishes its calls and takes no more.
    pub draining: bool,
}

/// An instance registered, changed or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryChanged {
    /// Who.
    pub instance: InstanceName,
    /// `None` when it is gone.
    pub registration: Option<Registration>,
}

/// Ask for all registrations, in pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListRegistry {
    /// Where to go on: the last answer's `next`.
    pub after: Option<String>,
}

impl Message for RegistryChanged {
    const KIND: &'static str = "registry.changed";
}

query!(ListRegistry, "registry.list", Snapshot<Registration>);
