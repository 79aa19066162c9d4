//! What a command says at first sight, and where it must not be mistaken.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use blackhole_tests::Deployment;
use serde_json::Value;

/// A daemon that was not heard of yet is not missing.
#[test]
fn the_first_picture_of_a_monitor_misses_nobody_who_is_there() {
    let deployment = Deployment::new("services: {base: {command: [blackhole-example, idle]}}");
    deployment.up();
    for _ in 0..8 {
        let mut monitor = deployment
            .command(&deployment.binaries().join("blackhole"))
            .args(["monitor", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut pictures = BufReader::new(monitor.stdout.take().unwrap());
        pictures.read_line(&mut line).unwrap();
        monitor.kill().unwrap();
        monitor.wait().unwrap();
        let picture: Value = serde_json::from_str(&line).unwrap();
        let components = picture["components"].as_array().unwrap();
        assert_eq!(components.len(), 4, "{line}");
        let there = |one: &Value| one["state"] == "RUNNING";
        assert!(components.iter().all(there), "{line}");
        assert_eq!(picture["services"][0]["state"], "RUNNING", "{line}");
    }
    deployment.down();
}
