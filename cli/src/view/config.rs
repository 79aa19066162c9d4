//! `blackhole config show`: the effective configuration, in the words of
//! `blackhole.yaml`, so that it reads back as the same configuration.

use std::time::Duration;

use blackhole_bus_schema::config::{
    Condition, Document, RestartMode, RestartPolicy, ServiceConfig,
};
use blackhole_bus_schema::health::{Probe, ProbeCheck, Probes};
use blackhole_bus_schema::limits::Limits;
use blackhole_bus_schema::process::{LogSpec, signal_name};
use serde_json::{Map, Value, json};

/// The configuration with all defaults and profiles applied.
pub fn show(document: &Document) -> Value {
    let config = &document.config;
    let orchestrator = &config.orchestrator;
    let mut own = Map::new();
    own.insert("max_processes".into(), orchestrator.max_processes.into());
    let managers: Map<String, Value> = orchestrator
        .process_managers
        .iter()
        .map(|(name, most)| (name.to_string(), json!({ "max_processes": most })))
        .collect();
    if !managers.is_empty() {
        own.insert("process_managers".into(), managers.into());
    }
    own.insert(
        "restart_policy".into(),
        policy(&orchestrator.restart_policy).into(),
    );
    own.insert("usage_interval".into(), time(orchestrator.usage_interval));
    own.insert("restart_burst".into(), orchestrator.restart_burst.into());
    own.insert("restart_refill".into(), time(orchestrator.restart_refill));
    put(
        &mut own,
        "cgroup_parent",
        orchestrator.cgroup_parent.as_deref(),
    );
    let listen: Map<String, Value> = document
        .listen
        .entries()
        .map(|(key, address)| (key.to_owned(), address.to_string().into()))
        .collect();
    if !listen.is_empty() {
        own.insert("listen".into(), listen.into());
    }
    let services: Map<String, Value> = config
        .services
        .iter()
        .map(|(name, one)| {
            let mut shown = Map::new();
            put(
                &mut shown,
                "description",
                document.descriptions.get(name).map(String::as_str),
            );
            shown.extend(service(one));
            (name.to_string(), shown.into())
        })
        .collect();
    json!({ "runtime": { "orchestrator": own }, "services": services })
}

fn put<T: Into<Value>>(map: &mut Map<String, Value>, key: &str, value: Option<T>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}

fn service(one: &ServiceConfig) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("command".into(), one.command.clone().into());
    put(&mut map, "type", one.service_type.as_deref());
    put(
        &mut map,
        "manager",
        one.manager.as_ref().map(|name| name.as_str()),
    );
    map.insert("priority".into(), json!(one.priority));
    map.insert("replicas".into(), one.replicas.into());
    map.insert("oneshot".into(), one.oneshot.into());
    map.insert("autostart".into(), one.autostart.into());
    put(&mut map, "working_dir", one.working_dir.as_deref());
    put(&mut map, "user", one.user.as_deref());
    put(&mut map, "group", one.group.as_deref());
    if !one.env.is_empty() {
        map.insert("env".into(), json!(one.env));
    }
    if !one.depends_on.is_empty() {
        let on: Map<String, Value> = one
            .depends_on
            .iter()
            .map(|(name, dependency)| {
                let condition = match dependency.condition {
                    Condition::Started => "started",
                    Condition::Ready => "ready",
                    Condition::Completed => "completed",
                };
                let value = if dependency.required {
                    condition.into()
                } else {
                    json!({ "condition": condition, "required": false })
                };
                (name.to_string(), value)
            })
            .collect();
        map.insert("depends_on".into(), on.into());
    }
    let mut restart = Map::new();
    let mode = match one.restart_mode {
        RestartMode::Always => "always",
        RestartMode::OnFailure => "on-failure",
        RestartMode::Never => "never",
    };
    restart.insert("policy".into(), mode.into());
    restart.extend(policy(&one.restart_policy));
    map.insert("restart".into(), restart.into());
    let health = probes(&one.probes);
    if !health.is_empty() {
        map.insert("health".into(), health.into());
    }
    map.insert(
        "resources".into(),
        resources(&one.limits, one.open_files).into(),
    );
    let signal =
        signal_name(one.stop.signal).map_or_else(|| json!(one.stop.signal), |name| json!(name));
    map.insert(
        "stop".into(),
        json!({ "signal": signal, "grace": millis(one.stop.grace_ms) }),
    );
    map.insert("success_codes".into(), one.success_codes.clone().into());
    map.insert("logs".into(), logs(&one.logs).into());
    map.extend(super::settings::settings(&one.settings));
    map
}

