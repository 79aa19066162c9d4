//! Files that are known to be files.
//!
//! What stands in the state directory is read by whoever starts. A FIFO in the
//! place of one file would hold up its reader until somebody writes (fifo(7)), a
//! device or a link would be read for something else. So such files are opened
//! here alone: never waiting, and refused when they are no regular files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens `path` as `options` say, with the flags of this module added.
///
/// # Errors
/// Those of open(2); `InvalidInput` when something else than a regular file
/// stands there.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY;
    let file = match options.custom_flags(flags).open(path) {
        // A link; a FIFO that nobody reads, or a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(no_file());
        }
        other => other?,
    };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(no_file()),
    }
}

/// Opens `path` as `options` say, never waiting, also through a link: for what
/// somebody may have put elsewhere on purpose, on another disk or to `/dev/null`.
///
/// # Errors
/// Those of open(2); `InvalidInput` when it is a FIFO or a socket.
pub fn open_linked(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match options.custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Err(no_file()),
        other => other?,
    };
    match file.metadata()?.file_type().is_fifo() {
        true => Err(no_file()),
        false => Ok(file),
    }
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")
}

/// Opens `path` for reading.
///
/// # Errors
/// As [`open`].
pub fn reader(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true))
}

/// Reads all of `path`.
///
/// # Errors
/// As [`open`]; `FileTooLarge` when it has more than `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = reader(path)?.take(most.saturating_add(1));
    if file.read_to_end(&mut bytes)? as u64 > most {
        let text = format!("it has more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Opens `path` (mode 0600) to be written from its beginning. What stands there and is no
/// regular file is removed first.
///
/// # Errors
/// As [`open`]; also when a directory stands there.
pub fn create(path: &Path) -> io::Result<File> {
    instead(path, OpenOptions::new().truncate(true))
}

/// Opens `path` as [`create`] does, with what it has: to be written over, which takes no room
/// that it does not have already.
///
/// # Errors
/// As [`create`].
pub fn overwrite(path: &Path) -> io::Result<File> {
    instead(path, &mut OpenOptions::new())
}

fn instead(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.write(true).create(true).mode(0o600);
    match open(path, options) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            std::fs::remove_file(path)?;
            open(path, options)
        }
        other => other,
    }
}

/// Writes `bytes` to `path` as [`create`] has it.
///
/// # Errors
/// As [`create`], and when it cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        assert_eq!(read(&at("file"), 4).unwrap(), b"text");
        let long = read(&at("file"), 3).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::FileTooLarge);
        let missing = read(&at("missing"), 3).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        for name in ["fifo", "link", "socket", "folder"] {
            let error = read(&at(name), 10).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        for (name, fine) in [
            ("file", true),
            ("link", true),
            ("fifo", false),
            ("socket", false),
        ] {
            let opened = open_linked(&at(name), OpenOptions::new().append(true));
            assert_eq!(opened.is_ok(), fine, "{name}");
        }
        for name in ["file", "fifo", "link", "socket"] {
            write(&at(name), b"new").unwrap();
            assert_eq!(read(&at(name), 3).unwrap(), b"new", "{name}");
        }
        assert!(write(&at("folder"), b"new").is_err());
        overwrite(&at("file")).unwrap().write_all(b"m").unwrap();
        assert_eq!(read(&at("file"), 3).unwrap(), b"mew");
    }
}
