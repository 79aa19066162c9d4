//! One service, however many connections it has, leaves room for the others.

use super::*;

const BIG: u32 = header::MAX_WINDOW;

fn serve(world: &mut World, conn: Conn, who: &str) {
    let register = Register {
        version: 1,
        methods: vec!["get".into()],
        capacity: Some(MAX_CAPACITY),
        endpoint: None,
    };
    world.say(conn, who, Header::Register(register));
}

fn window(id: u64, window: u32) -> Header<'static> {
    Header::Request(Request {
        id,
        service: "db".into(),
        method: "get".into(),
        budget_ms: Some(u64::MAX),
        window: Some(window),
        ..Request::default()
    })
}

fn refused(actions: &[Did]) -> bool {
    responses(actions)
        .iter()
        .any(|(_, _, code)| *code == Code::ResourceExhausted)
}

#[test]
fn a_service_with_many_connections_and_streams_leaves_room() {
    let mut world = World::new();
    serve(&mut world, 1, "db.1");
    let mut sent = Vec::new();
    for conn in 10..18 {
        for id in 0..16 {
            let who = format!("web.{}", conn % 2 + 1);
            sent.extend(calls(&world.say(conn, &who, window(id, BIG))));
        }
    }
    // A quarter of 512 MiB.
    assert_eq!(sent.len(), 32);
    assert!(
        refused(&world.request(30, "web.3", 1, "db")),
        "not a byte more"
    );
    // Another service has as much as ever.
    for id in 0..16 {
        assert_eq!(calls(&world.say(20, "pricing.1", window(id, BIG))).len(), 1);
    }
    // What is over counts no more, however it ended.
    world.say(1, "db.1", answer(sent[0].1));
    assert_eq!(calls(&world.say(30, "web.3", window(1, BIG))).len(), 1);
    assert!(refused(&world.say(30, "web.3", window(2, BIG))));
    world.gone(10);
    let room = (0..16).filter(|id| calls(&world.say(31, "web.4", window(10 + id, BIG))).len() == 1);
    assert_eq!(
        room.count(),
        15,
        "those of the lost connection, less the answered one"
    );
}

#[test]
fn a_service_has_a_quarter_of_the_calls() {
    let mut world = World::new();
    for conn in 1..=20 {
        serve(&mut world, conn, &format!("db.{conn}"));
    }
    let mut taken = 0;
    for conn in 100..132 {
        for id in 0..MAX_CALLS as u64 {
            let who = format!("web.{}", conn % 4 + 1);
            taken += calls(&world.say(conn, &who, window(id, 1))).len();
        }
    }
    assert_eq!(taken, 65_536 / 4);
    assert_eq!(calls(&world.request(200, "pricing.1", 1, "db")).len(), 1);
}

#[test]
fn a_service_has_a_quarter_of_the_calls_that_wait() {
    let mut world = World::new();
    let mut waiting = 0;
    for conn in 10..18 {
        for id in 0..100 {
            waiting += usize::from(!refused(&world.say(conn, "web.1", window(id, 1))));
        }
    }
    assert_eq!(waiting, 256);
    // For another service it may wait too, and others for this one.
    assert_eq!(world.request(10, "web.1", 1000, "pricing"), []);
    for id in 0..256 {
        assert_eq!(world.say(20, "pricing.1", window(id, 1)), []);
    }
    // Bytes of all the services that are waited for.
    let mib = "x".repeat(1024 * 1024).leak();
    let mut world = World::new();
    let mut waiting = 0;
    for conn in 10..14 {
        for id in 0..16 {
            let to = ["db", "pricing"][id as usize % 2];
            let header = request(id, to, "get", 1000);
            waiting += usize::from(!refused(&world.say_as(conn, "web.1", 1, header, mib)));
        }
    }
    assert_eq!(waiting, 16);
    let header = request(1, "db", "get", 1000);
    assert_eq!(world.say_as(20, "pricing.1", 1, header, mib), []);
    // They are sent, or their time is over: there is room again.
    assert_eq!(responses(&world.pass(1000 * MS)).len(), 17);
    let header = request(1, "db", "get", 1000);
    assert_eq!(world.say_as(10, "web.1", 1, header, mib), []);
    serve(&mut world, 1, "db.1");
    for id in 2..17 {
        assert_eq!(
            calls(&world.say_as(10, "web.1", 1, request(id, "db", "get", 1000), mib)).len(),
            1
        );
    }
    let header = request(1, "pricing", "get", 1000);
    assert_eq!(world.say_as(11, "web.1", 1, header, mib), []);
}
