//! Several process-managers: who is asked, and how a service changes hands.

use super::*;

fn id(name: &str) -> ManagerId {
    Some(name.parse().unwrap())
}

/// A service of a named manager.
fn of(name: &str, service: ServiceConfig) -> ServiceConfig {
    ServiceConfig {
        manager: id(name),
        ..service
    }
}

impl Bench {
    /// A manager is there and has these records.
    fn sync_of(&mut self, manager: &ManagerId, records: &[InstanceRecord]) {
        self.input(Input::ManagerUp(manager.clone()));
        self.input(Input::ManagerSnapshot(manager.clone(), records.to_vec()));
    }

    fn tell_of(&mut self, manager: &ManagerId, record: InstanceRecord) {
        let input = Input::ProcessChanged(manager.clone(), Box::new(record));
        self.input(input);
        self.grant_all();
    }

    /// The latest spawn runs at a manager, which answers.
    fn runs_of(&mut self, manager: &ManagerId, instance: &str) {
        let record = running(instance, self.generation(instance), self.now.unix_ns);
        self.tell_of(manager, record.clone());
        self.input(Input::SpawnReply {
            manager: manager.clone(),
            instance: record.instance.clone(),
            generation: record.generation,
            result: Ok(Box::new(record)),
        });
    }

    fn restart(&mut self, service: &str) -> Ticket {
        let target = Target::Services(vec![service.parse().unwrap()]);
        self.command(Operator::Restart(target))
    }
}

fn two() -> [(&'static str, ServiceConfig); 2] {
    [("a", service()), ("g", of("gpu", service()))]
}

/// Both up; `a.1` runs at the one without a name, `g.1` at `gpu`.
fn both() -> Bench {
    let mut bench = Bench::new(&two());
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
    assert_eq!(bench.phase("g.1"), "waiting for process-manager.gpu");
    bench.sync_of(&id("gpu"), &[]);
    assert_eq!(bench.take(), ["spawn g.1 #1 at gpu"]);
    bench.runs("a.1");
    bench.runs_of(&id("gpu"), "g.1");
    assert_eq!(bench.status("g.1").manager, id("gpu"));
    assert_eq!(bench.status("a.1").manager, None);
    bench
}

#[test]
fn each_is_asked_for_its_own_and_one_that_is_silent_holds_its_own_only() {
    let mut bench = both();
    bench.input(Input::ManagerDown(id("gpu")));
    let notes = bench.core.notes().join("\n");
    assert!(
        notes.contains("waits for process-manager.gpu: nothing of it"),
        "{notes}"
    );
    bench.restart("a");
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    bench.restart("g");
    bench.pass(secs(100));
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("g.1"), "waiting for process-manager.gpu");
    assert_eq!(bench.status("g.1").pid, running("g.1", 1, T0).state.pid());
    bench.sync_of(&id("gpu"), &[running("g.1", 1, T0)]);
    assert_eq!(bench.take(), ["stop g.1 #1 at gpu"]);
}

#[test]
fn a_snapshot_of_one_says_nothing_of_what_another_one_has() {
    let mut bench = both();
    bench.sync(&[running("a.1", 1, T0)]);
    bench.sync_of(&id("gpu"), &[running("g.1", 1, T0)]);
    assert_eq!(bench.take(), Vec::<String>::new());
    // It is gone from its own manager's.
    bench.sync_of(&id("gpu"), &[]);
    assert_eq!(bench.take(), ["spawn g.1 #2 at gpu"]);
}

#[test]
fn a_service_moves_when_it_is_restarted_and_not_before() {
    let mut bench = both();
    bench.permits.clear();
    let moved = [("a", of("gpu", service())), ("g", of("gpu", service()))];
    bench.reborn(Some(&moved));
    bench.input(Input::ControllerUp);
    bench.sync_of(&id("gpu"), &[running("g.1", 1, T0)]);
    assert_eq!(bench.phase("a.1"), "waiting for process-manager");
    assert_eq!(
        bench.take(),
        Vec::<String>::new(),
        "it may live where it was"
    );
    bench.sync(&[running("a.1", 1, T0)]);
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("a.1"), "ready");
    let status = bench.status("a.1");
    assert_eq!(status.manager, None);
    let detail = status.detail.unwrap_or_default();
    assert!(detail.contains("moves to process-manager.gpu"), "{detail}");
    assert!(
        bench.permits.contains(&"a.1 #1: none".to_owned()),
        "a restart by permit would stay: {:?}",
        bench.permits
    );
    bench.restart("a");
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.input(Input::ManagerDown(id("gpu")));
    bench.stopped("a.1");
    assert_eq!(bench.take(), Vec::<String>::new());
    assert_eq!(bench.phase("a.1"), "waiting for process-manager.gpu");
    bench.sync_of(&id("gpu"), &[running("g.1", 1, T0)]);
    assert_eq!(bench.take(), ["spawn a.1 #2 at gpu"]);
    bench.runs_of(&id("gpu"), "a.1");
    assert_eq!(bench.take(), ["forget a.1"], "where it was");
    assert_eq!(bench.status("a.1").manager, id("gpu"));
    // Late words of the past change nothing.
    bench.tell(ended("a.1", 1, ExitResult::Stopped, T0));
    bench.sync(&[ended("a.1", 1, ExitResult::Stopped, T0)]);
    assert_eq!(bench.phase("a.1"), "ready");
    assert_eq!(bench.take(), ["forget a.1", "forget a.1"]);
    // And its next supervisor knows whose it is.
    bench.reborn(Some(&moved));
    bench.sync(&[]);
    assert_eq!(bench.phase("a.1"), "waiting for process-manager.gpu");
    bench.sync_of(&id("gpu"), &[running("a.1", 2, T0), running("g.1", 1, T0)]);
    assert_eq!(bench.phase("a.1"), "ready");
    assert_eq!(bench.take(), Vec::<String>::new());
}

