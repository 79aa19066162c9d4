//! Whether a process-manager answers while a command to services is under way.
//! The supervisor takes the command without one and waits, which must be said.

use std::collections::BTreeSet;
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::Component;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::client;
use crate::error::Error;

/// Ends and beginnings of links on their way: a link has few of them.
const QUEUE: usize = 16;

/// They are asked after this long: most commands are through before.
const PATIENCE: Duration = Duration::from_millis(250);

/// What is worth a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// No process-manager has answered for a while.
    Silent,
    /// One answers again, after [`Word::Silent`].
    Back,
}

/// Follows the process-managers' presence.
pub(super) struct Managers {
    dirs: Dirs,
    begun: Instant,
    presence: Presence,
    links: Option<Links>,
}

/// The ways to them.
struct Links {
    events: mpsc::Receiver<(Component, bool)>,
    /// Their tasks end with them.
    _links: Vec<Link>,
}

/// Who answers. Pure: the time is passed in.
#[derive(Debug)]
struct Presence {
    up: BTreeSet<Component>,
    alone_since: Option<Instant>,
    told: bool,
}

impl Presence {
    fn new(now: Instant) -> Self {
        Self {
            up: BTreeSet::new(),
            alone_since: Some(now),
            told: false,
        }
    }

    /// When silence is worth a word.
    fn due(&self) -> Option<Instant> {
        let since = self.alone_since.filter(|_| !self.told)?;
        Some(since + client::WAIT)
    }

    fn heard(&mut self, now: Instant, component: Component, up: bool) -> Option<Word> {
        if up {
            self.up.insert(component);
            self.alone_since = None;
            return std::mem::take(&mut self.told).then_some(Word::Back);
        }
        self.up.remove(&component);
        if self.up.is_empty() && self.alone_since.is_none() {
            self.alone_since = Some(now);
        }
        None
    }
}

impl Links {
    /// To all process-managers, whether they are there or not.
    async fn open(dirs: &Dirs) -> Result<Self, Error> {
        let (sender, events) = mpsc::channel(QUEUE);
        let mut links = Vec::new();
        for component in client::components(dirs) {
            if !matches!(component, Component::ProcessManager(_)) {
                continue;
            }
            let (link, receiver) = client::open(dirs, component.clone(), Interest::none()).await?;
            tokio::spawn(forward(component, receiver, sender.clone()));
            links.push(link);
        }
        Ok(Self {
            events,
            _links: links,
        })
    }
}

impl Managers {
    /// Begins to wait; nobody is asked yet.
    pub(super) fn new(dirs: &Dirs) -> Self {
        let begun = Instant::now();
        Self {
            dirs: dirs.clone(),
            begun,
            presence: Presence::new(begun),
            links: None,
        }
    }

    /// Waits until there is something to say. Cancel safe.
    pub(super) async fn word(&mut self) -> Word {
        if self.links.is_none() {
            sleep_until(self.begun + PATIENCE).await;
        }
        let links = match &mut self.links {
            Some(links) => links,
            none => match Links::open(&self.dirs).await {
                Ok(links) => none.insert(links),
                // The command itself tells what is wrong here.
                Err(_) => std::future::pending().await,
            },
        };
        loop {
            let due = self.presence.due();
            let silent = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((component, up)) = links.events.recv() => {
                    if let Some(word) = self.presence.heard(Instant::now(), component, up) {
                        return word;
                    }
                }
                () = silent => {
                    self.presence.told = true;
                    return Word::Silent;
                }
            }
        }
    }

    /// Whether [`Word::Silent`] was the last one.
    pub(super) fn are_silent(&self) -> bool {
        self.presence.told
    }
}

async fn forward(
    component: Component,
    mut from: mpsc::Receiver<LinkEvent>,
    to: mpsc::Sender<(Component, bool)>,
) {
    while let Some(event) = from.recv().await {
        let up = match event {
            LinkEvent::Up(_) => true,
            LinkEvent::Down => false,
            _ => continue,
        };
        if to.send((component.clone(), up)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_once_and_its_end_too() {
        let now = Instant::now();
        let manager = || Component::ProcessManager(None);
        let mut presence = Presence::new(now);
        assert_eq!(presence.due(), Some(now + client::WAIT));
        presence.told = true;
        assert_eq!(presence.due(), None, "said once");
        assert_eq!(presence.heard(now, manager(), true), Some(Word::Back));
        assert_eq!(presence.due(), None);
        let later = now + client::WAIT;
        assert_eq!(presence.heard(later, manager(), false), None);
        assert_eq!(presence.due(), Some(later + client::WAIT));
        assert_eq!(
            presence.heard(later, manager(), true),
            None,
            "a short absence is not worth a word"
        );
    }
}
