//! The links to the process-managers, as many as there are.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::task::Poll;

use blackhole_bus_schema::bus::{BusError, Interest, Link, LinkEvent};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::process::ListProcesses;
use blackhole_bus_schema::topic;
use tokio::sync::mpsc;

use crate::core::ManagerId;

/// The links, to ask.
pub(super) struct Managers(BTreeMap<ManagerId, Link>);

/// What they bring.
pub(super) struct Events {
    from: Vec<(ManagerId, mpsc::Receiver<LinkEvent>)>,
    /// Who is listened to first the next time: nobody is kept waiting by another one's flood.
    first: usize,
}

impl Managers {
    /// Opens a link to each, whether it is there or not.
    pub(super) async fn open(
        dirs: &Dirs,
        me: &ClientName,
        managers: BTreeSet<ManagerId>,
    ) -> Result<(Self, Events), BusError> {
        let mut links = BTreeMap::new();
        let mut from = Vec::new();
        for manager in managers {
            let interest = Interest::none()
                .stream::<ListProcesses>(topic::PROCESS)
                .prefix(topic::HEALTH);
            let to = Component::ProcessManager(manager.clone());
            let (link, events) = Link::open(dirs, me.clone(), to, interest).await?;
            links.insert(manager.clone(), link);
            from.push((manager, events));
        }
        Ok((Self(links), Events { from, first: 0 }))
    }

    /// The link to one. There is one to each that the core can know: those of the
    /// configuration, those that are remembered, and those that were heard of.
    pub(super) fn link(&self, manager: &ManagerId) -> Option<&Link> {
        let link = self.0.get(manager);
        if link.is_none() {
            let who = Component::ProcessManager(manager.clone());
            tracing::error!("there is no link to the {who}");
        }
        link
    }
}

impl Events {
    /// The next one. Links live as long as the supervisor. Cancel safe.
    pub(super) async fn next(&mut self) -> (ManagerId, LinkEvent) {
        poll_fn(|context| {
            match self.find(|events| match events.poll_recv(context) {
                Poll::Ready(event) => event,
                Poll::Pending => None,
            }) {
                Some(event) => Poll::Ready(event),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// The next one that has come already.
    pub(super) fn try_next(&mut self) -> Option<(ManagerId, LinkEvent)> {
        self.find(|events| events.try_recv().ok())
    }

    fn find(
        &mut self,
        mut take: impl FnMut(&mut mpsc::Receiver<LinkEvent>) -> Option<LinkEvent>,
    ) -> Option<(ManagerId, LinkEvent)> {
        let count = self.from.len();
        for offset in 0..count {
            let index = (self.first + offset) % count;
            let Some((manager, events)) = self.from.get_mut(index) else {
                continue;
            };
            if let Some(event) = take(events) {
                self.first = index + 1;
                return Some((manager.clone(), event));
            }
        }
        None
    }
}
