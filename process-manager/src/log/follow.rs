//! Followed logs: new lines, published while somebody's lease runs.
//!
//! One task for all of them. inotify(7) tells which log has grown; lines are
//! read on the blocking pool and published on the manager's log lane, so that
//! neither a slow disk nor a flood of lines delays an event. A service that
//! writes faster than lines can be carried is jumped after: what was left out
//! is counted.
//!
//! Each batch comes from one file, so that a client can tell where it began:
//! its cursor's offset less the length of its lines and their newlines.

mod batch;
mod watcher;

use std::collections::HashMap;
use std::time::Duration;

use blackhole_bus_schema::bus::{Incoming, Server};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::{FollowLog, LogLines};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::topic::Topic;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use batch::{Start, next_batch, place};
use watcher::{Changed, Watcher};

/// Logs followed at one time; further ones are refused with `ResourceExhausted`.
const MAX_FOLLOWED: usize = 256;
/// Longest lease: whoever forgets to give it up costs no more than this.
const MAX_LEASE: Duration = Duration::from_secs(3600);
/// Shortest time between two batches of one log: lines that come meanwhile travel together.
const BATCH_INTERVAL: Duration = Duration::from_millis(25);
/// Requests waiting for the task. When full they are refused with `ResourceExhausted`.
const REQUESTS: usize = 64;

/// Hands requests to the task.
#[derive(Debug, Clone)]
pub struct Follower {
    requests: mpsc::Sender<(FollowLog, Incoming)>,
}

impl Follower {
    /// Starts the task. It ends when all handles are dropped.
    ///
    /// # Errors
    /// When the kernel gives no inotify descriptor.
    pub fn start(dirs: Dirs, server: Server) -> std::io::Result<Self> {
        let (requests, received) = mpsc::channel(REQUESTS);
        let watcher = Watcher::new()?;
        let task = Task {
            dirs,
            server,
            watcher,
            followed: HashMap::new(),
        };
        tokio::spawn(task.run(received));
        Ok(Self { requests })
    }

    /// Takes a `process.follow_log` over and answers it.
    pub async fn follow(&self, request: FollowLog, incoming: Incoming) {
        if let Err(error) = self.requests.try_send((request, incoming)) {
            let (_, incoming) = error.into_inner();
            let text = "too many logs are being asked for: try again later";
            incoming
                .fail(Status::new(Code::ResourceExhausted, text))
                .await;
        }
    }
}

#[derive(Debug)]
struct Followed {
    place: Start,
    until: Instant,
    dirty: bool,
    /// No batch before this.
    rest: Instant,
    dropped: u64,
}

struct Task {
    dirs: Dirs,
    server: Server,
    watcher: Watcher,
    followed: HashMap<InstanceName, Followed>,
}

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<(FollowLog, Incoming)>) {
        loop {
            let wake = self.wake();
            // Cancel safe: receiving and watching lose nothing, a timer is made anew.
            tokio::select! {
                request = requests.recv() => match request {
                    Some((request, incoming)) => {
                        let result = self.follow(request).await;
                        incoming.reply::<FollowLog>(result).await;
                    }
                    None => return,
                },
                changed = self.watcher.changed() => self.note(changed),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            self.expire();
            self.publish().await;
        }
    }

    fn wake(&self) -> Option<Instant> {
        let each = self.followed.values();
        each.map(|log| {
            if log.dirty {
                log.rest.min(log.until)
            } else {
                log.until
            }
        })
        .min()
    }

    async fn follow(&mut self, request: FollowLog) -> Result<(), Status> {
        let FollowLog {
            instance,
            cursor,
            lease_ms,
        } = request;
        let lease = Duration::from_millis(lease_ms).min(MAX_LEASE);
        let folder = self.dirs.instance(&instance);
        let known = self.followed.get(&instance).map(|log| log.place);
        if known.is_none() && self.followed.len() >= MAX_FOLLOWED {
            let text = format!("{MAX_FOLLOWED} logs are followed already");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        if known.is_none() {
            // Before the place is found, so that no line between the two is missed.
            self.watcher.add(&folder, &instance).map_err(|error| {
                let code = match error.kind() {
                    std::io::ErrorKind::NotFound => Code::NotFound,
                    _ => Code::Unavailable,
                };
                Status::new(code, format!("cannot watch {}: {error}", folder.display()))
            })?;
        }
        let found = tokio::task::spawn_blocking(move || place(&folder, cursor, known)).await;
        let place = match found {
            Ok(Ok(place)) => place,
            Ok(Err(error)) => {
                if known.is_none() {
                    self.watcher.remove(&instance);
                }
                return Err(Status::new(Code::DataLoss, crate::launch::chain(&error)));
            }
            Err(error) => return Err(Status::new(Code::Internal, error.to_string())),
        };
        let now = Instant::now();
        let log = self.followed.entry(instance).or_insert(Followed {
            place,
            until: now,
            dirty: true,
            rest: now,
            dropped: 0,
        });
        log.dirty |= log.place != place;
        log.place = place;
        log.until = log.until.max(now + lease);
        Ok(())
    }

    fn note(&mut self, changed: Changed) {
        match changed {
            Changed::Logs(names) => {
                for name in names {
                    if let Some(log) = self.followed.get_mut(&name) {
                        log.dirty = true;
                    }
                }
            }
            Changed::Unknown => self.followed.values_mut().for_each(|log| log.dirty = true),
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let watcher = &mut self.watcher;
        self.followed.retain(|name, log| {
            let lives = log.until > now;
            if !lives {
                watcher.remove(name);
            }
            lives
        });
    }

    /// Publishes one batch of each log that has one.
    async fn publish(&mut self) {
        let now = Instant::now();
        let due: Vec<InstanceName> = self
            .followed
            .iter()
            .filter(|(_, log)| log.dirty && log.rest <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(log) = self.followed.get_mut(&name) else {
                continue;
            };
            let (folder, place) = (self.dirs.instance(&name), log.place);
            let read = tokio::task::spawn_blocking(move || next_batch(&folder, place)).await;
            log.rest = Instant::now() + BATCH_INTERVAL;
            let batch = match read {
                Ok(Ok(batch)) => batch,
                Ok(Err(error)) => {
                    tracing::warn!(instance = %name, error = crate::launch::chain(&error), "followed log");
                    log.dirty = false;
                    continue;
                }
                Err(_) => continue,
            };
            log.dirty = batch.more;
            log.place = batch.next;
            log.dropped = log.dropped.saturating_add(batch.dropped);
            let Some(cursor) = batch.end.filter(|_| !batch.lines.is_empty()) else {
                continue;
            };
            let dropped = std::mem::take(&mut log.dropped);
            let lines = LogLines {
                instance: name.clone(),
                lines: batch.lines,
                dropped,
                cursor,
            };
            self.server.publish_log(Topic::log(&name), &lines).await;
            // The lane's send never waits: without this a flood would hold up the other tasks.
            tokio::task::yield_now().await;
        }
    }
}
