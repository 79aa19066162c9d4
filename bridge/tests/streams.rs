//! Streamed answers through a real bridge.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blackhole_bus_schema::rpc::header::{Header, Register, Request};
use blackhole_bus_schema::rpc::{Code, Methods, Status};
use blackhole_bus_schema::transport::rpc::Dealer;
use bytes::Bytes;
use support::{Bridge, PATIENCE};
use tokio::sync::watch;

/// `count` sends numbers of four bytes, as many as it is asked for, and counts what it sent.
fn numbers(sent: watch::Sender<usize>) -> Methods {
    Methods::new().on_stream("count", move |request, parts| {
        let sent = sent.clone();
        async move {
            let most = std::str::from_utf8(&request.payload)
                .unwrap()
                .parse()
                .unwrap();
            for number in 0..most {
                let part = u32::try_from(number).unwrap().to_be_bytes().to_vec();
                parts.send(part).await?;
                sent.send_modify(|sent| *sent += 1);
            }
            Ok(())
        }
    })
}

#[tokio::test]
async fn an_answer_comes_in_parts_and_ends() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    back.serve(
        numbers(watch::Sender::new(0))
            .on("once", |_| async { Ok(Bytes::from_static(b"whole")) })
            .on_stream("fails", |_, parts| async move {
                parts.send("some").await?;
                Err(Status::new(Code::DataLoss, "the rest is gone"))
            })
            .on_stream("large", |_, parts| async move {
                parts.send(vec![7; 5 << 20]).await
            }),
    );
    let front = bridge.registered("front.1", 1).await;
    let mut answers = front
        .stream("back", "count", "20000", PATIENCE)
        .await
        .unwrap();
    let mut next = 0_u32;
    while let Some(part) = answers.next().await {
        assert_eq!(part.unwrap()[..], next.to_be_bytes());
        next += 1;
    }
    assert_eq!(next, 20_000);
    assert!(answers.next().await.is_none());

    // Either side may know nothing of parts.
    let mut whole = front.stream("back", "once", "", PATIENCE).await.unwrap();
    assert_eq!(whole.next().await.unwrap().unwrap(), "whole");
    assert!(whole.next().await.is_none());
    let collected = front.call("back", "count", "3", PATIENCE).await.unwrap();
    assert_eq!(collected[..], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]);

    let mut failing = front.stream("back", "fails", "", PATIENCE).await.unwrap();
    assert_eq!(failing.next().await.unwrap().unwrap(), "some");
    assert_eq!(
        failing.next().await.unwrap().unwrap_err().code,
        Code::DataLoss
    );
    assert!(failing.next().await.is_none());
    let mut unknown = front.stream("back", "nothing", "", PATIENCE).await.unwrap();
    assert_eq!(
        unknown.next().await.unwrap().unwrap_err().code,
        Code::Unimplemented
    );

    // Larger than a part and than the window: in pieces.
    let large = front
        .request("back", "large")
        .window(100_000)
        .budget(PATIENCE);
    let large = large
        .stream()
        .await
        .unwrap()
        .collect(16 << 20)
        .await
        .unwrap();
    assert_eq!(large, vec![7; 5 << 20]);
    let small = front
        .request("back", "large")
        .budget(PATIENCE)
        .stream()
        .await
        .unwrap();
    assert_eq!(
        small.collect(1 << 20).await.unwrap_err().code,
        Code::ResourceExhausted
    );
}

#[tokio::test]
async fn a_slow_consumer_holds_its_producer_and_nobody_else() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let sent = watch::Sender::new(0);
    back.serve(numbers(sent.clone()));
    let slow = bridge.registered("front.1", 1).await;
    let quick = bridge.registered("front.2", 1).await;
    let request = slow.request("back", "count").payload("10000").window(400);
    let mut held = request.budget(PATIENCE).stream().await.unwrap();
    // A hundred fit in the window. The other caller gets all of its own meanwhile.
    sent.subscribe()
        .wait_for(|sent| *sent == 100)
        .await
        .unwrap();
    let all = quick
        .stream("back", "count", "5000", PATIENCE)
        .await
        .unwrap();
    assert_eq!(all.collect(1 << 20).await.unwrap().len(), 20_000);
    assert_eq!(*sent.borrow(), 5100);
    for _ in 0..50 {
        held.next().await.unwrap().unwrap();
    }
    // A quarter of the window may be taken and not acknowledged yet.
    sent.subscribe()
        .wait_for(|sent| *sent > 5125)
        .await
        .unwrap();
    assert!(*sent.borrow() <= 5150);
    let rest = held.collect(1 << 20).await.unwrap();
    assert_eq!(rest.len(), 4 * 9950);
}

/// A method that streams for ever, and tells how many of its handlers are at work.
fn endless(working: Arc<AtomicUsize>, changed: watch::Sender<()>) -> Methods {
    struct AtWork(Arc<AtomicUsize>, watch::Sender<()>);
    impl Drop for AtWork {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
            self.1.send_replace(());
        }
    }
    Methods::new().on_stream("endless", move |_, parts| {
        let (working, changed) = (working.clone(), changed.clone());
        async move {
            working.fetch_add(1, Ordering::SeqCst);
            changed.send_replace(());
            let _at_work = AtWork(working, changed);
            loop {
                parts.send(vec![1; 1000]).await?;
            }
        }
    })
}

