//! What the client library does by itself, and what the bridge bounds.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blackhole_bus_schema::rpc::header::{Header, Request};
use blackhole_bus_schema::rpc::trace::TraceContext;
use blackhole_bus_schema::rpc::{Client, Code, ConnectOptions, Methods, Status};
use blackhole_bus_schema::transport::rpc::{Dealer, DealerEvent};
use bytes::Bytes;
use support::{Bridge, PATIENCE};

/// `flaky` answers `Unavailable` so many times before it works.
fn flaky(failures: usize) -> (Methods, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let methods = Methods::new().on("flaky", move |_| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            match number < failures {
                true => Err(Status::new(Code::Unavailable, "not yet")),
                false => Ok(Bytes::from(number.to_string())),
            }
        }
    });
    (methods, asked)
}

#[tokio::test]
async fn only_idempotent_calls_are_repeated_and_within_their_budget() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let front = bridge.registered("front.1", 1).await;
    let call = || front.request("back", "flaky").budget(PATIENCE);

    let (methods, asked) = flaky(1);
    back.serve(methods);
    let once = call().send().await.unwrap_err();
    assert_eq!(
        (once.code, asked.load(Ordering::SeqCst)),
        (Code::Unavailable, 1)
    );

    let (methods, asked) = flaky(3);
    back.serve(methods);
    back.registered(PATIENCE).await.unwrap();
    assert_eq!(call().idempotent().send().await.unwrap(), "3");
    assert_eq!(asked.load(Ordering::SeqCst), 4);

    let (methods, asked) = flaky(usize::MAX);
    back.serve(methods);
    back.registered(PATIENCE).await.unwrap();
    // It ends of itself, as soon as no further try would fit; on a busy host one that should
    // have fitted may not.
    let short = call().budget(Duration::from_millis(300)).idempotent();
    let code = short.send().await.unwrap_err().code;
    assert!(
        matches!(code, Code::Unavailable | Code::DeadlineExceeded),
        "{code:?}"
    );
    assert!(asked.load(Ordering::SeqCst) > 1);

    // What is wrong stays wrong.
    let wrong = front.request("back", "other").idempotent().send().await;
    assert_eq!(wrong.unwrap_err().code, Code::Unimplemented);
}

/// Before its first await as after it: a panic of a handler is an answer.
#[tokio::test]
async fn a_handler_that_panics_takes_nobody_with_it() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let number =
        |payload: &Bytes| -> u32 { std::str::from_utf8(payload).unwrap().parse().unwrap() };
    let methods = Methods::new()
        .on("before", move |request| {
            let number = number(&request.payload);
            async move { Ok(Bytes::from(number.to_string())) }
        })
        .on("within", move |request| async move {
            Ok(Bytes::from(number(&request.payload).to_string()))
        })
        .on_stream("parts", move |request, parts| {
            let number = number(&request.payload);
            async move { parts.send(number.to_string()).await }
        })
        .direct();
    back.serve(methods);
    back.registered(PATIENCE).await.unwrap();
    let front = bridge.registered("front.1", 1).await;
    let direct = front.direct("back");
    for method in ["before", "within", "parts"] {
        for payload in ["five", "5"] {
            let by_the_bridge = front.call("back", method, payload, PATIENCE).await;
            let directly = direct.call(method, payload, PATIENCE).await;
            for answer in [by_the_bridge, directly] {
                match answer {
                    Ok(answer) => assert_eq!((payload, answer.as_ref()), ("5", &b"5"[..])),
                    Err(status) => assert_eq!((payload, status.code), ("five", Code::Internal)),
                }
            }
        }
    }
    // Its own calls go on, too.
    let own = back.call("back", "before", "7", PATIENCE).await;
    assert_eq!(own.unwrap(), "7");
}

