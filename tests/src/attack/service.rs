//! What a service says and hears over a raw connection.

use std::io;

use blackhole_bus_schema::rpc::header::Header;

use super::zmtp::{self, Raw};
use super::{Victim, pack};

/// A bridge that knows the services of these tests.
#[track_caller]
pub fn victim() -> Victim {
    Victim::start(&["honest-caller", "honest-callee", "web", "db"])
}

/// A header of a kind, its other fields already written.
pub fn header(kind: &str, fields: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut all = vec![("kind", pack::text(kind))];
    all.extend_from_slice(fields);
    pack::map(&all)
}

/// A call.
pub fn request(id: u64, service: &str, method: &str) -> Vec<u8> {
    let fields = [
        ("id", pack::number(id)),
        ("service", pack::text(service)),
        ("method", pack::text(method)),
    ];
    header("request", &fields)
}

/// A call that asks for a streamed answer.
pub fn stream(id: u64, service: &str, method: &str, window: u64) -> Vec<u8> {
    let fields = [
        ("id", pack::number(id)),
        ("service", pack::text(service)),
        ("method", pack::text(method)),
        ("window", pack::number(window)),
    ];
    header("request", &fields)
}

/// A header with nothing but an id.
pub fn about(kind: &str, id: u64) -> Vec<u8> {
    header(kind, &[("id", pack::number(id))])
}

/// More room for a streamed answer.
pub fn credit(id: u64, bytes: u64) -> Vec<u8> {
    let fields = [("id", pack::number(id)), ("bytes", pack::number(bytes))];
    header("credit", &fields)
}

/// A registration of these methods.
pub fn register(methods: &[String]) -> Vec<u8> {
    let methods: Vec<Vec<u8>> = methods.iter().map(|name| pack::text(name)).collect();
    let fields = [
        ("version", pack::number(1)),
        ("methods", pack::array(&methods)),
    ];
    header("register", &fields)
}

/// The result of a call that went well.
pub fn response(id: u64) -> Vec<u8> {
    let fields = [("id", pack::number(id)), ("code", pack::text("ok"))];
    header("response", &fields)
}

/// A header that came in.
///
/// # Panics
/// When it is none.
#[track_caller]
pub fn read(frame: &[u8]) -> Header<'_> {
    Header::decode(frame).expect("the bridge writes headers")
}

/// The id in a header that came in.
///
/// # Panics
/// When its kind has none.
#[track_caller]
pub fn id(frame: &[u8]) -> u64 {
    match read(frame) {
        Header::Request(request) => request.id,
        Header::Response(response) => response.id,
        Header::Part { id } | Header::Credit { id, .. } | Header::Cancel { id } => id,
        other => panic!("{other:?} has no id"),
    }
}

/// The next message's two frames.
///
/// # Errors
/// When the connection is closed.
pub fn receive(raw: &mut Raw) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut frames = raw.receive_message()?.into_iter();
    let header = frames.next().unwrap_or_default();
    Ok((header, frames.next().unwrap_or_default()))
}

/// The next message of this kind; others are skipped.
///
/// # Panics
/// When the connection is closed before.
#[track_caller]
pub fn next(raw: &mut Raw, wanted: &str) -> (Vec<u8>, Vec<u8>) {
    loop {
        let (header, payload) = receive(raw).expect("the connection stays");
        if read(&header).kind() == wanted {
            return (header, payload);
        }
    }
}

/// Sends one message.
///
/// # Panics
/// When the connection is closed.
#[track_caller]
pub fn say(raw: &mut Raw, header: &[u8], payload: &[u8]) {
    raw.send(&zmtp::message(header, payload))
        .expect("the connection stays");
}

/// Registers and waits until that is confirmed.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn serve(raw: &mut Raw, methods: &[&str]) {
    let methods: Vec<String> = methods.iter().map(|name| (*name).to_owned()).collect();
    say(raw, &register(&methods), b"");
    next(raw, "registered");
}

/// Whatever was sent before has been taken by the bridge when this returns.
///
/// # Panics
/// When the connection is closed.
#[track_caller]
pub fn flush(raw: &mut Raw) {
    say(raw, &header("heartbeat", &[]), b"");
    next(raw, "heartbeat");
}
