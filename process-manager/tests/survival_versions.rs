//! Version skew: a manager of today and fork servers, shims and records of the
//! protocol's version before.
//!
//! `golden/shim-v1.hex` has frames as version 1 wrote them and is never made anew.
//! Between the sources of the two versions lie the fields in `LATER`, the request
//! `reload` and the messages `hook`, `extended` and `ended`, and nothing else: the bytes of today without
//! them are those of then. The shim of version 1 in these tests says these frames.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod samples;
mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{ExitResult, Reload, StateName};
use blackhole_process_manager::host;
use blackhole_process_manager::shim::client::read_record;
use blackhole_process_manager::shim::protocol::{PROTOCOL, Request, ShimMessage, encode, take};
use rmpv::Value;
use rustix::fs::FlockOperation;
use samples::{messages, requests};
use support::*;

const MOST: usize = 1 << 20;

/// What version 1 did not know.
const LATER: [&str; 6] = [
    "again",
    "kill_in_ms",
    "main_pid",
    "reloading",
    "settings",
    "watchdog_us",
];

fn golden() -> BTreeMap<String, Vec<u8>> {
    let text = include_str!("golden/shim-v1.hex");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let frames = lines.map(|line| {
        let (name, hex) = line.split_once(' ').unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (
            name.to_owned(),
            (0..hex.len()).step_by(2).map(byte).collect(),
        )
    });
    frames.collect()
}

fn value(frame: &[u8]) -> Value {
    rmpv::decode::read_value(&mut &frame[4..]).unwrap()
}

fn framed(value: &Value) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    let length = u32::try_from(bytes.len() - 4).unwrap();
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Takes a field away, wherever it is.
fn remove(value: &mut Value, field: &str) {
    match value {
        Value::Map(pairs) => {
            pairs.retain(|(key, _)| key.as_str() != Some(field));
            for (_, value) in pairs {
                remove(value, field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| remove(item, field)),
        _ => {}
    }
}

/// Adds a field that nobody knows to every map but those whose keys are names.
fn add(value: &mut Value) {
    match value {
        Value::Map(pairs) => {
            for (key, value) in pairs.iter_mut() {
                if key.as_str() != Some("env") {
                    add(value);
                }
            }
            pairs.push(("later".into(), Value::Array(vec![7.into()])));
        }
        Value::Array(items) => items.iter_mut().for_each(add),
        _ => {}
    }
}

fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let mut pairs = value.as_map()?.iter();
    pairs
        .find(|(key, _)| key.as_str() == Some(name))
        .map(|(_, value)| value)
}

/// Sets a field, wherever it is.
fn set(value: &mut Value, field: &str, new: &Value) {
    match value {
        Value::Map(pairs) => {
            for (key, value) in pairs {
                match key.as_str() == Some(field) {
                    true => *value = new.clone(),
                    false => set(value, field, new),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| set(item, field, new)),
        _ => {}
    }
}

/// Whether every field of `old` is in `new`, with a value of the same kind.
fn has_all(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Map(new), Value::Map(old)) => old.iter().all(|(key, value)| {
            let found = new.iter().find(|(other, _)| other == key);
            found.is_some_and(|(_, found)| has_all(found, value))
        }),
        // Most that may be missing is so by being nil.
        (_, Value::Nil) | (Value::Nil, _) => true,
        (new, old) => std::mem::discriminant(new) == std::mem::discriminant(old),
    }
}

#[test]
fn what_version_1_wrote_is_what_is_written_today_without_what_came_later() {
    let golden = golden();
    let mut made = BTreeMap::new();
    for (name, message) in messages() {
        let mut bytes = Vec::new();
        encode(&message, MOST, &mut bytes).unwrap();
        made.insert(name.to_owned(), bytes);
    }
    for (id, (name, request)) in (1..).zip(requests()) {
        let mut bytes = Vec::new();
        encode(&Request { id, request }, MOST, &mut bytes).unwrap();
        made.insert(name.to_owned(), bytes);
    }
    for (name, bytes) in made {
        let mut value = value(&bytes);
        for field in LATER {
            remove(&mut value, field);
        }
        let hex: String = framed(&value)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let old: Option<String> = golden
            .get(&name)
            .map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        assert_eq!(old.as_deref(), Some(&*hex), "{name} {hex}");
    }
}

#[test]
fn what_a_shim_of_version_1_says_is_understood() {
    let golden = golden();
    for (name, message) in messages() {
        let mut bytes = golden[name].clone();
        let taken: ShimMessage = take(&mut bytes, MOST).unwrap().unwrap();
        assert_eq!(taken, message, "{name}");
    }
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    for (name, message) in messages() {
        let mut bytes = Vec::new();
        encode(&message, MOST, &mut bytes).unwrap();
        let mut value = value(&bytes);
        add(&mut value);
        let mut later = framed(&value);
        // A message of a kind that came later, and what follows it.
        set(&mut value, "type", &"of_tomorrow".into());
        later.extend(framed(&value));
        later.extend(&bytes);
        let mut take = || take::<ShimMessage>(&mut later, MOST).unwrap().unwrap();
        assert_eq!(take(), message, "{name}");
        assert_eq!(take(), ShimMessage::Unknown, "{name}");
        assert_eq!(take(), message, "{name}");
    }
    for (id, (name, request)) in (1..).zip(requests()) {
        let request = Request { id, request };
        let mut bytes = Vec::new();
        encode(&request, MOST, &mut bytes).unwrap();
        let mut value = value(&bytes);
        add(&mut value);
        let taken: Request = take(&mut framed(&value), MOST).unwrap().unwrap();
        assert_eq!(taken, request, "{name}");
    }
}

#[test]
fn records_of_the_version_before_and_of_a_later_one_are_read() {
    let golden = golden();
    let folder = tempfile::tempdir().unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(folder.path().join("record"), bytes).unwrap();
        read_record(folder.path()).unwrap().unwrap()
    };
    let frames = ["record-spawn", "record-started", "record-exited"].map(|name| &golden[name]);
    let record = read(&frames.map(Vec::as_slice).concat());
    assert_eq!(
        (&record.instance, record.generation, record.shim_pid),
        (&name("web.1"), Generation(7), 4710)
    );
    let (started, exit) = (
        record.started.clone().unwrap(),
        record.exit.clone().unwrap(),
    );
    assert_eq!((started.pid, started.start_ticks), (4711, 3_893_420));
    assert_eq!((exit.result, exit.pid), (ExitResult::Stopped, 4711));
    let spec = record.spec().unwrap();
    assert_eq!(spec.command, ["/bin/sleep", "100000"]);
    assert_eq!((spec.stop.grace_ms, spec.restarts), (10_000, 1));
    assert!(spec.settings.is_default());

    let mut later = Vec::new();
    for frame in frames {
        let mut value = value(frame);
        if let Some(spec) = field(&value, "spec").and_then(Value::as_slice) {
            let mut inner = rmpv::decode::read_value(&mut &spec[..]).unwrap();
            add(&mut inner);
            let bytes = framed(&inner)[4..].to_vec();
            set(&mut value, "spec", &Value::Binary(bytes));
        }
        add(&mut value);
        later.extend(framed(&value));
        set(&mut value, "type", &"of_tomorrow".into());
        later.extend(framed(&value));
    }
    let mut same = read(&later);
    assert_eq!(same.spec().unwrap(), spec);
    same.spec.clone_from(&record.spec);
    assert_eq!(same, record);
}

