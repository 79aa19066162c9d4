//! libzmq, by way of pyzmq, as a client of the real daemons and as a server of
//! this project's clients. What it does is written from `docs/protocol.md`.

#![allow(clippy::panic)]

#[path = "../conformance/mod.rs"]
mod conformance;

use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, item};
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::rpc::{Client, Code, ConnectOptions, Methods, Request, Status};
use blackhole_bus_schema::supervision::{
    InstanceStatus, ListStatus, ResetServices, StartServices, StopServices, SupervisionChanged,
    Target,
};
use blackhole_bus_schema::topic;
use blackhole_tests::wait::HANG;
use blackhole_tests::{Daemon, Deployment, binaries, wait_for};
use bytes::Bytes;
use conformance::listening::{Listening, SERVICES, Way};
use conformance::options;
use conformance::python::{Python, interpreter};
use serde_json::{Value, json};
use tokio::sync::mpsc;

fn states(follower: &Python) -> Vec<(String, u64)> {
    let told = follower.told();
    let changes = told.iter().filter(|told| told["kind"] == "process.changed");
    changes
        .map(|told| &told["body"]["record"])
        .map(|record| {
            let state = record["state"].as_str().unwrap_or_default();
            (
                state.to_owned(),
                record["generation"].as_u64().unwrap_or_default(),
            )
        })
        .collect()
}

fn is_state(told: &Value, state: &str) -> bool {
    told["what"] == "event" && told["body"]["record"]["state"] == state
}

fn a_command_sent_many_times_takes_effect_once(way: Way) {
    let listening = Listening::new(way);
    let _daemons = listening.deployment.daemons();
    let mut follower = listening.follower("process-manager", topic::PROCESS, "process.list");
    follower.wait_what("snapshot");
    let target = json!({"target": {"services": ["web"]}});

    let started = listening.command("supervisor", "supervision.start", &target);
    assert_eq!(started["done"][0]["instance"], "web.1", "{started}");
    follower.wait("RUNNING", |told| is_state(told, "RUNNING"));
    let stopped = listening.command("supervisor", "supervision.stop", &target);
    assert_eq!(stopped["done"][0]["state"], "TERMINATED", "{stopped}");
    follower.wait("TERMINATED", |told| is_state(told, "TERMINATED"));
    let times = |state: &str, generation: u64| {
        let all = states(&follower);
        all.iter()
            .filter(|one| **one == (state.to_owned(), generation))
            .count()
    };
    assert_eq!(times("RUNNING", 1), 1, "{:?}", states(&follower));
    assert_eq!(times("TERMINATED", 1), 1, "{:?}", states(&follower));

    // With a fresh id it is another command.
    listening.command("supervisor", "supervision.start", &target);
    follower.wait("RUNNING", |told| is_state(told, "RUNNING"));
    let running = states(&follower);
    let running: Vec<_> = running
        .iter()
        .filter(|(state, _)| state == "RUNNING")
        .collect();
    assert_eq!(running.len(), 2, "{running:?}");
    assert!(running[1].1 > 1, "{running:?}");

    let nonsense = json!({"target": {"services": ["nobody"]}});
    let refused = listening.command("supervisor", "supervision.start", &nonsense);
    assert_eq!(refused["failed"], "not_found", "{refused}");
    let unknown = listening.command("supervisor", "supervision.sing", &json!({}));
    assert_eq!(unknown["failed"], "unimplemented", "{unknown}");
}

#[test]
fn a_command_sent_many_times_takes_effect_once_over_ipc() {
    a_command_sent_many_times_takes_effect_once(Way::Ipc);
}

#[test]
fn a_command_sent_many_times_takes_effect_once_over_tcp() {
    a_command_sent_many_times_takes_effect_once(Way::Tcp);
}

