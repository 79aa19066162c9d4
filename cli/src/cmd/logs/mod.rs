//! `blackhole logs`: what services wrote, merged by time; with `-f` what they
//! write from now on.
//!
//! | file | what it holds |
//! |---|---|
//! | `select` | which lines are meant |
//! | `source` | the lines of one instance, a page at a time, from a manager or the files |
//! | `merge` | the lines of several, by time |
//! | `print` | in which form |
//! | this | who is asked, and following |
//!
//! Memory is bounded however much was written: one page (at most 256 KiB) of
//! each log is held, or the last lines that were asked for.

mod merge;
mod print;
mod select;
mod source;

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, LogLane};
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::process::{
    FollowLog, InstanceRecord, ListProcesses, LogLines, ProcessChanged,
};
use blackhole_bus_schema::topic;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::args;
use crate::client::{self, Peer};
use crate::context::Context;
use crate::error::Error;
use crate::offline_logs;
use crate::out;
use crate::view::log::Entry;
use crate::view::names::Filter;
use source::PAGE;

pub(crate) use merge::print_merged;
pub(crate) use print::Printer;
pub(crate) use select::Selection;
pub(crate) use source::{Mark, Origin, Source};

/// How long the process-manager goes on publishing lines without being asked again.
const LEASE: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Context, args: &args::Logs) -> Result<(), Error> {
    let filter = Filter::parse(&args.names)?;
    let selection = Selection::new(args);
    if context.offline {
        return offline_logs::run(context, &filter, &selection, args.follow, args.raw).await;
    }
    let managers = managers(context).await?;
    let mut owners = BTreeMap::new();
    for (link, records) in &managers {
        for record in records {
            // One that has moved may be remembered where it was.
            let known: Option<&(Link, &InstanceRecord)> = owners.get(&record.instance);
            if known.is_none_or(|(_, known)| known.generation <= record.generation) {
                owners.insert(record.instance.clone(), (link.clone(), record));
            }
        }
    }
    let meant = filter.select(owners.keys())?;
    let mut sources = Vec::with_capacity(meant.len());
    for instance in &meant {
        let Some((link, record)) = owners.get(instance) else {
            continue;
        };
        let origin = Origin::Manager(link.clone());
        let own = selection.of(Some(record));
        sources.push(Source::open(origin, instance.clone(), own, meant.len()).await?);
    }
    let mut printer = Printer::new(context, args.raw, meant.iter());
    print_merged(&mut sources, &mut printer).await?;
    if !args.follow {
        return Ok(());
    }
    let marks = meant
        .into_iter()
        .zip(sources.iter().map(|source| source.mark))
        .collect();
    let follower = Follower {
        selection,
        marks,
        printer,
        links: Vec::new(),
        followed: BTreeMap::new(),
    };
    let asked = managers.into_iter().map(|(link, _)| link).collect();
    follower.run(context, filter, asked).await
}

/// The process-managers that answer, with what they know.
async fn managers(context: &Context) -> Result<Vec<(Link, Vec<InstanceRecord>)>, Error> {
    let mut managers = Vec::new();
    let mut away = Vec::new();
    for component in client::components(&context.dirs) {
        if !matches!(component, Component::ProcessManager(_)) {
            continue;
        }
        let peer = Peer::open(&context.dirs, component.clone()).await?;
        let there = peer
            .found(context.timeout(client::WAIT))
            .await
            .info()
            .is_some();
        if let (true, Some(link)) = (there, peer.link) {
            let records = client::all::<ListProcesses>(&link, PAGE)
                .await
                .map_err(|error| client::request_error("list the instances", error, PAGE))?;
            managers.push((link, records));
        } else {
            away.push(component);
        }
    }
    if managers.is_empty() {
        return Err(Error::Unreachable {
            operation: "read logs".to_owned(),
            component: "the process-manager".to_owned(),
        });
    }
    for component in away {
        out::note(format!(
            "the {component} does not answer: the logs of its services are left out (`--offline` reads them)"
        ));
    }
    Ok(managers)
}

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
}

/// Shows new lines until interrupted. Each batch is checked against the mark:
/// what the lane dropped is read from the files, so that nothing is missing, and
/// a manager that comes back is asked from the mark on.
struct Follower {
    selection: Selection,
    marks: BTreeMap<InstanceName, Mark>,
    printer: Printer,
    links: Vec<Link>,
    /// Who has which instance, an index of `links`.
    followed: BTreeMap<InstanceName, usize>,
}

impl Follower {
    async fn run(
        mut self,
        context: &Context,
        filter: Filter,
        asked: Vec<Link>,
    ) -> Result<(), Error> {
        let (sender, mut steps) = mpsc::channel(64);
        let mut lanes = Vec::new();
        for (index, old) in asked.iter().enumerate() {
            let manager = old.component().clone();
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
        drop(asked);
        let mut renew = interval(LEASE / 3);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                // Cancel safe, both: nothing is taken before it completes.
                step = steps.recv() => match step { Some(step) => step, None => return Ok(()) },
                _ = renew.tick() => Step::Renew,
            };
            match step {
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
                    out::note(format!(
                        "the {} is away: lines follow when it is back",
                        self.links[index].component()
                    ));
                }
                Step::Link(..) => {}
                Step::Batch(index, batch) => self.batch(index, batch).await?,
                Step::Renew => self.catch_up(&self.followed.clone()).await?,
            }
        }
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
