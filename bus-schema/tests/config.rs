//! Configurations that are right: what comes out of them.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::config::{
    Condition, Config, Document, Priority, RestartMode, RestartPolicy,
};
use blackhole_bus_schema::health::ProbeCheck;
use blackhole_bus_schema::limits::Limits;
use blackhole_bus_schema::names::{Component, ManagerName, ServiceName};

const MIB: u64 = 1024 * 1024;

fn parse(text: &str) -> Config {
    with_env(text, &[])
}

fn with_env(text: &str, variables: &[(&str, &str)]) -> Config {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()));
    match Config::parse_in(text, "blackhole.yaml", Path::new("/etc/app"), variables) {
        Ok(config) => config,
        Err(error) => panic!("{error}"),
    }
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// The block as the user wrote it.
const USERS_BLOCK: &str = "\
runtime:
  orchestrator:
    max_processes: 50
    restart_policy:
      max_attempts: 5
      backoff_multiplier: 2
      max_backoff: 60s
    resource_limits:
      default_cpu_percent: 10
      default_memory_mb: 512
      default_io_weight: 100
";

#[test]
fn the_users_block_parses_unchanged() {
    let config = parse(USERS_BLOCK);
    assert_eq!(config.orchestrator.max_processes, 50);
    assert_eq!(
        config.orchestrator.restart_policy,
        RestartPolicy {
            max_attempts: 5,
            initial_backoff: Duration::from_secs(1),
            backoff_multiplier: 2.0,
            max_backoff: Duration::from_secs(60),
            jitter_percent: 10,
            reset_after: Duration::from_secs(60),
            cool_down: None,
        }
    );
    assert!(config.services.is_empty());
}

#[test]
fn empty_files_have_no_services() {
    for text in [
        "",
        "\n\n",
        "# nothing yet\n",
        "---\n",
        "services:\n",
        "runtime:\nservices: {}\n",
        "{}",
    ] {
        assert_eq!(parse(text), Config::default(), "{text:?}");
    }
}

