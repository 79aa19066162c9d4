//! What a service asks its shim for over `NOTIFY_SOCKET`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::Generation;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::Service;
use crate::shim::notify::Wish;
use crate::shim::protocol::{ShimMessage, StopRequest};
use crate::shim::wait::wait;
use crate::shim::{sys, tree};

/// Descriptors that are not stored are noted at most this often.
const REFUSED_INTERVAL: Duration = Duration::from_secs(60);

/// Descriptors that were not stored.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Those that have not been noted.
    count: usize,
    /// When the last ones were.
    told: Option<Instant>,
}

/// The time that a service has asked for to come up.
#[derive(Debug)]
pub(super) struct Asked {
    generation: Generation,
    until: Instant,
    /// Those who watch know it.
    told: bool,
}

/// A process below the shim that the service has named as its main one.
#[derive(Debug)]
pub(super) struct Main {
    pub(super) pid: Pid,
    /// Names it for ever, also when it has another parent than the shim.
    fd: OwnedFd,
}

impl Main {
    fn new(pid: Pid) -> Option<Self> {
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // After the descriptor was made: so it is this process that is below.
        let below = tree::is_below(pid, rustix::process::getpid()) == Some(true);
        below.then_some(Self { pid, fd })
    }

    /// Whether it has not ended.
    pub(super) fn lives(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        // Readable when it has ended, see pidfd_open(2).
        wait(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready == 0)
    }

    /// Whether it is a child of this process, has ended and has not been reaped.
    pub(super) fn is_to_be_reaped(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::PidFd(self.fd.as_fd()), options), Ok(Some(_)))
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        sys::signal_pidfd(&self.fd, signal)
    }
}

impl AsFd for Main {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Service {
    /// Does what the service has asked for.
    pub(super) fn grant_wishes(&mut self) {
        let wishes = self.notify.as_mut().map(|notify| notify.wishes());
        for wish in wishes.into_iter().flatten() {
            match wish {
                Wish::Trigger => self.trigger(),
                Wish::Main(pid) => self.choose_main(pid),
                Wish::Extend(time) => self.extend(time),
                Wish::Store {
                    name,
                    descriptors,
                    unwatched,
                } => {
                    let (mut stored, mut refused) = (false, 0);
                    for fd in descriptors {
                        match self.passed.store(&name, fd, unwatched) {
                            true => stored = true,
                            false => refused += 1,
                        }
                    }
                    if stored {
                        self.anew();
                    }
                    if refused > 0 {
                        self.refused.count += refused;
                        self.note_refused();
                    }
                }
                Wish::Remove(name) => {
                    if self.passed.remove(&name) {
                        self.anew();
                    }
                }
            }
        }
    }

    /// Notes descriptors that were not stored: the first at once, others once in a while,
    /// however many there are.
    fn note_refused(&mut self) {
        let recent = |told: Instant| told.elapsed() < REFUSED_INTERVAL;
        if !self.refused.told.is_some_and(recent) {
            let count = std::mem::take(&mut self.refused.count);
            self.refused.told = Some(Instant::now());
            let instance = &self.request.instance;
            let text = format!("{instance}: fd_store is full, not stored: {count}");
            crate::shim::server::note(&text);
        }
    }

    /// It says that it is ill: as if it had given no sign of life in time.
    fn trigger(&mut self) {
        if self.stopping.is_none() && self.end.is_none() {
            let _ = self.stop(&StopRequest {
                unhealthy: true,
                again: true,
                ..StopRequest::default()
            });
        }
    }

    fn choose_main(&mut self, pid: Pid) {
        // Reaped, its number may be another's.
        if pid == self.pid && self.first_end.is_none() {
            self.main = None;
        } else if let Some(main) = Main::new(pid) {
            self.main = Some(main);
        } else {
            return;
        }
        if let Some(notify) = &mut self.notify {
            notify.set_main(pid);
        }
        self.tell_notify(Instant::now());
    }

    /// It asks for more time to end, and has it within bounds; or to come up, which is told
    /// to who waits for it and knows the bounds.
    fn extend(&mut self, time: Duration) {
        let Some(stopping) = &mut self.stopping else {
            let generation = self.request.generation;
            let until = Instant::now().checked_add(time);
            let known = self
                .asked
                .as_ref()
                .filter(|asked| asked.generation == generation);
            if let Some(until) =
                until.filter(|until| known.is_none_or(|known| known.until < *until))
            {
                self.asked = Some(Asked {
                    generation,
                    until,
                    told: false,
                });
            }
            return;
        };
        if let (Some(deadline), Some(latest)) = (stopping.deadline, stopping.latest) {
            let wished = Instant::now().checked_add(time).unwrap_or(latest);
            stopping.deadline = Some(wished.min(latest).max(deadline));
        }
    }

    /// What is left of the time that it has asked for to come up; nothing once it is over.
    pub(super) fn extended(&self, now: Instant) -> Option<ShimMessage> {
        let asked = self.asked.as_ref();
        let asked = asked.filter(|asked| asked.generation == self.request.generation)?;
        let left = asked.until.saturating_duration_since(now).as_millis();
        let left_ms = u64::try_from(left).unwrap_or(u64::MAX);
        (left_ms > 0).then_some(ShimMessage::Extended { left_ms })
    }

    /// Tells watchers of a wish for time that they do not know.
    pub(super) fn tell_asked(&mut self, now: Instant) {
        let message = self.extended(now);
        if let Some(asked) = self.asked.as_mut().filter(|asked| !asked.told) {
            asked.told = true;
            if let Some(message) = message {
                self.tell(&message);
            }
        }
    }
}
