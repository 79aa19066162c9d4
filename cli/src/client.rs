//! Questions to the daemons over the bus.

use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, Paged, RequestError};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::managers;
use blackhole_bus_schema::message::Command;
use blackhole_bus_schema::names::{ClientName, Component, ManagerName};
use blackhole_bus_schema::process::ListProcesses;
use blackhole_bus_schema::resource::ListUsage;
use blackhole_bus_schema::supervision::ListStatus;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::keeper_file::KeeperFile;
use crate::view::component::{Found, Presence};
use crate::view::service::Answers;

/// How long a daemon whose process is there is given to answer a question. One
/// that is not there is not waited for at all.
pub const WAIT: Duration = Duration::from_secs(1);

/// The daemons of a deployment: the usual four, and the named process-managers
/// that have a socket or are kept.
pub fn components(dirs: &Dirs) -> Vec<Component> {
    components_with(dirs, &[])
}

/// [`components`], and these process-managers whether there is a trace of them or not.
pub fn components_with(dirs: &Dirs, managers: &[ManagerName]) -> Vec<Component> {
    let kept = KeeperFile::read(dirs);
    let mut named = managers::bound(dirs);
    named.extend(managers.iter().cloned());
    named.extend(kept.iter().flat_map(|kept| kept.managers.iter().cloned()));
    let unnamed = Component::ProcessManager(None);
    let alone = kept.is_none() && managers.is_empty() && !named.is_empty();
    let mut all = vec![Component::Supervisor];
    // Where only named ones were started, by hand, nobody misses the one without a name.
    if !alone || dirs.bus_cmd(&unnamed).exists() {
        all.push(unnamed);
    }
    let named = named.into_iter().map(Some);
    all.extend(named.map(Component::ProcessManager));
    all.extend([Component::ResourceController, Component::Bridge]);
    all
}

/// Whether somebody holds a lock file. Unlike its text this is true on a full disk, too.
pub fn is_locked(path: &Path) -> bool {
    // Opened for reading only: asking must not create anything.
    let Ok(file) = blackhole_bus_schema::regular::reader(path) else {
        return false;
    };
    matches!(
        flock(&file, FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
}

/// Whether a component's process can be there: somebody holds its lock, or
/// listens on its socket (a deployment of which only the run directory is
/// known here). A process that hangs is there, too.
pub fn lives(dirs: &Dirs, component: &Component) -> bool {
    is_locked(&dirs.lock(&component.to_string())) || listens(dirs, component)
}

/// Whether a process listens for commands to a component.
pub fn listens(dirs: &Dirs, component: &Component) -> bool {
    std::os::unix::net::UnixStream::connect(dirs.bus_cmd(component)).is_ok()
}

/// A daemon, with a link to it where it can be there.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who.
    pub component: Component,
    /// `None` when nobody can be there, see [`lives`].
    pub link: Option<Link>,
}

impl Peer {
    /// Opens a link if the component can be there.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub async fn open(dirs: &Dirs, component: Component) -> Result<Self, Error> {
        if !lives(dirs, &component) {
            return Ok(Self {
                component,
                link: None,
            });
        }
        let (link, events) = open(dirs, component.clone(), Interest::none()).await?;
        drop(events);
        Ok(Self {
            component,
            link: Some(link),
        })
    }

    /// Who is there, after at most `wait`.
    pub async fn found(&self, wait: Duration) -> Found {
        let presence = match &self.link {
            None => Presence::Missing { lock_held: false },
            Some(link) => match link.ready(wait).await {
                Ok(info) => Presence::Running(info),
                Err(_) => Presence::Missing { lock_held: true },
            },
        };
        Found {
            component: self.component.clone(),
            presence,
        }
    }

    /// Asks it.
    ///
    /// # Errors
    /// [`Error::Unreachable`] after at most `budget`, or what it answered.
    pub async fn request<C: Command>(
        &self,
        operation: &str,
        command: &C,
        budget: Duration,
    ) -> Result<C::Reply, Error> {
        let Some(link) = &self.link else {
            return Err(Error::Unreachable {
                operation: operation.to_owned(),
                component: self.component.to_string(),
            });
        };
        link.request(command, budget)
            .await
            .map_err(|error| request_error(operation, error, budget))
    }
}

/// Opens a link under a fresh name.
///
/// # Errors
/// When a socket cannot be opened.
pub async fn open(
    dirs: &Dirs,
    component: Component,
    interest: Interest,
) -> Result<(Link, mpsc::Receiver<LinkEvent>), Error> {
    let operation = format!("open a link to the {component}");
    Link::open(dirs, ClientName::fresh("cli"), component, interest)
        .await
        .map_err(|source| Error::Bus {
            operation,
            source: Box::new(source),
        })
}

