//! Commands that are repeated under their ids.

use uuid::Uuid;

use super::*;

fn ask(bench: &mut Bench, id: u128, command: Operator) -> Ticket {
    bench.tickets += 1;
    let ticket = Ticket(bench.tickets);
    let input = Input::Command {
        ticket,
        deadline: bench.now.mono + secs(30),
        command,
    };
    let id = Some(Uuid::from_u128(id));
    for action in super::handle(&mut bench.core, bench.now, input, id) {
        match action {
            Action::Persist { change, .. } => bench.disk.apply(change),
            Action::Answer { ticket, result } => bench.answers.push((ticket, result)),
            Action::Publish { .. } => {}
            action => bench.sent.push(action),
        }
    }
    ticket
}

fn restart() -> Operator {
    Operator::Restart(target(&["a"]))
}

#[test]
fn a_restart_that_is_repeated_to_the_successor_takes_effect_once() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    ask(&mut bench, 7, restart());
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    bench.take();
    bench.runs("a.1");
    bench.reborn(Some(&[("a", service())]));
    bench.input(Input::ControllerUp);
    bench.sync(&[running("a.1", 2, T0)]);
    let again = ask(&mut bench, 7, restart());
    assert_eq!(bench.take(), [""; 0]);
    assert!(bench.answer(again).unwrap().is_ok());
    ask(&mut bench, 8, restart());
    assert_eq!(bench.take(), ["stop a.1 #2"], "another command");
}

/// The supervisor died before it began: its successor goes on, by what is
/// written down, whether the client repeats the command or not.
#[test]
fn what_was_decided_is_done_by_the_successor() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    ask(&mut bench, 7, restart());
    bench.reborn(Some(&[("a", service())]));
    bench.input(Input::ControllerUp);
    bench.sync(&[running("a.1", 1, T0)]);
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    let again = ask(&mut bench, 7, restart());
    bench.stopped("a.1");
    assert!(bench.answer(again).is_none());
    assert_eq!(bench.take(), ["spawn a.1 #2"]);
    bench.runs("a.1");
    assert!(bench.answer(again).unwrap().is_ok());
}

#[test]
fn only_so_many_ids_are_kept() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    for id in 1..=5000 {
        ask(&mut bench, id, start(&["a"]));
    }
    assert_eq!(bench.disk.commands.len(), 4096);
    assert_eq!(bench.disk.commands.last(), Some(&Uuid::from_u128(5000)));
}

#[test]
fn the_commands_that_came_first_are_forgotten_first_whatever_their_ids() {
    let mut bench = Bench::new(&[("a", service())]);
    bench.take();
    bench.runs("a.1");
    // Ids that fall, as a clock that is set back makes them.
    for id in (0..5_000).rev() {
        ask(&mut bench, id, Operator::Start(target(&["a"])));
    }
    bench.take();
    assert_eq!(bench.disk.commands.len(), 4_096);
    let (newest, oldest_kept) = (Uuid::from_u128(0), Uuid::from_u128(4_095));
    assert_eq!(bench.disk.commands.first(), Some(&oldest_kept));
    assert_eq!(bench.disk.commands.last(), Some(&newest));
    // The latest one, given once more, does nothing.
    ask(&mut bench, 9_999, restart());
    assert_eq!(bench.take(), ["stop a.1 #1"]);
    bench.stopped("a.1");
    bench.take();
    bench.runs("a.1");
    ask(&mut bench, 9_999, restart());
    assert_eq!(bench.take(), [""; 0]);
}
