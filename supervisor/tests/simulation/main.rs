//! Whole deployments in virtual time: the core, with two process-managers, a
//! resource-controller, a bridge and a network that loses, doubles, delays and reorders,
//! while the supervisor (between any two of its actions), the process-managers
//! and the resource-controller die and return, each path fails by itself, services are
//! given to the other process-manager and operators command.
//!
//! Invariants, after the design:
//!
//! 1. never two live processes of one instance (in `host.rs`);
//! 2. nothing is started before what it requires holds (in `world.rs`);
//! 3. nothing is stopped for an operator while what requires it lives (there, too);
//! 4. every command is answered exactly once;
//! 5. no start beyond the restart policy;
//! 6. what nobody killed is never started twice, whatever dies around it;
//! 7. once the faults stop, what is wanted is reached and the status is true;
//! 8. never more than one replica of a service is down because of a rolling restart;
//! 9. a drain delays a stop by half of the grace at most, and is asked for once;
//! 10. a command that is repeated to the next supervisor takes effect once (by 6);
//! 11. nothing is started at one process-manager while it lives at the other, and what
//!     lives is shown at the one that has it.
//!
//! `PROPTEST_CASES=30000 cargo test -p blackhole-supervisor --test simulation`
//! looks longer (`cargo nextest` ends a test after five minutes); `SIM_TRACE=1`
//! tells everything that happens.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail by panicking, too.

mod bridge;
mod host;
mod manager;
mod network;
mod plan;
mod supervisor;
mod world;

use blackhole_bus_schema::supervision::{Desired, Phase};
use proptest::prelude::*;

use plan::{FAULTS_END_MS, Fault, MAX_ATTEMPTS, Member, Nature, Plan, manager_name, name, plan};
use world::World;

/// Time to settle after the last fault: stops, waits and commands are over by then.
const SETTLED_MS: u64 = FAULTS_END_MS + 180_000;

/// Whether a service is wanted, by the operators' wishes alone.
fn wanted(world: &World, index: usize) -> bool {
    let wish = world
        .disk
        .services
        .iter()
        .find(|row| row.name == name(index))
        .and_then(|row| row.wish);
    let own = wish != Some(Desired::Down);
    let needs = world.plan.needs(index);
    own && needs
        .iter()
        .filter(|(_, on)| on.required)
        .all(|(on, _)| wanted(world, *on))
}

/// Whether everything it requires can come up.
fn attainable(plan: &Plan, index: usize) -> bool {
    let fine = |index: usize| matches!(plan.members[index].nature, Nature::Good | Nature::Job);
    fine(index)
        && plan
            .needs(index)
            .iter()
            .filter(|(_, on)| on.required)
            .all(|(on, _)| attainable(plan, *on))
}

fn check(world: &World) {
    assert_eq!(world.unanswered(), 0, "commands without an answer");
    let core = world.core.as_ref().expect("the supervisor is back");
    for status in core.statuses() {
        let index: usize = status.service.as_str()[1..].parse().unwrap();
        let nature = world.plan.members[index].nature;
        let process = world.host.processes.get(&status.instance);
        let starts = world
            .host
            .starts
            .get(&status.instance)
            .copied()
            .unwrap_or_default();
        let context = format!("{nature:?}, {process:?}, {starts} starts, {status:#?}");

        assert_eq!(
            status.pid,
            process.map(|process| process.pid),
            "the status is wrong: {context}"
        );
        if let Some(process) = process {
            assert_eq!(status.manager, manager_name(process.of), "{context}");
        }
        let anew = world.commands + world.moves;
        let budget = (1 + anew) * (1 + MAX_ATTEMPTS);
        if matches!(nature, Nature::Crashing | Nature::Missing | Nature::BadJob) {
            assert!(
                starts <= budget,
                "more starts than the policy allows ({budget}): {context}"
            );
        } else if !world.kills.contains(&status.instance) {
            assert!(starts <= 1 + anew, "started again for nothing: {context}");
            assert_eq!(status.restarts, 0, "nobody killed it: {context}");
        }
        if !wanted(world, index) {
            assert!(process.is_none(), "not wanted: {context}");
            continue;
        }
        match nature {
            Nature::Good if attainable(&world.plan, index) => {
                assert_eq!(status.phase, Phase::Ready, "{context}");
                assert!(process.is_some(), "{context}");
            }
            Nature::Job if attainable(&world.plan, index) => {
                assert_eq!(status.phase, Phase::Idle, "{context}");
                assert!(
                    world.host.was_through.contains(&status.instance),
                    "{context}"
                );
            }
            Nature::Crashing | Nature::Missing | Nature::BadJob => {
                let over = matches!(
                    status.phase,
                    Phase::CircuitOpen | Phase::WaitingForDependency { .. }
                );
                assert!(over && process.is_none(), "{context}");
            }
            Nature::Good | Nature::Job => {}
        }
    }
}

