//! Between two lives of a service: a shim that holds nothing but descriptors.
//!
//! When the service has ended and is to run again, its shim stays behind as a
//! *keeper*, which gives the descriptors to the next shim of the instance over
//! `<socket>.k` and ends. It also ends, and closes them, when it is told to, when
//! that file is gone, or when nobody has come for a long time.
//!
//! The exchange, one message each (`SOCK_SEQPACKET`):
//!
//! ```text
//!   keeper ──► an item, its descriptor    for each
//!   keeper ──► END
//!   keeper ◄── TAKEN     it removes its file, hangs up, ends
//!         or ◄── RELEASE   it closes everything
//!         or ◄── nothing   who asked is gone or late: all is kept for the next one
//! ```

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::passed::{Item, Passed};
use super::{server, sys};

/// How long descriptors are kept for a successor: longer than any wait of the
/// usual restart policy. Then whoever connects is refused, as by a service that is down.
const KEPT: Duration = Duration::from_secs(600);

/// How often a keeper looks whether its file is still there, for when that went
/// with the whole run directory; who lets go says so. An inotify(7) instance for
/// each would tell at once, but a user may have 128 of them and a thousand keepers.
const LOOK: Duration = Duration::from_secs(10);

/// How long a keeper and a successor may take over each step of their exchange.
const EXCHANGE: Duration = Duration::from_secs(5);

/// How long one that lets go may take to do so.
const PARTING: Duration = Duration::from_secs(1);

/// Longest description of one descriptor, in bytes.
const MAX_ITEM: usize = 1024;

/// Successors that may wait: one lives at a time, those before it have died.
const BACKLOG: i32 = 16;

/// That was all. No item is one byte long.
const END: &[u8] = b".";
/// All was taken.
const TAKEN: &[u8] = b"+";
/// Nobody wants it any more.
const RELEASE: &[u8] = b"-";

/// Has whoever keeps descriptors of the instance with this socket close them.
pub fn release(socket: &Path) {
    let path = path(socket);
    if let Ok(keeper) = connect(&path, SocketType::SEQPACKET) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = rustix::net::send(&keeper, RELEASE, flags);
    }
    let _ = fs::remove_file(path);
}

/// Whether somebody may keep descriptors of the instance with this socket.
pub fn keeps(socket: &Path) -> bool {
    path(socket).exists()
}

/// [`release`], and returns when they are closed: who stops a service may be followed
/// at once by somebody who opens the same sockets. Blocks, for a second at most.
pub fn release_now(socket: &Path) {
    let_go(&path(socket));
}

/// The same for all instances of a run directory, one after the other.
pub fn release_all(run: &Path) {
    let Ok(entries) = fs::read_dir(run.join("i")) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "k") {
            let_go(&path);
        }
    }
}

fn let_go(path: &Path) {
    if let Ok(keeper) = connect(path, SocketType::SEQPACKET) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = rustix::net::send(&keeper, RELEASE, flags);
        await_end(&keeper);
    }
    let _ = fs::remove_file(path);
}

/// Waits until the other side has hung up, for [`PARTING`] at most.
fn await_end(keeper: &OwnedFd) {
    let until = Instant::now() + PARTING;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        // A hang-up is told whether it is asked for or not, see poll(2).
        let mut fds = [PollFd::new(keeper, PollFlags::empty())];
        match rustix::event::poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Where a keeper listens.
fn path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".k");
    path.into()
}

/// Connects to a Unix socket without ever waiting for who listens there: where its
/// backlog is full the error is `WouldBlock`.
pub(crate) fn connect(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A shim without a service, that waits for the next one.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    inode: u64,
    listener: OwnedFd,
    passed: Passed,
}

/// What became of a visit.
#[derive(Debug, PartialEq, Eq)]
enum Visit {
    /// The visitor has all.
    Taken,
    /// It is to be closed.
    Released,
    /// As if nobody had come.
    Nothing,
}

impl Keeper {
    /// Begins to listen for the instance with this socket.
    ///
    /// # Errors
    /// When that is not possible; what was to be kept comes back.
    pub(crate) fn new(socket: &Path, passed: Passed) -> Result<Self, (io::Error, Passed)> {
        let path = path(socket);
        match Self::listen(&path) {
            Ok((listener, inode)) => Ok(Self {
                path,
                inode,
                listener,
                passed,
            }),
            Err(error) => Err((error, passed)),
        }
    }

