//! A configuration that is edited while the daemons run: that it is told, what has
//! changed, and that what is advised makes it hold. And what `doctor` finds of a
//! deployment that runs.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::TcpListener;

use blackhole_tests::Deployment;
use blackhole_tests::deployment::DAEMONS;
use serde_json::Value;

const BEFORE: &str = r#"
services:
  web: {command: [blackhole-example, idle], env: {A: "1"}}
  same: {command: [blackhole-example, idle]}
  old: {command: [blackhole-example, idle]}
"#;

fn write(deployment: &Deployment, text: &str) {
    std::fs::write(deployment.config(), text).unwrap();
}

/// The only lines of `status` and `doctor` that are about the file.
#[track_caller]
fn told(deployment: &Deployment) -> Option<(String, String)> {
    let status = deployment.cli(&["status"]).ok().stdout;
    let mut lines = status.lines().filter(|line| line.contains("changed"));
    let line = lines.next().map(str::to_owned);
    assert_eq!(lines.next(), None, "{status}");
    let document = deployment.cli(&["doctor", "-o", "json"]).json();
    let checks = document["checks"].as_array().unwrap();
    let mut about = checks
        .iter()
        .filter(|check| check["what"] == "running configuration");
    let check = about.next().unwrap();
    assert_eq!(about.next(), None, "{document}");
    assert_eq!(check["grade"] == "OK", line.is_none(), "{line:?} {check}");
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    line.map(|line| {
        assert!(
            line.contains(&text("found")) && line.contains(&text("advice")),
            "{line} {check}"
        );
        (text("found"), text("advice"))
    })
}

#[test]
fn an_edited_file_is_told_until_it_holds() {
    let deployment = Deployment::new(BEFORE);
    deployment.up();
    assert_eq!(told(&deployment), None);
    write(&deployment, &format!("{BEFORE}# nothing but words\n"));
    assert_eq!(told(&deployment), None);
    assert_eq!(
        deployment.cli(&["status", "-o", "json"]).json()["edited"],
        Value::Null
    );

    let after = BEFORE
        .replace("A: \"1\"", "A: \"2\"")
        .replace("old:", "new:");
    write(&deployment, &after);
    let (found, advice) = told(&deployment).unwrap();
    assert!(
        found.ends_with("web differs, new is new, old is gone"),
        "{found}"
    );
    assert_eq!(
        advice,
        "`blackhole component restart supervisor` starts what is new and stops what is gone, \
         then `blackhole restart web`"
    );
    let document = deployment.cli(&["status", "-o", "json"]).json();
    assert_eq!(document["edited"]["services"], serde_json::json!(["web"]));
    assert_eq!(document["edited"]["added"], serde_json::json!(["new"]));
    // What it advises, word by word.
    deployment.cli(&["component", "restart", "supervisor"]).ok();
    deployment.wait_until("the new one alone", |status| {
        status.is_in("new.1", "ready") && status.find("old.1").is_none()
    });
    let (found, advice) = told(&deployment).unwrap();
    assert!(
        found.starts_with("web: what runs has settings from before"),
        "{found}"
    );
    assert_eq!(advice, "`blackhole restart web`");
    // A restart that was granted ahead goes by what was said then.
    deployment.cli(&["kill", "web"]).ok();
    deployment.wait_until("its successor", |status| {
        status.is_in("web.1", "ready") && status.instance("web.1").restarts() == Some(1)
    });
    assert_eq!(told(&deployment).unwrap(), (found, advice));
    deployment.cli(&["restart", "web"]).ok();
    assert_eq!(told(&deployment), None);
    let pid = deployment.status().instance("web.1").pid().unwrap();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(
        environment
            .split(|byte| *byte == 0)
            .any(|one| one == b"A=2")
    );

    // What the supervisor alone goes by holds at once; a limit does not.
    let policy = after.replace("A: \"2\"}", "A: \"2\"}, restart: {max_attempts: 3}");
    assert_ne!(policy, after);
    write(&deployment, &policy);
    deployment.cli(&["component", "restart", "supervisor"]).ok();
    assert_eq!(told(&deployment), None);
    let limit = policy.replace("same: {", "same: {resources: {pids: 500}, ");
    write(&deployment, &limit);
    deployment.cli(&["component", "restart", "supervisor"]).ok();
    let (_, advice) = told(&deployment).unwrap();
    assert_eq!(advice, "`blackhole restart same`");
    deployment.cli(&["restart", "same"]).ok();
    assert_eq!(told(&deployment), None);
    let after = limit;

    write(&deployment, "services: {web: {comand: [x]}}");
    let (found, advice) = told(&deployment).unwrap();
    assert!(
        found.contains("none of them could be started") && found.contains("comand"),
        "{found}"
    );
    assert!(advice.contains("blackhole config validate -c"), "{advice}");
    write(
        &deployment,
        &format!("runtime: {{orchestrator: {{usage_interval: 2s}}}}\n{after}"),
    );
    let (found, advice) = told(&deployment).unwrap();
    assert!(
        found.ends_with("the settings below `runtime` differ"),
        "{found}"
    );
    assert!(
        advice.starts_with("`blackhole down`, then `blackhole up -d -c "),
        "{advice}"
    );
    deployment.down();
    deployment.up();
    assert_eq!(told(&deployment), None);
    deployment.down();
}

