//! What a process-manager tells, late, twice, or not at all.

use super::*;

fn unknown() -> RequestFailure {
    RequestFailure::Unknown("timed out".into())
}

#[test]
fn silence_is_not_death() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.runs("a.1");
    bench.take();
    bench.input(Input::ManagerDown(None));
    bench.pass(secs(1000));
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("a.1"), "ready");
    bench.sync(&[InstanceRecord {
        adopted: true,
        ..running("a.1", 1, T0)
    }]);
    bench.pass(secs(1000));
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.status("a.1").restarts, 0);
}

#[test]
fn an_end_while_the_manager_was_away_counts_once() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.runs("a.1");
    bench.take();
    bench.input(Input::ManagerDown(None));
    let end = ended("a.1", 1, ExitResult::Signal, T0);
    bench.sync(std::slice::from_ref(&end));
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    bench.tell(end.clone());
    bench.input(Input::ManagerSnapshot(None, vec![end]));
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.status("a.1").restarts, 1);
    assert_eq!(bench.phase("a.1"), "spawning");
}

#[test]
fn an_end_while_the_supervisor_was_away_counts_once() {
    let services = [("a", service())];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    for _ in 0..2 {
        bench.reborn(Some(&services));
    }
    bench.input(Input::ControllerUp);
    bench.sync(&[ended("a.1", 1, ExitResult::Signal, T0)]);
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    bench.runs("a.1");
    bench.reborn(Some(&services));
    bench.sync(&[InstanceRecord {
        adopted: true,
        ..running("a.1", 2, T0)
    }]);
    assert_eq!(bench.status("a.1").restarts, 1);
    assert_eq!(
        bench.status("a.1").last_exit.unwrap().generation,
        Generation(1)
    );
}

#[test]
fn a_restarted_supervisor_leaves_running_services_alone() {
    let services = [
        ("a", probed()),
        ("b", needs(service(), &[("a", Condition::Ready)])),
    ];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    bench.ready("a.1");
    bench.runs("b.1");
    bench.reborn(Some(&services));
    assert_eq!(bench.phase("a.1"), "waiting for process-manager");
    bench.sync(&[running("a.1", 1, T0), running("b.1", 1, T0)]);
    assert_eq!(bench.phase("a.1"), "ready", "as it was when last seen");
    assert_eq!(bench.phase("b.1"), "ready");
    bench.pass(secs(100));
    assert_eq!(bench.take(), Vec::<String>::new());
}

#[test]
fn one_adopted_before_it_was_ready_is_ready_when_no_probe_fails() {
    let services = [("a", probed())];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    bench.reborn(Some(&services));
    bench.sync(&[running("a.1", 1, T0)]);
    assert_eq!(bench.phase("a.1"), "probing");
    bench.pass(secs(10));
    assert_eq!(bench.phase("a.1"), "ready");
}

#[test]
fn a_lost_reply_is_followed_by_the_same_generation() {
    let mut bench = Bench::new(&[("a", service())]);
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
    let (instance, generation): (InstanceName, _) = ("a.1".parse().unwrap(), Generation(1));
    bench.input(Input::SpawnReply {
        manager: None,
        instance: instance.clone(),
        generation,
        result: Err(unknown()),
    });
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.pass(secs(1));
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
    // It had started after all: the second one is refused, the event tells.
    bench.tell(running("a.1", 1, T0));
    let status = Status::new(Code::FailedPrecondition, "generation 1 is not newer than 1");
    let result = Err(RequestFailure::Refused(status));
    bench.input(Input::SpawnReply {
        manager: None,
        instance,
        generation,
        result,
    });
    bench.pass(secs(100));
    assert_eq!(bench.phase("a.1"), "ready");
    assert_eq!(bench.take(), Vec::<String>::new());
}

