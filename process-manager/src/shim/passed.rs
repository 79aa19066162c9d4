//! Descriptors that a service finds when it starts: the sockets of its
//! configuration and what it stored itself (`FDSTORE=1`).
//!
//! They belong to the shim, which hands each process of its service copies, and
//! between two lives of the service to a [keeper](super::keeper). So a connection
//! that comes meanwhile waits in the socket's backlog, whether or not a daemon lives.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use blackhole_bus_schema::process::{SocketSpec, SpawnFailure, SpawnStep};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::hint::Who;
use super::keeper::{self, Keeper};
use super::prepare::failure;
use super::protocol::SpawnRequest;
use super::{server, sys};

/// Mode of a Unix socket's file where none is configured: for the service's own
/// user and group.
const USUAL_MODE: u32 = 0o660;

/// What a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    /// Its name in `LISTEN_FDNAMES`.
    pub(crate) name: String,
    /// Where it listens; `None` is one that the service stored.
    #[serde(default)]
    listen: Option<String>,
    /// It stays although its other end has gone (`FDPOLL=0`).
    #[serde(default)]
    unwatched: bool,
    /// Device and inode of the file that was made for it, of a Unix socket: no
    /// other file is removed with it.
    #[serde(default)]
    file: Option<(u64, u64)>,
}

/// All descriptors of one instance.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub(crate) items: Vec<(Item, OwnedFd)>,
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
    ///
    /// # Errors
    /// When a socket cannot be opened; what there is comes with it, to be kept for the next start.
    pub(crate) fn open(request: &SpawnRequest, who: &Who) -> Result<Self, (SpawnFailure, Self)> {
        let settings = &request.settings;
        let room = usize::try_from(settings.fd_store).unwrap_or(usize::MAX);
        let mut had = Self {
            // Most instances never have any.
            items: match keeper::keeps(&request.socket) {
                true => keeper::take(&request.socket),
                false => Vec::new(),
            },
            room,
        };
        // One whose file somebody has removed cannot be reached any more: it is opened anew.
        had.items.retain(|(item, _)| !item.is_out_of_reach());
        for (name, spec) in &settings.sockets {
            if had.items.iter().any(|(item, _)| item.is(name, spec)) {
                continue;
            }
            match listen(spec, who) {
                Ok((socket, file)) => {
                    let item = Item {
                        name: name.clone(),
                        listen: Some(spec.listen.clone()),
                        unwatched: false,
                        file,
                    };
                    had.items.push((item, socket));
                }
                Err(error) => return Err((not_opened(name, spec, &error), had)),
            }
        }
        // In the order of the configuration, then what was stored.
        let mut items = Vec::with_capacity(had.items.len());
        for (name, spec) in &settings.sockets {
            let found = had.items.iter().position(|(item, _)| item.is(name, spec));
            items.extend(found.map(|at| had.items.remove(at)));
        }
        for (item, _) in had.items.iter().filter(|(item, _)| item.listen.is_some()) {
            remove_path(item);
        }
        had.items.retain(|(item, _)| item.listen.is_none());
        had.items.truncate(room);
        items.append(&mut had.items);
        Ok(Self { items, room })
    }

    /// Copies for a child, none of which has a number that the child will use.
    pub(crate) fn copies(&mut self) -> io::Result<Copies> {
        self.drop_hung_up();
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

    /// The service stores a descriptor; tells whether there was room. One that it
    /// has stored under this name is not stored twice.
    pub(crate) fn store(&mut self, name: &str, fd: OwnedFd, unwatched: bool) -> bool {
        let mut stored = self.items.iter_mut();
        let known = stored.find(|(item, known)| {
            item.listen.is_none() && item.name == name && sys::is_same_file(known, &fd)
        });
        if let Some((item, _)) = known {
            item.unwatched = unwatched;
            return true;
        }
        if self.stored() >= self.room {
            self.drop_hung_up();
        }
        if self.stored() >= self.room {
            return false;
        }
        let item = Item {
            name: name.to_owned(),
            listen: None,
            unwatched,
            file: None,
        };
        self.items.push((item, fd));
        true
    }

    /// How many descriptors the service has stored.
    fn stored(&self) -> usize {
        let stored = self.items.iter().filter(|(item, _)| item.listen.is_none());
        stored.count()
    }

    /// What was stored and is hung up is stored no longer.
    fn drop_hung_up(&mut self) {
        self.items
            .retain(|(item, fd)| item.listen.is_some() || item.unwatched || !is_hung_up(fd));
    }

    /// The service gives up what it stored under a name; tells whether there was any.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let before = self.items.len();
        self.items
            .retain(|(item, _)| item.listen.is_some() || item.name != name);
        self.items.len() < before
    }

    /// Closes everything, for good.
    pub(crate) fn close(mut self) {
        self.clear();
    }

    /// The same where who has them lives on.
    pub(crate) fn clear(&mut self) {
        for (item, _) in self.items.drain(..) {
            remove_path(&item);
        }
    }

    /// Begins to wait for a successor. To be called before the instance's lock is
    /// given up, so that whoever takes it finds the keeper.
    pub(crate) fn keep(self, socket: &Path) -> Option<Keeper> {
        if self.items.is_empty() {
            return None;
        }
        match Keeper::new(socket, self) {
            Ok(keeper) => Some(keeper),
            Err((error, passed)) => {
                server::note(&format!("sockets are not kept: {error}"));
                passed.close();
                None
            }
        }
    }
}

