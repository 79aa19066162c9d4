//! What a shim holds of the host while its service runs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{ExitResult, Permit};
use blackhole_process_manager::shim::client::{ShimEvent, ShimPermit};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use shim_support::{Rig, end, lives, until};

/// KiB of a process's stack that are its own.
fn stack(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut lines = text.lines().skip_while(|line| !line.ends_with("[stack]"));
    let pages = lines.find_map(|line| line.strip_prefix("Private_Dirty:"));
    let number = pages.unwrap().trim().split(' ').next();
    number.unwrap().parse().unwrap()
}

async fn gives_back(shim: u32, to: u64) -> u64 {
    until("the stack to be given back", || {
        Some(stack(shim)).filter(|stack| *stack < to)
    })
    .await
}

#[tokio::test]
async fn what_a_start_took_is_given_back_after_each() {
    let rig = Rig::new().await;
    let spec = rig.script("exec sleep 300");
    let mut request = rig.request(&spec);
    request.permit = Some(ShimPermit {
        permit: Permit {
            generation: Generation(spec.generation.0 + 1),
            expires_after_ms: None,
        },
        env: BTreeMap::new(),
    });
    let (started, handle, mut events) = rig.server.spawn(&request).await.unwrap();
    let shim = handle.shim_pid();
    let first = stack(shim);
    let settled = gives_back(shim, first).await;
    end(started.pid, Signal::KILL);
    let successor = loop {
        if let ShimEvent::Restarted { started, .. } = events.next().await.unwrap() {
            break started;
        }
    };
    // The way of a restart is a deep one, too.
    assert!(stack(shim) > settled, "{} KiB", stack(shim));
    gives_back(shim, settled + 1).await;
    assert!(lives(successor.pid));
    handle.kill(false).await.unwrap();
}

/// Where there is not one descriptor to be had: giving back needs none.
#[tokio::test]
async fn memory_is_given_back_without_descriptors() {
    let rig = Rig::new().await;
    let mut running = rig.spawn(&rig.script("exec sleep 300")).await;
    let shim = running.handle.shim_pid();
    let first = stack(shim);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let pid = Pid::from_raw(i32::try_from(shim).unwrap());
    prlimit(pid, Resource::Nofile, none).unwrap();
    gives_back(shim, first).await;
    running.stop(Duration::from_secs(10)).await;
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
}
