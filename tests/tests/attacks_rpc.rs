//! Attacks on the bridge by services that were admitted: they lie about who
//! they are, whose calls they answer, and how much they can take.
//!
//! Each test states how much memory the bridge may use for it, has an honest
//! pair call through it all the time, and ends with the same process in its
//! first life, with a line or two for the offender in its log.
#![allow(clippy::unwrap_used, clippy::panic)]

use blackhole_bus_schema::rpc::header::Header;
use blackhole_bus_schema::transport::MAX_MESSAGE_BYTES;
use blackhole_tests::attack::bounds::{MIB, OF_ONE_PEER, ONCE, QUIET, SLACK};
use blackhole_tests::attack::service::{
    flush, header, id, next, read, register, request, response, serve, victim,
};
use blackhole_tests::attack::zmtp::{self, Raw, flag};
use blackhole_tests::attack::{Pair, pack};
use blackhole_tests::wait_for;

/// Wrong tokens by the thousand, of every shape.
#[test]
fn wrong_tokens() {
    const TRIES: usize = 3_000;
    const BOUND: u64 = SLACK;
    // Those that are logged before it is enough.
    const LOGGED: usize = 32;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    let right = victim.token("web.1");
    let long = "9".repeat(200);
    let cases = [
        ("web.2", right.clone()),
        ("db.1", right.clone()),
        ("honest-callee.1", right.clone()),
        ("web.1", String::new()),
        ("web.1", format!("2{right}")),
        ("web.1", right.replacen("1.", "01.", 1)),
        ("web.1", right.to_uppercase()),
        ("web.1", format!("{right}0")),
        ("web.1", right[..right.len() - 1].to_owned()),
        ("web.1", long.clone()),
        ("", right.clone()),
        ("web", right.clone()),
        ("web.0", right.clone()),
        ("../web.1", right.clone()),
        ("web.1\n", right.clone()),
        ("a line\nanother line\u{1b}[31m", long),
    ];
    for number in 0..TRIES {
        let (username, password) = &cases[number % cases.len()];
        if username.contains('\n') && right.contains(password.as_str()) {
            continue;
        }
        let refused = Raw::dealer(&victim.socket(), username, password);
        assert!(refused.is_err(), "{username:?} was admitted");
    }
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + LOGGED);
    assert!(!victim.log().contains("\u{1b}[31m"), "{}", victim.log());
}

/// A service that says it is another: in a header, or by a routing identity.
#[test]
fn another_ones_name() {
    // Some 70 connections, see `connections_of_one_instance`.
    const BOUND: u64 = SLACK + 72 * 704 * 1024;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();

    // A caller's name is what its token proved, whatever its header says.
    let mut db = victim.raw("db.1");
    serve(&mut db, &["whoami"]);
    let mut web = victim.raw("web.1");
    let fields = [
        ("id", pack::number(1)),
        ("service", pack::text("db")),
        ("method", pack::text("whoami")),
        ("caller", pack::text("honest-caller.1")),
    ];
    web.send(&zmtp::message(&header("request", &fields), b"q"))
        .unwrap();
    let (call, _) = next(&mut db, "request");
    let Header::Request(call) = read(&call) else {
        panic!("no request");
    };
    assert_eq!(call.caller.as_deref(), Some("web.1"));

    // It registers what it serves as itself, with the honest callee's name and method.
    let fields = [
        ("version", pack::number(1)),
        ("service", pack::text("honest-callee")),
        ("instance", pack::text("honest-callee.1")),
        ("caller", pack::text("honest-callee.1")),
        ("methods", pack::array(&[pack::text("mirror")])),
    ];
    web.send(&zmtp::message(&header("register", &fields), b""))
        .unwrap();
    next(&mut web, "registered");
    pair.wait_for_more(100);

    // An identity that is another one's: of a peer that chose one, and of one
    // that was given one by the bridge (those begin with a zero byte).
    let path = victim.socket();
    let chosen: &[(&str, &[u8])] = &[("Identity", b"chosen")];
    let mut owner = Raw::dealer_with(&path, "db.2", &victim.token("db.2"), chosen).unwrap();
    flush(&mut owner);
    let mut identities: Vec<Vec<u8>> = vec![b"chosen".to_vec(), vec![b'x'; 256], vec![0; 5]];
    identities.extend((0..64_u32).map(|number| {
        let mut identity = vec![0];
        identity.extend_from_slice(&number.to_be_bytes());
        identity
    }));
    for identity in &identities {
        let mut raw = Raw::connect(&path).unwrap();
        let mut bytes = zmtp::greeting("PLAIN");
        bytes.extend(zmtp::hello("web.2", &victim.token("web.2")));
        let mut body = zmtp::property("Socket-Type", b"DEALER");
        body.extend(zmtp::property("Identity", identity));
        bytes.extend(zmtp::command(b"INITIATE", &body));
        bytes.extend(zmtp::message(&request(9, "honest-callee", "mirror"), b"ab"));
        // Whether it is admitted or not: nobody else is hurt.
        let _ = raw.send(&bytes);
    }
    flush(&mut owner);
    pair.wait_for_more(100);

    // The owner's answers are its own.
    owner
        .send(&zmtp::message(
            &request(5, "honest-callee", "mirror"),
            b"abc",
        ))
        .unwrap();
    let (answer, payload) = next(&mut owner, "response");
    assert_eq!((id(&answer), &payload[..]), (5, &b"cba"[..]));
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + 4 * ONCE);
}

