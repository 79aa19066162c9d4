//! What `blackhole doctor` finds out about a configuration before anything runs.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A directory that every user may pass through.
fn temp() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    temp
}

/// The checks of a configuration that lies in `temp`.
fn doctor(temp: &Path, config: &str) -> Vec<Value> {
    let file = temp.join("b.yaml");
    std::fs::write(&file, config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_blackhole"))
        .args(["doctor", "-o", "json", "-c"])
        .arg(&file)
        .arg("--run-dir")
        .arg(temp.join("r"))
        .arg("--state-dir")
        .arg(temp.join("s"))
        .env_remove("BLACKHOLE_CONFIG")
        .env_remove("NOT_SET_ANYWHERE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    document["checks"].as_array().unwrap().clone()
}

/// The findings about the configuration: line, key, what was found and what to do.
fn findings(checks: &[Value]) -> Vec<(u64, String, String)> {
    let about = checks.iter().filter(|check| !check["at"].is_null());
    about
        .map(|check| {
            assert_eq!(check["grade"], "FAIL", "{check}");
            let advice = check["advice"].as_str().unwrap();
            assert!(!advice.is_empty(), "{check}");
            (
                check["at"]["line"].as_u64().unwrap(),
                check["at"]["key"].as_str().unwrap().to_owned(),
                format!("{} → {advice}", check["found"].as_str().unwrap()),
            )
        })
        .collect()
}

fn grade<'a>(checks: &'a [Value], what: &str) -> &'a str {
    let check = checks.iter().find(|check| check["what"] == what);
    check.unwrap_or_else(|| panic!("no {what}"))["grade"]
        .as_str()
        .unwrap()
}

#[test]
fn each_finding_says_where_what_and_what_to_do() {
    let temp = temp();
    let dir = temp.path();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap();
    let _unix = UnixListener::bind(dir.join("busy.sock")).unwrap();
    std::fs::write(dir.join("plain"), "no program").unwrap();
    std::fs::write(dir.join("wrong.env"), "A=1\nno assignment\n").unwrap();
    let config = format!(
        r#"
services:
  web:
    command: [./plain, now]
    working_dir: nowhere
    env_files:
      - {{path: left-out.env, required: false}}
      - missing.env
      - wrong.env
    env:
      HOST: "${{env:NOT_SET_ANYWHERE}}"
      SECRET: "x ${{file:no-secret}}"
      FINE: "${{env:PATH}}"
    stdin: no-input
    sockets:
      http: "{busy}"
      far: "192.0.2.1:80"
      local: "${{config_dir}}/busy.sock"
      odd: {{listen: "${{config_dir}}/plain", backlog: 5}}
    hooks: {{before_start: [/no/such/hook]}}
    health: {{liveness: {{exec: [no-such-program-anywhere]}}}}
  ghost:
    command: [sh]
    user: no-such-user
    working_dir: /
  group:
    command: [sh]
    group: no-such-group
  groups:
    command: [sh]
    groups: ["0", no-such-group]
runtime: {{orchestrator: {{listen: {{rpc: "{busy}"}}}}}}
"#
    );
    let found = findings(&doctor(dir, &config));
    let me = format!("(pid {})", std::process::id());
    let expected = [
        (4, "web.command", "chmod +x"),
        (
            5,
            "web.working_dir",
            "no such file or directory → the working directory does not exist: create it",
        ),
        (8, "web.env_files.1", "missing.env: No such file"),
        (9, "web.env_files.2", "wrong.env:2: there is no ="),
        (11, "web.env.HOST", "${env:NOT_SET_ANYWHERE}: this shell"),
        (12, "web.env.SECRET", "create the file"),
        (14, "web.stdin", "no-input"),
        (16, "web.sockets.http", me.as_str()),
        (17, "web.sockets.far", "this host has no such address"),
        (18, "web.sockets.local", me.as_str()),
        (19, "web.sockets.odd", "no socket"),
        (20, "web.hooks.before_start", "/no/such/hook"),
        (21, "web.health.liveness.exec", "is not in PATH"),
        (
            24,
            "ghost.user",
            "no user \"no-such-user\" on this host → create it, or correct `user`",
        ),
        (28, "group.group", "no group \"no-such-group\""),
        (31, "groups.groups.1", "no group \"no-such-group\""),
    ];
    for (line, key, text) in expected {
        let key = format!("services.{key}");
        assert!(
            found
                .iter()
                .any(|one| one.0 == line && one.1 == key && one.2.contains(text)),
            "{line} {key} {text}: {found:#?}"
        );
    }
    let listen = found
        .iter()
        .find(|one| one.1.ends_with("listen.rpc"))
        .unwrap();
    assert!(listen.0 == 32 && listen.2.contains(&me), "{listen:?}");
    assert_eq!(found.len(), expected.len() + 1, "{found:#?}");
}

#[test]
fn what_is_right_is_said_to_be() {
    let temp = temp();
    std::fs::write(temp.path().join("a.env"), "A=1\n").unwrap();
    std::fs::write(temp.path().join("secret"), "x\n").unwrap();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    // A socket that nobody listens on any more is replaced by the next start.
    drop(UnixListener::bind(temp.path().join("stale.sock")).unwrap());
    let config = format!(
        r#"
services:
  web:
    command: [sh, -c, "true"]
    working_dir: .
    env_files: [a.env]
    env: {{A: "${{file:secret}}", PATH: "/nowhere:/usr/bin:/bin"}}
    sockets: {{http: "{free}", stale: "${{config_dir}}/stale.sock"}}
    user: "{}"
    group: "{}"
"#,
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    let checks = doctor(temp.path(), &config);
    assert_eq!(findings(&checks), []);
    for what in [
        "users and groups",
        "working directory",
        "environment",
        "programs",
        "sockets",
    ] {
        assert_eq!(grade(&checks, what), "OK", "{what}");
    }
}

/// Only root may ask for another user, and only for another user do modes matter to root.
#[test]
fn it_is_the_services_user_who_has_to_have_the_right() {
    let temp = temp();
    let dir = temp.path();
    let at = |name: &str| dir.join(name);
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (name, mode) in [("closed", 0o700), ("open", 0o755)] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("run"), "#!/bin/sh\n").unwrap();
        set(&at(name).join("run"), 0o744);
        set(&at(name), mode);
    }
    let own = rustix::process::geteuid();
    let other = if own.is_root() {
        65534
    } else {
        own.as_raw() + 1
    };
    let config = format!(
        "
services:
  other:
    command: [open/run]
    working_dir: closed
    user: {other}
    group: {other}
    stdin: closed/run
  own: {{command: [open/run], working_dir: closed}}
"
    );
    let found = findings(&doctor(dir, &config));
    let keys: Vec<&str> = found.iter().map(|one| one.1.as_str()).collect();
    if own.is_root() {
        let expected = [
            "services.other.working_dir",
            "services.other.stdin",
            "services.other.command",
        ];
        assert_eq!(keys, expected, "{found:#?}");
        assert!(
            found[0]
                .2
                .contains("user 65534 may not enter the directory"),
            "{found:#?}"
        );
        assert!(
            found[1].2.contains("may not pass through the directory"),
            "{found:#?}"
        );
        assert!(
            found[2]
                .2
                .contains("not executable for user 65534: chmod +x"),
            "{found:#?}"
        );
    } else {
        assert_eq!(keys, ["services.other.user"]);
        assert!(found[0].2.contains("run Blackhole as root"), "{found:#?}");
    }
}
