//! Attacks on a daemon's sockets of the bus. Whoever can open them is an
//! operator; so these are faults rather than malice: a monitor that is stopped,
//! a client of another version, garbage. The daemon has to live through all of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::{Child, Stdio};

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent};
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::registry::{ListRegistry, Registration};
use blackhole_bus_schema::{bus, topic};
use blackhole_tests::attack::zmtp::{self, Raw, flag};
use blackhole_tests::attack::{Pair, Random, Victim, pack};
use blackhole_tests::wait::HANG;
use blackhole_tests::{processes, wait_for};
use rustix::process::Signal;

const MIB: u64 = 1024 * 1024;
/// What the bridge uses for the honest pair, its log and its bus, and what the
/// allocator keeps: measured below 12 MiB.
const SLACK: u64 = 24 * MIB;
/// Lines that a bridge logs which nobody attacks: measured 6 to 9.
const QUIET: usize = 16;

fn victim() -> Victim {
    Victim::start(&["honest-caller", "honest-callee", "web", "db"])
}

/// A process that is killed when the test ends, stopped or not.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes and lengths that no peer would send, at both sockets.
#[test]
fn garbage_at_both_sockets() {
    const BOUND: u64 = SLACK;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    let mut random = Random::new(2);
    for path in [victim.bus_evt(), victim.bus_cmd()] {
        let socket_type = if path == victim.bus_evt() {
            "SUB"
        } else {
            "PUB"
        };
        for number in 0..200_u64 {
            let mut raw = Raw::connect(&path).unwrap();
            let mut bytes = Vec::new();
            if number % 3 > 0 {
                bytes.extend(zmtp::greeting("NULL"));
            }
            if number % 3 > 1 {
                let own = zmtp::property("Socket-Type", socket_type.as_bytes());
                bytes.extend(zmtp::command(b"READY", &own));
            }
            match number % 4 {
                0 => bytes.extend(zmtp::announce(flag::COMMAND, 1 << 63)),
                1 => bytes.extend(zmtp::announce(flag::MORE, u64::MAX)),
                _ => bytes.extend(random.bytes(1000)),
            }
            let _ = raw.send(&bytes);
        }
        // A message without end.
        let mut raw = Raw::null(&path, socket_type).unwrap();
        let frames = zmtp::frame(flag::MORE, &[1; 200]).repeat(300);
        raw.flood_until_closed(&frames, 256 * MIB);
    }
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND + 4 * 16 * MIB);
    victim.assert_unharmed(QUIET);
}

/// Envelopes that are none, by the thousand: each kind is logged once, 64 in all.
#[test]
fn envelopes_that_are_none() {
    const ROUNDS: usize = 100;
    const BOUND: u64 = SLACK + 16 * MIB;
    const REPORTED: usize = 64;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut random = Random::new(3);
    let envelope = |fields: &[(&str, Vec<u8>)]| {
        let mut all = vec![
            ("v", pack::number(1)),
            ("id", [&[0xc4, 16][..], &[7; 16]].concat()),
            ("at", pack::number(1)),
            (
                "source",
                pack::map(&[
                    ("component", pack::text("cli-00000001")),
                    ("instance", pack::text("1")),
                    ("incarnation", pack::number(0)),
                ]),
            ),
        ];
        all.extend_from_slice(fields);
        pack::map(&all)
    };
    let kind = |kind: &str| ("kind", pack::text(kind));
    let reply_to = || ("reply_to", pack::text("cli-00000001"));
    let mut bodies = vec![
        Vec::new(),
        vec![0xc1],
        pack::nested(200),
        pack::nested(1_000),
        pack::nested(1_000_000),
        pack::announce(0xdd, 1 << 31),
        pack::announce(0xdf, u32::MAX),
        envelope(&[kind("registry.list"), ("body", pack::nested(900))]),
        envelope(&[
            kind("registry.list"),
            reply_to(),
            ("body", pack::nested(1_000)),
        ]),
        envelope(&[
            kind("registry.list"),
            reply_to(),
            ("body", pack::nested(500_000)),
        ]),
        envelope(&[
            kind("registry.list"),
            reply_to(),
            ("body", pack::announce(0xdd, u32::MAX)),
        ]),
        envelope(&[
            kind("registry.list"),
            reply_to(),
            ("body", pack::announce(0xdf, 1 << 31)),
        ]),
        envelope(&[
            kind("registry.list"),
            reply_to(),
            ("budget_ms", pack::number(u64::MAX)),
        ]),
        envelope(&[
            kind("registry.drain"),
            reply_to(),
            ("body", pack::text("no map")),
        ]),
        envelope(&[
            kind("component.ping"),
            ("reply_to", pack::text("no client's name\n")),
        ]),
        envelope(&[kind("component.ping"), reply_to()]),
        envelope(&[("v", pack::number(2)), kind("component.ping"), reply_to()]),
    ];
    let mut raw = Raw::null(&victim.bus_cmd(), "PUB").unwrap();
    // The SUB says what it subscribes to; a PUB needs not read it.
    for round in 0..ROUNDS {
        let unknown = format!("no.such.{round}");
        bodies.push(envelope(&[kind(&unknown), reply_to()]));
        bodies.push(random.bytes(300));
        let number = u64::try_from(round).unwrap();
        bodies.push(pack::map(&[("v", pack::number(number + 2))]));
    }
    for body in bodies.iter().chain(&bodies).chain(&bodies) {
        for topic in ["cmd.bridge.", "cmd.bridge.x", "", "evt.bridge."] {
            raw.send(&zmtp::message(topic.as_bytes(), body)).unwrap();
        }
    }
    pair.finish();
    // Still answering commands: that is what `assert_unharmed` asks for.
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + REPORTED);
}

