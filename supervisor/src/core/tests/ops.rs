//! Commands of an operator: what they change, when and how they are answered.

use super::*;
use Condition::{Ready, Started};

#[test]
fn an_unknown_service_is_refused_with_those_near_it() {
    let mut bench = Bench::new(&[("identity", service()), ("storage", service())]);
    let ticket = bench.command(start(&["identty"]));
    assert_eq!(
        bench.refused(ticket),
        (
            Code::NotFound,
            "no service identty: did you mean identity?".into()
        )
    );
    let ticket = bench.command(stop(&["zzz"]));
    assert_eq!(
        bench.refused(ticket).1,
        "no service zzz: there are identity, storage"
    );
    // All of them are told at once.
    let ticket = bench.command(start(&["identty", "storage", "storag"]));
    assert_eq!(
        bench.refused(ticket).1,
        "no service identty: did you mean identity?; no service storag: did you mean storage?"
    );
}

#[test]
fn a_start_is_answered_when_ready() {
    let mut bench = Bench::new(&[(
        "a",
        ServiceConfig {
            autostart: false,
            ..probed()
        },
    )]);
    let ticket = bench.command(start(&["a"]));
    bench.runs("a.1");
    assert_eq!(bench.answer(ticket), None);
    bench.ready("a.1");
    let outcome = bench.answer(ticket).unwrap().unwrap();
    assert_eq!(outcome[0].phase, Phase::Ready);
    assert_eq!(outcome[0].pid, Some(1000));
    let again = bench.command(start(&["a"]));
    assert!(
        bench.answer(again).unwrap().is_ok(),
        "nothing to do is done"
    );
    assert_eq!(bench.take().len(), 1);
}

#[test]
fn a_start_that_cannot_be_executed_says_so_at_once() {
    let mut bench = Bench::new(&[(
        "a",
        ServiceConfig {
            autostart: false,
            ..service()
        },
    )]);
    let ticket = bench.command(start(&["a"]));
    bench.tell(not_started("a.1", 1));
    let (code, text) = bench.refused(ticket);
    assert_eq!(code, Code::Aborted);
    assert!(
        text.contains("exec /usr/bin/nothing") && text.contains("install it"),
        "{text}"
    );
}

#[test]
fn who_was_killed_for_its_memory_is_told_so() {
    let greedy = |mode| {
        let mut config = service();
        config.restart_mode = mode;
        config.restart_policy.max_attempts = 0;
        let mut bench = Bench::new(&[("a", config)]);
        bench.runs("a.1");
        let ticket = bench.command(Operator::Restart(target(&["a"])));
        bench.ends("a.1", ExitResult::Stopped);
        bench.take();
        bench.ends("a.1", ExitResult::OomKill);
        bench.refused(ticket).1
    };
    for mode in [RestartMode::Never, RestartMode::Always] {
        let text = greedy(mode);
        assert!(text.contains("out of memory"), "{mode:?}: {text}");
    }
}