    fn listen(path: &Path) -> io::Result<(OwnedFd, u64)> {
        let _ = fs::remove_file(path);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&listener, BACKLOG)?;
        Ok((listener, fs::symlink_metadata(path)?.ino()))
    }

    /// Waits for the next shim of the instance, gives it all there is, and ends;
    /// or closes it all.
    pub(crate) fn run(mut self, signals: &OwnedFd) {
        let until = Instant::now().checked_add(KEPT);
        loop {
            let left = until.map_or(KEPT, |until| {
                until.saturating_duration_since(Instant::now())
            });
            let pause = left.min(LOOK);
            let timeout = Timespec {
                tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: pause.subsec_nanos().into(),
            };
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            if super::wait::wait(&mut fds, Some(&timeout)).is_err() {
                continue;
            }
            let [asked, signalled] = fds.map(|fd| !fd.revents().is_empty());
            let mut end = left.is_zero();
            if signalled {
                sys::drain_signals(signals, |signal| end |= sys::asks_to_end(signal));
            }
            if asked {
                match self.visited() {
                    Visit::Taken => return,
                    Visit::Released => end = true,
                    Visit::Nothing => {}
                }
            }
            if end || !self.is_there() {
                self.remove();
                return self.passed.close();
            }
        }
    }

    /// Whether its file is still its own.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode)
    }

    fn remove(&self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Somebody has connected: offers all, and hears what became of it.
    fn visited(&mut self) -> Visit {
        let flags = SocketFlags::CLOEXEC;
        let Ok(peer) = rustix::net::accept_with(&self.listener, flags) else {
            return Visit::Nothing;
        };
        let trusted = rustix::net::sockopt::socket_peercred(&peer)
            .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid());
        if !trusted {
            return Visit::Nothing;
        }
        for timeout in [Timeout::Send, Timeout::Recv] {
            let _ = set_socket_timeout(&peer, timeout, Some(EXCHANGE));
        }
        let mut offered = Ok(());
        for (item, fd) in &self.passed.items {
            offered = offered.and_then(|()| send(peer.as_fd(), item, fd.as_fd()));
        }
        let offered = offered.and_then(|()| {
            rustix::net::send(&peer, END, SendFlags::NOSIGNAL)?;
            Ok(())
        });
        match (hear(peer.as_fd()).as_deref(), offered) {
            (Some(TAKEN), Ok(())) => {
                // Before the connection: with its end they are the successor's alone,
                // and so is the name.
                self.passed.items.clear();
                self.remove();
                Visit::Taken
            }
            (Some(RELEASE), _) => {
                // Before the connection: its end tells that this is done.
                self.passed.clear();
                Visit::Released
            }
            (_, Err(error)) => {
                server::note(&format!("sockets are not handed on: {error}"));
                Visit::Nothing
            }
            _ => Visit::Nothing,
        }
    }
}

/// One short message; `None` where none comes.
fn hear(from: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut word = [0_u8; 8];
    loop {
        match rustix::net::recv(from, &mut word, RecvFlags::empty()) {
            Ok((0, _)) => return None,
            Ok((count, _)) => return word.get(..count).map(<[u8]>::to_vec),
            // Told once, before what was said by one who left without reading.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(_) => return None,
        }
    }
}

fn send(to: BorrowedFd<'_>, item: &Item, fd: BorrowedFd<'_>) -> io::Result<()> {
    let bytes = rmp_serde::to_vec_named(item).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let parts = [IoSlice::new(&bytes)];
    rustix::net::sendmsg(to, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What the keeper of the instance with this socket has; nothing where there is
/// none, or where it does not answer: then it keeps all for the next one.
pub(crate) fn take(socket: &Path) -> Vec<(Item, OwnedFd)> {
    let path = path(socket);
    let connected = connect(&path, SocketType::SEQPACKET).and_then(|keeper| {
        rustix::fs::fcntl_setfl(&keeper, OFlags::empty())?;
        set_socket_timeout(&keeper, Timeout::Recv, Some(EXCHANGE))?;
        Ok(keeper)
    });
    match connected {
        Ok(keeper) => receive(&keeper).unwrap_or_else(|error| {
            server::note(&format!(
                "{}: nothing is taken over: {error}",
                path.display()
            ));
            Vec::new()
        }),
        Err(error) => {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                // Its keeper was killed.
                let _ = fs::remove_file(path);
            }
            Vec::new()
        }
    }
}

fn receive(keeper: &OwnedFd) -> io::Result<Vec<(Item, OwnedFd)>> {
    let mut items = Vec::new();
    loop {
        let mut bytes = [0_u8; MAX_ITEM];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match rustix::net::recvmsg(keeper, &mut parts, &mut control, flags) {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        match &bytes[..received] {
            // It is of an earlier version, or was killed: nobody else has them.
            [] => return Ok(items),
            END => break,
            item => {
                if let (Ok(item), Some(fd)) = (rmp_serde::from_slice(item), fd) {
                    items.push((item, fd));
                }
            }
        }
    }
    rustix::net::send(keeper, TAKEN, SendFlags::NOSIGNAL)?;
    // Until it has hung up its name is its own.
    hear(keeper.as_fd());
    Ok(items)
}