#[test]
fn a_spawn_whose_fate_is_not_known_is_made_impossible_before_it_moves() {
    let mut bench = Bench::new(&[("a", service())]);
    assert_eq!(bench.take(), ["spawn a.1 #1"]);
    // Its supervisor dies before it hears of it.
    let moved = [("a", of("gpu", service()))];
    bench.reborn(Some(&moved));
    bench.input(Input::ControllerUp);
    bench.sync_of(&id("gpu"), &[]);
    assert_eq!(bench.take(), Vec::<String>::new());
    bench.sync(&[]);
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    let status = Status::new(Code::NotFound, "there is no instance a.1");
    bench.input(Input::StopReply {
        manager: None,
        instance: "a.1".parse().unwrap(),
        generation: Generation(1),
        result: Err(RequestFailure::Refused(status)),
    });
    assert_eq!(bench.take(), ["spawn a.1 #2 at gpu"]);
}

#[test]
fn where_it_lives_is_where_it_is() {
    // Nothing is remembered, and it was started by somebody else elsewhere.
    let mut bench = Bench::bare(Some(&config(&two())), Restored::default());
    bench.input(Input::ControllerUp);
    bench.sync_of(&id("gpu"), &[running("a.1", 7, T0)]);
    bench.sync(&[]);
    assert_eq!(bench.take(), ["spawn g.1 #1 at gpu"]);
    assert_eq!(bench.status("a.1").manager, id("gpu"));
    assert_eq!(bench.phase("a.1"), "ready");
    // Its end is the end of that.
    bench.tell_of(&id("gpu"), ended("a.1", 7, ExitResult::Signal, T0));
    assert_eq!(bench.take(), ["spawn a.1 #8"]);
}

#[test]
fn generations_go_on_from_what_an_earlier_manager_had() {
    let mut bench = Bench::bare(Some(&config(&two())), Restored::default());
    bench.input(Input::ControllerUp);
    bench.sync_of(&id("gpu"), &[ended("a.1", 7, ExitResult::Stopped, T0)]);
    bench.sync(&[]);
    assert_eq!(bench.take(), ["spawn g.1 #1 at gpu", "spawn a.1 #8"]);
}

#[test]
fn what_a_manager_has_that_is_in_no_configuration_is_waited_for_aloud() {
    let mut bench = both();
    bench.reborn(Some(&[("a", service()), ("g", service())]));
    bench.input(Input::ControllerUp);
    bench.sync(&[running("a.1", 1, T0)]);
    bench.pass(secs(1000));
    assert_eq!(bench.take(), Vec::<String>::new(), "never started twice");
    assert_eq!(bench.phase("g.1"), "waiting for process-manager.gpu");
    let notes = bench.core.notes().join("\n");
    assert!(
        notes.contains("process-manager.gpu, which has g.1 and is in no configuration"),
        "{notes}"
    );
    bench.sync_of(&id("gpu"), &[ended("g.1", 1, ExitResult::Signal, T0)]);
    assert_eq!(bench.take(), ["spawn g.1 #2"]);
}

#[test]
fn what_was_removed_together_with_its_manager_waits_for_it_by_name_and_is_forgotten_by_it() {
    let mut bench = both();
    bench.tell_of(&id("gpu"), ended("g.1", 1, ExitResult::Stopped, T0));
    bench.take();
    bench.reborn(Some(&[("a", service())]));
    bench.sync(&[running("a.1", 1, T0)]);
    // The name is what a keeper runs it by.
    assert_eq!(bench.phase("g.1"), "waiting for process-manager.gpu");
    let end = ended("g.1", bench.generation("g.1"), ExitResult::Stopped, T0);
    bench.sync_of(&id("gpu"), &[end]);
    assert_eq!(bench.take(), ["forget g.1 at gpu"]);
    bench.input(Input::ForgetReply {
        manager: id("gpu"),
        instance: "g.1".parse().unwrap(),
        result: Ok(()),
    });
    let left = bench.disk.instances.iter();
    let left: Vec<_> = left.map(|row| row.instance.to_string()).collect();
    assert_eq!(left, ["a.1"]);
    assert!(!bench.core.notes().join("\n").contains("gpu"));
}

