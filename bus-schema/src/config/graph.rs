//! Dependencies: each names a service, and they have no cycle.

use std::collections::{BTreeMap, HashMap};

use super::error::{Place, Problem};
use super::model::{Condition, RestartMode, ServiceConfig};
use super::section::nearest;
use crate::names::ServiceName;

/// Where each `depends_on` entry stands: (service, dependency).
pub(super) type Places = HashMap<(ServiceName, ServiceName), Place>;

/// Checks what can only be known when all services are read.
pub(super) fn check(
    services: &BTreeMap<ServiceName, ServiceConfig>,
    places: &Places,
) -> Result<(), Problem> {
    let problem = |from: &ServiceName, to: &ServiceName, message: String| {
        let place = places
            .get(&(from.clone(), to.clone()))
            .cloned()
            .unwrap_or(Place::Unknown);
        Problem::new(place, &format!("services.{from}.depends_on.{to}"), message)
    };
    for (name, service) in services {
        for (on, dependency) in &service.depends_on {
            let Some(target) = services.get(on) else {
                let known = services.keys().map(ServiceName::as_str).collect::<Vec<_>>();
                let error = problem(name, on, format!("there is no service {on}"));
                return Err(match nearest(on.as_str(), &known) {
                    Some(near) if near != name.as_str() => {
                        error.hint(format!("did you mean {near}?"))
                    }
                    _ => error,
                });
            };
            let never_completes = !target.oneshot && target.restart_mode == RestartMode::Always;
            if dependency.condition == Condition::Completed && never_completes {
                let message = format!("{on} never completes: it is restarted whenever it ends");
                return Err(problem(name, on, message).hint(format!(
                    "give {on} oneshot: true, or wait for ready or started"
                )));
            }
        }
    }
    match cycle(services) {
        None => Ok(()),
        Some(cycle) => {
            let names = cycle.iter().map(|name| name.as_str()).collect::<Vec<_>>();
            let message = format!("dependency cycle: {}", names.join(" → "));
            Err(match cycle.as_slice() {
                [first, second, ..] => {
                    problem(first, second, message).hint("remove one of these dependencies")
                }
                _ => Problem::new(Place::Unknown, "services", message),
            })
        }
    }
}

/// The first cycle in the order of names, its first service repeated at its
/// end. Without recursion: a chain may be as long as there are services.
fn cycle(services: &BTreeMap<ServiceName, ServiceConfig>) -> Option<Vec<&ServiceName>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        Open,
        Done,
    }
    let mut marks: HashMap<&ServiceName, Mark> = HashMap::new();
    for root in services.keys() {
        if marks.contains_key(root) {
            continue;
        }
        let mut path = vec![(root, services.get(root)?.depends_on.keys())];
        marks.insert(root, Mark::Open);
        while let Some((name, next)) = path.last_mut() {
            let name: &ServiceName = name;
            let Some(on) = next.next() else {
                marks.insert(name, Mark::Done);
                path.pop();
                continue;
            };
            match marks.get(on) {
                Some(Mark::Done) => {}
                Some(Mark::Open) => {
                    let mut cycle: Vec<&ServiceName> = path
                        .iter()
                        .map(|(name, _)| *name)
                        .skip_while(|name| *name != on)
                        .collect();
                    cycle.push(on);
                    return Some(cycle);
                }
                None => {
                    marks.insert(on, Mark::Open);
                    path.push((on, services.get(on)?.depends_on.keys()));
                }
            }
        }
    }
    None
}
