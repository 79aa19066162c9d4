//! A peer that speaks ZMTP by itself: it does what it wants, when it wants.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use blackhole_bus_schema::rpc::ConnectOptions;
use blackhole_bus_schema::rpc::header::Header;

use super::PATIENCE;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

pub(crate) struct Raw(UnixStream);

impl Raw {
    /// Connects and proves itself (ZMTP 3.0, PLAIN as of RFC 24).
    pub(crate) fn connect(options: &ConnectOptions) -> io::Result<Self> {
        let stream = UnixStream::connect(&options.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut raw = Self(stream);
        let mut greeting = [0_u8; 64];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3;
        greeting[12..17].copy_from_slice(b"PLAIN");
        raw.0.write_all(&greeting)?;
        raw.0.read_exact(&mut greeting)?;
        let (name, token) = (options.instance.to_string(), options.token.as_bytes());
        let mut hello = b"\x05HELLO".to_vec();
        hello.push(u8::try_from(name.len()).unwrap());
        hello.extend(name.as_bytes());
        hello.push(u8::try_from(token.len()).unwrap());
        hello.extend(token);
        raw.frame(COMMAND, &hello)?;
        raw.read_frame()?;
        raw.frame(COMMAND, b"\x08INITIATE\x0bSocket-Type\0\0\0\x06DEALER")?;
        raw.read_frame()?;
        Ok(raw)
    }

    fn frame(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        let mut frame = match u8::try_from(body.len()) {
            Ok(length) => vec![flags, length],
            Err(_) => [&[flags | LONG][..], &(body.len() as u64).to_be_bytes()].concat(),
        };
        frame.extend(body);
        self.0.write_all(&frame)
    }

    fn read_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0_u8; 2];
        self.0.read_exact(&mut head)?;
        let mut length = u64::from(head[1]);
        if head[0] & LONG != 0 {
            let mut long = [0_u8; 8];
            long[0] = head[1];
            self.0.read_exact(&mut long[1..])?;
            length = u64::from_be_bytes(long);
        }
        let mut body = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    pub(crate) fn send(&mut self, header: &Header<'_>, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::new();
        header.encode_into(&mut bytes);
        self.frame(MORE, &bytes)?;
        self.frame(0, payload)
    }

    /// The next message's header. What the library asks of the connection is skipped.
    pub(crate) fn receive(&mut self) -> io::Result<Header<'static>> {
        loop {
            let (flags, body) = self.read_frame()?;
            if flags & COMMAND == 0 && flags & MORE != 0 {
                return Ok(Header::decode(&body).unwrap().into_owned());
            }
        }
    }

    /// Whether the other end has closed the connection; what came is thrown away.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        loop {
            match self.0.read(&mut [0; 4096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }
}
