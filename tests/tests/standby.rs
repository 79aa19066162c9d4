//! `standby: true`: that one sees whether a successor waits, and that none waits in vain.

#![allow(clippy::unwrap_used, clippy::panic)]

use blackhole_tests::{Deployment, is_root, wait_for};
use serde_json::Value;

/// `standby` of an instance.
fn standby(deployment: &Deployment, instance: &str) -> Value {
    let document = deployment.cli(&["status", instance, "-o", "json"]).json();
    document["services"][0]["standby"].clone()
}

#[test]
fn status_shows_who_has_a_successor_that_waits() {
    let deployment = Deployment::new(
        r#"
services:
  asks: {command: [blackhole-example, idle], standby: true, autostart: false}
  plain: {command: [blackhole-example, idle]}
  hooked: {command: [blackhole-example, idle], standby: true, hooks: {after_exit: ["true"]}}
  few: {command: [blackhole-example, idle], standby: true, resources: {pids: 31}}
"#,
    );
    let up = deployment.up();
    for (line, key) in [(5, "hooked"), (6, "few")] {
        let place = format!("{}:{line}:", deployment.config().display());
        let note = up
            .stderr
            .lines()
            .find(|text| text.starts_with(&format!("note: {place}")));
        let note = note.unwrap_or_else(|| panic!("{up:#?}"));
        assert!(
            note.contains(&format!("services.{key}.standby: has no effect")),
            "{note}"
        );
    }
    let count = |instance: &str| {
        let pid = deployment.status().instance(instance).pid().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let shim = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .nth(1)
            .unwrap()
            .to_owned();
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"));
        children.unwrap().split_whitespace().count()
    };
    // Begun after the others: when its successor waits, theirs would, too.
    deployment.cli(&["start", "asks"]).ok();
    wait_for("a successor that waits", || {
        match standby(&deployment, "asks.1") {
            Value::Bool(true) => Ok(()),
            other => Err(format!("{other}")),
        }
    });
    assert!(count("asks.1") > 1);
    for instance in ["plain.1", "hooked.1"] {
        assert_eq!(standby(&deployment, instance), false, "{instance}");
        assert_eq!(count(instance), 1, "{instance}");
    }
    // Where no limit is made nobody counts.
    if is_root() {
        assert_eq!(standby(&deployment, "few.1"), false);
    }
    deployment.cli(&["stop", "asks"]).ok();
    assert_eq!(standby(&deployment, "asks.1"), Value::Null);
    deployment.down();
}
