//! Hooks of services that crash: in a restart by the shim, with and without a
//! supervisor, and where one keeps the service from starting again.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use blackhole_tests::{Deployment, wait_for};

fn lines(deployment: &Deployment, service: &str) -> Vec<String> {
    // At first nobody knows it.
    let log = deployment.cli(&["logs", service, "-n", "100"]).stdout;
    let words = |line: &str| {
        let mut words = line.split_whitespace().rev();
        words.next().map(str::to_owned)
    };
    log.lines().filter_map(words).collect()
}

fn wait_for_lines(deployment: &Deployment, service: &str, wanted: &[&str]) {
    wait_for("the hooks in their order", || {
        let found = lines(deployment, service);
        match found == wanted {
            true => Ok(()),
            false => Err(format!("{found:?}")),
        }
    });
}

#[test]
fn hooks_have_their_turns_whoever_restarts() {
    let deployment = Deployment::new(
        "
services:
  web:
    command: [sh, -c, \"echo up; exec sleep 100000\"]
    hooks:
      before_start: [sh, -c, \"echo before\"]
      after_exit: [sh, -c, \"echo after:$BLACKHOLE_EXIT_RESULT\"]
",
    );
    let daemons = deployment.daemons();
    wait_for_lines(&deployment, "web", &["before", "up"]);
    let first = deployment
        .status()
        .instance("web.1")
        .pid()
        .unwrap_or_else(|| panic!("it runs"));
    // By the shim, and nobody else could.
    let mut left = Vec::new();
    for daemon in daemons {
        match daemon.component() {
            "supervisor" => daemon.kill(),
            _ => left.push(daemon),
        }
    }
    deployment.kill(first);
    let once = ["before", "up", "after:signal", "before", "up"];
    wait_for_lines(&deployment, "web", &once);
    left.push(deployment.daemon("supervisor"));
    let status = deployment.wait_until("the supervisor knows of it", |status| {
        status.find("web.1").is_some_and(|one| {
            one.restarts() == Some(1) && one.pid().is_some_and(|pid| pid != first)
        })
    });
    let second = status.find("web.1").and_then(|one| one.pid());
    // By the supervisor: it is the second failure in a row.
    deployment.kill(second.unwrap_or_else(|| panic!("it runs")));
    let twice = [&once[..], &["after:signal", "before", "up"]].concat();
    wait_for_lines(&deployment, "web", &twice);
    drop(left);
    deployment.cli(&["down"]).ok();
    deployment.assert_nothing_left();
}

#[test]
fn a_hook_that_fails_before_the_next_start_is_tried_again_by_the_policy() {
    let deployment = Deployment::new(
        "
services:
  web:
    command: [sh, -c, \"echo up; exec sleep 100000\"]
    hooks: {before_start: [sh, -c, \"test ! -e ${config_dir}/block\"]}
    restart: {max_attempts: 100}
",
    );
    deployment.up();
    let block = deployment.path().join("block");
    std::fs::write(&block, "").unwrap_or_else(|error| panic!("{error}"));
    let web = || deployment.status().find("web.1");
    let first = web()
        .and_then(|one| one.pid())
        .unwrap_or_else(|| panic!("it runs"));
    deployment.kill(first);
    let why = |text: &str| text.contains("run hook before_start: exit code 1");
    wait_for("why it does not start", || {
        let shown = deployment.cli(&["status", "-o", "json"]).ok().stdout;
        match why(&shown) {
            true => Ok(()),
            false => Err(shown),
        }
    });
    std::fs::remove_file(&block).unwrap_or_else(|error| panic!("{error}"));
    deployment.wait_until("it runs again", |status| {
        status.is("web.1", "RUNNING")
            && status
                .find("web.1")
                .is_some_and(|one| one.pid() != Some(first))
    });
    deployment.down();
    deployment.assert_nothing_left();
}

/// Between the two lives of a restart by the shim a hook may take its time: nothing runs then,
/// and nobody is told otherwise.
#[test]
fn while_a_hook_runs_between_two_lives_there_is_no_service() {
    let deployment = Deployment::new(
        "
services:
  web:
    command: [sh, -c, \"exec sleep 100000\"]
    working_dir: \".\"
    hooks:
      before_start: [sh, -c, \"until test -e $PWD/go; do sleep 0.02; done\"]
",
    );
    let go = deployment.path().join("go");
    std::fs::write(&go, "").unwrap_or_else(|error| panic!("{error}"));
    deployment.up();
    let first = deployment.status().instance("web.1").pid();
    let first = first.unwrap_or_else(|| panic!("it runs"));
    std::fs::remove_file(&go).unwrap_or_else(|error| panic!("{error}"));
    deployment.kill(first);
    deployment.wait_until("it to be told that it does not run", |status| {
        let one = status.instance("web.1");
        one.phase() != Some("ready") && one.state() != Some("RUNNING")
    });
    std::fs::write(&go, "").unwrap_or_else(|error| panic!("{error}"));
    deployment.wait_until("the next life", |status| {
        let one = status.instance("web.1");
        one.phase() == Some("ready") && one.pid().is_some_and(|pid| pid != first)
    });
    deployment.down();
}
