//! Where a call goes, and who may answer it.

use super::*;

#[test]
fn a_call_goes_there_and_its_answer_back() {
    let mut world = World::new();
    let registered = world.register(1, "db.1", &["get"]);
    assert!(matches!(
        &registered[..],
        [
            Did::Send {
                conn: 1,
                header: Header::Registered(Registered { incarnation: 7, .. }),
                ..
            },
            Did::Publish(_)
        ]
    ));
    let sent = world.request(2, "web.1", 42, "db");
    let [
        Did::Send {
            conn: 1,
            header: Header::Request(received),
            payload,
            ..
        },
    ] = &sent[..]
    else {
        panic!("{sent:?}")
    };
    assert_eq!(payload.as_ref(), b"question");
    assert_eq!(received.method, "get");
    // Who calls is what the token proved, not what the caller says.
    assert_eq!(received.caller.as_deref(), Some("web.1"));
    assert_eq!(received.budget_ms, Some(1000));
    let id = received.id;
    assert_eq!(world.core.registrations()["db.1"].outstanding, 1);

    let back = world.say_as(1, "db.1", 1, answer(id), "result");
    let [
        Did::Send {
            conn: 2,
            header: Header::Response(response),
            payload,
            ..
        },
    ] = &back[..]
    else {
        panic!("{back:?}")
    };
    assert_eq!((response.id, response.code), (42, Code::Ok));
    assert_eq!(payload.as_ref(), b"result");
    assert!(world.core.is_idle());
    assert_eq!(world.core.registrations()["db.1"].outstanding, 0);
    let (measured, measurement) = world.core.measurements().next().unwrap();
    assert_eq!(
        (measured.caller.as_str(), measured.service.as_str()),
        ("web", "db")
    );
    assert_eq!((measurement.took_us.len(), measurement.failed), (1, 0));
}

#[test]
fn errors_come_back_with_code_and_text_and_without_payload() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let id = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    let status = Status::new(Code::FailedPrecondition, "not now");
    let back = world.say_as(
        1,
        "db.1",
        1,
        Header::Response(Response::new(id, Err(status))),
        "x",
    );
    let [
        Did::Send {
            header: Header::Response(response),
            payload,
            ..
        },
    ] = &back[..]
    else {
        panic!("{back:?}")
    };
    assert_eq!(response.code, Code::FailedPrecondition);
    assert_eq!(response.message, "not now");
    assert!(payload.is_empty());
}

#[test]
fn unknown_services_methods_and_names_are_told_apart() {
    let mut world = World::new();
    world.register(1, "db.1", &["put"]);
    assert_eq!(
        responses(&world.request(2, "web.1", 1, "nothing")),
        [(2, 1, Code::NotFound)]
    );
    assert_eq!(
        responses(&world.request(2, "web.1", 2, "db")),
        [(2, 2, Code::Unimplemented)]
    );
    assert_eq!(
        responses(&world.request(2, "web.1", 3, "../db")),
        [(2, 3, Code::InvalidArgument)]
    );
    assert!(world.core.is_idle());
}

#[test]
fn the_instance_with_the_fewest_calls_is_picked_and_equals_take_turns() {
    let mut world = World::new();
    for index in 1..=3 {
        world.register(index, &format!("db.{index}"), &["get"]);
    }
    let mut picked = Vec::new();
    let mut ids = Vec::new();
    for call in 0..6 {
        let sent = calls(&world.request(9, "web.1", call, "db"));
        picked.push(sent[0].0);
        ids.push(sent[0].1);
    }
    assert_eq!(picked, [1, 2, 3, 1, 2, 3]);
    // 2 answers twice: it has the fewest.
    world.say(2, "db.2", answer(ids[1]));
    world.say(2, "db.2", answer(ids[4]));
    assert_eq!(calls(&world.request(9, "web.1", 6, "db"))[0].0, 2);
    assert_eq!(calls(&world.request(9, "web.1", 7, "db"))[0].0, 2);
    // Draining ones are left out.
    let drained = world.say(
        2,
        "db.2",
        Header::Goaway {
            reason: "".into(),
            ends: false,
        },
    );
    assert_eq!(published(&drained), [("db.2".to_owned(), true)]);
    assert!(world.core.registrations()["db.2"].draining);
    for call in 8..20 {
        assert_ne!(calls(&world.request(9, "web.1", call, "db"))[0].0, 2);
    }
}

