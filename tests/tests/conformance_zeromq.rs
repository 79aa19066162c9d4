//! The crate `zeromq`, a ZeroMQ of its own in Rust, as a client of the real
//! daemons and as a server of this project's link. It knows no PLAIN: where that
//! is asked for it has to be refused, and nobody else may notice.

#![allow(clippy::panic)]

#[path = "../conformance/mod.rs"]
mod conformance;

use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent};
use blackhole_bus_schema::component::ComponentInfo;
use blackhole_bus_schema::envelope::{Envelope, Outgoing, Source, VERSION, fresh_id};
use blackhole_bus_schema::message::{Command, Message};
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::raw::Raw;
use blackhole_bus_schema::reply::{Code, Reply, Status, Verdict};
use blackhole_bus_schema::rpc::{Client, Methods};
use blackhole_bus_schema::supervision::{
    Desired, ResetServices, StartServices, StopServices, SupervisionChanged, Target,
};
use blackhole_bus_schema::topic::{self, Topic};
use blackhole_bus_schema::value::to_value;
use blackhole_bus_schema::{component, rpc};
use blackhole_tests::wait::HANG;
use blackhole_tests::{Deployment, wait_for};
use bytes::Bytes;
use conformance::{PortPairs, options};
use zeromq::{
    DealerSocket, PubSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqError, ZmqMessage,
};

const SERVICES: &str = "
services:
  web: {command: [blackhole-example, idle], autostart: false}
";

fn message(topic: &Topic, body: Vec<u8>) -> ZmqMessage {
    let frames = vec![Bytes::from(topic.as_str().to_owned()), Bytes::from(body)];
    ZmqMessage::try_from(frames).expect("two frames")
}

fn taken(message: &ZmqMessage) -> (String, Envelope) {
    let [topic, body] = [0, 1].map(|index| message.get(index).expect("two frames"));
    let topic = String::from_utf8(topic.to_vec()).expect("a topic is text");
    (topic, Envelope::decode(body).expect("an envelope"))
}

fn source(component: &str, incarnation: u64) -> Source {
    Source {
        component: component.to_owned(),
        instance: "1".to_owned(),
        incarnation,
    }
}

