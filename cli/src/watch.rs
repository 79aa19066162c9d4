//! A live picture of the whole: links to all daemons, and what they told.

use std::collections::{BTreeMap, BTreeSet};

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, Received, item};
use blackhole_bus_schema::component::ComponentInfo;
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::names::{Component, InstanceName, ManagerName};
use blackhole_bus_schema::process::{
    InstanceRecord, ListProcesses, ProcessChanged, ProcessForgotten,
};
use blackhole_bus_schema::raw::Raw;
use blackhole_bus_schema::resource::{ListUsage, Usage, UsageTick};
use blackhole_bus_schema::supervision::{InstanceStatus, ListStatus, Phase, SupervisionChanged};
use blackhole_bus_schema::topic;
use tokio::sync::mpsc;

use crate::client;
use crate::error::Error;
use crate::view::component::{Found, Presence};
use crate::view::event::{self, Told};
use crate::view::service::Answers;

/// Events of all links on their way to the model. When full the links hold
/// theirs back and heal what they had to drop with a snapshot.
const QUEUE: usize = 1024;

/// What changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A component came (with its info) or went.
    Presence {
        /// Which.
        component: Component,
        /// Who it is now.
        info: Option<ComponentInfo>,
    },
    /// Something happened: in words, and when (Unix time in nanoseconds).
    Told {
        /// When it was published.
        at: u64,
        /// The words.
        told: Told,
        /// Whether the supervisor said it.
        supervision: bool,
    },
    /// A whole list was replaced.
    Snapshot,
    /// New usage.
    Usage,
}

/// Everything the daemons told so far. Pure: events in, picture out.
#[derive(Debug, Default)]
pub struct Model {
    present: BTreeMap<Component, Option<ComponentInfo>>,
    status: Option<BTreeMap<InstanceName, InstanceStatus>>,
    processes: BTreeMap<Component, BTreeMap<InstanceName, InstanceRecord>>,
    usage: Option<BTreeMap<InstanceName, Usage>>,
}

impl Model {
    /// Takes in what a link told. `None` when nothing of interest changed.
    pub fn apply(&mut self, component: &Component, event: LinkEvent) -> Option<Change> {
        match event {
            LinkEvent::Up(info) => {
                self.present.insert(component.clone(), Some(info.clone()));
                Some(Change::Presence {
                    component: component.clone(),
                    info: Some(info),
                })
            }
            LinkEvent::Down => {
                self.present.insert(component.clone(), None);
                self.forget(component);
                Some(Change::Presence {
                    component: component.clone(),
                    info: None,
                })
            }
            LinkEvent::Lagged { .. } => None,
            LinkEvent::Snapshot { items, .. } => {
                self.snapshot(component, items);
                Some(Change::Snapshot)
            }
            LinkEvent::Event(received) => self.event(component, &received),
        }
    }

    fn forget(&mut self, component: &Component) {
        match component {
            Component::Supervisor => self.status = None,
            Component::ProcessManager(_) => {
                self.processes.remove(component);
            }
            Component::ResourceController => self.usage = None,
            Component::Bridge => {}
        }
    }

    fn snapshot(&mut self, component: &Component, items: Vec<Raw>) {
        match component {
            Component::Supervisor => {
                let all = items
                    .into_iter()
                    .filter_map(|value| item::<InstanceStatus>(value).ok());
                self.status = Some(all.map(|one| (one.instance.clone(), one)).collect());
            }
            Component::ProcessManager(_) => {
                let all = items
                    .into_iter()
                    .filter_map(|value| item::<InstanceRecord>(value).ok());
                let all = all.map(|one| (one.instance.clone(), one)).collect();
                self.processes.insert(component.clone(), all);
            }
            Component::ResourceController => {
                let all = items
                    .into_iter()
                    .filter_map(|value| item::<Usage>(value).ok());
                self.usage = Some(all.map(|one| (one.instance.clone(), one)).collect());
            }
            Component::Bridge => {}
        }
    }

