//! Several process-managers on one bus: each has its services, dies and returns
//! by itself, and gives a service away only by an operator's word.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};

use blackhole_bus_schema::bus::{Interest, Link, RequestError};
use blackhole_bus_schema::dirs::Lock;
use blackhole_bus_schema::names::{ClientName, Component, Generation, ServiceName};
use blackhole_bus_schema::process::Spawn;
use blackhole_bus_schema::reply::Code;
use blackhole_tests::{Deployment, Status, processes, wait_for};
use rustix::process::{Pid, Signal, kill_process};

const THREE: &str = "
runtime:
  orchestrator:
    process_managers: {gpu: {}, batch: {max_processes: 5}}
services:
  web: {command: [blackhole-example, idle]}
  train: {command: [blackhole-example, idle], manager: gpu}
  sweep: {command: [blackhole-example, idle], manager: batch}
";

const MANAGERS: [&str; 3] = [
    "process-manager",
    "process-manager.batch",
    "process-manager.gpu",
];

/// Which manager each instance is shown at.
fn places(status: &Status) -> BTreeMap<String, Option<String>> {
    let all = status.instances().into_iter();
    all.filter_map(|one| {
        Some((
            one.name()?.to_owned(),
            one.text("manager").map(str::to_owned),
        ))
    })
    .collect()
}

/// Waits for another life of a component.
#[track_caller]
fn next_life(deployment: &Deployment, component: &str, before: u32) -> Status {
    deployment.wait_until(&format!("the next {component}"), |status| {
        status
            .component_pid(component)
            .is_some_and(|pid| pid != before)
    })
}

#[track_caller]
fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn each_dies_and_returns_by_itself() {
    let deployment = Deployment::new(THREE);
    deployment.up();
    let status = deployment.status();
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(
        places(&status),
        BTreeMap::from([
            ("web.1".to_owned(), None),
            ("train.1".to_owned(), named("gpu")),
            ("sweep.1".to_owned(), named("batch")),
        ]),
        "{status:?}"
    );
    let table = deployment.cli(&["status"]).ok().stdout;
    assert!(table.contains("MANAGER"), "{table}");
    for manager in MANAGERS {
        assert!(status.component_pid(manager).is_some(), "{status:?}");
        let before = deployment.status();
        let dead = deployment.kill_component(manager);
        let after = next_life(&deployment, manager, dead);
        assert_eq!(after.running(), before.running(), "same pids, no restarts");
        for other in MANAGERS.iter().filter(|other| **other != manager) {
            assert_eq!(after.component_pid(other), before.component_pid(other));
        }
    }
    // One that hangs holds nobody but its own.
    let gpu = deployment
        .status()
        .component_pid("process-manager.gpu")
        .unwrap();
    signal(gpu, Signal::STOP);
    let before = deployment.status().running();
    deployment.cli(&["restart", "web", "sweep"]).ok();
    signal(gpu, Signal::CONT);
    let status = deployment.wait_until("the new ones", |status| {
        let now = status.running();
        ["web.1", "sweep.1"].iter().all(|one| {
            now.get(*one)
                .is_some_and(|now| Some(now) != before.get(*one))
        })
    });
    assert_eq!(status.running().get("train.1"), before.get("train.1"));
    deployment.cli(&["restart", "train"]).ok();
    let status = deployment.status();
    assert_ne!(status.running().get("train.1"), before.get("train.1"));
    // The supervisor's next life finds all of them.
    let before = status.running();
    let dead = deployment.kill_component("supervisor");
    let status = next_life(&deployment, "supervisor", dead);
    assert_eq!(status.running(), before);
    let pid = status.component_pid("process-manager.gpu");
    let restarted = deployment
        .cli(&["component", "restart", "process-manager.gpu"])
        .ok();
    assert!(restarted.stdout.contains("answers"), "{restarted:?}");
    let status = deployment.status();
    assert_ne!(status.component_pid("process-manager.gpu"), pid);
    assert_eq!(status.running(), before);
    deployment.cli(&["stop", "train"]).ok();
    let status = deployment.status();
    assert!(!status.is("train.1", "RUNNING") && status.is("sweep.1", "RUNNING"));
    deployment.down();
}

