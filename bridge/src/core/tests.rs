use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::rpc::header::{Register, Request};
use blackhole_bus_schema::rpc::{DEFAULT_BUDGET, MAX_CALLS};
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A bridge in virtual time, and what came out of it.
struct World {
    core: Core,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let mut core = Core::new(7);
        let now = Instant::now();
        core.configured(["web", "db", "pricing"].map(service));
        core.settled(now);
        Self { core, now }
    }

    fn say(&mut self, conn: Conn, who: &str, header: Header) -> Vec<Action> {
        self.say_as(conn, who, 1, header, "")
    }

    fn say_as(
        &mut self,
        conn: Conn,
        who: &str,
        generation: u64,
        header: Header,
        payload: &'static str,
    ) -> Vec<Action> {
        let who = Credentials {
            instance: instance(who),
            generation: Generation(generation),
        };
        let sender = Sender {
            conn,
            route: route(conn),
            who,
        };
        self.core.message(
            self.now,
            sender,
            header,
            Bytes::from_static(payload.as_bytes()),
        );
        self.core.take_actions()
    }

    fn register(&mut self, conn: Conn, who: &str, methods: &[&str]) -> Vec<Action> {
        self.say(conn, who, register(methods))
    }

    fn request(&mut self, conn: Conn, who: &str, id: u64, service: &str) -> Vec<Action> {
        self.say_as(conn, who, 1, request(id, service, "get", 1000), "question")
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.core.tick(self.now);
        self.core.take_actions()
    }

    fn gone(&mut self, conn: Conn) -> Vec<Action> {
        self.core.disconnected(self.now, conn);
        self.core.take_actions()
    }

    fn process(&mut self, who: &str, generation: u64, live: bool) -> Vec<Action> {
        let report = ProcessReport {
            instance: instance(who),
            generation: Generation(generation),
            live,
        };
        self.core.process(self.now, report);
        self.core.take_actions()
    }
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn instance(name: &str) -> InstanceName {
    name.parse().unwrap()
}

fn route(conn: Conn) -> Bytes {
    Bytes::copy_from_slice(&conn.to_be_bytes())
}

fn register(methods: &[&str]) -> Header {
    Header::Register(Register {
        version: 1,
        methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        capacity: None,
        endpoint: None,
    })
}

fn request(id: u64, service: &str, method: &str, budget_ms: u64) -> Header {
    Header::Request(Request {
        id,
        service: service.to_owned(),
        method: method.to_owned(),
        budget_ms: Some(budget_ms),
        caller: Some(instance("liar.1")),
    })
}

fn answer(id: u64) -> Header {
    Header::Response(Response::new(id, Ok(())))
}

/// The calls among the actions: (to, id, payload).
fn calls(actions: &[Action]) -> Vec<(Conn, u64, Bytes)> {
    let call = |action: &Action| match action {
        Action::Send {
            conn,
            header: Header::Request(request),
            payload,
            ..
        } => Some((*conn, request.id, payload.clone())),
        _ => None,
    };
    actions.iter().filter_map(call).collect()
}

/// The responses among the actions: (to, id, code).
fn responses(actions: &[Action]) -> Vec<(Conn, u64, Code)> {
    let response = |action: &Action| match action {
        Action::Send {
            conn,
            header: Header::Response(response),
            ..
        } => Some((*conn, response.id, response.code)),
        _ => None,
    };
    actions.iter().filter_map(response).collect()
}

fn cancels(actions: &[Action]) -> Vec<(Conn, u64)> {
    let cancel = |action: &Action| match action {
        Action::Send {
            conn,
            header: Header::Cancel { id },
            ..
        } => Some((*conn, *id)),
        _ => None,
    };
    actions.iter().filter_map(cancel).collect()
}

fn published(actions: &[Action]) -> Vec<(String, bool)> {
    let change = |action: &Action| match action {
        Action::Publish(changed) => {
            Some((changed.instance.to_string(), changed.registration.is_some()))
        }
        _ => None,
    };
    actions.iter().filter_map(change).collect()
}

fn offences(actions: &[Action]) -> usize {
    actions
        .iter()
        .filter(|action| matches!(action, Action::Offence { .. }))
        .count()
}

fn goaways(actions: &[Action]) -> usize {
    let goaway = |action: &&Action| {
        matches!(
            action,
            Action::Send {
                header: Header::Goaway { .. },
                ..
            }
        )
    };
    actions.iter().filter(goaway).count()
}

