//! The state machine of one instance: which facts move it along which edges.
//!
//! ```text
//!   SPAWN ──started──► RUNNING ──stop begun, good end──► STOPPING ──end──► TERMINATED
//!     │                   │                                                  │
//!     └─failed, cancelled─┴──bad end──► FAILED ◄──────────bad end────────────┘
//!   FAILED, TERMINATED ──spawn──► SPAWN
//! ```
//!
//! Pure: no clock, no I/O. A fact that does not fit the state (an exit of what
//! has ended, a second start) moves nothing; the caller reports it.

use blackhole_bus_schema::process::{ExitRecord, Failure, ProcessState, SpawnFailure, StateName};

/// What befell an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A spawn was decided.
    Spawn,
    /// Its program runs.
    Started {
        /// Process id.
        pid: u32,
        /// Unix time in nanoseconds.
        started_at: u64,
    },
    /// Its program never ran.
    SpawnFailed(SpawnFailure),
    /// The spawn was given up before there was a process.
    Cancelled,
    /// It was asked to end.
    StopBegun,
    /// It ended and nothing of it is left.
    Ended(ExitRecord),
}

/// One edge of the drawing, taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The state left.
    pub from: StateName,
    /// The state entered, with its data.
    pub to: ProcessState,
}

/// The edges that `fact` takes from `state`, in order; none when it does not fit.
pub fn edges(state: &ProcessState, fact: Fact) -> Vec<Edge> {
    let mut path = Vec::new();
    match (state, fact) {
        (ProcessState::Terminated { .. } | ProcessState::Failed { .. }, Fact::Spawn) => {
            path.push(ProcessState::Spawn {});
        }
        (ProcessState::Spawn {}, Fact::Started { pid, started_at }) => {
            path.push(ProcessState::Running { pid, started_at });
        }
        (ProcessState::Spawn {}, Fact::SpawnFailed(failure)) => {
            path.push(ProcessState::Failed {
                failure: Failure::Spawn { failure },
            });
        }
        (ProcessState::Spawn {}, Fact::Cancelled) => {
            path.push(ProcessState::Failed {
                failure: Failure::Cancelled,
            });
        }
        (&ProcessState::Running { pid, started_at }, Fact::StopBegun) => {
            path.push(ProcessState::Stopping { pid, started_at });
        }
        (&ProcessState::Running { pid, started_at }, Fact::Ended(exit)) => {
            if exit.result.is_failure() {
                path.push(failed(exit));
            } else {
                path.push(ProcessState::Stopping { pid, started_at });
                path.push(ProcessState::Terminated { exit: Some(exit) });
            }
        }
        (ProcessState::Stopping { .. }, Fact::Ended(exit)) => {
            path.push(ProcessState::Terminated {
                exit: Some(exit.clone()),
            });
            if exit.result.is_failure() {
                path.push(failed(exit));
            }
        }
        _ => {}
    }
    let mut from = state.name();
    path.into_iter()
        .map(|to| {
            let edge = Edge { from, to };
            from = edge.to.name();
            edge
        })
        .collect()
}

/// The final state that an end leads to, for one that nobody saw happen.
pub fn ended(exit: ExitRecord) -> ProcessState {
    if exit.result.is_failure() {
        failed(exit)
    } else {
        ProcessState::Terminated { exit: Some(exit) }
    }
}

fn failed(exit: ExitRecord) -> ProcessState {
    ProcessState::Failed {
        failure: Failure::Exit { exit },
    }
}

#[cfg(test)]
mod tests {
    use blackhole_bus_schema::names::Generation;
    use blackhole_bus_schema::process::{ExitResult, ExitStatus, SpawnStep};
    use proptest::prelude::*;

    use super::*;

    fn exit(result: ExitResult) -> ExitRecord {
        ExitRecord {
            generation: Generation(1),
            pid: 7,
            status: ExitStatus::Exited { code: 0 },
            result,
            started_at: 1,
            ended_at: 2,
            killed_leftovers: 0,
        }
    }

