//! Following: what is written from now on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, LogLane};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::process::{
    FollowLog, InstanceRecord, ListProcesses, LogLines, ProcessChanged,
};
use blackhole_bus_schema::topic;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::source::PAGE;
use super::{Mark, Origin, Printer, Selection, Source, print_merged};
use crate::context::Context;
use crate::error::Error;
use crate::view::log::Entry;
use crate::view::names::Filter;
use crate::{client, keeper_file, offline, out};

/// How long the process-manager goes on publishing lines without being asked again.
const LEASE: Duration = Duration::from_secs(10);

/// How often it is looked whether everything has gone down, while a manager is away:
/// no event tells of it when nobody is left to publish one.
const LOOK: Duration = Duration::from_millis(500);

impl Mark {
    /// Whether a batch goes on exactly where this mark is.
    fn joins(&self, batch: &LogLines) -> Joint {
        let Some(cursor) = self.cursor else {
            return Joint::Gap;
        };
        let bytes: u64 = batch.lines.iter().map(|line| line.len() as u64 + 1).sum();
        if batch.dropped > 0 || batch.cursor.inode != cursor.inode {
            Joint::Gap
        } else if batch.cursor.offset <= cursor.offset {
            Joint::Old
        } else if batch.cursor.offset - cursor.offset == bytes {
            Joint::Next
        } else {
            Joint::Gap
        }
    }
}

/// How a batch fits to what was shown.
#[derive(Debug, PartialEq, Eq)]
enum Joint {
    /// Directly after it.
    Next,
    /// It was shown already.
    Old,
    /// Something is between: it is read from the file.
    Gap,
}

enum Step {
    Link(usize, Option<LinkEvent>),
    Batch(usize, LogLines),
    Renew,
    Look,
}

/// Shows new lines until interrupted, or until everything has gone down. Each batch
/// is checked against the mark: what the lane dropped is read from the files, so that
/// nothing is missing, and a manager that comes back is asked from the mark on.
pub(super) struct Follower {
    selection: Selection,
    marks: BTreeMap<InstanceName, Mark>,
    printer: Printer,
    links: Vec<Link>,
    /// Who has which instance, an index of `links`.
    followed: BTreeMap<InstanceName, usize>,
    /// Those that were there and are away.
    away: BTreeSet<usize>,
}

