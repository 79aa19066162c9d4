//! What a shim says to its clients and does for them.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::SocketType;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::turns::Turn;
use super::{Service, Stopping};
use crate::shim::connection::{self, Connection, MAX_CONNECTIONS};
use crate::shim::keeper;
use crate::shim::notify::Notify;
use crate::shim::protocol::{
    PROTOCOL, Request, RequestBody, ShimMessage, ShimPhase, ShimStatus, StopRequest,
};
use crate::shim::sys;

/// How long no client is taken after the process or the host ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How many times its grace a service that is being stopped may have in all by
/// asking for more time, so that a stop comes to its end whatever it asks for.
const MOST_GRACES: u32 = 10;

impl Service {
    /// Makes its sockets anew where their files are gone (with the run directory,
    /// perhaps): a client that finds none asks for it by SIGHUP.
    pub(super) fn listen_again(&mut self) {
        let path = &self.request.socket;
        // Whoever accepts there is this shim itself, which has the lock.
        // Its backlog may be full: then it is there.
        let reached = keeper::connect(path, SocketType::STREAM);
        if reached.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
            && let Ok(listener) = crate::shim::prepare::listen(path)
        {
            self.listener = Some(listener);
        }
        if let Some(notify) = &mut self.notify {
            notify.bind_again();
        }
    }

    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        match listener.accept() {
            Ok((stream, _)) if connection::trusted(&stream) => {
                let Ok(mut client) = Connection::new(stream, false, Vec::new()) else {
                    return;
                };
                client.send(&self.hello());
                if self.connections.len() >= MAX_CONNECTIONS {
                    let oldest = self.connections.iter().position(|other| !other.watching);
                    self.connections.remove(oldest.unwrap_or(0));
                }
                self.connections.push(client);
            }
            Ok(_) => {}
            Err(error) => {
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
                ) {
                    self.accept_after = Instant::now().checked_add(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Reads from and writes to the clients that are ready, and drops those that are gone.
    pub(super) fn serve(&mut self, ready: &[PollFlags]) {
        for (index, flags) in ready.iter().enumerate() {
            if flags.is_empty() {
                continue;
            }
            let Some(client) = self.connections.get_mut(index) else {
                break;
            };
            if flags.contains(PollFlags::OUT) {
                client.flush();
            }
            if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                continue;
            }
            let (requests, malformed) = client.receive();
            for _ in 0..malformed {
                let error = Some("not a request of this protocol".to_owned());
                client.send(&ShimMessage::Answer { id: 0, error });
            }
            for request in requests {
                self.answer(index, request);
            }
        }
        self.connections.retain(|client| !client.closed);
    }

    fn answer(&mut self, index: usize, request: Request) {
        let watch = matches!(request.request, RequestBody::Watch);
        let result = match request.request {
            RequestBody::Stop { stop } => self.stop(&stop),
            RequestBody::Kill { unhealthy } => self.kill(unhealthy),
            RequestBody::Signal { signal } => self.signal(signal, false),
            RequestBody::Permit { generation, permit } => self.permitted(generation, permit),
            RequestBody::Reload => {
                let serial = self
                    .connections
                    .get(index)
                    .map_or(0, |client| client.serial);
                match self.begin_reload(serial, request.id) {
                    // The answer comes when it is through.
                    Ok(()) => return,
                    Err(problem) => Err(problem),
                }
            }
            RequestBody::Status | RequestBody::Watch => {
                let hello = self.hello();
                if let Some(client) = self.connections.get_mut(index) {
                    client.watching |= watch;
                    client.send(&hello);
                }
                Ok(())
            }
            RequestBody::Spawn { .. } => Err("this shim has its service".to_owned()),
            RequestBody::Unknown => Err(format!("not known to protocol version {PROTOCOL}")),
        };
        // News for who watches from here on, which a greeting does not hold.
        let ended = self.exit.is_some().then_some(ShimMessage::Ended);
        let news = [self.extended(Instant::now()), ended];
        if let Some(client) = self.connections.get_mut(index) {
            client.send(&ShimMessage::Answer {
                id: request.id,
                error: result.err(),
            });
            for news in news.iter().flatten().filter(|_| watch) {
                client.send(news);
            }
        }
    }

    /// The shim is to end, and with it the service; also where that has ended at the same
    /// time, and would be started again. One that had failed has failed.
    pub(super) fn asked_to_end(&mut self) {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.pid), look) {
            Ok(Some(status)) if self.end.is_none() => {
                self.permit(None);
                self.keep = false;
                let by_signal = status.terminating_signal().is_some_and(sys::asks_to_end);
                if by_signal || status.exit_status() == Some(0) {
                    self.stopping.get_or_insert(Stopping {
                        deadline: None,
                        latest: None,
                        signal: None,
                        unhealthy: false,
                        timed_out: false,
                    });
                }
            }
            _ => {
                let _ = self.stop(&StopRequest::default());
            }
        }
    }

