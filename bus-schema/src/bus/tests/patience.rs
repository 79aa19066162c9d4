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

fn generation(event: LinkEvent) -> Option<u64> {
    match event {
        LinkEvent::Event(received) => {
            let changed: ProcessChanged = received.envelope.parse().unwrap();
            Some(changed.record.generation.0)
        }
        _ => None,
    }
}

#[tokio::test]
async fn patient_events_come_in_their_order_and_without_another_too() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let manager = Component::ProcessManager(None);
    let (server, _commands) = Server::bind(&dirs, manager.clone(), 1).await.unwrap();
    let interest = Interest::none().prefix(topic::PROCESS);
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
        .await
        .unwrap();
    link.ready(LONG).await.unwrap();
    let topic = Topic::process(&"web.1".parse().unwrap());
    for number in 1..=200 {
        // Two patient ones, then one that takes them along; the last two stand alone.
        if number % 3 == 0 && number < 199 {
            server.publish(topic.clone(), &event(number), None).await;
        } else {
            server
                .publish_patiently(topic.clone(), &event(number), None)
                .await;
        }
    }
    let mut seen = Vec::new();
    while seen.len() < 200 {
        seen.extend(generation(next(&mut events).await));
    }
    assert!(seen.is_sorted() && seen.last() == Some(&200), "{seen:?}");
}

/// Anything that is sent takes a patient event along, a heartbeat too: of events
/// that stand alone, one after the other, not each can have waited for one.
#[tokio::test]
async fn a_patient_event_needs_no_other() {
    const ALONE: u64 = 12;
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let manager = Component::ProcessManager(None);
    let (server, _commands) = Server::bind(&dirs, manager.clone(), 1).await.unwrap();
    let presence = Topic::component(&manager);
    let interest = Interest::none()
        .prefix(topic::PROCESS)
        .prefix(presence.as_str());
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
        .await
        .unwrap();
    link.ready(LONG).await.unwrap();
    let topic = Topic::process(&"web.1".parse().unwrap());
    let mut heartbeats = 0;
    for number in 1..=ALONE {
        server
            .publish_patiently(topic.clone(), &event(number), None)
            .await;
        loop {
            match next(&mut events).await {
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
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let manager = Component::ProcessManager(None);
    let (server, _commands) = Server::bind(&dirs, manager.clone(), 1).await.unwrap();
    let interest = Interest::none().prefix(topic::PROCESS);
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
        .await
        .unwrap();
    link.ready(LONG).await.unwrap();
    let topic = Topic::process(&"web.1".parse().unwrap());
    server.publish_patiently(topic, &event(7), None).await;
    server.bye("test").await;
    let mut seen = None;
    loop {
        match next(&mut events).await {
            LinkEvent::Down => break,
            other => seen = seen.or(generation(other)),
        }
    }
    assert_eq!(seen, Some(7));
}
