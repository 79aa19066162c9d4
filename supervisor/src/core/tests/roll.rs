//! Rolling restarts.

use super::*;

fn replicated(replicas: u32) -> ServiceConfig {
    ServiceConfig {
        replicas,
        ..probed()
    }
}

/// All replicas run and are ready.
fn serving(services: &[(&str, ServiceConfig)], names: &[&str]) -> Bench {
    let mut bench = Bench::new(services);
    for name in names {
        bench.take();
        bench.runs(name);
        bench.ready(name);
    }
    bench.take();
    bench
}

fn restart(services: &[&str]) -> Operator {
    Operator::Restart(target(services))
}

#[test]
fn one_after_the_other_each_ready_before_the_next() {
    let names = ["a.1", "a.2", "a.3"];
    let mut bench = serving(&[("a", replicated(3))], &names);
    let restarted = bench.command_within(restart(&["a"]), secs(600));
    for name in names {
        assert_eq!(bench.take(), [format!("stop {name} #1")]);
        bench.stopped(name);
        assert_eq!(bench.take(), [format!("spawn {name} #2")]);
        bench.runs(name);
        assert_eq!(bench.take(), [""; 0], "not before it is ready");
        assert!(bench.answer(restarted).is_none());
        bench.ready(name);
    }
    assert_eq!(bench.take(), [""; 0]);
    assert!(bench.answer(restarted).unwrap().is_ok());
    assert!(bench.disk.instances.iter().all(|row| row.roll.0 == 0));
}

#[test]
fn what_requires_it_goes_on() {
    let web = needs(service(), &[("a", Condition::Ready)]);
    let services = [("a", replicated(2)), ("web", web)];
    let mut bench = serving(&services, &["a.1", "a.2"]);
    bench.runs("web.1");
    bench.command(restart(&["a"]));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
}

/// With what it requires a service goes down whole.
#[test]
fn replicas_of_what_goes_down_whole_are_not_rolled() {
    let web = needs(replicated(2), &[("db", Condition::Started)]);
    let services = [("db", service()), ("web", web)];
    let mut bench = Bench::new(&services);
    bench.take();
    bench.runs("db.1");
    for name in ["web.1", "web.2"] {
        bench.take();
        bench.runs(name);
        bench.ready(name);
    }
    bench.command(restart(&["db", "web"]));
    assert_eq!(bench.take(), ["stop web.1 #1", "stop web.2 #1"]);
}

#[test]
fn a_replacement_that_ends_before_it_is_ready_stops_the_roll() {
    let mut bench = serving(&[("a", replicated(2))], &["a.1", "a.2"]);
    let restarted = bench.command(restart(&["a"]));
    bench.stopped("a.1");
    bench.take();
    bench.runs("a.1");
    bench.ends("a.1", ExitResult::ExitCode);
    let (code, text) = bench.refused(restarted);
    assert_eq!(code, Code::Aborted);
    assert!(
        text.contains("a.1 ended before it was ready: exit code 1"),
        "{text}"
    );
    assert!(text.contains("not restarted: a.2"), "{text}");
    assert!(
        bench
            .said
            .iter()
            .any(|line| line.contains("a.2 ready: the rolling restart"))
    );
    assert!(
        bench
            .core
            .notes()
            .iter()
            .any(|note| note.contains("given up"))
    );
    // The policy goes on with the one; the other stays as it is.
    assert_eq!(bench.take(), ["spawn a.1 #3"]);
    bench.runs("a.1");
    bench.ready("a.1");
    bench.pass(secs(600));
    assert_eq!(bench.take(), [""; 0]);
    assert_eq!(bench.generation("a.2"), 1);
}

#[test]
fn a_replacement_that_does_not_become_ready_stops_the_roll() {
    let mut bench = serving(&[("a", replicated(2))], &["a.1", "a.2"]);
    let restarted = bench.command_within(restart(&["a"]), secs(3600));
    bench.stopped("a.1");
    bench.take();
    bench.runs("a.1");
    for _ in 0..30 {
        bench.pass(secs(5));
        bench.probe("a.1", ProbeKind::Readiness, Some("not yet"), 1);
    }
    let (code, text) = bench.refused(restarted);
    assert_eq!(code, Code::DeadlineExceeded);
    assert!(text.contains("not ready: a.1 (probing)"), "{text}");
    bench.ready("a.1");
    assert_eq!(bench.take(), [""; 0], "given up is given up");
}