fn simulate(plan: &Plan) -> World {
    let mut world = World::new(plan);
    world.run(SETTLED_MS);
    world
}

proptest! {
    #![proptest_config(ProptestConfig {
        // More with PROPTEST_CASES.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(192),
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_dies_the_invariants_hold(plan in plan()) {
        check(&simulate(&plan));
    }
}

fn good(replicas: u32, probed: bool, needs: &[(usize, u8, bool)]) -> Member {
    member(Nature::Good, replicas, probed, needs)
}

fn member(nature: Nature, replicas: u32, probed: bool, needs: &[(usize, u8, bool)]) -> Member {
    Member {
        nature,
        replicas,
        manager: 0,
        probed,
        needs: needs.to_vec(),
    }
}

/// Found by long runs, kept: a spawn that outlived its manager was made twice.
#[test]
fn a_spawn_request_that_outlives_its_manager() {
    check(&simulate(&Plan {
        seed: 1_196_734_497_549_450_420,
        members: vec![good(1, false, &[]), good(2, false, &[])],
        faults: vec![
            (1559, Fault::Partition(0, 1299)),
            (3236, Fault::ManagerDies(0, 2057)),
        ],
        loss: 0,
        delay: 802,
    }));
}

/// A reply of a new manager was ahead of its snapshot.
#[test]
fn a_reply_that_is_ahead_of_the_snapshot() {
    check(&simulate(&Plan {
        seed: 7_021_578_554_297_511_604,
        members: vec![
            good(1, false, &[]),
            member(Nature::Job, 2, false, &[]),
            good(2, false, &[]),
            good(2, false, &[(2, 0, false)]),
        ],
        faults: vec![(3984, Fault::ManagerDies(0, 490))],
        loss: 4,
        delay: 1067,
    }));
}

/// Supervisor and process-manager are dead: the shim starts the successor, and
/// both account for it when they return.
#[test]
fn a_permit_is_used_while_nobody_lives() {
    let world = simulate(&Plan {
        seed: 1,
        members: vec![good(1, true, &[])],
        faults: vec![
            (20_000, Fault::SupervisorDies(0, 5000)),
            (20_001, Fault::ManagerDies(0, 3000)),
            (21_000, Fault::Kill(0)),
        ],
        loss: 0,
        delay: 1,
    });
    check(&world);
    assert_eq!(world.host.permits_used, 1);
    let status = world.core.as_ref().unwrap().statuses().next().unwrap();
    assert_eq!(status.restarts, 1, "{status:#?}");
    let starts: Vec<_> = world.host.starts.values().collect();
    assert_eq!(starts, [&2], "nothing was started for it again");
}

/// A permit is one restart: what fails again waits as its policy says.
#[test]
fn a_permit_does_not_add_to_the_restarts() {
    let world = simulate(&Plan {
        seed: 2,
        members: vec![member(Nature::Crashing, 1, false, &[])],
        faults: Vec::new(),
        loss: 0,
        delay: 1,
    });
    check(&world);
    assert_eq!(world.host.permits_used, 1);
    let starts: Vec<_> = world.host.starts.values().collect();
    assert_eq!(starts, [&(1 + MAX_ATTEMPTS)]);
}

