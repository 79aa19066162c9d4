//! What a service says of itself: its datagrams on `NOTIFY_SOCKET`, see sd_notify(3).
//!
//! | assignment | what it does |
//! |---|---|
//! | `READY=1`, `STOPPING=1`, `STATUS=` | stands in the state |
//! | `RELOADING=1`, `MONOTONIC_USEC=` | it is not ready until it says so again; answers a reload |
//! | `WATCHDOG=1` | a sign of life |
//! | `WATCHDOG=trigger` | it is stopped as an unhealthy one |
//! | `MAINPID=` | the process that signals go to and whose end is the service's; one below the shim |
//! | `EXTEND_TIMEOUT_USEC=` | while it is being stopped: more time, up to ten times its grace in all; while its startup probe has not passed: the same, up to ten times what that allows |
//! | `FDSTORE=1`, `FDNAME=`, `FDPOLL=0`, `FDSTOREREMOVE=1` | stored descriptors |
//! | `BARRIER=1` | its descriptor is closed when all before it has been taken in |

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blackhole_bus_schema::process::NotifyState;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, UCred};
use rustix::process::Pid;

use super::exec::monotonic_ns;
use super::tree;

/// Longest datagram taken, in bytes; a longer one is dropped.
const MAX_DATAGRAM: usize = 8 * 1024;

/// Longest status kept, in bytes.
const MAX_STATUS: usize = 1024;

/// Datagrams taken at once, so that a service that sends without end does not
/// keep its shim from everything else.
const AT_ONCE: usize = 64;

/// Most descriptors of one message, as the kernel has it (`SCM_MAX_FD`).
const MOST_DESCRIPTORS: usize = 253;

/// Longest name of a stored descriptor, in bytes, see sd_notify(3).
const MAX_NAME: usize = 255;

/// What one datagram says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    ready: bool,
    stopping: bool,
    watchdog: bool,
    trigger: bool,
    reloading: bool,
    monotonic_us: Option<u64>,
    status: Option<String>,
    main_pid: Option<i32>,
    extend_us: Option<u64>,
    store: bool,
    remove: bool,
    name: Option<String>,
    unwatched: bool,
}

/// What a service asks its shim for.
#[derive(Debug)]
pub(crate) enum Wish {
    /// It has found itself to be ill.
    Trigger,
    /// This process below the shim is its main one.
    Main(Pid),
    /// Time until it is killed, or has to be up, from now on.
    Extend(Duration),
    /// Keep these.
    Store {
        name: String,
        descriptors: Vec<OwnedFd>,
        unwatched: bool,
    },
    /// Do not keep what has this name.
    Remove(String),
}

/// Reads the assignments of a datagram; what is not known is skipped.
fn parse(datagram: &[u8]) -> Said {
    let mut said = Said::default();
    for line in datagram.split(|byte| *byte == b'\n') {
        match line {
            b"READY=1" => said.ready = true,
            b"STOPPING=1" => said.stopping = true,
            b"RELOADING=1" => said.reloading = true,
            b"WATCHDOG=1" => said.watchdog = true,
            b"WATCHDOG=trigger" => said.trigger = true,
            b"FDSTORE=1" => said.store = true,
            b"FDSTOREREMOVE=1" => said.remove = true,
            b"FDPOLL=0" => said.unwatched = true,
            _ => parse_value(line, &mut said),
        }
    }
    said
}

/// Reads an assignment of something.
fn parse_value(line: &[u8], said: &mut Said) {
    fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
        std::str::from_utf8(text).ok()?.parse().ok()
    }
    if let Some(text) = line.strip_prefix(b"STATUS=") {
        let text = String::from_utf8_lossy(&text[..text.len().min(MAX_STATUS)]);
        said.status = Some(text.into_owned());
    } else if let Some(text) = line.strip_prefix(b"MONOTONIC_USEC=") {
        said.monotonic_us = number(text);
    } else if let Some(text) = line.strip_prefix(b"MAINPID=") {
        said.main_pid = number(text).filter(|pid| *pid > 1);
    } else if let Some(text) = line.strip_prefix(b"EXTEND_TIMEOUT_USEC=") {
        said.extend_us = number(text);
    } else if let Some(text) = line.strip_prefix(b"FDNAME=") {
        let fine = |byte: &u8| byte.is_ascii_graphic() && *byte != b':' || *byte == b' ';
        if !text.is_empty() && text.len() <= MAX_NAME && text.iter().all(fine) {
            said.name = String::from_utf8(text.to_vec()).ok();
        }
    }
}

/// How much a message changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// A status text or a sign of life: may wait a moment.
    Minor,
    /// Ready or stopping: at once.
    Major,
}

