//! `blackhole logs`: what services wrote, merged by time; with `-f` what they
//! write from now on.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, LogLane};
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::process::{
    FollowLog, InstanceRecord, ListProcesses, LogCursor, LogLines, ProcessChanged, ReadLog,
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
use crate::view::log::{self, Entry};
use crate::view::names::Filter;

/// How long the process-manager goes on publishing lines without being asked again.
const LEASE: Duration = Duration::from_secs(10);
/// Time for one page of a log.
const PAGE: Duration = Duration::from_secs(5);

pub(super) async fn run(context: &Context, args: &args::Logs) -> Result<(), Error> {
    let filter = Filter::parse(&args.names)?;
    if context.offline {
        return offline_logs::run(context, &filter, args).await;
    }
    let managers = managers(context).await?;
    let mut sources = Vec::new();
    let mut marks: BTreeMap<InstanceName, Mark> = BTreeMap::new();
    let mut owners = BTreeMap::new();
    for (link, records) in &managers {
        for record in records {
            owners.insert(record.instance.clone(), link.clone());
        }
    }
    for instance in filter.select(owners.keys())? {
        let Some(link) = owners.get(&instance) else {
            continue;
        };
        let mut mark = Mark::default();
        let mut entries = mark.read(link, &instance, args.lines).await?;
        if !args.follow {
            entries.truncate(args.lines as usize);
        }
        sources.push(entries);
        marks.insert(instance, mark);
    }
    let mut printer = Printer::new(context, marks.keys());
    printer.print(&log::merge(sources))?;
    if !args.follow {
        return Ok(());
    }
    follow(
        context,
        filter,
        managers.into_iter().map(|(link, _)| link).collect(),
        marks,
        printer,
    )
    .await
}

/// The process-managers that answer, with what they know.
async fn managers(context: &Context) -> Result<Vec<(Link, Vec<InstanceRecord>)>, Error> {
    let mut managers = Vec::new();
    for component in client::components(&context.dirs) {
        if !matches!(component, Component::ProcessManager(_)) {
            continue;
        }
        let peer = Peer::open(&context.dirs, component).await?;
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
        }
    }
    if managers.is_empty() {
        return Err(Error::Unreachable {
            operation: "read logs".to_owned(),
            component: "the process-manager".to_owned(),
        });
    }
    Ok(managers)
}

/// How far an instance's log has been shown.
#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    cursor: Option<LogCursor>,
}

impl Mark {
    /// What was written since, or the last `lines` lines the first time.
    async fn read(
        &mut self,
        link: &Link,
        instance: &InstanceName,
        lines: u32,
    ) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        loop {
            let command = ReadLog {
                instance: instance.clone(),
                lines,
                cursor: self.cursor,
            };
            let chunk = link.request(&command, PAGE).await.map_err(|error| {
                client::request_error(&format!("read the log of {instance}"), error, PAGE)
            })?;
            if chunk.gap {
                out::note(format!(
                    "{instance}: older lines were rotated away before they could be shown"
                ));
            }
            entries.extend(chunk.lines.into_iter().map(|raw| Entry {
                instance: instance.clone(),
                raw,
            }));
            self.cursor = chunk.cursor.or(self.cursor);
            if !chunk.more {
                return Ok(entries);
            }
        }
    }

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
/// what the lane dropped is read from the files, so that nothing is missing.
async fn follow(
    context: &Context,
    filter: Filter,
    asked: Vec<Link>,
    mut marks: BTreeMap<InstanceName, Mark>,
    mut printer: Printer,
) -> Result<(), Error> {
    let (sender, mut steps) = mpsc::channel(64);
    let mut links = Vec::new();
    let mut followed: BTreeMap<InstanceName, usize> = BTreeMap::new();
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
        links.push(link);
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
                        followed.insert(record.instance.clone(), index);
                        let _ = lanes[index].send(record.instance).await;
                    }
                }
                // The manager is there (again): ask for all of it at once.
                catch_up(&links, &followed, &mut marks, &mut printer).await?;
            }
            Step::Link(index, Some(LinkEvent::Event(received))) => {
                if let Ok(change) = received.parse::<ProcessChanged>()
                    && filter.covers(&change.record.instance)
                    && !followed.contains_key(&change.record.instance)
                {
                    let instance = change.record.instance;
                    followed.insert(instance.clone(), index);
                    let _ = lanes[index].send(instance.clone()).await;
                    let one = BTreeMap::from([(instance, index)]);
                    catch_up(&links, &one, &mut marks, &mut printer).await?;
                }
            }
            Step::Link(index, Some(LinkEvent::Down)) => {
                out::note(format!(
                    "the {} is away: lines follow when it is back",
                    links[index].component()
                ));
            }
            Step::Link(..) => {}
            Step::Batch(index, batch) => {
                let mark = marks.entry(batch.instance.clone()).or_default();
                match mark.joins(&batch) {
                    Joint::Old => {}
                    Joint::Next => {
                        mark.cursor = Some(batch.cursor);
                        let instance = batch.instance;
                        let entries: Vec<Entry> = batch
                            .lines
                            .into_iter()
                            .map(|raw| Entry {
                                instance: instance.clone(),
                                raw,
                            })
                            .collect();
                        printer.print(&entries)?;
                    }
                    Joint::Gap => {
                        if let Ok(entries) =
                            mark.read(&links[index], &batch.instance, u32::MAX).await
                        {
                            printer.print(&entries)?;
                        }
                    }
                }
            }
            Step::Renew => catch_up(&links, &followed, &mut marks, &mut printer).await?,
        }
    }
}

/// Renews the leases, then reads what the lane may have missed.
async fn catch_up(
    links: &[Link],
    followed: &BTreeMap<InstanceName, usize>,
    marks: &mut BTreeMap<InstanceName, Mark>,
    printer: &mut Printer,
) -> Result<(), Error> {
    let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
    let mut sources = Vec::new();
    for (instance, index) in followed {
        let link = &links[*index];
        if link.info().is_none() {
            continue;
        }
        let mark = marks.entry(instance.clone()).or_default();
        let command = FollowLog {
            instance: instance.clone(),
            cursor: mark.cursor,
            lease_ms,
        };
        // A manager that is just leaving: the next renewal tries again.
        if link.request(&command, PAGE).await.is_ok()
            && let Ok(entries) = mark.read(link, instance, u32::MAX).await
        {
            sources.push(entries);
        }
    }
    printer.print(&log::merge(sources))
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

/// Prints lines in the form asked for.
pub(crate) struct Printer {
    context: Context,
    terminal: bool,
    width: usize,
}

impl Printer {
    pub(crate) fn new<'a>(
        context: &Context,
        instances: impl Iterator<Item = &'a InstanceName>,
    ) -> Self {
        let width = instances
            .map(|name| name.to_string().len())
            .max()
            .unwrap_or(0);
        Self {
            context: context.clone(),
            terminal: std::io::stdout().is_terminal(),
            width,
        }
    }

    pub(crate) fn print(&mut self, entries: &[Entry]) -> Result<(), Error> {
        if self.context.format != args::Format::Table {
            for entry in entries {
                out::item(self.context.format, &log::item(entry), String::new)?;
            }
            return Ok(());
        }
        let mut text = Vec::new();
        for entry in entries {
            self.width = self.width.max(entry.instance.to_string().len());
            text.extend(log::show(
                self.context.style,
                self.terminal,
                self.width,
                entry,
            ));
        }
        if text.is_empty() {
            Ok(())
        } else {
            out::print(text)
        }
    }
}

#[cfg(test)]
mod tests {
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