#[tokio::test]
async fn a_stream_ends_when_its_caller_does() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    let working = Arc::new(AtomicUsize::new(0));
    let changed = watch::Sender::new(());
    back.serve(endless(working.clone(), changed.clone()));
    let front = bridge.registered("front.1", 1).await;
    let is = |wanted: usize| {
        let (working, mut changed) = (working.clone(), changed.subscribe());
        async move {
            let there = |(): &()| working.load(Ordering::SeqCst) == wanted;
            let waited = tokio::time::timeout(PATIENCE, changed.wait_for(there)).await;
            assert!(waited.is_ok(), "{wanted}");
        }
    };
    // Cancelled by being dropped.
    let mut answers = front.stream("back", "endless", "", PATIENCE).await.unwrap();
    answers.next().await.unwrap().unwrap();
    is(1).await;
    drop(answers);
    is(0).await;
    // Its budget is spent while parts keep coming.
    let budget = Duration::from_millis(100);
    let mut answers = front.stream("back", "endless", "", budget).await.unwrap();
    let last = loop {
        match answers.next().await {
            Some(Ok(_)) => {}
            Some(Err(status)) => break status,
            None => panic!("an end"),
        }
    };
    assert_eq!(last.code, Code::DeadlineExceeded);
    is(0).await;
    // The whole caller is gone.
    let doomed = bridge.registered("front.2", 1).await;
    let mut answers = doomed
        .stream("back", "endless", "", PATIENCE)
        .await
        .unwrap();
    answers.next().await.unwrap().unwrap();
    is(1).await;
    bridge.forget(answers, doomed);
    is(0).await;
}

#[tokio::test]
async fn a_stream_ends_when_its_callee_does() {
    let mut bridge = Bridge::start(&["front", "back"]);
    let back = bridge.registered("back.1", 1).await;
    back.serve(endless(Arc::default(), watch::Sender::new(())));
    let front = bridge.registered("front.1", 1).await;
    let ended = |mut answers: blackhole_bus_schema::rpc::Answers| async move {
        loop {
            match answers.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return status.code,
                None => panic!("a stream that was cut off looks whole"),
            }
        }
    };
    let mut answers = front.stream("back", "endless", "", PATIENCE).await.unwrap();
    answers.next().await.unwrap().unwrap();
    drop(back);
    assert_eq!(ended(answers).await, Code::Unavailable);
    // And when the bridge does.
    let back = bridge.registered("back.1", 2).await;
    back.serve(endless(Arc::default(), watch::Sender::new(())));
    let mut answers = front.stream("back", "endless", "", PATIENCE).await.unwrap();
    answers.next().await.unwrap().unwrap();
    bridge.kill();
    assert_eq!(ended(answers).await, Code::Unavailable);
}

/// A service that speaks the protocol by itself.
async fn raw(bridge: &Bridge, instance: &str) -> Dealer {
    let options = bridge.options(instance, 1);
    let dealer = Dealer::new(instance, &options.token);
    dealer.connect(&options.socket).await.unwrap();
    dealer
}

async fn next(dealer: &Dealer) -> (Header<'static>, Bytes) {
    let received = tokio::time::timeout(PATIENCE, dealer.recv());
    let (header, payload) = received.await.unwrap().unwrap();
    let header = Header::decode(header.as_ref()).unwrap().into_owned();
    (header, payload.into_bytes())
}

#[tokio::test]
async fn who_overruns_its_credit_is_cut_off() {
    let bridge = Bridge::start(&["front", "back"]);
    let back = raw(&bridge, "back.1").await;
    let register = Header::Register(Register {
        version: 1,
        methods: vec!["flood".into()],
        ..Register::default()
    });
    back.send(register.encode(), Bytes::new()).await.unwrap();
    assert!(matches!(next(&back).await.0, Header::Registered(_)));
    let front = raw(&bridge, "front.1").await;
    let request = Header::Request(Request {
        id: 5,
        service: "back".into(),
        method: "flood".into(),
        window: Some(1000),
        ..Request::default()
    });
    front.send(request.encode(), Bytes::new()).await.unwrap();
    let id = match next(&back).await.0 {
        Header::Request(request) => request.id,
        other => panic!("{other:?}"),
    };
    for _ in 0..3 {
        let part = Header::Part { id }.encode();
        back.send(part, Bytes::from(vec![0; 500])).await.unwrap();
    }
    assert_eq!(
        next(&front).await,
        (Header::Part { id: 5 }, vec![0; 500].into())
    );
    assert_eq!(
        next(&front).await,
        (Header::Part { id: 5 }, vec![0; 500].into())
    );
    match next(&front).await.0 {
        Header::Response(response) => assert_eq!(response.code, Code::ResourceExhausted),
        other => panic!("{other:?}"),
    }
    assert_eq!(next(&back).await.0, Header::Cancel { id });
    assert_eq!(
        bridge.log().matches("beyond the caller's window").count(),
        1
    );
}