/// What a failed request means to a person.
pub fn request_error(operation: &str, error: RequestError, budget: Duration) -> Error {
    let operation = operation.to_owned();
    match error {
        RequestError::Status(status) => Error::Refused { operation, status },
        RequestError::Unreachable { component } => Error::Unreachable {
            operation,
            component,
        },
        RequestError::TimedOut { .. } => Error::TimedOut {
            operation,
            after: budget,
        },
        other => Error::Bus {
            operation,
            source: Box::new(other),
        },
    }
}

/// All pages of an owner's state.
///
/// # Errors
/// As [`Link::request`], for any page.
pub async fn all<C: Paged>(link: &Link, budget: Duration) -> Result<Vec<C::Item>, RequestError> {
    let mut items = Vec::new();
    let mut after = None;
    loop {
        let page = link.request(&C::page(after), budget).await?;
        items.extend(page.items);
        after = page.next;
        if after.is_none() {
            return Ok(items);
        }
    }
}

/// The links that a picture of the whole needs. Kept open they make the next picture cheap.
pub struct Overview {
    peers: Vec<Peer>,
    budget: Duration,
}

enum Part {
    Status(Vec<blackhole_bus_schema::supervision::InstanceStatus>),
    Processes(Vec<blackhole_bus_schema::process::InstanceRecord>),
    Usage(Vec<blackhole_bus_schema::resource::Usage>),
    Nothing,
}

impl Overview {
    /// Opens links to all daemons that can be there.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub async fn open(dirs: &Dirs, budget: Duration) -> Result<Self, Error> {
        let mut peers = Vec::new();
        for component in components(dirs) {
            peers.push(Peer::open(dirs, component).await?);
        }
        Ok(Self { peers, budget })
    }

    /// The link to a daemon that can be there.
    pub fn link(&self, component: &Component) -> Option<&Link> {
        self.peers
            .iter()
            .find(|peer| peer.component == *component)?
            .link
            .as_ref()
    }

    /// Asks all at once who they are.
    pub async fn who(&self) -> Vec<Found> {
        let mut tasks = JoinSet::new();
        for (index, peer) in self.peers.iter().enumerate() {
            let peer = peer.clone();
            let wait = self.budget;
            tasks.spawn(async move { (index, peer.found(wait).await) });
        }
        let mut found = tasks.join_all().await;
        found.sort_by_key(|(index, _)| *index);
        found.into_iter().map(|(_, found)| found).collect()
    }

    /// Asks all at once: who they are and what they know. Takes no longer than
    /// the slowest within its budget; whoever does not answer is missing.
    pub async fn ask(&self) -> (Answers, Vec<Found>) {
        let mut tasks = JoinSet::new();
        for (index, peer) in self.peers.iter().enumerate() {
            let peer = peer.clone();
            let budget = self.budget;
            tasks.spawn(async move {
                let found = peer.found(budget.min(WAIT)).await;
                let part = match (&peer.link, found.info()) {
                    (Some(link), Some(_)) => part(link, budget).await,
                    _ => Part::Nothing,
                };
                (index, found, part)
            });
        }
        let mut answers = Answers::default();
        let mut found = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            let Ok((index, one, part)) = joined else {
                continue;
            };
            found.push((index, one));
            match part {
                Part::Status(items) => answers.status = Some(items),
                Part::Processes(items) => answers.processes.get_or_insert_default().extend(items),
                Part::Usage(items) => answers.usage = Some(items),
                Part::Nothing => {}
            }
        }
        found.sort_by_key(|(index, _)| *index);
        (answers, found.into_iter().map(|(_, found)| found).collect())
    }
}

async fn part(link: &Link, budget: Duration) -> Part {
    match link.component() {
        Component::Supervisor => all::<ListStatus>(link, budget).await.map(Part::Status),
        Component::ProcessManager(_) => all::<ListProcesses>(link, budget)
            .await
            .map(Part::Processes),
        Component::ResourceController => all::<ListUsage>(link, budget).await.map(Part::Usage),
        Component::Bridge => Ok(Part::Nothing),
    }
    .unwrap_or(Part::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blackhole_bus_schema::dirs::Lock;

    #[test]
    fn a_named_process_manager_is_found_by_its_socket() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
        assert_eq!(components(&dirs).len(), 4);
        dirs.create().unwrap();
        let named: Component = "process-manager.gpu".parse().unwrap();
        std::fs::write(dirs.bus_cmd(&named), "").unwrap();
        assert_eq!(
            components(&dirs)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            [
                "supervisor",
                "process-manager.gpu",
                "resource-controller",
                "bridge"
            ]
        );
        std::fs::write(dirs.bus_cmd(&Component::ProcessManager(None)), "").unwrap();
        assert_eq!(components(&dirs).len(), 5);
    }

    #[test]
    fn a_lock_is_seen_while_it_is_held() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x.lock");
        assert!(!is_locked(&path));
        let lock = Lock::try_take(&path).unwrap().unwrap();
        assert!(is_locked(&path));
        drop(lock);
        assert!(!is_locked(&path));
    }
}
