//! The bus over TCP, where a password is asked for.

use omq_tokio::{Message as Frames, Options, Socket, SocketType};

use super::*;

/// A client over TCP that has the password is a client; one that has not is not.
#[tokio::test]
async fn over_tcp_only_who_has_the_password_is_heard_and_hears() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    // Two free ports side by side: found by asking for one and trying its neighbour.
    let (listen, server, mut commands) = loop {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let listen = crate::config::Listen {
            bridge: Some(address),
            ..Default::default()
        };
        let bound = Server::bind_with(&dirs, Component::Bridge, 1, &listen).await;
        let (server, commands) = bound.unwrap();
        if server.info().notes.is_empty() {
            break (listen, server, commands);
        }
    };
    let password = crate::bus::tcp::password(&dirs).unwrap();
    let client = |password: &str| {
        let options = || Options::new().plain_client(crate::bus::tcp::USERNAME, password);
        let events = Socket::new(SocketType::Sub, options());
        let commands = Socket::new(SocketType::Pub, options());
        (events, commands)
    };
    let endpoint = |address: Option<std::net::SocketAddr>| format!("tcp://{}", address.unwrap());
    let (events_at, commands_at) = (
        endpoint(listen.events(&Component::Bridge)),
        endpoint(listen.commands(&Component::Bridge)),
    );

    let (strange_events, strange_commands) = client("0000");
    strange_events.subscribe("").await.unwrap();
    strange_events.connect(events_at.as_str()).await.unwrap();
    strange_commands
        .connect(commands_at.as_str())
        .await
        .unwrap();
    let (events, own) = client(&password);
    events.subscribe("").await.unwrap();
    events.connect(events_at.as_str()).await.unwrap();
    own.connect(commands_at.as_str()).await.unwrap();

    let source = crate::envelope::Source {
        component: "x".into(),
        instance: "1".into(),
        incarnation: 0,
    };
    let reply_to: ClientName = "x".parse().unwrap();
    let id = uuid::Uuid::now_v7();
    let ask = |kind: &str, id| {
        let whole = crate::envelope::Outgoing {
            v: 1,
            id,
            at: 0,
            source: &source,
            seq: 0,
            cause: None,
            reply_to: Some(&reply_to),
            budget_ms: Some(10_000),
            kind,
            body: &crate::component::Ping {},
        };
        let topic = Topic::command(&Component::Bridge).as_str().to_owned();
        Frames::multipart([bytes::Bytes::from(topic), whole.encode().unwrap().into()])
    };
    let answered = tokio::time::timeout(LONG, async {
        loop {
            own.send(ask("component.ping", id)).await.unwrap();
            strange_commands
                .send(ask("x.strange", uuid::Uuid::now_v7()))
                .await
                .unwrap();
            let next = tokio::time::timeout(Duration::from_millis(20), events.recv());
            let Ok(Ok(message)) = next.await else {
                continue;
            };
            let topic = message.part_bytes(0).unwrap();
            if topic.starts_with(b"rep.x.") {
                let body = message.part_bytes(1).unwrap();
                let envelope = crate::envelope::Envelope::decode(&body).unwrap();
                let reply: crate::reply::Reply = envelope.parse().unwrap();
                assert_eq!(reply.to, id);
                return;
            }
        }
    });
    answered.await.expect("an answer over TCP");
    tokio::time::timeout(LONG, async {
        while server.counters()["tcp.refused"] < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the stranger is refused on both sockets");
    assert!(commands.try_recv().is_err(), "the stranger was heard");
    assert!(strange_events.try_recv().is_err(), "the stranger heard");

    // Another deployment with the same ports works without them and says so.
    let other = tempfile::tempdir().unwrap();
    let other = super::dirs(&other);
    let (second, _commands) = Server::bind_with(&other, Component::Bridge, 1, &listen)
        .await
        .unwrap();
    let notes = second.info().notes;
    assert!(notes[0].contains("not reachable over TCP"), "{notes:?}");

    // And the first one comes back on its ports at once, as after a restart.
    server.bye("test").await;
    drop((server, commands));
    let again = tokio::time::timeout(LONG, async {
        loop {
            let bound = Server::bind_with(&dirs, Component::Bridge, 2, &listen).await;
            let (server, _commands) = bound.unwrap();
            if server.info().notes.is_empty() {
                return;
            }
            drop(server);
            tokio::task::yield_now().await;
        }
    });
    again.await.expect("the ports are free again");
}
