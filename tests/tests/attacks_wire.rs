//! Attacks on the bridge's socket below the protocol of calls: whoever may
//! open it, admitted or not, and says what no ZeroMQ library would say.
//!
//! Each test states how much memory the bridge may use for it, has an honest
//! pair call through it all the time, and ends with the same process in its
//! first life, with few lines in its log.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use blackhole_bus_schema::transport::MAX_MESSAGE_BYTES;
use blackhole_tests::attack::zmtp::{self, Raw, flag};
use blackhole_tests::attack::{Pair, Random, Victim, pack};
use blackhole_tests::wait::HANG;

const MIB: u64 = 1024 * 1024;
/// What the bridge uses for the honest pair, its log and its bus, and what the
/// allocator keeps: measured below 12 MiB.
const SLACK: u64 = 24 * MIB;
/// One connection: two tasks, a 64 KiB read buffer at the most, and state; and
/// its queues of 8192 and 1024 places of 64 bytes (576 KiB), which a build
/// without optimisation writes at once and another one as they are used.
const CONNECTION: u64 = if cfg!(debug_assertions) { 704 } else { 128 } * 1024;
/// Lines that a bridge logs which nobody attacks, the honest pair included:
/// measured 6 to 9.
const QUIET: usize = 16;
/// Lines for one offender.
const ONCE: usize = 1;

fn victim() -> Victim {
    Victim::start(&["honest-caller", "honest-callee", "web", "db"])
}

/// A request to the honest callee.
fn request(id: u64) -> Vec<u8> {
    pack::map(&[
        ("kind", pack::text("request")),
        ("id", pack::number(id)),
        ("service", pack::text("honest-callee")),
        ("method", pack::text("mirror")),
    ])
}

/// The beginnings of connections that lead into each state of the handshake.
fn openings(victim: &Victim) -> Vec<Vec<u8>> {
    let mut greeted = zmtp::greeting("PLAIN");
    let mut welcomed = greeted.clone();
    welcomed.extend(zmtp::hello("web.1", &victim.token("web.1")));
    let mut ready = welcomed.clone();
    let dealer = zmtp::property("Socket-Type", b"DEALER");
    ready.extend(zmtp::command(b"INITIATE", &dealer));
    greeted.truncate(64);
    vec![Vec::new(), greeted, welcomed, ready]
}

/// Random bytes in each state of the connection: each is closed or ignored.
#[test]
fn random_bytes() {
    const CONNECTIONS: usize = 400;
    // One at a time, but they go only when the bridge has seen it.
    const BOUND: u64 = SLACK + 64 * CONNECTION;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    let openings = openings(&victim);
    let mut random = Random::new(1);
    for number in 0..CONNECTIONS {
        let mut raw = Raw::connect(&victim.socket()).unwrap();
        let mut bytes = openings[number % openings.len()].clone();
        let length = 1 + random.below(3000);
        bytes.extend(random.bytes(length));
        // It may have been closed in the middle of that.
        let _ = raw.send(&bytes);
    }
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + ONCE);
}

/// Hundreds that begin a handshake and never end it, in all its states: they
/// are closed after the handshake's time, and until then others come in.
#[test]
fn half_greetings_held_open() {
    const HELD: usize = 400;
    const BOUND: u64 = SLACK + HELD as u64 * CONNECTION;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    let whole = openings(&victim)[2].clone();
    let mut held: Vec<Raw> = (0..HELD)
        .map(|number| {
            let mut raw = Raw::connect(&victim.socket()).unwrap();
            raw.send(&whole[..number % whole.len()]).unwrap();
            raw
        })
        .collect();
    // Others come in beside them.
    let newcomer = victim.raw("db.1");
    pair.wait_for_more(100);
    for raw in &mut held {
        raw.wait_closed();
    }
    drop(newcomer);
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}

/// A byte now and then does not keep a handshake alive: its time is counted
/// from its beginning.
#[test]
fn slow_handshakes() {
    const HELD: usize = 64;
    const BOUND: u64 = SLACK + HELD as u64 * CONNECTION;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut slow: Vec<Raw> = (0..HELD)
        .map(|_| Raw::connect(&victim.socket()).unwrap())
        .collect();
    // A command that takes a quarter of a million bytes to come, one at a time.
    let mut bytes = zmtp::greeting("PLAIN");
    bytes.extend(zmtp::announce(flag::COMMAND, 256 * 1024));
    bytes.resize(256 * 1024, b'x');
    let mut at = 0;
    let start = Instant::now();
    while !slow.is_empty() {
        let byte = bytes[at..=at].to_vec();
        slow.retain_mut(|raw| raw.send(&byte).is_ok());
        at += 1;
        // As slow as the honest clients: the bridge has its turns.
        pair.wait_for_more(1);
        assert!(
            at < bytes.len() && start.elapsed() < HANG,
            "{} are still heard",
            slow.len()
        );
    }
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}

