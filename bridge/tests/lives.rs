//! Who may connect, and what happens when one end is away for a while.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use blackhole_bus_schema::bus::Server;
use blackhole_bus_schema::names::{Component, Generation};
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, Failure, InstanceRecord, NotifyState, ProcessChanged,
    ProcessState, StateName,
};
use blackhole_bus_schema::registry::{Drain, ListCalls};
use blackhole_bus_schema::rpc::{Client, Code, ConnectOptions, Methods};
use blackhole_bus_schema::topic::Topic;
use bytes::Bytes;
use support::{Bridge, PATIENCE};
use tokio::sync::Notify;

fn echo() -> Methods {
    Methods::new().on("echo", |request| async move { Ok(request.payload) })
}

#[tokio::test]
async fn a_wrong_token_is_refused() {
    let bridge = Bridge::start(&["back"]);
    let right = bridge.options("back.1", 1);
    // Somebody else's, an invented one, another generation's.
    let wrong = [
        (bridge.options("back.2", 1).token, "back.1"),
        (format!("1.{}", "0".repeat(64)), "back.1"),
        (right.token.replacen("1.", "2.", 1), "back.1"),
        ("rubbish".to_owned(), "back.1"),
    ];
    for (token, instance) in wrong {
        let options = ConnectOptions {
            socket: right.socket.clone(),
            instance: instance.parse().unwrap(),
            token,
        };
        let client = Client::connect(options).await.unwrap();
        client.serve(echo());
        assert!(client.registered(PATIENCE).await.is_err());
        let refused = client.call("back", "echo", "", PATIENCE).await.unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated);
    }
    assert!(bridge.log().contains("a connection was refused"));
    assert!(
        !bridge.log().contains(&right.token),
        "a token stands in the log"
    );
    // The right one is still welcome.
    let _client = bridge.registered("back.1", 1).await;
}

#[tokio::test]
async fn the_bridge_may_be_killed_under_its_clients() {
    let mut bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let (started, hold) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (at_start, held) = (started.clone(), hold.clone());
    back.serve(echo().on("hold", move |_| {
        let (at_start, held) = (at_start.clone(), held.clone());
        async move {
            at_start.notify_one();
            held.notified().await;
            Ok(Bytes::new())
        }
    }));
    let front = bridge.registered("front.1", 1).await;
    front.call("back", "echo", "x", PATIENCE).await.unwrap();

    for round in 0..3 {
        let call = front.call("back", "hold", "", PATIENCE);
        let ((), lost) = tokio::join!(
            async {
                started.notified().await;
                bridge.kill();
            },
            call,
        );
        assert_eq!(lost.unwrap_err().code, Code::Unavailable, "round {round}");
        // Nobody there: the call waits, and is answered when it is back.
        let waiting = front.call("back", "echo", "again", PATIENCE);
        let (answer, ()) = tokio::join!(waiting, async { bridge.spawn() });
        assert_eq!(&answer.unwrap()[..], b"again", "round {round}");
    }
}

