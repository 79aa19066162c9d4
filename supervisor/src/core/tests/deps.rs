//! Dependencies: order of starts and stops, and what a failure means for others.

use super::*;
use Condition::{Completed, Ready, Started};

#[test]
fn a_start_waits_for_its_conditions_and_no_longer() {
    let mut bench = Bench::new(&[
        ("db", probed()),
        ("migrate", needs(oneshot(), &[("db", Ready)])),
        ("side", needs(service(), &[("db", Started)])),
        (
            "web",
            needs(service(), &[("db", Ready), ("migrate", Completed)]),
        ),
    ]);
    assert_eq!(bench.take(), ["spawn db.1 #1"]);
    assert_eq!(
        bench.phase("web.1"),
        "waiting for db ready (spawning), migrate completed (waiting)"
    );
    bench.runs("db.1");
    assert_eq!(bench.take(), ["spawn side.1 #1"]);
    bench.ready("db.1");
    assert_eq!(bench.take(), ["spawn migrate.1 #1"]);
    bench.runs("migrate.1");
    assert_eq!(
        bench.phase("web.1"),
        "waiting for migrate completed (running)"
    );
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.ends("migrate.1", ExitResult::Success);
    assert_eq!(bench.take(), ["spawn web.1 #1"]);
}

#[test]
fn independent_services_start_side_by_side() {
    let mut bench = Bench::new(&[
        ("a", service()),
        ("b", service()),
        ("c", needs(service(), &[("a", Started), ("b", Started)])),
    ]);
    assert_eq!(bench.take(), ["spawn a.1 #1", "spawn b.1 #1"]);
    bench.runs("b.1");
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.runs("a.1");
    assert_eq!(bench.take(), ["spawn c.1 #1"]);
}

#[test]
fn all_replicas_have_to_be_ready() {
    let mut bench = Bench::new(&[
        (
            "db",
            ServiceConfig {
                replicas: 2,
                ..probed()
            },
        ),
        ("web", needs(service(), &[("db", Ready)])),
    ]);
    bench.runs("db.1");
    bench.runs("db.2");
    bench.ready("db.2");
    bench.take();
    bench.ready("db.1");
    assert_eq!(bench.take(), ["spawn web.1 #1"]);
}

#[test]
fn a_failed_one_shot_leaves_its_dependents_waiting_with_the_reason() {
    let job = ServiceConfig {
        restart_mode: RestartMode::Never,
        ..oneshot()
    };
    let mut bench = Bench::new(&[
        ("job", job),
        ("web", needs(service(), &[("job", Completed)])),
    ]);
    bench.runs("job.1");
    bench.take();
    bench.ends("job.1", ExitResult::ExitCode);
    assert_eq!(bench.phase("job.1"), "gave up");
    assert_eq!(bench.phase("web.1"), "waiting for job completed (gave up)");
    bench.pass(secs(1000));
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.command(start(&["job"]));
    assert_eq!(bench.take(), ["spawn job.1 #2"]);
    bench.runs("job.1");
    bench.ends("job.1", ExitResult::Success);
    assert_eq!(bench.take(), ["spawn web.1 #1"]);
}

#[test]
fn a_crash_leaves_dependents_alone_but_their_own_restart_waits() {
    let mut bench = Bench::new(&[
        ("db", probed()),
        ("web", needs(service(), &[("db", Ready)])),
    ]);
    bench.runs("db.1");
    bench.ready("db.1");
    bench.runs("web.1");
    bench.take();
    bench.ends("db.1", ExitResult::Signal);
    assert_eq!(bench.take(), ["spawn db.1 #2"], "web carries on");
    bench.ends("web.1", ExitResult::ExitCode);
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("web.1"), "waiting for db ready (spawning)");
    bench.runs("db.1");
    bench.ready("db.1");
    assert_eq!(bench.take(), ["spawn web.1 #2"]);
}