#[test]
fn a_spawn_that_a_dead_supervisor_sent_is_settled_by_the_snapshot() {
    let services = [("a", service())];
    for arrived in [true, false] {
        let mut bench = Bench::new(&services);
        assert_eq!(bench.take(), ["spawn a.1 #1"]);
        bench.reborn(Some(&services));
        bench.input(Input::ControllerUp);
        assert_eq!(bench.take(), Vec::<String>::new());
        if arrived {
            bench.sync(&[running("a.1", 1, T0)]);
            assert_eq!(bench.take(), Vec::<String>::new());
        } else {
            bench.sync(&[]);
            assert_eq!(bench.take(), ["spawn a.1 #1"]);
        }
    }
}

#[test]
fn a_stop_of_a_spawn_whose_fate_is_unknown_asks_the_manager() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    let ticket = bench.command(stop(&["a"]));
    let (instance, generation): (InstanceName, _) = ("a.1".parse().unwrap(), Generation(1));
    bench.input(Input::SpawnReply {
        manager: None,
        instance: instance.clone(),
        generation,
        result: Err(unknown()),
    });
    bench.pass(secs(1));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    assert_eq!(bench.answer(ticket), None);
    let status = Status::new(Code::NotFound, "no a.1");
    let result = Err(RequestFailure::Refused(status));
    bench.input(Input::StopReply {
        manager: None,
        instance,
        generation,
        result,
    });
    assert!(bench.answer(ticket).unwrap().is_ok());
    bench.command(start(&["a"]));
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
}

#[test]
fn a_refused_spawn_is_shown_and_tried_again() {
    let mut bench = Bench::new(&[("a", service()), ("b", service())]);
    bench.runs("b.1");
    bench.take();
    let status = Status::new(Code::ResourceExhausted, "max_processes: 50 of 50 run");
    let (instance, generation) = ("a.1".parse().unwrap(), Generation(1));
    let result = Err(RequestFailure::Refused(status));
    bench.input(Input::SpawnReply {
        manager: None,
        instance,
        generation,
        result,
    });
    assert_eq!(bench.phase("a.1"), "refused: max_processes: 50 of 50 run");
    bench.command(stop(&["b"]));
    bench.stopped("b.1");
    assert_eq!(
        bench.take(),
        ["stop b.1 #1", "spawn a.1 #1"],
        "as soon as there is room"
    );
    bench.runs("a.1");
    assert_eq!(bench.status("a.1").restarts, 0);
}

#[test]
fn late_and_doubled_news_change_nothing() {
    let mut bench = Bench::new(&[("a", service())]);
    let spawn = record("a.1", 1, ProcessState::Spawn {});
    let run = running("a.1", 1, T0);
    let end = ended("a.1", 1, ExitResult::ExitCode, T0);
    for record in [&spawn, &run, &end, &end, &run, &spawn] {
        bench.tell(record.clone());
    }
    assert_eq!(bench.take(), ["spawn a.1 #1", "spawn a.1 #2"]);
    let (instance, generation) = ("a.1".parse().unwrap(), Generation(1));
    bench.input(Input::SpawnReply {
        manager: None,
        instance,
        generation,
        result: Ok(Box::new(run)),
    });
    assert_eq!(bench.phase("a.1"), "spawning");
    assert_eq!(bench.status("a.1").restarts, 1);
}

#[test]
fn what_the_stream_told_and_the_snapshot_misses_is_lost() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.runs("a.1");
    bench.take();
    bench.sync(&[]);
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    assert_eq!(
        bench.status("a.1").last_exit.unwrap().result,
        ExitResult::ShimLost
    );
}

#[test]
fn a_spawn_that_outlives_a_manager_is_not_made_twice() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.tell(record("a.1", 1, ProcessState::Spawn {}));
    bench.input(Input::ManagerDown(None));
    // The request is still being repeated and reaches the next manager.
    bench.sync(&[]);
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("a.1"), "spawning");
    bench.runs("a.1");
    assert_eq!(bench.phase("a.1"), "ready");
}

