//! Calls that are finished before a stop.

use super::*;

/// One that runs, and answers calls.
fn serving(config: ServiceConfig) -> Bench {
    let mut bench = Bench::new(&[("a", config)]);
    bench.input(Input::BridgeUp);
    bench.input(Input::RegistrySnapshot(Vec::new()));
    bench.take();
    bench.runs("a.1");
    bench.registered("a.1");
    bench
}

fn sent_stop(bench: &mut Bench) -> Option<StopSpec> {
    bench.sent.iter().find_map(|action| match action {
        Action::Stop { stop, .. } => stop.clone(),
        _ => None,
    })
}

#[test]
fn calls_are_finished_first_and_the_rest_of_the_grace_is_the_services() {
    let mut bench = serving(service());
    let grace = service().stop.grace_ms;
    let stopped = bench.command(stop(&["a"]));
    match &bench.sent[..] {
        [Action::Drain { within_ms, .. }] => assert_eq!(*within_ms, grace / 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.take(), ["drain a.1 #1"]);
    let status = bench.status("a.1");
    assert_eq!(status.phase, Phase::Stopping);
    assert!(status.detail.unwrap().contains("draining"));
    bench.pass(secs(1));
    assert_eq!(bench.take(), [""; 0]);
    bench.drained("a.1", 1);
    assert_eq!(sent_stop(&mut bench).unwrap().grace_ms, grace - 1000);
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    assert!(bench.answer(stopped).unwrap().is_ok());
}

#[test]
fn half_of_the_grace_is_the_longest() {
    let mut bench = serving(service());
    let half = Duration::from_millis(service().stop.grace_ms / 2);
    bench.command(stop(&["a"]));
    assert_eq!(bench.take(), ["drain a.1 #1"]);
    bench.pass(half - Duration::from_millis(1));
    assert_eq!(bench.take(), [""; 0]);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.drained("a.1", 1);
    assert_eq!(bench.take(), [""; 0], "a late answer changes nothing");
}

#[test]
fn nobody_to_ask_is_no_reason_to_wait() {
    let mut away = serving(service());
    away.input(Input::BridgeDown);
    away.command(stop(&["a"]));
    assert_eq!(away.take(), ["stop a.1 #1"]);

    let mut unknown = serving(service());
    unknown.input(Input::RegistrySnapshot(Vec::new()));
    unknown.command(stop(&["a"]));
    assert_eq!(unknown.take(), ["stop a.1 #1"]);

    let mut without = service();
    without.stop.grace_ms = 0;
    let mut without = serving(without);
    without.command(stop(&["a"]));
    assert_eq!(without.take(), ["stop a.1 #1"]);
}

#[test]
fn what_ends_a_drain_before_its_time() {
    let ends: [fn(&mut Bench); 4] = [
        |bench| bench.input(Input::BridgeDown),
        |bench| bench.input(Input::RegistrySnapshot(Vec::new())),
        |bench| {
            bench.input(Input::RegistryChanged(Box::new(RegistryChanged {
                instance: "a.1".parse().unwrap(),
                registration: None,
            })));
        },
        |bench| {
            bench.input(Input::DrainReply {
                instance: "a.1".parse().unwrap(),
                generation: Generation(1),
                result: Err(RequestFailure::Unknown("lost".into())),
            });
        },
    ];
    for end in ends {
        let mut bench = serving(service());
        bench.command(stop(&["a"]));
        assert_eq!(bench.take(), ["drain a.1 #1"]);
        end(&mut bench);
        assert_eq!(bench.take(), ["stop a.1 #1"]);
    }
}

#[test]
fn a_crash_during_a_drain_ends_it_and_is_no_failure() {
    let mut bench = serving(service());
    let stopped = bench.command(stop(&["a"]));
    bench.take();
    bench.ends("a.1", ExitResult::Signal);
    assert!(bench.answer(stopped).unwrap().is_ok());
    assert_eq!(bench.take(), [""; 0]);
    assert_eq!(bench.status("a.1").restarts, 0);
}

#[test]
fn a_repeated_stop_does_not_begin_it_again() {
    let mut bench = serving(service());
    bench.command(stop(&["a"]));
    bench.take();
    bench.pass(secs(1));
    bench.command(stop(&["a"]));
    assert_eq!(bench.take(), [""; 0]);
    bench.drained("a.1", 1);
    assert_eq!(bench.take(), ["stop a.1 #1"]);
}

/// The instance was told to finish: it cannot be kept.
#[test]
fn a_start_during_a_drain_starts_it_anew() {
    let mut bench = serving(service());
    bench.command(stop(&["a"]));
    bench.take();
    let started = bench.command(start(&["a"]));
    assert_eq!(bench.take(), [""; 0]);
    bench.drained("a.1", 1);
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    bench.runs("a.1");
    assert!(bench.answer(started).unwrap().is_ok());
}

#[test]
fn a_drain_survives_the_supervisor() {
    let mut bench = serving(service());
    bench.command(Operator::Restart(target(&["a"])));
    assert_eq!(bench.take(), ["drain a.1 #1"]);
    bench.reborn(Some(&[("a", service())]));
    bench.input(Input::ControllerUp);
    bench.sync(&[running("a.1", 1, T0)]);
    assert_eq!(bench.take(), ["stop a.1 #1"], "the restart goes on");
}

#[test]
fn what_is_stopped_for_its_health_is_not_drained() {
    let mut bench = serving(probed());
    bench.ready("a.1");
    bench.probe("a.1", ProbeKind::Liveness, Some("no"), 3);
    assert_eq!(bench.take(), ["unhealthy a.1 #1"]);
}
