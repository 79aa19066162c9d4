//! What a service serves, and how often it may change that.

use super::*;

/// A registration with one method of this number.
fn serve(world: &mut World, conn: Conn, who: &str, method: u32) -> Vec<Did> {
    world.register(conn, who, &[&format!("m{method}")])
}

fn confirmed(actions: &[Did]) -> Vec<Conn> {
    let confirmed = |action: &Did| match action {
        Did::Send {
            conn,
            header: Header::Registered(_),
            ..
        } => Some(*conn),
        _ => None,
    };
    actions.iter().filter_map(confirmed).collect()
}

/// Ten changes: what may be made at once.
fn exhaust(world: &mut World, conn: Conn, who: &str) {
    for method in 0..10 {
        let actions = serve(world, conn, who, method);
        assert_eq!(
            (confirmed(&actions).len(), published(&actions).len()),
            (1, 1)
        );
    }
}

fn serves(world: &World, who: &str) -> Vec<String> {
    world.core.registrations()[who].methods.clone()
}

#[test]
fn of_changes_without_end_the_latest_counts_in_its_time() {
    let mut world = World::new();
    exhaust(&mut world, 1, "db.1");
    assert_eq!(serve(&mut world, 1, "db.1", 10), []);
    assert_eq!(serves(&world, "db.1"), ["m9"]);
    // Overtaken: it is answered, and never counts.
    for method in 11..1000 {
        let actions = serve(&mut world, 1, "db.1", method);
        assert_eq!((confirmed(&actions), actions.len()), (vec![1], 1));
    }
    // What waits is as good as there: it need not be said again.
    let beat = world.say(1, "db.1", Header::Heartbeat { registered: None });
    let registered = Some(true);
    let header = Header::Heartbeat { registered };
    assert!(matches!(&beat[..], [Did::Send { header: told, .. }] if *told == header));
    assert_eq!(world.core.next_deadline(), Some(world.now + 1000 * MS));
    assert_eq!(world.pass(999 * MS), []);
    let done = world.pass(MS);
    assert_eq!(confirmed(&done), [1]);
    assert_eq!(published(&done), [("db.1".to_owned(), true)]);
    assert_eq!(serves(&world, "db.1"), ["m999"]);
    let sent = world.say(2, "web.1", request(1, "db", "m999", 1000));
    assert_eq!(calls(&sent).len(), 1);
    assert_eq!(serve(&mut world, 1, "db.1", 0), []);
}

#[test]
fn a_minute_of_changes_is_seventy_of_them() {
    let mut world = World::new();
    let mut told = 0;
    for method in 0..6000 {
        let conn = u64::from(method) % 60 + 1;
        told += published(&serve(&mut world, conn, "db.1", method)).len();
        told += published(&world.pass(10 * MS)).len();
    }
    assert_eq!(told, 70, "of one spawn, on whatever connections");
    assert_eq!(published(&serve(&mut world, 100, "db.2", 0)).len(), 1);
}

#[test]
fn what_says_nothing_new_costs_nothing() {
    let mut world = World::new();
    serve(&mut world, 1, "db.1", 0);
    for _ in 0..100 {
        let again = world.register(1, "db.1", &["m0", "m0"]);
        assert_eq!((confirmed(&again), again.len()), (vec![1], 1));
        let only_calls = world.register(2, "db.1", &[]);
        assert_eq!((confirmed(&only_calls), only_calls.len()), (vec![2], 1));
    }
    for method in 1..10 {
        let new = serve(&mut world, 1, "db.1", method);
        assert_eq!(published(&new).len(), 1);
    }
    assert_eq!(serve(&mut world, 1, "db.1", 10), []);
    // What it says now is what counts already.
    assert_eq!(confirmed(&serve(&mut world, 1, "db.1", 9)), [1, 1]);
    assert_eq!(world.pass(10_000 * MS), []);
    assert_eq!(serves(&world, "db.1"), ["m9"]);
}

#[test]
fn an_end_takes_what_waits_along() {
    let mut world = World::new();
    exhaust(&mut world, 1, "db.1");
    serve(&mut world, 1, "db.1", 10);
    let goaway = Header::Goaway {
        reason: "".into(),
        ends: false,
    };
    let ended = world.say(1, "db.1", goaway.clone());
    assert_eq!((confirmed(&ended), published(&ended).len()), (vec![1], 1));
    assert_eq!(world.pass(5000 * MS), []);
    assert!(world.core.registrations()["db.1"].draining);

    // A connection that is lost, or another one's end.
    exhaust(&mut world, 2, "db.2");
    serve(&mut world, 3, "db.2", 10);
    world.say(2, "db.2", goaway);
    assert_eq!(confirmed(&world.pass(1000 * MS)), [3], "not its own");
    serve(&mut world, 4, "db.2", 11);
    assert_eq!(world.gone(4), []);
    assert_eq!(world.pass(1000 * MS), []);
    assert_eq!(serves(&world, "db.2"), ["m10"]);
}