#[test]
fn every_key_of_a_service() {
    let config = parse(
        r#"
runtime:
  orchestrator:
    max_processes: 12
    usage_interval: 250ms
    restart_burst: 7
    restart_refill: 2s
    cgroup_parent: /system.slice/app/
    restart_policy: {initial_backoff: 200ms, jitter: 0%, reset_after: 5m, cool_down: 1h}
services:
  identity:
    description: Who is who
    command: [/usr/bin/identity, --port, 9001, --quick, true, 1.10]
    type: identity
    priority: critical
    replicas: 2
    env: {LOG: info, N: 0755, VERSION: 1.10, ON: on, T: true, EMPTY: "", REF: "${env:HOME}/x", KEY: "${file:secret}"}
    working_dir: data
    user: nobody
    group: 100
    restart: {policy: on-failure, max_attempts: 3, max_backoff: 10s, cool_down: never}
    health:
      startup: {notify: true, failure_threshold: 10}
      liveness: {exec: ["${config_dir}/check.sh", "${HOME}"], interval: 5s, initial_delay: 1m}
      readiness: {http: "http://127.0.0.1:9001/health", interval: 2s, timeout: 500ms, failure_threshold: 4, success_threshold: 2}
    resources: {cpu_percent: 50, memory_mb: 256, io_weight: 200, cpu_request_percent: 20, memory_request_mb: 128, open_files: 4096, pids: 100, limits: required}
    stop: {signal: SIGINT, grace: 1.5s}
    logs: {max_size: 1MiB, max_files: 2}
    success_codes: [0, 3]
  migrate:
    command: [./bin/migrate]
    oneshot: true
    autostart: false
    depends_on: {identity: ready}
  worker:
    command: [worker]
    depends_on:
      identity: started
      migrate: {condition: completed, required: false}
    health: {readiness: {tcp: "[::1]:80"}, liveness: {rpc: worker.ping}}
"#,
    );
    assert_eq!(
        config.orchestrator.usage_interval,
        Duration::from_millis(250)
    );
    assert_eq!(config.orchestrator.restart_burst, 7);
    assert_eq!(config.orchestrator.restart_refill, Duration::from_secs(2));
    assert_eq!(
        config.orchestrator.cgroup_parent.as_deref(),
        Some("system.slice/app")
    );

    let identity = &config.services[&name("identity")];
    assert_eq!(
        identity.command,
        [
            "/usr/bin/identity",
            "--port",
            "9001",
            "--quick",
            "true",
            "1.10"
        ]
    );
    assert_eq!(identity.service_type.as_deref(), Some("identity"));
    assert_eq!(identity.priority, Priority::Critical);
    assert_eq!(identity.replicas, 2);
    let env: Vec<(&str, &str)> = identity
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        env,
        [
            ("EMPTY", ""),
            ("KEY", "${file:/etc/app/secret}"),
            ("LOG", "info"),
            ("N", "0755"),
            ("ON", "on"),
            ("REF", "${env:HOME}/x"),
            ("T", "true"),
            ("VERSION", "1.10"),
        ]
    );
    assert_eq!(identity.working_dir.as_deref(), Some("/etc/app/data"));
    assert_eq!(identity.user.as_deref(), Some("nobody"));
    assert_eq!(identity.group.as_deref(), Some("100"));
    assert_eq!(identity.open_files, Some(4096));
    assert_eq!(identity.restart_mode, RestartMode::OnFailure);
    assert_eq!(
        identity.restart_policy,
        RestartPolicy {
            max_attempts: 3,
            initial_backoff: Duration::from_millis(200),
            backoff_multiplier: 2.0,
            max_backoff: Duration::from_secs(10),
            jitter_percent: 0,
            reset_after: Duration::from_secs(300),
            cool_down: None,
        }
    );
    let startup = identity.probes.startup.clone().unwrap();
    assert_eq!(startup.check, ProbeCheck::Notify);
    assert_eq!(startup.failure_threshold, 10);
    let liveness = identity.probes.liveness.clone().unwrap();
    assert_eq!(
        liveness.check,
        ProbeCheck::Exec(vec!["/etc/app/check.sh".into(), "${HOME}".into()])
    );
    assert_eq!(
        (liveness.interval_ms, liveness.initial_delay_ms),
        (5_000, 60_000)
    );
    let readiness = identity.probes.readiness.clone().unwrap();
    assert_eq!(
        readiness.check,
        ProbeCheck::Http("http://127.0.0.1:9001/health".into())
    );
    assert_eq!((readiness.interval_ms, readiness.timeout_ms), (2_000, 500));
    assert_eq!(
        (readiness.failure_threshold, readiness.success_threshold),
        (4, 2)
    );
    assert_eq!(
        identity.limits,
        Limits {
            cpu_percent: Some(50),
            cpu_weight: Some(400),
            memory_bytes: Some(256 * MIB),
            io_weight: Some(200),
            pids: Some(100),
            cpu_request_percent: Some(20),
            memory_request_bytes: Some(128 * MIB),
            required: true,
        }
    );
    assert_eq!(identity.oom_score_adj, -500);
    assert_eq!((identity.stop.signal, identity.stop.grace_ms), (2, 1_500));
    assert_eq!((identity.logs.max_bytes, identity.logs.max_files), (MIB, 2));
    assert_eq!(identity.success_codes, [0, 3]);

    let migrate = &config.services[&name("migrate")];
    assert_eq!(migrate.command, ["/etc/app/bin/migrate"]);
    assert!(migrate.oneshot && !migrate.autostart);
    assert_eq!(migrate.restart_mode, RestartMode::OnFailure);

    let worker = &config.services[&name("worker")];
    assert_eq!(worker.command, ["worker"]);
    assert_eq!(worker.restart_mode, RestartMode::Always);
    let on = &worker.depends_on[&name("migrate")];
    assert_eq!((on.condition, on.required), (Condition::Completed, false));
    assert_eq!(
        worker.probes.readiness.clone().unwrap().check,
        ProbeCheck::Tcp("[::1]:80".into())
    );
    let instances: Vec<String> = config.instances().map(|name| name.to_string()).collect();
    assert_eq!(
        instances,
        ["identity.1", "identity.2", "migrate.1", "worker.1"]
    );
}