const WRONG: &str = "services: {web: {comand: [x]}}";

/// What is wrong is told before anything is ended, whoever would read the file.
#[test]
fn a_wrong_file_takes_no_daemon_away() {
    let deployment = Deployment::new(BEFORE);
    deployment.up();
    let pids = || {
        let status = deployment.status();
        DAEMONS.map(|component| status.component_pid(component).unwrap())
    };
    let before = pids();
    write(&deployment, WRONG);
    for component in DAEMONS {
        let refused = deployment
            .cli(&["component", "restart", component])
            .exits_with(2);
        assert!(
            refused
                .stderr
                .contains("blackhole.yaml:1:18: services.web.comand: unknown key")
                && refused.stdout.is_empty(),
            "{refused:#?}"
        );
    }
    assert_eq!(pids(), before);
    // Another file than the daemons', right or wrong, says nothing about theirs.
    let other = deployment.path().join("other.yaml");
    std::fs::write(&other, BEFORE).unwrap();
    let mut restart = deployment.command(&deployment.binaries().join("blackhole"));
    restart.arg("-c").arg(&other);
    restart.args(["component", "restart", "bridge"]);
    deployment.run(restart, "restart").exits_with(2);
    assert_eq!(pids(), before);
    write(&deployment, BEFORE);
    deployment.cli(&["component", "restart", "bridge"]).ok();
    deployment.down();
}

/// Without a supervisor the command line itself reads the file for a start.
#[test]
fn a_wrong_file_stops_nothing_that_a_restart_would_start_again() {
    let deployment = Deployment::new(BEFORE);
    let mut manager = deployment.daemon("process-manager");
    manager.wait_for_line(&["started"]);
    deployment.cli(&["start", "web"]).ok();
    let pid = || deployment.status().instance("web.1").pid();
    let before = pid();
    assert!(before.is_some());
    write(&deployment, WRONG);
    let refused = deployment.cli(&["restart", "web"]).exits_with(2);
    assert!(refused.stderr.contains("comand"), "{refused:#?}");
    assert_eq!(pid(), before);
    // One that is in the file no more could not be started again either.
    write(&deployment, &BEFORE.replace("web:", "other:"));
    deployment.cli(&["restart", "web"]).exits_with(3);
    assert_eq!(pid(), before);
    write(&deployment, BEFORE);
    deployment.cli(&["restart", "web"]).ok();
    assert!(pid().is_some() && pid() != before);
    deployment.down();
}

/// The addresses of what runs are in good hands, and references are looked up where
/// the process-manager does.
#[test]
fn doctor_knows_what_belongs_to_the_deployment() {
    let free = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    };
    let (web, rpc) = (free(), free());
    let deployment = Deployment::new(&format!(
        r#"
runtime: {{orchestrator: {{listen: {{rpc: "{rpc}"}}}}}}
services:
  web:
    command: [blackhole-example, idle]
    env: {{A: "${{env:ONLY_HERE}}"}}
    sockets: {{http: "{web}", local: "${{config_dir}}/web.sock"}}
"#
    ));
    let failures = || {
        let document = deployment.cli(&["doctor", "-o", "json"]).json();
        let checks = document["checks"].as_array().unwrap().clone();
        let about = checks.into_iter().filter(|check| !check["at"].is_null());
        about
            .map(|check| check["at"]["key"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(failures(), ["services.web.env.A"]);
    let mut up = deployment.command(&deployment.binaries().join("blackhole"));
    up.args(["up", "-d"]).env("ONLY_HERE", "1");
    deployment.run(up, "up").ok();
    assert_eq!(failures(), [] as [String; 0]);
    // Between two lives they are kept.
    deployment.cli(&["kill", "web"]).ok();
    assert_eq!(failures(), [] as [String; 0]);
    deployment.down();
    let _busy = TcpListener::bind(web).unwrap();
    assert_eq!(
        failures(),
        ["services.web.env.A", "services.web.sockets.http"]
    );
}