/// Retried: it gives up at once when nobody listens yet.
async fn connected<S: Socket>(path: &Path) -> S {
    let endpoint = format!("ipc://{}", path.display());
    let connect = async {
        loop {
            let mut socket = S::new();
            match socket.connect(&endpoint).await {
                Ok(()) => return socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(HANG, connect)
        .await
        .expect("somebody listens")
}

/// A client of the supervisor out of nothing but the foreign sockets.
struct Foreign {
    me: ClientName,
    events: SubSocket,
    commands: PubSocket,
    /// Events that came while an answer was waited for.
    seen: Vec<(String, Envelope)>,
}

impl Foreign {
    async fn open(deployment: &Deployment) -> Self {
        let me = ClientName::fresh("zeromq");
        let dirs = deployment.dirs();
        let mut events: SubSocket = connected(&dirs.bus_evt(&Component::Supervisor)).await;
        for prefix in ["evt.", Topic::reply(&me).as_str()] {
            events.subscribe(prefix).await.expect("a subscription");
        }
        let commands = connected(&dirs.bus_cmd(&Component::Supervisor)).await;
        Self {
            me,
            events,
            commands,
            seen: Vec::new(),
        }
    }

    async fn receive(&mut self) -> (String, Envelope) {
        taken(&self.events.recv().await.expect("a message"))
    }

    /// Repeats the command with one id until it is answered.
    async fn request<C: Command>(&mut self, command: &C) -> Result<C::Reply, Status> {
        let id = fresh_id();
        let me = self.me.clone();
        let source = source(me.as_str(), 0);
        let envelope = Outgoing {
            v: VERSION,
            id,
            at: 0,
            source: &source,
            seq: 0,
            cause: None,
            reply_to: Some(&me),
            budget_ms: Some(60_000),
            kind: C::KIND,
            body: command,
        };
        let bytes = envelope.encode().expect("it encodes");
        let topic = Topic::command(&Component::Supervisor);
        let answered = async {
            loop {
                self.commands
                    .send(message(&topic, bytes.clone()))
                    .await
                    .expect("it is sent");
                let repeat = tokio::time::Instant::now() + Duration::from_millis(200);
                while let Ok((topic, envelope)) =
                    tokio::time::timeout_at(repeat, self.receive()).await
                {
                    if !topic.starts_with("rep.") {
                        self.seen.push((topic, envelope));
                        continue;
                    }
                    let reply: Reply = envelope.parse().expect("a reply");
                    match reply.verdict {
                        _ if reply.to != id => {}
                        Verdict::Accepted {} => {}
                        Verdict::Done { result } => {
                            return Ok(result.parse().expect("a result"));
                        }
                        Verdict::Failed { error } => return Err(error),
                    }
                }
            }
        };
        tokio::time::timeout(HANG, answered)
            .await
            .expect("an answer comes")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zeromq_follows_and_commands_over_ipc() {
    let deployment = Deployment::new(SERVICES);
    let _daemons = deployment.daemons();
    let mut foreign = Foreign::open(&deployment).await;
    let info = foreign.request(&component::Ping {}).await.expect("an echo");
    assert_eq!(info.component, Component::Supervisor);

    let target = Target::Services(vec!["web".parse().expect("a name")]);
    let started = foreign
        .request(&StartServices {
            target: target.clone(),
        })
        .await
        .expect("it starts");
    assert!(started[0].pid.is_some(), "{started:?}");
    let stopped = foreign
        .request(&StopServices {
            target,
            transient: false,
        })
        .await
        .expect("it stops");
    assert_eq!(stopped[0].desired, Desired::Down);

    let nobody = Target::Services(vec!["nobody".parse().expect("a name")]);
    let refused = foreign.request(&ResetServices { target: nobody }).await;
    assert_eq!(refused.expect_err("unknown").code, Code::NotFound);

    // What happened came as events, each topic without a gap, and heartbeats between them.
    let is_beat = |(_, envelope): &(String, Envelope)| envelope.kind == component::Heartbeat::KIND;
    let beats = async {
        while foreign.seen.iter().filter(|seen| is_beat(seen)).count() < 2 {
            let event = foreign.receive().await;
            foreign.seen.push(event);
        }
    };
    tokio::time::timeout(HANG, beats).await.expect("heartbeats");
    for topic in ["evt.supervision.web.", "evt.component.supervisor."] {
        let seqs: Vec<u64> = foreign
            .seen
            .iter()
            .filter(|(seen, _)| seen == topic)
            .map(|(_, envelope)| envelope.seq)
            .collect();
        assert!(seqs.len() > 1, "{topic}: {seqs:?}");
        assert!(seqs.windows(2).all(|two| two[0] + 1 == two[1]), "{seqs:?}");
    }
}

/// A supervisor of foreign sockets, as far as a link can tell.
async fn fake_supervisor(mut events: PubSocket, mut commands: SubSocket) {
    let source = source("supervisor", 9);
    let mut seq = 0;
    loop {
        let (topic, command) = taken(&commands.recv().await.expect("a command"));
        assert_eq!(topic, "cmd.supervisor.");
        let client = command.reply_to.expect("a client");
        let mut publish = async |topic: &Topic, seq: u64, kind: &'static str, body: rmpv::Value| {
            let envelope = Outgoing {
                v: VERSION,
                id: fresh_id(),
                at: 0,
                source: &source,
                seq,
                cause: Some(command.id),
                reply_to: None,
                budget_ms: None,
                kind,
                body: &body,
            };
            let bytes = envelope.encode().expect("it encodes");
            events.send(message(topic, bytes)).await.expect("sent");
        };
        let verdict = if command.kind == component::Ping::KIND {
            let info = ComponentInfo {
                component: Component::Supervisor,
                pid: 1,
                incarnation: 9,
                version: "fake".to_owned(),
                started_at: 1,
                notes: Vec::new(),
                counters: Default::default(),
            };
            Verdict::Done {
                result: Raw::of(&info).expect("a value"),
            }
        } else {
            seq += 1;
            let topic = Topic::supervision(&"web".parse().expect("a name"));
            let body = rmpv::Value::from("whatever it is");
            publish(&topic, seq, SupervisionChanged::KIND, body).await;
            Verdict::Failed {
                error: Status::new(Code::Aborted, "not today"),
            }
        };
        let reply = Reply {
            to: command.id,
            verdict,
        };
        let body = to_value(&reply).expect("a value");
        publish(&Topic::reply(&client), 0, Reply::KIND, body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_speaks_to_zeromq_as_its_component() {
    let deployment = Deployment::new(SERVICES);
    let dirs = deployment.dirs();
    dirs.create().expect("directories");
    let endpoint = |path: std::path::PathBuf| format!("ipc://{}", path.display());
    let mut events = PubSocket::new();
    events
        .bind(&endpoint(dirs.bus_evt(&Component::Supervisor)))
        .await
        .expect("bound");
    let mut commands = SubSocket::new();
    commands
        .bind(&endpoint(dirs.bus_cmd(&Component::Supervisor)))
        .await
        .expect("bound");
    commands.subscribe("").await.expect("a subscription");
    let fake = tokio::spawn(fake_supervisor(events, commands));

    let interest = Interest::none().prefix(topic::SUPERVISION);
    let me = ClientName::fresh("test");
    let (link, mut received) = Link::open(&dirs, me, Component::Supervisor, interest)
        .await
        .expect("a link");
    let info = link.ready(HANG).await.expect("an echo");
    assert_eq!((info.version.as_str(), info.incarnation), ("fake", 9));
    let reset = ResetServices {
        target: Target::All,
    };
    let error = link.request(&reset, HANG).await.expect_err("it refuses");
    assert_eq!(error.code(), Code::Aborted);
    let event = async {
        loop {
            if let Some(LinkEvent::Event(event)) = received.recv().await {
                return event;
            }
        }
    };
    let event = tokio::time::timeout(HANG, event).await.expect("an event");
    assert_eq!(event.topic.as_str(), "evt.supervision.web.");
    assert_eq!(event.envelope.seq, 1);
    fake.abort();
}

/// What a socket without PLAIN comes to where PLAIN is asked for: an error of
/// its own, or nothing at all; never a message.
async fn gets_nothing<S: Socket>(
    endpoint: &str,
    receive: impl AsyncFnOnce(S) -> Result<ZmqMessage, ZmqError>,
) {
    let mut socket = S::new();
    let tried = async {
        socket.connect(endpoint).await?;
        receive(socket).await
    };
    if let Ok(Ok(message)) = tokio::time::timeout(Duration::from_secs(2), tried).await {
        panic!("it was let in and got {message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_plain_it_is_refused_and_others_go_on() {
    let ports = PortPairs::take(2);
    let [supervisor, rpc] = ports.first[..] else {
        panic!("two pairs of ports");
    };
    let deployment = Deployment::new(&format!(
        "runtime:
  orchestrator:
    listen: {{supervisor: 127.0.0.1:{supervisor}, rpc: 127.0.0.1:{rpc}}}
{SERVICES}"
    ));
    let mut bridge = deployment.daemon("bridge");
    let mut daemon = deployment.daemon("supervisor");
    let methods = || {
        Methods::new().on("echo", |request: rpc::Request| async {
            Ok(request.payload)
        })
    };
    let callee = Client::connect(options(&deployment, "callee.1"))
        .await
        .expect("a client");
    callee.serve(methods());
    callee.registered(HANG).await.expect("the bridge is there");
    let caller = Client::connect(options(&deployment, "caller.1"))
        .await
        .expect("a client");
    let others = async || {
        let answer = caller.call("callee", "echo", "x", HANG).await;
        assert_eq!(answer.expect("an answer"), "x");
        let mut foreign = Foreign::open(&deployment).await;
        foreign.request(&component::Ping {}).await.expect("an echo");
    };
    others().await;
    tokio::task::block_in_place(|| daemon.wait_for_line(&["listening over TCP"]));

    let socket = deployment.dirs().rpc_socket();
    for endpoint in [
        format!("ipc://{}", socket.display()),
        format!("tcp://127.0.0.1:{rpc}"),
    ] {
        gets_nothing(&endpoint, async |mut dealer: DealerSocket| {
            let register = rpc::header::Header::Heartbeat { registered: None };
            let frames = vec![Bytes::from(register.encode()), Bytes::new()];
            dealer
                .send(ZmqMessage::try_from(frames).expect("two frames"))
                .await?;
            dealer.recv().await
        })
        .await;
        others().await;
    }
    let evt = format!("tcp://127.0.0.1:{supervisor}");
    gets_nothing(&evt, async |mut sub: SubSocket| {
        sub.subscribe("").await?;
        sub.recv().await
    })
    .await;
    others().await;
    // The bridge has seen both off.
    wait_for("two failed handshakes", || {
        let said = bridge.output();
        match said.matches("a handshake failed").count() {
            2.. => Ok(()),
            _ => Err(said),
        }
    });
    bridge.wait_for_line(&["carrying calls"]);
}
