//! Presence: which daemons are there, and since when. Events come on
//! `evt.component.<component>.`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::message::{Command, Message};
use crate::names::Component;
use crate::process::query;

/// Who a daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentInfo {
    /// Which component.
    pub component: Component,
    /// Process id.
    pub pid: u32,
    /// Raised with each start, persisted.
    pub incarnation: u64,
    /// Version of its build.
    pub version: String,
    /// Start, Unix time in nanoseconds.
    pub started_at: u64,
    /// What it misses or what limits it, for a person; empty when all is well.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What this daemon has counted since its start, by name: messages published,
    /// commands taken, repeated and refused, gaps found and healed, reconnects.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
}

/// First message of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who.
    #[serde(flatten)]
    pub info: ComponentInfo,
}

/// The tails of one stream of a publisher: equal where nothing was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamTail {
    /// Prefix of the topics, for instance `evt.process.`.
    pub prefix: String,
    /// Topics that have had an event.
    pub topics: u64,
    /// Sum, wrapping, of a hash of each (topic, last seq); see [`crate::bus::tails`].
    pub hash: u64,
}

/// Sent each second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Process id.
    pub pid: u32,
    /// Its streams.
    pub tails: Vec<StreamTail>,
}

/// Last message of a daemon that ends in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why, for a person.
    pub reason: String,
}

/// Ask a daemon who it is; also the echo that proves a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {}

impl Message for Hello {
    const KIND: &'static str = "component.hello";
}
impl Message for Heartbeat {
    const KIND: &'static str = "component.heartbeat";
}
impl Message for Bye {
    const KIND: &'static str = "component.bye";
}

query!(Ping, "component.ping", ComponentInfo);