#[test]
fn a_service_that_is_given_to_another_one_moves_when_it_is_restarted() {
    let deployment = Deployment::new(THREE);
    deployment.up();
    let before = deployment.status();
    let train = before.instance("train.1").pid().unwrap();
    let moved = THREE.replace("manager: gpu", "manager: batch");
    fs::write(deployment.config(), &moved).unwrap();
    deployment.cli(&["component", "restart", "supervisor"]).ok();
    let status = deployment.wait_until("the supervisor to know it", |status| {
        status.is_in("train.1", "ready")
    });
    assert_eq!(
        status.running(),
        before.running(),
        "nothing moves by itself"
    );
    assert_eq!(places(&status)["train.1"].as_deref(), Some("gpu"));
    let folder = deployment.dirs().instance(&"train.1".parse().unwrap());
    let owner = || fs::read_to_string(folder.join("owner")).unwrap_or_default();
    assert_eq!(owner().trim(), "process-manager.gpu");

    // Nobody else starts it, whatever is asked.
    let refused = start_at(&deployment, Component::ProcessManager(None), "train", 1_000);
    assert_eq!(refused.code, Code::AlreadyExists, "{refused}");
    assert!(refused.message.contains("process-manager.gpu"), "{refused}");
    assert!(processes::is_alive(train));

    deployment.cli(&["restart", "train"]).ok();
    let status = deployment.status();
    assert!(!processes::is_alive(train));
    assert_eq!(places(&status)["train.1"].as_deref(), Some("batch"));
    assert_eq!(owner().trim(), "process-manager.batch");
    // Where it was it is forgotten, also by the next life.
    let pid = status.instance("train.1").pid();
    let gpu = deployment.kill_component("process-manager.gpu");
    let status = next_life(&deployment, "process-manager.gpu", gpu);
    assert_eq!(status.instance("train.1").pid(), pid);
    let batch = deployment.kill_component("process-manager.batch");
    let status = next_life(&deployment, "process-manager.batch", batch);
    assert_eq!(status.instance("train.1").pid(), pid);
    assert_eq!(status.instance("train.1").restarts(), Some(0));
    deployment.down();
}

