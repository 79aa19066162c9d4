//! The examples come up, and their services really work together.

#![allow(clippy::panic)]

use blackhole_bus_schema::config::Config;
use blackhole_tests::binaries::repository;
use blackhole_tests::{Deployment, Ports, http, is_root, skip, wait_for};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

fn example(name: &str) -> PathBuf {
    repository()
        .join("examples")
        .join(name)
        .join("blackhole.yaml")
}

/// A copy of an example in a deployment of an ordinary user, who may have no way
/// to this checkout.
#[track_caller]
fn as_somebody(name: &str) -> Deployment {
    let deployment = Deployment::as_user(65534);
    let copy = deployment.path().join(name);
    let copied = Command::new("cp")
        .arg("-r")
        .arg(repository().join("examples").join(name))
        .arg(&copy)
        .status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "the example is copied"
    );
    deployment.with_config(copy.join("blackhole.yaml"))
}

/// Programs of the shop that are not on this machine.
fn missing() -> Vec<&'static str> {
    let directories = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    let is_there = |program: &&str| {
        directories
            .iter()
            .any(|one| PathBuf::from(one).join(program).is_file())
    };
    ["redis-server", "redis-cli", "nginx", "python3"]
        .into_iter()
        .filter(|program| !is_there(program))
        .collect()
}

/// The user's own settings stand in both examples, unchanged.
#[test]
fn both_have_the_orchestrators_settings() {
    for name in ["shop", "self-contained"] {
        let config = Config::load(&example(name)).unwrap_or_else(|error| panic!("{error}"));
        let orchestrator = config.orchestrator;
        assert_eq!(orchestrator.max_processes, 50, "{name}");
        assert_eq!(orchestrator.restart_policy.max_attempts, 5, "{name}");
        assert_eq!(
            orchestrator.restart_policy.max_backoff.as_secs(),
            60,
            "{name}"
        );
        assert!(config.services.len() >= 5, "{name}");
    }
}

mod fixed_ports {
    use super::*;

    #[test]
    fn the_self_contained_example_cooperates() {
        cooperate(&Deployment::of_file(&example("self-contained")));
    }

    #[test]
    fn the_self_contained_example_cooperates_as_an_ordinary_user() {
        if !is_root() {
            return skip("…as_an_ordinary_user", "these tests run as one already");
        }
        cooperate(&as_somebody("self-contained"));
    }

    #[test]
    fn the_shop_sells() {
        match missing() {
            none if none.is_empty() => sell(&Deployment::of_file(&example("shop"))),
            some => skip("the_shop_sells", &format!("not installed: {some:?}")),
        }
    }

    #[test]
    fn the_shop_sells_as_an_ordinary_user() {
        match missing() {
            _ if !is_root() => skip("…as_an_ordinary_user", "these tests run as one already"),
            none if none.is_empty() => sell(&as_somebody("shop")),
            some => skip(
                "the_shop_sells_as_an_ordinary_user",
                &format!("not installed: {some:?}"),
            ),
        }
    }
}

const WEB: u16 = 27200;

#[track_caller]
fn cooperate(deployment: &Deployment) {
    let _ports = Ports::hold();
    deployment.up();
    let status = deployment.status();
    assert!(status.is("migrate.1", "TERMINATED"), "{status:?}");
    for one in [
        "store.1",
        "greeter.1",
        "greeter.2",
        "web.1",
        "worker.1",
        "ticker.1",
    ] {
        assert!(status.is_in(one, "ready"), "{one}: {status:?}");
    }
    for one in ["hog.1", "greedy.1", "flaky.1", "stubborn.1"] {
        assert!(!status.is(one, "RUNNING"), "{one}: {status:?}");
    }

    // From the front over the bridge to the greeter, with the migration's words.
    let (code, text) = http::get(WEB, "/hello/moon").expect("an answer");
    assert_eq!(code, 200, "{text}");
    assert!(
        text.contains("Hello, moon! The migration wrote these words."),
        "{text}"
    );
    assert!(text.contains("greeter."), "{text}");

    // By way of the queue to the worker and back.
    for name in ["sun", "mars"] {
        assert_eq!(http::post(WEB, "/jobs", name).expect("an answer").0, 202);
    }
    wait_for("the worker to be through", || {
        let (_, count) = http::get(WEB, "/jobs/completed")?;
        if count.trim() == "2" {
            Ok(())
        } else {
            Err(count)
        }
    });

    // A call that comes while the callee restarts is parked, not failed.
    for one in ["greeter.1", "greeter.2"] {
        deployment.kill(deployment.status().instance(one).pid().expect("a pid"));
    }
    let (code, text) = http::get(WEB, "/hello/again").expect("an answer");
    assert_eq!(code, 200, "{text}");
    deployment.wait_until("both greeters to be ready again", |status| {
        ["greeter.1", "greeter.2"]
            .iter()
            .all(|one| status.is_in(one, "ready") && status.instance(one).restarts() == Some(1))
    });
    deployment.down();
}

const FRONT: u16 = 27100;

#[track_caller]
fn sell(deployment: &Deployment) {
    let _ports = Ports::hold();
    deployment.up();
    let status = deployment.status();
    assert!(status.is("migrate.1", "TERMINATED"), "{status:?}");

    // Through nginx and Python out of Redis: what the migration wrote.
    let products = http::json(FRONT, "/products").expect("products");
    assert_eq!(products["tea"]["title"], "Green tea, 100 g");
    assert_eq!(products["tea"]["stock"], "40");

    // Through nginx to the checkout, by RPC to pricing, into Redis, to a worker.
    let order = |query: &str| {
        let (code, text) = http::post(FRONT, &format!("/orders?{query}"), "").expect("an answer");
        (
            code,
            serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text)),
        )
    };
    let (code, dozen) = order("product=tea&quantity=12");
    assert_eq!(code, 202, "{dozen}");
    assert_eq!(dozen["total_cents"], 12 * 450 * 9 / 10);
    assert_eq!(dozen["discount_percent"], 10);
    wait_for("the order to be shipped", || {
        let seen = http::json(FRONT, &format!("/orders/{}", dozen["order"]))?;
        if seen["status"] == "shipped" {
            Ok(())
        } else {
            Err(seen.to_string())
        }
    });
    let products = http::json(FRONT, "/products").expect("products");
    assert_eq!(products["tea"]["stock"], "28");

    // What is wrong with an order is told by pricing, through the bridge.
    let (code, text) = order("product=coffee");
    assert_eq!(code, 400, "{text}");
    assert!(text.to_string().contains("coffee"), "{text}");
    deployment.down();
}
