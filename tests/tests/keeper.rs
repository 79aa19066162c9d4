//! Deployments whose keeper, process-manager or both were killed: `down` comes
//! to its end, commands say what they wait for, and what is missing is shown.

use blackhole_bus_schema::dirs::Lock;
use blackhole_tests::deployment::DAEMONS;
use blackhole_tests::{Deployment, Status, processes, wait_for};

const PAIR: &str = r#"
services:
  base: {command: [blackhole-example, idle]}
  after: {command: [blackhole-example, idle], depends_on: {base: ready}}
"#;

/// Who holds a lock, while they live.
fn holder(deployment: &Deployment, name: &str) -> Option<u32> {
    Lock::holder(&deployment.dirs().lock(name)).filter(|pid| processes::is_alive(*pid))
}

#[track_caller]
fn kill_holder(deployment: &Deployment, name: &str) -> u32 {
    let pid = wait_for(&format!("a {name}"), || {
        holder(deployment, name).ok_or_else(|| format!("no {name}"))
    });
    deployment.kill(pid);
    // A process of some size takes a while to end, and holds its lock until then.
    wait_for(&format!("the end of {name} {pid}"), || {
        match Lock::holder(&deployment.dirs().lock(name)) {
            Some(holder) if holder == pid => Err("it holds its lock".to_owned()),
            _ => Ok(()),
        }
    });
    pid
}

#[test]
fn down_ends_everything_without_keeper_and_process_manager() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    kill_holder(&deployment, "up");
    kill_holder(&deployment, "process-manager");
    let output = deployment.down();
    assert!(
        output.stderr.contains("there is no process-manager")
            && output.stderr.contains("through their shims"),
        "{output:#?}"
    );
    // Dependents first, as ever.
    let said = |name: &str| output.stderr.find(name);
    let (after, base) = (said("after.1"), said("base.1"));
    assert!(after.is_some() && after < base, "{output:#?}");
    // What ran at `down` is what the next `up` starts.
    deployment.up();
    let status = deployment.status();
    assert!(
        status.is("base.1", "RUNNING") && status.is("after.1", "RUNNING"),
        "{status:?}"
    );
    deployment.down();
}

/// The keeper waits longer and longer before it starts a manager again; `down`
/// does not wait for one that will not come.
#[test]
fn down_comes_to_its_end_between_two_lives_of_the_process_manager() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    for kills in 1..=4 {
        let pid = kill_holder(&deployment, "process-manager");
        if kills < 4 {
            wait_for("the next process-manager", || {
                holder(&deployment, "process-manager")
                    .filter(|next| *next != pid)
                    .ok_or_else(|| "none".to_owned())
            });
        }
    }
    deployment.down();
}

/// Whoever removes the state directory of what runs takes all locks away with it.
#[test]
fn down_finds_what_runs_without_a_state_directory() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    let state = deployment.dirs().state;
    let elsewhere = deployment.path().join("elsewhere");
    let other = ["--state-dir", elsewhere.to_str().expect("UTF-8"), "down"];
    let refused = deployment.cli(&other).exits_with(1);
    let hint = format!("--state-dir {}` ends them", state.display());
    assert!(refused.stderr.contains(&hint), "{refused:#?}");
    assert!(deployment.status().is_in("after.1", "ready"));

    std::fs::remove_dir_all(&state).expect("it is removed");
    let output = deployment.down();
    assert!(output.stderr.contains("asking the keeper"), "{output:#?}");

    // Without a keeper nobody else is ended on a guess: it is said who they are.
    deployment.up();
    kill_holder(&deployment, "up");
    let status = deployment.status();
    let pid = |component: &str| status.component_pid(component).expect("a pid");
    let mut pids: Vec<u32> = DAEMONS.iter().map(|one| pid(one)).collect();
    pids.extend(["base.1", "after.1"].map(|one| status.instance(one).pid().expect("a pid")));
    std::fs::remove_dir_all(&state).expect("it is removed");
    let left = deployment.cli(&["down"]).exits_with(1);
    let (_, all) = left.stderr.split_once("kill -9 ").expect("what to do");
    let all: Vec<u32> = all
        .split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect();
    assert!(
        pids.iter().all(|pid| all.contains(pid)),
        "{pids:?}: {left:#?}"
    );
}