    fn event(&mut self, component: &Component, received: &Received) -> Option<Change> {
        match received.kind() {
            SupervisionChanged::KIND => {
                let status = received.parse::<SupervisionChanged>().ok()?.status;
                self.status
                    .get_or_insert_default()
                    .insert(status.instance.clone(), status);
            }
            ProcessChanged::KIND => {
                let record = received.parse::<ProcessChanged>().ok()?.record;
                let known = self.processes.entry(component.clone()).or_default();
                known.insert(record.instance.clone(), record);
            }
            ProcessForgotten::KIND => {
                let instance = received.parse::<ProcessForgotten>().ok()?.instance;
                if let Some(known) = self.processes.get_mut(component) {
                    known.remove(&instance);
                }
            }
            UsageTick::KIND => {
                let known = self.usage.get_or_insert_default();
                for usage in received.parse::<UsageTick>().ok()?.usage {
                    known.insert(usage.instance.clone(), usage);
                }
                return Some(Change::Usage);
            }
            _ => {}
        }
        let told = event::tell(received);
        let supervision = *component == Component::Supervisor;
        (!told.noise).then_some(Change::Told {
            at: received.envelope.at,
            told,
            supervision,
        })
    }

    /// Who a component is, while it answers.
    pub fn info(&self, component: &Component) -> Option<&ComponentInfo> {
        self.present.get(component)?.as_ref()
    }

    /// Whether a component answers and its list has come. The bridge has none.
    pub fn has_told(&self, component: &Component) -> bool {
        let list = match component {
            Component::Supervisor => self.status.is_some(),
            Component::ProcessManager(_) => self.processes.contains_key(component),
            Component::ResourceController => self.usage.is_some(),
            Component::Bridge => true,
        };
        list && self.info(component).is_some()
    }

    /// The supervisor's list, once it has come.
    pub fn status(&self) -> Option<Vec<InstanceStatus>> {
        self.status
            .as_ref()
            .map(|all| all.values().cloned().collect())
    }

    /// The supervisor's word on one instance.
    pub fn status_of(&self, instance: &InstanceName) -> Option<&InstanceStatus> {
        self.status.as_ref()?.get(instance)
    }

    /// The named process-managers whose word the supervisor waits for, ordered by name.
    pub fn awaited_managers(&self) -> BTreeSet<ManagerName> {
        let all = self.status.iter().flat_map(BTreeMap::values);
        all.filter_map(|status| match &status.phase {
            Phase::WaitingForComponent { component } => match component.parse() {
                Ok(Component::ProcessManager(name)) => name,
                _ => None,
            },
            _ => None,
        })
        .collect()
    }

    /// The picture, for [`crate::view::status::StatusView`].
    pub fn answers(&self) -> Answers {
        let processes = (!self.processes.is_empty()).then(|| {
            self.processes
                .values()
                .flat_map(BTreeMap::values)
                .cloned()
                .collect()
        });
        Answers {
            owners: BTreeMap::new(),
            status: self.status(),
            processes,
            usage: self
                .usage
                .as_ref()
                .map(|all| all.values().cloned().collect()),
        }
    }
}

/// The links and the model they feed.
pub struct Watch {
    /// What was told so far.
    pub model: Model,
    dirs: Dirs,
    links: Vec<Link>,
    events: mpsc::Receiver<(Component, LinkEvent)>,
    sender: mpsc::Sender<(Component, LinkEvent)>,
}