#[tokio::test]
async fn a_trace_goes_along_with_the_calls_of_a_handler() {
    let bridge = Bridge::start(&["front", "middle", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let seen = |request: blackhole_bus_schema::rpc::Request| {
        let trace = request.trace.map(|trace| trace.to_string());
        Bytes::from(trace.unwrap_or_default())
    };
    back.serve(Methods::new().on("seen", move |request| async move { Ok(seen(request)) }));
    back.registered(PATIENCE).await.unwrap();
    let middle = bridge.registered("middle.1", 1).await;
    let caller = middle.clone();
    middle.serve(Methods::new().on("pass", move |request| {
        let caller = caller.clone();
        async move {
            let own = request.trace.unwrap_or_default();
            assert_eq!(TraceContext::current(), request.trace);
            let theirs = caller.call("back", "seen", "", PATIENCE).await?;
            Ok(format!("{own} {}", std::str::from_utf8(&theirs).unwrap()).into())
        }
    }));
    middle.registered(PATIENCE).await.unwrap();
    let front = bridge.registered("front.1", 1).await;
    let root = TraceContext::new();
    let spans = root
        .scope(async { front.call("middle", "pass", "", PATIENCE).await })
        .await
        .unwrap();
    let spans: Vec<TraceContext> = std::str::from_utf8(&spans)
        .unwrap()
        .split(' ')
        .map(|span| span.parse().unwrap())
        .collect();
    let [first, second] = spans[..] else {
        panic!("{spans:?}")
    };
    assert_eq!([first.trace_id, second.trace_id], [root.trace_id; 2]);
    let ids = [root.span_id, first.span_id, second.span_id];
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    // Without one there is none.
    assert_eq!(front.call("back", "seen", "", PATIENCE).await.unwrap(), "");
}

#[tokio::test]
async fn calls_are_carried_over_tcp_too() {
    let bridge = Bridge::start_with(&["front", "back"], "listen: {rpc: \"127.0.0.1:PORT\"}");
    let options = |instance: &str| ConnectOptions {
        socket: format!("tcp://127.0.0.1:{}", bridge.port).into(),
        ..bridge.options(instance, 1)
    };
    let back = Client::connect(options("back.1")).await.unwrap();
    back.serve(
        Methods::new()
            .on("echo", |request| async move { Ok(request.payload) })
            .direct(),
    );
    back.registered(PATIENCE).await.unwrap();
    let local = bridge.registered("front.1", 1).await;
    let remote = Client::connect(options("front.2")).await.unwrap();
    for front in [local, remote] {
        assert_eq!(
            front.call("back", "echo", "x", PATIENCE).await.unwrap(),
            "x"
        );
        let direct = front.direct("back");
        assert_eq!(direct.call("echo", "y", PATIENCE).await.unwrap(), "y");
    }
    let found = back.resolve("back", PATIENCE).await.unwrap();
    assert!(
        found[0].endpoint.starts_with("tcp://127.0.0.1:"),
        "{found:?}"
    );
    // The same tokens admit.
    let wrong = ConnectOptions {
        token: bridge.options("back.1", 1).token,
        ..options("front.3")
    };
    let refused = Client::connect(wrong).await.unwrap();
    let refused = refused
        .call("back", "echo", "", PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::Unauthenticated);
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_cut_off_and_the_others_are_served() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    back.serve(Methods::new().on("large", |_| async { Ok(vec![1; 64 << 10].into()) }));
    let front = bridge.registered("front.1", 1).await;
    front.call("back", "large", "", PATIENCE).await.unwrap();
    // Asks and never takes an answer: its own queue fills (1024 messages), then the
    // bridge's for it.
    let options = bridge.options("front.2", 1);
    let deaf = Dealer::new("front.2", &options.token);
    let mut events = deaf.watch();
    deaf.connect(&options.socket).await.unwrap();
    assert_eq!(events.next().await, DealerEvent::Up);
    let asks = async {
        let mut id = 0;
        loop {
            id += 1;
            let request = Header::Request(Request {
                id,
                service: "back".into(),
                method: "large".into(),
                ..Request::default()
            });
            deaf.send(request.encode(), Bytes::new()).await.unwrap();
            // The other caller is answered all the while.
            let answer = front.call("back", "large", "", PATIENCE).await.unwrap();
            assert_eq!(answer.len(), 64 << 10);
        }
    };
    tokio::select! {
        () = asks => {}
        event = events.next() => assert_eq!(event, DealerEvent::Down),
    }
    assert_eq!(bridge.log().matches("does not read its answers").count(), 1);
    front.call("back", "large", "", PATIENCE).await.unwrap();
}

#[tokio::test]
async fn nobody_speaks_for_another() {
    let bridge = Bridge::start(&["front", "back", "bank"]);
    let back = bridge.registered("back.1", 1).await;
    back.serve(Methods::new().on("who", |request| async move {
        let caller = request.caller.map(|caller| caller.to_string());
        Ok(caller.unwrap_or_default().into())
    }));
    back.registered(PATIENCE).await.unwrap();
    let options = bridge.options("front.1", 1);
    let dealer = Dealer::new("front.1", &options.token);
    dealer.connect(&options.socket).await.unwrap();
    let lie = Header::Request(Request {
        id: 1,
        service: "back".into(),
        method: "who".into(),
        caller: Some("bank.1".into()),
        ..Request::default()
    });
    dealer.send(lie.encode(), Bytes::new()).await.unwrap();
    let received = tokio::time::timeout(PATIENCE, dealer.recv()).await.unwrap();
    assert_eq!(received.unwrap().1.as_ref(), b"front.1");
    // Answers to calls that were never its own.
    for id in 0..100 {
        let answer = blackhole_bus_schema::rpc::header::Response::new((1 << 40) | id, Ok(()));
        let frame = Header::Response(answer).encode();
        dealer
            .send(frame, Bytes::from_static(b"forged"))
            .await
            .unwrap();
    }
    let front = bridge.registered("front.2", 1).await;
    assert_eq!(
        front.call("back", "who", "", PATIENCE).await.unwrap(),
        "front.2"
    );
    assert!(bridge.log().matches("reported once").count() <= 1);
}
