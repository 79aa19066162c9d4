//! The resource-controller: admission, refusals, absence, return.

use super::*;

fn exhausted() -> RequestFailure {
    let text = "memory: 900 MiB asked for, 100 MiB of 1000 MiB are free";
    RequestFailure::Refused(Status::new(Code::ResourceExhausted, text))
}

fn raw(services: &[(&str, ServiceConfig)]) -> Bench {
    let mut bench = Bench::bare(Some(&config(services)), Restored::default());
    bench.input(Input::ControllerUp);
    bench.sync(&[]);
    bench
}

fn prepared(bench: &mut Bench, name: &str, result: Result<LimitGrant, RequestFailure>) {
    let instance: InstanceName = name.parse().unwrap();
    let index = bench
        .sent
        .iter()
        .position(|action| matches!(action, Action::Prepare { instance: i, .. } if *i == instance))
        .unwrap_or_else(|| panic!("no prepare of {name} in {:?}", bench.sent));
    bench.sent.remove(index);
    bench.input(Input::PrepareReply {
        instance,
        result: result.map(Box::new),
    });
}

fn grant(path: &str) -> LimitGrant {
    LimitGrant {
        kill_cgroup: Some(path.into()),
        ..LimitGrant::default()
    }
}

#[test]
fn the_grant_travels_with_the_spawn_and_is_used_again() {
    let mut bench = raw(&[("a", service())]);
    assert_eq!(bench.phase("a.1"), "preparing");
    prepared(&mut bench, "a.1", Ok(grant("/x")));
    assert_eq!(bench.spec("a.1").grant, Some(grant("/x")));
    bench.runs("a.1");
    bench.sent.clear();
    bench.input(Input::ControllerDown);
    bench.ends("a.1", ExitResult::ExitCode);
    assert_eq!(
        bench.spec("a.1").grant,
        Some(grant("/x")),
        "the cgroup is the kernel's"
    );
}

/// One whose reservation others may want when it does not run.
fn reserving() -> ServiceConfig {
    let mut config = service();
    config.limits.memory_request_bytes = Some(1 << 20);
    config
}

#[test]
fn limits_that_take_nothing_from_others_are_made_ahead() {
    let mut config = service();
    config.autostart = false;
    let mut bench = raw(&[("a", config)]);
    prepared(&mut bench, "a.1", Ok(grant("/a")));
    assert_eq!(bench.phase("a.1"), "idle");
    bench.command(start(&["a"]));
    assert_eq!(
        bench.spec("a.1").grant,
        Some(grant("/a")),
        "nobody is asked"
    );
    bench.runs("a.1");
    bench.command(stop(&["a"]));
    bench.stopped("a.1");
    bench.sent.clear();
    bench.command(start(&["a"]));
    assert_eq!(bench.spec("a.1").grant, Some(grant("/a")), "and kept");
}

#[test]
fn refused_by_admission_it_waits_for_room() {
    let mut bench = raw(&[("a", reserving()), ("b", reserving())]);
    prepared(&mut bench, "a.1", Ok(grant("/a")));
    prepared(&mut bench, "b.1", Err(exhausted()));
    bench.runs("a.1");
    assert!(
        bench.phase("b.1").contains("900 MiB asked for"),
        "{}",
        bench.phase("b.1")
    );
    let ticket = bench.command(Operator::Start(target(&["a"])));
    assert!(bench.answer(ticket).unwrap().is_ok());
    bench.sent.clear();
    bench.pass(secs(1000));
    assert_eq!(bench.sent, []);

    bench.command(stop(&["a"]));
    bench.stopped("a.1");
    let release = Action::Release {
        instance: "a.1".parse().unwrap(),
    };
    assert!(bench.sent.contains(&release), "{:?}", bench.sent);
    let result = Ok(());
    bench.input(Input::ReleaseReply {
        instance: "a.1".parse().unwrap(),
        result,
    });
    prepared(&mut bench, "b.1", Ok(grant("/b")));
    bench.spec("b.1");
}

#[test]
fn an_operator_hears_the_numbers() {
    let mut bench = raw(&[(
        "a",
        ServiceConfig {
            autostart: false,
            ..service()
        },
    )]);
    bench.tickets = 1;
    let deadline = bench.now.mono + secs(30);
    bench.input(Input::Command {
        ticket: Ticket(1),
        deadline,
        command: start(&["a"]),
    });
    prepared(&mut bench, "a.1", Err(exhausted()));
    let (code, text) = bench.refused(Ticket(1));
    assert_eq!(code, Code::ResourceExhausted);
    assert!(text.contains("100 MiB of 1000 MiB are free"), "{text}");
    bench.input(Input::Command {
        ticket: Ticket(2),
        deadline,
        command: start(&["a"]),
    });
    prepared(&mut bench, "a.1", Ok(grant("/a")));
}