impl Item {
    /// Whether it is the socket that is configured like this.
    fn is(&self, name: &str, spec: &SocketSpec) -> bool {
        self.name == name && self.listen.as_ref() == Some(&spec.listen)
    }

    /// It listens on a path that is not there any more.
    fn is_out_of_reach(&self) -> bool {
        let listen = self.listen.as_deref();
        let path = listen.filter(|listen| listen.starts_with('/'));
        path.is_some_and(|path| {
            let there = fs::symlink_metadata(path);
            there.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        })
    }
}

/// Removes the file of a Unix socket that nobody will listen on, if it is still there.
fn remove_path(item: &Item) {
    let listen = item.listen.as_ref();
    let Some(path) = listen.filter(|listen| listen.starts_with('/')) else {
        return;
    };
    let own = match item.file {
        Some(file) => fs::symlink_metadata(path).is_ok_and(|there| identity(&there) == file),
        // A shim of an earlier version made it.
        None => is_socket(Path::new(path)),
    };
    if own {
        let _ = fs::remove_file(path);
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket())
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
        io::ErrorKind::AlreadyExists => {
            "what stands there is no socket, and is left alone: remove it, or choose another path"
        }
        _ => "",
    };
    let errno = error.raw_os_error().unwrap_or(0);
    let operation = format!("open socket {name} on {}", spec.listen);
    failure(SpawnStep::PrepareEnvironment, operation, errno, hint)
}

/// A socket that listens, and the file that was made for it.
type Listening = (OwnedFd, Option<(u64, u64)>);

/// Opens a socket that listens.
fn listen(spec: &SocketSpec, who: &Who) -> io::Result<Listening> {
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
    Ok((socket, None))
}

fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
    Ok(rustix::net::socket_with(family, kind, flags, None)?)
}

fn listen_unix(path: &Path, mode: u32, backlog: i32, who: &Who) -> io::Result<Listening> {
    match fs::symlink_metadata(path) {
        Err(_) => {}
        // It is somebody's, and may be worth something.
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        // One that nobody listens on any more is replaced, another is not.
        Ok(_) => match keeper::connect(path, SocketType::STREAM) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Also where its backlog is full, or it is of another kind.
            _ => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        },
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
    let made = prepared.and_then(|()| {
        rustix::net::listen(&socket, backlog)?;
        Ok(identity(&fs::symlink_metadata(path)?))
    });
    match made {
        Ok(file) => Ok((socket, Some(file))),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn room(room: usize) -> Passed {
        Passed {
            items: Vec::new(),
            room,
        }
    }

    #[test]
    fn what_is_hung_up_takes_no_room() {
        let mut passed = room(2);
        for _ in 0..10 {
            let (end, other) = std::os::unix::net::UnixStream::pair().unwrap();
            drop(other);
            assert!(passed.store("connection", end.into(), false));
        }
        let (end, other) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(other);
        // It stays although its other end has gone.
        assert!(passed.store("kept", end.into(), true));
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(passed.store("lives", end.into(), false));
        let (end, _another) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!passed.store("too many", end.into(), false));
        assert_eq!(passed.stored(), 2);
    }

    #[test]
    fn the_same_one_is_stored_once() {
        let mut passed = room(2);
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        for _ in 0..10 {
            let copy = end.try_clone().unwrap();
            assert!(passed.store("connection", copy.into(), false));
        }
        assert_eq!(passed.stored(), 1);
        // Another file, though of the same kind and name.
        let (end, _another) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(passed.store("connection", end.into(), false));
        assert_eq!(passed.stored(), 2);
    }
}