/// A shim used its permit at the one manager, and the supervisor, started anew with
/// another configuration, decided the same restart for the other.
#[test]
fn a_permit_that_meets_a_move() {
    let crashing = |probed| member(Nature::Crashing, 2, probed, &[]);
    check(&simulate(&Plan {
        seed: 7_821_816_149_273_470_308,
        members: vec![crashing(false), crashing(false)],
        faults: vec![
            (21_347, Fault::BridgeDies(338)),
            (0, Fault::Hang(15_150)),
            (15_147, Fault::ManagerDies(0, 4157)),
            (23_555, Fault::Reassign(0)),
        ],
        loss: 7,
        delay: 604,
    }));
}

/// It lived at the first manager, which died with the path to it; given to the
/// second one it waits for the first, and both come to know whose it is.
#[test]
fn what_lives_where_nobody_can_be_asked_is_started_nowhere_else() {
    let world = simulate(&Plan {
        seed: 3,
        members: vec![good(1, true, &[])],
        faults: vec![
            (20_000, Fault::ManagerDies(0, 20_000)),
            (21_000, Fault::Reassign(0)),
            (50_000, Fault::Command(3, 0)),
        ],
        loss: 0,
        delay: 1,
    });
    check(&world);
    let starts: Vec<_> = world.host.starts.values().collect();
    assert_eq!(starts, [&2], "once, and once more by the command");
    let owners: Vec<_> = world.host.owner.values().collect();
    assert_eq!(owners, [&1], "which moved it");
}

/// A shim used its permit at the one manager while the same restart was on its way to the
/// other, and ended before that began there: it was begun, and another one with it.
#[test]
fn a_restart_on_its_way_to_another_manager_that_a_permit_was_ahead_of() {
    check(&simulate(&Plan {
        seed: 5_531_198_562_582_148_309,
        members: vec![
            member(Nature::Crashing, 1, false, &[]),
            Member {
                manager: 1,
                ..good(1, false, &[])
            },
            good(2, false, &[]),
        ],
        faults: vec![(6851, Fault::Reassign(0))],
        loss: 17,
        delay: 267,
    }));
}

/// The spawn of a supervisor that died ran, failed and was followed by permit; the next
/// supervisor, which knew of neither, asked for both of them, and did not count the failure.
#[test]
fn a_failure_that_was_met_by_its_successor_only() {
    check(&simulate(&Plan {
        seed: 15_525_634_661_940_105_239,
        members: vec![
            member(Nature::Crashing, 2, false, &[]),
            Member {
                manager: 1,
                ..good(1, false, &[(0, 0, false)])
            },
        ],
        faults: vec![
            (3026, Fault::SupervisorDies(8, 181)),
            (2575, Fault::ManagerDies(0, 5403)),
        ],
        loss: 14,
        delay: 1322,
    }));
}

/// A manager died and came back so soon that only its successor was heard of; the silence
/// between them passed for probes that do not fail.
#[test]
fn the_silence_of_a_manager_whose_death_was_not_noticed() {
    let second = |member| Member {
        manager: 1,
        ..member
    };
    check(&simulate(&Plan {
        seed: 10_743_805_691_773_962_524,
        members: vec![
            second(member(Nature::Job, 2, false, &[])),
            second(member(Nature::Crashing, 2, true, &[(0, 0, false)])),
            good(1, false, &[(1, 1, true)]),
        ],
        faults: vec![(15_599, Fault::ManagerDies(1, 1156))],
        loss: 9,
        delay: 1430,
    }));
}

/// As above, but that the first manager told of both its lives only when they were over.
#[test]
fn a_restart_on_its_way_to_another_manager_that_a_permit_had_used_up() {
    let second = |member| Member {
        manager: 1,
        ..member
    };
    check(&simulate(&Plan {
        seed: 8_849_200_528_307_826_610,
        members: vec![
            second(member(Nature::Job, 1, false, &[])),
            good(2, false, &[(0, 0, false)]),
            second(good(2, false, &[(1, 0, false)])),
            second(member(Nature::Crashing, 1, false, &[])),
        ],
        faults: vec![(2824, Fault::Reassign(3))],
        loss: 28,
        delay: 1200,
    }));
}
