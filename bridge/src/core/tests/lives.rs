//! Connections, processes and the bridge itself come and go.

use super::*;

#[test]
fn calls_wait_for_a_callee_that_restarts() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let lost = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    let gone = world.gone(1);
    assert_eq!(published(&gone), [("db.1".to_owned(), false)]);
    assert_eq!(responses(&gone), [(2, 1, Code::Unavailable)]);
    assert_eq!(
        world.say(1, "db.1", answer(lost)),
        [],
        "the queue's rest of a lost connection"
    );

    assert_eq!(world.request(2, "web.1", 2, "db"), []);
    assert_eq!(world.request(2, "web.1", 3, "db"), []);
    world.pass(300 * MS);
    let back = world.say_as(5, "db.1", 2, register(&["get"]), "");
    let sent = calls(&back);
    assert_eq!(sent.iter().map(|call| call.0).collect::<Vec<_>>(), [5, 5]);
    assert_eq!(sent[0].2.as_ref(), b"question");
    let budgets: Vec<_> = back
        .iter()
        .filter_map(|action| match action {
            Did::Send {
                header: Header::Request(request),
                ..
            } => request.budget_ms,
            _ => None,
        })
        .collect();
    assert_eq!(budgets, [700, 700]);
    let answered = world.say_as(5, "db.1", 2, answer(sent[1].1), "");
    assert_eq!(responses(&answered), [(2, 3, Code::Ok)]);
}

#[test]
fn parked_calls_end_with_their_budget_and_are_bounded() {
    let mut world = World::new();
    for call in 0..256 {
        assert_eq!(world.request(2, "web.1", call, "db"), []);
    }
    let refused = responses(&world.request(2, "web.1", 256, "db"));
    assert_eq!(refused, [(2, 256, Code::ResourceExhausted)]);
    // Another service has its own queue.
    assert_eq!(world.request(2, "web.1", 300, "pricing"), []);
    let ended = responses(&world.pass(1000 * MS));
    assert_eq!(ended.len(), 257);
    assert!(
        ended
            .iter()
            .all(|(_, _, code)| *code == Code::DeadlineExceeded)
    );
    assert!(world.core.is_idle());
    assert_eq!(world.request(2, "web.1", 256, "db"), []);
}

#[test]
fn nothing_waits_for_what_will_not_come() {
    let mut world = World::new();
    assert_eq!(world.request(2, "web.1", 1, "db"), []);
    let hopeless = Outlook::Hopeless {
        reason: "its circuit is open".into(),
    };
    world
        .core
        .outlook(world.now, &instance("db.1"), Outlook::Coming);
    world
        .core
        .outlook(world.now, &instance("db.2"), hopeless.clone());
    assert_eq!(world.take(), []);
    world.core.outlook(world.now, &instance("db.1"), hopeless);
    assert_eq!(responses(&world.take()), [(2, 1, Code::Unavailable)]);
    assert_eq!(
        responses(&world.request(2, "web.1", 2, "db")),
        [(2, 2, Code::Unavailable)]
    );
    // Reset by an operator: waiting makes sense again.
    world
        .core
        .outlook(world.now, &instance("db.1"), Outlook::Coming);
    assert_eq!(world.request(2, "web.1", 3, "db"), []);
}

#[test]
fn before_all_is_known_calls_of_unknown_services_wait() {
    let mut world = World {
        core: Core::new(1, key()),
        now: Instant::now(),
    };
    assert_eq!(world.request(2, "web.1", 1, "db"), []);
    assert_eq!(world.request(2, "web.1", 2, "nothing"), []);
    world
        .core
        .outlook(world.now, &instance("db.1"), Outlook::Coming);
    world.core.settled(world.now);
    assert_eq!(responses(&world.take()), [(2, 2, Code::NotFound)]);
    assert_eq!(calls(&world.register(1, "db.1", &["get"])).len(), 1);
}

