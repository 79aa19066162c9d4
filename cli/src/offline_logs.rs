//! `blackhole --offline logs`: straight from the files.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::cmd::logs::{
    Mark, Origin, Printer, Selection, Source, not_yet, of_a_run_before, print_merged,
};
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
    let all = match (filter.select(&known), context.config()) {
        // One of the configuration has no folder before its first start.
        (Err(Error::NotFound { .. }), Ok((_, config))) => {
            let configured: Vec<InstanceName> = config.instances().collect();
            filter.select(known.iter().chain(&configured))?
        }
        (selected, _) => selected?,
    };
    let (meant, never): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| known.contains(one));
    not_yet(&never, follow);
    let records = offline::records(&context.dirs).await?;
    let record = |name: &InstanceName| records.iter().find(|record| record.instance == *name);
    // Watched before it is read: nothing written in between is missed.
    let watch = if follow {
        Some(Watch::new(context, &meant, &never)?)
    } else {
        None
    };
    let origin = Origin::Files(context.dirs.clone());
    let mut sources = Vec::with_capacity(meant.len());
    for instance in &meant {
        let own = selection.of(record(instance));
        sources.push(Source::open(origin.clone(), instance.clone(), own, meant.len()).await?);
    }
    let mut printer = Printer::new(context, raw, meant.iter().chain(&never));
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
    dirs: Dirs,
    /// The folder of all instances, while one has no folder of its own yet.
    all: Option<i32>,
    never: Vec<InstanceName>,
}

fn flags() -> inotify::WatchFlags {
    inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO
}

impl Watch {
    /// Of instances that have a folder, and of those that have none yet.
    fn new(
        context: &Context,
        meant: &[InstanceName],
        never: &[InstanceName],
    ) -> Result<Self, Error> {
        let path = context.dirs.state.join("instances");
        let failed = |error: rustix::io::Errno| Error::io("watch", &path, error);
        let queue = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(failed)?;
        let mut instances = BTreeMap::new();
        for instance in meant {
            let id = inotify::add_watch(&queue, context.dirs.instance(instance), flags())
                .map_err(failed)?;
            instances.insert(id, instance.clone());
        }
        let all = match never.is_empty() {
            true => None,
            false => Some(inotify::add_watch(&queue, &path, flags()).map_err(failed)?),
        };
        let queue = readable(queue).map_err(|error| Error::io("watch", &path, error))?;
        Ok(Self {
            queue,
            instances,
            dirs: context.dirs.clone(),
            all,
            never: never.to_vec(),
        })
    }

    /// Watches those that have a folder by now, and gives them back.
    fn begun(&mut self) -> Vec<InstanceName> {
        let mut begun = Vec::new();
        self.never.retain(|instance| {
            let folder = self.dirs.instance(instance);
            match inotify::add_watch(self.queue.get_ref(), folder, flags()) {
                Ok(id) => {
                    self.instances.insert(id, instance.clone());
                    begun.push(instance.clone());
                    false
                }
                Err(_) => true,
            }
        });
        begun
    }

    /// The instances whose folders changed since the last call. Cancel safe.
    async fn changed(&mut self) -> Result<Vec<InstanceName>, Error> {
        loop {
            // Also those that began between the two looks at the folders.
            let begun = self.begun();
            if !begun.is_empty() {
                return Ok(begun);
            }
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
                            None if self.all == Some(event.wd()) => {}
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
