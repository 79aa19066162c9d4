//! First starts: what has to be there, in which order things are asked for.

use super::*;

#[test]
fn nothing_is_started_before_the_manager_has_told_what_runs() {
    let mut bench = Bench::bare(Some(&config(&[("a", service())])), Restored::default());
    bench.input(Input::ControllerUp);
    assert_eq!(bench.phase("a.1"), "waiting for process-manager");
    bench.input(Input::ManagerUp(None));
    bench.pass(secs(60));
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.input(Input::ManagerSnapshot(None, Vec::new()));
    assert_eq!(bench.phase("a.1"), "preparing");
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
    assert_eq!(bench.phase("a.1"), "spawning");
    bench.runs("a.1");
    assert_eq!(bench.phase("a.1"), "ready");
    assert_eq!(bench.status("a.1").pid, Some(1000));
    assert_eq!(bench.status("a.1").restarts, 0);
}

#[test]
fn a_missing_controller_is_waited_for_three_seconds() {
    let mut bench = Bench::bare(Some(&config(&[("a", service())])), Restored::default());
    bench.sync(&[]);
    assert_eq!(bench.phase("a.1"), "waiting for resource-controller");
    bench.pass(secs(2));
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.pass(secs(1));
    assert_eq!(bench.spec("a.1").grant, None);
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
    bench.runs("a.1");
    assert_eq!(bench.status("a.1").limits, None);
}

#[test]
fn readiness_makes_ready_and_its_loss_shows() {
    let mut bench = Bench::new(&[("a", probed())]);
    bench.runs("a.1");
    assert_eq!(bench.phase("a.1"), "probing");
    bench.probe("a.1", ProbeKind::Readiness, Some("connection refused"), 1);
    assert_eq!(
        bench.status("a.1").detail.as_deref(),
        Some("connection refused")
    );
    bench.ready("a.1");
    assert_eq!(bench.phase("a.1"), "ready");
    bench.probe("a.1", ProbeKind::Readiness, Some("503"), 3);
    assert_eq!(bench.phase("a.1"), "not ready");
    bench.ready("a.1");
    assert_eq!(bench.phase("a.1"), "ready");
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
}

#[test]
fn readiness_by_notification() {
    let mut service = probed();
    service.probes.liveness = None;
    service.probes.readiness.as_mut().unwrap().check = ProbeCheck::Notify;
    let mut bench = Bench::new(&[("a", service)]);
    bench.runs("a.1");
    assert_eq!(bench.phase("a.1"), "probing");
    let notify = NotifyState {
        ready: true,
        status: Some("42 users".into()),
        ..NotifyState::default()
    };
    let (instance, generation) = ("a.1".parse().unwrap(), Generation(1));
    bench.input(Input::ProcessNotified(ProcessNotifiedOf {
        instance,
        generation,
        notify,
    }));
    assert_eq!(bench.phase("a.1"), "ready");
    assert_eq!(bench.status("a.1").detail.as_deref(), Some("42 users"));
}

use blackhole_bus_schema::process::ProcessNotified as ProcessNotifiedOf;

#[test]
fn an_unhealthy_one_is_stopped_and_restarted_by_the_policy() {
    let mut bench = Bench::new(&[("a", probed())]);
    bench.runs("a.1");
    bench.ready("a.1");
    bench.take();
    bench.probe("a.1", ProbeKind::Liveness, Some("no answer"), 2);
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.probe("a.1", ProbeKind::Liveness, Some("no answer"), 3);
    assert_eq!(bench.take(), ["unhealthy a.1 #1"]);
    assert_eq!(bench.phase("a.1"), "stopping");
    bench.ends("a.1", ExitResult::Unhealthy);
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    assert_eq!(bench.status("a.1").restarts, 1);
    let error = |bench: &Bench| bench.status("a.1").last_error;
    assert_eq!(error(&bench).as_deref(), Some("unhealthy: no answer"));
    bench.runs("a.1");
    assert_eq!(error(&bench), None);
}

#[test]
fn every_replica_is_an_instance() {
    let mut bench = Bench::new(&[(
        "a",
        ServiceConfig {
            replicas: 3,
            ..service()
        },
    )]);
    assert_eq!(
        bench.take(),
        ["spawn a.1 #1", "spawn a.2 #1", "spawn a.3 #1"]
    );
}

#[test]
fn without_autostart_it_stays_down_unless_required() {
    let quiet = || ServiceConfig {
        autostart: false,
        ..service()
    };
    let mut bench = Bench::new(&[
        ("a", quiet()),
        ("b", quiet()),
        ("c", needs(service(), &[("b", Condition::Started)])),
    ]);
    assert_eq!(bench.take(), ["spawn b.1 #1"]);
    assert_eq!(bench.phase("a.1"), "idle");
    bench.runs("b.1");
    assert_eq!(bench.take(), ["spawn c.1 #1"]);
}

#[test]
fn a_one_shot_is_through_once() {
    let mut bench = Bench::new(&[("job", oneshot())]);
    assert_eq!(bench.take(), ["spawn job.1 #1"]);
    bench.runs("job.1");
    bench.ends("job.1", ExitResult::Success);
    bench.pass(secs(600));
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("job.1"), "idle");
    assert!(bench.status("job.1").completed);
    bench.reborn(Some(&[("job", oneshot())]));
    bench.sync(&[ended("job.1", 1, ExitResult::Success, T0)]);
    bench.pass(secs(60));
    assert_eq!(
        bench.take(),
        Vec::<String>::new(),
        "not again for a new supervisor"
    );
    bench.disk.rebooted = true;
    bench.reborn(Some(&[("job", oneshot())]));
    bench.sync(&[]);
    bench.pass(secs(60));
    assert_eq!(bench.take(), ["spawn job.1 #2"], "but again after a boot");
}

/// Around a fork server that hangs: nothing is due meanwhile, and the time is
/// not counted against (or for) its probes.
#[test]
fn a_spawn_that_takes_long_keeps_nobody_busy_and_its_probes_are_waited_for_from_its_start() {
    let mut bench = Bench::new(&[("a", probed())]);
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
    bench.tell(record("a.1", 1, ProcessState::Spawn {}));
    for _ in 0..100 {
        bench.now = bench.now.after(secs(1));
        bench.input(Input::Tick);
        let due = bench.core.next_deadline();
        assert!(due.is_none_or(|due| due > bench.now.mono), "{due:?}");
    }
    bench.runs("a.1");
    assert_eq!(bench.phase("a.1"), "probing");
    bench.ready("a.1");
    assert_eq!(bench.phase("a.1"), "ready");
}
