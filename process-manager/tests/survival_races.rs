//! A stop that meets a crash, a start that meets a stop: whoever is first, there
//! is one outcome, it is told once, and the disk says the same.
//!
//! Each round has several instances, and what races is a fixed, different time
//! apart for each.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    ExitResult, Failure, InstanceRecord, Permit, ProcessState, Spawn, StateName,
};
use blackhole_process_manager::shim::client::{instance_lock_held, read_record};
use support::*;

use StateName::{Failed, Terminated};

const ROUNDS: u64 = 8;

/// A step of what lies between two that race, in a round with this number.
fn apart(index: usize, round: u64) -> Duration {
    Duration::from_micros(u64::try_from(index).unwrap() * 250 + round * 31)
}

fn all() -> Vec<String> {
    (1..=8).map(|index| format!("web.{index}")).collect()
}

fn over(state: StateName) -> bool {
    [Failed, Terminated].contains(&state)
}

/// Ends among changes: TERMINATED that becomes FAILED is one, which was a failure.
fn ends(told: &[(Option<StateName>, StateName)]) -> usize {
    let begins = |from: &Option<StateName>| !from.is_some_and(over);
    let ends = told.iter().filter(|(from, to)| over(*to) && begins(from));
    ends.count()
}

/// Changes told of one generation of an instance, in their order.
fn told(bench: &Bench, instance: &str, generation: u64) -> Vec<(Option<StateName>, StateName)> {
    let ours = |record: &InstanceRecord| {
        record.instance == name(instance) && record.generation == Generation(generation)
    };
    let all = bench.history.iter();
    all.filter_map(|told| match told {
        Told::Changed(changed, _) if ours(&changed.record) => {
            Some((changed.from, changed.record.state.name()))
        }
        _ => None,
    })
    .collect()
}

/// The one end of a generation: told once, by way of states that lead there, and
/// the same in the list and on the disk; nothing of it runs.
async fn assert_one_outcome(bench: &mut Bench, instance: &str, generation: u64) -> InstanceRecord {
    bench.settle().await;
    let told = told(bench, instance, generation);
    assert_eq!(ends(&told), 1, "{instance} {generation}: {told:?}");
    for (from, to) in &told {
        assert!(from.is_none_or(|from| from.may_become(*to)), "{told:?}");
    }
    let list = bench.list().await;
    let shown = list.into_iter().find(|one| one.instance == name(instance));
    let shown = shown.unwrap();
    assert_eq!(shown.generation, Generation(generation));
    assert!(over(shown.state.name()), "{shown:#?}");
    assert_eq!(told.last().map(|(_, to)| *to), Some(shown.state.name()));
    let folder = bench.dirs.instance(&name(instance));
    assert_eq!(instance_lock_held(&folder).unwrap(), None);
    if let Some(exit) = shown.state.exit() {
        let record = read_record(&folder).unwrap().unwrap();
        assert_eq!(record.exit.as_ref(), Some(exit));
    }
    assert_eq!(members(&bench.dirs.run, instance), [0_u32; 0]);
    shown
}

#[tokio::test]
async fn a_stop_and_a_crash_have_one_outcome() {
    let mut bench = Bench::start().await;
    let mut seen = BTreeSet::new();
    for round in 1..=ROUNDS {
        let mut asked = Vec::new();
        let mut pids = Vec::new();
        for instance in all() {
            pids.push(
                bench
                    .run(&sleeper(&instance, round))
                    .await
                    .state
                    .pid()
                    .unwrap(),
            );
        }
        for (index, (instance, pid)) in all().into_iter().zip(pids).enumerate() {
            let (link, command) = (bench.link.clone(), stop(&instance, round));
            // Every other time the crash is first.
            if round % 2 == 0 {
                kill(pid);
                spin(apart(index, round));
            }
            asked.push(tokio::spawn(
                async move { link.request(&command, LIMIT).await },
            ));
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            if round % 2 == 1 {
                spin(apart(index, round));
                kill(pid);
            }
        }
        for (instance, asked) in all().into_iter().zip(asked) {
            let answered = asked.await.unwrap().unwrap();
            let shown = assert_one_outcome(&mut bench, &instance, round).await;
            assert_eq!(answered.state, shown.state);
            let result = shown.state.exit().unwrap().result;
            assert!(
                [ExitResult::Stopped, ExitResult::Signal].contains(&result),
                "{shown:#?}"
            );
            seen.insert(format!("{result:?}"));
        }
    }
    // Both ways were met.
    assert_eq!(seen.len(), 2, "{seen:?}");
}

