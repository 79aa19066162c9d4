//! Calls without the bridge on the way.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::rpc::header::{Endpoint, Header, Request};
use blackhole_bus_schema::rpc::{Client, Code, Key, Methods, Status};
use blackhole_bus_schema::transport::rpc::{Dealer, DealerEvent, Router};
use bytes::Bytes;
use support::{Bridge, PATIENCE};
use tokio::sync::watch;

fn echo(index: u32) -> Methods {
    Methods::new()
        .on("echo", |request| async move { Ok(request.payload) })
        .on("who", move |request| async move {
            let caller = request.caller.map(|caller| caller.to_string());
            Ok(format!("{index} asked by {}", caller.unwrap_or_default()).into())
        })
        .on("fail", |_| async {
            Err(Status::new(Code::FailedPrecondition, "not today"))
        })
        .on_stream("count", |_, parts| async move {
            for number in 0..10_000_u32 {
                parts.send(number.to_be_bytes().to_vec()).await?;
            }
            Ok(())
        })
        .direct()
}

async fn serving(bridge: &Bridge, index: u32, generation: u64) -> Client {
    let back = bridge.client(&format!("back.{index}"), generation).await;
    back.serve(echo(index));
    back.registered(PATIENCE).await.unwrap();
    back
}

async fn endpoints(front: &Client) -> Vec<Endpoint> {
    front.resolve("back", PATIENCE).await.unwrap()
}

