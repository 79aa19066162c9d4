//! An idle shim: waits for a client, takes its spawn request, becomes the shim of that service.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use blackhole_bus_schema::process::SpawnFailure;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use super::connection::{self, Connection};
use super::exec::monotonic_ns;
use super::hook::{self, Before};
use super::keeper::Keeper;
use super::prepare::{self, Held, Refusal};
use super::protocol::{self, FirstRequest, FrameError, MAX_SPAWN_FRAME, ShimMessage, SpawnRequest};
use super::rehearsal::Rehearsal;
use super::server::{CANNOT_ACCEPT, note};
use super::service::Service;
use super::start;

/// How long a client that has begun to say what it wants may take to do so.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What an idle shim has from the fork server.
#[derive(Debug)]
pub(crate) struct Idle {
    pub(crate) server: Pid,
    pub(crate) listener: UnixListener,
    pub(crate) taken: OwnedFd,
    pub(crate) signals: OwnedFd,
    pub(crate) boot_id: String,
    pub(crate) rehearsal: Option<Rehearsal>,
}

impl Idle {
    /// Waits, serves one service, and returns when nothing of it is left, with the
    /// exit code for the fork server.
    pub(crate) fn run(self) -> i32 {
        match self.take() {
            Ok(Some(life)) => {
                life.run();
                0
            }
            Ok(None) => 0,
            Err(code) => code,
        }
    }

    /// Waits, and starts one service. Its life goes on at the caller's: a start takes some pages of
    /// stack that a service in its life needs no more.
    #[inline(never)]
    fn take(self) -> Result<Option<Life>, i32> {
        // Not inherited from the server, so that services do not inherit it either.
        blackhole_bus_schema::priority::raise();
        // Nobody could take an idle shim's place in a pool that has no server.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        if rustix::process::getppid() != Some(self.server) {
            return Ok(None);
        }
        // Orphans of the service become children of this process: none is lost sight of.
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            note(&format!("cannot become a subreaper: {error}"));
        }
        let nobody_waits = || {
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())) == Ok(0)
        };
        if let Some(rehearsal) = self.rehearsal.filter(|_| nobody_waits()) {
            rehearsal.run();
        }
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    note(&format!("cannot accept: {error}"));
                    return Err(CANNOT_ACCEPT);
                }
            }
        };
        // From here on its life is its own.
        let _ = rustix::process::set_parent_process_death_signal(None);
        let _ = rustix::process::setsid();
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let _ = rustix::io::write(&self.taken, &pid.to_ne_bytes());
        drop((self.taken, self.listener));
        if !connection::trusted(&stream) {
            note("a client of another user was refused");
            return Ok(None);
        }
        Ok(match receive(stream) {
            Ok(Some((request, client, begun))) => {
                serve(request, client, self.signals, self.boot_id, begun)
            }
            Ok(None) => None,
            Err(problem) => {
                note(&format!("no service started: {problem}"));
                None
            }
        })
    }
}

/// What a shim does once it has taken a request.
enum Life {
    /// It holds a service.
    Service(Box<Service>),
    /// There is none, and descriptors wait for the next attempt.
    Keeper(Box<Keeper>, OwnedFd),
}

impl Life {
    fn run(self) {
        match self {
            Self::Service(service) => service.run(),
            Self::Keeper(keeper, signals) => keeper.run(&signals),
        }
    }
}

/// Reads the spawn request, and tells when it began to come; `None` where none came.
fn receive(stream: UnixStream) -> Result<Option<(SpawnRequest, Connection, u64)>, String> {
    let mut begun = None;
    // The manager connects ahead: only when it has begun to speak is it late.
    let mut until = None;
    let mut received = Vec::new();
    let request: FirstRequest = loop {
        match protocol::take(&mut received, MAX_SPAWN_FRAME) {
            Ok(Some(request)) => break request,
            Ok(None) => {}
            Err(error) => {
                let text = match &error {
                    FrameError::Malformed(source) => format!("{error}: {source}"),
                    _ => error.to_string(),
                };
                refuse(stream, 0, &text);
                return Err(text);
            }
        }
        if let Some(until) = until {
            let left = Instant::saturating_duration_since(&until, Instant::now());
            if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
                return Err("the client did not say in time what it wants".into());
            }
        }
        let before = received.len();
        match connection::read_some(&stream, &mut received) {
            // An idle one that is not needed any more.
            Ok(0) if before == 0 => return Ok(None),
            Ok(0) => return Err("the client went away".into()),
            Ok(_) => {
                begun = begun.or_else(|| Some(monotonic_ns()));
                until = until.or_else(|| Instant::now().checked_add(REQUEST_TIMEOUT));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("cannot read from the client: {error}")),
        }
    };
    let id = request.id;
    let kind: String = request.request.r#type.chars().take(64).collect();
    match request.request.into_spawn() {
        Some(spawn) => {
            let client =
                Connection::new(stream, true, received).map_err(|error| error.to_string())?;
            Ok(Some((*spawn, client, begun.unwrap_or_else(monotonic_ns))))
        }
        None => {
            let text = match kind.as_str() {
                "spawn" => "a request for a spawn without what is to be spawned".to_owned(),
                _ => format!("the first request must be a spawn, not {kind:?}"),
            };
            refuse(stream, id, &text);
            Err(text)
        }
    }
}

fn refuse(stream: UnixStream, id: u64, error: &str) {
    if let Ok(mut client) = Connection::new(stream, false, Vec::new()) {
        client.send(&ShimMessage::Answer {
            id,
            error: Some(error.to_owned()),
        });
    }
}

fn serve(
    request: SpawnRequest,
    mut client: Connection,
    signals: OwnedFd,
    boot_id: String,
    begun: u64,
) -> Option<Life> {
    if let Ok(name) = std::ffi::CString::new(format!("bh:{}", request.instance)) {
        // The first 15 bytes are shown by ps.
        let _ = rustix::thread::set_name(&name);
    }
    let held = match prepare::hold(&request, &client, &boot_id) {
        Ok(held) => held,
        Err(Refusal { failure, held_by }) => {
            note(&format!("{}: {failure}", request.instance));
            client.send(&ShimMessage::SpawnFailed { failure, held_by });
            return None;
        }
    };
    let output = match &request.settings.hooks.before_start {
        None => None,
        Some(hook) => match hook::before_start(&request, hook, &client, &signals) {
            Ok(output) => Some(output),
            // As if it had never been asked for.
            Err(Before::Unwanted) => {
                held.lock.leave();
                return None;
            }
            Err(Before::Failed(failure)) => {
                not_started(&request, held, client, failure);
                return None;
            }
        },
    };
    let mut kept = None;
    match start::start(&request, begun, &mut kept) {
        Ok(running) => {
            let service = Service::new(request, held, signals, running, client, boot_id, output);
            Some(Life::Service(Box::new(service)))
        }
        Err(failure) => {
            let keeper = kept.and_then(|kept| kept.keep(&request.socket));
            not_started(&request, held, client, failure);
            keeper.map(|keeper| Life::Keeper(Box::new(keeper), signals))
        }
    }
}

/// Notes and tells why there is no service, and gives the instance up.
fn not_started(
    request: &SpawnRequest,
    mut held: Held,
    mut client: Connection,
    failure: SpawnFailure,
) {
    if let Err(error) = held.record.failed(&failure) {
        note(&format!(
            "{}: failure not recorded: {error}",
            request.instance
        ));
    }
    super::remove_sockets(&request.socket);
    held.lock.leave();
    client.send(&ShimMessage::SpawnFailed {
        failure,
        held_by: None,
    });
}
