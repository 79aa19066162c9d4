//! Streamed answers.

use super::*;

fn stream(world: &mut World, conn: Conn, id: u64, window: u32) -> u64 {
    let header = Header::Request(Request {
        id,
        service: "db".into(),
        method: "get".into(),
        window: Some(window),
        trace: Some("00-1-2-01".into()),
        ..Request::default()
    });
    let sent = world.say(conn, "web.1", header);
    calls(&sent)[0].1
}

fn part(world: &mut World, conn: Conn, id: u64, bytes: usize) -> Vec<Did> {
    let payload = &*"x".repeat(bytes).leak();
    world.say_as(conn, "db.1", 1, Header::Part { id }, payload)
}

fn world() -> World {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world
}

#[test]
fn parts_go_to_the_caller_and_credit_to_the_callee() {
    let mut world = world();
    let header = Header::Request(Request {
        id: 4,
        service: "db".into(),
        method: "get".into(),
        window: Some(u32::MAX),
        trace: Some("00-1-2-01".into()),
        ..Request::default()
    });
    let sent = world.say(2, "web.1", header);
    let [
        Did::Send {
            header: Header::Request(received),
            ..
        },
    ] = &sent[..]
    else {
        panic!("{sent:?}")
    };
    assert_eq!(received.window, Some(header::MAX_WINDOW));
    assert_eq!(received.trace.as_deref(), Some("00-1-2-01"));
    let id = received.id;
    assert_eq!(parts(&part(&mut world, 1, id, 100)), [(2, 4, 100)]);
    assert_eq!(parts(&part(&mut world, 1, id, 0)), [(2, 4, 0)]);
    let credit =
        |world: &mut World, bytes| credits(&world.say(2, "web.1", Header::Credit { id: 4, bytes }));
    assert_eq!(credit(&mut world, 60), [(1, id, 60)]);
    // More than is out is not passed on.
    assert_eq!(credit(&mut world, 1000), [(1, id, 40)]);
    assert_eq!(credit(&mut world, 1000), []);
    let end = world.say_as(1, "db.1", 1, answer(id), "last");
    assert_eq!(responses(&end), [(2, 4, Code::Ok)]);
    // What comes after the end is late and nobody's fault.
    assert_eq!(part(&mut world, 1, id, 1), []);
    assert_eq!(credit(&mut world, 10), []);
    assert!(world.core.is_idle());
}

#[test]
fn who_streams_beyond_the_window_is_cut_off() {
    let mut world = world();
    let id = stream(&mut world, 2, 1, 100);
    let other = stream(&mut world, 3, 1, 100);
    part(&mut world, 1, id, 60);
    part(&mut world, 1, id, 40);
    let over = part(&mut world, 1, id, 1);
    assert_eq!(parts(&over), []);
    assert_eq!(responses(&over), [(2, 1, Code::ResourceExhausted)]);
    assert_eq!((cancels(&over), offences(&over)), (vec![(1, id)], 1));
    // The other caller has nothing of it.
    assert_eq!(parts(&part(&mut world, 1, other, 100)), [(3, 1, 100)]);
    // Many small parts are too many as well.
    let id = stream(&mut world, 2, 2, header::MAX_WINDOW);
    for _ in 0..header::MAX_PARTS {
        assert_eq!(parts(&part(&mut world, 1, id, 0)).len(), 1);
    }
    let over = part(&mut world, 1, id, 0);
    assert_eq!(responses(&over), [(2, 2, Code::ResourceExhausted)]);
    // And too large ones.
    let id = stream(&mut world, 2, 3, header::MAX_WINDOW);
    let over = part(&mut world, 1, id, header::MAX_PART_BYTES + 1);
    assert_eq!(responses(&over), [(2, 3, Code::ResourceExhausted)]);
}

#[test]
fn credit_makes_room_for_parts_as_well() {
    let mut world = world();
    let id = stream(&mut world, 2, 1, header::MAX_WINDOW);
    for _ in 0..3 * header::MAX_PARTS {
        assert_eq!(parts(&part(&mut world, 1, id, 2)).len(), 1);
        // In halves: parts are acknowledged by bytes.
        for _ in 0..2 {
            world.say(2, "web.1", Header::Credit { id: 1, bytes: 1 });
        }
    }
    assert!(!world.core.is_idle());
}