#[tokio::test]
async fn clients_may_be_there_before_the_bridge() {
    let mut bridge = Bridge::absent();
    let back = bridge.client("back.1", 1).await;
    back.serve(echo());
    let front = bridge.client("front.1", 1).await;
    let away = front
        .call("back", "echo", "", Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(away.code, Code::Unavailable);
    bridge.spawn();
    assert_eq!(
        &front.call("back", "echo", "x", PATIENCE).await.unwrap()[..],
        b"x"
    );
}

#[tokio::test]
async fn calls_wait_while_the_callee_restarts() {
    let bridge = Bridge::start(&["front", "back"]);
    let front = bridge.registered("front.1", 1).await;
    let back = bridge.registered("back.1", 1).await;
    back.serve(echo());
    front.call("back", "echo", "", PATIENCE).await.unwrap();
    drop(back);
    let (answer, _back) = tokio::join!(front.call("back", "echo", "parked", PATIENCE), async {
        let back = bridge.client("back.1", 2).await;
        back.serve(echo());
        back
    });
    // Either it was parked, or it was under way when the old one's connection went.
    match answer {
        Ok(answer) => assert_eq!(&answer[..], b"parked"),
        Err(status) => assert_eq!(status.code, Code::Unavailable),
    }
    assert_eq!(
        &front.call("back", "echo", "now", PATIENCE).await.unwrap()[..],
        b"now"
    );
}

#[tokio::test]
async fn an_instance_is_drained_before_it_is_stopped() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let (started, hold) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (at_start, held) = (started.clone(), hold.clone());
    back.serve(echo().on("hold", move |_| {
        let (at_start, held) = (at_start.clone(), held.clone());
        async move {
            at_start.notify_one();
            held.notified().await;
            Ok(Bytes::from_static(b"finished"))
        }
    }));
    let front = bridge.registered("front.1", 1).await;
    let (link, _events) = bridge.watch().await;
    let drain = |within_ms| Drain {
        instance: "back.1".parse().unwrap(),
        generation: Generation(1),
        within_ms,
    };
    let held = front.call("back", "hold", "", PATIENCE);
    let drains = async {
        started.notified().await;
        let unfinished = link.request(&drain(10), PATIENCE).await.unwrap();
        assert_eq!((unfinished.registered, unfinished.outstanding), (true, 1));
        let patient = drain(60_000);
        let (done, ()) = tokio::join!(link.request(&patient, PATIENCE), async {
            hold.notify_one();
        });
        done.unwrap()
    };
    let (answer, done) = tokio::join!(held, drains);
    assert_eq!(&answer.unwrap()[..], b"finished");
    assert_eq!((done.registered, done.outstanding), (true, 0));
    // What it asks itself is still answered, and what is asked of it waits for its successor.
    front.serve(echo());
    back.call("front", "echo", "", PATIENCE).await.unwrap();
    let waiting = front.call("back", "echo", "parked", PATIENCE);
    let (answer, _next) = tokio::join!(waiting, async {
        let next = bridge.client("back.1", 2).await;
        next.serve(echo());
        next
    });
    assert_eq!(&answer.unwrap()[..], b"parked");
    let stats = link.request(&ListCalls::default(), PATIENCE).await.unwrap();
    let held = stats.items.iter().find(|item| item.method == "hold");
    let held = held.unwrap_or_else(|| panic!("{stats:?}"));
    assert_eq!((held.calls, held.failed), (1, 0));
}

fn record(instance: &str, generation: u64, state: ProcessState) -> InstanceRecord {
    InstanceRecord {
        instance: instance.parse().unwrap(),
        generation: Generation(generation),
        state,
        notify: NotifyState::default(),
        steps: Vec::new(),
        grant: None,
        adopted: false,
        lost_log_lines: 0,
        previous_exit: None,
        restarts: 0,
    }
}

#[tokio::test]
async fn an_end_told_by_the_process_manager_ends_the_connection() {
    let bridge = Bridge::start(&["front", "back"]);
    let manager = Component::ProcessManager(None);
    let (manager, mut commands) = Server::bind(&bridge.dirs, manager, 1).await.unwrap();
    // Nobody asks for a state that has nothing in it; but an answer is due.
    let answering = manager.clone();
    tokio::spawn(async move {
        while let Some(incoming) = commands.recv().await {
            let page = answering.snapshot::<InstanceRecord>(
                blackhole_bus_schema::topic::PROCESS,
                std::iter::empty(),
                None,
            );
            incoming
                .reply::<blackhole_bus_schema::process::ListProcesses>(Ok(page))
                .await;
        }
    });
    let back = bridge.registered("back.1", 1).await;
    let started = Arc::new(Notify::new());
    let at_start = started.clone();
    back.serve(Methods::new().on("hang", move |_| {
        at_start.notify_one();
        std::future::pending()
    }));
    let front = bridge.registered("front.1", 1).await;
    let call = front.call("back", "hang", "", PATIENCE);
    let ends = async {
        started.notified().await;
        let exit = ExitRecord {
            generation: Generation(1),
            pid: 1,
            status: ExitStatus::Signaled {
                signal: 9,
                core_dumped: false,
            },
            result: ExitResult::Signal,
            started_at: 1,
            ended_at: 2,
            killed_leftovers: 0,
        };
        let failed = ProcessState::Failed {
            failure: Failure::Exit { exit },
        };
        let changed = ProcessChanged {
            from: Some(StateName::Running),
            record: record("back.1", 1, failed),
        };
        let topic = Topic::process(&changed.record.instance);
        manager.publish(topic, &changed, None).await;
    };
    let (lost, ()) = tokio::join!(call, ends);
    assert_eq!(lost.unwrap_err().code, Code::Unavailable);
    // The old one knocks again in vain, its successor is let in.
    let next = bridge.registered("back.1", 2).await;
    next.serve(echo());
    assert_eq!(
        &front.call("back", "echo", "x", PATIENCE).await.unwrap()[..],
        b"x"
    );
    assert!(
        back.call("front", "x", "", Duration::from_millis(500))
            .await
            .is_err()
    );
}
