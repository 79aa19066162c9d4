//! Bytes from outside, read as whatever they may be.

use std::fmt::Debug;
use std::str::FromStr;

use blackhole_bus_schema::component::{Bye, Heartbeat, Hello, Ping};
use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::envelope::{Envelope, Outgoing};
use blackhole_bus_schema::health::ProbeResult;
use blackhole_bus_schema::message::{Command, Message};
use blackhole_bus_schema::names::{ClientName, Component, InstanceName, ServiceName};
use blackhole_bus_schema::process::{
    FollowLog, Forget, ListProcesses, LogLines, ProcessChanged, ProcessNotified, ReadLog, Signal,
    Spawn, Stop,
};
use blackhole_bus_schema::registry::{Drain, ListCalls, ListRegistry, RegistryChanged};
use blackhole_bus_schema::reply::{Reply, Verdict};
use blackhole_bus_schema::resource::{
    GetCapacity, ListUsage, OomKilled, Prepare, Release, UsageTick,
};
use blackhole_bus_schema::rpc::Key;
use blackhole_bus_schema::rpc::header::{Callee, Header};
use blackhole_bus_schema::supervision::{
    ListStatus, ResetServices, RestartServices, StartServices, StopServices, SupervisionChanged,
};
use blackhole_bus_schema::topic::Topic;
use blackhole_bus_schema::value::{from_value, to_value};
use blackhole_process_manager::shim::protocol::{self, Request, ShimMessage};
use blackhole_process_manager::shim::record::read_record;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The second frame of a message on the bus: decoded, and its body read as
/// every kind and as every answer, whatever kind it says it is.
pub fn bus_message(data: &[u8]) {
    let Ok(envelope) = Envelope::decode(data) else {
        return;
    };
    events(&envelope);
    commands(&envelope);
    if let Ok(reply) = envelope.parse::<Reply>()
        && let Verdict::Done { .. } = &reply.verdict
    {
        again(&reply);
    }
}

fn events(envelope: &Envelope) {
    message::<Bye>(envelope);
    message::<Heartbeat>(envelope);
    message::<Hello>(envelope);
    message::<LogLines>(envelope);
    message::<OomKilled>(envelope);
    message::<ProbeResult>(envelope);
    message::<ProcessChanged>(envelope);
    message::<ProcessNotified>(envelope);
    message::<RegistryChanged>(envelope);
    message::<Reply>(envelope);
    message::<SupervisionChanged>(envelope);
    message::<UsageTick>(envelope);
}

fn commands(envelope: &Envelope) {
    command::<Drain>(envelope);
    command::<FollowLog>(envelope);
    command::<Forget>(envelope);
    command::<GetCapacity>(envelope);
    command::<ListCalls>(envelope);
    command::<ListProcesses>(envelope);
    command::<ListRegistry>(envelope);
    command::<ListStatus>(envelope);
    command::<ListUsage>(envelope);
    command::<Ping>(envelope);
    command::<Prepare>(envelope);
    command::<ReadLog>(envelope);
    command::<Release>(envelope);
    command::<ResetServices>(envelope);
    command::<RestartServices>(envelope);
    command::<Signal>(envelope);
    command::<Spawn>(envelope);
    command::<StartServices>(envelope);
    command::<Stop>(envelope);
    command::<StopServices>(envelope);
}

fn command<C: Command>(envelope: &Envelope) {
    message::<C>(envelope);
    if let Ok(reply) = envelope.body.parse::<C::Reply>() {
        again(&reply);
    }
}

fn message<M: Message>(envelope: &Envelope) {
    // By its kind, as a receiver does, and against it.
    let _ = envelope.parse::<M>();
    let Ok(body) = envelope.body.parse::<M>() else {
        return;
    };
    again(&body);
    let outgoing = Outgoing {
        v: envelope.v,
        id: envelope.id,
        at: envelope.at,
        source: &envelope.source,
        seq: envelope.seq,
        cause: envelope.cause,
        reply_to: envelope.reply_to.as_ref(),
        budget_ms: envelope.budget_ms,
        kind: M::KIND,
        body: &body,
    };
    let bytes = outgoing.encode().expect("what was decoded is encoded");
    let decoded = Envelope::decode(&bytes).expect("what was encoded is decoded");
    assert_eq!(decoded.reply_to, envelope.reply_to);
    assert!(
        decoded.parse::<M>().is_ok(),
        "{} is not read again",
        M::KIND
    );
}

