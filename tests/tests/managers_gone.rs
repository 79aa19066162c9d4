//! Process-managers that left the configuration, or do not come: what they had is
//! settled all the same.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;

use blackhole_tests::{Deployment, Status, wait_for};

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
