//! The keeper (`up`): whether somebody restarts the daemons.

use serde::Serialize;

use crate::out::Tone;
use crate::view::component::{Found, Presence};
use crate::view::problem::Problem;

/// Whether the keeper lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// It holds its lock.
    Running,
    /// There was one, and it ended without ending the daemons.
    Missing,
}

/// The keeper of a deployment that has or had one. The serialized field names
/// are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Keeper {
    /// Whether it lives.
    pub state: State,
    /// Its process, where it lives and its lock tells.
    pub pid: Option<u32>,
}

/// What follows from a keeper that is gone, for daemons that are there.
pub fn problem(keeper: Option<Keeper>, components: &[Found]) -> Option<Problem> {
    let missing = keeper.is_some_and(|keeper| keeper.state == State::Missing);
    let alive = components
        .iter()
        .any(|found| found.presence != Presence::Missing { lock_held: false });
    (missing && alive).then(|| Problem {
        tone: Tone::Warn,
        text: "no keeper: the daemons run, but nobody starts one again that ends: \
               `blackhole up -d` takes them over, services go on"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::component::tests::running;
    use blackhole_bus_schema::names::Component;

    #[test]
    fn a_keeper_is_missed_where_it_was_and_daemons_are() {
        let daemons = [running(Component::Bridge, 1)];
        let keeper = |state, pid| Some(Keeper { state, pid });
        assert_eq!(problem(None, &daemons), None, "started by somebody else");
        assert_eq!(problem(keeper(State::Running, Some(7)), &daemons), None);
        let missing = keeper(State::Missing, None);
        assert!(problem(missing, &daemons).is_some());
        assert_eq!(problem(missing, &[]), None, "nobody is left to be missed");
        assert_eq!(
            serde_json::to_string(&missing).unwrap(),
            r#"{"state":"MISSING","pid":null}"#
        );
    }
}
