//! Restart policy, as seen from outside.

use super::*;

/// Fails each time it is started; tells the waits before each restart, in
/// seconds, until nothing is started any more.
fn waits_of_a_failing_service(bench: &mut Bench, end: fn(&mut Bench)) -> Vec<u64> {
    let mut waits = Vec::new();
    end(bench);
    for _ in 0..20 {
        let begun = bench.now.mono;
        let mut spawned = bench.take();
        while spawned.is_empty() {
            let Some(at) = bench.core.next_deadline() else {
                return waits;
            };
            bench.pass(at - bench.now.mono);
            spawned = bench.take();
        }
        assert_eq!(spawned.len(), 1);
        waits.push((bench.now.mono - begun).as_secs());
        end(bench);
    }
    panic!("no end of restarts: {waits:?}");
}

#[test]
fn at_once_then_1_2_4_8_then_the_circuit_opens() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    let waits = waits_of_a_failing_service(&mut bench, |bench| {
        bench.runs("a.1");
        bench.ends("a.1", ExitResult::ExitCode);
    });
    assert_eq!(waits, [0, 1, 2, 4, 8]);
    let status = bench.status("a.1");
    assert_eq!(status.phase, Phase::CircuitOpen);
    assert_eq!(status.restarts, 5);
    assert_eq!(status.state.unwrap().to_string(), "FAILED");
    assert_eq!(status.last_exit.unwrap().status.to_string(), "exit code 1");
    assert!(
        bench
            .said
            .iter()
            .any(|line| line.contains("restart 2 of 5 in 1.0 s: exit code 1")),
        "{:#?}",
        bench.said
    );
    assert!(
        bench
            .said
            .last()
            .unwrap()
            .contains("circuit opened after 5 restarts"),
        "{:#?}",
        bench.said
    );
    bench.pass(secs(100_000));
    assert_eq!(bench.take(), Vec::<String>::new());
}

#[test]
fn an_open_circuit_survives_the_supervisor() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    waits_of_a_failing_service(&mut bench, |bench| bench.ends("a.1", ExitResult::Signal));
    let last = bench.generation("a.1");
    bench.reborn(Some(&[("a", service())]));
    bench.sync(&[ended("a.1", last, ExitResult::Signal, T0)]);
    bench.pass(secs(1000));
    assert_eq!(bench.phase("a.1"), "circuit open");
    assert_eq!(bench.take(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_executed_is_not_tried_at_once() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    let waits = waits_of_a_failing_service(&mut bench, |bench| {
        let generation = bench.generation("a.1");
        bench.tell(not_started("a.1", generation));
    });
    assert_eq!(waits, [1, 2, 4, 8, 16]);
    let error = bench.status("a.1").last_error.unwrap();
    assert!(
        error.starts_with("exec /usr/bin/nothing: No such file"),
        "{error}"
    );
}

#[test]
fn an_end_in_order_of_an_always_service_is_restarted_by_the_same_policy() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    let waits =
        waits_of_a_failing_service(&mut bench, |bench| bench.ends("a.1", ExitResult::Success));
    assert_eq!(waits, [0, 1, 2, 4, 8]);
}

#[test]
fn modes() {
    for (mode, result, restarts, phase) in [
        (
            RestartMode::OnFailure,
            ExitResult::ExitCode,
            true,
            "spawning",
        ),
        (RestartMode::OnFailure, ExitResult::Success, false, "idle"),
        (RestartMode::Never, ExitResult::OomKill, false, "gave up"),
        (RestartMode::Never, ExitResult::Success, false, "idle"),
        (RestartMode::Always, ExitResult::Success, true, "spawning"),
    ] {
        let mut bench = Bench::new(&[(
            "a",
            ServiceConfig {
                restart_mode: mode,
                ..service()
            },
        )]);
        bench.runs("a.1");
        bench.take();
        bench.ends("a.1", result);
        assert_eq!(!bench.take().is_empty(), restarts, "{mode:?} {result:?}");
        assert_eq!(bench.phase("a.1"), phase, "{mode:?} {result:?}");
    }
}