/// Reads frames until there is one of this type.
fn hear(stream: &mut UnixStream, received: &mut Vec<u8>, kind: &str) -> Value {
    let mut bytes = [0_u8; 4096];
    loop {
        while let Some(value) = take::<Value>(received, MOST).unwrap() {
            if field(&value, "type").and_then(Value::as_str) == Some(kind) {
                return value;
            }
        }
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "no {kind}");
        received.extend_from_slice(&bytes[..count]);
    }
}

/// The other way round: a manager of version 1 (or its command line) and a shim of today.
#[tokio::test]
async fn a_client_of_version_1_is_answered_with_all_that_it_knows() {
    let golden = golden();
    let bench = Bench::start().await;
    let mut service = sleeper("web.1", 7);
    service.restarts = 1;
    bench.run(&service).await;
    let mut stream = UnixStream::connect(bench.dirs.shim_socket(&name("web.1"))).unwrap();
    let mut received = Vec::new();
    let mut said = vec![hear(&mut stream, &mut received, "hello")];
    for request in [
        "request-status",
        "request-watch",
        "request-permit",
        "request-signal",
    ] {
        stream.write_all(&golden[request]).unwrap();
        let answer = hear(&mut stream, &mut received, "answer");
        assert!(has_all(&answer, &value(&golden["answer"])), "{answer}");
        let error = field(&answer, "error");
        assert!(error.is_none_or(Value::is_nil), "{request}: {answer}");
    }
    stream.write_all(&golden["request-stop"]).unwrap();
    said.push(hear(&mut stream, &mut received, "exited"));
    for (said, old) in said.iter().zip(["hello", "exited"]) {
        let mut wanted = value(&golden[old]);
        // Said of a restart by permit only.
        remove(&mut wanted, "previous_exit");
        assert!(has_all(said, &wanted), "{old}: {said}");
    }
}