/// It is waited for, and not replaced once more: it is new already.
#[test]
fn a_crash_of_another_replica_meanwhile() {
    let mut bench = serving(&[("a", replicated(2))], &["a.1", "a.2"]);
    let restarted = bench.command(restart(&["a"]));
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.ends("a.2", ExitResult::Signal);
    bench.stopped("a.1");
    assert_eq!(bench.take(), ["spawn a.2 #2", "spawn a.1 #2"]);
    for name in ["a.1", "a.2"] {
        bench.runs(name);
        bench.ready(name);
    }
    assert_eq!(bench.take(), [""; 0]);
    assert!(bench.answer(restarted).unwrap().is_ok());
}

/// Nothing is lost with one that serves nobody.
#[test]
fn one_that_is_not_ready_is_first() {
    let mut bench = serving(&[("a", replicated(2))], &["a.1", "a.2"]);
    bench.probe("a.2", ProbeKind::Readiness, Some("no"), 3);
    bench.command(restart(&["a"]));
    assert_eq!(bench.take(), ["stop a.2 #1"]);
}

#[test]
fn a_stop_meanwhile_ends_it() {
    let mut bench = serving(&[("a", replicated(2))], &["a.1", "a.2"]);
    let restarted = bench.command(restart(&["a"]));
    bench.take();
    let stopped = bench.command(stop(&["a"]));
    assert_eq!(bench.refused(restarted).0, Code::Aborted);
    assert_eq!(bench.take(), ["stop a.2 #1"]);
    bench.stopped("a.1");
    bench.stopped("a.2");
    assert!(bench.answer(stopped).unwrap().is_ok());
    bench.command(start(&["a"]));
    assert_eq!(bench.take(), ["spawn a.1 #2", "spawn a.2 #2"]);
}

#[test]
fn its_successor_goes_on_with_it() {
    let services = [("a", replicated(2))];
    let mut bench = serving(&services, &["a.1", "a.2"]);
    bench.command(restart(&["a"]));
    bench.stopped("a.1");
    assert_eq!(bench.take(), ["stop a.1 #1", "spawn a.1 #2"]);
    bench.reborn(Some(&services));
    bench.input(Input::ControllerUp);
    bench.sync(&[running("a.1", 2, T0), running("a.2", 1, T0)]);
    assert_eq!(bench.take(), [""; 0], "a.1 is not ready yet");
    bench.ready("a.1");
    assert_eq!(bench.take(), ["stop a.2 #1"]);
}

#[test]
fn each_replica_finishes_its_calls() {
    let mut bench = serving(&[("a", replicated(2))], &["a.1", "a.2"]);
    bench.input(Input::BridgeUp);
    bench.registered("a.1");
    bench.registered("a.2");
    bench.command(restart(&["a"]));
    assert_eq!(bench.take(), ["drain a.1 #1"]);
    bench.drained("a.1", 1);
    assert_eq!(bench.take(), ["stop a.1 #1"]);
}

#[test]
fn what_answered_calls_is_registered_again_before_the_next() {
    let plain = ServiceConfig {
        replicas: 2,
        ..service()
    };
    let mut bench = serving(&[("a", plain)], &["a.1", "a.2"]);
    bench.input(Input::BridgeUp);
    bench.registered("a.1");
    bench.registered("a.2");
    let restarted = bench.command_within(restart(&["a"]), secs(600));
    for name in ["a.1", "a.2"] {
        assert_eq!(bench.take(), [format!("drain {name} #1")]);
        bench.drained(name, 1);
        assert_eq!(bench.take(), [format!("stop {name} #1")]);
        bench.stopped(name);
        assert_eq!(bench.take(), [format!("spawn {name} #2")]);
        bench.runs(name);
        assert_eq!(bench.take(), [""; 0], "it runs, and answers no call yet");
        assert!(bench.answer(restarted).is_none());
        bench.registered(name);
    }
    assert_eq!(bench.take(), [""; 0]);
    assert!(bench.answer(restarted).unwrap().is_ok());
}