/// Where a shim may restart by itself a stop may come too late for the one that
/// was meant: then it is refused or meets the successor; there is never a third.
#[tokio::test]
async fn a_stop_and_a_restart_by_permit_have_one_outcome() {
    let mut bench = Bench::start().await;
    for round in 1..=ROUNDS {
        let generation = round * 10;
        let mut pids = Vec::new();
        for instance in all() {
            let mut service = sleeper(&instance, generation);
            service.permit = Some(Permit {
                generation: Generation(generation + 1),
                expires_after_ms: None,
            });
            pids.push(bench.run(&service).await.state.pid().unwrap());
        }
        let mut asked = Vec::new();
        for (index, (instance, pid)) in all().into_iter().zip(pids).enumerate() {
            let (link, command) = (bench.link.clone(), stop(&instance, generation));
            kill(pid);
            spin(apart(index, round));
            asked.push(tokio::spawn(
                async move { link.request(&command, LIMIT).await },
            ));
            tokio::task::yield_now().await;
        }
        for (instance, asked) in all().into_iter().zip(asked) {
            let _ = asked.await.unwrap();
            // Whatever became of that one: this one is for what lives now, if anything.
            let list = bench.list().await;
            let shown = list.into_iter().find(|one| one.instance == name(&instance));
            let shown = shown.unwrap();
            let last = shown.generation.0;
            assert!(last == generation || last == generation + 1, "{shown:#?}");
            assert!(members(&bench.dirs.run, &instance).len() <= 1);
            let ended = bench.stop(&instance, last).await;
            let now = bench.list().await;
            let now = now.into_iter().find(|one| one.instance == name(&instance));
            let now = now.unwrap();
            if now.state.is_live() {
                // It was restarted between the look and the stop.
                assert_eq!(now.generation.0, generation + 1, "{ended:?}");
                bench.stop(&instance, generation + 1).await.unwrap();
            }
            let last = now.generation.0;
            assert_one_outcome(&mut bench, &instance, last).await;
            if last > generation {
                let told = told(&bench, &instance, generation);
                assert_eq!(ends(&told), 1, "{instance}: {told:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_start_and_its_stop_have_one_outcome() {
    let mut bench = Bench::start().await;
    let mut seen = BTreeSet::new();
    for round in 1..=ROUNDS {
        let mut asked = Vec::new();
        for (index, instance) in all().into_iter().enumerate() {
            let (link, spec) = (bench.link.clone(), sleeper(&instance, round));
            let start = tokio::spawn(async move { link.request(&Spawn { spec }, LIMIT).await });
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            spin(apart(index, round));
            let (link, command) = (bench.link.clone(), stop(&instance, round));
            let stop = tokio::spawn(async move { link.request(&command, LIMIT).await });
            tokio::task::yield_now().await;
            asked.push((start, stop));
        }
        for (instance, (start, stopped)) in all().into_iter().zip(asked) {
            let started = start.await.unwrap().unwrap();
            let stopped = stopped.await.unwrap().unwrap();
            assert!(!stopped.state.is_live(), "{stopped:#?}");
            let shown = assert_one_outcome(&mut bench, &instance, round).await;
            assert_eq!(stopped.state, shown.state, "{started:#?}");
            match &shown.state {
                ProcessState::Terminated { exit: Some(exit) } => {
                    assert_eq!(exit.result, ExitResult::Stopped);
                    seen.insert("stopped");
                }
                ProcessState::Failed {
                    failure: Failure::Cancelled,
                } => {
                    seen.insert("cancelled");
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(!seen.is_empty());
    eprintln!("{seen:?}");
}

/// The stop of one generation and the start of the next at the same time.
#[tokio::test]
async fn a_stop_and_the_next_start_leave_one_life_at_most() {
    let mut bench = Bench::start().await;
    for round in 1..=ROUNDS {
        let (old, new) = (round * 2 - 1, round * 2);
        for instance in all() {
            bench.run(&sleeper(&instance, old)).await;
        }
        let mut asked = Vec::new();
        for (index, instance) in all().into_iter().enumerate() {
            let (link, command) = (bench.link.clone(), stop(&instance, old));
            let stop = tokio::spawn(async move { link.request(&command, LIMIT).await });
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            spin(apart(index, round) * 2);
            let (link, spec) = (bench.link.clone(), sleeper(&instance, new));
            let start = tokio::spawn(async move { link.request(&Spawn { spec }, LIMIT).await });
            tokio::task::yield_now().await;
            asked.push((stop, start));
        }
        for (instance, (stopped, start)) in all().into_iter().zip(asked) {
            stopped.await.unwrap().unwrap();
            match start.await.unwrap() {
                Ok(record) => {
                    let pid: Vec<u32> = record.state.pid().into_iter().collect();
                    assert_eq!(members(&bench.dirs.run, &instance), pid, "{record:#?}");
                    bench.stop(&instance, new).await.unwrap();
                    assert_one_outcome(&mut bench, &instance, new).await;
                }
                // The one before still lived.
                Err(_) => {
                    assert_one_outcome(&mut bench, &instance, old).await;
                    // The number is not used up by what was refused.
                    bench.run(&sleeper(&instance, new)).await;
                    bench.stop(&instance, new).await.unwrap();
                }
            }
            bench.settle().await;
            let told = told(&bench, &instance, old);
            assert_eq!(ends(&told), 1, "{told:?}");
        }
    }
}
