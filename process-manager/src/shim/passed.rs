//! Descriptors that a service finds when it starts: the sockets of its
//! configuration and what it stored itself (`FDSTORE=1`).
//!
//! They belong to the shim, which hands each process of its service copies. When
//! the service has ended and is to run again, the shim stays behind as a
//! *keeper*: it holds nothing but the descriptors, gives them to the next shim of
//! the instance over `<socket>.k`, and ends. It also ends, and closes them, when
//! that file is removed or nobody has come for a long time. So a connection that
//! comes between two lives of a service waits in the socket's backlog, whether
//! or not a daemon lives.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blackhole_bus_schema::process::{SocketSpec, SpawnFailure, SpawnStep};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use super::hint::Who;
use super::prepare::failure;
use super::protocol::SpawnRequest;
use super::{server, sys};

/// How long descriptors are kept for a successor: longer than any wait of the
/// usual restart policy. Then whoever connects is refused, as by a service that is down.
const KEPT: Duration = Duration::from_secs(600);

/// How long a keeper and a successor may take over their exchange.
const EXCHANGE: Duration = Duration::from_secs(5);

/// Longest description of one descriptor, in bytes.
const MAX_ITEM: usize = 1024;

/// Mode of a Unix socket's file where none is configured: for the service's own
/// user and group.
const USUAL_MODE: u32 = 0o660;

/// What a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Item {
    /// Its name in `LISTEN_FDNAMES`.
    name: String,
    /// Where it listens; `None` is one that the service stored.
    #[serde(default)]
    listen: Option<String>,
    /// It stays although its other end has gone (`FDPOLL=0`).
    #[serde(default)]
    unwatched: bool,
}

/// All descriptors of one instance.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    items: Vec<(Item, OwnedFd)>,
    /// Most that the service may store.
    room: usize,
}

/// What a child is given.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Joined as in `LISTEN_FDNAMES`.
    pub(crate) names: String,
}

impl Passed {
    /// Takes over what a keeper has of the instance, and opens what it has not.
    /// What is not wanted any more is closed.
    pub(crate) fn open(request: &SpawnRequest, who: &Who) -> Result<Self, SpawnFailure> {
        let settings = &request.settings;
        let mut kept = take(&keeper_path(&request.socket));
        let mut items = Vec::new();
        for (name, spec) in &settings.sockets {
            let same = |(item, _): &(Item, OwnedFd)| {
                item.name == *name && item.listen.as_ref() == Some(&spec.listen)
            };
            let found = kept.iter().position(same).map(|at| kept.swap_remove(at));
            let item = Item {
                name: name.clone(),
                listen: Some(spec.listen.clone()),
                unwatched: false,
            };
            let socket = match found {
                Some((_, socket)) => socket,
                None => {
                    let opened = listen(spec, who);
                    opened.map_err(|error| not_opened(name, spec, &error))?
                }
            };
            items.push((item, socket));
        }
        for (item, _) in kept.iter().filter(|(item, _)| item.listen.is_some()) {
            remove_path(item);
        }
        let room = usize::try_from(settings.fd_store).unwrap_or(usize::MAX);
        kept.retain(|(item, _)| item.listen.is_none());
        kept.truncate(room);
        items.append(&mut kept);
        Ok(Self { items, room })
    }

    /// Copies for a child, none of which has a number that the child will use.
    pub(crate) fn copies(&mut self) -> io::Result<Copies> {
        self.items
            .retain(|(item, fd)| item.listen.is_some() || item.unwatched || !is_hung_up(fd));
        let count = i32::try_from(self.items.len()).unwrap_or(i32::MAX);
        let above = super::exec::FIRST_PASSED.saturating_add(count);
        let mut descriptors = Vec::with_capacity(self.items.len());
        for (_, fd) in &self.items {
            descriptors.push(rustix::io::fcntl_dupfd_cloexec(fd, above)?);
        }
        let names: Vec<&str> = self
            .items
            .iter()
            .map(|(item, _)| item.name.as_str())
            .collect();
        Ok(Copies {
            descriptors,
            names: names.join(":"),
        })
    }

