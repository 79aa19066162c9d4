//! ZMTP 3.1 (RFC 37) by hand, with the PLAIN (RFC 24) and NULL mechanisms:
//! just enough to say wrong things at any moment of a connection's life.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::wait::HANG;

/// Bits of a frame's first byte, RFC 37.
pub mod flag {
    /// Another frame of the same message follows.
    pub const MORE: u8 = 1;
    /// The length has eight bytes.
    pub const LONG: u8 = 2;
    /// A command, not a message.
    pub const COMMAND: u8 = 4;
}

/// The 64 bytes that open a connection.
pub fn greeting(mechanism: &str) -> Vec<u8> {
    let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 1];
    bytes.extend_from_slice(mechanism.as_bytes());
    bytes.resize(64, 0);
    bytes
}

/// A frame whose length is the body's, whatever the other flags say.
pub fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = match u8::try_from(body.len()) {
        Ok(length) if flags & flag::LONG == 0 => vec![flags, length],
        _ => announce(flags, body.len() as u64),
    };
    bytes.extend_from_slice(body);
    bytes
}

/// The head of a long frame that says it has so many bytes.
pub fn announce(flags: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![flags | flag::LONG];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// A message of two frames.
pub fn message(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(flag::MORE, header);
    bytes.extend(frame(0, payload));
    bytes
}

/// A command frame.
pub fn command(name: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(body);
    frame(flag::COMMAND, &bytes)
}

/// Name and value of a property, as READY and INITIATE carry them.
pub fn property(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
    bytes.extend_from_slice(value);
    bytes
}

/// PLAIN's HELLO.
pub fn hello(username: &str, password: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for text in [username, password] {
        body.push(text.len() as u8);
        body.extend_from_slice(text.as_bytes());
    }
    command(b"HELLO", &body)
}

/// A frame that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// See [`flag`].
    pub flags: u8,
    /// Its bytes.
    pub body: Vec<u8>,
}

impl Frame {
    /// Whether it is the command of this name.
    pub fn is_command(&self, name: &str) -> bool {
        self.flags & flag::COMMAND != 0 && self.body.get(1..=name.len()) == Some(name.as_bytes())
    }
}

/// One connection. Reads and writes that hang fail after [`HANG`].
#[derive(Debug)]
pub struct Raw {
    stream: UnixStream,
}

impl Raw {
    /// Connects and says nothing.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.set_write_timeout(Some(HANG))?;
        Ok(Self { stream })
    }

    /// A DEALER that has proven who it is.
    ///
    /// # Errors
    /// When it is refused.
    pub fn dealer(path: &Path, username: &str, password: &str) -> io::Result<Self> {
        Self::dealer_with(path, username, password, &[])
    }

    /// The same with further properties, for instance an `Identity`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn dealer_with(
        path: &Path,
        username: &str,
        password: &str,
        properties: &[(&str, &[u8])],
    ) -> io::Result<Self> {
        let mut raw = Self::connect(path)?;
        raw.send(&greeting("PLAIN"))?;
        raw.send(&hello(username, password))?;
        raw.receive_greeting()?;
        raw.expect("WELCOME")?;
        let mut body = property("Socket-Type", b"DEALER");
        for (name, value) in properties {
            body.extend(property(name, value));
        }
        raw.send(&command(b"INITIATE", &body))?;
        raw.expect("READY")?;
        Ok(raw)
    }

    /// A peer of a socket that asks for no credentials.
    ///
    /// # Errors
    /// When it is refused.
    pub fn null(path: &Path, socket_type: &str) -> io::Result<Self> {
        let mut raw = Self::connect(path)?;
        raw.send(&greeting("NULL"))?;
        raw.send(&command(
            b"READY",
            &property("Socket-Type", socket_type.as_bytes()),
        ))?;
        raw.receive_greeting()?;
        raw.expect("READY")?;
        Ok(raw)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the peer has closed the connection, or does not read for [`HANG`].
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends as much as the kernel takes without waiting; how much that was.
    ///
    /// # Errors
    /// When the peer has closed the connection.
    pub fn send_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_nonblocking(true)?;
        let result = self.stream.write(bytes);
        self.stream.set_nonblocking(false)?;
        match result {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    /// The peer's 64 bytes.
    ///
    /// # Errors
    /// When it closes the connection before.
    pub fn receive_greeting(&mut self) -> io::Result<()> {
        self.stream.read_exact(&mut [0; 64])
    }

    /// The next frame.
    ///
    /// # Errors
    /// When the peer closes the connection, or nothing comes for [`HANG`].
    pub fn receive(&mut self) -> io::Result<Frame> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        let [flags, length] = head;
        let length = if flags & flag::LONG == 0 {
            u64::from(length)
        } else {
            let mut bytes = [length, 0, 0, 0, 0, 0, 0, 0];
            self.stream.read_exact(&mut bytes[1..])?;
            u64::from_be_bytes(bytes)
        };
        let mut body = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.stream.read_exact(&mut body)?;
        Ok(Frame { flags, body })
    }

    /// The next message's frames; heartbeats between them are answered.
    ///
    /// # Errors
    /// As [`Raw::receive`].
    pub fn receive_message(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.receive()?;
            if frame.is_command("PING") {
                // RFC 37: a PONG echoes the PING's context, which follows its TTL.
                let context = frame.body.get(7..).unwrap_or_default().to_vec();
                self.send(&command(b"PONG", &context))?;
                continue;
            }
            if frame.flags & flag::COMMAND != 0 {
                continue;
            }
            frames.push(frame.body);
            if frame.flags & flag::MORE == 0 {
                return Ok(frames);
            }
        }
    }

    fn expect(&mut self, name: &str) -> io::Result<()> {
        let frame = self.receive()?;
        if frame.is_command(name) {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&frame.body).into_owned();
        Err(io::Error::other(format!("{text:?} instead of {name}")))
    }

    /// Reads until the peer has closed the connection.
    ///
    /// # Panics
    /// When it keeps it open for [`HANG`].
    #[track_caller]
    pub fn wait_closed(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                    ) =>
                {
                    return;
                }
                Err(error) => panic!("the peer keeps the connection: {error}"),
            }
        }
    }

    /// Sends the same bytes until the peer closes the connection; how many it
    /// took.
    ///
    /// # Panics
    /// When it has taken `limit` bytes and still wants more.
    #[track_caller]
    pub fn flood_until_closed(&mut self, bytes: &[u8], limit: u64) -> u64 {
        let mut sent = 0;
        while self.send(bytes).is_ok() {
            sent += bytes.len() as u64;
            assert!(sent < limit, "{sent} bytes were taken, and no end");
        }
        sent
    }
}