/// `a.1` ended, its move to `gpu` is under way, and a permit had been used before: it lives
/// where it was, in the generation that is on its way to `gpu`.
fn overtaken() -> Bench {
    let mut bench = both();
    let moved = [("a", of("gpu", service())), ("g", of("gpu", service()))];
    bench.reborn(Some(&moved));
    bench.input(Input::ControllerUp);
    bench.sync_of(&id("gpu"), &[running("g.1", 1, T0)]);
    bench.sync(&[running("a.1", 1, T0)]);
    bench.tell(ended("a.1", 1, ExitResult::Signal, T0));
    assert_eq!(bench.take(), ["spawn a.1 #2 at gpu"]);
    bench.tell(running("a.1", 2, T0));
    assert_eq!(bench.status("a.1").manager, None);
    assert_eq!(bench.take(), Vec::<String>::new(), "it is well where it is");
    bench
}

impl Bench {
    fn recalled(&mut self, code: Code) {
        self.input(Input::StopReply {
            manager: id("gpu"),
            instance: "a.1".parse().unwrap(),
            generation: Generation(2),
            result: Err(RequestFailure::Refused(Status::new(code, "refused"))),
        });
    }
}

#[test]
fn a_spawn_that_a_permit_was_ahead_of_is_called_back_before_another() {
    let mut bench = overtaken();
    bench.tell(ended("a.1", 2, ExitResult::Signal, T0));
    assert_eq!(bench.take(), ["stop a.1 #2 at gpu"]);
    bench.pass(secs(3));
    assert_eq!(bench.take(), Vec::<String>::new(), "it may be beginning");
    // One that was not looked at proves nothing.
    bench.recalled(Code::ResourceExhausted);
    bench.pass(secs(3));
    assert_eq!(bench.take(), ["stop a.1 #2 at gpu"]);
    bench.recalled(Code::NotFound);
    assert_eq!(bench.take(), ["spawn a.1 #3 at gpu"]);
}

#[test]
fn a_refused_spawn_needs_no_recall() {
    let mut bench = overtaken();
    bench.input(Input::SpawnReply {
        manager: id("gpu"),
        instance: "a.1".parse().unwrap(),
        generation: Generation(2),
        result: Err(RequestFailure::Refused(Status::new(
            Code::AlreadyExists,
            "it lives elsewhere",
        ))),
    });
    bench.tell(ended("a.1", 2, ExitResult::Signal, T0));
    bench.pass(secs(3));
    assert_eq!(bench.take(), ["spawn a.1 #3 at gpu"]);
}

#[test]
fn a_recall_does_not_wait_until_the_service_is_wanted() {
    let mut bench = overtaken();
    let target = Target::Services(vec!["a".parse().unwrap()]);
    bench.command(Operator::Stop {
        target,
        transient: false,
    });
    assert_eq!(bench.take(), ["stop a.1 #2"]);
    bench.stopped("a.1");
    assert_eq!(bench.take(), ["stop a.1 #2 at gpu"]);
    bench.recalled(Code::NotFound);
    assert_eq!(bench.phase("a.1"), "idle");
    assert_eq!(bench.take(), Vec::<String>::new());
}

#[test]
fn what_began_after_the_same_had_ended_elsewhere_lives() {
    // The recall was forgotten with the supervisor.
    let mut bench = overtaken();
    bench.tell(ended("a.1", 2, ExitResult::Signal, T0));
    bench.take();
    let moved = [("a", of("gpu", service())), ("g", of("gpu", service()))];
    bench.reborn(Some(&moved));
    bench.input(Input::ControllerUp);
    bench.sync(&[ended("a.1", 2, ExitResult::Signal, T0)]);
    bench.sync_of(&id("gpu"), &[running("g.1", 1, T0), running("a.1", 2, T0)]);
    assert_eq!(bench.phase("a.1"), "ready");
    assert_eq!(bench.status("a.1").manager, id("gpu"));
    // Its own end counts.
    let restarts = bench.status("a.1").restarts;
    bench.take();
    bench.tell_of(&id("gpu"), ended("a.1", 2, ExitResult::Signal, T0));
    bench.pass(secs(20));
    assert_eq!(bench.take(), ["spawn a.1 #3 at gpu"]);
    assert_eq!(bench.status("a.1").restarts, restarts + 1);
}