/// The bridge and the resource-controller, too, say over TCP what they say over ipc.
fn all_components_are_followed_and_asked(way: Way) {
    let listening = Listening::new(way);
    let _daemons = listening.deployment.daemons();
    let mut bridge = listening.follower("bridge", topic::REGISTRY, "registry.list");
    let mut resources = listening.follower("resource-controller", topic::RESOURCE, "resource.list");
    for follower in [&mut bridge, &mut resources] {
        follower.wait_what("snapshot");
        follower.wait_what("heartbeat");
    }
    let mut peer = listening.peer("python.1");
    peer.wait_what("registered");
    let told = bridge.wait("the registration", |told| {
        told["kind"] == "registry.changed"
    });
    assert_eq!(told["body"]["instance"], "python.1", "{told}");
    assert_eq!(told["body"]["registration"]["generation"], 1, "{told}");
    listening.command(
        "supervisor",
        "supervision.start",
        &json!({"target": {"services": ["web"]}}),
    );
    resources.wait("what web.1 uses", |told| {
        let usage = told["body"]["usage"].as_array().into_iter().flatten();
        let of_web = usage.filter(|one| one["instance"] == "web.1").count();
        told["kind"] == "resource.usage" && of_web == 1
    });

    let listed = listening.command("bridge", "registry.list", &json!({}));
    assert_eq!(
        listed["done"]["items"][0]["instance"], "python.1",
        "{listed}"
    );
    // Kept: a repetition is answered out of the cache.
    let forgotten = json!({"instance": "nobody.1"});
    let done = listening.command("resource-controller", "resource.release", &forgotten);
    assert_eq!(done, json!({"done": null}));
    for component in ["bridge", "resource-controller"] {
        let unknown = listening.command(component, "component.sing", &json!({}));
        assert_eq!(unknown["failed"], "unimplemented", "{component}: {unknown}");
    }
}

#[test]
fn all_components_are_followed_and_asked_over_ipc() {
    all_components_are_followed_and_asked(Way::Ipc);
}

#[test]
fn all_components_are_followed_and_asked_over_tcp() {
    all_components_are_followed_and_asked(Way::Tcp);
}

/// ZMTP's heartbeats every 100 ms on both planes, through four of the bus's
/// own, which come each second: nobody takes the other for dead.
fn heartbeats_keep_a_connection(way: Way) {
    let listening = Listening::new(way);
    let _daemons = listening.deployment.daemons();
    let mut follower = listening.follower("process-manager", topic::PROCESS, "process.list");
    let mut peer = listening.peer("python.1");
    peer.wait_what("registered");
    follower.wait("the fourth heartbeat", |told| told["count"] == 4);
    peer.order(&json!({"op": "call", "service": "python", "method": "echo", "payload": "x"}));
    let answer = peer.wait_what("answer");
    assert_eq!(answer["text"], "python.1 said x");
    for program in [&follower, &peer] {
        let told = program.told();
        let lost = |told: &Value| matches!(told["what"].as_str(), Some("disconnected" | "lost"));
        assert!(!told.iter().any(lost), "{told:#?}");
    }
}

#[test]
fn heartbeats_keep_a_connection_over_ipc() {
    heartbeats_keep_a_connection(Way::Ipc);
}

#[test]
fn heartbeats_keep_a_connection_over_tcp() {
    heartbeats_keep_a_connection(Way::Tcp);
}