    /// The stop signal, and the timer for the kill. A second stop sends its
    /// signal too and can only bring the kill forward.
    pub(super) fn stop(&mut self, request: &StopRequest) -> Result<(), String> {
        let stop = request.stop.as_ref().unwrap_or(&self.request.stop).clone();
        self.permit(None);
        self.keep = request.again;
        if self.end.is_some() {
            return Ok(());
        }
        if !(1..=64).contains(&stop.signal) {
            return Err(not_a_signal(stop.signal));
        }
        self.kill_hooks(Turn::AfterStart);
        // Who asks again does not wait for the hook.
        let after_hook = self.stopping.is_none() && self.begin_hook(Turn::BeforeStop);
        let waiting = after_hook.then_some((stop.signal, request.process_group));
        if !after_hook {
            // One that finds nobody is no reason not to end the rest in time.
            let _ = self.signal(stop.signal, request.process_group);
            self.wake(request.process_group);
        }
        let grace = Duration::from_millis(stop.grace_ms);
        let deadline = Instant::now().checked_add(grace);
        let latest = Instant::now().checked_add(grace.saturating_mul(MOST_GRACES));
        match &mut self.stopping {
            Some(stopping) if stopping.deadline.is_some() => {
                stopping.latest = stopping.latest.min(latest).or(stopping.latest);
                stopping.deadline = stopping.deadline.min(deadline).or(stopping.deadline);
            }
            Some(_) => {}
            None => {
                self.stopping = Some(Stopping {
                    deadline,
                    latest,
                    signal: waiting,
                    unhealthy: request.unhealthy,
                    timed_out: false,
                });
            }
        }
        self.reloaded(Err("it is ending".to_owned()));
        self.tell_stopping();
        Ok(())
    }

    pub(super) fn kill(&mut self, unhealthy: bool) -> Result<(), String> {
        self.permit(None);
        self.keep = unhealthy;
        if self.end.is_none() {
            let stopping = self.stopping.get_or_insert(Stopping {
                deadline: None,
                latest: None,
                signal: None,
                unhealthy,
                timed_out: false,
            });
            stopping.deadline = None;
            self.tell_stopping();
        }
        self.kill_all();
        Ok(())
    }

    pub(super) fn signal(&self, signal: i32, group: bool) -> Result<(), String> {
        if !(1..=64).contains(&signal) {
            return Err(not_a_signal(signal));
        }
        if self.end.is_some() {
            return Err("it has ended".to_owned());
        }
        // The first one's group is that of what it has left behind, if it has any.
        let group = group && self.first_end.is_none();
        let sent = match self.main.as_ref().filter(|main| !group && main.lives()) {
            Some(main) => main.signal(signal),
            // It has been reaped, and its number may be another's by now.
            None if self.first_end.is_some() => return Err("it has ended".to_owned()),
            None => sys::signal_child(self.pid, signal, group),
        };
        sent.map_err(|error| {
            format!(
                "cannot send signal {signal} to process {}: {error}",
                self.started.pid
            )
        })
    }

    /// A stopped process does not see a signal before it goes on.
    pub(super) fn wake(&self, group: bool) {
        let _ = self.signal(libc::SIGCONT, group);
    }

    fn hello(&self) -> ShimMessage {
        let phase = if self.stopping.is_some() || self.end.is_some() {
            ShimPhase::Stopping
        } else {
            ShimPhase::Running
        };
        let status = ShimStatus {
            instance: self.request.instance.clone(),
            generation: self.request.generation,
            phase,
            started: self.started.clone(),
            notify: self.notify.as_ref().map(Notify::state).unwrap_or_default(),
            loss: self.all_loss(),
            previous_exit: self.previous_exit.clone(),
            restarts: self.restarts,
            kill_in_ms: self
                .stopping
                .as_ref()
                .and_then(|stopping| stopping.deadline)
                .map(|deadline| {
                    let left = deadline.saturating_duration_since(Instant::now());
                    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
                }),
        };
        ShimMessage::Hello {
            v: PROTOCOL,
            status: Box::new(status),
        }
    }

    pub(super) fn tell_stopping(&mut self) {
        if !self.told_stopping {
            self.told_stopping = true;
            self.tell(&ShimMessage::Stopping);
        }
    }

    pub(super) fn tell(&mut self, message: &ShimMessage) {
        for client in self.connections.iter_mut().filter(|client| client.watching) {
            client.send(message);
        }
    }
}

fn not_a_signal(signal: i32) -> String {
    format!("{signal} is not the number of a signal")
}