    /// The service stores a descriptor; tells whether there was room.
    pub(crate) fn store(&mut self, name: &str, fd: OwnedFd, unwatched: bool) -> bool {
        let stored = self.items.iter().filter(|(item, _)| item.listen.is_none());
        if stored.count() >= self.room {
            return false;
        }
        let item = Item {
            name: name.to_owned(),
            listen: None,
            unwatched,
        };
        self.items.push((item, fd));
        true
    }

    /// The service gives up what it stored under a name.
    pub(crate) fn remove(&mut self, name: &str) {
        self.items
            .retain(|(item, _)| item.listen.is_some() || item.name != name);
    }

    /// Closes everything, for good.
    pub(crate) fn close(self) {
        for (item, _) in &self.items {
            remove_path(item);
        }
    }

    /// Begins to wait for a successor. To be called before the instance's lock is
    /// given up, so that whoever takes it finds the keeper.
    pub(crate) fn keep(self, socket: &Path) -> Option<Keeper> {
        if self.items.is_empty() {
            return None;
        }
        match Keeper::listen(&keeper_path(socket)) {
            Ok((listener, watch, inode)) => Some(Keeper {
                path: keeper_path(socket),
                inode,
                listener,
                watch,
                passed: self,
            }),
            Err(error) => {
                server::note(&format!("sockets are not kept: {error}"));
                self.close();
                None
            }
        }
    }
}

/// Has whoever keeps descriptors of the instance with this socket close them.
pub fn release(socket: &Path) {
    let _ = fs::remove_file(keeper_path(socket));
}

/// Where a keeper listens.
fn keeper_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".k");
    path.into()
}

/// Removes the file of a Unix socket that nobody will listen on.
fn remove_path(item: &Item) {
    if let Some(path) = item
        .listen
        .as_ref()
        .filter(|listen| listen.starts_with('/'))
    {
        let _ = fs::remove_file(path);
    }
}

fn not_opened(name: &str, spec: &SocketSpec, error: &io::Error) -> SpawnFailure {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there: end it, or choose another address"
        }
        io::ErrorKind::PermissionDenied => {
            "this user may not listen there: ports below net.ipv4.ip_unprivileged_port_start are root's"
        }
        io::ErrorKind::AddrNotAvailable => "this host has no such address",
        io::ErrorKind::NotFound => "its directory does not exist: create it",
        _ => "",
    };
    let errno = error.raw_os_error().unwrap_or(0);
    let operation = format!("open socket {name} on {}", spec.listen);
    failure(SpawnStep::PrepareEnvironment, operation, errno, hint)
}

