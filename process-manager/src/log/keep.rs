//! Keeping the rotated files: compression, and removal by age and total size.
//!
//! The shims rotate, and remove what is beyond the number and the size that may
//! be kept; so logs stay bounded with no daemon at all. What needs time or must
//! happen while nothing is written is done here, for living and for stopped
//! instances alike, by one thread of low priority (nice(2) 19), one file at a
//! time: inotify(7) tells what was rotated, the time since boot when a file gets too old.
//!
//! A file is compressed to a name of its own, brought to the disk, renamed, and
//! only then is the plain one removed: whatever ends this in between leaves either
//! form whole. Where both are there the plain one goes. Names never move, so no
//! agreement with the shim is needed; a file that the shim removes meanwhile is
//! given up.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::LogSpec;
use blackhole_bus_schema::regular;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{FlockOperation, flock};

use super::age::{Ages, Now};
use super::files::identity;
use super::gzip;
use super::names::{self, COMPRESSED, Rotated, UNFINISHED, retain, rotated_path};
use crate::adopt;
use crate::shim::client::read_record;

/// A file that could not be compressed (full disk) is tried again after this long.
const RETRY: Duration = Duration::from_secs(60);

/// The thread that keeps rotated files. It ends when this is dropped.
#[derive(Debug)]
pub struct Keeper {
    stop: Arc<Stop>,
}

#[derive(Debug)]
struct Stop {
    asked: AtomicBool,
    wake: OwnedFd,
}

impl Keeper {
    /// Starts the thread, for the instances that are `owner`'s.
    ///
    /// # Errors
    /// When the kernel gives no inotify descriptor, eventfd or thread.
    pub fn start(dirs: &Dirs, owner: String) -> io::Result<Self> {
        let folder = dirs.state.join("instances");
        std::fs::create_dir_all(&folder)?;
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let mut task = Task {
            watch: Watch::new(&folder)?,
            folder,
            owner,
            due: HashMap::new(),
            ages: HashMap::new(),
            stop: stop.clone(),
        };
        std::thread::Builder::new()
            .name("log-keeper".to_owned())
            .spawn(move || task.run())?;
        Ok(Self { stop })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.stop.wake, &1_u64.to_ne_bytes());
    }
}

struct Task {
    folder: PathBuf,
    owner: String,
    watch: Watch,
    /// When an instance is to be looked at again, as time since boot.
    due: HashMap<InstanceName, Duration>,
    ages: HashMap<InstanceName, Ages>,
    stop: Arc<Stop>,
}