/// With every process dead there is nothing to end, but sockets and groups to remove.
#[test]
fn down_clears_away_after_processes_that_were_all_killed() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    kill_holder(&deployment, "up");
    processes::kill_all(&processes::mark(deployment.path()), &deployment.cgroup());
    deployment.down();
}

#[test]
fn commands_without_a_process_manager_say_what_they_wait_for_and_end() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    kill_holder(&deployment, "up");
    let before = deployment.status().running();
    kill_holder(&deployment, "process-manager");
    for verb in ["stop", "restart", "start"] {
        let output = deployment
            .cli(&[verb, "after", "--timeout", "4s"])
            .exits_with(5);
        assert!(
            output
                .stderr
                .contains("the process-manager does not answer: services go on running"),
            "{output:#?}"
        );
        assert!(output.stderr.contains("waiting up to 4.0 s"), "{output:#?}");
        let error = format!("error: cannot {verb} after within 4.0 s: the process-manager");
        assert!(output.stderr.contains(&error), "{output:#?}");
        assert!(output.stderr.contains("blackhole up -d"), "{output:#?}");
    }
    for (name, (pid, _)) in &before {
        let pid = u32::try_from(*pid).expect("a pid");
        assert!(processes::is_alive(pid), "{name} was touched");
    }
    deployment.down();
}

/// A dead keeper is shown wherever the state of things is, and `up -d` takes
/// its daemons over: they and the services go on, and are restarted again.
#[test]
fn a_dead_keeper_is_shown_and_replaced() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    let keeper = deployment.status().0["keeper"].clone();
    assert_eq!(keeper["state"], "RUNNING");
    assert_eq!(
        keeper["pid"].as_u64(),
        holder(&deployment, "up").map(u64::from)
    );
    let before = deployment.status();
    kill_holder(&deployment, "up");

    for command in ["status", "health", "component list", "doctor"] {
        let mut words: Vec<&str> = command.split(' ').collect();
        let text = deployment.cli(&words);
        let all = format!("{}{}", text.stdout, text.stderr);
        assert!(
            all.contains("keeper") && all.contains("`blackhole up -d` takes"),
            "{text:#?}"
        );
        words.extend(["-o", "json"]);
        let json = deployment.cli(&words).json();
        match command {
            "doctor" => {
                let checks = json["checks"].as_array().expect("checks").iter();
                let grade = checks
                    .filter(|check| check["what"] == "keeper")
                    .map(|check| check["grade"].clone())
                    .next();
                assert_eq!(grade, Some("WARN".into()), "{json:#}");
            }
            _ => assert_eq!(json["keeper"]["state"], "MISSING", "{json:#}"),
        }
    }

    deployment.up();
    let after = deployment.status();
    assert_eq!(after.0["keeper"]["state"], "RUNNING", "{after:?}");
    assert_eq!(after.running(), before.running(), "services were touched");
    let pids = |status: &Status| {
        let pid = |name| status.component_pid(name);
        blackhole_tests::deployment::DAEMONS.map(pid)
    };
    assert_eq!(pids(&after), pids(&before), "daemons were replaced");
    // Now somebody restarts them again.
    let killed = deployment.kill_component("bridge");
    deployment.wait_until("another bridge", |status| {
        status
            .component_pid("bridge")
            .is_some_and(|pid| pid != killed)
    });
    let shown = deployment.cli(&["status"]).ok();
    assert!(!shown.stdout.contains("no keeper"), "{shown:#?}");
    deployment.down();
    // Nobody is missed where nothing is left.
    let doctor = deployment.cli(&["doctor"]);
    assert!(!doctor.stdout.contains("keeper"), "{doctor:#?}");
}