#[test]
fn a_caller_that_gives_up_or_goes_cancels_its_calls() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let id = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    assert_eq!(
        cancels(&world.say(2, "web.1", Header::Cancel { id: 1 })),
        [(1, id)]
    );
    let id = calls(&world.request(2, "web.1", 2, "db"))[0].1;
    world.request(2, "web.1", 3, "pricing");
    let gone = world.gone(2);
    assert_eq!(cancels(&gone), [(1, id)]);
    assert_eq!(responses(&gone), []);
    assert!(world.core.is_idle());
    assert_eq!(calls(&world.register(4, "pricing.1", &["get"])), []);
}

#[test]
fn ended_processes_are_dropped_whoever_holds_their_connection() {
    let mut world = World::new();
    world.process("db.1", 1, true);
    world.register(1, "db.1", &["get"]);
    world.request(2, "web.1", 1, "db");
    let ended = world.process("db.1", 1, false);
    assert_eq!(published(&ended), [("db.1".to_owned(), false)]);
    assert_eq!(responses(&ended), [(2, 1, Code::Unavailable)]);
    assert!(ended.contains(&Did::Disconnect(1)));
    // A forgotten child connects again with the old token.
    assert_eq!(goaways(&world.register(3, "db.1", &["get"])), 1);
    assert_eq!(
        responses(&world.request(3, "db.1", 1, "web")),
        [(3, 1, Code::PermissionDenied)]
    );
    // The successor is welcome, before or after the manager tells of it.
    let next = world.say_as(4, "db.1", 2, register(&["get"]), "");
    assert_eq!(published(&next), [("db.1".to_owned(), true)]);
    assert_eq!(world.process("db.1", 1, false), [Did::Disconnect(3)]);
    assert_eq!(world.process("db.1", 2, true), []);
    assert!(world.core.registrations().contains_key("db.1"));
}

#[test]
fn an_older_spawn_cannot_take_the_place_of_a_newer_one() {
    let mut world = World::new();
    world.say_as(1, "db.1", 5, register(&["get"]), "");
    assert_eq!(
        goaways(&world.say_as(2, "db.1", 4, register(&["get"]), "")),
        1
    );
    assert_eq!(world.core.registrations()["db.1"].generation, Generation(5));
    // Unless the manager says that the counter began anew.
    world.process("db.1", 1, true);
    assert_eq!(
        goaways(&world.say_as(3, "db.1", 1, register(&["get"]), "")),
        0
    );
}

#[test]
fn a_new_connection_takes_over_and_the_old_one_finishes() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let old = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    // The same methods: no news for others.
    assert_eq!(published(&world.register(3, "db.1", &["get"])), []);
    assert_eq!(calls(&world.request(2, "web.1", 2, "db"))[0].0, 3);
    assert_eq!(
        responses(&world.say(1, "db.1", answer(old))),
        [(2, 1, Code::Ok)]
    );
    assert_eq!(published(&world.gone(1)), []);
    assert_eq!(
        published(&world.register(3, "db.1", &["get", "put"])),
        [("db.1".to_owned(), true)]
    );
}

#[test]
fn a_silent_connection_gets_no_calls_until_it_speaks() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let beat = Header::Heartbeat { registered: None };
    world.pass(SILENCE / 2);
    let beaten = world.say(1, "db.1", beat.clone());
    assert!(matches!(
        &beaten[..],
        [Did::Send {
            header: Header::Heartbeat {
                registered: Some(true)
            },
            ..
        }]
    ));
    assert_eq!(world.pass(SILENCE / 2), []);
    world.say_as(2, "web.1", 1, request(1, "db", "get", 3_600_000), "");
    let silent = world.pass(SILENCE / 2);
    assert_eq!(published(&silent), [("db.1".to_owned(), false)]);
    assert_eq!(responses(&silent), [(2, 1, Code::Unavailable)]);
    let beaten = world.say(1, "db.1", beat);
    assert!(matches!(
        &beaten[..],
        [Did::Send {
            header: Header::Heartbeat {
                registered: Some(false)
            },
            ..
        }]
    ));
    assert_eq!(published(&world.register(1, "db.1", &["get"])).len(), 1);
}