#[tokio::test]
async fn a_service_is_called_directly() {
    let bridge = Bridge::start(&["front", "back"]);
    let _back = serving(&bridge, 1, 1).await;
    let front = bridge.registered("front.1", 1).await;
    let direct = front.direct("back");
    assert_eq!(
        direct.call("echo", "hello", PATIENCE).await.unwrap(),
        "hello"
    );
    let who = direct.call("who", "", PATIENCE).await.unwrap();
    assert_eq!(who, "1 asked by front.1");
    let code = |result: Result<Bytes, Status>| result.unwrap_err().code;
    assert_eq!(
        code(direct.call("fail", "", PATIENCE).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(direct.call("other", "", PATIENCE).await),
        Code::Unimplemented
    );
    let all = direct.stream("count", "", PATIENCE).await.unwrap();
    assert_eq!(all.collect(1 << 20).await.unwrap().len(), 40_000);
    let front_itself = front.direct("front");
    let nobody = front_itself.call("echo", "", Duration::from_millis(100));
    assert!(matches!(
        code(nobody.await),
        Code::Unavailable | Code::DeadlineExceeded
    ));
    assert_eq!(
        code(front.direct("nothing").call("x", "", PATIENCE).await),
        Code::NotFound
    );
}

#[tokio::test]
async fn direct_connections_outlive_the_bridge_and_find_successors() {
    let mut bridge = Bridge::start(&["front", "back"]);
    let back = serving(&bridge, 1, 1).await;
    let front = bridge.registered("front.1", 1).await;
    let direct = front.direct("back");
    direct.call("echo", "x", PATIENCE).await.unwrap();
    bridge.kill();
    for _ in 0..10 {
        assert_eq!(direct.call("echo", "y", PATIENCE).await.unwrap(), "y");
    }
    bridge.spawn();
    front.registered(PATIENCE).await.unwrap();
    assert_eq!(direct.call("echo", "z", PATIENCE).await.unwrap(), "z");
    // The callee is replaced: its successor is found.
    drop(back);
    let idempotent = || direct.request("who").budget(PATIENCE).idempotent().send();
    let (answer, _back) = tokio::join!(idempotent(), serving(&bridge, 1, 2));
    assert_eq!(answer.unwrap(), "1 asked by front.1");
}

#[tokio::test]
async fn calls_go_to_the_replica_with_the_fewest() {
    let bridge = Bridge::start(&["front", "back"]);
    let release = watch::Sender::new(false);
    let mut backs = Vec::new();
    for index in 1..=2 {
        let back = bridge.client(&format!("back.{index}"), 1).await;
        let release = release.subscribe();
        back.serve(
            Methods::new()
                .on("hold", move |_| {
                    let mut release = release.clone();
                    async move {
                        let _ = release.wait_for(|released| *released).await;
                        Ok(Bytes::from(index.to_string()))
                    }
                })
                .direct(),
        );
        back.registered(PATIENCE).await.unwrap();
        backs.push(back);
    }
    let front = bridge.registered("front.1", 1).await;
    let direct = front.direct("back");
    // Both connections are there: each has one of two calls that are held.
    let calls = async {
        loop {
            let both = tokio::join!(
                direct.call("hold", "", PATIENCE),
                direct.call("hold", "", PATIENCE),
            );
            let mut both = [both.0.unwrap(), both.1.unwrap()];
            both.sort();
            if both == ["1", "2"] {
                return;
            }
        }
    };
    let released = async { release.send_replace(true) };
    tokio::join!(calls, released);
}

/// Whether a ticket opens a socket.
async fn opens(endpoint: &str, username: &str, ticket: &str) -> bool {
    let dealer = Dealer::new(username, ticket);
    let mut events = dealer.watch();
    dealer.connect_to(endpoint).await.unwrap();
    match tokio::time::timeout(PATIENCE, events.next()).await.unwrap() {
        DealerEvent::Up => true,
        DealerEvent::Down | DealerEvent::Refused(_) => false,
    }
}

#[tokio::test]
async fn only_a_ticket_of_ones_own_opens_the_door() {
    let bridge = Bridge::start(&["front", "back"]);
    let _first = serving(&bridge, 1, 1).await;
    let _second = serving(&bridge, 2, 1).await;
    let front = bridge.registered("front.1", 1).await;
    let found = endpoints(&front).await;
    assert_eq!(found.len(), 2);
    let [one, two] = [&found[0], &found[1]];
    let ticket = |endpoint: &Endpoint| endpoint.ticket.clone().unwrap();
    assert!(opens(&one.endpoint, "front.1", &ticket(one)).await);
    // Another's, another callee's, its own token, none.
    assert!(!opens(&one.endpoint, "front.2", &ticket(one)).await);
    assert!(!opens(&one.endpoint, "front.1", &ticket(two)).await);
    assert!(
        !opens(
            &one.endpoint,
            "front.1",
            &bridge.options("front.1", 1).token
        )
        .await
    );
    assert!(!opens(&one.endpoint, "front.1", "").await);
    // Expired, made for another spawn, made with another key.
    let key = Key::load_or_create(&bridge.dirs).unwrap();
    let me = "front.1".parse().unwrap();
    let callee = key.direct_key(&one.instance, Generation(1));
    assert!(opens(&one.endpoint, "front.1", &callee.ticket(&me)).await);
    assert!(
        !opens(
            &one.endpoint,
            "front.1",
            &callee.ticket_until(&me, 1_000_000)
        )
        .await
    );
    let other = key.direct_key(&one.instance, Generation(2)).ticket(&me);
    assert!(!opens(&one.endpoint, "front.1", &other).await);
    let forged = Key::from_bytes([1; 32]).direct_key(&one.instance, Generation(1));
    assert!(!opens(&one.endpoint, "front.1", &forged.ticket(&me)).await);
}

#[tokio::test]
async fn a_direct_caller_cannot_say_that_it_is_another() {
    let bridge = Bridge::start(&["front", "back"]);
    let _back = serving(&bridge, 1, 1).await;
    let front = bridge.registered("front.1", 1).await;
    let found = endpoints(&front).await;
    let dealer = Dealer::new("front.1", found[0].ticket.as_deref().unwrap());
    dealer.connect_to(&found[0].endpoint).await.unwrap();
    let lie = Header::Request(Request {
        id: 1,
        method: "who".into(),
        caller: Some("bank.1".into()),
        ..Request::default()
    });
    dealer.send(lie.encode(), Bytes::new()).await.unwrap();
    let received = tokio::time::timeout(PATIENCE, dealer.recv()).await.unwrap();
    let (_, payload) = received.unwrap();
    assert_eq!(payload.as_ref(), b"1 asked by front.1");
}

#[tokio::test]
async fn a_socket_is_open_to_all_users_and_removed_with_its_service() {
    use std::os::unix::fs::PermissionsExt;
    let bridge = Bridge::start(&["front", "back"]);
    let back = serving(&bridge, 1, 1).await;
    let front = bridge.registered("front.1", 1).await;
    let found = endpoints(&front).await;
    let path = Path::new(found[0].endpoint.strip_prefix("ipc://").unwrap());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(path), 0o666);
    assert_eq!(mode(path.parent().unwrap()), 0o1777);
    // Serving something else, not directly.
    back.serve(Methods::new().on("x", |_| async { Ok(Bytes::new()) }));
    back.registered(PATIENCE).await.unwrap();
    assert!(!path.exists());
    assert!(endpoints(&front).await.is_empty());
}

#[tokio::test]
async fn a_service_that_ends_sends_its_direct_callers_away_and_finishes() {
    let bridge = Bridge::start(&["front", "back"]);
    let (started, release) = (watch::Sender::new(0), watch::Sender::new(false));
    let back = bridge.client("back.1", 1).await;
    let (at_start, held) = (started.clone(), release.subscribe());
    back.serve(
        Methods::new()
            .on("hold", move |_| {
                let (at_start, mut held) = (at_start.clone(), held.clone());
                async move {
                    at_start.send_modify(|started| *started += 1);
                    let _ = held.wait_for(|released| *released).await;
                    Ok(Bytes::from_static(b"finished"))
                }
            })
            .direct(),
    );
    back.registered(PATIENCE).await.unwrap();
    let front = bridge.registered("front.1", 1).await;
    let direct = front.direct("back");
    let ends = async {
        started.subscribe().wait_for(|n| *n == 1).await.unwrap();
        let drained = back.drain(PATIENCE);
        tokio::join!(drained, async { release.send_replace(true) });
    };
    let (answer, ()) = tokio::join!(direct.call("hold", "", PATIENCE), ends);
    assert_eq!(answer.unwrap(), "finished");
    assert!(endpoints(&front).await.is_empty());
}