#[test]
fn an_open_circuit_refuses_a_start_and_reset_closes_it() {
    let mut config = service();
    config.restart_policy.max_attempts = 0;
    let services = [("a", config), ("b", needs(service(), &[("a", Started)]))];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    bench.ends("a.1", ExitResult::ExitCode);
    bench.take();
    for command in [
        start(&["a"]),
        start(&["b"]),
        Operator::Restart(target(&["a"])),
    ] {
        let ticket = bench.command(command);
        let (code, text) = bench.refused(ticket);
        assert_eq!(code, Code::FailedPrecondition);
        assert!(
            text.contains("the circuit of a.1 is open (last end: exit code 1)"),
            "{text}"
        );
        assert!(text.contains("`blackhole reset a`"), "{text}");
    }
    assert_eq!(bench.take(), Vec::<String>::new());
    let ticket = bench.command(Operator::Reset(target(&["a"])));
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    bench.runs("a.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
    assert_eq!(bench.status("a.1").restarts, 0);
}

#[test]
fn a_start_whose_circuit_opens_meanwhile_is_refused_then() {
    let mut config = ServiceConfig {
        autostart: false,
        ..service()
    };
    config.restart_policy.max_attempts = 1;
    let mut bench = Bench::new(&[("a", config)]);
    let ticket = bench.command(start(&["a"]));
    for _ in 0..2 {
        assert_eq!(bench.answer(ticket), None);
        bench.ends("a.1", ExitResult::ExitCode);
    }
    assert_eq!(bench.refused(ticket).0, Code::FailedPrecondition);
}

#[test]
fn a_start_of_one_that_backs_off_is_immediate() {
    let mut bench = Bench::new(&[("a", service())]);
    for _ in 0..4 {
        bench.runs("a.1");
        bench.ends("a.1", ExitResult::ExitCode);
        bench.pass(secs(3));
    }
    assert_eq!(bench.phase("a.1"), "backing off");
    bench.take();
    bench.command(start(&["a"]));
    assert_eq!(bench.take().len(), 1);
    assert_eq!(bench.status("a.1").restarts, 0);
}

#[test]
fn a_deadline_names_what_is_waited_for() {
    let services = [
        ("db", probed()),
        ("web", needs(service(), &[("db", Ready)])),
    ];
    let mut bench = Bench::new(&services);
    bench.runs("db.1");
    bench.probe("db.1", ProbeKind::Readiness, Some("connection refused"), 1);
    let ticket = bench.command_within(start(&["web"]), secs(5));
    bench.pass(secs(4));
    assert_eq!(bench.answer(ticket), None);
    bench.pass(secs(1));
    assert_eq!(
        bench.refused(ticket),
        (
            Code::DeadlineExceeded,
            "not done in time, it goes on: web.1: waits for db ready (probing)".into()
        )
    );
}

#[test]
fn without_a_manager_a_start_waits_and_says_for_what() {
    let mut bench = Bench::bare(Some(&config(&[("a", service())])), Restored::default());
    let ticket = bench.command_within(start(&["a"]), secs(5));
    bench.pass(secs(5));
    assert_eq!(
        bench.refused(ticket).1,
        "not done in time, it goes on: a.1: waits for process-manager"
    );
    let ticket = bench.command(stop(&["a"]));
    assert!(
        bench.answer(ticket).unwrap().is_ok(),
        "nothing was ever started"
    );
}

#[test]
fn a_stopped_service_stays_stopped() {
    let services = [("a", service())];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    bench.take();
    let ticket = bench.command(stop(&["a"]));
    assert_eq!(bench.answer(ticket), None, "not before it is gone");
    bench.stopped("a.1");
    assert_eq!(
        bench.answer(ticket).unwrap().unwrap()[0].desired,
        Desired::Down
    );
    bench.reborn(Some(&services));
    bench.sync(&[ended("a.1", 1, ExitResult::Stopped, T0)]);
    bench.pass(secs(100));
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.status("a.1").desired, Desired::Down);
}

#[test]
fn a_wish_is_durable_and_written_before_anything_is_sent() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.runs("a.1");
    let command = Input::Command {
        ticket: Ticket(9),
        deadline: secs(9_000_000),
        command: stop(&["a"]),
    };
    let actions = super::handle(&mut bench.core, bench.now, command, None);
    let wish = actions.iter().position(|action| {
        matches!(action, Action::Persist { change: Change::Service(row), durable: true }
            if row.wish == Some(Desired::Down))
    });
    let stop = actions
        .iter()
        .position(|action| matches!(action, Action::Stop { .. }));
    assert!(wish.unwrap() < stop.unwrap());
}

#[test]
fn a_transient_stop_is_for_this_run_only() {
    let services = [("a", service()), ("job", oneshot())];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    bench.runs("job.1");
    bench.ends("job.1", ExitResult::Success);
    bench.take();
    let ticket = bench.command(Operator::Stop {
        target: Target::All,
        transient: true,
    });
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
    bench.pass(secs(100));
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.reborn(Some(&services));
    bench.input(Input::ControllerUp);
    let records = [
        ended("a.1", 1, ExitResult::Stopped, T0),
        ended("job.1", 1, ExitResult::Success, T0),
    ];
    bench.sync(&records);
    assert_eq!(bench.take(), ["spawn a.1 #2", "spawn job.1 #2"]);
}

#[test]
fn contrary_commands_answer_each_other() {
    let mut bench = Bench::new(&[("a", probed())]);
    bench.runs("a.1");
    let started = bench.command(start(&["a"]));
    let stopped = bench.command(stop(&["a"]));
    assert_eq!(bench.refused(started).0, Code::Aborted);
    let started = bench.command(start(&["a"]));
    assert_eq!(bench.refused(stopped).0, Code::Aborted);
    bench.stopped("a.1");
    bench.runs("a.1");
    bench.ready("a.1");
    assert!(bench.answer(started).unwrap().is_ok());
    assert_eq!(bench.generation("a.1"), 2);
}

