//! The library's decoders, by the names that the document gives them.

use std::collections::BTreeMap;

use blackhole_bus_schema::component::{Bye, ComponentInfo, Heartbeat, Hello, Ping, StreamTail};
use blackhole_bus_schema::envelope::{Envelope, Source};
use blackhole_bus_schema::health::{Health, Probe, ProbeCheck, ProbeKind, ProbeResult, Probes};
use blackhole_bus_schema::limits::{
    CgroupDir, CgroupVersion, Enforcement, JoinMethod, LimitGrant, LimitKind, LimitReport, Limits,
};
use blackhole_bus_schema::message::Snapshot;
use blackhole_bus_schema::process::{
    Capabilities, EnvFile, ExitRecord, ExitResult, ExitStatus, Failure, FollowLog, Forget,
    GrantPermit, Hook, Hooks, InstanceRecord, ListProcesses, LogChunk, LogCursor, LogFormat,
    LogLines, LogSpec, NotifyState, Permit, ProcessChanged, ProcessForgotten, ProcessNotified,
    ProcessSettings, ProcessState, ReadLog, Reload, ReloadAction, ReloadSpec, RlimitValue, Signal,
    SocketSpec, Spawn, SpawnFailure, SpawnSpec, SpawnStep, StateName, StepTime, Stop, StopSpec,
};
use blackhole_bus_schema::registry::{
    CallStats, Drain, Drained, ListCalls, ListRegistry, Registration, RegistryChanged,
};
use blackhole_bus_schema::reply::{Code, Reply, Verdict};
use blackhole_bus_schema::resource::{
    Capacity, GetCapacity, ListUsage, OomKilled, Prepare, Pressure, Release, Usage, UsageTick,
};
use blackhole_bus_schema::supervision::{
    Circuit, Desired, InstanceStatus, ListStatus, Phase, ReloadServices, Reloaded, ResetServices,
    RestartServices, StartServices, StopServices, SupervisionChanged, Target,
};
use blackhole_bus_schema::value::from_value;
use rmpv::Value;
use serde::de::DeserializeOwned;

/// Whether a value decodes.
pub(super) type Decodes = fn(&Value) -> bool;

fn decodes<T: DeserializeOwned>(value: &Value) -> bool {
    from_value::<T>(value).is_ok()
}

macro_rules! table {
    ($($name:literal => $type:ty,)*) => {
        BTreeMap::from([$(($name, decodes::<$type> as Decodes)),*])
    };
}

pub(super) fn structures() -> BTreeMap<&'static str, Decodes> {
    table! {
        "Envelope" => Envelope,
        "Source" => Source,
        "component.hello" => Hello,
        "component.heartbeat" => Heartbeat,
        "component.bye" => Bye,
        "component.ping" => Ping,
        "ComponentInfo" => ComponentInfo,
        "StreamTail" => StreamTail,
        "reply" => Reply,
        "Snapshot" => Snapshot<Value>,
        "process.spawn" => Spawn,
        "process.stop" => Stop,
        "process.signal" => Signal,
        "process.reload" => Reload,
        "process.permit" => GrantPermit,
        "process.forget" => Forget,
        "process.list" => ListProcesses,
        "process.read_log" => ReadLog,
        "process.follow_log" => FollowLog,
        "process.changed" => ProcessChanged,
        "process.notified" => ProcessNotified,
        "process.forgotten" => ProcessForgotten,
        "health.probe" => ProbeResult,
        "log.lines" => LogLines,
        "SpawnSpec" => SpawnSpec,
        "ProcessSettings" => ProcessSettings,
        "RlimitValue" => RlimitValue,
        "Capabilities" => Capabilities,
        "EnvFile" => EnvFile,
        "SocketSpec" => SocketSpec,
        "Hooks" => Hooks,
        "Hook" => Hook,
        "ReloadSpec" => ReloadSpec,
        "ReloadAction" => ReloadAction,
        "StopSpec" => StopSpec,
        "LogSpec" => LogSpec,
        "Permit" => Permit,
        "Probes" => Probes,
        "Probe" => Probe,
        "ProbeCheck" => ProbeCheck,
        "InstanceRecord" => InstanceRecord,
        "ProcessState" => ProcessState,
        "SpawnFailure" => SpawnFailure,
        "StepTime" => StepTime,
        "ExitRecord" => ExitRecord,
        "ExitStatus" => ExitStatus,
        "NotifyState" => NotifyState,
        "LogCursor" => LogCursor,
        "LogChunk" => LogChunk,
        "supervision.start" => StartServices,
        "supervision.stop" => StopServices,
        "supervision.restart" => RestartServices,
        "supervision.reset" => ResetServices,
        "supervision.reload" => ReloadServices,
        "supervision.list" => ListStatus,
        "supervision.changed" => SupervisionChanged,
        "Target" => Target,
        "Reloaded" => Reloaded,
        "InstanceStatus" => InstanceStatus,
        "Phase" => Phase,
        "resource.prepare" => Prepare,
        "resource.release" => Release,
        "resource.list" => ListUsage,
        "resource.capacity" => GetCapacity,
        "resource.usage" => UsageTick,
        "resource.oom_killed" => OomKilled,
        "Limits" => Limits,
        "LimitGrant" => LimitGrant,
        "CgroupDir" => CgroupDir,
        "LimitReport" => LimitReport,
        "Enforcement" => Enforcement,
        "Usage" => Usage,
        "Pressure" => Pressure,
        "Capacity" => Capacity,
        "registry.list" => ListRegistry,
        "registry.drain" => Drain,
        "registry.calls" => ListCalls,
        "registry.changed" => RegistryChanged,
        "Registration" => Registration,
        "Drained" => Drained,
        "CallStats" => CallStats,
    }
}