    const RESULTS: [ExitResult; 9] = [
        ExitResult::Success,
        ExitResult::ExitCode,
        ExitResult::Signal,
        ExitResult::OomKill,
        ExitResult::Stopped,
        ExitResult::StopTimeout,
        ExitResult::Unhealthy,
        ExitResult::ShimLost,
        ExitResult::HostRestarted,
    ];

    fn names(state: &ProcessState, fact: Fact) -> Vec<StateName> {
        edges(state, fact)
            .iter()
            .map(|edge| edge.to.name())
            .collect()
    }

    fn running() -> ProcessState {
        ProcessState::Running {
            pid: 7,
            started_at: 1,
        }
    }

    fn stopping() -> ProcessState {
        ProcessState::Stopping {
            pid: 7,
            started_at: 1,
        }
    }

    #[test]
    fn a_good_end_passes_through_stopping() {
        use StateName::{Stopping, Terminated};
        for result in [
            ExitResult::Success,
            ExitResult::Stopped,
            ExitResult::StopTimeout,
        ] {
            assert_eq!(
                names(&running(), Fact::Ended(exit(result))),
                [Stopping, Terminated]
            );
            assert_eq!(names(&stopping(), Fact::Ended(exit(result))), [Terminated]);
        }
    }

    #[test]
    fn a_bad_end_is_failed() {
        use StateName::{Failed, Terminated};
        for result in [
            ExitResult::ExitCode,
            ExitResult::Unhealthy,
            ExitResult::ShimLost,
        ] {
            assert_eq!(names(&running(), Fact::Ended(exit(result))), [Failed]);
            assert_eq!(
                names(&stopping(), Fact::Ended(exit(result))),
                [Terminated, Failed]
            );
        }
    }

    #[test]
    fn what_does_not_fit_moves_nothing() {
        let ended = ProcessState::Terminated { exit: None };
        assert!(edges(&ended, Fact::Ended(exit(ExitResult::Success))).is_empty());
        assert!(edges(&ended, Fact::StopBegun).is_empty());
        assert!(edges(&running(), Fact::Spawn).is_empty());
        assert!(edges(&stopping(), Fact::StopBegun).is_empty());
        assert!(edges(&ProcessState::Spawn {}, Fact::StopBegun).is_empty());
    }

    fn any_fact() -> impl Strategy<Value = Fact> {
        let failure = SpawnFailure {
            step: SpawnStep::Exec,
            operation: "exec /x".to_owned(),
            errno: 2,
            hint: String::new(),
        };
        prop_oneof![
            Just(Fact::Spawn),
            (1u32..5, 1u64..9).prop_map(|(pid, started_at)| Fact::Started { pid, started_at }),
            Just(Fact::SpawnFailed(failure)),
            Just(Fact::Cancelled),
            Just(Fact::StopBegun),
            (0usize..RESULTS.len()).prop_map(|index| Fact::Ended(exit(RESULTS[index]))),
        ]
    }

    proptest! {
        #[test]
        fn only_edges_of_the_drawing_are_taken(facts in proptest::collection::vec(any_fact(), 0..60)) {
            let mut state = ProcessState::Failed { failure: Failure::Cancelled };
            let mut alive = None;
            for fact in facts {
                let started = match &fact {
                    Fact::Started { pid, .. } => Some(*pid),
                    _ => None,
                };
                for edge in edges(&state, fact) {
                    prop_assert_eq!(edge.from, state.name());
                    prop_assert!(edge.from.may_become(edge.to.name()), "{:?}", edge);
                    match edge.to.name() {
                        StateName::Running => alive = started,
                        StateName::Stopping => {}
                        _ => alive = None,
                    }
                    // A pid exists exactly where a process does, and it is the one that started.
                    prop_assert_eq!(edge.to.pid(), alive);
                    state = edge.to;
                }
            }
        }
    }
}