/// A monitor that is stopped with SIGSTOP, and one that holds its connection
/// and reads nothing, while a service makes large events without end: the
/// publisher's memory is bounded, and who reads ends with the owner's state.
#[test]
fn subscribers_that_stop_reading() {
    const EVENTS: usize = 1_500;
    const METHODS: usize = 250;
    // Some 48 KiB each, 72 MB in all. For each of the two stopped ones the
    // library keeps what it has encoded, 2 MiB, and one message beyond.
    const BOUND: u64 = SLACK + 2 * (2 * MIB + 128 * 1024);
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let deployment = victim.deployment();
    let name = |number: usize, method: usize| format!("{number}.{method}.{}", "x".repeat(180));

    let monitor = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_monitor", "--ignored"])
        .env(MONITORED, victim.bus_evt())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut monitor = Killed(monitor.expect("a monitor"));
    let mut deaf = Raw::null(&victim.bus_evt(), "SUB").unwrap();
    deaf.send(&zmtp::command(b"SUBSCRIBE", b"")).unwrap();
    let path = victim.bus_evt();
    wait_for("the monitor's connection", || {
        let text = std::fs::read_to_string("/proc/net/unix").unwrap();
        let peers = text
            .lines()
            .filter(|line| line.ends_with(path.to_str().unwrap()))
            .count();
        // The listener, the deaf one's, and the monitor's.
        let ended = monitor.0.try_wait().unwrap();
        assert!(ended.is_none(), "the monitor ended: {ended:?}");
        (peers >= 3).then_some(()).ok_or(text)
    });
    assert!(processes::kill(monitor.0.id(), Signal::STOP, |_| true));

    let reader = std::thread::spawn({
        let dirs = deployment.dirs();
        let last = name(EVENTS - 1, 0);
        move || follow(&dirs, &last)
    });
    let memory = victim.begin_to_measure();
    // Each instance may change its registration ten times at once.
    let mut web = victim.raw("web.150");
    for number in 0..EVENTS {
        if number % 10 == 0 {
            web = victim.raw(&format!("web.{}", (EVENTS - number) / 10));
        }
        let methods: Vec<Vec<u8>> = (0..METHODS)
            .map(|method| pack::text(&name(number, method)))
            .collect();
        let register = pack::map(&[
            ("kind", pack::text("register")),
            ("version", pack::number(1)),
            ("methods", pack::array(&methods)),
        ]);
        web.send(&zmtp::message(&register, b"")).unwrap();
        let answer = web.receive_message().unwrap();
        assert!(!answer.is_empty());
    }
    let seen = reader.join().expect("the reader's end").unwrap();
    assert_eq!(seen.methods.len(), METHODS);
    assert!(processes::kill(monitor.0.id(), Signal::CONT, |_| true));
    drop(monitor);
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(usize::MAX);
}

/// Set for [`a_monitor`]: the socket that it subscribes to.
const MONITORED: &str = "BLACKHOLE_TEST_MONITORED";

/// No test, but the program that the test above stops: it reads all there is.
#[test]
#[ignore = "the program that another test starts"]
fn a_monitor() {
    let Some(path) = std::env::var_os(MONITORED) else {
        return;
    };
    let mut raw = Raw::null(path.as_ref(), "SUB").unwrap();
    raw.send(&zmtp::command(b"SUBSCRIBE", b"")).unwrap();
    while raw.receive_message().is_ok() {}
}

/// Follows the registry until web.1 serves `method`.
fn follow(dirs: &blackhole_bus_schema::dirs::Dirs, method: &str) -> Result<Registration, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let wanted = |registration: &Registration| {
        registration.instance.to_string() == "web.1"
            && registration.methods.iter().any(|name| name == method)
    };
    runtime.block_on(async {
        let interest = Interest::none().stream::<ListRegistry>(topic::REGISTRY);
        let me = ClientName::fresh("reader");
        let (_link, mut events) = Link::open(dirs, me, Component::Bridge, interest)
            .await
            .map_err(|error| error.to_string())?;
        loop {
            let event = tokio::time::timeout(HANG, events.recv()).await;
            let found = match event {
                Ok(Some(LinkEvent::Snapshot { items, .. })) => items
                    .into_iter()
                    .filter_map(|item| bus::item::<Registration>(item).ok())
                    .find(wanted),
                Ok(Some(LinkEvent::Event(received))) => received
                    .parse::<blackhole_bus_schema::registry::RegistryChanged>()
                    .ok()
                    .and_then(|changed| changed.registration)
                    .filter(wanted),
                Ok(Some(_)) => None,
                Ok(None) | Err(_) => return Err("the last registration never came".to_owned()),
            };
            if let Some(found) = found {
                return Ok(found);
            }
        }
    })
}

/// Subscriptions without end, and long ones: they cost the publisher what they
/// are long, until the connection is closed.
#[test]
fn subscriptions_without_end() {
    const COUNT: usize = 50_000;
    // 20 bytes each in a tree of prefixes: a node, its map and its count for
    // each byte that differs.
    const BOUND: u64 = SLACK + (COUNT * 1024) as u64;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut raw = Raw::null(&victim.bus_evt(), "SUB").unwrap();
    for number in 0..COUNT {
        let prefix = format!("evt.process.web.{number}.");
        raw.send(&zmtp::command(b"SUBSCRIBE", prefix.as_bytes()))
            .unwrap();
    }
    let long = vec![b'x'; 1024 * 1024];
    for _ in 0..16 {
        // One that is too long ends the connection.
        if raw.send(&zmtp::command(b"SUBSCRIBE", &long)).is_err() {
            break;
        }
    }
    pair.finish();
    drop(raw);
    victim.assert_grew_at_most(memory, BOUND + 2 * 16 * MIB);
    victim.assert_unharmed(QUIET);
}