fn logs(logs: &LogSpec) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("max_size".into(), size(logs.max_bytes));
    map.insert("max_files".into(), logs.max_files.into());
    put(&mut map, "max_age", logs.max_age_ms.map(millis));
    put(&mut map, "max_total_size", logs.max_total_bytes.map(size));
    map.insert("compress".into(), logs.compress.into());
    map.insert("format".into(), json!(logs.format));
    map
}

fn policy(policy: &RestartPolicy) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("max_attempts".into(), policy.max_attempts.into());
    map.insert("initial_backoff".into(), time(policy.initial_backoff));
    map.insert(
        "backoff_multiplier".into(),
        policy.backoff_multiplier.into(),
    );
    map.insert("max_backoff".into(), time(policy.max_backoff));
    map.insert(
        "jitter".into(),
        format!("{}%", policy.jitter_percent).into(),
    );
    map.insert("reset_after".into(), time(policy.reset_after));
    map.insert(
        "cool_down".into(),
        policy.cool_down.map_or_else(|| "never".into(), time),
    );
    map
}

fn probes(probes: &Probes) -> Map<String, Value> {
    let mut map = Map::new();
    for (kind, one) in [
        ("startup", &probes.startup),
        ("liveness", &probes.liveness),
        ("readiness", &probes.readiness),
    ] {
        put(&mut map, kind, one.as_ref().map(probe));
    }
    map
}

fn probe(probe: &Probe) -> Map<String, Value> {
    let mut map = Map::new();
    match &probe.check {
        ProbeCheck::Http(url) => map.insert("http".into(), url.as_str().into()),
        ProbeCheck::Tcp(address) => map.insert("tcp".into(), address.as_str().into()),
        ProbeCheck::Exec(command) => map.insert("exec".into(), command.clone().into()),
        ProbeCheck::Rpc(method) => map.insert("rpc".into(), method.as_str().into()),
        ProbeCheck::Notify => map.insert("notify".into(), true.into()),
    };
    map.insert("initial_delay".into(), millis(probe.initial_delay_ms));
    map.insert("interval".into(), millis(probe.interval_ms));
    map.insert("timeout".into(), millis(probe.timeout_ms));
    map.insert("failure_threshold".into(), probe.failure_threshold.into());
    map.insert("success_threshold".into(), probe.success_threshold.into());
    map
}

fn resources(limits: &Limits, open_files: Option<u64>) -> Map<String, Value> {
    fn or_none<T: Into<Value>>(value: Option<T>) -> Value {
        value.map_or_else(|| "none".into(), Into::into)
    }
    let mebibytes = |bytes: u64| bytes / (1024 * 1024);
    let mut map = Map::new();
    map.insert("cpu_percent".into(), or_none(limits.cpu_percent));
    map.insert(
        "memory_mb".into(),
        or_none(limits.memory_bytes.map(mebibytes)),
    );
    map.insert("pids".into(), or_none(limits.pids));
    put(&mut map, "cpu_weight", limits.cpu_weight);
    put(&mut map, "io_weight", limits.io_weight);
    put(&mut map, "open_files", open_files);
    put(&mut map, "cpu_request_percent", limits.cpu_request_percent);
    put(
        &mut map,
        "memory_request_mb",
        limits.memory_request_bytes.map(mebibytes),
    );
    map.insert(
        "limits".into(),
        if limits.required {
            "required"
        } else {
            "best-effort"
        }
        .into(),
    );
    map
}