/// Opens a socket that listens.
fn listen(spec: &SocketSpec, who: &Who) -> io::Result<OwnedFd> {
    let backlog = i32::try_from(spec.backlog).unwrap_or(i32::MAX);
    let path = Path::new(&spec.listen);
    if path.is_absolute() {
        return listen_unix(path, spec.mode.unwrap_or(USUAL_MODE), backlog, who);
    }
    let address: SocketAddr = spec
        .listen
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = stream_socket(family)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    if spec.shared {
        rustix::net::sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
    Ok(rustix::net::socket_with(family, kind, flags, None)?)
}

fn listen_unix(path: &Path, mode: u32, backlog: i32, who: &Who) -> io::Result<OwnedFd> {
    // One that nobody listens on any more is replaced, another is not.
    match UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let socket = stream_socket(AddressFamily::UNIX)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let prepared = fs::set_permissions(path, fs::Permissions::from_mode(mode)).and_then(|()| {
        let own = rustix::process::geteuid().as_raw() == who.uid
            && rustix::process::getegid().as_raw() == who.gid;
        match own {
            true => Ok(()),
            false => std::os::unix::fs::chown(path, Some(who.uid), Some(who.gid)),
        }
    });
    if let Err(error) = prepared.and_then(|()| Ok(rustix::net::listen(&socket, backlog)?)) {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(socket)
}

/// A shim without a service, that waits for the next one.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    inode: u64,
    listener: OwnedFd,
    /// Readable when the listener's file is gone.
    watch: OwnedFd,
    passed: Passed,
}

impl Keeper {
    fn listen(path: &Path) -> io::Result<(OwnedFd, OwnedFd, u64)> {
        let _ = fs::remove_file(path);
        let flags = SocketFlags::CLOEXEC;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&listener, 4)?;
        let watch = server::watch(path)?;
        Ok((listener, watch, fs::symlink_metadata(path)?.ino()))
    }

    /// Waits for the next shim of the instance, gives it all there is, and ends;
    /// or closes it all.
    pub(crate) fn run(mut self, signals: &OwnedFd) {
        let until = Instant::now().checked_add(KEPT);
        loop {
            let left = until.map_or(KEPT, |until| {
                until.saturating_duration_since(Instant::now())
            });
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.watch, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            if super::wait::wait(&mut fds, Some(&timeout)).is_err() {
                continue;
            }
            let [asked, gone, signalled] = fds.map(|fd| !fd.revents().is_empty());
            let mut end = left.is_zero();
            if signalled {
                sys::drain_signals(signals, |signal| end |= sys::asks_to_end(signal));
            }
            if asked && self.give() {
                return;
            }
            if gone {
                let _ = rustix::io::read(&self.watch, &mut [0_u8; 4096]);
            }
            let own =
                || fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
            match (own(), end) {
                (true, false) => continue,
                (true, true) => {
                    let _ = fs::remove_file(&self.path);
                }
                (false, _) => {}
            }
            return self.passed.close();
        }
    }

    /// Gives all to who has connected; false when that was nobody to give it to.
    fn give(&mut self) -> bool {
        let flags = SocketFlags::CLOEXEC;
        let Ok(peer) = rustix::net::accept_with(&self.listener, flags) else {
            return false;
        };
        let trusted = rustix::net::sockopt::socket_peercred(&peer)
            .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid());
        if !trusted {
            return false;
        }
        // While it is still this keeper's: the next one has the same name.
        let _ = fs::remove_file(&self.path);
        let (kind, time) = (rustix::net::sockopt::Timeout::Send, Some(EXCHANGE));
        let _ = rustix::net::sockopt::set_socket_timeout(&peer, kind, time);
        for (item, fd) in &self.passed.items {
            if let Err(error) = send(peer.as_fd(), item, fd.as_fd()) {
                server::note(&format!("{} is not handed on: {error}", item.name));
            }
        }
        // Before the connection: with its end they are the successor's alone.
        self.passed.items.clear();
        true
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

/// What the keeper at `path` has; nothing where there is none.
fn take(path: &Path) -> Vec<(Item, OwnedFd)> {
    let mut items = Vec::new();
    let connected = (|| {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let (kind, time) = (rustix::net::sockopt::Timeout::Recv, Some(EXCHANGE));
        rustix::net::sockopt::set_socket_timeout(&socket, kind, time)?;
        Ok::<_, io::Error>(socket)
    })();
    let socket = match connected {
        Ok(socket) => socket,
        Err(error) => {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                // Its keeper was killed.
                let _ = fs::remove_file(path);
            }
            return items;
        }
    };
    loop {
        let mut bytes = [0_u8; MAX_ITEM];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match rustix::net::recvmsg(&socket, &mut parts, &mut control, flags) {
            Ok(received) if received.bytes > 0 => received.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            _ => return items,
        };
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if let (Ok(item), Some(fd)) = (rmp_serde::from_slice(&bytes[..received]), fd) {
            items.push((item, fd));
        }
    }
}

/// Whether a descriptor has been hung up, which ends its being stored, see
/// `FDPOLL` in sd_notify(3).
fn is_hung_up(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    super::wait::wait(&mut fds, Some(&Timespec::default()))
        .is_ok_and(|_| !fds[0].revents().is_empty())
}