#[test]
fn undelivered_calls_go_elsewhere_and_full_queues_are_told() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world.register(2, "db.2", &["get"]);
    let sent = world.request(3, "web.1", 1, "db");
    let [
        Did::Send {
            conn: 1,
            header,
            payload,
            what,
        },
    ] = &sent[..]
    else {
        panic!("{sent:?}")
    };
    let (frames, what) = ((header.encode().into(), payload.clone().into()), *what);
    world
        .core
        .undelivered(world.now, 1, frames, what, Undelivered::Gone);
    let moved = world.take();
    assert_eq!(published(&moved), [("db.1".to_owned(), false)]);
    let again = calls(&moved);
    assert_eq!((again[0].0, &again[0].2[..]), (2, &b"question"[..]));

    let sent = world.request(3, "web.1", 2, "db");
    let [
        Did::Send {
            header,
            payload,
            what,
            ..
        },
    ] = &sent[..]
    else {
        panic!("{sent:?}")
    };
    let (frames, what) = ((header.encode().into(), payload.clone().into()), *what);
    world
        .core
        .undelivered(world.now, 2, frames, what, Undelivered::Full);
    assert_eq!(responses(&world.take()), [(3, 2, Code::ResourceExhausted)]);
}

#[test]
fn events_that_were_missed_are_made_up_for() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world.register(2, "web.1", &[]);
    let known = world.core.known();
    world.core.retain(world.now, &known, &IdSet::from_iter([2]));
    assert_eq!(published(&world.take()), [("db.1".to_owned(), false)]);
    assert!(world.core.registrations().is_empty());
}

#[test]
fn absurd_registrations_are_refused() {
    let mut world = World::new();
    let many = vec!["m".to_owned(); header::MAX_METHODS + 1];
    let refused = world.say(
        1,
        "db.1",
        Header::Register(Register {
            methods: many,
            ..Register::default()
        }),
    );
    assert_eq!((goaways(&refused), offences(&refused)), (1, 1));
    assert_eq!(published(&refused), []);
    assert_eq!(goaways(&world.register(1, "db.1", &[""])), 1);
    assert_eq!(goaways(&world.register(1, "db.1", &[&"x".repeat(201)])), 1);
    assert!(world.core.registrations().is_empty());
    // Nor may one instance hold all the connections.
    for conn in 10..10 + 8 {
        assert_eq!(goaways(&world.register(conn, "web.1", &[])), 0);
    }
    let ended = world.register(1000, "web.1", &[]);
    assert_eq!((&ended[0], offences(&ended)), (&Did::Disconnect(1000), 1));
    assert_eq!(world.register(1001, "web.1", &[]), [Did::Disconnect(1001)]);
    world.gone(10);
    assert_eq!(goaways(&world.register(1002, "web.1", &[])), 0);
}

#[test]
fn a_payload_where_there_is_none_ends_the_connection() {
    let without = [
        register(&["get"]),
        Header::Heartbeat { registered: None },
        Header::Cancel { id: 1 },
        Header::Credit { id: 1, bytes: 1 },
        Header::Goaway {
            reason: "".into(),
            ends: false,
        },
        Header::Resolve {
            id: 1,
            service: "db".into(),
        },
    ];
    for header in without {
        let mut world = World::new();
        world.register(1, "db.1", &["get"]);
        let sent = calls(&world.request(2, "web.1", 1, "db"));
        let ended = world.say_as(1, "db.1", 1, header.clone(), "x");
        assert!(ended.contains(&Did::Disconnect(1)), "{header:?}");
        assert_eq!(offences(&ended), 1);
        assert_eq!(responses(&ended), [(2, 1, Code::Unavailable)], "at once");
        assert_eq!(world.say(1, "db.1", answer(sent[0].1)), []);
        assert!(world.core.registrations().is_empty());
    }
}

#[test]
fn connections_that_say_nothing_count_and_are_ended() {
    let mut world = World::new();
    let admit = |world: &mut World, conn: Conn| {
        let who = Credentials {
            instance: instance("web.1"),
            generation: Generation(1),
        };
        world.core.connected(world.now, conn, who)
    };
    let most = 8;
    assert!((0..most).all(|conn| admit(&mut world, conn)));
    assert!(admit(&mut world, 0), "told twice, counted once");
    assert!(!admit(&mut world, most));
    world.take();
    world.register(0, "web.1", &["get"]);
    assert_eq!(world.core.next_deadline(), Some(world.now + 30_000 * MS));
    world.now += 20_000 * MS;
    world.say(0, "web.1", Header::Heartbeat { registered: None });
    let ended = world.pass(10_000 * MS);
    let disconnected: Vec<Conn> = ended
        .iter()
        .filter_map(|did| match did {
            Did::Disconnect(conn) => Some(*conn),
            _ => None,
        })
        .collect();
    assert_eq!(disconnected, (1..most).collect::<Vec<_>>());
    assert!(world.core.knows(0));
    assert!(admit(&mut world, most + 1), "there is room again");
}

