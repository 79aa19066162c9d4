//! Process-managers that left the configuration, or do not come: what they had is
//! settled all the same.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::process::Stdio;

use blackhole_bus_schema::dirs::Lock;
use blackhole_tests::{Deployment, Status, processes, wait_for};
use rustix::process::{Pid, Signal, kill_process};

const TWO: &str = "
runtime: {orchestrator: {process_managers: {gpu: {}}}}
services:
  web: {command: [blackhole-example, idle]}
  train: {command: [blackhole-example, idle], manager: gpu}
  sweep: {command: [blackhole-example, idle], manager: gpu}
";

/// `gpu` is gone: one of its services is to run elsewhere, the other nowhere.
const ONE: &str = "
services:
  web: {command: [blackhole-example, idle]}
  train: {command: [blackhole-example, idle]}
";

/// Ends all processes of a deployment at once and makes its records those of an
/// earlier boot, as a power cut does.
#[track_caller]
fn power_cut(deployment: &Deployment) {
    wait_for("everything to be dead", || {
        let all = deployment.processes();
        for process in &all {
            let started = blackhole_tests::processes::started(process.pid);
            blackhole_tests::processes::kill(process.pid, rustix::process::Signal::KILL, |pid| {
                blackhole_tests::processes::started(pid) == started
            });
        }
        if all.is_empty() {
            Ok(())
        } else {
            Err(format!("{all:#?}"))
        }
    });
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let (boot, other) = (boot.trim().as_bytes(), boot.trim().replace(|_| true, "0"));
    let instances = fs::read_dir(deployment.dirs().state.join("instances")).unwrap();
    for folder in instances.flatten() {
        let record = folder.path().join("record");
        let mut bytes = fs::read(&record).unwrap();
        let mut found = false;
        for at in 0..bytes.len().saturating_sub(boot.len()) {
            if bytes[at..].starts_with(boot) {
                bytes[at..at + boot.len()].copy_from_slice(other.as_bytes());
                found = true;
            }
        }
        assert!(found, "no boot in {}", record.display());
        fs::write(&record, bytes).unwrap();
    }
    fs::remove_dir_all(deployment.dirs().run).unwrap();
}

/// Waits until nothing is said of `gpu` but that it runs.
#[track_caller]
fn settled(deployment: &Deployment) -> Status {
    let status = deployment.wait_until("all to be settled", |status| {
        status.find("sweep.1").is_none() && status.is_in("train.1", "ready")
    });
    let record = |instance: &str| {
        let folder = deployment.dirs().instance(&instance.parse().unwrap());
        folder.join("record").exists()
    };
    assert!(record("train.1") && !record("sweep.1"));
    let table = wait_for("nobody to wait for anything", || {
        let table = deployment.cli(&["status"]).ok().stdout;
        if table.contains("waits for") {
            Err(table)
        } else {
            Ok(table)
        }
    });
    assert!(table.contains("train.1"), "{table}");
    deployment.cli(&["health"]).ok();
    status
}

#[test]
fn what_a_manager_had_when_the_host_went_down_is_started_elsewhere() {
    let deployment = Deployment::new(TWO);
    deployment.up();
    power_cut(&deployment);
    fs::write(deployment.config(), ONE).unwrap();
    deployment.up();
    let status = settled(&deployment);
    assert_eq!(status.instance("train.1").text("manager"), None);
    deployment.down();
    // It has nothing any more: nobody runs it again.
    deployment.up();
    let status = deployment.status();
    assert!(
        status.component("process-manager.gpu").is_none(),
        "{status:?}"
    );
    deployment.down();
}

#[test]
fn what_was_removed_together_with_its_manager_is_forgotten() {
    let deployment = Deployment::new(TWO);
    deployment.up();
    deployment.down();
    fs::write(deployment.config(), ONE).unwrap();
    deployment.up();
    settled(&deployment);
    deployment.down();
    deployment.up();
    let status = deployment.status();
    assert!(
        status.component("process-manager.gpu").is_none() && status.find("sweep.1").is_none(),
        "{status:?}"
    );
    deployment.down();
}

/// Nobody has started its manager again, and nothing of it lives: nobody says so.
#[test]
fn down_does_not_wait_for_the_word_of_a_manager_that_is_away() {
    let deployment = Deployment::new(TWO);
    let _daemons = deployment.daemons();
    let program = deployment.binaries().join("blackhole-process-manager");
    let mut gpu = deployment.command(&program);
    gpu.arg("-c")
        .arg(deployment.config())
        .args(["--name", "gpu"]);
    let mut gpu = gpu
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = deployment.wait_until("all to be ready", |status| {
        ["web.1", "train.1", "sweep.1"]
            .iter()
            .all(|one| status.is_in(one, "ready"))
    });
    deployment.kill(gpu.id());
    gpu.wait().unwrap();
    for instance in ["train.1", "sweep.1"] {
        let pid = status.instance(instance).pid().unwrap();
        deployment.kill(processes::parent(pid).unwrap());
        wait_for("its service to die with its shim", || {
            (!processes::is_alive(pid))
                .then_some(())
                .ok_or_else(|| "it lives".to_owned())
        });
    }
    let output = deployment.down();
    assert!(
        output.stderr.contains("nothing lives any more"),
        "{output:#?}"
    );
}

/// Without a daemon, and its shim does not answer: it ends all the same.
#[test]
fn down_ends_what_a_hung_shim_holds() {
    let deployment = Deployment::new(TWO);
    deployment.up();
    let pid = deployment.status().instance("train.1").pid().unwrap();
    let shim = processes::parent(pid).unwrap();
    let shim = Pid::from_raw(i32::try_from(shim).unwrap()).unwrap();
    for holder in ["up", "supervisor", "process-manager", "process-manager.gpu"] {
        let pid = Lock::holder(&deployment.dirs().lock(holder)).unwrap();
        deployment.kill(pid);
    }
    kill_process(shim, Signal::STOP).unwrap();
    let output = deployment.down();
    assert!(
        output
            .stderr
            .contains("train.1 is killed together with its shim"),
        "{output:#?}"
    );
    assert!(!processes::is_alive(pid));
}

/// Stopped by an operator, it is nobody's to wait for, until it is started where it belongs now.
#[test]
fn nobody_waits_for_a_manager_that_had_what_is_stopped() {
    let deployment = Deployment::new(TWO);
    deployment.up();
    deployment.cli(&["stop", "train", "sweep"]).ok();
    deployment.down();
    let elsewhere = TWO.replace(", manager: gpu", "");
    let elsewhere = elsewhere.replace("gpu: {}", "");
    fs::write(deployment.config(), elsewhere).unwrap();
    deployment.up();
    let status = deployment.status();
    assert!(status.component("process-manager.gpu").is_none());
    // Each looks around again for whom it misses.
    deployment
        .cli(&["component", "restart", "process-manager"])
        .ok();
    wait_for("nobody to wait for anybody", || {
        let table = deployment.cli(&["status"]).ok().stdout;
        if table.contains("waits for") {
            Err(table)
        } else {
            Ok(())
        }
    });
    deployment.cli(&["start", "train"]).ok();
    assert!(deployment.status().is("train.1", "RUNNING"));
    deployment.down();
}
