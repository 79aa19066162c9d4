//! `blackhole --offline logs`: straight from the files.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::LogCursor;
use blackhole_process_manager::log as files;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::args;
use crate::cmd::Printer;
use crate::context::Context;
use crate::error::Error;
use crate::offline;
use crate::sys::readable;
use crate::view::log::{self, Entry};
use crate::view::names::Filter;

/// Shows the logs of the instances that have a folder.
pub async fn run(context: &Context, filter: &Filter, args: &args::Logs) -> Result<(), Error> {
    let known = offline::instances(&context.dirs);
    let meant = filter.select(&known)?;
    // Watched before it is read: nothing written in between is missed.
    let watch = if args.follow {
        Some(Watch::new(context, &meant)?)
    } else {
        None
    };
    let mut cursors: BTreeMap<InstanceName, Option<LogCursor>> = BTreeMap::new();
    let mut sources = Vec::new();
    for instance in &meant {
        let mut cursor = None;
        let mut entries = read(context, instance, args.lines, &mut cursor)?;
        if !args.follow {
            entries.truncate(args.lines as usize);
        }
        sources.push(entries);
        cursors.insert(instance.clone(), cursor);
    }
    let mut printer = Printer::new(context, meant.iter());
    printer.print(&log::merge(sources))?;
    let Some(mut watch) = watch else {
        return Ok(());
    };
    loop {
        for instance in watch.changed().await? {
            let cursor = cursors.entry(instance.clone()).or_default();
            let entries = read(context, &instance, u32::MAX, cursor)?;
            printer.print(&entries)?;
        }
    }
}

fn read(
    context: &Context,
    instance: &InstanceName,
    lines: u32,
    cursor: &mut Option<LogCursor>,
) -> Result<Vec<Entry>, Error> {
    let directory = context.dirs.instance(instance);
    let mut entries = Vec::new();
    loop {
        let chunk = files::read(&directory, lines, *cursor).map_err(|error| Error::Bus {
            operation: format!("read the log of {instance}"),
            source: Box::new(error),
        })?;
        entries.extend(chunk.lines.into_iter().map(|raw| Entry {
            instance: instance.clone(),
            raw,
        }));
        *cursor = chunk.cursor.or(*cursor);
        if !chunk.more {
            return Ok(entries);
        }
    }
}

/// Tells which logs have grown, see inotify(7).
struct Watch {
    queue: AsyncFd<OwnedFd>,
    instances: BTreeMap<i32, InstanceName>,
}

impl Watch {
    fn new(context: &Context, meant: &[InstanceName]) -> Result<Self, Error> {
        let path = context.dirs.state.join("instances");
        let failed = |error: rustix::io::Errno| Error::io("watch", &path, error);
        let queue = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(failed)?;
        let mut instances = BTreeMap::new();
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        for instance in meant {
            let id = inotify::add_watch(&queue, context.dirs.instance(instance), flags)
                .map_err(failed)?;
            instances.insert(id, instance.clone());
        }
        let queue = readable(queue).map_err(|error| Error::io("watch", &path, error))?;
        Ok(Self { queue, instances })
    }

    /// The instances whose folders changed since the last call. Cancel safe.
    async fn changed(&mut self) -> Result<Vec<InstanceName>, Error> {
        loop {
            let failed = |error: std::io::Error| Error::io("watch", "logs", error);
            let mut ready = self.queue.readable().await.map_err(failed)?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(self.queue.get_ref(), &mut buffer);
            let mut changed: Vec<InstanceName> = Vec::new();
            loop {
                match reader.next() {
                    Ok(event) => {
                        // An overflow of the queue has no id: then all may have changed.
                        match self.instances.get(&event.wd()) {
                            Some(instance) => changed.push(instance.clone()),
                            None => changed.extend(self.instances.values().cloned()),
                        }
                    }
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(failed(error.into())),
                }
            }
            ready.clear_ready();
            changed.sort();
            changed.dedup();
            if !changed.is_empty() {
                return Ok(changed);
            }
        }
    }
}