/// The socket of one service and what came over it.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    path: PathBuf,
    /// The user that the service runs as.
    uid: u32,
    ready: bool,
    stopping: bool,
    status: Option<String>,
    watchdog: Option<Instant>,
    reloading: bool,
    /// When it began to reload last, monotonic microseconds; by its own word
    /// where it gave one.
    reloading_us: Option<u64>,
    main_pid: Option<Pid>,
    wishes: Vec<Wish>,
}

fn socket(path: &Path, uid: u32) -> std::io::Result<UnixDatagram> {
    let socket = match UnixDatagram::bind(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            std::fs::remove_file(path)?;
            UnixDatagram::bind(path)?
        }
        other => other?,
    };
    socket.set_nonblocking(true)?;
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    if uid != rustix::process::geteuid().as_raw() {
        std::os::unix::fs::chown(path, Some(uid), None)?;
    }
    Ok(socket)
}

impl Notify {
    /// Binds the socket at `path`, in the place of a stale one, for a service of
    /// user `uid`. The caller holds the instance's lock.
    pub(crate) fn bind(path: &Path, uid: u32) -> std::io::Result<Self> {
        Ok(Self {
            socket: socket(path, uid)?,
            path: path.to_owned(),
            uid,
            ready: false,
            stopping: false,
            status: None,
            watchdog: None,
            reloading: false,
            reloading_us: None,
            main_pid: None,
            wishes: Vec::new(),
        })
    }

    /// Binds another socket where the file of this one is gone. Errors are not
    /// told: then it is as it was.
    pub(crate) fn bind_again(&mut self) {
        if !self.path.exists()
            && let Ok(socket) = socket(&self.path, self.uid)
        {
            self.socket = socket;
        }
    }

    /// The socket's path, for the service's environment.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the datagrams that are waiting; messages from outside the tree
    /// below this process are dropped.
    pub(crate) fn take(&mut self) -> Change {
        self.take_some().0
    }

    /// The same, and whether there may be more.
    fn take_some(&mut self) -> (Change, bool) {
        let mut change = Change::None;
        for _ in 0..AT_ONCE {
            let mut bytes = [0_u8; MAX_DATAGRAM];
            let mut space = [MaybeUninit::uninit();
                rustix::cmsg_space!(ScmCredentials(1), ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let Ok(message) = rustix::net::recvmsg(&self.socket, &mut parts, &mut control, flags)
            else {
                return (change, false);
            };
            // What is not stored is closed with this round: all that
            // sd_notify_barrier(3) waits for.
            let (mut sender, mut descriptors) = (None, Vec::new());
            for item in control.drain() {
                match item {
                    RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials),
                    RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
                    _ => {}
                }
            }
            if message.flags.contains(ReturnFlags::TRUNC)
                || !sender.is_some_and(|who| self.may_speak(who))
            {
                continue;
            }
            let mut said = parse(&bytes[..message.bytes]);
            if said.store && !descriptors.is_empty() {
                self.wishes.push(Wish::Store {
                    name: said.name.take().unwrap_or_else(|| "stored".to_owned()),
                    descriptors,
                    unwatched: said.unwatched,
                });
            } else if let (true, Some(name)) = (said.remove, said.name.take()) {
                self.wishes.push(Wish::Remove(name));
            }
            change = change.max(self.apply(said));
        }
        (change, true)
    }

    /// What was asked for since this was called last.
    pub(crate) fn wishes(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.wishes)
    }

    /// Whether it said that it has reloaded since `since_us`, in monotonic
    /// microseconds: it began after that, and is ready again.
    pub(crate) fn has_reloaded(&self, since_us: u64) -> bool {
        self.ready && !self.reloading && self.reloading_us.is_some_and(|began| began >= since_us)
    }

    /// The process that takes the first one's place is known to be this one.
    pub(crate) fn set_main(&mut self, pid: Pid) {
        self.main_pid = Some(pid);
    }

    /// Whether the sender belongs to the service: it is below the shim, or it is
    /// gone already and was of the service's user.
    fn may_speak(&self, sender: UCred) -> bool {
        match tree::is_below(sender.pid, rustix::process::getpid()) {
            Some(below) => below,
            None => sender.uid.is_root() || sender.uid.as_raw() == self.uid,
        }
    }

    fn apply(&mut self, said: Said) -> Change {
        let mut change = Change::None;
        if said.reloading {
            let now = monotonic_ns() / 1_000;
            self.reloading_us = Some(said.monotonic_us.unwrap_or(now));
        }
        // Both in one message: it has been quick.
        let reloading = (said.reloading || self.reloading) && !said.ready;
        if said.ready && said.reloading {
            change = Change::Major;
        }
        if (said.ready && !self.ready) || (said.reloading && self.ready && !said.ready) {
            self.ready = said.ready;
            change = Change::Major;
        }
        if reloading != self.reloading {
            self.reloading = reloading;
            change = Change::Major;
        }
        if said.trigger {
            self.wishes.push(Wish::Trigger);
        }
        if let Some(pid) = said.main_pid.and_then(Pid::from_raw) {
            self.wishes.push(Wish::Main(pid));
        }
        if let Some(time) = said.extend_us {
            self.wishes.push(Wish::Extend(Duration::from_micros(time)));
            change = change.max(Change::Minor);
        }
        if said.stopping && !self.stopping {
            self.stopping = true;
            change = Change::Major;
        }
        if said.status.is_some() && said.status != self.status {
            self.status = said.status;
            change = change.max(Change::Minor);
        }
        if said.watchdog {
            self.watchdog = Some(Instant::now());
            change = change.max(Change::Minor);
        }
        change
    }