#[test]
fn capacity_is_kept() {
    let mut world = World::new();
    let limited = Header::Register(Register {
        methods: vec!["get".into()],
        capacity: Some(2),
        ..Register::default()
    });
    world.say(1, "db.1", limited);
    let first = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    world.request(2, "web.1", 2, "db");
    assert_eq!(
        responses(&world.request(2, "web.1", 3, "db")),
        [(2, 3, Code::ResourceExhausted)]
    );
    world.say(1, "db.1", answer(first));
    assert_eq!(calls(&world.request(2, "web.1", 4, "db")).len(), 1);
}

#[test]
fn one_caller_cannot_have_more_than_its_share_under_way() {
    let mut world = World::new();
    world.say(
        1,
        "db.1",
        Header::Register(Register {
            methods: vec!["get".into()],
            capacity: Some(MAX_CAPACITY),
            ..Register::default()
        }),
    );
    let most = MAX_CALLS as u64;
    for call in 0..most {
        assert_eq!(calls(&world.request(2, "web.1", call, "db")).len(), 1);
    }
    let refused = responses(&world.request(2, "web.1", most, "db"));
    assert_eq!(refused, [(2, most, Code::ResourceExhausted)]);
    assert_eq!(calls(&world.request(3, "web.2", 0, "db")).len(), 1);
}

#[test]
fn a_budget_ends_a_call_on_both_sides() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let id = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    assert_eq!(world.core.next_deadline(), Some(world.now + 1000 * MS));
    assert_eq!(world.pass(999 * MS), []);
    let ended = world.pass(MS);
    assert_eq!(cancels(&ended), [(1, id)]);
    assert_eq!(responses(&ended), [(2, 1, Code::DeadlineExceeded)]);
    // The late answer is nobody's fault.
    assert_eq!(world.say(1, "db.1", answer(id)), []);
    // A call without a budget has the default one; a huge one does not overflow.
    let unbounded = Request {
        id: 5,
        service: "db".into(),
        method: "get".into(),
        ..Request::default()
    };
    world.say(2, "web.1", Header::Request(unbounded));
    world.say(2, "web.1", request(6, "db", "get", u64::MAX));
    assert_eq!(responses(&world.pass(DEFAULT_BUDGET / 2)), []);
    world.say(1, "db.1", Header::Heartbeat { registered: None });
    let ended = responses(&world.pass(DEFAULT_BUDGET / 2));
    assert_eq!(ended, [(2, 5, Code::DeadlineExceeded)]);
}

#[test]
fn a_connection_answers_only_what_it_was_sent() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world.register(2, "db.2", &["get"]);
    let id = calls(&world.request(3, "web.1", 1, "db"))[0].1;
    let forged = world.say(2, "db.2", answer(id));
    assert_eq!(responses(&forged), []);
    assert_eq!(offences(&forged), 1);
    // Reported once.
    assert_eq!(offences(&world.say(2, "db.2", answer(id))), 0);
    assert_eq!(offences(&world.say(3, "web.1", answer(id + 1))), 1);
    // Answers to calls of the bridge's earlier life are late, not forged.
    assert_eq!(world.say(1, "db.1", answer((6 << 40) | 5)), []);
    assert_eq!(
        responses(&world.say(1, "db.1", answer(id))),
        [(3, 1, Code::Ok)]
    );
    // Nor can it cancel another's call.
    let id = calls(&world.request(3, "web.1", 2, "db"))[0].1;
    assert_eq!(cancels(&world.say(2, "db.2", Header::Cancel { id: 2 })), []);
    assert_eq!(cancels(&world.say(2, "db.2", Header::Cancel { id })), []);
}

#[test]
fn an_id_under_way_cannot_be_used_again() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let id = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    let again = world.request(2, "web.1", 1, "db");
    assert_eq!((calls(&again).len(), offences(&again)), (0, 1));
    assert_eq!(
        responses(&world.say(1, "db.1", answer(id))),
        [(2, 1, Code::Ok)]
    );
    assert_eq!(calls(&world.request(2, "web.1", 1, "db")).len(), 1);
}

#[test]
fn resolve_tells_own_endpoints() {
    let mut world = World::new();
    let with_endpoint = |endpoint: &str| {
        Header::Register(Register {
            endpoint: Some(endpoint.into()),
            ..Register::default()
        })
    };
    world.say(1, "db.1", with_endpoint("tcp://127.0.0.1:1"));
    world.register(2, "db.2", &["get"]);
    let told = world.say(
        3,
        "web.1",
        Header::Resolve {
            id: 4,
            service: "db".into(),
        },
    );
    let [
        Did::Send {
            conn: 3,
            header: Header::Response(response),
            ..
        },
    ] = &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!((response.id, response.code), (4, Code::Ok));
    assert_eq!(response.endpoints.len(), 1);
    assert_eq!(response.endpoints[0].endpoint, "tcp://127.0.0.1:1");
    let unknown = world.say(
        3,
        "web.1",
        Header::Resolve {
            id: 5,
            service: "x".into(),
        },
    );
    assert_eq!(responses(&unknown), [(3, 5, Code::NotFound)]);
}