#[test]
fn a_call_goes_there_and_its_answer_back() {
    let mut world = World::new();
    let registered = world.register(1, "db.1", &["get"]);
    assert!(matches!(
        &registered[..],
        [
            Action::Send {
                conn: 1,
                header: Header::Registered(Registered { incarnation: 7, .. }),
                ..
            },
            Action::Publish(_)
        ]
    ));
    let sent = world.request(2, "web.1", 42, "db");
    let [
        Action::Send {
            conn: 1,
            route: to,
            header: Header::Request(received),
            payload,
        },
    ] = &sent[..]
    else {
        panic!("{sent:?}")
    };
    assert_eq!(*to, route(1));
    assert_eq!(&payload[..], b"question");
    assert_eq!(received.method, "get");
    // Who calls is what the token proved, not what the caller says.
    assert_eq!(received.caller, Some(instance("web.1")));
    assert_eq!(received.budget_ms, Some(1000));
    let id = received.id;
    assert_eq!(world.core.registrations()["db.1"].outstanding, 1);

    let back = world.say_as(1, "db.1", 1, answer(id), "result");
    let [
        Action::Send {
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
    assert_eq!(&payload[..], b"result");
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
        Action::Send {
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
            reason: String::new(),
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
        budget_ms: None,
        caller: None,
    };
    world.say(2, "web.1", Header::Request(unbounded));
    world.say(2, "web.1", request(6, "db", "get", u64::MAX));
    assert_eq!(
        responses(&world.pass(DEFAULT_BUDGET)),
        [(2, 5, Code::DeadlineExceeded)]
    );
}

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
    assert_eq!(&sent[0].2[..], b"question");
    let budgets: Vec<_> = back
        .iter()
        .filter_map(|action| match action {
            Action::Send {
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
    assert_eq!(world.core.take_actions(), []);
    world.core.outlook(world.now, &instance("db.1"), hopeless);
    assert_eq!(
        responses(&world.core.take_actions()),
        [(2, 1, Code::Unavailable)]
    );
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
        core: Core::new(1),
        now: Instant::now(),
    };
    assert_eq!(world.request(2, "web.1", 1, "db"), []);
    assert_eq!(world.request(2, "web.1", 2, "nothing"), []);
    world
        .core
        .outlook(world.now, &instance("db.1"), Outlook::Coming);
    world.core.settled(world.now);
    assert_eq!(
        responses(&world.core.take_actions()),
        [(2, 2, Code::NotFound)]
    );
    assert_eq!(calls(&world.register(1, "db.1", &["get"])).len(), 1);
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
    assert_eq!(world.say(1, "db.1", answer((6 << 32) | 5)), []);
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
    assert!(ended.contains(&Action::Disconnect(1)));
    // A forgotten child connects again with the old token.
    assert_eq!(goaways(&world.register(3, "db.1", &["get"])), 1);
    assert_eq!(
        responses(&world.request(3, "db.1", 1, "web")),
        [(3, 1, Code::PermissionDenied)]
    );
    // The successor is welcome, before or after the manager tells of it.
    let next = world.say_as(4, "db.1", 2, register(&["get"]), "");
    assert_eq!(published(&next), [("db.1".to_owned(), true)]);
    assert_eq!(world.process("db.1", 1, false), [Action::Disconnect(3)]);
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
        [Action::Send {
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
        [Action::Send {
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
        Action::Send {
            conn: 1,
            header,
            payload,
            ..
        },
    ] = &sent[..]
    else {
        panic!("{sent:?}")
    };
    let (header, payload) = (header.clone(), payload.clone());
    world
        .core
        .undelivered(world.now, 1, header, payload, Undelivered::Gone);
    let moved = world.core.take_actions();
    assert_eq!(published(&moved), [("db.1".to_owned(), false)]);
    let again = calls(&moved);
    assert_eq!((again[0].0, &again[0].2[..]), (2, &b"question"[..]));

    let sent = world.request(3, "web.1", 2, "db");
    let [
        Action::Send {
            header, payload, ..
        },
    ] = &sent[..]
    else {
        panic!("{sent:?}")
    };
    let (header, payload) = (header.clone(), payload.clone());
    world
        .core
        .undelivered(world.now, 2, header, payload, Undelivered::Full);
    assert_eq!(
        responses(&world.core.take_actions()),
        [(3, 2, Code::ResourceExhausted)]
    );
}

#[test]
fn events_that_were_missed_are_made_up_for() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world.register(2, "web.1", &[]);
    world.core.retain(world.now, &HashSet::from([2]));
    assert_eq!(
        published(&world.core.take_actions()),
        [("db.1".to_owned(), false)]
    );
    assert!(world.core.registrations().is_empty());
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
        Action::Send {
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
    for conn in 10..10 + CONNECTIONS_OF_ONE as u64 {
        assert_eq!(goaways(&world.register(conn, "web.1", &[])), 0);
    }
    assert_eq!(
        world.register(1000, "web.1", &[]),
        [Action::Disconnect(1000)]
    );
}

#[test]
fn an_ending_bridge_finishes_and_takes_nothing_new() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let id = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    world.request(2, "web.1", 2, "pricing");
    world.core.end();
    let ending = world.core.take_actions();
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

/// What may happen to a bridge.
#[derive(Debug, Clone)]
enum Event {
    Register(Conn, bool),
    Request(Conn, u64, usize, u64),
    Answer(Conn, usize),
    Cancel(Conn, u64),
    Gone(Conn),
    Process(usize, u64, bool),
    Pass(u64),
    Undelivered(usize, bool),
}

fn event() -> impl Strategy<Value = Event> {
    let conn = 1..6_u64;
    prop_oneof![
        (conn.clone(), any::<bool>()).prop_map(|(conn, serve)| Event::Register(conn, serve)),
        (conn.clone(), 0..20_u64, 0..4_usize, 0..500_u64)
            .prop_map(|(conn, id, service, budget)| Event::Request(conn, id, service, budget)),
        (conn.clone(), any::<usize>()).prop_map(|(conn, which)| Event::Answer(conn, which)),
        (conn.clone(), 0..20_u64).prop_map(|(conn, id)| Event::Cancel(conn, id)),
        conn.prop_map(Event::Gone),
        (0..3_usize, 0..4_u64, any::<bool>())
            .prop_map(|(service, generation, live)| Event::Process(service, generation, live)),
        (0..400_u64).prop_map(Event::Pass),
        (any::<usize>(), any::<bool>()).prop_map(|(which, full)| Event::Undelivered(which, full)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: each request is answered at most once and, if its
    /// caller stays, exactly once by the time its budget has passed; only the
    /// callee's answer is taken; nothing is left at the end.
    #[test]
    fn every_call_is_answered_once(events in proptest::collection::vec(event(), 1..120)) {
        const SERVICES: [&str; 4] = ["web", "db", "pricing", "unknown"];
        let mut world = World::new();
        // Each connection number stands for a series of connections.
        let mut epoch = [0_u64; 8];
        let real = |epoch: &[u64; 8], conn: Conn| conn * 1000 + epoch[conn as usize];
        let name = |conn: Conn| format!("{}.{conn}", SERVICES[conn as usize % 3]);
        let mut open: HashMap<(Conn, u64), ()> = HashMap::new();
        let mut under_way: BTreeMap<u64, Conn> = BTreeMap::new();
        let mut last_sent: Vec<Action> = Vec::new();
        for event in events {
            let actions = match event {
                Event::Register(conn, serve) => {
                    let methods: &[&str] = if serve { &["get"] } else { &[] };
                    world.register(real(&epoch, conn), &name(conn), methods)
                }
                Event::Request(conn, id, service, budget) => {
                    let conn_now = real(&epoch, conn);
                    let already = open.insert((conn_now, id), ()).is_some();
                    let header = request(id, SERVICES[service], "get", budget);
                    let actions = world.say_as(conn_now, &name(conn), 1, header, "q");
                    if already {
                        prop_assert!(responses(&actions).is_empty());
                    }
                    actions
                }
                Event::Answer(conn, which) if !under_way.is_empty() => {
                    let (id, callee) = under_way
                        .iter()
                        .nth(which % under_way.len())
                        .map(|(id, callee)| (*id, *callee))
                        .unwrap();
                    let conn = real(&epoch, conn);
                    let who = name(conn / 1000);
                    let actions = world.say(conn, &who, answer(id));
                    if callee != conn {
                        prop_assert!(responses(&actions).is_empty(), "a forged answer was taken");
                    }
                    actions
                }
                Event::Cancel(conn, id) => {
                    let conn_now = real(&epoch, conn);
                    open.remove(&(conn_now, id));
                    world.say(conn_now, &name(conn), Header::Cancel { id })
                }
                Event::Gone(conn) => {
                    let conn_now = real(&epoch, conn);
                    epoch[conn as usize] += 1;
                    open.retain(|(caller, _), ()| *caller != conn_now);
                    world.gone(conn_now)
                }
                Event::Process(service, generation, live) => {
                    world.process(&format!("{}.{}", SERVICES[service], service + 1), generation, live)
                }
                Event::Pass(ms) => world.pass(Duration::from_millis(ms)),
                Event::Undelivered(which, full) if !last_sent.is_empty() => {
                    let Action::Send { conn, header, payload, .. } =
                        last_sent[which % last_sent.len()].clone()
                    else {
                        continue;
                    };
                    let why = if full { Undelivered::Full } else { Undelivered::Gone };
                    if !full {
                        epoch[(conn / 1000) as usize] += 1;
                        open.retain(|(caller, _), ()| *caller != conn);
                    }
                    world.core.undelivered(world.now, conn, header, payload, why);
                    world.core.take_actions()
                }
                _ => continue,
            };
            for (conn, id, _) in responses(&actions) {
                prop_assert!(open.remove(&(conn, id)).is_some(), "answered twice, or never asked");
            }
            for action in &actions {
                if let Action::Disconnect(conn) = action {
                    epoch[(*conn / 1000) as usize] += 1;
                    open.retain(|(caller, _), ()| caller != conn);
                }
            }
            under_way.extend(calls(&actions).iter().map(|(conn, id, _)| (*id, *conn)));
            last_sent = actions
                .into_iter()
                .filter(|action| matches!(action, Action::Send { header: Header::Request(_), .. }))
                .collect();
        }
        let ended = world.pass(Duration::from_secs(3600));
        for (conn, id, _) in responses(&ended) {
            prop_assert!(open.remove(&(conn, id)).is_some());
        }
        prop_assert!(world.core.is_idle());
        // Requests of connections that the core saw as gone were cancelled with them.
        open.retain(|(conn, _), ()| world.core.connections.contains_key(conn));
        prop_assert!(open.is_empty(), "never answered: {open:?}");
        prop_assert!(world.core.connections.values().all(|c| c.working_on.is_empty() && c.made.is_empty()));
    }
}
