//! The bus between its two sides, in one process.

mod healing;
mod patience;
mod tcp;

use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::dirs::Dirs;
use crate::names::{ClientName, Component};
use crate::process::{InstanceRecord, ProcessChanged, ProcessState, Signal};
use crate::topic::{self, Topic};

const LONG: Duration = Duration::from_secs(40);

fn dirs(temp: &tempfile::TempDir) -> Dirs {
    let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
    dirs.create().unwrap();
    dirs
}

fn record(name: &str, generation: u64) -> InstanceRecord {
    InstanceRecord {
        instance: name.parse().unwrap(),
        generation: crate::names::Generation(generation),
        state: ProcessState::Running {
            pid: 7,
            started_at: 1,
        },
        notify: Default::default(),
        steps: Vec::new(),
        grant: None,
        adopted: false,
        lost_log_lines: 0,
        previous_exit: None,
        restarts: 0,
    }
}

async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    tokio::time::timeout(LONG, events.recv())
        .await
        .expect("an event in time")
        .expect("a link")
}

/// Answers `process.list` from `records` and signals with success, for ever.
fn serve(
    server: Server,
    mut commands: mpsc::Receiver<Incoming>,
    records: Vec<InstanceRecord>,
) -> tokio::task::JoinHandle<u32> {
    tokio::spawn(async move {
        let mut signals = 0;
        while let Some(incoming) = commands.recv().await {
            if incoming.kind == <ListProcesses as crate::message::Message>::KIND {
                let command = incoming.parse::<ListProcesses>().unwrap();
                let all = records
                    .iter()
                    .map(|record| (record.instance.to_string(), record.clone()));
                let page = server.snapshot(topic::PROCESS, all, command.after.as_deref());
                incoming.reply::<ListProcesses>(Ok(page)).await;
            } else if incoming.kind == <Signal as crate::message::Message>::KIND {
                let command = incoming.parse::<Signal>();
                if let Ok(Signal { signal: 99, .. }) = command {
                    return signals;
                }
                signals += 1;
                incoming.reply::<Signal>(command.map(|_| ())).await;
            } else {
                incoming.unknown().await;
            }
        }
        signals
    })
}

#[tokio::test]
async fn requests_are_answered_refused_and_time_out() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let manager = Component::ProcessManager(None);
    let (link, _events) = Link::open(
        &dirs,
        ClientName::fresh("test"),
        manager.clone(),
        Interest::none(),
    )
    .await
    .unwrap();
    let absent = link.ready(Duration::from_millis(10)).await.unwrap_err();
    assert!(
        matches!(absent, RequestError::Unreachable { .. }),
        "{absent}"
    );

    let (server, commands) = Server::bind(&dirs, manager.clone(), 5).await.unwrap();
    let info = link.ready(LONG).await.unwrap();
    assert_eq!((info.incarnation, info.component), (5, manager.clone()));
    assert_eq!(info.pid, std::process::id());

    let signal = Signal {
        instance: "web.1".parse().unwrap(),
        signal: 15,
    };
    // Nobody takes commands yet: the request waits and its budget ends, long after it was repeated once.
    let error = link
        .request(&signal, Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(
        matches!(error, RequestError::TimedOut { accepted: true, .. }),
        "{error}"
    );

    let served = serve(server.clone(), commands, Vec::new());
    link.request(&signal, LONG).await.unwrap();
    let error = link
        .request(
            &crate::process::Forget {
                instance: "web.1".parse().unwrap(),
            },
            LONG,
        )
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    let end = Signal {
        instance: "web.1".parse().unwrap(),
        signal: 99,
    };
    let error = link.request(&end, LONG).await.unwrap_err();
    assert_eq!(
        error.code(),
        Code::Internal,
        "a dropped command is answered: {error}"
    );
    // The one that timed out and the answered one; repetitions did not count.
    assert_eq!(served.await.unwrap(), 2);
}