#[test]
fn limits_are_own_over_profile_over_defaults() {
    let config = parse(
        "
runtime:
  orchestrator:
    resource_limits: {default_cpu_percent: 10, default_memory_mb: 512, default_io_weight: 80}
    profiles:
      storage: {cpu_percent: 40, memory_mb: 1024, io_weight: 500, pids: 64, open_files: 9000}
services:
  plain: {command: [a]}
  typed: {command: [a], type: storage}
  own: {command: [a], type: storage, resources: {memory_mb: 2048, pids: none, cpu_weight: 7}}
  free: {command: [a], resources: {cpu_percent: none, memory_mb: none}}
  unknown: {command: [a], type: networking, priority: background}
  dear: {command: [a], priority: critical}
",
    );
    let limits = |service: &str| config.services[&name(service)].limits.clone();
    let plain = Limits {
        cpu_percent: Some(10),
        cpu_weight: Some(100),
        memory_bytes: Some(512 * MIB),
        io_weight: Some(80),
        ..Limits::default()
    };
    assert_eq!(limits("plain"), plain);
    let typed = Limits {
        cpu_percent: Some(40),
        memory_bytes: Some(1024 * MIB),
        io_weight: Some(500),
        pids: Some(64),
        ..plain.clone()
    };
    assert_eq!(limits("typed"), typed);
    assert_eq!(config.services[&name("typed")].open_files, Some(9000));
    assert_eq!(
        limits("own"),
        Limits {
            memory_bytes: Some(2048 * MIB),
            pids: None,
            cpu_weight: Some(7),
            ..typed
        }
    );
    assert_eq!(
        limits("free"),
        Limits {
            cpu_percent: None,
            memory_bytes: None,
            ..plain.clone()
        }
    );
    let unknown = Limits {
        cpu_weight: Some(25),
        io_weight: Some(20),
        ..plain.clone()
    };
    assert_eq!(limits("unknown"), unknown);
    assert_eq!(
        limits("dear"),
        Limits {
            cpu_weight: Some(400),
            io_weight: Some(320),
            ..plain
        }
    );
    let oom = |service: &str| config.services[&name(service)].oom_score_adj;
    assert_eq!((oom("plain"), oom("unknown"), oom("dear")), (0, 500, -500));
}

#[test]
fn environment_stands_over_the_file() {
    let over = [
        ("BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES", "80"),
        (
            "BLACKHOLE_RUNTIME_ORCHESTRATOR_RESTART_POLICY_MAX_BACKOFF",
            "5s",
        ),
        (
            "BLACKHOLE_RUNTIME_ORCHESTRATOR_RESOURCE_LIMITS_DEFAULT_CPU_PERCENT",
            "none",
        ),
        ("BLACKHOLE_RUNTIME_ORCHESTRATOR_USAGE_INTERVAL", ""),
        ("BLACKHOLE_RUN_DIR", "/somewhere"),
        ("HOME", "/root"),
    ];
    let config = with_env(
        &format!("{USERS_BLOCK}services: {{a: {{command: [a]}}}}\n"),
        &over,
    );
    assert_eq!(config.orchestrator.max_processes, 80);
    assert_eq!(
        config.orchestrator.restart_policy.max_backoff,
        Duration::from_secs(5)
    );
    assert_eq!(config.orchestrator.usage_interval, Duration::from_secs(1));
    assert_eq!(config.services[&name("a")].limits.cpu_percent, None);
    // Also over a file that says nothing of runtime.
    assert_eq!(with_env("", &over).orchestrator.max_processes, 80);
    assert_eq!(with_env("runtime:\n", &over).orchestrator.max_processes, 80);
}

#[test]
fn anchors_and_merges_save_repetition() {
    let config = parse(
        "
services:
  a: &base
    command: [a]
    env: &env {X: '1'}
  b:
    <<: *base
    command: [b]
  c:
    command: [c]
    env: *env
",
    );
    assert_eq!(config.services[&name("b")].command, ["b"]);
    assert_eq!(config.services[&name("b")].env["X"], "1");
    assert_eq!(config.services[&name("c")].env["X"], "1");
}

