//! Calls between two services through a real bridge.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use blackhole_bus_schema::bus::{self, LinkEvent};
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::registry::{ListRegistry, Registration, RegistryChanged};
use blackhole_bus_schema::rpc::{Client, Code, ConnectOptions, Key, Methods, Status};
use bytes::Bytes;
use support::{Bridge, PATIENCE};
use tokio::sync::{Notify, oneshot};

fn echo() -> Methods {
    Methods::new()
        .on("echo", |request| async move { Ok(request.payload) })
        .on("whoami", |request| async move {
            Ok(Bytes::from(
                request
                    .caller
                    .map(|caller| caller.to_string())
                    .unwrap_or_default(),
            ))
        })
        .on("fail", |_| async {
            Err(Status::new(Code::FailedPrecondition, "not today"))
        })
        .on("panic", |_| async { panic!("on purpose") })
}

#[tokio::test]
async fn two_services_call_each_other() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    back.serve(echo());
    let front = bridge.registered("front.1", 1).await;
    front.serve(Methods::new().on("ping", |_| async { Ok(Bytes::from_static(b"pong")) }));

    let answer = front.call("back", "echo", "hello", PATIENCE).await.unwrap();
    assert_eq!(&answer[..], b"hello");
    assert_eq!(
        &front.call("back", "whoami", "", PATIENCE).await.unwrap()[..],
        b"front.1"
    );
    assert_eq!(
        &back.call("front", "ping", "", PATIENCE).await.unwrap()[..],
        b"pong"
    );

    let failed = front.call("back", "fail", "", PATIENCE).await.unwrap_err();
    assert_eq!(
        (failed.code, failed.message.as_str()),
        (Code::FailedPrecondition, "not today")
    );
    let code = |status: Result<Bytes, Status>| status.unwrap_err().code;
    assert_eq!(
        code(front.call("back", "panic", "", PATIENCE).await),
        Code::Internal
    );
    assert_eq!(
        code(front.call("back", "other", "", PATIENCE).await),
        Code::Unimplemented
    );
    assert_eq!(
        code(front.call("nobody", "x", "", PATIENCE).await),
        Code::NotFound
    );
    assert_eq!(
        code(front.call("../x", "x", "", PATIENCE).await),
        Code::InvalidArgument
    );
    // After all that it still serves.
    assert_eq!(
        &front.call("back", "echo", "again", PATIENCE).await.unwrap()[..],
        b"again"
    );
}

#[tokio::test]
async fn payloads_are_opaque_and_bounded() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    back.serve(echo());
    let front = bridge.registered("front.1", 1).await;
    let big: Bytes = (0..8_u32 << 20)
        .map(|n| n.wrapping_mul(2_654_435_761) as u8)
        .collect();
    assert_eq!(
        front
            .call("back", "echo", big.clone(), PATIENCE)
            .await
            .unwrap(),
        big
    );
    let too_big = Bytes::from(vec![0; 16 << 20]);
    let refused = front
        .call("back", "echo", too_big, PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert_eq!(
        front.call("back", "echo", "", PATIENCE).await.unwrap(),
        Bytes::new()
    );
}

#[tokio::test]
async fn many_calls_at_once_are_spread_over_the_instances() {
    let bridge = Bridge::start(&["front", "back"]);
    let mut backs = Vec::new();
    for index in 1..=3_u32 {
        let back = bridge.registered(&format!("back.{index}"), 1).await;
        let name = Bytes::from(index.to_string());
        back.serve(Methods::new().on("who", move |_| {
            let name = name.clone();
            async move { Ok(name) }
        }));
        backs.push(back);
    }
    let front = bridge.registered("front.1", 1).await;
    // All three serve before the first call.
    let (link, _events) = bridge.watch().await;
    loop {
        let page = link
            .request(&ListRegistry::default(), PATIENCE)
            .await
            .unwrap();
        if page.items.len() == 3 {
            break;
        }
        tokio::task::yield_now().await;
    }
    let calls = (0..300).map(|_| front.call("back", "who", "", PATIENCE));
    let answers = futures_util::future::join_all(calls).await;
    for index in 1..=3_u32 {
        let name = index.to_string();
        let share = answers
            .iter()
            .filter(|answer| answer.as_ref().unwrap()[..] == *name.as_bytes())
            .count();
        assert!(
            (50..=150).contains(&share),
            "back.{index} had {share} of 300"
        );
    }
}

