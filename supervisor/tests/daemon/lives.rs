//! Deaths and returns of the supervisor and of the process-manager.

use blackhole_bus_schema::process::ExitResult;
use blackhole_bus_schema::supervision::{Desired, Phase, StartServices, StopServices, Target};

use super::support::{PATIENCE, Setup, services};

const TWO: &str = "  web: {command: [/bin/web]}\n  job: {command: [/bin/job]}";

#[tokio::test]
async fn a_killed_supervisor_changes_nothing_and_its_successor_goes_on() {
    let mut setup = Setup::new(TWO);
    setup.start();
    let manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    client.phase("job.1", Phase::Ready).await;
    let stop = StopServices {
        target: services(&["job"]),
        transient: false,
    };
    client.ask(stop, PATIENCE).await.unwrap();
    let pid = client.statuses["web.1"].pid;
    for _ in 0..3 {
        let asked = setup.host.asked();
        setup.kill().await;
        setup.start();
        let mut client = setup.client().await;
        client.phase("web.1", Phase::Ready).await;
        assert_eq!(client.statuses["web.1"].pid, pid);
        assert_eq!(client.statuses["web.1"].restarts, 0);
        assert_eq!(client.statuses["job.1"].desired, Desired::Down);
        assert_eq!(setup.host.asked(), asked, "nothing was started or stopped");
    }
    // One that ends while nobody decides is restarted by the successor, once.
    setup.kill().await;
    manager.end("web.1", ExitResult::Signal).await;
    setup.start();
    let mut client = setup.client().await;
    client
        .wait("restarted", |c| {
            c.statuses
                .get("web.1")
                .is_some_and(|s| s.phase == Phase::Ready && s.restarts == 1)
        })
        .await;
    assert_eq!(setup.host.asked().last().unwrap(), "spawn web.1 #2");
}

#[tokio::test]
async fn a_manager_that_is_away_is_waited_for() {
    let mut setup = Setup::new(TWO);
    setup.start();
    let mut client = setup.client().await;
    let waits = Phase::WaitingForComponent {
        component: "process-manager".into(),
    };
    client.phase("web.1", waits).await;
    client.note("waits for process-manager").await;
    let manager = setup.manager().await;
    client.phase("web.1", Phase::Ready).await;
    client.phase("job.1", Phase::Ready).await;
    let asked = setup.host.asked();

    // It dies with one of its processes, and another takes over.
    drop(manager);
    setup.host.end("job.1", ExitResult::ExitCode);
    let _manager = setup.manager().await;
    client
        .wait("job.1 restarted", |c| {
            let status = &c.statuses["job.1"];
            status.restarts == 1 && status.phase == Phase::Ready
        })
        .await;
    assert_eq!(
        setup.host.asked().len(),
        asked.len() + 1,
        "{:?}",
        setup.host.asked()
    );
    assert_eq!(client.statuses["web.1"].restarts, 0);
}

#[tokio::test]
async fn it_ends_in_order_and_leaves_its_services() {
    let mut setup = Setup::new(TWO);
    setup.start();
    let _manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    client.phase("job.1", Phase::Ready).await;
    setup.stop().await;
    assert_eq!(setup.host.asked(), ["spawn job.1 #1", "spawn web.1 #1"]);
}

#[tokio::test]
async fn a_transient_stop_is_forgotten_by_the_next_run() {
    let mut setup = Setup::new(TWO);
    setup.start();
    let _manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    client.phase("job.1", Phase::Ready).await;
    let stop = StopServices {
        target: Target::All,
        transient: true,
    };
    client.ask(stop, PATIENCE).await.unwrap();
    setup.stop().await;
    setup.start();
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    assert_eq!(client.statuses["web.1"].generation.0, 2);
}

#[tokio::test]
async fn what_left_the_configuration_is_stopped_and_what_is_new_started() {
    let mut setup = Setup::new(TWO);
    setup.start();
    let _manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    client.phase("job.1", Phase::Ready).await;
    setup.stop().await;
    setup.configure("  web: {command: [/bin/web]}\n  new: {command: [/bin/new]}");
    setup.start();
    let mut client = setup.client().await;
    client.phase("new.1", Phase::Ready).await;
    let host = setup.host.clone();
    client
        .wait("job.1 forgotten", |_| {
            host.asked().contains(&"forget job.1".to_owned())
        })
        .await;
    assert!(setup.host.asked().contains(&"stop job.1 #1".to_owned()));
    assert_eq!(client.statuses["web.1"].generation.0, 1);
}

#[tokio::test]
async fn without_a_configuration_it_leaves_everything_alone() {
    let mut setup = Setup::new(TWO);
    setup.start();
    let _manager = setup.manager().await;
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    client.phase("job.1", Phase::Ready).await;
    setup.stop().await;
    let asked = setup.host.asked();
    setup.start_with(false);
    let mut client = setup.client().await;
    client.phase("web.1", Phase::Ready).await;
    client.phase("job.1", Phase::Ready).await;
    client.note("no configuration").await;
    let start = StartServices {
        target: services(&["web"]),
    };
    let (_, text) = client.ask(start, PATIENCE).await.unwrap_err();
    assert!(text.contains("-c FILE"), "{text}");
    assert_eq!(setup.host.asked(), asked);
}
