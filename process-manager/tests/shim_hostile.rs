//! Clients that send what they like, or nothing, or read nothing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::process::ExitResult;
use blackhole_process_manager::shim::client::attach;
use blackhole_process_manager::shim::protocol::{
    PROTOCOL, Request, RequestBody, ShimMessage, encode, take,
};
use shim_support::{Rig, lives};

/// A few shapes of nonsense, the same in each run.
fn nonsense() -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut all = vec![
        vec![],
        vec![0; 3],
        vec![0; 4096],
        u32::MAX.to_le_bytes().to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // A map that says it has four thousand million entries.
        vec![5, 0, 0, 0, 0xdf, 0xff, 0xff, 0xff, 0xff],
        // Arrays in arrays in arrays.
        [60_000_u32.to_le_bytes().to_vec(), vec![0x91; 60_000]].concat(),
        // A frame that never ends.
        [60_000_u32.to_le_bytes().to_vec(), vec![0x81; 100]].concat(),
    ];
    for _ in 0..200 {
        let length = usize::try_from(random() % 300).unwrap();
        let body: Vec<u8> = (0..length)
            .map(|_| u8::try_from(random() >> 56).unwrap())
            .collect();
        let head = u32::try_from(length).unwrap().to_le_bytes();
        all.push(if random() % 2 == 0 {
            body
        } else {
            [head.to_vec(), body].concat()
        });
    }
    all
}

fn attack(socket: &Path) {
    for bytes in nonsense() {
        let mut client = UnixStream::connect(socket).unwrap();
        let _ = client.write_all(&bytes);
    }
}

#[tokio::test]
async fn no_bytes_hurt_a_shim() {
    let rig = Rig::new().await;
    let spec = rig.script("exec sleep 1000");
    let mut running = rig.spawn(&spec).await;
    attack(&rig.dirs.shim_socket(&spec.instance));
    let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
    assert_eq!(attached.status.started, running.started);
    assert!(lives(running.started.pid));
    running.handle.kill(false).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
}

#[tokio::test]
async fn no_bytes_hurt_the_fork_server() {
    let rig = Rig::new().await;
    attack(&rig.dirs.fork_server_dir().join(format!("v{PROTOCOL}")));
    // Some of the attackers still hold a shim that waits for the rest of a frame.
    let _silent: Vec<_> = (0..8)
        .map(|_| {
            UnixStream::connect(rig.dirs.fork_server_dir().join(format!("v{PROTOCOL}"))).unwrap()
        })
        .collect();
    let mut running = rig.spawn(&rig.script("exit 0")).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
}

fn ask(client: &mut UnixStream, request: RequestBody) {
    let mut frame = Vec::new();
    encode(&Request { id: 77, request }, 1 << 20, &mut frame).unwrap();
    client.write_all(&frame).unwrap();
}

/// Reads until the answer comes; an error message in it is returned.
fn answer(client: &mut UnixStream) -> Option<String> {
    let mut received = Vec::new();
    loop {
        match take(&mut received, 1 << 20).unwrap() {
            Some(ShimMessage::Answer { id: 77, error }) => return error,
            Some(_) => continue,
            None => {}
        }
        let mut bytes = [0; 4096];
        let count = client.read(&mut bytes).unwrap();
        assert!(count > 0, "closed without an answer");
        received.extend_from_slice(&bytes[..count]);
    }
}

#[tokio::test]
async fn a_request_in_the_wrong_place_is_refused_with_words() {
    let rig = Rig::new().await;
    let spec = rig.script("exec sleep 1000");
    let _running = rig.spawn(&spec).await;
    let mut client = UnixStream::connect(rig.dirs.shim_socket(&spec.instance)).unwrap();
    let spawn = Box::new(rig.request(&spec));
    ask(&mut client, RequestBody::Spawn { spawn });
    assert!(answer(&mut client).unwrap().contains("has its service"));
    ask(&mut client, RequestBody::Unknown);
    assert!(answer(&mut client).unwrap().contains("not known"));
    ask(&mut client, RequestBody::Status);
    assert_eq!(answer(&mut client), None);
    let mut client =
        UnixStream::connect(rig.dirs.fork_server_dir().join(format!("v{PROTOCOL}"))).unwrap();
    ask(&mut client, RequestBody::Status);
    assert!(answer(&mut client).unwrap().contains("must be a spawn"));
}

#[tokio::test]
async fn a_client_that_reads_nothing_stops_nobody() {
    let rig = Rig::new().await;
    let spec = rig.script("exec sleep 1000");
    let mut running = rig.spawn(&spec).await;
    let mut stuck = UnixStream::connect(rig.dirs.shim_socket(&spec.instance)).unwrap();
    stuck
        .set_write_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut frames = Vec::new();
    for _ in 0..1000 {
        encode(
            &Request {
                id: 1,
                request: RequestBody::Status,
            },
            1 << 20,
            &mut frames,
        )
        .unwrap();
    }
    // It is cut off when what waits for it is too much.
    let cut = (0..100).any(|_| {
        stuck.write_all(&frames).is_err_and(|error| {
            matches!(
                error.kind(),
                std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
            )
        })
    });
    assert!(cut, "a client that does not read is kept for ever");
    running.handle.kill(false).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
}