#[test]
fn further_connections_are_few_and_one_service_has_a_quarter_of_them() {
    let mut world = World::new();
    let (all, further) = (206, 40);
    world.core.connections_at_most(Room { all, further });
    let mut next = 0;
    let mut admit = |world: &mut World, who: String| {
        next += 1;
        !world
            .register(next, &who, &[])
            .contains(&Did::Disconnect(next))
    };
    // As many replicas as an operator wants: each has one.
    for index in 1..=150 {
        assert!(admit(&mut world, format!("web.{index}")), "{index}");
    }
    let more =
        |service: &'static str| (1..=20).map(move |index| format!("{service}.{}", index % 5 + 1));
    let taken = more("web").filter(|who| admit(&mut world, who.clone()));
    assert_eq!(taken.count(), 10, "a quarter is its own");
    for service in ["db", "pricing", "more"] {
        // The first of each of five, and ten others.
        let taken = more(service).filter(|who| admit(&mut world, who.clone()));
        assert_eq!(taken.count(), 15, "{service}");
    }
    assert!(admit(&mut world, "other.1".into()));
    let one_more = world.register(1000, "other.1", &[]);
    assert_eq!(
        (&one_more[0], offences(&one_more)),
        (&Did::Disconnect(1000), 1)
    );
    let another = world.register(1001, "other.1", &[]);
    assert_eq!(another, [Did::Disconnect(1001)], "told once");
    // A first one comes in until there is no room at all.
    for index in 2..=5 {
        assert!(
            !admit(&mut world, format!("other.{index}")),
            "all are there"
        );
    }
    world.gone(1);
    assert_eq!(goaways(&world.register(1002, "other.3", &[])), 0);
    assert!(world.core.knows(1002));
    // Those that go leave nothing behind.
    for conn in 1..=1002 {
        world.gone(conn);
    }
    assert!(world.core.presence.is_empty());
}

#[test]
fn an_ending_bridge_finishes_and_takes_nothing_new() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let id = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    world.request(2, "web.1", 2, "pricing");
    world.core.end();
    let ending = world.take();
    assert_eq!(goaways(&ending), 2);
    assert_eq!(responses(&ending), [(2, 2, Code::Unavailable)]);
    assert_eq!(
        responses(&world.request(2, "web.1", 3, "db")),
        [(2, 3, Code::Unavailable)]
    );
    assert!(!world.core.is_idle());
    assert_eq!(
        responses(&world.say(1, "db.1", answer(id))),
        [(2, 1, Code::Ok)]
    );
    assert!(world.core.is_idle());
}

#[test]
fn who_is_not_ready_gets_no_calls_but_those_that_mean_it() {
    let mut world = World::new();
    let say = |world: &mut World, who: &str, outlook: Outlook| {
        world.core.outlook(world.now, &instance(who), outlook);
        world.take()
    };
    world.register(1, "db.1", &["get"]);
    world.register(2, "db.2", &["get"]);
    say(&mut world, "db.1", Outlook::Unready);
    for call in 0..4 {
        assert_eq!(calls(&world.request(9, "web.1", call, "db"))[0].0, 2);
    }
    // A probe reaches it.
    assert_eq!(
        calls(&world.request(8, "process-manager.1", 1, "db.1"))[0].0,
        1
    );
    // None is ready: calls wait until one is.
    say(&mut world, "db.2", Outlook::Unready);
    assert_eq!(world.request(9, "web.1", 4, "db"), []);
    assert_eq!(calls(&say(&mut world, "db.1", Outlook::Coming))[0].0, 1);
    // Nobody judges any more.
    say(&mut world, "db.1", Outlook::Unready);
    assert_eq!(world.request(9, "web.1", 5, "db"), []);
    world.core.unjudged(world.now);
    assert_eq!(calls(&world.take()).len(), 1);
}

