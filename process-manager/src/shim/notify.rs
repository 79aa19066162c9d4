//! What a service says of itself: its datagrams on `NOTIFY_SOCKET`, see sd_notify(3).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blackhole_bus_schema::process::NotifyState;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, UCred};

use super::tree;

/// Longest datagram taken, in bytes; a longer one is dropped.
const MAX_DATAGRAM: usize = 8 * 1024;

/// Longest status kept, in bytes.
const MAX_STATUS: usize = 1024;

/// Datagrams taken at once, so that a service that sends without end does not
/// keep its shim from everything else.
const AT_ONCE: usize = 64;

/// What one datagram says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    ready: bool,
    stopping: bool,
    watchdog: bool,
    reloading: bool,
    status: Option<String>,
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
            _ => {
                if let Some(text) = line.strip_prefix(b"STATUS=") {
                    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_STATUS)]);
                    said.status = Some(text.into_owned());
                }
            }
        }
    }
    said
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
}

impl Notify {
    /// Binds the socket at `path`, in the place of a stale one, for a service of
    /// user `uid`. The caller holds the instance's lock.
    pub(crate) fn bind(path: &Path, uid: u32) -> std::io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_passcred(&socket, true)?;
        if uid != rustix::process::geteuid().as_raw() {
            std::os::unix::fs::chown(path, Some(uid), None)?;
        }
        Ok(Self {
            socket,
            path: path.to_owned(),
            uid,
            ready: false,
            stopping: false,
            status: None,
            watchdog: None,
        })
    }

    /// The socket's path, for the service's environment.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the datagrams that are waiting; messages from outside the tree
    /// below this process are dropped.
    pub(crate) fn take(&mut self) -> Change {
        let mut change = Change::None;
        for _ in 0..AT_ONCE {
            let mut bytes = [0_u8; MAX_DATAGRAM];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            // Descriptors sent along do not fit and are closed by the kernel,
            // which is all that sd_notify_barrier(3) waits for.
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let Ok(message) = rustix::net::recvmsg(&self.socket, &mut parts, &mut control, flags)
            else {
                break;
            };
            let sender = control.drain().find_map(|item| match item {
                RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials),
                _ => None,
            });
            if message.flags.contains(ReturnFlags::TRUNC)
                || !sender.is_some_and(|who| self.may_speak(who))
            {
                continue;
            }
            change = change.max(self.apply(parse(&bytes[..message.bytes])));
        }
        change
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
        if (said.ready && !self.ready) || (said.reloading && self.ready && !said.ready) {
            self.ready = said.ready;
            change = Change::Major;
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

    /// Another process begins: what the one before it said is forgotten, also
    /// what nobody has read yet.
    pub(crate) fn reset(&mut self) {
        while self.take() != Change::None {}
        (self.ready, self.stopping) = (false, false);
        (self.status, self.watchdog) = (None, None);
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
        assert_eq!(notify.apply(said(b"READY=1")), Change::Major);
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
