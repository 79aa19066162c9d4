//! Clients of a shim that vanish at each step of what they say: what has been
//! asked for whole happens once, what has not never does, and whoever comes
//! next finds out which.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::ExitResult;
use blackhole_process_manager::shim::client::{
    ClientError, attach, instance_lock_held, read_record,
};
use blackhole_process_manager::shim::protocol::{
    PROTOCOL, Request, RequestBody, ShimMessage, SpawnRequest, StopRequest, encode, take,
};
use shim_support::{Rig, fork_server_pid, lives, tagged, until};

/// What a client has said when it vanishes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Until {
    /// It was connected.
    Connected,
    /// This part of its spawn request, in percent.
    Part(usize),
    /// The whole of it.
    Asked,
    /// It has the answer.
    Started,
    /// And a part of a stop.
    PartOfAStop,
    /// The whole stop.
    StopAsked,
    /// And the answer to that.
    StopAnswered,
}

fn frame(id: u64, request: RequestBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&Request { id, request }, 1 << 20, &mut bytes).unwrap();
    bytes
}

fn hear(stream: &mut UnixStream, kind: impl Fn(&ShimMessage) -> bool) {
    let (mut received, mut bytes) = (Vec::new(), [0_u8; 4096]);
    loop {
        while let Some(message) = take::<ShimMessage>(&mut received, 1 << 20).unwrap() {
            if kind(&message) {
                return;
            }
        }
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the shim went away");
        received.extend_from_slice(&bytes[..count]);
    }
}

/// Speaks as far as told and is gone.
fn speak(rig: &Rig, request: SpawnRequest, until: Until) {
    let socket = rig.dirs.fork_server_dir().join(format!("v{PROTOCOL}"));
    let mut stream = UnixStream::connect(socket).unwrap();
    let spawn = frame(
        0,
        RequestBody::Spawn {
            spawn: Box::new(request),
        },
    );
    let stop = StopRequest::default();
    let stop = frame(7, RequestBody::Stop { stop });
    let part = match until {
        Until::Connected => return,
        Until::Part(percent) => (spawn.len() * percent).div_ceil(100).min(spawn.len() - 1),
        _ => spawn.len(),
    };
    stream.write_all(&spawn[..part]).unwrap();
    if matches!(until, Until::Part(_) | Until::Asked) {
        return;
    }
    hear(&mut stream, |message| {
        matches!(message, ShimMessage::Started { .. })
    });
    match until {
        Until::PartOfAStop => stream.write_all(&stop[..stop.len() / 2]).unwrap(),
        Until::StopAsked => stream.write_all(&stop).unwrap(),
        Until::StopAnswered => {
            stream.write_all(&stop).unwrap();
            hear(&mut stream, |message| {
                matches!(message, ShimMessage::Answer { id: 7, error: None })
            });
        }
        _ => {}
    }
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_what_it_has_asked_for() {
    let rig = Rig::new().await;
    let tag = rig.path("tag");
    let mut spec = rig.script("exec sleep 1000");
    spec.env.insert("BH_TEST".into(), tag.display().to_string());
    let parts = [0, 1, 50, 99, 100].map(Until::Part);
    let rest = [
        Until::Connected,
        Until::Asked,
        Until::Started,
        Until::PartOfAStop,
        Until::StopAsked,
        Until::StopAnswered,
    ];
    let folder = rig.folder(&spec);
    for (generation, step) in (1..).zip(parts.into_iter().chain(rest)) {
        spec.generation = Generation(generation);
        let ours = || {
            let record = read_record(&folder).unwrap();
            record.filter(|record| record.generation == Generation(generation))
        };
        speak(&rig, rig.request(&spec), step);
        // Whoever comes next.
        match step {
            Until::Connected | Until::Part(_) => {
                // A whole request behind it passes by, and is the only one that is served.
                let other = shim_support::spec("other.1", &["true"]);
                rig.spawn(&other).await.exited().await;
                assert_eq!(tagged(&tag), [0_u32; 0], "{step:?}");
                assert!(ours().is_none(), "{step:?}");
                assert_eq!(instance_lock_held(&folder).unwrap(), None);
            }
            Until::Asked => {
                // It may have been seen to be gone, and then nothing began; or not.
                let settled = until(&format!("{step:?}"), || {
                    match (ours(), instance_lock_held(&folder).unwrap()) {
                        (Some(record), _) if record.started.is_some() => Some(true),
                        // The shim of the request says in its log that nobody waits.
                        (None, None) => {
                            let log = rig.dirs.state.join("log/fork-server.log");
                            let log = std::fs::read_to_string(log).unwrap_or_default();
                            log.contains("the client went away").then_some(false)
                        }
                        _ => None,
                    }
                })
                .await;
                match settled {
                    true => {
                        let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
                        let pid = attached.status.started.pid;
                        let alone = || (tagged(&tag) == [pid]).then_some(());
                        until("the service alone", alone).await;
                        attached.handle.kill(false).await.unwrap();
                    }
                    false => assert_eq!(tagged(&tag), [0_u32; 0]),
                }
            }
            Until::Started | Until::PartOfAStop => {
                let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
                assert_eq!(attached.status.generation, Generation(generation));
                // Between two programs a process has no environment for a moment.
                let pid = attached.status.started.pid;
                let alone = || (tagged(&tag) == [pid]).then_some(());
                until(&format!("the service alone after {step:?}"), alone).await;
                attached.handle.kill(false).await.unwrap();
            }
            Until::StopAsked | Until::StopAnswered => {}
        }
        until(&format!("the end after {step:?}"), || {
            let free = instance_lock_held(&folder).unwrap().is_none();
            (free && tagged(&tag).is_empty()).then_some(())
        })
        .await;
        if let Some(record) = ours() {
            let exit = record.exit.unwrap();
            assert_eq!(exit.result, ExitResult::Stopped, "{step:?}");
        }
        match attach(&rig.dirs, &spec.instance).await {
            Err(ClientError::NoShim { .. }) => {}
            other => panic!("{step:?}: {other:?}"),
        }
    }
    // No shim is left that waits for the rest of something, but for those of the pool.
    let server = fork_server_pid(&rig.dirs).unwrap();
    assert!(lives(server));
    until("only idle shims to be left", || {
        let children = format!("/proc/{server}/task/{server}/children");
        let children = std::fs::read_to_string(children).unwrap();
        // The pool's two, and as many connected ahead.
        (children.split_whitespace().count() <= 4).then_some(())
    })
    .await;
}
