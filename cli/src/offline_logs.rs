//! `blackhole --offline logs`: straight from the files.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use blackhole_bus_schema::names::InstanceName;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::cmd::logs::{Mark, Origin, Printer, Selection, Source, of_a_run_before, print_merged};
use crate::context::Context;
use crate::error::Error;
use crate::offline;
use crate::sys::readable;
use crate::view::names::Filter;

/// Shows the logs of the instances that have a folder.
pub(crate) async fn run(
    context: &Context,
    filter: &Filter,
    selection: &Selection,
    follow: bool,
    raw: bool,
) -> Result<(), Error> {
    let known = offline::instances(&context.dirs);
    let meant = filter.select(&known)?;
    let records = offline::records(&context.dirs).await?;
    let record = |name: &InstanceName| records.iter().find(|record| record.instance == *name);
    // Watched before it is read: nothing written in between is missed.
    let watch = if follow {
        Some(Watch::new(context, &meant)?)
    } else {
        None
    };
    let origin = Origin::Files(context.dirs.clone());
    let mut sources = Vec::with_capacity(meant.len());
    for instance in &meant {
        let own = selection.of(record(instance));
        sources.push(Source::open(origin.clone(), instance.clone(), own, meant.len()).await?);
    }
    let mut printer = Printer::new(context, raw, meant.iter());
    print_merged(&mut sources, &mut printer).await?;
    let Some(mut watch) = watch else {
        return of_a_run_before(selection, &sources);
    };
    let mut marks: BTreeMap<InstanceName, Mark> = meant
        .into_iter()
        .zip(sources.iter().map(|source| source.mark))
        .collect();
    loop {
        let mut sources: Vec<Source> = watch
            .changed()
            .await?
            .into_iter()
            .map(|instance| {
                let mark = marks.get(&instance).copied().unwrap_or_default();
                Source::after(origin.clone(), instance, selection.clone(), mark)
            })
            .collect();
        print_merged(&mut sources, &mut printer).await?;
        for source in sources {
            marks.insert(source.instance, source.mark);
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
