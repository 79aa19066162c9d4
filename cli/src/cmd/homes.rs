//! Whose each instance is, where process-managers are away: what those have is not
//! unknown, it cannot be reached, and that is said at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blackhole_bus_schema::bus::Link;
use blackhole_bus_schema::managers;
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::process::{InstanceRecord, ListProcesses};
use blackhole_bus_schema::supervision::ListStatus;
use tokio::task::JoinSet;

use crate::client::{self, Peer};
use crate::context::Context;
use crate::error::Error;
use crate::human;
use crate::view::names::Filter;

/// Time for the lists of those that have answered.
const LISTS: Duration = Duration::from_secs(5);

/// What cannot be reached, and whose it is.
pub(super) type Left = BTreeMap<InstanceName, Component>;

/// All process-managers that there may be, asked at one time.
pub(super) struct Homes {
    /// Those that answer, with what they know.
    pub(super) there: Vec<(Link, Vec<InstanceRecord>)>,
    /// Those that do not.
    pub(super) away: Vec<Component>,
    left: Left,
}

impl Homes {
    /// Asks all of them; waits no longer than [`client::WAIT`] for those that are away.
    ///
    /// # Errors
    /// When none answers.
    pub(super) async fn ask(context: &Context, operation: &str) -> Result<Self, Error> {
        let mut tasks = JoinSet::new();
        for (index, component) in client::components(&context.dirs).into_iter().enumerate() {
            if !matches!(component, Component::ProcessManager(_)) {
                continue;
            }
            let peer = Peer::open(&context.dirs, component.clone()).await?;
            let wait = context.timeout(client::WAIT);
            tasks.spawn(async move { (index, component, records(peer, wait).await) });
        }
        let mut all = tasks.join_all().await;
        all.sort_by_key(|(index, ..)| *index);
        let (mut there, mut away) = (Vec::new(), Vec::new());
        for (_, component, answer) in all {
            match answer {
                Some(answer) => there.push(answer),
                None => away.push(component),
            }
        }
        if there.is_empty() {
            return Err(Error::Unreachable {
                operation: operation.to_owned(),
                component: the(&away),
            });
        }
        let left = left(context, &there, &away);
        Ok(Self { there, away, left })
    }

    /// What is known of each instance that can be reached, and the way to it.
    pub(super) fn known(&self) -> BTreeMap<&InstanceName, (&Link, &InstanceRecord)> {
        let mut known: BTreeMap<&InstanceName, (&Link, &InstanceRecord)> = BTreeMap::new();
        for (link, records) in &self.there {
            for record in records {
                // One that has moved may be remembered where it was.
                let before = known.get(&record.instance);
                let older = before.is_none_or(|(_, one)| one.generation <= record.generation);
                if older && !self.left.contains_key(&record.instance) {
                    known.insert(&record.instance, (link, record));
                }
            }
        }
        known
    }

    /// The instances that are meant: those that can be reached, and the others.
    ///
    /// # Errors
    /// When a name means none at all.
    pub(super) fn select(&self, filter: &Filter) -> Result<(Vec<InstanceName>, Left), Error> {
        self.select_with(filter, &[])
    }

    /// [`Homes::select`] where these instances may be meant as well, although nothing is
    /// known of them; then they are among those that can be reached.
    ///
    /// # Errors
    /// When a name means none at all.
    pub(super) fn select_with(
        &self,
        filter: &Filter,
        more: &[InstanceName],
    ) -> Result<(Vec<InstanceName>, Left), Error> {
        let known = self.known();
        let all = known.keys().copied().chain(self.left.keys()).chain(more);
        let meant = filter.select(all)?;
        let mut left = self.left.clone();
        left.retain(|instance, _| meant.contains(instance));
        let there = meant
            .into_iter()
            .filter(|instance| !left.contains_key(instance))
            .collect();
        Ok((there, left))
    }
}