impl Watch {
    /// Opens links to all daemons, whether they are there or not.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub async fn open(dirs: &Dirs) -> Result<Self, Error> {
        Self::of(dirs, &[]).await
    }

    /// [`Watch::open`], also to named process-managers that have not been started yet.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub async fn of(dirs: &Dirs, managers: &[ManagerName]) -> Result<Self, Error> {
        let (sender, events) = mpsc::channel(QUEUE);
        let mut watch = Self {
            model: Model::default(),
            dirs: dirs.clone(),
            links: Vec::new(),
            events,
            sender,
        };
        for component in client::components_with(dirs, managers) {
            watch.add(component).await?;
        }
        Ok(watch)
    }

    /// Opens a link to one more component, whether it is there or not.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub async fn add(&mut self, component: Component) -> Result<(), Error> {
        let interest = match component {
            Component::Supervisor => Interest::none().stream::<ListStatus>(topic::SUPERVISION),
            Component::ProcessManager(_) => {
                Interest::none().stream::<ListProcesses>(topic::PROCESS)
            }
            Component::ResourceController => Interest::none().stream::<ListUsage>(topic::RESOURCE),
            Component::Bridge => Interest::none(),
        };
        let (link, receiver) = client::open(&self.dirs, component.clone(), interest).await?;
        tokio::spawn(forward(component, receiver, self.sender.clone()));
        self.links.push(link);
        Ok(())
    }

    /// Waits for the next change and takes it into the model. Cancel safe.
    pub async fn changed(&mut self) -> Change {
        loop {
            match self.events.recv().await {
                Some((component, event)) => {
                    if let Some(change) = self.model.apply(&component, event) {
                        return change;
                    }
                }
                // There is a sender as long as this lives.
                None => std::future::pending().await,
            }
        }
    }

    /// The link to a component.
    pub fn link(&self, component: &Component) -> Option<&Link> {
        self.links.iter().find(|link| link.component() == component)
    }

    /// Whom it has links to.
    pub fn components(&self) -> impl Iterator<Item = &Component> {
        self.links.iter().map(Link::component)
    }

    /// Whether all components answer.
    pub fn all_there(&self) -> bool {
        self.links
            .iter()
            .all(|link| self.model.info(link.component()).is_some())
    }

    /// Who is there, as far as is known.
    pub fn found(&self) -> Vec<Found> {
        self.links
            .iter()
            .map(|link| {
                let component = link.component().clone();
                let presence = match self.model.info(&component) {
                    Some(info) => Presence::Running(info.clone()),
                    None => Presence::Missing {
                        lock_held: client::lives(&self.dirs, &component),
                    },
                };
                Found {
                    component,
                    presence,
                }
            })
            .collect()
    }
}

async fn forward(
    component: Component,
    mut from: mpsc::Receiver<LinkEvent>,
    to: mpsc::Sender<(Component, LinkEvent)>,
) {
    while let Some(event) = from.recv().await {
        if to.send((component.clone(), event)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::status::tests::status;
    use blackhole_bus_schema::supervision::Phase;

    fn value<T: serde::Serialize>(item: &T) -> Raw {
        Raw::of(&serde_json::to_value(item).unwrap()).unwrap()
    }

    #[test]
    fn a_snapshot_replaces_and_an_absence_forgets() {
        let mut model = Model::default();
        let supervisor = Component::Supervisor;
        let snapshot = |names: &[&str]| LinkEvent::Snapshot {
            prefix: topic::SUPERVISION,
            items: names
                .iter()
                .map(|name| value(&status(name, Phase::Ready)))
                .collect(),
        };
        model.apply(&supervisor, snapshot(&["a.1", "b.1"]));
        assert_eq!(model.status().unwrap().len(), 2);
        model.apply(&supervisor, snapshot(&["b.1"]));
        let left: Vec<_> = model
            .status()
            .unwrap()
            .iter()
            .map(|one| one.instance.to_string())
            .collect();
        assert_eq!(left, ["b.1"]);
        model.apply(&supervisor, LinkEvent::Down);
        assert_eq!(model.status(), None);
    }

    #[test]
    fn who_is_up_has_told_with_its_list() {
        use crate::view::component::{Presence, tests::running};
        let mut model = Model::default();
        let up = |component: &Component| match running(component.clone(), 1).presence {
            Presence::Running(info) => LinkEvent::Up(info),
            other => panic!("{other:?}"),
        };
        for (component, list) in [
            (Component::Supervisor, Some(topic::SUPERVISION)),
            (Component::ProcessManager(None), Some(topic::PROCESS)),
            (Component::ResourceController, Some(topic::RESOURCE)),
            (Component::Bridge, None),
        ] {
            assert!(!model.has_told(&component));
            model.apply(&component, up(&component));
            assert_eq!(model.has_told(&component), list.is_none(), "{component}");
            if let Some(prefix) = list {
                let items = Vec::new();
                model.apply(&component, LinkEvent::Snapshot { prefix, items });
            }
            assert!(model.has_told(&component), "{component}");
            model.apply(&component, LinkEvent::Down);
            assert!(!model.has_told(&component), "{component}");
        }
    }
}
