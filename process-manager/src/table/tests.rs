use std::collections::{BTreeMap, BTreeSet};

use blackhole_bus_schema::process::{
    ExitResult, ExitStatus, Failure, LogSpec, SpawnStep, StateName, StopSpec,
};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

pub(crate) fn spec(instance: &str, generation: u64) -> Box<SpawnSpec> {
    Box::new(SpawnSpec {
        instance: name(instance),
        generation: Generation(generation),
        command: vec!["/bin/true".to_owned()],
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        group: None,
        open_files: None,
        stop: StopSpec::default(),
        success_codes: vec![0],
        probes: Default::default(),
        logs: LogSpec::default(),
        grant: None,
        permit: None,
        restarts: 0,
        settings: Default::default(),
    })
}

fn exit(generation: u64, result: ExitResult) -> ExitRecord {
    ExitRecord {
        generation: Generation(generation),
        pid: 7,
        status: ExitStatus::Exited { code: 0 },
        result,
        started_at: 1,
        ended_at: 2,
        killed_leftovers: 0,
    }
}

fn launched() -> Launched {
    Launched {
        pid: 7,
        started_at: 1,
        steps: Vec::new(),
    }
}

fn stop(instance: &str, generation: u64) -> Stop {
    Stop {
        instance: name(instance),
        generation: Generation(generation),
        stop: None,
        unhealthy: false,
        again: false,
    }
}

const CAUSE: Uuid = Uuid::from_u128(1);
const STOP_CAUSE: Uuid = Uuid::from_u128(2);

fn edges_of(actions: &[Action]) -> Vec<(Option<StateName>, StateName, Option<Uuid>)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Publish { message, cause } => {
                Some((message.from, message.record.state.name(), *cause))
            }
            _ => None,
        })
        .collect()
}

fn answers(actions: &[Action]) -> Vec<(u64, Result<StateName, Code>)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Reply { ticket, result } => Some((
                ticket.0,
                result
                    .as_ref()
                    .map(|record| record.state.name())
                    .map_err(|status| status.code),
            )),
            _ => None,
        })
        .collect()
}

fn refused(actions: &[Action]) -> (Code, String) {
    match actions {
        [
            Action::Reply {
                result: Err(status),
                ..
            },
        ] => (status.code, status.message.clone()),
        other => panic!("not one refusal: {other:?}"),
    }
}

use StateName::{Failed, Running, Spawn, Stopping, Terminated};

#[test]
fn a_spawn_and_a_stop_are_told_edge_by_edge_with_their_causes() {
    let mut table = Table::new(10);
    let begun = table.spawn(Ticket(1), CAUSE, spec("web.1", 1));
    assert_eq!(edges_of(&begun), [(None, Spawn, Some(CAUSE))]);
    assert!(
        begun
            .iter()
            .any(|action| matches!(action, Action::Launch { .. }))
    );
    let running = table.launched(&name("web.1"), Generation(1), launched());
    assert_eq!(edges_of(&running), [(Some(Spawn), Running, Some(CAUSE))]);
    assert_eq!(answers(&running), [(1, Ok(Running))]);
    let stopping = table.stop(Ticket(2), STOP_CAUSE, stop("web.1", 1));
    assert_eq!(
        edges_of(&stopping),
        [(Some(Running), Stopping, Some(STOP_CAUSE))]
    );
    let ended = table.ended(&name("web.1"), Generation(1), exit(1, ExitResult::Stopped));
    assert_eq!(
        edges_of(&ended),
        [(Some(Stopping), Terminated, Some(STOP_CAUSE))]
    );
    assert_eq!(answers(&ended), [(2, Ok(Terminated))]);
    // Again: nothing lives, so it is answered at once.
    assert_eq!(
        answers(&table.stop(Ticket(3), CAUSE, stop("web.1", 1))),
        [(3, Ok(Terminated))]
    );
}

