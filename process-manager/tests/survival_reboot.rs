//! What a manager finds after the host went down, or after pids were given to
//! others: it says how instances ended and touches nobody who is not theirs.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::process::{Child, Command};

use blackhole_bus_schema::process::{ExitResult, ExitStatus, StateName};
use blackhole_process_manager::host;
use blackhole_process_manager::shim::client::{instance_lock_held, read_record};
use support::*;

/// Another boot's name.
const ELSEWHEN: &str = "00000000-0000-4000-8000-000000000000";

/// Somebody who has nothing to do with any of this but a number, and, where
/// that is all that is known of a service, its environment.
struct Stranger(Child);

impl Stranger {
    fn new(variables: &[(&str, &Path)]) -> Self {
        let child = Command::new("/bin/sleep")
            .arg("100000")
            .envs(variables.iter().copied())
            .spawn();
        Self(child.unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn assert_untouched(&mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "it was killed");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Replaces the value of each field of this name, however deep.
fn set(value: &mut rmpv::Value, field: &str, new: &rmpv::Value) {
    match value {
        rmpv::Value::Map(pairs) => {
            for (key, value) in pairs {
                match key.as_str() == Some(field) {
                    true => *value = new.clone(),
                    false => set(value, field, new),
                }
            }
        }
        rmpv::Value::Array(items) => items.iter_mut().for_each(|item| set(item, field, new)),
        _ => {}
    }
}

/// Writes a record anew with other values of some fields.
fn edit(record: &Path, fields: &[(&str, rmpv::Value)]) {
    let bytes = std::fs::read(record).unwrap();
    let (mut rest, mut new) = (&bytes[..], Vec::new());
    // A length, a map, and zeros that leave room for more.
    while let Some(head) = rest.first_chunk::<4>().filter(|head| **head != [0; 4]) {
        let length = u32::from_le_bytes(*head) as usize;
        let mut entry = rmpv::decode::read_value(&mut &rest[4..4 + length]).unwrap();
        for (field, value) in fields {
            set(&mut entry, field, value);
        }
        let mut frame = Vec::new();
        rmpv::encode::write_value(&mut frame, &entry).unwrap();
        new.extend(u32::try_from(frame.len()).unwrap().to_le_bytes());
        new.extend(frame);
        rest = &rest[4 + length..];
    }
    std::fs::write(record, new).unwrap();
}

/// Everything dies at once and nobody writes anything: all that a power cut does
/// to processes.
async fn cut(bench: &mut Bench, pids: &[u32]) {
    bench.kill_manager();
    let lock = bench.fork_server_lock();
    if let Some(pid) = host::lock_holder(&lock).unwrap() {
        kill(pid);
        gone(pid).await;
    }
    let instances = std::fs::read_dir(bench.dirs.state.join("instances")).unwrap();
    for folder in instances.flatten() {
        // The kernel kills its service with it.
        if let Some(shim) = instance_lock_held(&folder.path()).unwrap() {
            kill(shim);
            gone(shim).await;
        }
    }
    for pid in pids {
        gone(*pid).await;
    }
}

#[tokio::test]
async fn after_a_reboot_all_have_ended_and_nobody_is_killed() {
    let mut bench = Bench::start().await;
    let pid = bench.run(&sleeper("web.1", 4)).await.state.pid().unwrap();
    bench.run(&script("done.1", 2, "exit 0")).await;
    bench.state("done.1", 2, StateName::Terminated).await;
    cut(&mut bench, &[pid]).await;
    let folder = bench.dirs.instance(&name("web.1"));
    let socket = bench.dirs.shim_socket(&name("web.1"));
    // Even one that looks like the service by all that a sweep goes by.
    let notify = bench.dirs.run.join("i").join(format!(
        "{}.n",
        socket.file_name().unwrap().to_str().unwrap()
    ));
    let mut like = Stranger::new(&[("NOTIFY_SOCKET", &notify)]);
    let mut shim = Stranger::new(&[]);
    let record = folder.join("record");
    let ticks = read_record(&folder).unwrap().unwrap().started.unwrap();
    edit(
        &record,
        &[
            ("boot_id", ELSEWHEN.into()),
            ("pid", like.pid().into()),
            ("shim_pid", shim.pid().into()),
            ("start_ticks", ticks.start_ticks.into()),
        ],
    );
    edit(
        &bench.dirs.instance(&name("done.1")).join("record"),
        &[("boot_id", ELSEWHEN.into())],
    );
    // The sockets of the boot before lie there still, and answer to nobody.
    assert!(socket.exists());
    let from = bench.history.len();
    let records = bench.start_manager().await;
    let web = find(&records, "web.1");
    let exit = web.state.exit().unwrap();
    assert_eq!(web.state.name(), StateName::Failed);
    assert_eq!(
        (exit.result, exit.status, exit.killed_leftovers),
        (ExitResult::HostRestarted, ExitStatus::Unknown, 0)
    );
    // What had ended before ended as it did.
    let done = find(&records, "done.1").state.exit().unwrap();
    assert_eq!(done.result, ExitResult::Success);
    bench.settle().await;
    like.assert_untouched();
    shim.assert_untouched();
    // It is told once, however many managers come after.
    bench.kill_manager();
    bench.start_manager().await;
    bench.settle().await;
    let told = bench.history[from..].iter().filter(|told| {
        matches!(told, Told::Changed(changed, _) if changed.record.instance == name("web.1"))
    });
    assert!(told.count() <= 1);
    // The next generation starts over what is left of the one before.
    let new = bench.run(&sleeper("web.1", 5)).await.state.pid().unwrap();
    assert!(runs(new));
    bench.stop("web.1", 5).await.unwrap();
    like.assert_untouched();
    shim.assert_untouched();
}

#[tokio::test]
async fn pids_that_others_have_now_are_left_alone() {
    let mut bench = Bench::start().await;
    let pid = bench.run(&sleeper("web.1", 1)).await.state.pid().unwrap();
    cut(&mut bench, &[pid]).await;
    let folder = bench.dirs.instance(&name("web.1"));
    let (mut first, mut shim) = (Stranger::new(&[]), Stranger::new(&[]));
    edit(
        &folder.join("record"),
        &[("pid", first.pid().into()), ("shim_pid", shim.pid().into())],
    );
    // In the same boot, so that what is left is looked for and killed.
    let records = bench.start_manager().await;
    let exit = find(&records, "web.1").state.exit().unwrap().clone();
    assert_eq!(exit.result, ExitResult::ShimLost);
    // Commands about it go to nobody either.
    let ended = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(ended.state.exit(), Some(&exit));
    bench.run(&sleeper("web.1", 2)).await;
    bench.stop("web.1", 2).await.unwrap();
    first.assert_untouched();
    shim.assert_untouched();
}