#[test]
fn a_call_without_a_window_is_not_streamed() {
    let mut world = world();
    for window in [None, Some(0)] {
        let header = Header::Request(Request {
            id: 9,
            service: "db".into(),
            method: "get".into(),
            window,
            ..Request::default()
        });
        let id = calls(&world.say(2, "web.1", header))[0].1;
        let ended = part(&mut world, 1, id, 1);
        assert_eq!(responses(&ended), [(2, 9, Code::Internal)]);
        assert_eq!(cancels(&ended), [(1, id)]);
    }
}

#[test]
fn only_the_callee_streams_and_only_the_caller_gives_credit() {
    let mut world = world();
    world.register(4, "db.2", &[]);
    let id = stream(&mut world, 2, 1, 100);
    let forged = world.say_as(4, "db.2", 1, Header::Part { id }, "x");
    assert_eq!((parts(&forged), offences(&forged)), (vec![], 1));
    part(&mut world, 1, id, 50);
    for forger in [1, 4] {
        let credit = Header::Credit { id: 1, bytes: 50 };
        assert_eq!(credits(&world.say(forger, "db.2", credit)), []);
        let credit = Header::Credit { id, bytes: 50 };
        assert_eq!(credits(&world.say(forger, "db.2", credit)), []);
    }
}

#[test]
fn a_stream_ends_with_either_side_and_its_budget() {
    let mut world = world();
    let id = stream(&mut world, 2, 1, 100);
    part(&mut world, 1, id, 50);
    assert_eq!(cancels(&world.gone(2)), [(1, id)]);
    assert_eq!(part(&mut world, 1, id, 10), []);
    let id = stream(&mut world, 3, 1, 100);
    let cancelled = world.say(3, "web.1", Header::Cancel { id: 1 });
    assert_eq!(cancels(&cancelled), [(1, id)]);
    stream(&mut world, 3, 2, 100);
    assert_eq!(responses(&world.gone(1)), [(3, 2, Code::Unavailable)]);
    world.say_as(5, "db.1", 2, register(&["get"]), "");
    let id = stream(&mut world, 3, 3, 100);
    let ended = world.pass(DEFAULT_BUDGET);
    assert_eq!(cancels(&ended), [(5, id)]);
    assert_eq!(responses(&ended), [(3, 3, Code::DeadlineExceeded)]);
    assert!(world.core.is_idle());
}

#[test]
fn windows_count_against_the_caller() {
    let mut world = world();
    for id in 0..16 {
        stream(&mut world, 2, id, header::MAX_WINDOW);
    }
    let header = Header::Request(Request {
        id: 99,
        service: "db".into(),
        method: "get".into(),
        window: Some(1024),
        ..Request::default()
    });
    let refused = world.say(2, "web.1", header);
    assert_eq!(responses(&refused), [(2, 99, Code::ResourceExhausted)]);
    world.say(2, "web.1", Header::Cancel { id: 3 });
    stream(&mut world, 2, 100, header::MAX_WINDOW / 2);
}

#[test]
fn who_does_not_read_its_answers_is_disconnected() {
    let mut world = world();
    let mine = stream(&mut world, 2, 1, 100);
    let theirs = stream(&mut world, 3, 1, 100);
    let undelivered = |world: &mut World, conn, what, why| {
        world
            .core
            .undelivered(world.now, conn, Default::default(), what, why);
        world.take()
    };
    let lost = undelivered(&mut world, 2, What::Part(mine), Undelivered::Full);
    assert_eq!((offences(&lost), cancels(&lost)), (1, vec![(1, mine)]));
    assert!(lost.contains(&Did::Disconnect(2)));
    // Where all have too much together, only what does not fit is dropped.
    let full = undelivered(&mut world, 3, What::Part(theirs), Undelivered::NoRoom);
    assert_eq!(responses(&full), [(3, 1, Code::ResourceExhausted)]);
    assert_eq!((offences(&full), cancels(&full)), (0, vec![(1, theirs)]));
    let full = undelivered(&mut world, 3, What::Response(7), Undelivered::NoRoom);
    assert_eq!(responses(&full), [(3, 7, Code::ResourceExhausted)]);
}