/// Answers to calls of others, to calls that were never made, and to calls that
/// it has answered already, by the hundred thousand.
#[test]
fn answers_to_calls_of_others() {
    const ANSWERS: u64 = 100_000;
    const BOUND: u64 = SLACK;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    // It learns how ids look from a call of its own to itself.
    let mut web = victim.raw("web.1");
    serve(&mut web, &["own"]);
    web.send(&zmtp::message(&request(1, "web", "own"), b""))
        .unwrap();
    let (call, _) = next(&mut web, "request");
    let seen = id(&call);
    web.send(&zmtp::message(&response(seen), b"mine")).unwrap();
    next(&mut web, "response");
    // The honest calls under way are among the next ones.
    let mut bytes = Vec::new();
    for number in 0..ANSWERS {
        bytes.extend(zmtp::message(
            &response(seen - 100 + number % 5_000),
            b"forged",
        ));
        if bytes.len() > 60_000 {
            web.send(&bytes).unwrap();
            bytes.clear();
        }
    }
    web.send(&bytes).unwrap();
    for forged in [0, 1, u64::from(u32::MAX), u64::MAX, 1 << 63] {
        web.send(&zmtp::message(&response(forged), b"forged"))
            .unwrap();
    }
    flush(&mut web);
    victim.wait_for_line("web.1");
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + ONCE);
}

/// One that breaks rules on ever new connections is one offender.
#[test]
fn an_offence_on_each_of_many_connections() {
    const CONNECTIONS: usize = 300;
    const BOUND: u64 = SLACK;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    for _ in 0..CONNECTIONS {
        let mut web = victim.raw("web.1");
        // Only the bridge sends this kind.
        let fields = [
            ("incarnation", pack::number(1)),
            ("heartbeat_ms", pack::number(1)),
        ];
        web.send(&zmtp::message(&header("registered", &fields), b""))
            .unwrap();
        flush(&mut web);
    }
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + 10 * ONCE);
}

/// Headers that cost more to read than they are long, and some that are no
/// headers at all.
#[test]
fn header_bombs() {
    const ROUNDS: usize = 20;
    const BOUND: u64 = SLACK + 2 * MAX_MESSAGE_BYTES as u64;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut bombs: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0xc1],
        b"not MessagePack at all".to_vec(),
        pack::nested(130_000),
        pack::nested(1_000_000),
        [vec![0x81], pack::text("kind"), pack::nested(60_000)].concat(),
        [vec![0x82], pack::text("x"), pack::nested(60_000)].concat(),
        header("request", &[("id", pack::nested(1000))]),
        header(
            "request",
            &[("id", pack::text("7")), ("method", pack::text("x"))],
        ),
        header("request", &[("id", pack::number(u64::MAX))]),
        header("register", &[("version", pack::number(u64::MAX))]),
        header("register", &[("capacity", pack::number(u64::MAX))]),
        header(
            "response",
            &[("id", pack::number(1)), ("code", pack::text("none such"))],
        ),
        header("no such kind", &[]),
        header(&"long ".repeat(20_000), &[]),
        header(
            "request",
            &[
                ("id", pack::number(2)),
                ("method", vec![0xa4, 0xff, 0xfe, 0xfd, 0xfc]),
            ],
        ),
    ];
    for count in [1 << 16, 1 << 24, 1 << 31, u32::MAX] {
        for marker in [0xdd, 0xdf, 0xdb, 0xc6, 0xc9] {
            bombs.push(pack::announce(marker, count));
            bombs.push(header(
                "register",
                &[("methods", pack::announce(marker, count))],
            ));
            bombs.push(header(
                "request",
                &[
                    ("id", pack::number(3)),
                    ("trace", pack::announce(marker, count)),
                ],
            ));
            bombs.push(header(
                "response",
                &[
                    ("id", pack::number(3)),
                    ("endpoints", pack::announce(marker, count)),
                ],
            ));
        }
    }
    let mut web = victim.raw("web.1");
    for _ in 0..ROUNDS {
        for bomb in &bombs {
            web.send(&zmtp::message(bomb, b"payload")).unwrap();
        }
    }
    // It is still heard, whatever it has said.
    flush(&mut web);
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + ONCE);
}