/// As many unfinished handshakes as there may be, and more: newcomers have to
/// wait until the time of those is over, and get in then. Who is in, stays in.
#[test]
fn more_half_greetings_than_there_may_be() {
    const HELD: usize = 1_200;
    // Those that are in their handshake at one time, as many as the transport
    // takes (512); the others wait in the kernel, or are closed.
    const BOUND: u64 = SLACK + 512 * CONNECTION;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    let greeting = zmtp::greeting("PLAIN");
    let held: Vec<Raw> = (0..HELD)
        .filter_map(|_| {
            let mut raw = Raw::connect(&victim.socket()).ok()?;
            raw.send(&greeting).ok()?;
            Some(raw)
        })
        .collect();
    let newcomer = blackhole_tests::wait_for("a newcomer to be admitted", || {
        let token = victim.token("db.1");
        Raw::dealer(&victim.socket(), "db.1", &token).map_err(|error| error.to_string())
    });
    drop((held, newcomer));
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}

/// Lengths that no memory holds, before and after the handshake, and wrong
/// flags beside them.
#[test]
fn announced_lengths() {
    const BOUND: u64 = SLACK + 64 * CONNECTION;
    const LENGTHS: [u64; 10] = [
        1 << 31,
        (1 << 31) - 1,
        (1 << 32) + 1,
        1 << 40,
        (1 << 62) + 7,
        (1 << 63) - 1,
        1 << 63,
        (1 << 63) + 1,
        u64::MAX - 1,
        u64::MAX,
    ];
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    for opening in openings(&victim).iter().skip(1) {
        for length in LENGTHS {
            for flags in [
                0,
                flag::MORE,
                flag::COMMAND,
                flag::COMMAND | flag::MORE,
                0xf8,
                0xff,
            ] {
                let mut raw = Raw::connect(&victim.socket()).unwrap();
                let mut bytes = opening.clone();
                bytes.extend(zmtp::announce(flags, length));
                bytes.extend_from_slice(&[0; 100]);
                let _ = raw.send(&bytes);
                raw.wait_closed();
            }
        }
    }
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}

/// Before the handshake, 256 KiB of a command are as many as are ever kept.
#[test]
fn large_commands_before_the_handshake() {
    const HELD: usize = 200;
    // Each keeps the library's longest command of a handshake, and what was read beyond.
    const BOUND: u64 = SLACK + HELD as u64 * (256 * 1024 + 64 * 1024 + CONNECTION);
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut bytes = zmtp::greeting("PLAIN");
    bytes.extend(zmtp::announce(flag::COMMAND, 256 * 1024));
    bytes.extend(vec![b'x'; 256 * 1024 - 1]);
    let mut held: Vec<Raw> = (0..HELD)
        .map(|_| {
            let mut raw = Raw::connect(&victim.socket()).unwrap();
            raw.send(&bytes).unwrap();
            raw
        })
        .collect();
    for raw in &mut held {
        raw.wait_closed();
    }
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}

/// A message without end: it is closed at the largest message's size, also
/// where its frames are empty and cost only their bookkeeping.
#[test]
fn endless_more_frames() {
    // One message as it is put together: its bytes, its parts (at least the
    // library's 16 bytes for each that counts as one, doubled by a growing
    // vector), and once more while it is copied.
    const BOUND: u64 = SLACK + 4 * MAX_MESSAGE_BYTES as u64;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    for body in [0, 1, 40, 255, 60_000] {
        let frame = zmtp::frame(flag::MORE, &vec![b'x'; body]);
        let frames = frame.repeat(1 + 65_536 / frame.len());
        let mut raw = victim.raw("web.1");
        let sent = raw.flood_until_closed(&frames, 256 * MIB);
        eprintln!("frames of {body} bytes: closed after {sent} bytes");
        pair.wait_for_more(10);
    }
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}