#[test]
fn what_only_a_reply_told_is_not_lost_by_an_older_snapshot() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    let (instance, generation) = ("a.1".parse().unwrap(), Generation(1));
    let result = Ok(Box::new(running("a.1", 1, T0)));
    bench.input(Input::SpawnReply {
        manager: None,
        instance,
        generation,
        result,
    });
    bench.input(Input::ManagerSnapshot(None, Vec::new()));
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("a.1"), "ready");
}

#[test]
fn a_new_manager_that_knows_nothing_of_a_stop_is_told_again() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.runs("a.1");
    bench.take();
    let ticket = bench.command(stop(&["a"]));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    let (instance, generation) = ("a.1".parse().unwrap(), Generation(1));
    bench.tell(record(
        "a.1",
        1,
        ProcessState::Stopping {
            pid: 1000,
            started_at: T0,
        },
    ));
    bench.input(Input::ManagerDown(None));
    bench.input(Input::StopReply {
        manager: None,
        instance,
        generation,
        result: Err(unknown()),
    });
    bench.sync(&[running("a.1", 1, T0)]);
    bench.pass(secs(1));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
}

#[test]
fn a_stranger_is_shown_and_left_alone() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.sync(&[running("ghost.1", 7, T0)]);
    assert_eq!(bench.phase("ghost.1"), "ready");
    assert!(
        bench.core.notes().iter().any(|note| note.contains("ghost")),
        "{:?}",
        bench.core.notes()
    );
    assert!(
        bench
            .disk
            .services
            .iter()
            .all(|row| row.name.as_str() != "ghost")
    );
    bench.pass(secs(100));
    assert!(!bench.take().iter().any(|line| line.contains("ghost")));
    let ticket = bench.command(stop(&["ghost"]));
    assert_eq!(bench.take(), ["stop ghost.1 #7"]);
    bench.stopped("ghost.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
    assert!(bench.core.status(&"ghost.1".parse().unwrap()).is_none());
}

#[test]
fn what_left_the_configuration_is_stopped_in_order_and_forgotten() {
    let before = [
        ("db", service()),
        ("web", needs(service(), &[("db", Condition::Started)])),
        (
            "keep",
            ServiceConfig {
                replicas: 2,
                ..service()
            },
        ),
    ];
    let mut bench = Bench::new(&before);
    for name in ["db.1", "web.1", "keep.1", "keep.2"] {
        bench.runs(name);
    }
    let records = ["db.1", "web.1", "keep.1", "keep.2"].map(|name| running(name, 1, T0));
    bench.reborn(Some(&[("keep", service()), ("new", service())]));
    bench.input(Input::ControllerUp);
    bench.sync(&records);
    assert_eq!(
        bench.take(),
        ["stop keep.2 #1", "stop web.1 #1", "spawn new.1 #1"]
    );
    bench.stopped("web.1");
    bench.stopped("keep.2");
    let mut taken = bench.take();
    taken.sort();
    assert_eq!(taken, ["forget keep.2", "forget web.1", "stop db.1 #1"]);
    bench.stopped("db.1");
    for name in ["web.1", "keep.2", "db.1"] {
        let instance = name.parse().unwrap();
        bench.input(Input::ForgetReply {
            manager: None,
            instance,
            result: Ok(()),
        });
    }
    let mut left: Vec<_> = bench
        .disk
        .instances
        .iter()
        .map(|row| row.instance.to_string())
        .collect();
    left.sort();
    assert_eq!(left, ["keep.1", "new.1"]);
    let mut left: Vec<_> = bench
        .disk
        .services
        .iter()
        .map(|row| row.name.to_string())
        .collect();
    left.sort();
    assert_eq!(left, ["keep", "new"]);
    assert!(
        bench
            .said
            .iter()
            .any(|line| line.contains("not in the configuration any more"))
    );
}

