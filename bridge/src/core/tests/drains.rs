//! Instances that are to be stopped lose no call.

use super::*;

fn drain(world: &mut World, ticket: u64, who: &str, generation: u64, within: Duration) {
    let generation = Generation(generation);
    world
        .core
        .drain(world.now, ticket, instance(who), generation, within);
}

fn drained(actions: &[Did]) -> Vec<(u64, bool, u32)> {
    let ended = |action: &Did| match action {
        Did::Drained { ticket, result } => Some((*ticket, result.registered, result.outstanding)),
        _ => None,
    };
    actions.iter().filter_map(ended).collect()
}

#[test]
fn a_drained_instance_finishes_and_gets_nothing_new() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let first = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    drain(&mut world, 7, "db.1", 1, 5000 * MS);
    let told = world.take();
    assert_eq!((goaways(&told), drained(&told)), (1, vec![]));
    assert_eq!(published(&told), [("db.1".to_owned(), true)]);
    assert!(world.core.registrations()["db.1"].draining);
    // Alone: a new call waits for its successor.
    assert_eq!(world.request(2, "web.1", 2, "db"), []);
    // Asked twice: both are answered, it is told once.
    drain(&mut world, 8, "db.1", 1, 5000 * MS);
    assert_eq!(world.take(), []);
    // Registering anew does not bring it back.
    assert_eq!(calls(&world.register(1, "db.1", &["get"])), []);
    let ended = world.say(1, "db.1", answer(first));
    assert_eq!(responses(&ended), [(2, 1, Code::Ok)]);
    assert_eq!(drained(&ended), [(7, true, 0), (8, true, 0)]);
    // Its successor is not drained and gets the call that waited.
    assert_eq!(
        calls(&world.say_as(5, "db.1", 2, register(&["get"]), ""))[0].0,
        5
    );
    assert!(!world.core.registrations()["db.1"].draining);
}

#[test]
fn another_replica_takes_the_calls() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    world.register(2, "db.2", &["get"]);
    drain(&mut world, 1, "db.1", 1, MS);
    assert_eq!(drained(&world.take()), [(1, true, 0)]);
    for call in 0..10 {
        assert_eq!(calls(&world.request(9, "web.1", call, "db"))[0].0, 2);
    }
}

#[test]
fn a_drain_ends_with_its_time_or_its_instance() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    let id = calls(&world.request(2, "web.1", 1, "db"))[0].1;
    drain(&mut world, 1, "db.1", 1, 300 * MS);
    drain(&mut world, 2, "db.1", 1, 800 * MS);
    assert_eq!(world.core.next_deadline(), Some(world.now + 300 * MS));
    assert_eq!(drained(&world.pass(299 * MS)), []);
    assert_eq!(drained(&world.pass(MS)), [(1, true, 1)]);
    assert_eq!(drained(&world.gone(1)), [(2, true, 0)]);
    assert_eq!(world.say(1, "db.1", answer(id)), []);
    // Never registered, another spawn: nothing to wait for, and that one is left alone.
    world.say_as(3, "db.1", 2, register(&["get"]), "");
    drain(&mut world, 3, "nothing.1", 1, 800 * MS);
    drain(&mut world, 4, "db.1", 1, Duration::MAX);
    assert_eq!(drained(&world.take()), [(3, false, 0), (4, false, 0)]);
    assert!(!world.core.registrations()["db.1"].draining);
    assert_eq!(calls(&world.request(2, "web.1", 2, "db"))[0].0, 3);
}

#[test]
fn what_is_drained_before_it_registers_gets_no_call() {
    let mut world = World::new();
    drain(&mut world, 3, "db.1", 4, MS);
    world.take();
    world.say_as(3, "db.1", 4, register(&["get"]), "");
    assert!(world.core.registrations()["db.1"].draining);
    assert_eq!(world.request(2, "web.1", 1, "db"), []);
    assert_eq!(
        calls(&world.say_as(4, "db.1", 5, register(&["get"]), ""))[0].0,
        4
    );
}

#[test]
fn what_calls_took_is_told() {
    let mut world = World::new();
    world.register(1, "db.1", &["get"]);
    for call in 1..=4 {
        let id = calls(&world.request(2, "web.1", call, "db"))[0].1;
        world.pass(call as u32 * MS);
        world.say(1, "db.1", answer(id));
    }
    let stats = world.core.call_stats();
    let (name, stats) = stats.iter().next().unwrap();
    assert_eq!(name, "web db get");
    assert_eq!((stats.calls, stats.failed, stats.sum_us), (4, 0, 10_000));
    assert_eq!(stats.buckets[..5], [0, 0, 0, 1, 2]);
    assert_eq!(stats.buckets[5..], [4; 7]);
    assert!((1900..2100).contains(&stats.p50_us), "{stats:?}");
    assert!((3900..4100).contains(&stats.max_us), "{stats:?}");
}
