//! Direct calls and streamed answers between libzmq, by way of pyzmq, and this
//! project's client, each as caller and as callee, as `docs/protocol.md` has them.

#![allow(clippy::panic)]

#[path = "../conformance/mod.rs"]
mod conformance;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::rpc::{
    CallBuilder, Client, Code, Key, Methods, Request, Status, direct_dir,
};
use blackhole_tests::wait::HANG;
use blackhole_tests::wait_for;
use bytes::Bytes;
use conformance::listening::{Listening, Way};
use conformance::python::Python;
use serde_json::{Value, json};
use tokio::task::block_in_place;

/// Parts of a streamed answer, each of 1000 bytes, and the room for them.
const PARTS: usize = 200;
const WINDOW: u32 = 4000;

/// By which way calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plane {
    Bridge,
    Direct,
}

impl Plane {
    fn request(self, client: &Client, method: &str) -> CallBuilder {
        match self {
            Self::Bridge => client.request("python", method),
            Self::Direct => client.direct("python").request(method),
        }
    }

    fn order(self, op: &str, method: &str, payload: &str) -> Value {
        json!({
            "op": op, "service": "rust", "method": method, "payload": payload,
            "direct": self == Self::Direct, "window": WINDOW,
        })
    }
}

/// A service in Rust that takes direct calls, and how many parts it was let send.
async fn rust(listening: &Listening) -> (Client, Arc<AtomicU32>) {
    let client = Client::connect(listening.options("rust.1"))
        .await
        .expect("a client");
    let sent = Arc::new(AtomicU32::new(0));
    let counter = sent.clone();
    let methods = Methods::new()
        .on("echo", |request: Request| async move {
            let caller = request.caller.map(|caller| caller.to_string());
            let payload = String::from_utf8_lossy(&request.payload).into_owned();
            Ok(format!("{} said {payload}", caller.unwrap_or_default()).into())
        })
        .on_stream("counted", move |_, parts| {
            let counter = counter.clone();
            async move {
                for number in 0..PARTS {
                    parts.send(part(number)).await?;
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            }
        })
        .direct();
    client.serve(methods);
    client.registered(HANG).await.expect("the bridge is there");
    (client, sent)
}

fn part(number: usize) -> Vec<u8> {
    vec![(number % 256) as u8; 1000]
}

/// A service in Python that takes direct calls.
fn callee(listening: &Listening) -> Python {
    let own = direct_dir(&listening.deployment.dirs().rpc_socket());
    let options = listening.options("python.1");
    let mut callee = Python::start(
        &listening.deployment,
        "direct_callee.py",
        &[
            &listening.rpc(),
            "python.1",
            &options.token,
            &own.display().to_string(),
        ],
    );
    block_in_place(|| callee.wait_what("registered"));
    callee
}

fn caller(listening: &Listening, instance: &str) -> Python {
    let mut peer = listening.peer(instance);
    block_in_place(|| peer.wait_what("registered"));
    peer
}

fn told(python: &mut Python, what: &str) -> Value {
    block_in_place(|| {
        python.wait(what, |told| {
            told["what"] == what || told["what"] == "failed"
        })
    })
}

fn code(result: Result<Bytes, Status>) -> Code {
    match result {
        Ok(payload) => panic!("an answer: {payload:?}"),
        Err(status) => status.code,
    }
}

/// Calls until the one whose turn it is said to be has the call.
async fn reaches(client: &Client, python: &mut Python) {
    let held = |python: &Python| {
        let told = python.told();
        told.iter().filter(|told| told["what"] == "holding").count()
    };
    let before = held(python);
    let reached = async {
        while held(python) == before {
            let budget = Duration::from_millis(300);
            let _ = client.call("python", "hold", "", budget).await;
        }
    };
    let reached = tokio::time::timeout(HANG, reached).await;
    reached.expect("the call goes there");
}

/// One connection of an instance serves: that which registered last. The other
/// reads so at its next heartbeat. A later generation is the end of an earlier one.
#[tokio::test(flavor = "multi_thread")]
async fn the_latest_registration_of_an_instance_counts() {
    let listening = Listening::new(Way::Ipc);
    let _bridge = listening.deployment.daemon("bridge");
    let (rust, _) = rust(&listening).await;
    let mut first = caller(&listening, "python.1");
    reaches(&rust, &mut first).await;
    let mut second = caller(&listening, "python.1");
    reaches(&rust, &mut second).await;
    // Its heartbeat comes each five seconds, and it takes it back.
    reaches(&rust, &mut first).await;

    // The bridge has not heard of this spawn; whoever has its token may be faster than the news.
    let key = Key::load_or_create(&listening.deployment.dirs()).expect("the key");
    let name = "python.1".parse().expect("an instance");
    let token = key.token(&name, Generation(7));
    let arguments = [listening.rpc(), "python.1".to_owned(), token];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut later = Python::start(&listening.deployment, "peer.py", &arguments);
    block_in_place(|| later.wait_what("registered"));
    reaches(&rust, &mut later).await;
    for earlier in [&mut first, &mut second] {
        earlier.order(&Plane::Bridge.order("call", "echo", ""));
        let refused = told(earlier, "failed");
        assert_eq!(refused["code"], "permission_denied", "{refused}");
    }
    later.order(&Plane::Bridge.order("call", "echo", "me"));
    let answer = told(&mut later, "answer");
    assert_eq!(answer["text"], "python.1 said me", "{answer}");
}

async fn python_calls_rust_directly(way: Way) {
    let listening = Listening::new(way);
    let bridge = listening.deployment.daemon("bridge");
    let (_rust, _) = rust(&listening).await;
    let mut peer = caller(&listening, "python.1");
    peer.order(&json!({"op": "resolve", "service": "rust"}));
    let found = told(&mut peer, "resolved");
    let own = found["endpoints"][0]["endpoint"].as_str().expect("one");
    assert_ne!(own, listening.rpc());
    assert_eq!(found["endpoints"][0]["instance"], "rust.1", "{found}");

    peer.order(&Plane::Direct.order("call", "echo", "hello"));
    let answer = told(&mut peer, "answer");
    assert_eq!(answer["text"], "python.1 said hello", "{answer}");
    peer.order(&Plane::Direct.order("call", "sing", ""));
    let refused = told(&mut peer, "failed");
    assert_eq!(refused["code"], "unimplemented", "{refused}");

    // A ticket is one caller's, and nobody else's.
    let mut stranger = caller(&listening, "stranger.1");
    let ticket = found["endpoints"][0]["ticket"].as_str().expect("a ticket");
    let mut order = Plane::Direct.order("call", "echo", "hello");
    order["ticket"] = ticket.into();
    stranger.order(&order);
    let refused = told(&mut stranger, "failed");
    assert_eq!(refused["code"], "unauthenticated", "{refused}");

    // A connection that is made needs no bridge; `resolve` would.
    bridge.kill();
    told(&mut peer, "lost");
    peer.order(&json!({"op": "again", "method": "echo", "payload": "still"}));
    let answer = told(&mut peer, "answer");
    assert_eq!(answer["text"], "python.1 said still", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn python_calls_rust_directly_over_ipc() {
    python_calls_rust_directly(Way::Ipc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_calls_rust_directly_over_tcp() {
    python_calls_rust_directly(Way::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_calls_python_directly() {
    let listening = Listening::new(Way::Ipc);
    let bridge = listening.deployment.daemon("bridge");
    let mut python = callee(&listening);
    let (rust, _) = rust(&listening).await;
    let direct = rust.direct("python");
    let answer = direct.call("echo", "hello", HANG).await;
    assert_eq!(answer.expect("an answer"), "rust.1 said hello");
    let admitted = told(&mut python, "admitted");
    assert_eq!(admitted["caller"], "rust.1", "{admitted}");
    let answer = rust.call("python", "echo", "hello", HANG).await;
    assert_eq!(answer.expect("an answer"), "by the bridge");
    assert_eq!(
        code(direct.call("sing", "", HANG).await),
        Code::Unimplemented
    );

    // A call that is given up reaches the one who works on it.
    let budget = Duration::from_millis(300);
    assert_eq!(
        code(direct.call("hold", "", budget).await),
        Code::DeadlineExceeded
    );
    told(&mut python, "cancelled");

    // Its ZAP handler turns away who has another's ticket.
    let mut thief = caller(&listening, "thief.1");
    let found = rust.resolve("python", HANG).await.expect("an endpoint");
    let mut order = Plane::Direct.order("call", "echo", "hello");
    order["service"] = "python".into();
    order["ticket"] = found[0].ticket.clone().into();
    thief.order(&order);
    let refused = told(&mut thief, "failed");
    assert_eq!(refused["code"], "unauthenticated", "{refused}");
    let away = told(&mut python, "turned away");
    assert_eq!(away["caller"], "thief.1", "{away}");

    bridge.kill();
    let answer = direct.call("echo", "still", HANG).await;
    assert_eq!(answer.expect("an answer"), "rust.1 said still");
}

/// How many parts Python has made.
fn made(python: &Python) -> usize {
    let told = python.told();
    told.iter().filter(|told| told["what"] == "made").count()
}

/// Rust takes one part, and Python is held back; it takes all, and they come.
async fn python_streams_to_rust(plane: Plane) {
    let listening = Listening::new(Way::Ipc);
    let _bridge = listening.deployment.daemon("bridge");
    let mut python = match plane {
        Plane::Bridge => caller(&listening, "python.1"),
        Plane::Direct => callee(&listening),
    };
    let (rust, _) = rust(&listening).await;
    let call = plane.request(&rust, "counted").payload(PARTS.to_string());
    let mut answers = call
        .window(WINDOW)
        .budget(HANG)
        .stream()
        .await
        .expect("a stream");
    let first = answers.next().await.expect("a part").expect("a good one");
    assert_eq!(first, part(0));
    // The window, what was taken and acknowledged, and one that is made and waits.
    block_in_place(|| python.wait("the window is full", |told| told["number"] == 3));
    let answer = plane.request(&rust, "echo").budget(HANG).send().await;
    answer.expect("others are not held back");
    assert!((4..=6).contains(&made(&python)), "{}", made(&python));
    let rest = answers.collect(PARTS * 1000).await.expect("the rest");
    let whole: Vec<u8> = (1..PARTS).flat_map(part).collect();
    assert_eq!(rest.len(), whole.len());
    assert!(rest == whole, "in order and unchanged");
    assert_eq!(made(&python), PARTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn python_streams_to_rust_by_the_bridge() {
    python_streams_to_rust(Plane::Bridge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_streams_to_rust_directly() {
    python_streams_to_rust(Plane::Direct).await;
}

/// Python takes three parts, and Rust is held back; it takes all, and they come.
async fn rust_streams_to_python(plane: Plane) {
    let listening = Listening::new(Way::Ipc);
    let _bridge = listening.deployment.daemon("bridge");
    let (_rust, sent) = rust(&listening).await;
    let mut python = caller(&listening, "python.1");
    let mut order = plane.order("stream", "counted", "");
    order["pause"] = 3.into();
    python.order(&order);
    told(&mut python, "paused");
    // It has acknowledged two, and the window holds four.
    block_in_place(|| {
        wait_for("the window to be full", || {
            match sent.load(Ordering::SeqCst) {
                6.. => Ok(()),
                few => Err(format!("{few} parts")),
            }
        });
    });
    python.order(&plane.order("call", "echo", "and others"));
    let answer = told(&mut python, "answer");
    assert_eq!(answer["text"], "python.1 said and others", "{answer}");
    assert_eq!(sent.load(Ordering::SeqCst), 6, "no more without credit");
    python.order(&json!({"op": "go on"}));
    let streamed = told(&mut python, "streamed");
    let whole = json!({"what": "streamed", "parts": PARTS, "bytes": PARTS * 1000, "right": true});
    assert_eq!(streamed, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_streams_to_python_by_the_bridge() {
    rust_streams_to_python(Plane::Bridge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_streams_to_python_directly() {
    rust_streams_to_python(Plane::Direct).await;
}