impl Task {
    fn run(&mut self) {
        // Of this thread alone, see setpriority(2).
        let _ = rustix::process::setpriority_process(None, 19);
        let mut dirty = self.watch.all(&self.folder);
        loop {
            while let Some(name) = dirty.pop_first() {
                if self.is_stopped() {
                    return;
                }
                let mut ages = self.ages.remove(&name).unwrap_or_default();
                let folder = self.folder.join(name.to_string());
                let next = look(&folder, &self.owner, &mut ages, &|| !self.is_stopped());
                if !ages.is_empty() {
                    self.ages.insert(name.clone(), ages);
                }
                match next {
                    Ok(Some(next)) => self.due.insert(name, next),
                    Ok(None) => self.due.remove(&name),
                    Err(error) => {
                        tracing::warn!(instance = %name, %error, "the log's rotated files cannot be kept as asked for");
                        self.due.insert(name, Now::read().up + RETRY)
                    }
                };
                // Rotations meanwhile: the newest news first.
                dirty.append(&mut self.watch.read(&self.folder));
            }
            if !self.wait() {
                return;
            }
            dirty = self.watch.read(&self.folder);
            let now = Now::read().up;
            let due = self.due.iter().filter(|(_, due)| **due <= now);
            dirty.extend(due.map(|(name, _)| name.clone()));
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.asked.load(Ordering::Relaxed)
    }

    /// Waits for news or until something is due; false at the end.
    fn wait(&self) -> bool {
        let next = self.due.values().min();
        let timeout = next.map(|next| {
            let left = next.saturating_sub(Now::read().up);
            Timespec {
                // At least a second: files that get too old one after the other go together.
                // At most an hour: a suspended host's time is not waited for here.
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(3600).clamp(1, 3600),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = [
            PollFd::new(&self.watch.queue, PollFlags::IN),
            PollFd::new(&self.stop.wake, PollFlags::IN),
        ];
        // An error (EINTR, ENOMEM) is a reason to look.
        let _ = poll(&mut fds, timeout.as_ref());
        !self.is_stopped()
    }
}

/// Does what is to be done in one instance's folder; returns when to come again.
fn look(
    folder: &Path,
    owner: &str,
    ages: &mut Ages,
    wanted: &dyn Fn() -> bool,
) -> io::Result<Option<Duration>> {
    if adopt::owner(folder) != owner {
        return Ok(None);
    }
    // Of an instance without a readable record nothing is known: its files stay.
    let Ok(Some(record)) = read_record(folder) else {
        return Ok(None);
    };
    let Ok(spec) = record.spec() else {
        return Ok(None);
    };
    keep(folder, &spec.logs, ages, wanted)
}

fn keep(
    folder: &Path,
    spec: &LogSpec,
    ages: &mut Ages,
    wanted: &dyn Fn() -> bool,
) -> io::Result<Option<Duration>> {
    loop {
        let (stay, next) = retain(folder, spec, Some((ages, Now::read())))?;
        remove_unfinished(folder, &stay)?;
        for file in stay.iter().filter(|file| file.plain && file.compressed) {
            // The compressed one was renamed when it was whole.
            remove(&file.plain_path(folder))?;
        }
        // The newest first: in a flood the oldest go before they are done.
        let mut plain = stay.iter().rev().filter(|file| !file.compressed);
        let next_file = plain.find(|file| {
            // What is no file is nobody's log: it goes when its number does.
            let metadata = std::fs::symlink_metadata(file.plain_path(folder));
            metadata.is_ok_and(|metadata| metadata.is_file())
        });
        match next_file.filter(|_| spec.compress && wanted()) {
            Some(file) => {
                if !compress(folder, file, wanted)? {
                    return Ok(next);
                }
            }
            None => return Ok(next),
        }
    }
}

/// Removes what a compression left behind that did not end.
fn remove_unfinished(folder: &Path, stay: &[Rotated]) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some((number, UNFINISHED)) = name.to_str().and_then(names::parse) {
            // Of one that is still there it is overwritten.
            if !stay.iter().any(|file| file.number == number && file.plain) {
                remove(&rotated_path(folder, number, UNFINISHED))?;
            }
        }
    }
    Ok(())
}

/// Compresses one file; false when it was given up because nobody wants it any
/// more or somebody else is at it.
fn compress(folder: &Path, file: &Rotated, wanted: &dyn Fn() -> bool) -> io::Result<bool> {
    let plain = file.plain_path(folder);
    let unfinished = rotated_path(folder, file.number, UNFINISHED);
    let finished = rotated_path(folder, file.number, COMPRESSED);
    let source = match regular::reader(&plain) {
        Ok(source) => source,
        // The shim has removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    match flock(&source, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        // Another manager, which is just leaving.
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let metadata = source.metadata()?;
    if metadata.len() == 0 {
        remove(&plain)?;
        return Ok(true);
    }
    let mut target = regular::create(&unfinished)?;
    let is_there = || source.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
    let done = gzip::compress(&source, &mut target, identity(&metadata), || {
        wanted() && is_there()
    });
    let made = done.and_then(|done| {
        if done && is_there() {
            // Its age is that of its last line.
            target.set_modified(metadata.modified()?)?;
            target.sync_all()?;
            std::fs::rename(&unfinished, &finished)?;
            sync_folder(folder);
            return Ok(true);
        }
        Ok(false)
    });
    match made {
        Ok(true) => {
            // When the shim has removed the plain one just now, its other form goes too.
            if !is_there() {
                remove(&finished)?;
            }
            remove(&plain)?;
            Ok(true)
        }
        Ok(false) => {
            remove(&unfinished)?;
            Ok(wanted())
        }
        Err(error) => {
            let _ = remove(&unfinished);
            Err(error)
        }
    }
}

/// So that the new name outlives a power cut before the old one is gone. Not
/// all file systems can.
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Tells which logs were rotated.
#[derive(Debug)]
struct Watch {
    queue: OwnedFd,
    root: i32,
    instances: HashMap<i32, InstanceName>,
}

impl Watch {
    fn new(folder: &Path) -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let root = inotify::add_watch(&queue, folder, flags)?;
        Ok(Self {
            queue,
            root,
            instances: HashMap::new(),
        })
    }

    /// Watches all instances that there are, and returns them.
    fn all(&mut self, folder: &Path) -> BTreeSet<InstanceName> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let names: BTreeSet<InstanceName> = names.collect();
        for name in &names {
            self.add(folder, name);
        }
        names
    }

    fn add(&mut self, folder: &Path, name: &InstanceName) {
        let flags = WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        match inotify::add_watch(&self.queue, folder.join(name.to_string()), flags) {
            Ok(watch) => {
                self.instances.insert(watch, name.clone());
            }
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(instance = %name, %error, "cannot watch for rotated logs (inotify)");
            }
        }
    }

    /// What has been rotated since the last call.
    fn read(&mut self, folder: &Path) -> BTreeSet<InstanceName> {
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(&self.queue, &mut buffer);
        let (mut dirty, mut created, mut gone, mut lost) =
            (BTreeSet::new(), Vec::new(), Vec::new(), false);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => break,
            };
            let flags = event.events();
            lost |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
            if flags.contains(ReadFlags::IGNORED) {
                gone.push(event.wd());
            }
            let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) else {
                continue;
            };
            if event.wd() == self.root {
                created.extend(name.parse::<InstanceName>().ok());
            } else if matches!(names::parse(name), Some((_, ""))) {
                dirty.extend(self.instances.get(&event.wd()).cloned());
            }
        }
        for watch in gone {
            self.instances.remove(&watch);
        }
        for name in created {
            self.add(folder, &name);
            // It may have been rotated before it was watched.
            dirty.insert(name);
        }
        if lost {
            dirty.append(&mut self.all(folder));
        }
        dirty
    }
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
