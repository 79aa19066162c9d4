//! Peers that use no library, and none of its patience.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use blackhole_bus_schema::rpc::Code;
use blackhole_bus_schema::rpc::header::{Header, Register, Response};
use support::raw::Raw;
use support::{Bridge, PATIENCE};

/// Serves one call, and is gone behind its answer.
fn answer_and_close(mut peer: Raw) {
    let request = loop {
        if let Header::Request(request) = peer.receive().unwrap() {
            break request;
        }
    };
    let goaway = Header::Goaway {
        reason: "the service ends".into(),
        ends: false,
    };
    peer.send(&goaway, b"").unwrap();
    let answer = Header::Response(Response::new(request.id, Ok(())));
    peer.send(&answer, b"done").unwrap();
}

#[tokio::test]
async fn an_answer_before_a_close_is_not_lost() {
    const ROUNDS: u64 = 200;
    let bridge = Bridge::start(&["front", "back"]);
    let front = bridge.registered("front.1", 1).await;
    let mut lost = Vec::new();
    for round in 1..=ROUNDS {
        let mut peer = Raw::connect(&bridge.options("back.1", round)).unwrap();
        let register = Register {
            version: 1,
            methods: vec!["work".into()],
            ..Register::default()
        };
        peer.send(&Header::Register(register), b"").unwrap();
        assert!(matches!(peer.receive().unwrap(), Header::Registered(_)));
        let serving = tokio::task::spawn_blocking(move || answer_and_close(peer));
        if let Err(status) = front.call("back", "work", "", PATIENCE).await {
            assert_eq!(status.code, Code::Unavailable);
            lost.push((round, status.message));
        }
        serving.await.unwrap();
    }
    assert!(lost.is_empty(), "{} of {ROUNDS}: {lost:?}", lost.len());
}

#[tokio::test]
async fn connections_that_say_nothing_are_limited() {
    const MOST: usize = 8;
    const OPENED: usize = 300;
    let bridge = Bridge::start(&["front", "evil"]);
    let _first = bridge.registered("front.1", 1).await;
    let options = bridge.options("evil.1", 1);
    // Some are ended before they have seen the end of their handshake.
    let mut open: Vec<Raw> = (0..OPENED)
        .filter_map(|_| Raw::connect(&options).ok())
        .collect();
    while open.len() > MOST {
        open.retain_mut(|peer| !peer.is_closed());
        // Whoever is admitted now was counted after all of those.
        let other = bridge.client("front.2", 1).await;
        assert!(other.registered(PATIENCE).await.is_ok());
    }
    open.retain_mut(|peer| !peer.is_closed());
    assert_eq!(open.len(), MOST);
    let told = "has more than 8 connections";
    assert_eq!(bridge.log().matches(told).count(), 1);
    // Those that end leave room.
    drop(open);
    let _evil = bridge.registered("evil.1", 1).await;
}