#[test]
fn without_a_configuration_everything_is_left_alone() {
    let mut bench = Bench::new(&[("a", service()), ("b", service())]);
    bench.runs("a.1");
    bench.runs("b.1");
    bench.reborn(None);
    bench.input(Input::ControllerUp);
    bench.sync(&[
        running("a.1", 1, T0),
        ended("b.1", 1, ExitResult::Signal, T0),
    ]);
    bench.pass(secs(100));
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("a.1"), "ready");
    let ticket = bench.command(start(&["b"]));
    assert_eq!(bench.refused(ticket).0, Code::FailedPrecondition);
    let ticket = bench.command(stop(&["a"]));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    assert!(bench.answer(ticket).unwrap().is_ok());
    bench.reborn(Some(&[("a", service()), ("b", service())]));
    bench.input(Input::ControllerUp);
    bench.sync(&[]);
    assert_eq!(
        bench.take(),
        ["spawn b.1 #2"],
        "and the configuration's return finds all wishes"
    );
}

#[test]
fn a_lost_database_takes_its_numbers_from_the_world() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.sent.clear();
    let mut bench = {
        bench.disk = Restored::default();
        bench.reborn(Some(&[("a", service())]));
        bench
    };
    bench.input(Input::ControllerUp);
    bench.sync(&[InstanceRecord {
        adopted: true,
        ..running("a.1", 41, T0)
    }]);
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.ends("a.1", ExitResult::ExitCode);
    assert_eq!(bench.take(), ["spawn a.1 #42"]);
}

#[test]
fn a_configuration_may_change_while_it_runs() {
    let mut bench = Bench::new(&[("a", service()), ("b", service())]);
    bench.runs("a.1");
    bench.runs("b.1");
    bench.take();
    let services = [
        (
            "a",
            ServiceConfig {
                replicas: 2,
                ..service()
            },
        ),
        ("c", needs(service(), &[("a", Condition::Started)])),
    ];
    bench.input(Input::Configured(Box::new(config(&services))));
    assert_eq!(bench.take(), ["stop b.1 #1", "spawn a.2 #1"]);
    bench.stopped("b.1");
    bench.runs("a.2");
    let mut taken = bench.take();
    taken.sort();
    assert_eq!(taken, ["forget b.1", "spawn c.1 #1"]);
    // A stranger may become one's own.
    bench.tell(running("d.1", 3, T0));
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.input(Input::Configured(Box::new(config(&[("d", service())]))));
    bench.ends("d.1", ExitResult::Signal);
    assert!(bench.take().contains(&"spawn d.1 #4".to_owned()));
}

/// Around a fork server that hangs and a manager that dies over it: the stop is
/// heard, the answer is not, and the manager refuses that spawn from then on.
#[test]
fn a_spawn_that_was_stopped_before_it_came_is_followed_by_another() {
    let mut bench = Bench::new(&[("a", service())]);
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
    let unknown = || RequestFailure::Unknown("no answer".into());
    let refused = || {
        let text = "generation 1 was stopped already, 1 comes too late";
        RequestFailure::Refused(Status::new(Code::FailedPrecondition, text))
    };
    let answer = |bench: &mut Bench, generation, failure| {
        bench.input(Input::SpawnReply {
            manager: None,
            instance: "a.1".parse().unwrap(),
            generation: Generation(generation),
            result: Err(failure),
        });
    };
    answer(&mut bench, 1, unknown());
    bench.command(stop(&["a"]));
    bench.pass(secs(2));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.input(Input::StopReply {
        manager: None,
        instance: "a.1".parse().unwrap(),
        generation: Generation(1),
        result: Err(unknown()),
    });
    let started = bench.command(start(&["a"]));
    bench.pass(secs(5));
    assert_eq!(bench.take(), ["spawn a.1 #1"], "its fate is not known");
    answer(&mut bench, 1, refused());
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    // One that was never sent before is not tried again without a pause.
    answer(&mut bench, 2, refused());
    assert_eq!(bench.take(), [""; 0]);
    assert_eq!(bench.refused(started).0, Code::FailedPrecondition);
    bench.pass(secs(30));
    assert_eq!(bench.take(), ["spawn a.1 #3"]);
    bench.runs("a.1");
    assert!(bench.status("a.1").last_error.is_none());
}
