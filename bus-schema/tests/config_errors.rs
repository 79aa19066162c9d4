//! Configurations that are wrong: each gives one error with its place.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write;
use std::path::Path;

use blackhole_bus_schema::config::{Config, ConfigError, MAX_BYTES};
use proptest::prelude::*;

fn error(text: &str, variables: &[(&str, &str)]) -> ConfigError {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()));
    match Config::parse_in(text, "blackhole.yaml", Path::new("/etc/app"), variables) {
        Ok(config) => panic!("no error for {text}\n{config:?}"),
        Err(error) => error,
    }
}

/// A service `web` with these lines.
fn web(lines: &str) -> String {
    let mut text = String::from("services:\n  web:\n");
    if !lines.contains("command") {
        text.push_str("    command: [/bin/true]\n");
    }
    for line in lines.lines() {
        writeln!(text, "    {line}").unwrap();
    }
    text
}

fn runtime(lines: &str) -> String {
    let mut text = String::from("runtime:\n  orchestrator:\n");
    for line in lines.lines() {
        writeln!(text, "    {line}").unwrap();
    }
    text
}

/// All messages in one snapshot: they are to be read side by side.
#[test]
fn messages() {
    let cases: Vec<(&str, String)> = vec![
        ("unknown key at the top", "service: {}\n".into()),
        ("unknown key, near", web("comand: [a]\ncommand: [a]")),
        ("unknown key, misplaced", web("memory_mb: 5")),
        ("unknown key, misplaced deeper", web("resources: {replicas: 5}")),
        ("unknown key, far", web("volumes: []")),
        ("orchestrator at the top", "orchestrator: {max_processes: 5}\n".into()),
        ("unknown key below runtime", runtime("max_process: 50")),
        ("bad duration", web("stop: {grace: ten seconds}")),
        ("duration without unit", web("stop:\n  grace: 10")),
        ("duration too long", web("stop: {grace: 2h}")),
        ("duration negative", web("stop: {grace: -1s}")),
        ("duration is a list", web("stop: {grace: [1s]}")),
        ("duration zero", web("health: {readiness: {notify: true, interval: 0s}}")),
        ("size without unit", web("logs: {max_size: 1000000}")),
        ("size with wrong unit", web("logs: {max_size: 16M}")),
        ("size too small", web("logs: {max_size: 1KiB}")),
        ("bad service name", "services:\n  Web Front: {command: [a]}\n".into()),
        ("dotted service name", "services:\n  web.1: {command: [a]}\n".into()),
        ("reserved service name", "services:\n  bridge: {command: [a]}\n".into()),
        ("empty service name", "services:\n  \"\": {command: [a]}\n".into()),
        ("missing command", "services:\n  web:\n    replicas: 2\n".into()),
        ("nothing in a service", "services:\n  web:\n".into()),
        ("command without value", web("command:")),
        ("command is a text", web("command: /usr/bin/web --port 80")),
        ("command is a shell line", web("command: \"a | b\"")),
        ("command is empty", web("command: []")),
        ("command with empty program", web("command: [\"\", a]")),
        ("command holds a map", web("command: [a, {b: c}]")),
        ("command holds nothing", web("command: [a, ~]")),
        ("command holds NUL", web("command: [\"a\\0b\"]")),
        ("a service is a list", "services:\n  web: [a]\n".into()),
        ("services is a list", "services:\n  - web\n".into()),
        ("the whole is a list", "- a\n".into()),
        ("the whole is a text", "hello\n".into()),
        ("two services of one name", "services:\n  web: {command: [a]}\n  db: {command: [a]}\n  web: {command: [b]}\n".into()),
        ("a key twice in flow", web("stop: {grace: 1s, grace: 2s}")),
        ("dependency unknown", "services:\n  web: {command: [a], depends_on: {databse: ready}}\n  database: {command: [a]}\n".into()),
        ("dependency on nothing like it", web("depends_on: {x: ready}")),
        ("dependency condition", "services:\n  web:\n    command: [a]\n    depends_on:\n      db: redy\n  db: {command: [a]}\n".into()),
        ("dependency list", web("depends_on: [db]")),
        ("dependency without condition", web("depends_on: {db: {required: false}}")),
        ("dependency that never completes", "services:\n  web: {command: [a], depends_on: {db: completed}}\n  db: {command: [a]}\n".into()),
        ("cycle of one", web("depends_on: {web: started}")),
        ("cycle of three", "services:\n  a: {command: [a], depends_on: {b: ready}}\n  b:\n    command: [a]\n    depends_on:\n      c: ready\n  c: {command: [a], depends_on: {a: ready}}\n  d: {command: [a], depends_on: {a: ready}}\n".into()),
        ("replicas negative", web("replicas: -1")),
        ("replicas absurd", web("replicas: 1000000")),
        ("replicas fraction", web("replicas: 1.5")),
        ("replicas quoted", web("replicas: \"2\"")),
        ("priority", web("priority: urgent")),
        ("priority, near", web("priority: Critical")),
        ("type", web("type: Big Thing")),
        ("max_processes zero", runtime("max_processes: 0")),
        ("max_processes absurd", runtime("max_processes: 99999999999999999999")),
        ("max_processes text", runtime("max_processes: fifty")),
        ("replicas above max_processes", format!("{}{}", runtime("max_processes: 3"), web("replicas: 4"))),
        ("all replicas above max_processes", format!("{}{}  db: {{command: [a], replicas: 2}}\n", runtime("max_processes: 3"), web("replicas: 2"))),
        ("process-managers as list", runtime("process_managers: [gpu]")),
        ("process-manager's name", runtime("process_managers: {GPU: {}}")),
        ("process-manager's key", runtime("process_managers: {gpu: {max_process: 5}}")),
        ("manager, near", format!("{}{}", runtime("process_managers: {gpu: {}, batch: {}}"), web("manager: gpo"))),
        ("manager unknown", format!("{}{}", runtime("process_managers: {gpu: {}, batch: {}}"), web("manager: elsewhere"))),
        ("manager without any", web("manager: gpu")),
        ("manager no name", web("manager: process-manager.gpu")),
        ("replicas above the manager's max_processes", format!("{}{}", runtime("process_managers: {gpu: {max_processes: 2}}"), web("manager: gpu\nreplicas: 3"))),
        ("all replicas above the manager's", format!("{}{}  db: {{command: [a], replicas: 2, manager: gpu}}\n", runtime("process_managers: {gpu: {max_processes: 3}}"), web("manager: gpu\nreplicas: 2"))),
        ("listen on all", runtime("listen: {supervisor: \"0.0.0.0:7410\"}")),
        ("listen on another host's", runtime("listen:\n  rpc: 192.168.1.1:7400")),
        ("listen by name", runtime("listen: {rpc: \"localhost:7400\"}")),
        ("listen without port", runtime("listen: {rpc: 127.0.0.1}")),
        ("listen on port 0", runtime("listen: {bridge: \"[::1]:0\"}")),
        ("listen as number", runtime("listen: {bridge: 7400}")),
        ("listen without a port for commands", runtime("listen: {bridge: \"127.0.0.1:65535\"}")),
        ("listen ports overlap", runtime("listen: {supervisor: \"127.0.0.1:7410\", bridge: \"127.0.0.1:7411\"}")),
        ("listen of whom", runtime("listen: {process_manager: \"127.0.0.1:7411\"}")),
        ("multiplier below one", runtime("restart_policy: {backoff_multiplier: 0.5}")),
        ("multiplier not a number", runtime("restart_policy: {backoff_multiplier: .nan}")),
        ("max below initial", runtime("restart_policy: {initial_backoff: 5s, max_backoff: 1s}")),
        ("jitter without sign", runtime("restart_policy: {jitter: 0.1}")),
        ("cgroup parent", runtime("cgroup_parent: ../x")),
        ("profile key", runtime("profiles: {storage: {cpu: 5}}")),
        ("cpu zero", web("resources: {cpu_percent: 0}")),
        ("cpu with sign", web("resources: {cpu_percent: 50%}")),
        ("memory with unit", web("resources: {memory_mb: 512MiB}")),
        ("weight", web("resources: {io_weight: 100000}")),
        ("limits word", web("resources: {limits: strict}")),
        ("request above limit", web("resources: {memory_mb: 64, memory_request_mb: 128}")),
        ("request above default", format!("{}{}", runtime("resource_limits: {default_cpu_percent: 10}"), web("resources: {cpu_request_percent: 20}"))),
        ("env is a list", web("env: [A=b]")),
        ("env without value", web("env: {A: }")),
        ("env holds a list", web("env: {A: [b]}")),
        ("env name", web("env: {\"A=B\": c}")),
        ("env reserved", web("env: {BLACKHOLE_TOKEN: x}")),
        ("reference unknown", web("env: {A: \"${HOME}/x\"}")),
        ("reference open", web("env: {A: \"${env:HOME\"}")),
        ("restart as text", web("restart: always")),
        ("restart policy word", web("restart: {policy: on_failure}")),
        ("one-shot always", web("oneshot: true\nrestart: {policy: always}")),
        ("oneshot yes", web("oneshot: yes")),
        ("probe without check", web("health: {readiness: {interval: 1s}}")),
        ("probe with two checks", web("health: {readiness: {tcp: \"a:1\", http: \"http://a\"}}")),
        ("probe kind", web("health: {ready: {notify: true}}")),
        ("probe https", web("health: {liveness: {http: \"https://localhost/\"}}")),
        ("probe http", web("health: {liveness: {http: \"localhost:80\"}}")),
        ("probe http port", web("health: {liveness: {http: \"http://localhost:99999/\"}}")),
        ("probe tcp", web("health: {liveness: {tcp: 6379}}")),
        ("probe tcp port", web("health: {liveness: {tcp: \"localhost:0\"}}")),
        ("probe exec text", web("health: {liveness: {exec: /bin/check}}")),
        ("probe notify", web("health: {liveness: {notify: false}}")),
        ("stop signal", web("stop: {signal: SIGNOPE}")),
        ("success codes", web("success_codes: [0, 256]")),
        ("user", web("user: \"a b\"")),
        ("tab", "services:\n\tweb: {command: [a]}\n".into()),
        ("unclosed list", "services:\n  web:\n    command: [a, b\n".into()),
        ("unclosed quote", "services:\n  web:\n    command: [\"a]\n".into()),
        ("bad indentation", "services:\n  web:\n    command: [a]\n   replicas: 1\n".into()),
        ("two documents", "services: {}\n---\nservices: {}\n".into()),
        ("unknown alias", "services: *x\n".into()),
        ("a tag", web("env: !python/object:os.system {A: b}")),
        ("a complex key", "services: {[a]: b}\n".into()),
        ("a number as key", "services:\n  1: 2\n".into()),
        ("a control character", "services: \u{1}\n".into()),
        ("a long line", format!("services: {{web: {{env: {{A: \"{}\"}}, x: 1}}}}\n", "y".repeat(300))),
    ];
    let mut all = String::new();
    for (name, text) in &cases {
        let error = error(text, &[]);
        writeln!(all, "# {name}\n{error}\n").unwrap();
        let invalid = error
            .invalid()
            .unwrap_or_else(|| panic!("{name}: {error:?}"));
        assert!(invalid.line.is_some(), "{name}: no place in {error}");
    }
    insta::assert_snapshot!("messages", all);
}

