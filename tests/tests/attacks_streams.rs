//! Attacks with streamed answers: callees that send more than they may, callers
//! that ask for more than they take.
#![allow(clippy::unwrap_used, clippy::panic)]

use blackhole_bus_schema::rpc::Code;
use blackhole_bus_schema::rpc::header::Header;
use blackhole_tests::attack::bounds::{MIB, OF_ONE_PEER, ONCE, QUIET, SLACK};
use blackhole_tests::attack::service::{
    about, credit, flush, id, next, read, request, response, say, serve, stream, victim,
};
use blackhole_tests::attack::{Pair, zmtp};

/// A callee that does not care for the window: the call ends, the caller gets
/// no more than it has room for, and the next stream works.
#[test]
fn a_callee_that_floods() {
    const STREAMS: u64 = 20;
    const PARTS: u64 = 2_000;
    const PART: u64 = 1_000;
    const WINDOW: u64 = 8_000;
    const BOUND: u64 = SLACK;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let mut db = victim.raw("db.1");
    serve(&mut db, &["rows"]);
    let mut web = victim.raw("web.1");
    let memory = victim.begin_to_measure();
    let part = vec![b'x'; usize::try_from(PART).unwrap()];
    for number in 0..STREAMS {
        say(&mut web, &stream(number, "db", "rows", WINDOW), b"");
        let (call, _) = next(&mut db, "request");
        let parts: Vec<u8> = (0..PARTS)
            .flat_map(|_| zmtp::message(&about("part", id(&call)), &part))
            .collect();
        db.send(&parts).unwrap();
        let (cancel, _) = next(&mut db, "cancel");
        assert_eq!(id(&cancel), id(&call));
        let mut bytes = 0;
        loop {
            let (header, payload) = blackhole_tests::attack::service::receive(&mut web).unwrap();
            match read(&header) {
                Header::Part { .. } => bytes += payload.len() as u64,
                Header::Response(answer) => {
                    assert_eq!((answer.id, answer.code), (number, Code::ResourceExhausted));
                    break;
                }
                _ => {}
            }
        }
        assert!(bytes <= WINDOW, "{bytes} bytes for a window of {WINDOW}");
    }
    // One that keeps the rule is served by the same two.
    say(&mut web, &stream(STREAMS, "db", "rows", WINDOW), b"");
    let (call, _) = next(&mut db, "request");
    say(&mut db, &about("part", id(&call)), &part);
    say(&mut db, &response(id(&call)), b"the end");
    assert_eq!(next(&mut web, "part").1, part);
    assert_eq!(next(&mut web, "response").1, b"the end");
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + 2 * ONCE);
}

/// Parts for calls that asked for none, that are another callee's, or that are
/// over; parts that are too large.
#[test]
fn parts_of_no_stream() {
    const PARTS: u64 = 20_000;
    const BOUND: u64 = SLACK + 16 * MIB;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let mut db = victim.raw("db.1");
    serve(&mut db, &["rows"]);
    let mut forger = victim.raw("db.2");
    let mut web = victim.raw("web.1");
    let memory = victim.begin_to_measure();
    // Another one's.
    say(&mut web, &stream(1, "db", "rows", 65_536), b"");
    let (call, _) = next(&mut db, "request");
    for number in 0..PARTS {
        let near = id(&call) + number % 50;
        forger
            .send(&zmtp::message(&about("part", near), b"forged"))
            .unwrap();
    }
    flush(&mut forger);
    say(&mut db, &about("part", id(&call)), b"true");
    assert_eq!(next(&mut web, "part").1, b"true");
    say(&mut db, &response(id(&call)), b"");
    next(&mut web, "response");
    // Over.
    for _ in 0..PARTS {
        db.send(&zmtp::message(&about("part", id(&call)), b"late"))
            .unwrap();
    }
    // Larger than a part may be.
    say(&mut web, &stream(2, "db", "rows", 4 * MIB), b"");
    let (call, _) = next(&mut db, "request");
    let large = vec![b'x'; 1024 * 1024 + 1];
    say(&mut db, &about("part", id(&call)), &large);
    let (answer, _) = next(&mut web, "response");
    assert_eq!(id(&answer), 2);
    // Asked for no stream.
    say(&mut web, &request(3, "db", "rows"), b"");
    let (call, _) = next(&mut db, "request");
    say(&mut db, &about("part", id(&call)), b"unasked");
    say(&mut db, &response(id(&call)), b"");
    let (answer, payload) = next(&mut web, "response");
    assert_eq!(id(&answer), 3);
    assert_ne!(payload, b"unasked");
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + 2 * ONCE);
}

/// A caller that opens as many windows as it can, credits everything, and
/// never reads: its windows are bounded together, and what waits for it is.
#[test]
fn a_caller_that_opens_windows_and_never_reads() {
    const STREAMS: u64 = 1_000;
    const WINDOW: u64 = 4 * MIB;
    const FLOOD: u64 = 300;
    // What waits for the caller, and what the callee has sent meanwhile.
    const BOUND: u64 = SLACK + 2 * OF_ONE_PEER + 4 * MIB;
    let mut victim = victim();
    let pair = Pair::start(&victim);
    let mut db = victim.raw("db.1");
    serve(&mut db, &["rows"]);
    let mut web = victim.raw("web.1");
    let memory = victim.begin_to_measure();
    for number in 0..STREAMS {
        say(&mut web, &stream(number, "db", "rows", WINDOW), b"");
    }
    let (first, _) = next(&mut db, "request");
    let part = zmtp::message(&about("part", id(&first)), &vec![b'x'; 512 * 1024]);
    for _ in 0..FLOOD {
        // Either of them may be cut off for what it does.
        let credited = web.send(&zmtp::message(&credit(0, u64::from(u32::MAX)), b""));
        if credited.is_err() || db.send(&part).is_err() {
            break;
        }
        pair.wait_for_more(1);
    }
    pair.finish();
    victim.assert_grew_at_most(memory, BOUND);
    victim.assert_unharmed(QUIET + 3 * ONCE);
}