#[test]
fn a_stable_run_starts_the_row_anew() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    for _ in 0..3 {
        bench.runs("a.1");
        bench.ends("a.1", ExitResult::ExitCode);
        bench.pass(secs(5));
        bench.take();
    }
    bench.runs("a.1");
    bench.pass(secs(61));
    bench.ends("a.1", ExitResult::ExitCode);
    assert_eq!(bench.take().len(), 1, "at once again");
    assert_eq!(bench.status("a.1").restarts, 4, "but counted on");
}

#[test]
fn a_cool_down_allows_one_trial() {
    let mut config = service();
    config.restart_policy.cool_down = Some(secs(300));
    config.restart_policy.max_attempts = 0;
    let mut bench = Bench::new(&[("a", config)]);
    bench.take();
    bench.runs("a.1");
    bench.ends("a.1", ExitResult::ExitCode);
    assert_eq!(bench.phase("a.1"), "circuit open");
    bench.pass(secs(299));
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.pass(secs(1));
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    assert_eq!(
        bench.status("a.1").circuit,
        blackhole_bus_schema::supervision::Circuit::HalfOpen
    );
    bench.runs("a.1");
    bench.ends("a.1", ExitResult::ExitCode);
    assert_eq!(bench.phase("a.1"), "circuit open");
    bench.pass(secs(300));
    assert_eq!(bench.take(), ["spawn a.1 #3"]);
    bench.runs("a.1");
    bench.pass(secs(60));
    assert_eq!(
        bench.status("a.1").circuit,
        blackhole_bus_schema::supervision::Circuit::Closed
    );
}

#[test]
fn a_storm_is_spread_out() {
    let names: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
    let services: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), service()))
        .collect();
    let mut config = config(&services);
    config.orchestrator.restart_burst = 4;
    config.orchestrator.restart_refill = secs(2);
    let mut bench = Bench::bare(Some(&config), Restored::default());
    bench.input(Input::ControllerUp);
    bench.sync(&[]);
    assert_eq!(bench.take().len(), 10, "first starts are not restarts");
    for name in &names {
        bench.runs(&format!("{name}.1"));
    }
    for name in &names {
        bench.ends(&format!("{name}.1"), ExitResult::Signal);
    }
    assert_eq!(bench.take().len(), 4);
    for _ in 0..6 {
        bench.pass(secs(2));
        assert_eq!(bench.take().len(), 1);
    }
}

#[test]
fn a_wait_survives_the_supervisor() {
    let services = [("a", service())];
    let mut bench = Bench::new(&services);
    for _ in 0..3 {
        bench.runs("a.1");
        bench.ends("a.1", ExitResult::ExitCode);
        bench.pass(secs(1));
    }
    assert_eq!(bench.phase("a.1"), "backing off");
    let record = ended(
        "a.1",
        bench.generation("a.1"),
        ExitResult::ExitCode,
        bench.now.unix_ns,
    );
    bench.reborn(Some(&services));
    bench.input(Input::ControllerUp);
    bench.sync(&[record]);
    assert_eq!(bench.phase("a.1"), "backing off");
    bench.pass(Duration::from_millis(990));
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.pass(Duration::from_millis(10));
    assert_eq!(bench.take(), ["spawn a.1 #4"]);
    assert_eq!(bench.status("a.1").restarts, 3);
}

/// What has to wait over a restart of the supervisor waits by the wall clock, which may
/// have been set meanwhile, by years and in either direction.
#[test]
fn a_clock_that_was_set_prolongs_no_wait_and_costs_nothing_else() {
    const YEARS: u64 = 20 * 365 * 86_400 * 1_000_000_000;
    for back in [true, false] {
        let services = [("a", service())];
        let mut bench = Bench::new(&services);
        bench.now.unix_ns += YEARS;
        for _ in 0..3 {
            bench.runs("a.1");
            bench.ends("a.1", ExitResult::ExitCode);
            bench.pass(secs(1));
        }
        assert_eq!(bench.phase("a.1"), "backing off");
        bench.take();
        let generation = bench.generation("a.1");
        let record = ended("a.1", generation, ExitResult::ExitCode, bench.now.unix_ns);
        match back {
            true => bench.now.unix_ns -= YEARS,
            false => bench.now.unix_ns += YEARS,
        }
        bench.reborn(Some(&services));
        bench.input(Input::ControllerUp);
        bench.sync(&[record]);
        bench.pass(service().restart_policy.max_backoff * 2);
        assert_eq!(bench.take(), ["spawn a.1 #4"], "back: {back}");
        assert_eq!(bench.status("a.1").restarts, 3);
    }
}