/// The largest message goes through; one byte more ends its connection.
#[test]
fn messages_of_the_largest_size() {
    const BOUND: u64 = SLACK + 8 * MAX_MESSAGE_BYTES as u64;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut db = victim.raw("db.1");
    serve(&mut db, &["take"]);
    let mut web = victim.raw("web.1");
    // 64 KiB are left for the header and the library's account of it.
    let largest = vec![b'x'; MAX_MESSAGE_BYTES - 64 * 1024];
    web.send(&zmtp::message(&request(1, "db", "take"), &largest))
        .unwrap();
    let (call, payload) = next(&mut db, "request");
    assert_eq!(payload.len(), largest.len());
    db.send(&zmtp::message(&response(id(&call)), &largest))
        .unwrap();
    let (_, payload) = next(&mut web, "response");
    assert_eq!(payload.len(), largest.len());
    drop((largest, payload));

    for over in [1_u64, 2, 1000, MAX_MESSAGE_BYTES as u64] {
        let mut raw = victim.raw("web.2");
        let length = MAX_MESSAGE_BYTES as u64 + over;
        let mut bytes = zmtp::frame(flag::MORE, &request(1, "db", "take"));
        bytes.extend(zmtp::announce(0, length));
        raw.send(&bytes).unwrap();
        raw.wait_closed();
    }
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + 4 * ONCE);
}

/// A thousand registrations of 1024 methods each, all different, on two connections:
/// each is answered, few are told to anybody, and what is served in the end is the last.
#[test]
fn registrations_without_end() {
    const REGISTRATIONS: usize = 500;
    // An event of some 12 KiB each. The bus's queue of 4096 of them is never
    // near full: its publisher waits for nobody.
    const BOUND: u64 = SLACK + 64 * MIB;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut connections = [victim.raw("web.1"), victim.raw("web.1")];
    for number in 0..REGISTRATIONS {
        for (which, web) in connections.iter_mut().enumerate() {
            let methods: Vec<String> = (0..1024)
                .map(|m| format!("m{which}.{number}.{m}"))
                .collect();
            web.send(&zmtp::message(&register(&methods), b"")).unwrap();
        }
        // The others are served in between.
        if number % 50 == 0 {
            pair.wait_for_more(1);
        }
    }
    // The last one is answered when it counts.
    let [mut other, mut web] = connections;
    flush(&mut other);
    let methods: Vec<String> = vec!["last".to_owned()];
    web.send(&zmtp::message(&register(&methods), b"")).unwrap();
    for _ in 0..=REGISTRATIONS {
        next(&mut web, "registered");
    }
    let mut db = victim.raw("db.1");
    db.send(&zmtp::message(&request(1, "web", "last"), b"q"))
        .unwrap();
    let (call, _) = next(&mut web, "request");
    web.send(&zmtp::message(&response(id(&call)), b"a"))
        .unwrap();
    next(&mut db, "response");
    // Too many, too long, none.
    for methods in [
        (0..1025).map(|m| format!("m{m}")).collect(),
        vec!["x".repeat(201)],
        vec![String::new()],
    ] {
        web.send(&zmtp::message(&register(&methods), b"")).unwrap();
    }
    flush(&mut web);
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + 2 * ONCE);
}

