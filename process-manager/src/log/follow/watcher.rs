//! inotify(7) over the folders of the followed logs.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use blackhole_bus_schema::names::InstanceName;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::readiness::readable;

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// These logs; one may be named more than once.
    Logs(Vec<InstanceName>),
    /// The kernel lost count: all may have.
    Unknown,
}

/// Watches folders for changes of the log files in them.
#[derive(Debug)]
pub(super) struct Watcher {
    inotify: AsyncFd<OwnedFd>,
    by_watch: HashMap<i32, InstanceName>,
    by_name: HashMap<InstanceName, i32>,
}

impl Watcher {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            inotify: readable(inotify)?,
            by_watch: HashMap::new(),
            by_name: HashMap::new(),
        })
    }

    pub(super) fn add(&mut self, folder: &Path, name: &InstanceName) -> io::Result<()> {
        let flags =
            WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(self.inotify.get_ref(), folder, flags)?;
        self.by_watch.insert(watch, name.clone());
        self.by_name.insert(name.clone(), watch);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &InstanceName) {
        if let Some(watch) = self.by_name.remove(name) {
            self.by_watch.remove(&watch);
            // Gone already when its folder is.
            let _ = inotify::remove_watch(self.inotify.get_ref(), watch);
        }
    }

    /// Waits for a change. Cancel safe: what was not returned is told again.
    pub(super) async fn changed(&mut self) -> Changed {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else {
                return std::future::pending().await;
            };
            match read(self.inotify.get_ref(), &self.by_watch) {
                Ok(Some(changed)) => return changed,
                Ok(None) => ready.clear_ready(),
                Err(error) => {
                    tracing::error!(%error, "inotify");
                    ready.clear_ready();
                }
            }
        }
    }
}

/// One buffer of events; `None` when there is none.
fn read(inotify: &OwnedFd, by_watch: &HashMap<i32, InstanceName>) -> io::Result<Option<Changed>> {
    let mut buffer = [const { MaybeUninit::uninit() }; 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let mut names = Vec::new();
    let mut any = false;
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(rustix::io::Errno::AGAIN) => break,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        any = true;
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            return Ok(Some(Changed::Unknown));
        }
        let of_log = event
            .file_name()
            .is_some_and(|name| name.to_bytes().starts_with(crate::log::CURRENT.as_bytes()));
        if let Some(name) = by_watch.get(&event.wd()).filter(|_| of_log) {
            names.push(name.clone());
        }
        if reader.is_buffer_empty() {
            break;
        }
    }
    Ok(any.then_some(Changed::Logs(names)))
}