/// One ticket opens so many connections, and the callee has room for others.
#[tokio::test]
async fn one_caller_has_so_many_connections_and_no_more() {
    let bridge = Bridge::start(&["front", "back"]);
    let _back = serving(&bridge, 1, 1).await;
    let front = bridge.registered("front.1", 1).await;
    let found = endpoints(&front).await;
    let open = async || {
        let dealer = Dealer::new("front.1", found[0].ticket.as_deref().unwrap());
        let mut events = dealer.watch();
        dealer.connect_to(&found[0].endpoint).await.unwrap();
        assert_eq!(events.next().await, DealerEvent::Up);
        let heartbeat = Header::Heartbeat { registered: None }.encode();
        dealer.send(heartbeat, Bytes::new()).await.unwrap();
        (dealer, events)
    };
    let mut all = Vec::new();
    for _ in 0..16 {
        let (dealer, events) = open().await;
        let answer = tokio::time::timeout(PATIENCE, dealer.recv()).await;
        answer.unwrap().unwrap();
        all.push((dealer, events));
    }
    let (_dealer, mut events) = open().await;
    let told = tokio::time::timeout(PATIENCE, events.next()).await;
    assert_eq!(told.unwrap(), DealerEvent::Down);
    let other = bridge.registered("front.2", 1).await;
    let answer = other.direct("back").call("echo", "x", PATIENCE).await;
    assert_eq!(answer.unwrap(), "x");
    // Who is gone leaves room.
    all.clear();
    let answer = front.direct("back").call("echo", "y", PATIENCE).await;
    assert_eq!(answer.unwrap(), "y");
}

/// A replica that refuses all tickets is left alone for longer and longer, however
/// many calls go elsewhere.
#[tokio::test]
async fn who_refuses_is_tried_less_and_less() {
    let bridge = Bridge::start(&["front", "back"]);
    let _back = serving(&bridge, 1, 1).await;
    let rpc = bridge.dirs.rpc_socket();
    let path = blackhole_bus_schema::rpc::direct_dir(&rpc).join("refuses");
    let tries = watch::Sender::new(Vec::new());
    let tried = tries.clone();
    let _refuses = Router::bind(&path, move |_, _| {
        tried.send_modify(|tries| tries.push(Instant::now()));
        None
    })
    .await
    .unwrap();
    let other = bridge.client("back.2", 1).await;
    let methods = Methods::new().on("echo", |request| async move { Ok(request.payload) });
    other.serve(methods.endpoint(format!("ipc://{}", path.display())));
    other.registered(PATIENCE).await.unwrap();
    let front = bridge.registered("front.1", 1).await;
    let direct = front.direct("back");
    let six = async {
        let mut tries = tries.subscribe();
        let _ = tries.wait_for(|tries| tries.len() >= 6).await;
    };
    let calls = async {
        loop {
            direct.call("echo", "x", PATIENCE).await.unwrap();
        }
    };
    tokio::select! {
        () = calls => {}
        () = six => {}
    }
    // The halves of 100, 200, 400, 800 and 1,600 ms at least.
    let tries = tries.borrow();
    assert!(
        tries[5] - tries[0] >= Duration::from_millis(1550),
        "{tries:?}"
    );
}

/// A caller finds who came after its first call.
#[tokio::test]
async fn a_replica_that_comes_back_gets_calls_again() {
    let bridge = Bridge::start(&["front", "back"]);
    let _one = serving(&bridge, 1, 1).await;
    let two = serving(&bridge, 2, 1).await;
    let front = bridge.registered("front.1", 1).await;
    let direct = front.direct("back");
    let asked = |index: u32| {
        let direct = direct.clone();
        async move {
            let wanted = format!("{index} asked by front.1");
            loop {
                let who = direct.request("who").budget(PATIENCE).idempotent();
                if who.send().await.unwrap() == wanted {
                    return;
                }
            }
        }
    };
    // Both have no calls: they take turns.
    asked(1).await;
    asked(2).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(direct.call("who", "", PATIENCE).await.unwrap());
    }
    assert_eq!((&order[0], &order[1]), (&order[2], &order[3]));
    assert_ne!(order[0], order[1]);
    // One is lost while the other is there, and its successor is found all the same.
    drop(two);
    asked(1).await;
    let two = serving(&bridge, 2, 2).await;
    tokio::time::timeout(PATIENCE, asked(2)).await.unwrap();
    // One says that it goes, and its successor is there at once.
    let three = serving(&bridge, 2, 3).await;
    two.drain(PATIENCE).await;
    tokio::time::timeout(PATIENCE, asked(2)).await.unwrap();
    drop((two, three));
}
