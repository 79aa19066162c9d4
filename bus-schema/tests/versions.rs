//! Version skew on the bus: messages as the version before wrote them are
//! understood, and what a later one adds is passed over.
//!
//! `golden_before/` has the bytes of `golden/` as they were before the settings of a
//! process, hooks, reloads and named process-managers came, of those messages that
//! have changed since; they are never made anew. All other bytes are the same.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use blackhole_bus_schema::component::{Bye, ComponentInfo, Heartbeat, Hello, Ping};
use blackhole_bus_schema::envelope::Envelope;
use blackhole_bus_schema::health::ProbeResult;
use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::message::{Message, Snapshot};
use blackhole_bus_schema::process::{
    FollowLog, Forget, GrantPermit, InstanceRecord, ListProcesses, LogChunk, LogLines,
    ProcessChanged, ProcessForgotten, ProcessNotified, ReadLog, Reload, Signal, Spawn, Stop,
};
use blackhole_bus_schema::registry::{
    CallStats, Drain, Drained, ListCalls, ListRegistry, RegistryChanged,
};
use blackhole_bus_schema::reply::Reply;
use blackhole_bus_schema::resource::{
    Capacity, GetCapacity, ListUsage, OomKilled, Prepare, Release, UsageTick,
};
use blackhole_bus_schema::supervision::{
    InstanceStatus, ListStatus, ReloadServices, ResetServices, RestartServices, StartServices,
    StopServices, SupervisionChanged,
};
use rmpv::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn file(folder: &str, name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(folder)
        .join(format!("{name}.hex"))
}

fn read(folder: &str, name: &str) -> Option<Value> {
    let text = std::fs::read_to_string(file(folder, name)).ok()?;
    let digits: String = text.split_whitespace().collect();
    let bytes: Vec<u8> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect();
    Some(rmpv::decode::read_value(&mut bytes.as_slice()).unwrap())
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

/// Where keys are names of something, not fields; and choices, of which there is one.
const TABLES: [&str; 9] = [
    "target",
    "check",
    "env",
    "counters",
    "rlimits",
    "sockets",
    "capabilities",
    "action",
    "result",
];

/// Adds a field that nobody knows to every map that has fields.
fn add(value: &mut Value) {
    match value {
        Value::Map(pairs) => {
            for (key, value) in pairs.iter_mut() {
                if !key.as_str().is_some_and(|key| TABLES.contains(&key)) {
                    add(value);
                }
            }
            pairs.push(("later".into(), Value::Array(vec![7.into()])));
        }
        Value::Array(items) => items.iter_mut().for_each(add),
        _ => {}
    }
}

/// Whether `new` says all that `old` said.
fn says(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Map(new), Value::Map(old)) => old.iter().all(|(key, value)| {
            let found = new.iter().find(|(other, _)| other == key);
            found.is_some_and(|(_, found)| says(found, value))
        }),
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| says(new, old))
        }
        (new, old) => new == old,
    }
}

/// What is understood of a value, written again.
fn understood<T: Serialize + DeserializeOwned>(name: &str, value: &Value) -> Value {
    let parsed: T = rmp_serde::from_slice(&bytes(value))
        .unwrap_or_else(|error| panic!("{name} is not understood: {error}"));
    let again = rmp_serde::to_vec_named(&parsed).unwrap();
    rmpv::decode::read_value(&mut again.as_slice()).unwrap()
}

fn body(envelope: &Value) -> &Value {
    let mut pairs = envelope.as_map().unwrap().iter();
    let is_body = |(key, _): &&(Value, Value)| key.as_str() == Some("body");
    &pairs.find(is_body).unwrap().1
}

/// Adds what nobody knows to a value and to the one before it.
fn both<T: Serialize + DeserializeOwned>(name: &str, value: &Value, before: Option<&Value>) {
    let mut later = value.clone();
    add(&mut later);
    assert_eq!(&understood::<T>(name, &later), value, "{name}");
    if let Some(before) = before {
        assert_ne!(before, value, "{name} has not changed");
        let taken = understood::<T>(name, before);
        assert!(says(&taken, before), "{name}: {taken}\nof {before}");
    }
}

/// A message: its envelope and its body. Returns whether there is one of before.
fn message<M: Message + Serialize + DeserializeOwned>() -> bool {
    let (now, before) = (read("golden", M::KIND), read("golden_before", M::KIND));
    let now = now.unwrap_or_else(|| panic!("no bytes of {}", M::KIND));
    both::<M>(M::KIND, body(&now), before.as_ref().map(body));
    let mut later = now;
    add(&mut later);
    for envelope in before.iter().chain([&later]) {
        let envelope = Envelope::decode(&bytes(envelope)).unwrap();
        envelope.parse::<M>().unwrap();
    }
    before.is_some()
}

fn result<T: Serialize + DeserializeOwned>(name: &str) -> bool {
    let (now, before) = (read("golden", name), read("golden_before", name));
    both::<T>(name, &now.unwrap(), before.as_ref());
    before.is_some()
}

#[test]
fn the_version_before_is_understood_and_what_a_later_one_adds_is_passed_over() {
    let messages = [
        message::<Bye>(),
        message::<Heartbeat>(),
        message::<Hello>(),
        message::<Ping>(),
        message::<ProbeResult>(),
        message::<LogLines>(),
        message::<ProcessChanged>(),
        message::<FollowLog>(),
        message::<Forget>(),
        message::<ProcessForgotten>(),
        message::<ListProcesses>(),
        message::<ProcessNotified>(),
        message::<GrantPermit>(),
        message::<ReadLog>(),
        message::<Reload>(),
        message::<Signal>(),
        message::<Spawn>(),
        message::<Stop>(),
        message::<ListCalls>(),
        message::<RegistryChanged>(),
        message::<Drain>(),
        message::<ListRegistry>(),
        message::<Reply>(),
        message::<GetCapacity>(),
        message::<ListUsage>(),
        message::<OomKilled>(),
        message::<Prepare>(),
        message::<Release>(),
        message::<UsageTick>(),
        message::<SupervisionChanged>(),
        message::<ListStatus>(),
        message::<ReloadServices>(),
        message::<ResetServices>(),
        message::<RestartServices>(),
        message::<StartServices>(),
        message::<StopServices>(),
    ];
    let records = [
        "cancelled",
        "failed-exit",
        "failed-spawn",
        "never-ran",
        "running",
        "spawn",
        "stopping",
        "terminated",
    ];
    let records = records.map(|name| result::<InstanceRecord>(&format!("record-{name}")));
    let results = [
        result::<CallStats>("result-call-stats"),
        result::<Capacity>("result-capacity"),
        result::<Drained>("result-drained"),
        result::<LimitGrant>("result-grant"),
        result::<ComponentInfo>("result-info"),
        result::<LogChunk>("result-log-chunk"),
        result::<Snapshot<InstanceStatus>>("result-snapshot"),
    ];
    let seen = messages.iter().chain(&records).chain(&results);
    let seen = seen.filter(|before| **before).count();
    let kept = std::fs::read_dir(file("golden_before", "x").parent().unwrap());
    assert_eq!(seen, kept.unwrap().count());
}