/// Commands that are too short, too long, unknown, or of another moment.
#[test]
fn commands_of_bad_length() {
    const BOUND: u64 = SLACK + 64 * CONNECTION;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    let mut bad: Vec<Vec<u8>> = vec![
        zmtp::frame(flag::COMMAND, b""),
        zmtp::frame(flag::COMMAND, b"\xff"),
        zmtp::frame(flag::COMMAND, b"\x04PING"),
        zmtp::frame(flag::COMMAND, b"\x04PIN"),
        zmtp::frame(flag::COMMAND, b"\x00"),
        zmtp::command(b"PING", b"\x00"),
        zmtp::command(b"PING", &[0xff; 200]),
        zmtp::command(b"PONG", &[0xff; 60_000]),
        zmtp::command(b"ERROR", b"\xffx"),
        zmtp::command(b"ERROR", b"\x01"),
        zmtp::command(b"SUBSCRIBE", &[b'x'; 100_000]),
        zmtp::command(b"CANCEL", b""),
        zmtp::command(b"JOIN", b"x"),
        zmtp::command(b"HELLO", b"\xffweb.1\xff"),
        zmtp::command(b"HELLO", b"\x05web.1"),
        zmtp::command(b"HELLO", b""),
        zmtp::hello("web.1", &victim.token("web.1")),
        zmtp::command(b"WELCOME", b""),
        zmtp::command(b"READY", b""),
        zmtp::command(b"INITIATE", b""),
        zmtp::command(b"INITIATE", b"\x00\x00\x00\x00\x00"),
        zmtp::command(b"INITIATE", b"\x08Identity\xff\xff\xff\xff"),
        zmtp::command(b"INITIATE", b"\xffSocket-Type"),
        zmtp::command(b"INITIATE", &zmtp::property("Socket-Type", b"PUB")),
        zmtp::command(b"INITIATE", &zmtp::property("Socket-Type", &[0xff; 1000])),
        zmtp::command(b"INITIATE", &zmtp::property("User-Id", b"7").repeat(1000)),
        zmtp::frame(flag::COMMAND, &vec![7; 200_000]),
    ];
    // Endless PINGs are answered, but not kept.
    bad.push(zmtp::command(b"PING", b"\x00\x00context").repeat(10_000));
    for opening in openings(&victim) {
        for bytes in &bad {
            let mut raw = Raw::connect(&victim.socket()).unwrap();
            let _ = raw.send(&opening).and_then(|()| raw.send(bytes));
        }
    }
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}

/// PINGs whose answers are never read: the bridge stops to read them.
#[test]
fn pings_without_end() {
    // Its answers fill the socket (the kernel's memory) and a buffer of the
    // library's; then it reads no more.
    const BOUND: u64 = SLACK + 4 * MIB;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut raw = victim.raw("web.1");
    let pings = zmtp::command(b"PING", b"\x00\x00a-context-here").repeat(4096);
    let mut sent = 0_u64;
    let mut refused = 0;
    // Until it takes nothing while the honest pair has had its turns.
    while refused < 20 {
        match raw.send_some(&pings) {
            Ok(0) => {
                refused += 1;
                pair.wait_for_more(10);
            }
            Ok(count) => {
                sent += count as u64;
                refused = 0;
                assert!(
                    sent < 512 * MIB,
                    "{sent} bytes of PINGs were taken, and no end"
                );
            }
            Err(_) => break,
        }
    }
    eprintln!("{sent} bytes of PINGs");
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}

/// 10,000 that come and go, at each point of the handshake: no file stays open.
#[test]
fn connects_and_disconnects() {
    const CONNECTIONS: usize = 10_000;
    // 4096 connections that are gone are remembered (the core's REMEMBERED, 16
    // bytes each, twice), the library keeps an account of as many. The rest is
    // the allocator's.
    const BOUND: u64 = SLACK + 8 * MIB;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    let openings = openings(&victim);
    for number in 0..CONNECTIONS {
        match number % 5 {
            // Admitted, and gone in the middle of a call.
            4 => {
                let mut raw = victim.raw("web.1");
                if number % 2 == 0 {
                    raw.send(&zmtp::message(&request(7), b"hello")).unwrap();
                }
            }
            kind => {
                let mut raw = Raw::connect(&victim.socket()).unwrap();
                raw.send(&openings[kind]).unwrap();
            }
        }
    }
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET);
}