#[test]
fn one_instance_can_be_meant() {
    let mut world = World::new();
    for index in 1..=3 {
        world.register(index, &format!("db.{index}"), &["get"]);
    }
    for call in 0..3 {
        assert_eq!(calls(&world.request(9, "web.1", call, "db.3"))[0].0, 3);
    }
    // It is waited for, whoever else is there.
    assert_eq!(world.request(9, "web.1", 3, "db.4"), []);
    assert_eq!(calls(&world.register(5, "db.5", &["get"])), []);
    assert_eq!(calls(&world.register(4, "db.4", &["get"])).len(), 1);
    let hopeless = Outlook::Hopeless {
        reason: "it is stopped".into(),
    };
    assert_eq!(world.request(9, "web.1", 4, "db.6"), []);
    world.core.outlook(world.now, &instance("db.6"), hopeless);
    assert_eq!(responses(&world.take()), [(9, 4, Code::Unavailable)]);
    assert_eq!(
        responses(&world.request(9, "web.1", 5, "db.x")),
        [(9, 5, Code::InvalidArgument)]
    );
}

#[test]
fn payloads_under_way_are_bounded() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let big = "x".repeat(16 * 1024 * 1024).leak();
    let mut sent = Vec::new();
    for id in 0..4 {
        let header = request(id, "db", "get", 1000);
        sent.extend(calls(&world.say_as(2, "web.1", 1, header, big)));
    }
    assert_eq!(sent.len(), 4);
    let refused = world.request(2, "web.1", 4, "db");
    assert_eq!(responses(&refused), [(2, 4, Code::ResourceExhausted)]);
    assert_eq!(calls(&world.request(3, "web.2", 0, "db")).len(), 1);
    world.say(1, "db.1", answer(sent[0].1));
    assert_eq!(calls(&world.request(2, "web.1", 5, "db")).len(), 1);
}

#[test]
fn a_call_that_is_cancelled_before_it_left_never_leaves() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world.request(2, "web.1", 9, "db");
    let say = |world: &mut World, header: Header<'_>| {
        world.core.message(world.now, 2, header, Frame::new());
    };
    // In one burst of messages, as after the bridge was stopped for a while.
    say(&mut world, request(1, "db", "get", 1000));
    say(&mut world, request(2, "db", "get", 1000));
    say(&mut world, Header::Cancel { id: 1 });
    say(&mut world, Header::Cancel { id: 9 });
    let told = world.take();
    assert_eq!((calls(&told).len(), cancels(&told).len()), (1, 1));
    let other = calls(&told)[0].1;
    assert_eq!(
        responses(&world.say(1, "db.1", answer(other))),
        [(2, 2, Code::Ok)]
    );
    assert!(world.core.is_idle());
}

#[test]
fn others_come_first_after_an_instance_has_said_that_it_is_full() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world.register(2, "db.2", &["get"]);
    let full = |id| {
        let status = Err(Status::new(
            Code::ResourceExhausted,
            "works on 8 direct calls",
        ));
        Header::Response(Response::new(id, status))
    };
    // It refuses at once, and so has the fewest calls; the other one works.
    let mut refused = 0;
    for call in 0..20 {
        let sent = calls(&world.request(9, "web.1", call, "db"));
        let (to, id, _) = sent[0];
        if to == 1 {
            refused += 1;
            let told = world.say(1, "db.1", full(id));
            assert_eq!(responses(&told), [(9, call, Code::ResourceExhausted)]);
        }
    }
    assert_eq!(refused, 1);
    // By its name it is meant all the same, and where there is no other it is asked.
    let sent = calls(&world.request(9, "web.1", 100, "db.1"));
    assert_eq!(sent[0].0, 1);
    world.say(1, "db.1", full(sent[0].1));
    world.gone(2);
    let sent = calls(&world.request(9, "web.1", 101, "db"));
    assert_eq!(sent[0].0, 1);
    // Soon it has room again.
    world.say(1, "db.1", full(sent[0].1));
    world.register(3, "db.3", &["get"]);
    assert_eq!(calls(&world.request(9, "web.1", 102, "db"))[0].0, 3);
    world.pass(50 * MS);
    assert_eq!(calls(&world.request(9, "web.1", 103, "db"))[0].0, 1);
}