#[test]
fn a_restart_takes_its_dependents_along_in_order() {
    let services = [
        ("db", service()),
        ("web", needs(service(), &[("db", Started)])),
        ("other", service()),
    ];
    let mut bench = Bench::new(&services);
    for name in ["db.1", "web.1", "other.1"] {
        bench.runs(name);
    }
    bench.take();
    let ticket = bench.command(Operator::Restart(target(&["db"])));
    assert_eq!(bench.take(), ["stop web.1 #1"]);
    bench.stopped("web.1");
    assert_eq!(bench.take(), ["stop db.1 #1"], "web waits for the new one");
    bench.stopped("db.1");
    assert_eq!(bench.take(), ["spawn db.1 #2"]);
    bench.runs("db.1");
    assert_eq!(bench.take(), ["spawn web.1 #2"]);
    assert_eq!(bench.answer(ticket), None);
    bench.runs("web.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
    assert_eq!(bench.status("db.1").restarts, 0);
}

#[test]
fn a_stop_keeps_its_order_over_one_that_is_gone() {
    let mut middle = needs(service(), &[("base", Started)]);
    middle.restart_mode = RestartMode::Never;
    let services = [
        ("base", service()),
        ("middle", middle),
        ("top", needs(service(), &[("middle", Started)])),
    ];
    let mut bench = Bench::new(&services);
    for name in ["base.1", "middle.1", "top.1"] {
        bench.runs(name);
    }
    bench.ends("middle.1", ExitResult::Signal);
    bench.take();
    bench.command(stop(&["base"]));
    assert_eq!(bench.take(), ["stop top.1 #1"], "base waits for it");
    bench.stopped("top.1");
    assert_eq!(bench.take(), ["stop base.1 #1"]);
}

#[test]
fn a_restart_runs_the_one_shots_that_require_it_again() {
    let services = [
        ("db", service()),
        ("migrate", needs(oneshot(), &[("db", Started)])),
        (
            "web",
            needs(service(), &[("migrate", Condition::Completed)]),
        ),
    ];
    let mut bench = Bench::new(&services);
    bench.runs("db.1");
    bench.runs("migrate.1");
    bench.ends("migrate.1", ExitResult::Success);
    bench.runs("web.1");
    bench.take();
    let ticket = bench.command(Operator::Restart(target(&["db"])));
    assert_eq!(bench.take(), ["stop web.1 #1"]);
    bench.stopped("web.1");
    assert_eq!(bench.take(), ["stop db.1 #1"]);
    bench.stopped("db.1");
    assert_eq!(bench.take(), ["spawn db.1 #2"]);
    bench.runs("db.1");
    assert_eq!(bench.take(), ["spawn migrate.1 #2"]);
    bench.runs("migrate.1");
    bench.ends("migrate.1", ExitResult::Success);
    assert_eq!(bench.take(), ["spawn web.1 #2"]);
    bench.runs("web.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
}

#[test]
fn a_restart_of_what_crashes_meanwhile_is_no_failure() {
    let services = [
        ("db", service()),
        ("web", needs(service(), &[("db", Started)])),
    ];
    let mut bench = Bench::new(&services);
    bench.runs("db.1");
    bench.runs("web.1");
    bench.take();
    bench.command(Operator::Restart(target(&["db"])));
    bench.ends("db.1", ExitResult::Signal);
    assert_eq!(bench.status("db.1").restarts, 0);
    bench.stopped("web.1");
    bench.runs("db.1");
    bench.runs("web.1");
    assert_eq!(bench.phase("web.1"), "ready");
}

#[test]
fn a_one_shot_runs_again_by_restart_only() {
    let mut bench = Bench::new(&[("job", oneshot())]);
    bench.runs("job.1");
    bench.ends("job.1", ExitResult::Success);
    bench.take();
    let ticket = bench.command(start(&["job"]));
    assert!(bench.answer(ticket).unwrap().is_ok());
    assert_eq!(bench.take(), Vec::<String>::new());
    let ticket = bench.command(Operator::Restart(target(&["job"])));
    assert_eq!(bench.take(), ["spawn job.1 #2"]);
    assert_eq!(bench.answer(ticket), None);
    bench.runs("job.1");
    assert_eq!(bench.answer(ticket), None, "running is not completed");
    bench.ends("job.1", ExitResult::Success);
    assert!(bench.answer(ticket).unwrap().is_ok());
}

#[test]
fn a_stop_during_the_spawn_stops_what_comes_of_it() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    let ticket = bench.command(stop(&["a"]));
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.runs("a.1");
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
}

#[test]
fn a_stop_begins_the_count_anew() {
    let mut config = service();
    config.restart_policy.max_attempts = 1;
    let mut bench = Bench::new(&[("a", config)]);
    for _ in 0..2 {
        bench.runs("a.1");
        bench.ends("a.1", ExitResult::ExitCode);
    }
    assert_eq!(bench.phase("a.1"), "circuit open");
    bench.take();
    let ticket = bench.command(stop(&["a"]));
    assert!(bench.answer(ticket).unwrap().is_ok());
    assert_eq!(bench.status("a.1").restarts, 0);
    bench.command(start(&["a"]));
    assert_eq!(bench.take(), ["spawn a.1 #3"]);
}

#[test]
fn what_a_service_says_is_told_as_that() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.runs("a.1");
    let notify = NotifyState {
        status: Some("42 users".into()),
        ..NotifyState::default()
    };
    let record = InstanceRecord {
        notify,
        ..running("a.1", 1, T0)
    };
    bench.tell(record);
    assert_eq!(bench.said.last().unwrap(), "a.1 ready: says: 42 users");
}