    /// Another process is about to begin, and of the one before nothing is left: what that said
    /// is forgotten, also what nobody has read yet.
    pub(crate) fn reset(&mut self) {
        while self.take_some().1 {}
        (self.ready, self.stopping, self.reloading) = (false, false, false);
        (self.status, self.watchdog) = (None, None);
        (self.reloading_us, self.main_pid) = (None, None);
        self.wishes.clear();
    }

    /// All that was said so far.
    pub(crate) fn state(&self) -> NotifyState {
        NotifyState {
            ready: self.ready,
            stopping: self.stopping,
            status: self.status.clone(),
            watchdog_age_ms: self
                .watchdog
                .map(|last| u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX)),
            reloading: self.reloading,
            main_pid: self
                .main_pid
                .map(|pid| pid.as_raw_nonzero().get().unsigned_abs()),
        }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_and_others_skipped() {
        let said = parse(b"READY=1\nSTATUS=42 sessions\nMAINPID=7\nWATCHDOG=1\nFOO\n=\n");
        assert!(said.ready && said.watchdog && !said.stopping);
        assert_eq!(said.main_pid, Some(7));
        let more =
            parse(b"WATCHDOG=trigger\nEXTEND_TIMEOUT_USEC=5000\nFDSTORE=1\nFDNAME=a b\nFDPOLL=0");
        assert!(more.trigger && more.store && more.unwatched && !more.watchdog);
        assert_eq!(
            (more.extend_us, more.name.as_deref()),
            (Some(5000), Some("a b"))
        );
        let odd = parse(b"MAINPID=1\nFDNAME=a:b\nEXTEND_TIMEOUT_USEC=-1\nMONOTONIC_USEC=9");
        assert_eq!((odd.main_pid, odd.name, odd.extend_us), (None, None, None));
        assert_eq!(odd.monotonic_us, Some(9));
        assert_eq!(said.status.as_deref(), Some("42 sessions"));
        assert_eq!(
            parse(b"READY=0\nSTOPPING=1"),
            Said {
                stopping: true,
                ..Said::default()
            }
        );
        assert_eq!(parse(b"\xff\xfe\n\n"), Said::default());
        let long = [b"STATUS=".to_vec(), vec![b'x'; 5000]].concat();
        assert_eq!(parse(&long).status.unwrap().len(), MAX_STATUS);
    }

    #[test]
    fn only_news_is_a_change() {
        let temp = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let mut notify = Notify::bind(&temp.path().join("n"), uid).unwrap();
        let said = |text: &[u8]| parse(text);
        assert_eq!(notify.apply(said(b"READY=1")), Change::Major);
        assert_eq!(notify.apply(said(b"READY=1")), Change::None);
        assert_eq!(notify.apply(said(b"STATUS=a")), Change::Minor);
        assert_eq!(notify.apply(said(b"STATUS=a")), Change::None);
        assert_eq!(notify.apply(said(b"RELOADING=1")), Change::Major);
        assert!(!notify.state().ready);
        assert!(notify.state().reloading && !notify.has_reloaded(0));
        assert_eq!(notify.apply(said(b"READY=1")), Change::Major);
        assert!(!notify.state().reloading && notify.has_reloaded(0));
        let now = monotonic_ns() / 1_000;
        let text = format!("RELOADING=1\nMONOTONIC_USEC={now}\nREADY=1");
        assert!(!notify.has_reloaded(now));
        assert_eq!(notify.apply(said(text.as_bytes())), Change::Major);
        assert!(notify.has_reloaded(now) && !notify.has_reloaded(now + 1));
        assert_eq!(notify.apply(said(b"WATCHDOG=1")), Change::Minor);
        assert!(notify.state().watchdog_age_ms.is_some());
        assert_eq!(notify.apply(said(b"STOPPING=1")), Change::Major);
    }

    #[test]
    fn a_process_that_is_not_below_the_shim_is_not_heard() {
        let temp = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let path = temp.path().join("n");
        let mut notify = Notify::bind(&path, uid).unwrap();
        // This very process is the "shim" here, and nobody is below itself.
        UnixDatagram::unbound()
            .unwrap()
            .send_to(b"READY=1", &path)
            .unwrap();
        assert_eq!(notify.take(), Change::None);
        assert!(!notify.state().ready);
    }
}