/// What was read is written, and read and written again the same.
fn again<T: Serialize + DeserializeOwned>(value: &T) {
    let bytes = rmp_serde::to_vec_named(value).expect("what was decoded is encoded");
    let read: T = rmp_serde::from_slice(&bytes).expect("what was encoded is decoded");
    let twice = rmp_serde::to_vec_named(&read).expect("what was decoded is encoded");
    assert_eq!(bytes, twice, "not the same after a round");
    let through = to_value(value).expect("what was decoded is a value");
    assert!(
        from_value::<T>(&through).is_ok(),
        "a value is not read again"
    );
}

/// The first frame of a message of the RPC plane: what is understood is written
/// and understood again as the same.
pub fn rpc_header(data: &[u8]) {
    let Ok(header) = Header::decode(data) else {
        return;
    };
    let bytes = header.encode();
    let again = Header::decode(&bytes).expect("what was encoded is decoded");
    assert_eq!(header, again);
    assert_eq!(bytes, again.encode());
}

/// Names, and the topics made of them.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    name::<ServiceName>(text);
    name::<ClientName>(text);
    name::<InstanceName>(text);
    name::<Component>(text);
    if let Ok(callee) = text.parse::<Callee>()
        && let Some(index) = callee.index
    {
        assert!(InstanceName::new(callee.service, index).is_some());
    }
    if let Ok(instance) = text.parse::<InstanceName>() {
        for topic in [
            Topic::process(&instance),
            Topic::health(&instance),
            Topic::log(&instance),
        ] {
            // ZeroMQ matches by prefix: only the dot at the end tells web.1 from web.10.
            assert!(topic.as_str().ends_with(&format!(".{instance}.")) && !text.contains('/'));
        }
    }
    assert_eq!(Topic::received(text).as_str(), text);
}

fn name<N: FromStr + ToString + PartialEq + Debug>(text: &str) {
    let Ok(name) = text.parse::<N>() else { return };
    assert_eq!(name.to_string(), text, "one spelling for each name");
    assert!(!text.contains(['/', '\0', '\n', ' ']) && text != "." && text != "..");
    assert_eq!(text.parse::<N>().ok(), Some(name));
}

/// A configuration: accepted or refused with a text, never more.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(error) = Config::parse(text, "fuzz.yaml") {
        assert!(!error.to_string().is_empty());
    }
}

/// Frames of a shim's protocol, whole or in pieces: the same messages come out,
/// and no buffer grows beyond the longest frame.
pub fn shim_frames(data: &[u8]) {
    frames::<Request>(data, protocol::MAX_REQUEST_FRAME);
    frames::<ShimMessage>(data, protocol::MAX_MESSAGE_FRAME);
}

fn frames<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8], max: usize) {
    let mut whole = data.to_vec();
    let all = drain::<T>(&mut whole, max);
    let mut pieces = Vec::new();
    let mut buffer = Vec::new();
    for piece in data.chunks(7) {
        buffer.extend_from_slice(piece);
        let (found, ended) = drain::<T>(&mut buffer, max);
        pieces.extend(found);
        if ended {
            break;
        }
    }
    assert_eq!(all.0, pieces, "other messages out of pieces");
    for message in &all.0 {
        let mut bytes = Vec::new();
        if protocol::encode(message, max, &mut bytes).is_ok() {
            let again = protocol::take::<T>(&mut bytes, max).expect("what was encoded is decoded");
            assert_eq!(again.as_ref(), Some(message));
            assert!(bytes.is_empty());
        }
    }
}

/// All messages at the beginning of the buffer, and whether nothing can follow.
fn drain<T: DeserializeOwned>(buffer: &mut Vec<u8>, max: usize) -> (Vec<T>, bool) {
    let mut found = Vec::new();
    loop {
        let before = buffer.len();
        match protocol::take::<T>(buffer, max) {
            Ok(Some(message)) => found.push(message),
            Ok(None) => return (found, false),
            Err(protocol::FrameError::TooLong { .. }) => return (found, true),
            Err(_) => {}
        }
        assert!(buffer.len() < before, "nothing was taken");
    }
}

/// A record of an instance's last life, as a shim leaves it on the disk.
pub fn record_file(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("record"), data).expect("a file");
    if let Ok(Some(record)) = read_record(directory.path()) {
        let _ = record.spec();
    }
}

/// A username, a zero byte and a token: only the key's own are accepted.
pub fn token(data: &[u8]) {
    let key = Key::from_bytes([7; 32]);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (username, token) = text.split_once('\0').unwrap_or((text, ""));
    if let Ok(who) = key.check(username, token) {
        assert_eq!(username, who.instance.to_string());
        assert_eq!(token, key.token(&who.instance, who.generation));
    }
}
