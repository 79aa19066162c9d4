//! Anything in any order.

use proptest::prelude::*;

use super::*;

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
    Stream(Conn, u64, usize, u32),
    Part(Conn, usize, u16),
    Credit(Conn, u64, u32),
    Drain(usize, u64, u64),
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
        (1..6_u64, 0..20_u64, 0..4_usize, 0..400_u32)
            .prop_map(|(conn, id, service, window)| Event::Stream(conn, id, service, window)),
        (1..6_u64, any::<usize>(), 0..300_u16)
            .prop_map(|(conn, which, bytes)| Event::Part(conn, which, bytes)),
        (1..6_u64, 0..20_u64, 0..400_u32)
            .prop_map(|(conn, id, bytes)| Event::Credit(conn, id, bytes)),
        (0..3_usize, 0..3_u64, 0..300_u64)
            .prop_map(|(service, generation, within)| Event::Drain(service, generation, within)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: each request is answered at most once and, if its
    /// caller stays, exactly once by the time its budget has passed; only the
    /// callee's answer is taken; no caller gets more of a stream than it has room
    /// for; every drain is answered once; nothing is left at the end.
    #[test]
    fn every_call_is_answered_once(events in proptest::collection::vec(event(), 1..120)) {
        static FILLING: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| "x".repeat(300));
        const SERVICES: [&str; 4] = ["web", "db", "pricing", "unknown"];
        let mut world = World::new();
        // Each connection number stands for a series of connections.
        let mut epoch = [0_u64; 8];
        let real = |epoch: &[u64; 8], conn: Conn| conn * 1000 + epoch[conn as usize];
        let name = |conn: Conn| format!("{}.{conn}", SERVICES[conn as usize % 3]);
        let mut open: HashMap<(Conn, u64), ()> = HashMap::new();
        let mut under_way: BTreeMap<u64, Conn> = BTreeMap::new();
        let mut last_sent: Vec<Did> = Vec::new();
        // What each open stream has room for.
        let mut room: HashMap<(Conn, u64), u64> = HashMap::new();
        let mut drains = (0_u64, 0_u64);
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
                    room.remove(&(conn_now, id));
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
                Event::Stream(conn, id, service, window) => {
                    let conn_now = real(&epoch, conn);
                    let already = open.insert((conn_now, id), ()).is_some();
                    if !already {
                        room.insert((conn_now, id), u64::from(window));
                    }
                    let header = Header::Request(Request {
                        id,
                        service: SERVICES[service].into(),
                        method: "get".into(),
                        window: Some(window),
                        ..Request::default()
                    });
                    world.say_as(conn_now, &name(conn), 1, header, "q")
                }
                Event::Part(conn, which, bytes) if !under_way.is_empty() => {
                    let (id, callee) = under_way
                        .iter()
                        .nth(which % under_way.len())
                        .map(|(id, callee)| (*id, *callee))
                        .unwrap();
                    // Mostly from whom it was sent to.
                    let conn = if which % 3 == 0 { real(&epoch, conn) } else { callee };
                    let payload: &'static str = &FILLING[..usize::from(bytes)];
                    let part = Header::Part { id };
                    let actions = world.say_as(conn, &name(conn / 1000), 1, part, payload);
                    if callee != conn {
                        prop_assert!(parts(&actions).is_empty(), "a forged part was taken");
                    }
                    actions
                }
                Event::Credit(conn, id, bytes) => {
                    let conn_now = real(&epoch, conn);
                    if let Some(room) = room.get_mut(&(conn_now, id)) {
                        *room += u64::from(bytes);
                    }
                    world.say(conn_now, &name(conn), Header::Credit { id, bytes })
                }
                Event::Drain(service, generation, within) => {
                    drains.0 += 1;
                    world.core.drain(
                        world.now,
                        drains.0,
                        instance(&format!("{}.{}", SERVICES[service], service + 1)),
                        Generation(generation),
                        Duration::from_millis(within),
                    );
                    world.take()
                }
                Event::Undelivered(which, full) if !last_sent.is_empty() => {
                    let Did::Send { conn, header, payload, what } =
                        last_sent[which % last_sent.len()].clone()
                    else {
                        continue;
                    };
                    let why = if full { Undelivered::Full } else { Undelivered::Gone };
                    if !full {
                        epoch[(conn / 1000) as usize] += 1;
                        open.retain(|(caller, _), ()| *caller != conn);
                    }
                    let frames = (header.encode().into(), payload.into());
                    world.core.undelivered(world.now, conn, frames, what, why);
                    world.take()
                }
                _ => continue,
            };
            for (conn, id, bytes) in parts(&actions) {
                prop_assert!(open.contains_key(&(conn, id)), "a part of nothing");
                let room = room.get_mut(&(conn, id));
                let left = room.and_then(|room| room.checked_sub(bytes as u64).map(|left| *room = left));
                prop_assert!(left.is_some(), "more than there is room for");
            }
            drains.1 += actions.iter().filter(|did| matches!(did, Did::Drained { .. })).count() as u64;
            for (conn, id, _) in responses(&actions) {
                room.remove(&(conn, id));
                prop_assert!(open.remove(&(conn, id)).is_some(), "answered twice, or never asked");
            }
            for action in &actions {
                if let Did::Disconnect(conn) = action {
                    epoch[(*conn / 1000) as usize] += 1;
                    open.retain(|(caller, _), ()| caller != conn);
                }
            }
            under_way.extend(calls(&actions).iter().map(|(conn, id, _)| (*id, *conn)));
            last_sent = actions
                .into_iter()
                .filter(|action| matches!(action, Did::Send { header: Header::Request(_), .. }))
                .collect();
        }
        let ended = world.pass(Duration::from_secs(3600));
        drains.1 += ended.iter().filter(|did| matches!(did, Did::Drained { .. })).count() as u64;
        prop_assert_eq!(drains.0, drains.1);
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