#[test]
fn load_takes_paths_from_the_files_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blackhole.yaml");
    std::fs::write(
        &path,
        "\u{feff}services: {a: {command: [./a, \"${config_dir}\"]}}\n",
    )
    .unwrap();
    let config = Config::load_with(&path, []).unwrap();
    let dir = dir.path().display().to_string();
    assert_eq!(
        config.services[&name("a")].command,
        [format!("{dir}/a"), dir]
    );
}

#[test]
fn a_thousand_services_are_fine() {
    use std::fmt::Write;
    let mut text = String::from("services:\n");
    for index in 0..1_000 {
        let on = index - 1;
        writeln!(
            text,
            "  s{index}: {{command: [run, \"{index}\"], env: {{A: b, C: d}},"
        )
        .unwrap();
        if index > 0 {
            writeln!(text, "    depends_on: {{s{on}: started}},").unwrap();
        }
        writeln!(
            text,
            "    health: {{readiness: {{tcp: \"127.0.0.1:80\"}}}}}}"
        )
        .unwrap();
    }
    assert_eq!(parse(&text).services.len(), 1_000);
}

#[test]
fn tcp_addresses_are_of_the_loopback_and_commands_one_above() {
    let text = "
runtime:
  orchestrator:
    listen: {supervisor: '127.0.0.1:7410', process-manager: '[::1]:7410', rpc: '127.0.0.9:7410'}
services:
  web: {command: [a], description: what people see}
";
    let variables = [(
        "BLACKHOLE_RUNTIME_ORCHESTRATOR_LISTEN_RESOURCE_CONTROLLER".to_owned(),
        "127.0.0.1:7430".to_owned(),
    )];
    let document = Document::parse_in(text, "x", Path::new("/"), variables).unwrap();
    let listen = document.listen;
    let supervisor = Component::Supervisor;
    assert_eq!(
        listen.events(&supervisor).unwrap().to_string(),
        "127.0.0.1:7410"
    );
    assert_eq!(
        listen.commands(&supervisor).unwrap().to_string(),
        "127.0.0.1:7411"
    );
    let manager = Component::ProcessManager(None);
    assert_eq!(listen.commands(&manager).unwrap().to_string(), "[::1]:7411");
    let named = Component::ProcessManager(Some("gpu".parse().unwrap()));
    assert_eq!(listen.events(&named), None);
    assert_eq!(listen.events(&Component::Bridge), None);
    let controller = listen.events(&Component::ResourceController);
    assert_eq!(controller.unwrap().port(), 7430);
    let keys: Vec<_> = listen.entries().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "supervisor",
            "process-manager",
            "resource-controller",
            "rpc"
        ]
    );
    assert_eq!(document.descriptions[&name("web")], "what people see");
    assert_eq!(Document::parse("", "x").unwrap(), Document::default());
}

/// What ends by itself, or is started by hand, does not take a place for ever.
#[test]
fn only_what_stays_counts_against_max_processes() {
    let config = parse(
        "
runtime: {orchestrator: {max_processes: 2}}
services:
  web: {command: [a], replicas: 2}
  job: {command: [a], oneshot: true}
  hand: {command: [a], autostart: false}
",
    );
    assert_eq!(config.instances().count(), 4);
}

#[test]
fn each_process_manager_has_its_services_and_its_limit() {
    let text = "
runtime: {orchestrator: {max_processes: 3, process_managers: {gpu: {max_processes: 2}, batch:}}}
services:
  web: {command: [web], replicas: 3}
  train: {command: [train], replicas: 2, manager: gpu}
  sweep: {command: [sweep], manager: batch}
";
    let config = Config::parse(text, "test").unwrap();
    let name = |text: &str| Some(text.parse::<ManagerName>().unwrap());
    let managers: Vec<_> = config.orchestrator.managers().collect();
    assert_eq!(managers, [None, name("batch"), name("gpu")]);
    let of = |service: &str| config.services[&service.parse().unwrap()].manager.clone();
    assert_eq!(
        [of("web"), of("train"), of("sweep")],
        [None, name("gpu"), name("batch")]
    );
    let most = |manager: &str| {
        let manager = name(manager);
        config.orchestrator.max_processes_of(manager.as_ref())
    };
    assert_eq!([most("gpu"), most("batch"), most("unknown")], [2, 3, 3]);
    assert_eq!(config.orchestrator.max_processes_of(None), 3);
}