#[test]
fn what_a_probe_finds_is_not_told_as_the_services_words() {
    let mut bench = Bench::new(&[("a", probed())]);
    bench.runs("a.1");
    let readiness = ProbeKind::Readiness;
    for error in ["refused", "no route"] {
        bench.probe("a.1", readiness, Some(error), 1);
        let told = format!("a.1 probing: {error}");
        assert_eq!(bench.said.last(), Some(&told));
    }
}

/// A migration is run again; that something which requires it has failed for
/// good is no failure of the migration.
#[test]
fn a_restart_of_a_one_shot_is_not_failed_by_a_dependent_that_is_down() {
    let mut app = needs(service(), &[("migrate", Condition::Completed)]);
    app.restart_policy.max_attempts = 0;
    let mut bench = Bench::new(&[("migrate", oneshot()), ("app", app)]);
    bench.take();
    bench.runs("migrate.1");
    bench.ends("migrate.1", ExitResult::Success);
    bench.take();
    bench.runs("app.1");
    bench.ends("app.1", ExitResult::ExitCode);
    assert_eq!(bench.phase("app.1"), "circuit open");
    let restarted = bench.command(Operator::Restart(target(&["migrate"])));
    assert_eq!(bench.take(), ["spawn migrate.1 #2"]);
    assert!(bench.answer(restarted).is_none());
    bench.runs("migrate.1");
    bench.ends("migrate.1", ExitResult::Success);
    assert!(bench.answer(restarted).unwrap().is_ok());
}

/// Sockets that are kept for the successor of a service that has failed.
#[test]
fn a_stop_of_what_has_ended_lets_go_what_was_kept_for_its_successor() {
    let mut listening = service();
    listening.settings.fd_store = 1;
    listening.restart_mode = blackhole_bus_schema::config::RestartMode::Never;
    let plain = ServiceConfig {
        settings: Default::default(),
        ..listening.clone()
    };
    let mut bench = Bench::new(&[("a", listening), ("b", plain)]);
    for name in ["a.1", "b.1"] {
        bench.runs(name);
        bench.ends(name, ExitResult::ExitCode);
    }
    bench.take();
    let ticket = bench.command(stop(&["a", "b"]));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    assert_eq!(bench.answer(ticket), None, "not before they are closed");
    let record = bench.core.instances[&"a.1".parse().unwrap()].record.clone();
    let reply = |result| Input::StopReply {
        manager: None,
        instance: "a.1".parse().unwrap(),
        generation: Generation(1),
        result,
    };
    bench.input(reply(Err(RequestFailure::Unknown("lost".into()))));
    assert_eq!(bench.answer(ticket).unwrap().unwrap().len(), 2);
    bench.pass(secs(2));
    assert_eq!(bench.take(), ["stop a.1 #1"], "until it is certain");
    bench.input(reply(Ok(Box::new(record.unwrap()))));
    bench.pass(secs(60));
    assert_eq!(bench.take(), Vec::<String>::new());
    // Stopped by a stop there is nothing left.
    bench.command(start(&["a"]));
    bench.take();
    bench.runs("a.1");
    bench.command(stop(&["a"]));
    assert_eq!(bench.take(), ["stop a.1 #2"]);
    bench.stopped("a.1");
    bench.pass(secs(60));
    assert_eq!(bench.take(), Vec::<String>::new());
}