/// Not a test by itself: a fork server and a shim of version 1 with a service,
/// as far as a manager sees them. `BH_OLD_SHIM` names the run directory, the
/// instance's folder and its socket.
// Where nobody stops it, the bench ends its service.
#[allow(clippy::zombie_processes)]
#[test]
fn helper_of_version_1() {
    let Ok(places) = std::env::var("BH_OLD_SHIM") else {
        return;
    };
    let places: Vec<PathBuf> = places.split(':').map(PathBuf::from).collect();
    let (run, folder, socket) = (&places[0], &places[1], &places[2]);
    let golden = golden();
    for directory in [&run.join("fs"), &run.join("i"), folder] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let lock = |path: &Path| {
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).create(true).truncate(false);
        let file = file.open(path).unwrap();
        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        file.set_len(1).unwrap();
        file
    };
    let _server = (
        lock(&run.join("fs/v1.lock")),
        UnixListener::bind(run.join("fs/v1")).unwrap(),
    );
    let held = lock(&folder.join("lock"));
    let mut service = Command::new("/bin/sleep").arg("100000").spawn().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.id())).unwrap();
    let ticks: u64 = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(19)
        .unwrap()
        .parse()
        .unwrap();
    let own = |frame: &[u8]| {
        let mut value = value(frame);
        set(&mut value, "pid", &service.id().into());
        set(&mut value, "shim_pid", &std::process::id().into());
        set(&mut value, "start_ticks", &ticks.into());
        set(&mut value, "boot_id", &host::boot_id().unwrap().into());
        set(&mut value, "socket", &socket.to_str().unwrap().into());
        framed(&value)
    };
    let mut record = own(&golden["record-spawn"]);
    record.extend(own(&golden["record-started"]));
    std::fs::write(folder.join("record"), &record).unwrap();
    let (hello, mut exited) = (own(&golden["hello"]), value(&golden["record-exited"]));
    set(&mut exited, "pid", &service.id().into());
    record.extend(framed(&exited));
    let exited = framed(&exited);
    let listener = UnixListener::bind(socket).unwrap();
    std::fs::write(run.join("ready"), service.id().to_string()).unwrap();
    let answer = |id: &Value, error: Value| {
        let mut value = value(&golden["answer"]);
        set(&mut value, "id", id);
        set(&mut value, "error", &error);
        framed(&value)
    };
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        stream.write_all(&hello).unwrap();
        let (mut received, mut bytes) = (Vec::new(), [0_u8; 4096]);
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            received.extend_from_slice(&bytes[..count]);
            while let Some(request) = take::<Value>(&mut received, MOST).unwrap() {
                let id = field(&request, "id").unwrap();
                let kind = field(field(&request, "request").unwrap(), "type").unwrap();
                match kind.as_str().unwrap() {
                    "watch" | "status" => {
                        stream.write_all(&hello).unwrap();
                        stream.write_all(&answer(id, Value::Nil)).unwrap();
                    }
                    "stop" => {
                        stream.write_all(&answer(id, Value::Nil)).unwrap();
                        service.kill().unwrap();
                        service.wait().unwrap();
                        std::fs::write(folder.join("record"), &record).unwrap();
                        std::fs::remove_file(socket).unwrap();
                        held.set_len(0).unwrap();
                        drop(held);
                        let _ = stream.write_all(&exited);
                        return;
                    }
                    _ => {
                        let error = "not known to this shim".into();
                        stream.write_all(&answer(id, error)).unwrap();
                    }
                }
            }
        }
    }
}

struct Old(Child);

impl Drop for Old {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_manager_of_today_holds_shims_of_version_1_and_starts_a_fork_server_beside_theirs() {
    let mut bench = Bench::prepare(&[]).await;
    let (run, web) = (bench.dirs.run.clone(), name("web.1"));
    let (folder, socket) = (bench.dirs.instance(&web), bench.dirs.shim_socket(&web));
    let places = [&run, &folder, &socket].map(|path| path.to_str().unwrap().to_owned());
    let old = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_of_version_1"])
        .env("BH_OLD_SHIM", places.join(":"))
        .stdout(Stdio::null())
        .spawn();
    let mut old = Old(old.unwrap());
    let ready = run.join("ready");
    let pid: u32 = until("a shim of version 1", || {
        std::fs::read_to_string(&ready).ok()?.parse().ok()
    })
    .await;
    let records = bench.start_manager().await;
    let shown = records.iter().find(|one| one.instance == web).unwrap();
    assert_eq!(shown.state.name(), StateName::Running, "{shown:#?}");
    assert_eq!(
        (shown.state.pid(), shown.generation),
        (Some(pid), Generation(7))
    );
    assert!(shown.notify.ready && shown.adopted);
    // Its fork server stays for nobody's harm, and another one is beside it.
    let theirs = host::lock_holder(&run.join("fs/v1.lock")).unwrap();
    assert_eq!(theirs, Some(old.0.id()));
    let ours = until("a fork server of today", || {
        host::lock_holder(&run.join(format!("fs/v{PROTOCOL}.lock"))).unwrap()
    })
    .await;
    assert_ne!(Some(ours), theirs);
    bench.run(&sleeper("new.1", 1)).await;
    bench.stop("new.1", 1).await.unwrap();
    // What it does not know it says so of.
    let reload = Reload {
        instance: web.clone(),
    };
    refused(bench.request(&reload).await);
    let ended = bench.stop("web.1", 7).await.unwrap();
    let exit = ended.state.exit().unwrap();
    assert_eq!((exit.result, exit.pid), (ExitResult::Stopped, pid));
    old.0.wait().unwrap();
    let record = read_record(&folder).unwrap().unwrap();
    assert_eq!(record.exit.as_ref(), Some(exit));
    // The next one is of today.
    bench.run(&sleeper("web.1", 8)).await;
    bench.stop("web.1", 8).await.unwrap();
}