/// A size in the unit that gives the smallest whole number: `16MiB`, `10MB`.
fn size(bytes: u64) -> Value {
    const UNITS: [(u64, &str); 7] = [
        (1 << 30, "GiB"),
        (1_000_000_000, "GB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
        (1 << 10, "KiB"),
        (1_000, "KB"),
        (1, "B"),
    ];
    let (unit, name) = UNITS
        .into_iter()
        .find(|(unit, _)| bytes.is_multiple_of(*unit))
        .unwrap_or((1, "B"));
    format!("{}{name}", bytes / unit).into()
}

pub(super) fn millis(millis: u64) -> Value {
    time(Duration::from_millis(millis))
}

/// A duration in the largest unit that leaves it whole.
fn time(duration: Duration) -> Value {
    let micros = duration.as_micros();
    if micros == 0 {
        return "0s".into();
    }
    for (unit, name) in [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1_000, "ms"),
    ] {
        if micros.is_multiple_of(unit) {
            return format!("{}{name}", micros / unit).into();
        }
    }
    format!("{micros}us").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
runtime:
  orchestrator:
    max_processes: 50
    process_managers: {gpu: {max_processes: 4}, batch: {}}
    listen: {supervisor: "127.0.0.1:7410", rpc: "[::1]:7400"}
    restart_policy: {max_attempts: 3, backoff_multiplier: 1.5, max_backoff: 90s, cool_down: 5m}
    resource_limits: {default_cpu_percent: 10, default_memory_mb: 512, default_io_weight: 50}
    profiles: {storage: {memory_mb: none, io_weight: 400}}
services:
  db:
    description: "All of it: where it is kept"
    command: [/usr/bin/db, --port, "5432"]
    type: storage
    priority: critical
    env: {A: "${env:HOME}", B: "1"}
    user: 1000
    health:
      startup: {exec: [/bin/true], timeout: 1500ms}
      liveness: {tcp: "127.0.0.1:5432"}
      readiness: {notify: true}
    resources: {cpu_percent: none, pids: 100, open_files: 4096, memory_request_mb: 128, limits: required}
    stop: {signal: SIGINT, grace: 250ms}
    logs: {max_size: 10MB, max_files: 2, max_age: 7d, max_total_size: 1GiB, compress: false, format: json}
  migrate:
    command: [/usr/bin/migrate]
    oneshot: true
    depends_on: {db: ready}
  web:
    command: [/usr/bin/web]
    manager: gpu
    replicas: 3
    autostart: false
    restart: {policy: on-failure, jitter: 0%}
    success_codes: [0, 3]
    health: {readiness: {http: "http://127.0.0.1:9001/health", interval: 2s}}
    depends_on: {db: {condition: started, required: false}, migrate: completed}
"#;

    #[test]
    fn what_is_shown_reads_back_as_the_same_configuration() {
        let config = Document::parse(WHOLE, "whole").unwrap();
        let shown = crate::out::yaml(&show(&config)).unwrap();
        let again =
            Document::parse(&shown, "shown").unwrap_or_else(|error| panic!("{error}\n{shown}"));
        assert_eq!(again, config, "{shown}");
        // As the person wrote it, where that is the shortest way.
        let logs = &show(&config)["services"]["db"]["logs"];
        let text = r#"{"max_size":"10MB","max_files":2,"max_age":"7d","max_total_size":"1GiB","compress":false,"format":"json"}"#;
        let wanted: Value = serde_json::from_str(text).unwrap();
        assert_eq!(*logs, wanted);
    }

    #[test]
    fn sizes_are_as_short_as_they_can_be() {
        for (bytes, text) in [
            (16 << 20, "16MiB"),
            (10_000_000, "10MB"),
            (1 << 40, "1024GiB"),
            (2_000_000_000, "2GB"),
            (4_096, "4KiB"),
            (4_097, "4097B"),
            (1_500, "1500B"),
            (1_024_000, "1000KiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
