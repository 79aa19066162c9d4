//! Events that may wait for the next one.

use super::*;
use crate::component::Heartbeat;
use crate::message::Message;

fn event(generation: u64) -> ProcessChanged {
    ProcessChanged {
        record: record("web.1", generation),
        from: None,
    }
}

/// A process-manager's side of the bus and somebody who hears all of it.
struct Pair {
    server: Server,
    events: mpsc::Receiver<LinkEvent>,
    topic: Topic,
    // Kept for as long as the pair is.
    _commands: mpsc::Receiver<Incoming>,
    _link: Link,
    _temp: tempfile::TempDir,
}

impl Pair {
    async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dirs = dirs(&temp);
        let manager = Component::ProcessManager(None);
        let (server, commands) = Server::bind(&dirs, manager.clone(), 1).await.unwrap();
        let interest = Interest::none()
            .prefix(topic::PROCESS)
            .prefix(Topic::component(&manager).as_str());
        let (link, events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
            .await
            .unwrap();
        link.ready(LONG).await.unwrap();
        Self {
            server,
            events,
            topic: Topic::process(&"web.1".parse().unwrap()),
            _commands: commands,
            _link: link,
            _temp: temp,
        }
    }
}

fn generation(event: LinkEvent) -> Option<u64> {
    match event {
        LinkEvent::Event(received) if received.kind() == ProcessChanged::KIND => {
            let changed: ProcessChanged = received.envelope.parse().unwrap();
            Some(changed.record.generation.0)
        }
        _ => None,
    }
}

#[tokio::test]
async fn patient_events_come_in_their_order() {
    let mut pair = Pair::new().await;
    for number in 1..=200 {
        // Two patient ones, then one that takes them along.
        if number % 3 == 0 && number < 199 {
            pair.server
                .publish(pair.topic.clone(), &event(number), None)
                .await;
        } else {
            pair.server
                .publish_patiently(pair.topic.clone(), &event(number), None)
                .await;
        }
    }
    let mut seen = Vec::new();
    while seen.len() < 200 {
        seen.extend(generation(next(&mut pair.events).await));
    }
    assert!(seen.is_sorted() && seen.last() == Some(&200), "{seen:?}");
}

/// Anything that is sent takes a patient event along, a heartbeat too: of events
/// that stand alone, one after the other, not each can have waited for one.
#[tokio::test]
async fn a_patient_event_needs_no_other() {
    const ALONE: u64 = 12;
    let mut pair = Pair::new().await;
    let mut heartbeats = 0;
    for number in 1..=ALONE {
        pair.server
            .publish_patiently(pair.topic.clone(), &event(number), None)
            .await;
        loop {
            match next(&mut pair.events).await {
                LinkEvent::Event(received) if received.kind() == ProcessChanged::KIND => break,
                LinkEvent::Event(received) if received.kind() == Heartbeat::KIND => heartbeats += 1,
                _ => {}
            }
        }
    }
    assert!(heartbeats < ALONE - 2, "{heartbeats} heartbeats");
}

#[tokio::test]
async fn a_goodbye_takes_patient_events_along() {
    let mut pair = Pair::new().await;
    pair.server
        .publish_patiently(pair.topic.clone(), &event(7), None)
        .await;
    pair.server.bye("test").await;
    let mut seen = None;
    loop {
        match next(&mut pair.events).await {
            LinkEvent::Down => break,
            other => seen = seen.or(generation(other)),
        }
    }
    assert_eq!(seen, Some(7));
}