#[test]
fn a_soft_dependency_orders_but_does_not_block() {
    let mut bench = Bench::new(&[
        (
            "cache",
            ServiceConfig {
                restart_mode: RestartMode::Never,
                ..probed()
            },
        ),
        ("web", prefers(service(), "cache", Ready)),
    ]);
    assert_eq!(bench.take(), ["spawn cache.1 #1"]);
    bench.runs("cache.1");
    assert_eq!(bench.phase("web.1"), "waiting for cache ready (probing)");
    bench.ends("cache.1", ExitResult::ExitCode);
    assert_eq!(bench.take(), ["spawn web.1 #1"]);
}

#[test]
fn a_soft_dependency_that_cannot_come_up_is_not_waited_for() {
    let job = ServiceConfig {
        restart_mode: RestartMode::Never,
        ..oneshot()
    };
    let mut bench = Bench::new(&[
        ("job", job),
        ("cache", needs(service(), &[("job", Completed)])),
        ("web", prefers(service(), "cache", Ready)),
    ]);
    bench.runs("job.1");
    bench.take();
    bench.ends("job.1", ExitResult::ExitCode);
    assert_eq!(bench.take(), ["spawn web.1 #1"]);
    let mut bench = Bench::new(&[
        ("cache", service()),
        ("web", prefers(service(), "cache", Ready)),
    ]);
    bench.take();
    bench.command(stop(&["cache"]));
    bench.ends("cache.1", ExitResult::Stopped);
    assert_eq!(bench.take(), ["spawn web.1 #1"], "stopped on purpose");
}

#[test]
fn a_stop_goes_from_the_dependents_down_and_they_return() {
    let services = [
        ("db", service()),
        ("web", needs(service(), &[("db", Started)])),
        ("front", needs(service(), &[("web", Started)])),
    ];
    let mut bench = Bench::new(&services);
    for name in ["db.1", "web.1", "front.1"] {
        bench.runs(name);
    }
    bench.take();
    let ticket = bench.command(stop(&["db"]));
    assert_eq!(bench.take(), ["stop front.1 #1"]);
    assert_eq!(bench.phase("db.1"), "stopping");
    bench.stopped("front.1");
    assert_eq!(bench.take(), ["stop web.1 #1"]);
    assert_eq!(bench.answer(ticket), None);
    bench.stopped("web.1");
    assert_eq!(bench.take(), ["stop db.1 #1"]);
    bench.stopped("db.1");
    assert_eq!(bench.answer(ticket).unwrap().unwrap().len(), 3);
    assert_eq!(bench.phase("db.1"), "idle");
    assert_eq!(bench.phase("web.1"), "waiting for db started (stopped)");
    assert_eq!(bench.status("web.1").desired, Desired::Up);
    bench.pass(secs(1000));
    assert_eq!(bench.take(), Vec::<String>::new());
    let restarts = bench.status("web.1").restarts;
    assert_eq!(restarts, 0, "a stop is no failure");

    bench.command(start(&["db"]));
    assert_eq!(bench.take(), ["spawn db.1 #2"]);
    bench.runs("db.1");
    assert_eq!(bench.take(), ["spawn web.1 #2"]);
    bench.runs("web.1");
    assert_eq!(bench.take(), ["spawn front.1 #2"]);
}

#[test]
fn a_start_brings_what_is_required_with_it() {
    let services = [
        ("db", service()),
        ("web", needs(service(), &[("db", Ready)])),
    ];
    let mut bench = Bench::new(&services);
    for name in ["db.1", "web.1"] {
        bench.runs(name);
    }
    bench.command(Operator::Stop {
        target: Target::All,
        transient: false,
    });
    bench.stopped("web.1");
    bench.stopped("db.1");
    bench.take();
    let ticket = bench.command(start(&["web"]));
    assert_eq!(bench.take(), ["spawn db.1 #2"]);
    bench.runs("db.1");
    bench.runs("web.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
    assert_eq!(bench.status("db.1").desired, Desired::Up);
}