#[tokio::test]
async fn a_stream_begins_with_a_snapshot_goes_on_with_events_and_heals() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let manager = Component::ProcessManager(None);
    let (server, commands) = Server::bind(&dirs, manager.clone(), 1).await.unwrap();
    let records: Vec<_> = (1..=600)
        .map(|index| record(&format!("web.{index}"), 1))
        .collect();
    let changed = ProcessChanged {
        from: None,
        record: record("web.1", 1),
    };
    let topic = Topic::process(&"web.1".parse().unwrap());
    // Before the subscriber: part of its snapshot.
    server.publish(topic.clone(), &changed, None).await;
    let mut sorted = records.clone();
    sorted.sort_by_key(|record| record.instance.to_string());
    let served = serve(server.clone(), commands, sorted.clone());

    let interest = Interest::none().stream::<ListProcesses>(topic::PROCESS);
    let (_link, mut events) =
        Link::open(&dirs, ClientName::fresh("test"), manager.clone(), interest)
            .await
            .unwrap();
    assert!(matches!(next(&mut events).await, LinkEvent::Up(info) if info.incarnation == 1));
    let LinkEvent::Snapshot { items, .. } = next(&mut events).await else {
        panic!("no snapshot")
    };
    assert_eq!(items.len(), 600, "three pages");
    assert_eq!(item::<InstanceRecord>(items[0].clone()).unwrap(), sorted[0]);

    server.publish(topic.clone(), &changed, None).await;
    let LinkEvent::Event(event) = next(&mut events).await else {
        panic!("no event")
    };
    assert_eq!(
        (event.envelope.seq, event.topic.as_str()),
        (2, topic.as_str())
    );
    assert_eq!(event.parse::<ProcessChanged>().unwrap(), changed);

    // A number that never arrives: the next event shows the gap, a snapshot heals it.
    server.skip_for_test(&topic);
    server.publish(topic.clone(), &changed, None).await;
    let LinkEvent::Snapshot { items, .. } = next(&mut events).await else {
        panic!("not healed")
    };
    assert_eq!(items.len(), 600);
    server.publish(topic.clone(), &changed, None).await;
    let LinkEvent::Event(event) = next(&mut events).await else {
        panic!("no event")
    };
    assert_eq!(event.envelope.seq, 5);

    // The last event of all is lost: the heartbeat's tails tell.
    server.skip_for_test(&topic);
    assert!(matches!(
        next(&mut events).await,
        LinkEvent::Snapshot { .. }
    ));

    // The owner goes and comes back as another incarnation.
    served.abort();
    let _ = served.await;
    server.bye("test").await;
    drop(server);
    assert!(matches!(next(&mut events).await, LinkEvent::Down));
    let (server, commands) = Server::bind(&dirs, manager, 2).await.unwrap();
    let served = serve(server.clone(), commands, Vec::new());
    assert!(matches!(next(&mut events).await, LinkEvent::Up(info) if info.incarnation == 2));
    assert!(
        matches!(next(&mut events).await, LinkEvent::Snapshot { items, .. } if items.is_empty())
    );
    served.abort();
}

#[tokio::test]
async fn a_slow_user_loses_events_and_gets_a_snapshot_instead() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let manager = Component::ProcessManager(None);
    let (server, commands) = Server::bind(&dirs, manager.clone(), 1).await.unwrap();
    let served = serve(server.clone(), commands, vec![record("web.1", 9)]);
    let interest = Interest::none().stream::<ListProcesses>(topic::PROCESS);
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
        .await
        .unwrap();
    link.ready(LONG).await.unwrap();
    let topic = Topic::process(&"web.1".parse().unwrap());
    let changed = ProcessChanged {
        from: None,
        record: record("web.1", 1),
    };
    for _ in 0..6000 {
        server.publish(topic.clone(), &changed, None).await;
    }
    // The link answers requests although nobody takes its events.
    link.request(
        &Signal {
            instance: "web.1".parse().unwrap(),
            signal: 1,
        },
        LONG,
    )
    .await
    .unwrap();
    let mut snapshots = 0;
    let mut seen = 0;
    while seen < 6000 {
        match next(&mut events).await {
            LinkEvent::Snapshot { items, .. } => {
                snapshots += 1;
                assert_eq!(items.len(), 1);
                if snapshots > 1 {
                    break;
                }
            }
            LinkEvent::Event(event) => seen = event.envelope.seq,
            LinkEvent::Up(_) | LinkEvent::Lagged { .. } => {}
            LinkEvent::Down => panic!("down"),
        }
    }
    assert!(
        snapshots > 1 || seen == 6000,
        "snapshots {snapshots}, seen {seen}"
    );
    served.abort();
}

/// The commands that a component repeats have clients as their sources, of
/// incarnation 0: whoever follows everything stays in step.
#[tokio::test]
async fn whoever_follows_all_topics_hears_of_commands_and_keeps_the_component() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let manager = Component::ProcessManager(None);
    let (server, commands) = Server::bind(&dirs, manager.clone(), 5).await.unwrap();
    let served = serve(server.clone(), commands, vec![record("web.1", 1)]);
    let interest = Interest::none()
        .prefix("")
        .stream::<ListProcesses>(topic::PROCESS);
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("all"), manager.clone(), interest)
        .await
        .unwrap();
    // What is published before it is part of it.
    while !matches!(next(&mut events).await, LinkEvent::Snapshot { .. }) {}
    let (other, _none) = Link::open(&dirs, ClientName::fresh("other"), manager, Interest::none())
        .await
        .unwrap();
    let signal = Signal {
        instance: "web.1".parse().unwrap(),
        signal: 15,
    };
    for asks in [&other, &link] {
        asks.request(&signal, LONG).await.unwrap();
    }
    let changed = ProcessChanged {
        from: None,
        record: record("web.1", 1),
    };
    let topic = Topic::process(&"web.1".parse().unwrap());
    server.publish(topic, &changed, None).await;
    // By id: a command that is late is repeated.
    let mut heard = std::collections::BTreeMap::new();
    loop {
        match next(&mut events).await {
            LinkEvent::Event(event) if event.topic.as_str() == "cmd.process-manager." => {
                let incarnation = event.envelope.source.incarnation;
                heard.insert(event.envelope.id, (event.kind().to_owned(), incarnation));
            }
            // The last thing that happened has come.
            LinkEvent::Event(event) if event.kind() == "process.changed" => break,
            LinkEvent::Event(_) | LinkEvent::Snapshot { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let signal = ("process.signal".to_owned(), 0);
    let signals = heard.values().filter(|one| **one == signal).count();
    assert_eq!(signals, 2, "{heard:?}");
    let counters = link.counters();
    assert_eq!(
        (counters["link.reconnects"], counters["link.unknown_kind"]),
        (0, 0),
        "{counters:?}"
    );
    served.abort();
}