/// Asks a manager for a spawn, past the supervisor; the refusal.
fn start_at(
    deployment: &Deployment,
    manager: Component,
    service: &str,
    generation: u64,
) -> blackhole_bus_schema::reply::Status {
    let config = blackhole_bus_schema::config::Config::load(deployment.config()).unwrap();
    let name: ServiceName = service.parse().unwrap();
    let instance = format!("{service}.1").parse().unwrap();
    let spec = config.services[&name].spawn_spec(instance, Generation(generation), None, 0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let asked = runtime.block_on(async {
        let me = ClientName::fresh("test");
        let (link, _events) = Link::open(&deployment.dirs(), me, manager, Interest::none())
            .await
            .unwrap();
        let budget = std::time::Duration::from_secs(60);
        link.request(&Spawn { spec }, budget).await
    });
    runtime.shutdown_background();
    match asked {
        Err(RequestError::Status(status)) => status,
        other => panic!("not refused: {other:?}"),
    }
}

/// Its manager is gone from the configuration and does not run: what lives is
/// found, told of, and taken over by the next `up`.
#[test]
fn what_a_manager_left_that_nobody_declares_any_more_is_not_lost() {
    let deployment = Deployment::new(THREE);
    deployment.up();
    let before = deployment.status().running();
    for holder in ["up", "process-manager.gpu"] {
        let pid = Lock::holder(&deployment.dirs().lock(holder)).unwrap();
        deployment.kill(pid);
    }
    let doctor = deployment.cli(&["doctor"]);
    assert!(
        doctor
            .stdout
            .contains("services of the process-manager.gpu")
            && doctor.stdout.contains("train.1"),
        "{doctor:#?}"
    );
    let plain = "
services:
  web: {command: [blackhole-example, idle]}
  train: {command: [blackhole-example, idle]}
";
    fs::write(deployment.config(), plain).unwrap();
    deployment.up();
    let status = deployment.wait_until("all that is left", |status| {
        status.find("sweep.1").is_none() && status.is_in("train.1", "ready")
    });
    assert_eq!(places(&status)["train.1"].as_deref(), Some("gpu"));
    assert_eq!(status.running().get("train.1"), before.get("train.1"));
    assert!(status.component_pid("process-manager.gpu").is_some());
    deployment.cli(&["restart", "train"]).ok();
    let status = deployment.status();
    assert_eq!(places(&status)["train.1"], None);
    deployment.down();
    // Nothing lives there any more: nobody runs it again.
    deployment.up();
    let status = deployment.status();
    assert!(status.is("train.1", "RUNNING"));
    assert!(
        status.component("process-manager.gpu").is_none(),
        "{status:?}"
    );
    deployment.down();
}

#[test]
fn down_does_not_wait_for_one_that_does_not_come() {
    let deployment = Deployment::new(THREE);
    deployment.up();
    for holder in ["up", "process-manager.gpu"] {
        let pid = Lock::holder(&deployment.dirs().lock(holder)).unwrap();
        deployment.kill(pid);
    }
    let output = deployment.down();
    assert!(
        output.stderr.contains("there is no process-manager.gpu"),
        "{output:#?}"
    );
}

struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const TALKERS: &str = r#"
runtime: {orchestrator: {process_managers: {gpu:}}}
services:
  web: {command: [sh, -c, "n=0; while :; do n=$((n+1)); echo web says $n; sleep 0.05; done"]}
  train: {command: [sh, -c, "n=0; while :; do n=$((n+1)); echo train says $n; sleep 0.05; done"], manager: gpu}
"#;

#[test]
fn logs_of_all_of_them_are_read_and_followed_as_one() {
    let deployment = Deployment::new(TALKERS);
    deployment.up();
    let both = |text: &str| text.contains("web says") && text.contains("train says");
    wait_for("both to have said something", || {
        let read = deployment.cli(&["logs"]).ok().stdout;
        if both(&read) { Ok(()) } else { Err(read) }
    });
    let file = deployment.path().join("followed");
    let mut command = deployment.command(&deployment.binaries().join("blackhole"));
    command
        .args(["logs", "-f", "-n", "0"])
        .stdout(fs::File::create(&file).unwrap())
        .stderr(Stdio::null());
    let follower = Ends(command.spawn().unwrap());
    let followed = || fs::read_to_string(&file).unwrap_or_default();
    let said_again = |from: usize| {
        wait_for("new lines of both", || {
            let text = followed();
            let new = text.get(from..).unwrap_or_default();
            if both(new) { Ok(()) } else { Err(text.clone()) }
        });
    };
    said_again(0);
    // And goes on with the next life of one of them.
    let dead = deployment.kill_component("process-manager.gpu");
    next_life(&deployment, "process-manager.gpu", dead);
    said_again(followed().len());
    drop(follower);
    deployment.down();
}

/// Without a supervisor a start goes to the manager of the service, too.
#[test]
fn started_by_hand_each_goes_to_its_own() {
    let deployment = Deployment::new(THREE);
    let start = |name: &str| {
        let program = deployment.binaries().join("blackhole-process-manager");
        let mut command = deployment.command(&program);
        command
            .arg("-c")
            .arg(deployment.config())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match name {
            "" => {}
            // By flag or by variable.
            "gpu" => {
                command.args(["--name", name]);
            }
            _ => {
                command.env("BLACKHOLE_PROCESS_MANAGER_NAME", name);
            }
        }
        Ends(command.spawn().unwrap())
    };
    let _managers: Vec<Ends> = ["", "gpu", "batch"].map(start).into();
    wait_for("all three to answer", || {
        let status = deployment.try_status()?;
        let mut all = MANAGERS.iter();
        match all.find(|manager| status.component_pid(manager).is_none()) {
            None => Ok(()),
            Some(missing) => Err(format!("no {missing} in {status:?}")),
        }
    });
    deployment.cli(&["start", "--all"]).ok();
    for (instance, owner) in [
        ("web.1", ""),
        ("train.1", "process-manager.gpu"),
        ("sweep.1", "process-manager.batch"),
    ] {
        let folder = deployment.dirs().instance(&instance.parse().unwrap());
        let text = fs::read_to_string(folder.join("owner")).unwrap_or_default();
        assert_eq!(text.trim(), owner, "{instance}");
    }
    for arguments in [
        &["status", "-o", "json"][..],
        &["--offline", "status", "-o", "json"],
    ] {
        let status = Status(deployment.cli(arguments).ok().json());
        let place = |instance: &str| places(&status).remove(instance).flatten();
        assert_eq!(place("sweep.1").as_deref(), Some("batch"), "{status:?}");
        assert_eq!(place("web.1"), None);
    }
    deployment.cli(&["signal", "CONT", "sweep"]).exits_with(0);
    deployment.cli(&["stop", "--all"]).ok();
    let status = deployment.status();
    assert!(status.running().is_empty(), "{status:?}");
}