#[test]
fn who_only_calls_takes_nothing_away_from_what_waits() {
    let mut world = World::new();
    exhaust(&mut world, 1, "db.1");
    serve(&mut world, 1, "db.1", 10);
    assert_eq!(confirmed(&world.register(2, "db.1", &[])), [2]);
    assert_eq!(confirmed(&world.pass(1000 * MS)), [1]);
    assert_eq!(serves(&world, "db.1"), ["m10"]);
    // Of one that has connected again, and is not there yet.
    world.gone(1);
    assert_eq!(serve(&mut world, 3, "db.1", 11), []);
    assert_eq!(confirmed(&world.register(2, "db.1", &[])), [2]);
    assert_eq!(confirmed(&world.pass(1000 * MS)), [3]);
    assert_eq!(serves(&world, "db.1"), ["m11"]);
    // What it says itself does.
    assert_eq!(serve(&mut world, 3, "db.1", 12), []);
    assert_eq!(confirmed(&world.register(3, "db.1", &[])), [3]);
    world.pass(2000 * MS);
    assert!(!world.core.registrations().contains_key("db.1"));
}

#[test]
fn a_successor_does_not_pay_for_what_was_before() {
    let mut world = World::new();
    exhaust(&mut world, 1, "db.1");
    serve(&mut world, 1, "db.1", 10);
    let next = world.say_as(2, "db.1", 2, register(&["get"]), "");
    assert_eq!((confirmed(&next), published(&next).len()), (vec![1, 2], 1));
    assert_eq!(world.pass(5000 * MS), []);
    assert_eq!(serves(&world, "db.1"), ["get"]);
}

#[test]
fn one_service_leaves_numbers_for_the_methods_of_others() {
    let mut world = World::new();
    for round in 0..9 {
        let names: Vec<String> = (0..header::MAX_METHODS)
            .map(|m| format!("{round}.{m}"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        world.register(1, "db.1", &names);
    }
    // All that it is told apart by: it calls itself.
    for call in 0..header::MAX_METHODS as u64 {
        let method = format!("8.{call}");
        let sent = calls(&world.say(2, "db.2", request(call, "db", &method, 1000)));
        world.say(1, "db.1", answer(sent[0].1));
    }
    assert_eq!(world.core.call_stats().len(), 1, "none has a number");
    world.register(3, "pricing.1", &["get"]);
    let sent = calls(&world.request(4, "web.1", 1, "pricing"));
    world.say(3, "pricing.1", answer(sent[0].1));
    assert!(world.core.call_stats().contains_key("web pricing get"));
}

#[test]
fn one_service_leaves_routes_for_the_calls_of_others() {
    let mut world = World::new();
    let names: Vec<String> = (0..header::MAX_METHODS).map(|m| format!("m{m}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.register(1, "db.1", &names);
    for name in &names {
        let sent = calls(&world.say(2, "web.1", request(1, "db", name, 1000)));
        world.say(1, "db.1", answer(sent[0].1));
    }
    assert_eq!(world.core.call_stats().len(), 256 + 1);
    let sent = calls(&world.say(3, "pricing.1", request(1, "db", "m9", 1000)));
    world.say(1, "db.1", answer(sent[0].1));
    assert!(world.core.call_stats().contains_key("pricing db m9"));
}

#[test]
fn nobody_is_sent_to_an_endpoint_elsewhere() {
    let mut world = World::new();
    world.core.direct_below(vec!["/run/bh/rpc/d".into()]);
    let register = |endpoint: &str| {
        Header::Register(Register {
            version: 1,
            methods: vec!["get".into()],
            capacity: None,
            endpoint: Some(endpoint.into()),
        })
    };
    for elsewhere in ["ipc:///run/docker.sock", "tcp://127.evil.example:1", "x"] {
        let refused = world.say(1, "db.1", register(elsewhere));
        let reason = refused.iter().find_map(|action| match action {
            Did::Send {
                header: Header::Goaway { reason, .. },
                ..
            } => Some(reason.to_string()),
            _ => None,
        });
        let reason = reason.unwrap();
        assert!(reason.starts_with("invalid_argument: "), "{reason}");
        assert!(reason.contains("loopback"), "{reason}");
        assert_eq!((confirmed(&refused), published(&refused)), (vec![], vec![]));
    }
    for here in ["ipc:///run/bh/rpc/d/1f", "tcp://127.0.0.1:7400"] {
        let taken = world.say(1, "db.1", register(here));
        assert_eq!((confirmed(&taken).len(), published(&taken).len()), (1, 1));
    }
}