#[tokio::test]
async fn a_budget_ends_a_call_and_its_handler() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let dropped = Arc::new(std::sync::Mutex::new(Some(dropped)));
    back.serve(Methods::new().on("sleep", move |_| {
        // Dropped with the handler.
        let guard = dropped.lock().unwrap().take();
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    }));
    let front = bridge.registered("front.1", 1).await;
    let late = front
        .call("back", "sleep", "", Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(late.code, Code::DeadlineExceeded);
    assert!(
        tokio::time::timeout(PATIENCE, was_dropped)
            .await
            .unwrap()
            .is_err()
    );
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_at_the_callee() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let started = Arc::new(Notify::new());
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let dropped = Arc::new(std::sync::Mutex::new(Some(dropped)));
    let at_start = started.clone();
    back.serve(Methods::new().on("sleep", move |_| {
        let guard = dropped.lock().unwrap().take();
        at_start.notify_one();
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    }));
    let front = bridge.registered("front.1", 1).await;
    let call = front.call("back", "sleep", "", Duration::from_secs(3600));
    tokio::select! {
        result = call => panic!("{result:?}"),
        () = started.notified() => {}
    }
    assert!(
        tokio::time::timeout(PATIENCE, was_dropped)
            .await
            .unwrap()
            .is_err()
    );
}

#[tokio::test]
async fn the_registry_is_on_the_bus() {
    let bridge = Bridge::start(&["back"]);
    let (link, mut events) = bridge.watch().await;
    link.ready(PATIENCE).await.unwrap();
    let back = bridge.registered("back.1", 4).await;
    back.serve(echo().endpoint("tcp://127.0.0.1:9"));

    // In a snapshot or as an event, whichever comes first.
    let seen = async {
        loop {
            match events.recv().await.unwrap() {
                LinkEvent::Snapshot { items, .. } => {
                    if let Some(item) = items.into_iter().next() {
                        return bus::item::<Registration>(item).unwrap();
                    }
                }
                LinkEvent::Event(event) if event.kind() == RegistryChanged::KIND => {
                    let changed: RegistryChanged = event.parse().unwrap();
                    if let Some(registration) = changed.registration {
                        return registration;
                    }
                }
                _ => {}
            }
        }
    };
    let registration = tokio::time::timeout(PATIENCE, seen).await.unwrap();
    assert_eq!(registration.instance.to_string(), "back.1");
    assert_eq!(registration.generation.0, 4);
    assert_eq!(registration.methods, ["echo", "fail", "panic", "whoami"]);

    let front = bridge.registered("front.1", 1).await;
    let endpoints = front.resolve("back", PATIENCE).await.unwrap();
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].endpoint, "tcp://127.0.0.1:9");

    back.drain(PATIENCE).await;
    drop(back);
    let gone = async {
        loop {
            if let LinkEvent::Event(event) = events.recv().await.unwrap()
                && let Ok(changed) = event.parse::<RegistryChanged>()
                && changed.registration.is_none()
            {
                return changed.instance.to_string();
            }
        }
    };
    assert_eq!(
        tokio::time::timeout(PATIENCE, gone).await.unwrap(),
        "back.1"
    );
}

#[tokio::test]
async fn sigterm_ends_the_bridge_and_leaves_no_socket() {
    let mut bridge = Bridge::start(&["back"]);
    let _back = bridge.registered("back.1", 1).await;
    assert_eq!(bridge.stop(), Some(0));
    assert!(!bridge.dirs.rpc_socket().exists());
    let left: Vec<_> = std::fs::read_dir(bridge.dirs.run.join("bus"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_probe_reaches_the_instance_it_means() {
    let bridge = Bridge::start(&["back"]);
    let mut backs = Vec::new();
    for index in 1..=2 {
        let back = bridge.registered(&format!("back.{index}"), 1).await;
        back.serve(Methods::new().on("health", move |request| async move {
            let caller = request
                .caller
                .map(|caller| caller.to_string())
                .unwrap_or_default();
            Ok(Bytes::from(format!("{index} asked by {caller}")))
        }));
        backs.push(back);
    }
    let key = Key::load_or_create(&bridge.dirs).unwrap();
    let options = ConnectOptions::of_part(&bridge.dirs, &key, "process-manager").unwrap();
    let prober = Client::connect(options).await.unwrap();
    for index in [2, 1, 2, 2] {
        let answer = prober
            .call(&format!("back.{index}"), "health", "", PATIENCE)
            .await
            .unwrap();
        assert_eq!(answer, format!("{index} asked by process-manager.1"));
    }
}