/// What serde lists when it is given a variant that does not exist.
fn variants<T: DeserializeOwned>(value: Value) -> Vec<String> {
    let Err(error) = from_value::<T>(&value) else {
        panic!("there is a variant `none`");
    };
    let text = error.to_string();
    let list = text.split("expected").nth(1).unwrap_or_default();
    list.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn of<T: DeserializeOwned>() -> Vec<String> {
    variants::<T>(Value::from("none"))
}

pub(super) fn enumerations() -> Vec<(&'static str, Vec<String>)> {
    vec![
        ("Code", of::<Code>()),
        ("ProbeKind", of::<ProbeKind>()),
        ("StateName", of::<StateName>()),
        ("LogFormat", of::<LogFormat>()),
        ("SpawnStep", of::<SpawnStep>()),
        ("ExitResult", of::<ExitResult>()),
        ("Desired", of::<Desired>()),
        ("Health", of::<Health>()),
        ("Circuit", of::<Circuit>()),
        ("CgroupVersion", of::<CgroupVersion>()),
        ("JoinMethod", of::<JoinMethod>()),
        ("LimitKind", of::<LimitKind>()),
    ]
}

/// Enumerations whose variants are told by a field.
pub(super) fn tags() -> Vec<((&'static str, &'static str), Vec<String>)> {
    fn tagged<T: DeserializeOwned>(tag: &str) -> Vec<String> {
        variants::<T>(Value::Map(vec![(tag.into(), "none".into())]))
    }
    vec![
        (("reply", "status"), tagged::<Verdict>("status")),
        (("ProcessState", "reason"), tagged::<Failure>("reason")),
        (("ExitStatus", "how"), tagged::<ExitStatus>("how")),
        (("Phase", "phase"), tagged::<Phase>("phase")),
        (("Enforcement", "state"), tagged::<Enforcement>("state")),
    ]
}

/// Values of variants that no golden message has.
pub(super) fn more() -> Vec<(&'static str, Value)> {
    fn value<T: serde::Serialize>(value: &T) -> Value {
        blackhole_bus_schema::value::to_value(value).unwrap()
    }
    vec![
        ("ProbeCheck", value(&ProbeCheck::Tcp("localhost:1".into()))),
        ("ProbeCheck", value(&ProbeCheck::Rpc("check".into()))),
        (
            "Capabilities",
            value(&Capabilities::Drop(vec!["kill".into()])),
        ),
        (
            "ReloadAction",
            value(&ReloadAction::Command(vec!["/bin/true".into()])),
        ),
        ("ExitStatus", value(&ExitStatus::Exited { code: 3 })),
        ("ExitStatus", value(&ExitStatus::Unknown)),
    ]
}