#[test]
fn environment_messages() {
    let mut all = String::new();
    for (name, value) in [
        ("BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESES", "5"),
        ("BLACKHOLE_RUNTIME_NOTHING_LIKE_IT_AT_ALL_IN_ANY_WAY", "5"),
        ("BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES", "many"),
        ("BLACKHOLE_RUNTIME_ORCHESTRATOR_USAGE_INTERVAL", "5"),
    ] {
        writeln!(all, "{}\n", error("", &[(name, value)])).unwrap();
    }
    let wrong_file = error(
        "runtime: 5\n",
        &[("BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES", "5")],
    );
    writeln!(all, "{wrong_file}").unwrap();
    insta::assert_snapshot!("environment_messages", all);
}

fn load_error(path: &Path) -> String {
    let error = Config::load_with(path, []).expect_err("an error");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        write!(text, ": {cause}").unwrap();
        source = cause.source();
    }
    text
}

#[test]
fn files_that_are_no_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blackhole.yaml");
    let shown = path.display();
    assert_eq!(
        load_error(&path),
        format!("cannot read the configuration {shown}: No such file or directory (os error 2)")
    );
    let dir_shown = dir.path().display();
    assert_eq!(
        load_error(dir.path()),
        format!(
            "{dir_shown} is a directory, a configuration is a file: give {dir_shown}/blackhole.yaml"
        )
    );
    std::fs::write(&path, b"services:\n  a: \xff\xfe\n").unwrap();
    assert_eq!(
        load_error(&path),
        format!("{shown}:2:6: not UTF-8 text (byte 0xff)")
    );

    let garbage: Vec<u8> = (0..10_000_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761) as u8)
        .collect();
    std::fs::write(&path, &garbage).unwrap();
    // Where it becomes too large is told, as for any other mistake.
    let head = &garbage[..MAX_BYTES as usize];
    let line = head.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = head.len() - head.iter().rposition(|byte| *byte == b'\n').unwrap();
    let too_large = |place: &str| {
        format!(
            "{place}: the file goes on beyond {MAX_BYTES} bytes, which no configuration does: is this the right file?"
        )
    };
    assert_eq!(
        load_error(&path),
        too_large(&format!("{shown}:{line}:{column}"))
    );
    // A device says it is empty and never ends.
    let at = MAX_BYTES + 1;
    assert_eq!(
        load_error(Path::new("/dev/zero")),
        too_large(&format!("/dev/zero:1:{at}"))
    );
    assert!(
        error(&"a".repeat(MAX_BYTES as usize + 1), &[])
            .to_string()
            .contains("goes on beyond")
    );
}