#[test]
fn required_limits_are_not_done_without() {
    let limits = Limits {
        required: true,
        ..Limits::default()
    };
    let services = [(
        "a",
        ServiceConfig {
            limits,
            ..service()
        },
    )];
    let mut bench = Bench::bare(Some(&config(&services)), Restored::default());
    bench.sync(&[]);
    bench.pass(secs(10));
    assert!(
        bench
            .phase("a.1")
            .starts_with("refused: limits are required"),
        "{}",
        bench.phase("a.1")
    );
    let ticket = bench.command(start(&["a"]));
    assert_eq!(bench.refused(ticket).0, Code::FailedPrecondition);
    bench.input(Input::ControllerUp);
    prepared(&mut bench, "a.1", Ok(grant("/a")));
    bench.spec("a.1");
}

#[test]
fn a_controller_that_does_not_answer_keeps_nothing_down() {
    let mut bench = raw(&[("a", service())]);
    prepared(
        &mut bench,
        "a.1",
        Err(RequestFailure::Unknown("timed out".into())),
    );
    assert_eq!(bench.spec("a.1").grant, None);
}

#[test]
fn a_controller_that_returns_is_told_of_everything_alive() {
    let mut bench = raw(&[("a", service()), ("b", service())]);
    prepared(&mut bench, "a.1", Ok(grant("/a")));
    prepared(&mut bench, "b.1", Err(exhausted()));
    bench.runs("a.1");
    bench.sent.clear();
    bench.input(Input::ControllerDown);
    bench.input(Input::ControllerUp);
    prepared(&mut bench, "a.1", Ok(grant("/a2")));
    prepared(&mut bench, "b.1", Ok(grant("/b")));
    assert_eq!(bench.phase("a.1"), "ready");
    bench.ends("a.1", ExitResult::ExitCode);
    assert_eq!(bench.spec("a.1").grant, Some(grant("/a2")));
}

#[test]
fn a_start_between_a_controllers_death_and_return_waits_a_little() {
    let mut bench = raw(&[(
        "a",
        ServiceConfig {
            autostart: false,
            ..reserving()
        },
    )]);
    bench.pass(secs(100));
    bench.input(Input::ControllerDown);
    bench.command(start(&["a"]));
    assert_eq!(bench.phase("a.1"), "waiting for resource-controller");
    bench.pass(secs(1));
    bench.input(Input::ControllerUp);
    prepared(&mut bench, "a.1", Ok(grant("/a")));
    assert_eq!(bench.spec("a.1").grant, Some(grant("/a")));
}

#[test]
fn a_release_and_the_next_prepare_do_not_pass_each_other() {
    let mut bench = raw(&[("a", reserving())]);
    prepared(&mut bench, "a.1", Ok(grant("/a")));
    bench.runs("a.1");
    bench.command(stop(&["a"]));
    bench.stopped("a.1");
    bench.sent.clear();
    bench.tickets = 5;
    let deadline = bench.now.mono + secs(30);
    bench.input(Input::Command {
        ticket: Ticket(5),
        deadline,
        command: start(&["a"]),
    });
    assert_eq!(bench.sent, [], "the release is still on its way");
    bench.input(Input::ReleaseReply {
        instance: "a.1".parse().unwrap(),
        result: Ok(()),
    });
    prepared(&mut bench, "a.1", Ok(grant("/a")));
}

#[test]
fn a_new_supervisor_tells_the_controller_what_runs_before_what_is_new() {
    let before = [("b", service())];
    let mut bench = raw(&before);
    prepared(&mut bench, "b.1", Ok(grant("/b")));
    bench.runs("b.1");
    bench.reborn(Some(&[("a", service()), ("b", service())]));
    bench.input(Input::ControllerUp);
    assert_eq!(bench.sent, []);
    bench.sync(&[InstanceRecord {
        grant: Some(grant("/b")),
        ..running("b.1", 1, T0)
    }]);
    let told: Vec<_> = bench
        .sent
        .iter()
        .map(|action| match action {
            Action::Prepare { instance, .. } => instance.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, ["b.1", "a.1"]);
}