#[test]
fn what_the_supervisor_does_not_know_does_not_exist() {
    let mut world = World::new();
    let all = |names: &[&str]| {
        let coming = |name: &&str| (instance(name), Outlook::Coming);
        names.iter().map(coming).collect::<Vec<_>>()
    };
    // Nobody knows yet: it may come.
    assert_eq!(world.request(2, "web.1", 1, "db.99"), []);
    world
        .core
        .outlooks(world.now, all(&["web.1", "db.1", "db.2", "pricing.1"]));
    assert_eq!(responses(&world.take()), [(2, 1, Code::NotFound)]);
    assert_eq!(
        responses(&world.request(2, "web.1", 2, "db.99")),
        [(2, 2, Code::NotFound)]
    );
    assert_eq!(world.request(2, "web.1", 3, "db.2"), []);
    assert_eq!(world.request(2, "web.1", 4, "pricing"), []);
    assert_eq!(world.request(2, "web.1", 5, "db"), []);
    // They are taken away, with what waits for them.
    world.core.outlooks(world.now, all(&["web.1", "db.1"]));
    assert_eq!(
        responses(&world.take()),
        [(2, 3, Code::NotFound), (2, 4, Code::NotFound)]
    );
    // Who is there exists, whoever knows it.
    world.register(7, "db.7", &["get"]);
    assert_eq!(calls(&world.request(2, "web.1", 6, "db.7"))[0].0, 7);
    // One that is new, and nobody who knows.
    world
        .core
        .outlook(world.now, &instance("db.3"), Outlook::Coming);
    assert_eq!(world.request(2, "web.1", 7, "db.3"), []);
    world.core.unjudged(world.now);
    assert_eq!(world.request(2, "web.1", 8, "db.99"), []);
}

#[test]
fn calls_wait_for_what_the_supervisor_does_not_know_between_two_lives() {
    let mut world = World::new();
    let all = |names: &[&str]| {
        let outlook = |name: &&str| (instance(name), Outlook::Coming);
        names.iter().map(outlook).collect::<Vec<_>>()
    };
    world.core.outlooks(world.now, all(&["web.1", "db.1"]));
    world.take();
    // Known by its token alone, and by a process-manager alone.
    world.register(1, "other.1", &["get"]);
    world.process("more.1", 1, true);
    world.gone(1);
    world.process("more.1", 1, false);
    assert_eq!(responses(&world.request(9, "web.1", 1, "other")), []);
    assert_eq!(responses(&world.request(9, "web.1", 2, "other.1")), []);
    assert_eq!(responses(&world.request(9, "web.1", 3, "more")), []);
    let back = world.register(2, "other.1", &["get"]);
    assert_eq!(calls(&back).len(), 2);
    // An instance that never lived does not exist, nor one that was taken away.
    let not_found = |world: &mut World, id, who| {
        let told = responses(&world.request(9, "web.1", id, who));
        assert_eq!(told, [(9, id, Code::NotFound)], "{who}");
    };
    not_found(&mut world, 4, "other.2");
    world.register(3, "db.1", &["get"]);
    world.gone(3);
    world.core.outlooks(world.now, all(&["web.1"]));
    world.take();
    not_found(&mut world, 5, "db.1");
    not_found(&mut world, 6, "db");
}

#[test]
fn a_connection_made_while_it_was_asked_which_there_are_is_not_lost() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world.register(2, "db.2", &["get"]);
    let known = world.core.known();
    let there: IdSet<Conn> = [2].into_iter().collect();
    // Its first message was there before the list was.
    world.register(3, "web.1", &[]);
    world.core.retain(world.now, &known, &there);
    assert_eq!(published(&world.take()), [("db.1".to_owned(), false)]);
    assert!(!world.core.knows(1) && world.core.knows(2));
    let beat = world.say(3, "web.1", Header::Heartbeat { registered: None });
    assert_eq!(beat.len(), 1, "it is heard");
    assert_eq!(calls(&world.request(3, "web.1", 1, "db"))[0].0, 2);
}