#[test]
fn ends_of_their_own_accord_have_no_cause() {
    let mut table = Table::new(10);
    for (generation, result, expected) in [
        (
            1,
            ExitResult::Success,
            vec![
                (Some(Running), Stopping, None),
                (Some(Stopping), Terminated, None),
            ],
        ),
        (2, ExitResult::ExitCode, vec![(Some(Running), Failed, None)]),
    ] {
        table.spawn(Ticket(generation), CAUSE, spec("web.1", generation));
        table.launched(&name("web.1"), Generation(generation), launched());
        let ended = table.ended(
            &name("web.1"),
            Generation(generation),
            exit(generation, result),
        );
        assert_eq!(edges_of(&ended), expected);
    }
}

#[test]
fn an_unhealthy_stop_passes_through_terminated_to_failed() {
    let mut table = Table::new(10);
    table.spawn(Ticket(1), CAUSE, spec("web.1", 1));
    table.launched(&name("web.1"), Generation(1), launched());
    let command = Stop {
        unhealthy: true,
        ..stop("web.1", 1)
    };
    let actions = table.stop(Ticket(2), STOP_CAUSE, command);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::Stop { request, .. } if request.unhealthy))
    );
    let ended = table.ended(
        &name("web.1"),
        Generation(1),
        exit(1, ExitResult::Unhealthy),
    );
    assert_eq!(
        edges_of(&ended),
        [
            (Some(Stopping), Terminated, Some(STOP_CAUSE)),
            (Some(Terminated), Failed, Some(STOP_CAUSE))
        ]
    );
}

#[test]
fn a_stop_during_spawn_ends_by_way_of_stopping_or_is_cancelled() {
    let mut table = Table::new(10);
    table.spawn(Ticket(1), CAUSE, spec("web.1", 1));
    let asked = table.stop(Ticket(2), STOP_CAUSE, stop("web.1", 1));
    assert!(matches!(asked[..], [Action::CancelLaunch { .. }]));
    let running = table.launched(&name("web.1"), Generation(1), launched());
    assert_eq!(
        edges_of(&running),
        [
            (Some(Spawn), Running, Some(CAUSE)),
            (Some(Running), Stopping, Some(STOP_CAUSE))
        ]
    );
    assert_eq!(answers(&running), [(1, Ok(Stopping))]);
    let ended = table.ended(&name("web.1"), Generation(1), exit(1, ExitResult::Stopped));
    assert_eq!(answers(&ended), [(2, Ok(Terminated))]);

    table.spawn(Ticket(3), CAUSE, spec("web.1", 2));
    table.stop(Ticket(4), STOP_CAUSE, stop("web.1", 2));
    let cancelled = table.not_launched(&name("web.1"), Generation(2), None);
    assert_eq!(
        edges_of(&cancelled),
        [(Some(Spawn), Failed, Some(STOP_CAUSE))]
    );
    assert_eq!(answers(&cancelled), [(3, Ok(Failed)), (4, Ok(Failed))]);
    let state = &table.record(&name("web.1")).unwrap().state;
    assert_eq!(
        *state,
        ProcessState::Failed {
            failure: Failure::Cancelled
        }
    );
}

#[test]
fn generations_only_rise() {
    let mut table = Table::new(10);
    table.spawn(Ticket(1), CAUSE, spec("web.1", 5));
    // The same again, as after a lost answer: one process, two answers.
    let repeated = table.spawn(Ticket(2), CAUSE, spec("web.1", 5));
    assert!(repeated.is_empty());
    let running = table.launched(&name("web.1"), Generation(5), launched());
    assert_eq!(answers(&running), [(1, Ok(Running)), (2, Ok(Running))]);
    assert_eq!(
        answers(&table.spawn(Ticket(3), CAUSE, spec("web.1", 5))),
        [(3, Ok(Running))]
    );
    let older = refused(&table.spawn(Ticket(4), CAUSE, spec("web.1", 4)));
    assert_eq!(older.0, Code::FailedPrecondition);
    assert!(
        older.1.contains("generation 4 is older than 5"),
        "{}",
        older.1
    );
    let lives = refused(&table.spawn(Ticket(5), CAUSE, spec("web.1", 6)));
    assert_eq!(lives.0, Code::FailedPrecondition);
    assert!(lives.1.contains("RUNNING"), "{}", lives.1);
    assert_eq!(
        refused(&table.stop(Ticket(6), CAUSE, stop("web.1", 4))).0,
        Code::FailedPrecondition
    );
    table.ended(&name("web.1"), Generation(5), exit(5, ExitResult::ExitCode));
    // Ended, yet started once: the same generation is not started again.
    assert_eq!(
        answers(&table.spawn(Ticket(7), CAUSE, spec("web.1", 5))),
        [(7, Ok(Failed))]
    );
    assert_eq!(
        edges_of(&table.spawn(Ticket(8), CAUSE, spec("web.1", 6))),
        [(Some(Failed), Spawn, Some(CAUSE))]
    );
}