/// Daemons die and come back; the foreign clients are in step again by themselves.
fn clients_come_back(way: Way) {
    let listening = Listening::new(way);
    let mut daemons = listening.deployment.daemons();
    let mut kill = |component: &str| -> Daemon {
        let index = daemons
            .iter()
            .position(|daemon| daemon.component() == component)
            .expect("a daemon");
        daemons.remove(index)
    };
    let mut follower = listening.follower("process-manager", topic::PROCESS, "process.list");
    follower.wait_what("snapshot");
    let mut peer = listening.peer("python.1");
    peer.wait_what("registered");

    kill("process-manager").kill();
    follower.wait_what("disconnected");
    let _manager = listening.deployment.daemon("process-manager");
    follower.wait_what("snapshot");
    listening.command(
        "supervisor",
        "supervision.start",
        &json!({"target": {"services": ["web"]}}),
    );
    let running = |told: &Value| {
        let items = told["items"].as_array().into_iter().flatten();
        is_state(told, "RUNNING") || items.into_iter().any(|item| item["state"] == "RUNNING")
    };
    follower.wait("web.1 to run", running);

    kill("bridge").kill();
    peer.wait_what("lost");
    let _bridge = listening.deployment.daemon("bridge");
    peer.wait_what("registered");
    peer.order(&json!({"op": "call", "service": "python", "method": "echo", "payload": "x"}));
    peer.wait_what("answer");
}

#[test]
fn clients_come_back_over_ipc() {
    clients_come_back(Way::Ipc);
}

#[test]
fn clients_come_back_over_tcp() {
    clients_come_back(Way::Tcp);
}

fn said(request: Request) -> Bytes {
    let caller = request
        .caller
        .map_or_else(|| "nobody".to_owned(), |caller| caller.to_string());
    let payload = String::from_utf8_lossy(&request.payload);
    format!("{caller} said {payload}").into()
}

fn methods() -> Methods {
    Methods::new()
        .on("echo", |request| async { Ok(said(request)) })
        .on("never", |_| std::future::pending())
}

fn code(result: Result<Bytes, Status>) -> Code {
    match result {
        Ok(payload) => panic!("an answer: {payload:?}"),
        Err(status) => status.code,
    }
}

