//! What operators ask for, and what they are told.

use blackhole_bus_schema::health::ProbeKind;
use blackhole_bus_schema::process::ExitResult;
use blackhole_bus_schema::reply::Code;
use blackhole_bus_schema::supervision::{
    Circuit, Desired, Phase, ResetServices, RestartServices, StartServices, StopServices, Target,
};

use super::support::{PATIENCE, Setup, services};
use std::time::Duration;

const PAIR: &str = "
  db:
    command: [/bin/db]
    health: {readiness: {tcp: '127.0.0.1:1', interval: 1s, success_threshold: 1}}
  web:
    command: [/bin/web]
    depends_on: {db: ready}
";

#[tokio::test]
async fn services_start_in_order_and_stop_in_reverse() {
    let mut setup = Setup::new(PAIR);
    setup.start();
    let manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("db.1", Phase::Probing).await;
    assert_eq!(setup.host.asked(), ["spawn db.1 #1"]);
    let starting = client.ask(
        StartServices {
            target: Target::All,
        },
        PATIENCE,
    );
    let (outcome, ()) = tokio::join!(starting, manager.probe("db.1", ProbeKind::Readiness, None));
    let phases: Vec<_> = outcome.unwrap().into_iter().map(|s| s.phase).collect();
    assert_eq!(phases, [Phase::Ready, Phase::Ready]);
    client.phase("web.1", Phase::Ready).await;
    assert_eq!(client.statuses["web.1"].limits, None, "nobody made any");

    let stop = StopServices {
        target: services(&["db"]),
        transient: false,
    };
    client.ask(stop, PATIENCE).await.unwrap();
    let asked = [
        "spawn db.1 #1",
        "spawn web.1 #1",
        "stop web.1 #1",
        "stop db.1 #1",
    ];
    assert_eq!(setup.host.asked(), asked);
    client.phase("db.1", Phase::Idle).await;
    let is = |phase: &Phase| matches!(phase, Phase::WaitingForDependency { .. });
    client
        .wait("web.1 waits", |c| is(&c.statuses["web.1"].phase))
        .await;
    assert_eq!(client.statuses["web.1"].desired, Desired::Up);
}

#[tokio::test]
async fn a_failing_service_opens_its_circuit_and_says_so() {
    let mut setup = Setup::new("  bad: {command: [/bin/bad]}");
    setup.host.fails("bad.1");
    setup.start();
    let _manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("bad.1", Phase::CircuitOpen).await;
    let status = &client.statuses["bad.1"];
    assert_eq!((status.restarts, status.circuit), (2, Circuit::Open));
    assert_eq!(
        status.last_exit.as_ref().unwrap().result,
        ExitResult::ExitCode
    );
    let asked = ["spawn bad.1 #1", "spawn bad.1 #2", "spawn bad.1 #3"];
    assert_eq!(setup.host.asked(), asked);
    let start = StartServices {
        target: services(&["bad"]),
    };
    let (code, text) = client.ask(start, PATIENCE).await.unwrap_err();
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("blackhole reset bad"), "{text}");
    let reset = ResetServices {
        target: services(&["bad"]),
    };
    // It runs for a moment, which may be enough for an answer.
    let _ = client.ask(reset, PATIENCE).await;
    client
        .wait("open again", |c| {
            let status = &c.statuses["bad.1"];
            status.generation.0 == 6 && status.phase == Phase::CircuitOpen
        })
        .await;
    assert_eq!(setup.host.asked().len(), 6);
}

#[tokio::test]
async fn a_restart_is_another_process() {
    let mut setup = Setup::new("  web: {command: [/bin/web]}");
    setup.start();
    let _manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    let restart = RestartServices {
        target: services(&["web"]),
    };
    let outcome = client.ask(restart, PATIENCE).await.unwrap();
    assert_eq!(outcome[0].generation.0, 2);
    assert_eq!(outcome[0].restarts, 0, "nothing has failed");
    let asked = ["spawn web.1 #1", "stop web.1 #1", "spawn web.1 #2"];
    assert_eq!(setup.host.asked(), asked);
}

#[tokio::test]
async fn an_unhealthy_service_is_restarted() {
    let mut setup = Setup::new(
        "  web: {command: [/bin/web], health: {liveness: {tcp: '127.0.0.1:1', failure_threshold: 3}}}",
    );
    setup.start();
    let manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    manager
        .probe("web.1", ProbeKind::Liveness, Some("connection refused"))
        .await;
    client
        .wait("restarted", |c| {
            c.statuses["web.1"].restarts == 1 && c.statuses["web.1"].pid.is_some()
        })
        .await;
    let asked = ["spawn web.1 #1", "unhealthy web.1 #1", "spawn web.1 #2"];
    assert_eq!(setup.host.asked(), asked);
    assert!(
        client
            .whys
            .iter()
            .any(|why| why.contains("connection refused")),
        "{:#?}",
        client.whys
    );
}

#[tokio::test]
async fn mistakes_are_answered() {
    let mut setup = Setup::new("  identity: {command: [/bin/identity]}");
    setup.start();
    let client = setup.client().await;
    let start = StartServices {
        target: services(&["identty"]),
    };
    let (code, text) = client.ask(start, PATIENCE).await.unwrap_err();
    assert_eq!(code, Code::NotFound);
    assert!(text.contains("did you mean identity?"), "{text}");
    let start = StartServices {
        target: services(&["identity"]),
    };
    let (code, text) = client.ask(start, Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(code, Code::DeadlineExceeded);
    assert!(
        text.contains("identity.1: waits for process-manager"),
        "{text}"
    );
}