#[test]
fn a_spawn_that_comes_after_its_stop_is_refused() {
    let mut table = Table::new(10);
    assert_eq!(
        refused(&table.stop(Ticket(1), CAUSE, stop("web.1", 3))).0,
        Code::NotFound
    );
    let late = refused(&table.spawn(Ticket(2), CAUSE, spec("web.1", 3)));
    assert_eq!(late.0, Code::FailedPrecondition);
    assert!(late.1.contains("too late"), "{}", late.1);
    assert!(!edges_of(&table.spawn(Ticket(3), CAUSE, spec("web.1", 4))).is_empty());
    // "Whatever lives" says nothing of later spawns.
    table.stop(Ticket(4), CAUSE, stop("web.2", u64::MAX));
    assert!(!edges_of(&table.spawn(Ticket(5), CAUSE, spec("web.2", 1))).is_empty());
}

#[test]
fn max_processes_is_refused_by_name() {
    let mut table = Table::new(2);
    table.spawn(Ticket(1), CAUSE, spec("web.1", 1));
    table.spawn(Ticket(2), CAUSE, spec("web.2", 1));
    let (code, text) = refused(&table.spawn(Ticket(3), CAUSE, spec("web.3", 1)));
    assert_eq!(code, Code::ResourceExhausted);
    for part in [
        "max_processes is 2",
        "2 processes live",
        "runtime.orchestrator.max_processes",
        "BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(table.record(&name("web.3")).is_none());
    table.not_launched(&name("web.1"), Generation(1), None);
    assert!(!edges_of(&table.spawn(Ticket(4), CAUSE, spec("web.3", 1))).is_empty());
}

#[test]
fn a_manager_with_a_name_tells_its_own_limit() {
    let gpu = "gpu".parse().unwrap();
    let mut table = Table::new(1).of(Some(&gpu));
    table.spawn(Ticket(1), CAUSE, spec("web.1", 1));
    let (code, text) = refused(&table.spawn(Ticket(2), CAUSE, spec("web.2", 1)));
    assert_eq!(code, Code::ResourceExhausted);
    let key = "runtime.orchestrator.process_managers.gpu.max_processes";
    assert!(text.contains(key) && !text.contains("BLACKHOLE_"), "{text}");
}

#[test]
fn nonsense_is_refused_before_anything_happens() {
    let mut table = Table::new(2);
    let mut empty = spec("web.1", 1);
    empty.command.clear();
    let mut nul = spec("web.1", 1);
    nul.command.push("a\0b".to_owned());
    for wrong in [spec("web.1", 0), empty, nul] {
        assert_eq!(
            refused(&table.spawn(Ticket(1), CAUSE, wrong)).0,
            Code::InvalidArgument
        );
    }
    let signal = Signal {
        instance: name("web.1"),
        signal: 65,
    };
    assert!(matches!(
        &table.signal(Ticket(1), &signal)[..],
        [Action::Reply { result: Err(status), .. }] if status.code == Code::InvalidArgument
    ));
    assert_eq!(table.live(), 0);
}

#[test]
fn only_what_does_not_live_is_forgotten() {
    let mut table = Table::new(2);
    table.spawn(Ticket(1), CAUSE, spec("web.1", 1));
    let forget = Forget {
        instance: name("web.1"),
    };
    assert_eq!(
        refused(&table.forget(Ticket(2), &forget)).0,
        Code::FailedPrecondition
    );
    table.not_launched(&name("web.1"), Generation(1), None);
    for ticket in [3, 4] {
        let actions = table.forget(Ticket(ticket), &forget);
        assert!(matches!(actions[..], [Action::Erase { .. }]));
    }
    assert!(table.record(&name("web.1")).is_none());
}

#[test]
fn facts_about_another_generation_move_nothing() {
    let mut table = Table::new(2);
    table.spawn(Ticket(1), CAUSE, spec("web.1", 2));
    assert!(
        table
            .launched(&name("web.1"), Generation(1), launched())
            .is_empty()
    );
    table.launched(&name("web.1"), Generation(2), launched());
    assert!(
        table
            .ended(&name("web.1"), Generation(1), exit(1, ExitResult::Success))
            .is_empty()
    );
    assert!(table.stopping(&name("web.1"), Generation(3)).is_empty());
    assert!(
        table
            .ended(&name("nope.1"), Generation(1), exit(1, ExitResult::Success))
            .is_empty()
    );
}

/// What may come in, by index of instance and generation.
#[derive(Debug, Clone)]
enum Input {
    Spawn(u8, u64),
    Stop(u8, u64),
    Signal(u8),
    Forget(u8),
    Launch(u8),
    LaunchFails(u8),
    LaunchCancelled(u8),
    SomebodyStops(u8),
    Ends(u8, bool),
    Stale(u8, u64),
}

fn any_input() -> impl Strategy<Value = Input> {
    let instance = 0u8..4;
    prop_oneof![
        4 => (instance.clone(), 0u64..8).prop_map(|(i, g)| Input::Spawn(i, g)),
        3 => (instance.clone(), 0u64..8).prop_map(|(i, g)| Input::Stop(i, g)),
        1 => instance.clone().prop_map(Input::Signal),
        1 => instance.clone().prop_map(Input::Forget),
        4 => instance.clone().prop_map(Input::Launch),
        1 => instance.clone().prop_map(Input::LaunchFails),
        1 => instance.clone().prop_map(Input::LaunchCancelled),
        1 => instance.clone().prop_map(Input::SomebodyStops),
        3 => (instance.clone(), any::<bool>()).prop_map(|(i, good)| Input::Ends(i, good)),
        1 => (instance, 0u64..8).prop_map(|(i, g)| Input::Stale(i, g)),
    ]
}

/// The world outside: which launches are under way, which processes live.
#[derive(Default)]
struct World {
    launching: BTreeMap<InstanceName, Generation>,
    alive: BTreeMap<InstanceName, Generation>,
    last: BTreeMap<InstanceName, (StateName, Generation)>,
    asked: BTreeSet<u64>,
    answered: BTreeSet<u64>,
}

impl World {
    fn carry_out(&mut self, actions: Vec<Action>, max: usize) {
        for action in actions {
            match action {
                Action::Publish { message, .. } => {
                    let record = &message.record;
                    let before = self.last.get(&record.instance).copied();
                    assert_eq!(
                        message.from,
                        before.map(|(state, _)| state),
                        "an edge was skipped"
                    );
                    if let Some((from, generation)) = before {
                        assert!(from.may_become(record.state.name()), "{message:?}");
                        assert!(record.generation >= generation, "{message:?}");
                    }
                    let running = self.alive.get(&record.instance) == Some(&record.generation);
                    if record.state.pid().is_some() {
                        assert!(running, "a pid without a process: {message:?}");
                    }
                    self.last.insert(
                        record.instance.clone(),
                        (record.state.name(), record.generation),
                    );
                }
                Action::Permit { ticket, .. } | Action::Reload { ticket, .. } => {
                    self.answered.insert(ticket.0);
                }
                // What is kept of one that does not live.
                Action::LetGo { instance } => {
                    assert!(!self.alive.contains_key(&instance));
                }
                Action::Launch { spec } => {
                    assert!(!self.alive.contains_key(&spec.instance), "two lives");
                    let before = self
                        .launching
                        .insert(spec.instance.clone(), spec.generation);
                    assert!(before.is_none(), "two launches");
                    assert!(self.launching.len() + self.alive.len() <= max);
                }
                Action::Stop {
                    instance,
                    generation,
                    ..
                } => {
                    assert_eq!(self.alive.get(&instance), Some(&generation));
                }
                Action::Signal {
                    ticket, instance, ..
                } => {
                    assert!(self.alive.contains_key(&instance));
                    self.answer(ticket);
                }
                Action::Erase { ticket, instance } => {
                    assert!(!self.alive.contains_key(&instance));
                    self.last.remove(&instance);
                    self.answer(ticket);
                }
                Action::Reply { ticket, .. } => self.answer(ticket),
                Action::CancelLaunch {
                    instance,
                    generation,
                } => {
                    assert_eq!(self.launching.get(&instance), Some(&generation));
                }
                Action::Watch { .. } | Action::Over { .. } | Action::Notified { .. } => {}
            }
        }
    }

    fn answer(&mut self, ticket: Ticket) {
        assert!(self.asked.contains(&ticket.0));
        assert!(self.answered.insert(ticket.0), "answered twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_comes_in_the_rules_hold(inputs in proptest::collection::vec(any_input(), 0..120)) {
        const MAX: usize = 3;
        let mut table = Table::new(MAX as u32);
        let mut world = World::default();
        let names: Vec<InstanceName> = (1..=4).map(|n| name(&format!("web.{n}"))).collect();
        let finish: Vec<Input> = (0..4)
            .flat_map(|i| [Input::Launch(i), Input::Ends(i, true)])
            .collect();
        for (number, input) in inputs.into_iter().chain(finish).enumerate() {
            let ticket = Ticket(number as u64);
            let mut ask = || {
                world.asked.insert(ticket.0);
                ticket
            };
            let actions = match input {
                Input::Spawn(i, g) => {
                    table.spawn(ask(), CAUSE, spec(&format!("web.{}", i + 1), g))
                }
                Input::Stop(i, g) => table.stop(ask(), CAUSE, stop(&format!("web.{}", i + 1), g)),
                Input::Signal(i) => {
                    let signal = Signal { instance: names[i as usize].clone(), signal: 1 };
                    table.signal(ask(), &signal)
                }
                Input::Forget(i) => {
                    table.forget(ask(), &Forget { instance: names[i as usize].clone() })
                }
                Input::Launch(i) => match world.launching.remove_entry(&names[i as usize]) {
                    Some((name, generation)) => {
                        world.alive.insert(name.clone(), generation);
                        table.launched(&name, generation, launched())
                    }
                    None => Vec::new(),
                },
                Input::LaunchFails(i) | Input::LaunchCancelled(i) => {
                    let failure = matches!(input, Input::LaunchFails(_)).then(|| SpawnFailure {
                        step: SpawnStep::Exec,
                        operation: String::new(),
                        errno: 2,
                        hint: String::new(),
                    });
                    match world.launching.remove_entry(&names[i as usize]) {
                        Some((name, generation)) => table.not_launched(&name, generation, failure),
                        None => Vec::new(),
                    }
                }
                Input::SomebodyStops(i) => match world.alive.get(&names[i as usize]) {
                    Some(generation) => table.stopping(&names[i as usize], *generation),
                    None => Vec::new(),
                },
                Input::Ends(i, good) => match world.alive.remove_entry(&names[i as usize]) {
                    Some((name, generation)) => {
                        let result = if good { ExitResult::Success } else { ExitResult::Signal };
                        // Its last events are published while the table still shows a process.
                        world.alive.insert(name.clone(), generation);
                        let actions = table.ended(&name, generation, exit(generation.0, result));
                        world.carry_out(actions, MAX);
                        world.alive.remove(&name);
                        Vec::new()
                    }
                    None => Vec::new(),
                },
                Input::Stale(i, g) => {
                    let name = &names[i as usize];
                    let now = [world.alive.get(name), world.launching.get(name)];
                    match now.contains(&Some(&Generation(g))) {
                        true => Vec::new(),
                        false => {
                            let ended = table.ended(name, Generation(g), exit(g, ExitResult::Success));
                            prop_assert!(ended.is_empty(), "{:?}", ended);
                            table.launched(name, Generation(g), launched())
                        }
                    }
                }
            };
            world.carry_out(actions, MAX);
            prop_assert_eq!(table.live(), world.alive.len() + world.launching.len());
        }
        // Everything has ended: nobody waits any more.
        prop_assert_eq!(&world.asked, &world.answered);
    }
}