/// Looks until a call in Rust comes to what it should.
async fn until(client: &Client, method: &str, expected: Code) {
    let budget = Duration::from_millis(300);
    let met = async {
        loop {
            match client.call("python", method, "", budget).await {
                Err(status) if status.code == expected => return,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(HANG, met)
        .await
        .expect("the call comes to that");
}

async fn calls_go_both_ways(way: Way) {
    let listening = Listening::new(way);
    let _bridge = listening.deployment.daemon("bridge");
    let mut peer = listening.peer("python.1");
    let rust = Client::connect(listening.options("rust.1"))
        .await
        .expect("a client");
    rust.serve(methods());
    rust.registered(HANG).await.expect("the bridge is there");
    peer.wait_what("registered");

    let answer = rust.call("python", "echo", "good day", HANG).await;
    assert_eq!(answer.expect("an answer"), "rust.1 said good day");
    let call = |service: &str, method: &str, budget: f64| json!({"op": "call", "service": service, "method": method, "payload": "hello", "budget": budget});
    peer.order(&call("rust", "echo", 30.0));
    let told = peer.wait("an answer", |told| told["what"] == "answer");
    assert_eq!(told["text"], "python.1 said hello");

    // Each side understands the other's refusals.
    assert_eq!(
        code(rust.call("python", "refuse", "", HANG).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(rust.call("python", "sing", "", HANG).await),
        Code::Unimplemented
    );
    for (order, expected) in [
        (call("rust", "sing", 30.0), "unimplemented"),
        (call("nobody", "sing", 30.0), "not_found"),
        (call("rust", "never", 0.3), "deadline_exceeded"),
        (call("Not A Name", "sing", 30.0), "invalid_argument"),
    ] {
        peer.order(&order);
        let told = peer.wait_what("failed");
        assert_eq!(told["code"], expected, "{order} {told}");
    }

    // A call that is given up reaches the one who works on it.
    until(&rust, "hold", Code::DeadlineExceeded).await;
    peer.wait_what("cancelled");

    // One that ends finishes what it has, and gets nothing new.
    let held = tokio::spawn({
        let rust = rust.clone();
        async move { rust.call("python", "hold", "", HANG).await }
    });
    let mut peer = tokio::task::spawn_blocking(move || {
        peer.wait_what("holding");
        peer.order(&json!({"op": "end"}));
        peer
    })
    .await
    .expect("it holds the call");
    until(&rust, "echo", Code::DeadlineExceeded).await;
    peer.order(&json!({"op": "release"}));
    assert_eq!(
        held.await.expect("the task").expect("the answer"),
        "held",
        "its call was finished"
    );
    tokio::task::spawn_blocking(move || {
        peer.wait_what("ended");
        assert_eq!(peer.end(), Some(0));
    })
    .await
    .expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_both_ways_over_ipc() {
    calls_go_both_ways(Way::Ipc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_both_ways_over_tcp() {
    calls_go_both_ways(Way::Tcp).await;
}

/// A long answer in parts: more than its window by far.
#[test]
fn a_streamed_answer_arrives_whole() {
    for way in [Way::Ipc, Way::Tcp] {
        let listening = Listening::new(way);
        let _bridge = listening.deployment.daemon("bridge");
        let mut callee = listening.peer("python.1");
        let mut caller = listening.peer("reader.1");
        callee.wait_what("registered");
        caller.wait_what("registered");
        caller.order(&json!({
            "op": "stream", "service": "python", "method": "many", "payload": "500", "window": 4000
        }));
        let told = caller.wait("the end of the stream", |told| {
            told["what"] == "streamed" || told["what"] == "failed"
        });
        assert_eq!(
            told,
            json!({"what": "streamed", "parts": 500, "bytes": 500_000, "right": true})
        );
        // Who wants no parts gets one answer.
        caller.order(&json!({"op": "call", "service": "python", "method": "many", "payload": "1"}));
        caller.wait_what("answer");
    }
}

/// Wrong credentials are refused, and nobody else notices.
#[test]
fn wrong_credentials_are_refused() {
    for way in [Way::Ipc, Way::Tcp] {
        let listening = Listening::new(way);
        let _bridge = listening.deployment.daemon("bridge");
        let mut peer = listening.peer("python.1");
        peer.wait_what("registered");
        let token = options(&listening.deployment, "python.2").token;
        let mut wrong = Python::start(
            &listening.deployment,
            "peer.py",
            &[&listening.rpc(), "python.3", &token],
        );
        let told = wrong.wait_what("refused");
        assert_eq!(told["code"], "unauthenticated");
        assert_eq!(wrong.end(), Some(3));
        peer.order(&json!({"op": "call", "service": "python", "method": "echo", "payload": "x"}));
        peer.wait_what("answer");
    }
}

/// This project's DEALER connects to libzmq's ROUTER.
#[tokio::test(flavor = "multi_thread")]
async fn the_rpc_client_speaks_to_libzmq_as_its_bridge() {
    let deployment = Deployment::new(SERVICES);
    let socket = deployment.path().join("router.sock");
    let endpoint = format!("ipc://{}", socket.display());
    let options = |token: &str| ConnectOptions {
        socket: socket.clone(),
        instance: "rust.1".parse().expect("an instance"),
        token: token.to_owned(),
    };
    let fake = || {
        let mut fake = Python::start(
            &deployment,
            "fake_bridge.py",
            &[&endpoint, "rust.1", "secret"],
        );
        fake.wait_what("bound");
        fake
    };
    let first = fake();
    let client = Client::connect(options("secret")).await.expect("a client");
    client.serve(methods());
    client.registered(HANG).await.expect("registered");
    let answer = client.call("anybody", "echo", "abc", HANG).await;
    assert_eq!(answer.expect("an answer"), "python.1 said cba");

    // Its bridge is another one now.
    drop(first);
    let mut second = fake();
    tokio::task::block_in_place(|| {
        second.wait("the registration", |told| {
            told["header"]["kind"] == "register"
        })
    });
    let answer = client.call("anybody", "echo", "xyz", HANG).await;
    assert_eq!(answer.expect("an answer"), "python.1 said zyx");
    // The library's heartbeats, at its own pace.
    tokio::task::block_in_place(|| {
        second.wait("a heartbeat", |told| told["header"]["kind"] == "heartbeat")
    });

    // Whoever has another password is not let in.
    let stranger = Client::connect(options("wrong")).await.expect("a client");
    stranger.serve(methods());
    // At once and for good, although libzmq misspells its refusal.
    let status = stranger.call("anybody", "echo", "", HANG).await;
    assert_eq!(code(status), Code::Unauthenticated);
    let answer = client.call("anybody", "echo", "abc", HANG).await;
    assert_eq!(answer.expect("an answer"), "python.1 said cba");
}

async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    tokio::time::timeout(HANG, events.recv())
        .await
        .expect("an event comes")
        .expect("the link is open")
}

/// The restarts that the next snapshot shows.
async fn healed(events: &mut mpsc::Receiver<LinkEvent>) -> u32 {
    loop {
        if let LinkEvent::Snapshot { items, .. } = next(events).await {
            let status: InstanceStatus = item(items[0].clone()).expect("a status");
            return status.restarts;
        }
    }
}

/// This project's link connects to libzmq's PUB and SUB, and heals what they lose.
#[tokio::test(flavor = "multi_thread")]
async fn the_link_speaks_to_libzmq_as_its_component() {
    let deployment = Deployment::new(SERVICES);
    let dirs = deployment.dirs();
    dirs.create().expect("directories");
    let bus = dirs.run.join("bus").display().to_string();
    let interest = Interest::none().stream::<ListStatus>(topic::SUPERVISION);
    let me = ClientName::fresh("test");
    let (link, mut events) = Link::open(&dirs, me, Component::Supervisor, interest)
        .await
        .expect("a link");
    let mut fake = Python::start(&deployment, "fake_component.py", &[&bus]);
    tokio::task::block_in_place(|| fake.wait_what("bound"));
    let info = link.ready(HANG).await.expect("an echo");
    assert_eq!((info.version.as_str(), info.incarnation), ("fake", 5));
    assert_eq!(healed(&mut events).await, 0);

    let target = Target::All;
    link.request(
        &ResetServices {
            target: target.clone(),
        },
        HANG,
    )
    .await
    .expect("done");
    loop {
        if let LinkEvent::Event(received) = next(&mut events).await {
            let changed: SupervisionChanged = received.parse().expect("a change");
            assert_eq!(changed.status.restarts, 1);
            break;
        }
    }
    link.request(
        &StartServices {
            target: target.clone(),
        },
        HANG,
    )
    .await
    .expect("done");
    assert_eq!(healed(&mut events).await, 3, "a gap between two events");
    let stop = StopServices {
        target,
        transient: false,
    };
    link.request(&stop, HANG).await.expect("done");
    assert_eq!(healed(&mut events).await, 4, "the last event of a topic");
}

/// The example as its README has it.
#[test]
fn the_example_in_python_works() {
    let yaml = binaries::repository().join("examples/python/blackhole.yaml");
    let deployment = Deployment::of_file(&yaml);
    let python = interpreter();
    let python = python.parent().expect("a directory").display();
    let mut up = deployment.command(&deployment.binaries().join("blackhole"));
    up.arg("-c").arg(&yaml).args(["up", "-d"]);
    let path = binaries::path_with(deployment.binaries());
    up.env("PATH", format!("{python}:{path}"));
    deployment.run(up, "blackhole up").ok();
    wait_for("Rust to be answered by Python", || {
        let log = deployment.cli(&["logs", "ask"]).stdout;
        match log.contains("OK: hello Rust, from ask.1") {
            true => Ok(()),
            false => Err(log),
        }
    });
    deployment.cli(&["stop", "greeter"]).ok();
    let log = deployment.cli(&["logs", "greeter"]).ok().stdout;
    assert_eq!(log.matches("greeter ends").count(), 2, "{log}");
    deployment.down();
}
