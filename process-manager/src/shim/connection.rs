//! Clients of one shim: bounded in number, in what they may send at once and in
//! what is kept for them. None of them can make the shim wait.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;

use super::protocol::{self, FrameError, MAX_MESSAGE_FRAME, MAX_REQUEST_FRAME, Request};

/// Clients at one time. The manager needs one; the rest is for people. A client
/// beyond it takes the place of the oldest one that does not watch.
pub(crate) const MAX_CONNECTIONS: usize = 16;

/// Bytes kept for a client that does not read. Beyond it the client is cut off:
/// when it comes back it is told how things stand.
const MAX_WAITING: usize = 256 * 1024;

/// Connections so far.
static SERIALS: AtomicU64 = AtomicU64::new(1);

/// One client.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// No other connection of this process has it.
    pub(crate) serial: u64,
    received: Vec<u8>,
    waiting: Vec<u8>,
    /// It wants to hear of changes.
    pub(crate) watching: bool,
    /// It is to be dropped.
    pub(crate) closed: bool,
}

/// Whether a peer is this user or root: nobody else is answered, whatever the
/// modes of the directories are.
pub(crate) fn trusted(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

/// Bytes that there is room for at least when something is read: a spawn of usual size.
const ROOM: usize = 8 * 1024;

/// Appends what has come to `received`, as far as there is room, and returns how many bytes that
/// are; 0 at the end. No more memory is touched than what came takes.
pub(crate) fn read_some(stream: &UnixStream, received: &mut Vec<u8>) -> io::Result<usize> {
    received.reserve(ROOM);
    Ok(rustix::io::read(
        stream,
        rustix::buffer::spare_capacity(received),
    )?)
}

impl Connection {
    /// Takes a client that has just connected, and what was read from it already.
    pub(crate) fn new(stream: UnixStream, watching: bool, received: Vec<u8>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            serial: SERIALS.fetch_add(1, Ordering::Relaxed),
            received,
            waiting: Vec::new(),
            watching,
            closed: false,
        })
    }

    /// Whether the client has closed its end.
    pub(crate) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        // HUP and ERR are told unasked, see poll(2).
        super::wait::wait(&mut fds, Some(&Timespec::default()))
            .is_ok_and(|_| !fds[0].revents().is_empty())
    }

    /// Whether something waits to be written to it.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads what has come, up to a bound, and returns the requests in it. What
    /// cannot be understood is counted in the second value.
    pub(crate) fn receive(&mut self) -> (Vec<Request>, u32) {
        match read_some(&self.stream, &mut self.received) {
            Ok(0) => self.closed = true,
            Ok(_) => {}
            Err(error) if again(&error) => {}
            Err(_) => self.closed = true,
        }
        let (mut requests, mut malformed) = (Vec::new(), 0);
        loop {
            match protocol::take(&mut self.received, MAX_REQUEST_FRAME) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => {
                    if self.received.is_empty() {
                        // It may be days until the next one.
                        self.received = Vec::new();
                    }
                    return (requests, malformed);
                }
                Err(FrameError::Malformed(_)) => malformed += 1,
                // The stream cannot be followed any more.
                Err(_) => {
                    self.closed = true;
                    return (requests, malformed);
                }
            }
        }
    }

    /// Sends a message, or keeps what does not go out at once.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T) {
        if self.closed {
            return;
        }
        let kept = protocol::encode(message, MAX_MESSAGE_FRAME, &mut self.waiting).is_ok();
        self.flush();
        if !kept || self.waiting.len() > MAX_WAITING {
            self.closed = true;
        }
    }

    /// Writes what is waiting as far as it goes without waiting.
    pub(crate) fn flush(&mut self) {
        while !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(count @ 1..) => {
                    self.waiting.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {
                    self.closed = true;
                    return;
                }
            }
        }
    }
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{RequestBody, ShimMessage};
    use super::*;

    fn pair() -> (UnixStream, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Connection::new(theirs, false, Vec::new()).unwrap())
    }

    #[test]
    fn requests_come_whole_however_they_are_cut() {
        let (mut ours, mut connection) = pair();
        let mut bytes = Vec::new();
        for id in 0..3 {
            let request = Request {
                id,
                request: RequestBody::Signal { signal: 1 },
            };
            protocol::encode(&request, MAX_REQUEST_FRAME, &mut bytes).unwrap();
        }
        let mut found = Vec::new();
        for byte in bytes {
            ours.write_all(&[byte]).unwrap();
            found.extend(connection.receive().0.into_iter().map(|request| request.id));
        }
        assert_eq!(found, [0, 1, 2]);
        assert!(!connection.closed);
    }

    #[test]
    fn a_client_is_there_until_it_closes() {
        let (mut ours, connection) = pair();
        ours.write_all(b"x").unwrap();
        assert!(!connection.is_gone());
        drop(ours);
        assert!(connection.is_gone());
    }

    #[test]
    fn a_frame_that_is_none_is_skipped_and_one_too_long_ends_it() {
        let (mut ours, mut connection) = pair();
        ours.write_all(&[3, 0, 0, 0, 1, 2, 3]).unwrap();
        assert_eq!(connection.receive().1, 1);
        assert!(!connection.closed);
        ours.write_all(&u32::MAX.to_le_bytes()).unwrap();
        connection.receive();
        assert!(connection.closed);
    }

    #[test]
    fn a_request_of_a_later_version_is_unknown_not_malformed() {
        let (mut ours, mut connection) = pair();
        let mut bytes = Vec::new();
        let later = of_a_later_version();
        protocol::encode(&later, MAX_REQUEST_FRAME, &mut bytes).unwrap();
        ours.write_all(&bytes).unwrap();
        let (requests, malformed) = connection.receive();
        assert_eq!(malformed, 0);
        assert_eq!(
            requests,
            [Request {
                id: 5,
                request: RequestBody::Unknown
            }]
        );
    }

    #[derive(Serialize)]
    struct Later {
        id: u64,
        request: LaterBody,
        also: &'static str,
    }

    #[derive(Serialize)]
    struct LaterBody {
        r#type: &'static str,
        warp: u8,
    }

    fn of_a_later_version() -> Later {
        Later {
            id: 5,
            request: LaterBody {
                r#type: "engage",
                warp: 9,
            },
            also: "new",
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off() {
        let (_ours, mut connection) = pair();
        let message = ShimMessage::Answer {
            id: 1,
            error: Some("x".repeat(1000)),
        };
        for _ in 0..10_000 {
            connection.send(&message);
        }
        assert!(connection.closed);
        assert!(connection.waiting.len() < MAX_WAITING + 2000);
    }
}