impl Follower {
    /// Goes on from the marks.
    pub(super) fn new(
        selection: Selection,
        marks: BTreeMap<InstanceName, Mark>,
        printer: Printer,
    ) -> Self {
        Self {
            selection,
            marks,
            printer,
            links: Vec::new(),
            followed: BTreeMap::new(),
            away: BTreeSet::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        context: &Context,
        filter: Filter,
        managers: Vec<Component>,
    ) -> Result<(), Error> {
        let (sender, mut steps) = mpsc::channel(64);
        let mut lanes = Vec::new();
        for (index, manager) in managers.into_iter().enumerate() {
            let interest = Interest::none().stream::<ListProcesses>(topic::PROCESS);
            let (link, events) = client::open(&context.dirs, manager.clone(), interest).await?;
            tokio::spawn(forward_link(index, events, sender.clone()));
            let lane = LogLane::open(&context.dirs, &manager)
                .await
                .map_err(|source| Error::Bus {
                    operation: "follow logs".to_owned(),
                    source: Box::new(source),
                })?;
            let (wanted, subscriptions) = mpsc::channel(64);
            tokio::spawn(forward_lane(index, lane, subscriptions, sender.clone()));
            self.links.push(link);
            lanes.push(wanted);
        }
        let mut renew = interval(LEASE / 3);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                // Cancel safe, all: nothing is taken before it completes.
                step = steps.recv() => match step { Some(step) => step, None => return Ok(()) },
                _ = renew.tick() => Step::Renew,
                _ = look.tick(), if !self.away.is_empty() => Step::Look,
            };
            match step {
                Step::Link(index, Some(LinkEvent::Up(_))) => {
                    self.away.remove(&index);
                }
                Step::Link(index, Some(LinkEvent::Snapshot { items, .. })) => {
                    for item in items {
                        if let Ok(record) = blackhole_bus_schema::bus::item::<InstanceRecord>(item)
                            && filter.covers(&record.instance)
                        {
                            self.followed.insert(record.instance.clone(), index);
                            let _ = lanes[index].send(record.instance).await;
                        }
                    }
                    // The manager is there (again): ask for all of it at once.
                    self.catch_up(&self.followed.clone()).await?;
                }
                Step::Link(index, Some(LinkEvent::Event(received))) => {
                    if let Ok(change) = received.parse::<ProcessChanged>()
                        && filter.covers(&change.record.instance)
                        && !self.followed.contains_key(&change.record.instance)
                    {
                        let instance = change.record.instance;
                        self.followed.insert(instance.clone(), index);
                        let _ = lanes[index].send(instance.clone()).await;
                        self.catch_up(&BTreeMap::from([(instance, index)])).await?;
                    }
                }
                Step::Link(index, Some(LinkEvent::Down)) => {
                    self.away.insert(index);
                    out::note(format!(
                        "the {} is away: lines follow when it is back",
                        self.links[index].component()
                    ));
                }
                Step::Link(..) => {}
                Step::Batch(index, batch) => self.batch(index, batch).await?,
                Step::Renew => {
                    self.printer.overdue();
                    self.catch_up(&self.followed.clone()).await?;
                }
                Step::Look => {
                    if is_down(&context.dirs).await {
                        self.last_words(&context.dirs).await?;
                        out::note("everything has gone down: there is nothing more to follow");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What was written since, while nobody told of it.
    async fn last_words(&mut self, dirs: &Dirs) -> Result<(), Error> {
        let origin = Origin::Files(dirs.clone());
        let marks = self.marks.iter();
        let mut sources: Vec<Source> = marks
            .map(|(instance, mark)| {
                let selection = self.selection.clone();
                Source::after(origin.clone(), instance.clone(), selection, *mark)
            })
            .collect();
        self.show(&mut sources).await
    }

    async fn batch(&mut self, index: usize, batch: LogLines) -> Result<(), Error> {
        let mark = self.marks.entry(batch.instance.clone()).or_default();
        match mark.joins(&batch) {
            Joint::Old => Ok(()),
            Joint::Next => {
                mark.cursor = Some(batch.cursor);
                let instance = batch.instance;
                let lines = batch.lines.into_iter();
                let meant = lines.filter(|raw| self.selection.shows(raw));
                for raw in meant {
                    let instance = instance.clone();
                    self.printer.print(&Entry { instance, raw })?;
                }
                self.printer.flush()
            }
            Joint::Gap => {
                let mut sources = vec![self.source(index, &batch.instance)];
                self.show(&mut sources).await
            }
        }
    }

    fn source(&self, index: usize, instance: &InstanceName) -> Source {
        let mark = self.marks.get(instance).copied().unwrap_or_default();
        let origin = Origin::Manager(self.links[index].clone());
        Source::after(origin, instance.clone(), self.selection.clone(), mark)
    }

    /// Prints what is new. A manager that is just leaving is no error: what it
    /// did not answer comes with its next life, from the mark on.
    async fn show(&mut self, sources: &mut [Source]) -> Result<(), Error> {
        let shown = print_merged(sources, &mut self.printer).await;
        for source in sources {
            self.marks.insert(source.instance.clone(), source.mark);
        }
        match shown {
            Err(error @ (Error::BrokenPipe | Error::Output(_))) => Err(error),
            _ => Ok(()),
        }
    }

    /// Renews the leases, then reads what the lane may have missed.
    async fn catch_up(&mut self, of: &BTreeMap<InstanceName, usize>) -> Result<(), Error> {
        let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        let mut sources = Vec::new();
        for (instance, index) in of {
            let link = &self.links[*index];
            if link.info().is_none() {
                continue;
            }
            let command = FollowLog {
                instance: instance.clone(),
                cursor: self.marks.get(instance).and_then(|mark| mark.cursor),
                lease_ms,
            };
            // A manager that is just leaving: the next renewal tries again.
            if link.request(&command, PAGE).await.is_ok() {
                sources.push(self.source(*index, instance));
            }
        }
        self.show(&mut sources).await
    }
}

/// Whether neither a daemon nor a service nor a keeper lives: a manager that is only
/// started again leaves at least one of them.
async fn is_down(dirs: &Dirs) -> bool {
    let mut daemons = client::components(dirs).into_iter();
    !client::is_locked(&dirs.lock(keeper_file::LOCK))
        && !daemons.any(|one| client::lives(dirs, &one))
        && offline::live(dirs).await.is_empty()
}

async fn forward_link(index: usize, mut events: mpsc::Receiver<LinkEvent>, to: mpsc::Sender<Step>) {
    loop {
        let event = events.recv().await;
        let last = event.is_none();
        if to.send(Step::Link(index, event)).await.is_err() || last {
            return;
        }
    }
}

async fn forward_lane(
    index: usize,
    lane: LogLane,
    mut subscriptions: mpsc::Receiver<InstanceName>,
    to: mpsc::Sender<Step>,
) {
    loop {
        tokio::select! {
            // Cancel safe, both: nothing is taken before it completes.
            wanted = subscriptions.recv() => match wanted {
                Some(instance) => if lane.subscribe(&instance).await.is_err() { return },
                None => return,
            },
            received = lane.recv() => match received {
                Ok(received) => {
                    if let Ok(batch) = received.parse::<LogLines>()
                        && to.send(Step::Batch(index, batch)).await.is_err()
                    {
                        return;
                    }
                }
                Err(_) => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use blackhole_bus_schema::process::LogCursor;

    use super::*;

    fn batch(inode: u64, end: u64, lines: &[&str], dropped: u64) -> LogLines {
        LogLines {
            instance: "web.1".parse().unwrap(),
            lines: lines.iter().map(|line| line.as_bytes().to_vec()).collect(),
            dropped,
            cursor: LogCursor { inode, offset: end },
        }
    }

    #[test]
    fn a_batch_is_only_shown_where_it_fits() {
        let mark = Mark {
            cursor: Some(LogCursor {
                inode: 7,
                offset: 100,
            }),
        };
        assert_eq!(mark.joins(&batch(7, 108, &["abc", "def"], 0)), Joint::Next);
        assert_eq!(mark.joins(&batch(7, 100, &["abc"], 0)), Joint::Old);
        assert_eq!(
            mark.joins(&batch(7, 112, &["abc", "def"], 0)),
            Joint::Gap,
            "a batch was lost before it"
        );
        assert_eq!(
            mark.joins(&batch(7, 104, &["abc", "def"], 0)),
            Joint::Gap,
            "it overlaps"
        );
        assert_eq!(
            mark.joins(&batch(7, 108, &["abc", "def"], 3)),
            Joint::Gap,
            "the manager dropped lines"
        );
        assert_eq!(
            mark.joins(&batch(8, 4, &["abc"], 0)),
            Joint::Gap,
            "the file was rotated"
        );
        assert_eq!(Mark::default().joins(&batch(7, 4, &["abc"], 0)), Joint::Gap);
    }
}