/// The instances that there are to be, started or not: those of the supervisor, if it
/// answers, and those of the configuration as it is now, if it is right.
pub(super) async fn configured(context: &Context) -> Result<Vec<InstanceName>, Error> {
    let peer = Peer::open(&context.dirs, Component::Supervisor).await?;
    let there = peer.found(context.timeout(client::WAIT)).await;
    let status = match (&peer.link, there.info()) {
        (Some(link), Some(_)) => client::all::<ListStatus>(link, LISTS).await,
        _ => Ok(Vec::new()),
    };
    let told = status.unwrap_or_default().into_iter();
    let mut all: Vec<InstanceName> = told.map(|status| status.instance).collect();
    if let Ok((_, config)) = context.config() {
        all.extend(config.instances());
    }
    Ok(all)
}

/// The error for what could not be reached; `None` where all could. `verb` is what was
/// wanted of it, `offline` the command that does without a process-manager.
pub(super) fn unreached(left: &Left, verb: &str, offline: &str) -> Option<Error> {
    if left.is_empty() {
        return None;
    }
    let names: Vec<String> = left.keys().map(ToString::to_string).collect();
    let away: BTreeSet<Component> = left.values().cloned().collect();
    let names_or_more = human::list(&names, 6);
    Some(Error::Away {
        operation: format!("{verb} {names_or_more}"),
        component: the(&away.into_iter().collect::<Vec<_>>()),
        offline: format!("blackhole --offline {offline} {}", names.join(" ")),
    })
}

/// `the process-manager.batch and the process-manager.gpu`.
fn the(components: &[Component]) -> String {
    match components {
        [] => "the process-manager".to_owned(),
        some => {
            let all: Vec<String> = some.iter().map(|one| format!("the {one}")).collect();
            all.join(" and ")
        }
    }
}

async fn records(peer: Peer, wait: Duration) -> Option<(Link, Vec<InstanceRecord>)> {
    peer.found(wait).await.info()?;
    let link = peer.link?;
    let records = client::all::<ListProcesses>(&link, LISTS).await.ok()?;
    Some((link, records))
}

/// The instances of those that are away: started by them last, as their folders say,
/// or to be started by them, as the configuration does.
fn left(context: &Context, there: &[(Link, Vec<InstanceRecord>)], away: &[Component]) -> Left {
    if away.is_empty() {
        return Left::new();
    }
    let is_away = |owner: &Component| away.contains(owner);
    let folders = crate::offline::instances(&context.dirs);
    let started: Left = folders
        .into_iter()
        .filter_map(|instance| {
            let owner = managers::owner(&context.dirs.instance(&instance));
            Some((instance, owner.parse().ok()?))
        })
        .collect();
    let mut left: Left = started
        .iter()
        .filter(|(_, owner)| is_away(owner))
        .map(|(instance, owner)| (instance.clone(), owner.clone()))
        .collect();
    let known: BTreeSet<&InstanceName> = there
        .iter()
        .flat_map(|(_, records)| records.iter().map(|record| &record.instance))
        .collect();
    let Ok((_, config)) = context.config() else {
        return left;
    };
    for instance in config.instances() {
        if started.contains_key(&instance) || known.contains(&instance) {
            continue;
        }
        let service = config.services.get(instance.service());
        let home = service.map(|service| Component::ProcessManager(service.manager.clone()));
        if let Some(home) = home.filter(is_away) {
            left.insert(instance, home);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_with_its_managers_and_what_does_without_them() {
        assert!(unreached(&Left::new(), "signal", "kill").is_none());
        let left: Left = [("a.1", "process-manager.gpu"), ("b.2", "process-manager")]
            .map(|(name, owner)| (name.parse().unwrap(), owner.parse().unwrap()))
            .into();
        let error = unreached(&left, "send SIGKILL to", "kill").unwrap();
        assert_eq!(error.exit() as u8, 4);
        insta::assert_snapshot!(error.report(), @"
        error: cannot send SIGKILL to a.1, b.2: no answer from the process-manager and the process-manager.gpu
          to do: what runs there runs on, and `blackhole --offline kill a.1 b.2` does without the process-manager; `blackhole up -d` starts what is missing, `blackhole component list` shows who is there
        ");
    }
}
