//! Restarts granted ahead.

use super::*;

/// Its latest generation failed, and the next one runs by permit.
fn succeeded(bench: &Bench, instance: &str) -> InstanceRecord {
    let generation = bench.generation(instance);
    let before = ended(instance, generation, ExitResult::Signal, bench.now.unix_ns);
    InstanceRecord {
        previous_exit: before.state.exit().cloned(),
        restarts: bench.status(instance).restarts + 1,
        ..running(instance, generation + 1, bench.now.unix_ns)
    }
}

fn empty_bucket(bench: &mut Bench) {
    while bench.core.storm.next_token(bench.now.mono) <= bench.now.mono {
        bench.core.storm.reserve(bench.now.mono);
    }
}

fn permit_of(bench: &mut Bench, instance: &str) -> Option<u64> {
    let permit = bench.spec(instance).permit;
    permit.map(|permit| permit.generation.0)
}

#[test]
fn the_first_failure_is_permitted_and_the_second_is_not() {
    let mut bench = Bench::new(&[("a", service())]);
    assert_eq!(permit_of(&mut bench, "a.1"), Some(2));
    bench.take();
    bench.runs("a.1");
    assert_eq!(
        bench.permits,
        Vec::<String>::new(),
        "it went with the spawn"
    );
    let record = succeeded(&bench, "a.1");
    bench.tell(record);
    assert_eq!(bench.take(), Vec::<String>::new(), "it runs already");
    let status = bench.status("a.1");
    assert_eq!((status.generation, status.restarts), (Generation(2), 1));
    assert_eq!(bench.disk.instances[0].attempts, 1);
    assert_eq!(bench.permits, Vec::<String>::new(), "it is used up");
    bench.ends("a.1", ExitResult::Signal);
    assert_eq!(bench.phase("a.1"), "backing off");
    bench.pass(secs(2));
    assert_eq!(permit_of(&mut bench, "a.1"), None);
    assert_eq!(bench.take(), ["spawn a.1 #3"]);
}

#[test]
fn after_a_stable_run_the_next_one_is_granted_and_remembered_first() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    let record = succeeded(&bench, "a.1");
    bench.tell(record);
    bench.pass(secs(59));
    assert_eq!(bench.permits, Vec::<String>::new());
    bench.pass(secs(2));
    assert_eq!(bench.permits, ["a.1 #2: #3"]);
    assert_eq!(bench.disk.instances[0].attempts, 0);
}

#[test]
fn the_failure_may_be_heard_of_before_the_successor() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    let record = succeeded(&bench, "a.1");
    bench.ends("a.1", ExitResult::Signal);
    assert_eq!(bench.take(), ["spawn a.1 #2"], "the very same");
    bench.tell(record);
    bench.runs("a.1");
    let status = bench.status("a.1");
    assert_eq!((status.generation, status.restarts), (Generation(2), 1));
    assert_eq!(bench.disk.instances[0].attempts, 1);
    assert_eq!(bench.take(), Vec::<String>::new());
}

#[test]
fn a_permit_used_while_nobody_looked_counts_once() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    let record = succeeded(&bench, "a.1");
    bench.reborn(Some(&[("a", service())]));
    bench.sync(std::slice::from_ref(&record));
    bench.sync(&[record]);
    let status = bench.status("a.1");
    assert_eq!((status.generation, status.restarts), (Generation(2), 1));
    assert_eq!(bench.disk.instances[0].attempts, 1);
    assert_eq!(bench.take(), Vec::<String>::new());
}

#[test]
fn nothing_is_permitted_where_somebody_has_a_say() {
    let mut never = service();
    never.restart_mode = RestartMode::Never;
    let mut none = service();
    none.restart_policy.max_attempts = 0;
    let dependent = needs(service(), &[("a", Condition::Started)]);
    let mut bench = Bench::new(&[
        ("a", service()),
        ("dependent", dependent),
        ("job", oneshot()),
        ("never", never),
        ("none", none),
    ]);
    for name in ["job.1", "never.1", "none.1"] {
        assert_eq!(permit_of(&mut bench, name), None, "{name}");
    }
    assert_eq!(permit_of(&mut bench, "a.1"), Some(2));
    bench.take();
    bench.runs("a.1");
    assert_eq!(permit_of(&mut bench, "dependent.1"), None);
}

#[test]
fn an_empty_bucket_grants_nothing() {
    let mut bench = Bench::new(&[("a", service()), ("b", service())]);
    bench.take();
    bench.runs("b.1");
    empty_bucket(&mut bench);
    let ticket = bench.command(stop(&["b"]));
    bench.take();
    bench.stopped("b.1");
    bench.take();
    assert!(bench.answer(ticket).is_some());
    bench.command(start(&["b"]));
    assert_eq!(permit_of(&mut bench, "b.1"), None);
    bench.take();
    bench.runs("b.1");
    assert_eq!(bench.permits, Vec::<String>::new());
    // Nothing happens but that time passes.
    bench.pass(secs(30));
    assert_eq!(bench.permits, ["b.1 #2: #3"]);
}

#[test]
fn an_empty_bucket_takes_nothing_back() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    let record = running("a.1", 1, bench.now.unix_ns);
    bench.reborn(Some(&[("a", service())]));
    empty_bucket(&mut bench);
    bench.sync(&[record]);
    assert_eq!(bench.permits, Vec::<String>::new(), "it may have one");
    bench.pass(secs(30));
    assert_eq!(bench.permits, ["a.1 #1: #2"]);
}

#[test]
fn another_run_of_the_supervisor_says_anew_what_holds() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    let record = running("a.1", 1, bench.now.unix_ns);
    let mut never = service();
    never.restart_mode = RestartMode::Never;
    bench.reborn(Some(&[("a", never)]));
    bench.sync(std::slice::from_ref(&record));
    assert_eq!(bench.permits, ["a.1 #1: none"]);
    bench.reborn(Some(&[("a", service())]));
    bench.sync(&[record]);
    assert_eq!(bench.permits, ["a.1 #1: #2"]);
}
