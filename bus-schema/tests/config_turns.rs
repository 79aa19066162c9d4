//! What a service says about the turns of its life: sockets, hooks, reload.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::process::{Hook, ProcessSettings, ReloadAction, ReloadSpec, SocketSpec};

fn settings(lines: &str) -> Result<ProcessSettings, String> {
    let lines: Vec<String> = lines.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!("services:\n  web:\n    command: [web]\n{}", lines.concat());
    let config = Config::parse_in(&text, "blackhole.yaml", Path::new("/etc/app"), []);
    let config = config.map_err(|error| error.to_string())?;
    Ok(config.services.values().next().unwrap().settings.clone())
}

#[track_caller]
fn wrong(lines: &str, words: &[&str]) {
    let error = settings(lines).unwrap_err();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in:\n{error}");
    }
    assert!(error.starts_with("blackhole.yaml:"), "{error}");
}

fn socket(listen: &str) -> SocketSpec {
    SocketSpec {
        listen: listen.to_owned(),
        backlog: 4096,
        mode: None,
        shared: false,
    }
}

#[test]
fn sockets_are_addresses_or_paths() {
    let said = "\
sockets:
  http: 127.0.0.1:8080
  six: \"[::1]:8081\"
  admin: {listen: \"${config_dir}/admin.sock\", mode: 0600, backlog: 16}
fd_store: 9";
    let settings = settings(said).unwrap();
    assert_eq!(settings.fd_store, 9);
    let admin = SocketSpec {
        mode: Some(0o600),
        backlog: 16,
        ..socket("/etc/app/admin.sock")
    };
    let expected = [
        ("admin".to_owned(), admin),
        ("http".to_owned(), socket("127.0.0.1:8080")),
        ("six".to_owned(), socket("[::1]:8081")),
    ];
    assert_eq!(settings.sockets, expected.into());
}

#[test]
fn replicas_share_an_address_and_no_path() {
    let settings = settings("replicas: 3\nsockets: {http: \"127.0.0.1:8080\"}").unwrap();
    assert!(settings.sockets["http"].shared);
    wrong(
        "replicas: 3\nsockets: {http: /run/web.sock}",
        &["3 replicas cannot share a path", "TCP"],
    );
}

#[test]
fn wrong_sockets_are_told() {
    for (value, words) in [
        ("5", &["a map of names to sockets"][..]),
        (
            "{\"a b\": \"127.0.0.1:80\"}",
            &["a socket's name", "LISTEN_FDNAMES"],
        ),
        ("{a: 8080}", &["sockets.a", "expected a map with listen"]),
        ("{a: {}}", &["sockets.a", "does not say where to listen"]),
        ("{a: \"localhost:80\"}", &["sockets.a", "a numeric address"]),
        ("{a: \"127.0.0.1:0\"}", &["sockets.a", "ADDRESS:PORT"]),
        ("{a: web.sock}", &["sockets.a", "an absolute path"]),
        (
            "{a: {listen: \"127.0.0.1:80\", mode: 0600}}",
            &["sockets.a.mode", "leave it out"],
        ),
        (
            "{a: {listen: \"127.0.0.1:80\", backlog: 0}}",
            &["from 1 to 65535"],
        ),
        (
            "{a: \"127.0.0.1:80\", b: \"127.0.0.1:80\"}",
            &["sockets.b", "web's socket a already"],
        ),
    ] {
        wrong(&format!("sockets: {value}"), words);
    }
    let path = format!("/{}", "x".repeat(120));
    wrong(
        &format!("sockets: {{a: {path}}}"),
        &["121 bytes long, 107 are the most"],
    );
    wrong("fd_store: many", &["fd_store", "from 0 to 4096"]);
}

#[test]
fn hooks_are_commands_with_a_timeout() {
    let said = "\
stop: {grace: 8s}
hooks:
  before_start: [./migrate, --all]
  after_start: {command: [/bin/tell], timeout: 5s}
  before_stop: [/bin/drain]
  after_exit: {command: [/bin/clean]}";
    let hooks = settings(said).unwrap().hooks;
    let hook = |command: &[&str], timeout_ms| {
        Some(Hook {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout_ms,
        })
    };
    assert_eq!(
        hooks.before_start,
        hook(&["/etc/app/migrate", "--all"], 30_000)
    );
    assert_eq!(hooks.after_start, hook(&["/bin/tell"], 5_000));
    assert_eq!(hooks.before_stop, hook(&["/bin/drain"], 4_000));
    assert_eq!(hooks.after_exit, hook(&["/bin/clean"], 30_000));
    for (lines, words) in [
        ("hooks: [a]", &["hooks", "before_start"][..]),
        ("hooks: {before: [a]}", &["unknown key \"before\""]),
        (
            "before_start: [a]",
            &["unknown key", "under services.web.hooks"],
        ),
        (
            "hooks: {before_start: a b}",
            &["hooks.before_start", "write [a, b]"],
        ),
        ("hooks: {after_exit: {timeout: 1s}}", &["has no command"]),
        (
            "hooks: {after_exit: {command: []}}",
            &["hooks.after_exit.command", "is empty"],
        ),
        (
            "hooks: {after_exit: {command: [a], timeout: 2h}}",
            &["from 1ms to 1h"],
        ),
        (
            "stop: {grace: 1s}\nhooks: {before_stop: {command: [a], timeout: 2s}}",
            &[
                "hooks.before_stop",
                "2000 ms",
                "1000 ms",
                "raise stop.grace",
            ],
        ),
    ] {
        wrong(lines, words);
    }
}

#[test]
fn a_reload_is_a_signal_or_a_command() {
    let reload = |text: &str| {
        settings(&format!("reload: {text}"))
            .unwrap()
            .reload
            .unwrap()
    };
    assert_eq!(
        reload("{signal: SIGHUP}"),
        ReloadSpec {
            action: ReloadAction::Signal(1),
            notify: false,
            timeout_ms: 30_000,
        }
    );
    assert_eq!(
        reload("{command: [./web, --reload], notify: true, timeout: 5s}"),
        ReloadSpec {
            action: ReloadAction::Command(vec!["/etc/app/web".into(), "--reload".into()]),
            notify: true,
            timeout_ms: 5_000,
        }
    );
    for (text, words) in [
        (
            "SIGHUP",
            &["a map with signal or command", "{signal: SIGHUP}"][..],
        ),
        ("{}", &["neither signal nor command"]),
        ("{signal: 1, command: [a]}", &["signal stands there too"]),
        ("{signal: 65}", &["a signal, for instance SIGHUP or 1"]),
        ("{signal: 1, timeout: 5}", &["5 has no unit"]),
    ] {
        wrong(&format!("reload: {text}"), words);
    }
}