/// The same id again and again while its first call is under way; cancels of
/// everything; credits and parts of nothing.
#[test]
fn ids_again_and_again() {
    const MESSAGES: u64 = 20_000;
    const BOUND: u64 = SLACK;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut db = victim.raw("db.1");
    serve(&mut db, &["wait"]);
    let mut web = victim.raw("web.1");
    let bytes = |message: &dyn Fn(u64) -> Vec<u8>| {
        let all: Vec<Vec<u8>> = (0..MESSAGES).map(message).collect();
        all.concat()
    };
    let payload = [b'x'; 100];
    web.send(&bytes(&|_| {
        zmtp::message(&request(1, "db", "wait"), &payload)
    }))
    .unwrap();
    web.send(&bytes(&|number| {
        zmtp::message(&header("cancel", &[("id", pack::number(number + 2))]), b"")
    }))
    .unwrap();
    web.send(&bytes(&|number| {
        let fields = [
            ("id", pack::number(number)),
            ("bytes", pack::number(u64::from(u32::MAX))),
        ];
        zmtp::message(&header("credit", &fields), b"")
    }))
    .unwrap();
    web.send(&bytes(&|number| {
        zmtp::message(&header("part", &[("id", pack::number(number))]), &payload)
    }))
    .unwrap();
    flush(&mut web);
    // The callee got the one call there is.
    let (call, _) = next(&mut db, "request");
    db.send(&zmtp::message(&response(id(&call)), b"done"))
        .unwrap();
    let (answer, payload) = next(&mut web, "response");
    assert_eq!((id(&answer), &payload[..]), (1, &b"done"[..]));
    // Made and cancelled at once: no call stays at the callee that was not cancelled.
    let mut open = std::collections::BTreeSet::new();
    for round in 0..MESSAGES / 250 {
        for number in 0..250 {
            let own = [("id", pack::number(number))];
            let mut both = zmtp::message(&request(number, "db", "wait"), b"q");
            both.extend(zmtp::message(&header("cancel", &own), b""));
            web.send(&both).unwrap();
        }
        web.send(&zmtp::message(&request(round, "db", "wait"), b"last"))
            .unwrap();
        let last = loop {
            let mut frames = db.receive_message().unwrap();
            let header = frames[0].clone();
            match read(&header).kind() {
                "request" if frames.pop().unwrap() == b"last" => break id(&header),
                "request" => assert!(open.insert(id(&header))),
                "cancel" => assert!(open.remove(&id(&header))),
                _ => {}
            }
        };
        assert!(open.is_empty(), "{open:?}");
        db.send(&zmtp::message(&response(last), b"done")).unwrap();
        next(&mut web, "response");
    }
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + 2 * ONCE);
}

/// A callee that takes no answers' worth of calls: small payloads that each
/// were read together with much else must not keep that in memory.
#[test]
fn calls_that_nobody_answers() {
    const CALLS: u64 = 1_024;
    // The bridge's bound of one caller's bytes, as it counts them.
    const BOUND: u64 = SLACK + OF_ONE_PEER;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut web = victim.raw("web.1");
    // Nobody serves it: they wait. Between them, messages that are not kept.
    let filler = zmtp::message(&header("no such kind", &[]), &[b'x'; 63 * 1024]);
    for number in 0..CALLS {
        web.send(&zmtp::message(&request(number, "db", "wait"), &[b'x'; 100]))
            .unwrap();
        web.send(&filler).unwrap();
    }
    flush(&mut web);
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + ONCE);
}

/// A caller that never reads its answers, and says now and then that it is
/// there: what waits for it is bounded, and then it is cut off.
#[test]
fn a_caller_that_never_reads() {
    const ANSWERS: u64 = 400;
    // What waits for it; as much again on its way in (the requests), and in copies.
    const BOUND: u64 = SLACK + 2 * OF_ONE_PEER + 4 * MIB;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let memory = victim.begin_to_measure();
    let mut web = victim.raw("web.1");
    let question = vec![b'x'; 1024 * 1024];
    // Each is answered with as many bytes as it has.
    let mut cut = false;
    for number in 0..ANSWERS {
        let call = zmtp::message(&request(number, "honest-callee", "mirror"), &question);
        if web.send(&call).is_err() {
            cut = true;
            break;
        }
        pair.wait_for_more(1);
    }
    pair.finish();
    eprintln!("it was {}", if cut { "cut off" } else { "refused" });
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + ONCE);
}

/// Registered connections by the hundred of one instance: it may have 8, the
/// others are ended, and none of the files stays open.
#[test]
fn connections_of_one_instance() {
    const CONNECTIONS: usize = 300;
    const ALLOWED: usize = 8;
    // Each has queues of 8192 and 1024 places of 64 bytes, 64 KiB to read into, and state.
    const BOUND: u64 = SLACK + CONNECTIONS as u64 * 704 * 1024;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let (memory, files) = (victim.begin_to_measure(), victim.files());
    let mut all: Vec<Raw> = (0..CONNECTIONS).map(|_| victim.raw("web.1")).collect();
    for raw in &mut all {
        let _ = raw.send(&zmtp::message(&header("heartbeat", &[]), b""));
    }
    wait_for("the rest to be ended", || {
        let now = victim.files();
        (now <= files + ALLOWED)
            .then_some(())
            .ok_or(format!("{now} files, {files} before"))
    });
    drop(all);
    pair.finish();
    victim.wait_for_files(files);
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + ONCE);
}