#[test]
fn a_restarted_host_is_nobodys_failure() {
    let services = [("a", service())];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    bench.reborn(Some(&services));
    bench.input(Input::ControllerUp);
    bench.sync(&[ended("a.1", 1, ExitResult::HostRestarted, T0)]);
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    assert_eq!(bench.status("a.1").restarts, 0);
}

/// By `down`, `--offline stop` or by a process-manager, while no supervisor lived: the
/// record says that it was asked for, and by whomever that is no failure.
#[test]
fn what_was_stopped_without_the_supervisor_is_started_anew_and_has_not_failed() {
    for mode in [
        RestartMode::Always,
        RestartMode::OnFailure,
        RestartMode::Never,
    ] {
        for result in [ExitResult::Stopped, ExitResult::StopTimeout] {
            let services = [(
                "a",
                ServiceConfig {
                    restart_mode: mode,
                    ..service()
                },
            )];
            let mut bench = Bench::new(&services);
            bench.runs("a.1");
            bench.take();
            bench.reborn(Some(&services));
            bench.sync(&[ended("a.1", 1, result, bench.now.unix_ns)]);
            bench.pass(secs(3));
            assert_eq!(bench.take(), ["spawn a.1 #2"], "{mode:?} {result:?}");
            let status = bench.status("a.1");
            assert_eq!((status.restarts, status.last_error), (0, None));
            assert!(
                bench
                    .said
                    .iter()
                    .any(|said| said.contains("without the supervisor"))
            );
            // What follows is the first failure.
            bench.runs("a.1");
            bench.ends("a.1", ExitResult::ExitCode);
            assert!(mode == RestartMode::Never || bench.status("a.1").restarts == 1);
        }
    }
}

/// While the host went down the init process ended services, before or behind the
/// back of their shims and of the supervisor.
#[test]
fn what_ended_before_the_host_was_restarted_has_not_failed() {
    let services = [("a", service()), ("b", service())];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    bench.runs("b.1");
    // The supervisor saw one of them: its restart was due.
    bench.ends("b.1", ExitResult::Signal);
    bench.runs("b.1");
    bench.ends("b.1", ExitResult::Signal);
    bench.take();
    let died = bench.now.unix_ns;
    bench.now = bench.now.after(secs(30));
    bench.disk.rebooted = true;
    bench.reborn(Some(&services));
    bench.sync(&[
        ended("a.1", 1, ExitResult::Signal, died),
        ended("b.1", 2, ExitResult::Signal, died),
    ]);
    bench.pass(secs(3));
    assert_eq!(bench.take(), ["spawn a.1 #2", "spawn b.1 #3"]);
    assert_eq!(bench.status("a.1").restarts, 0);
    assert_eq!(bench.status("b.1").restarts, 1, "that which was counted");
    // From here on it counts.
    bench.runs("a.1");
    bench.pass(secs(1));
    bench.ends("a.1", ExitResult::Signal);
    assert_eq!(bench.status("a.1").restarts, 1);
}

/// Clocks are set back, and shims are told to end by whoever may: neither makes a loop.
#[test]
fn only_what_ran_before_this_run_of_the_supervisor_ends_for_nothing() {
    let services = [("a", service())];
    let mut bench = Bench::new(&services);
    bench.runs("a.1");
    bench.disk.rebooted = true;
    bench.reborn(Some(&services));
    bench.sync(&[ended("a.1", 1, ExitResult::Stopped, bench.now.unix_ns)]);
    bench.pass(secs(3));
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    for result in [
        ExitResult::Stopped,
        ExitResult::ExitCode,
        ExitResult::StopTimeout,
    ] {
        let before = bench.status("a.1").restarts;
        let generation = bench.generation("a.1");
        bench.runs("a.1");
        // Ended before the supervisor began, if the clock is to be believed.
        bench.tell(ended("a.1", generation, result, 5));
        bench.pass(secs(60));
        assert_eq!(bench.status("a.1").restarts, before + 1, "{result:?}");
    }
}