#[test]
fn bombs_are_defused() {
    // Each level is nine times the one before: 9^9 values.
    let mut laughs = String::from("a0: &a0 [x]\n");
    for level in 1..10 {
        let on = level - 1;
        let list = vec![format!("*a{on}"); 9].join(", ");
        writeln!(laughs, "a{level}: &a{level} [{list}]").unwrap();
    }
    let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
    let deep_block: String = (0..2_000)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    let wide = format!("services: [{}]\n", "1,".repeat(1_000_000));
    let anchors: String = (0..50_000).map(|n| format!("a{n}: &a{n} x\n")).collect();
    let cyclic = "services: &a {b: *a}\n".to_owned();
    let repeated = format!("services: {{{}}}\n", "a: 1, ".repeat(100_000));
    for (name, text) in [
        ("laughs", laughs),
        ("deep", deep),
        ("deep block", deep_block),
        ("wide", wide),
        ("anchors", anchors),
        ("cyclic", cyclic),
        ("repeated", repeated),
    ] {
        let error = error(&text, &[]);
        let message = error.to_string();
        assert!(message.starts_with("blackhole.yaml:"), "{name}: {message}");
        assert!(message.len() < 1_000, "{name}: {message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the text, there is a configuration or an error, never a panic.
    #[test]
    fn random_text_never_panics(text in any::<String>()) {
        let _ = Config::parse(&text, "x");
    }

    /// The same with texts that are nearly YAML.
    #[test]
    fn random_yaml_never_panics(
        parts in proptest::collection::vec(
            prop_oneof![
                "[a-z]{1,4}", Just(": ".into()), Just("\n".into()), Just("  ".into()), Just("- ".into()),
                Just("[".into()), Just("]".into()), Just("{".into()), Just("}".into()), Just(", ".into()),
                Just("services:\n  ".into()), Just("command: [a]\n".into()), Just("&a ".into()),
                Just("*a".into()), Just("<<: ".into()), Just("!!int ".into()), Just("|\n".into()),
                Just("\"".into()), Just("'".into()), Just("# ".into()), Just("10".into()), Just("10s".into()),
                Just("\t".into()), Just("ü→\u{1F600}".into()), Just("---\n".into()), Just("${".into()),
            ],
            0..40,
        )
    ) {
        if let Err(error) = Config::parse(&parts.concat(), "x") {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// Any scalar at any place of a service is taken or refused with its place.
    #[test]
    fn random_values_never_panic(
        key in prop::sample::select(vec![
            "command", "type", "priority", "replicas", "env", "working_dir", "user", "group", "oneshot",
            "autostart", "restart", "health", "resources", "stop", "depends_on", "logs", "success_codes",
        ]),
        value in prop_oneof![
            any::<i128>().prop_map(|n| n.to_string()), any::<f64>().prop_map(|n| n.to_string()),
            Just("{}".into()), Just("[]".into()), Just("~".into()), Just("true".into()),
            "\\[[a-z0-9, ]{0,12}\\]", "\\{[a-z]{1,9}: [a-z0-9]{0,5}\\}", "'[^'\n\r]{0,12}'",
        ],
    ) {
        let command = if key == "command" { "" } else { "command: [a], " };
        let text = format!("services: {{a: {{{command}{key}: {value}}}}}");
        if let Err(error) = Config::parse(&text, "x") {
            prop_assert!(error.to_string().starts_with("x:"), "{}", error);
        }
    }
}
