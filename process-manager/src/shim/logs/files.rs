//! The current file, its rotation, and what is lost when a disk refuses.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use blackhole_bus_schema::process::LogSpec;
use blackhole_bus_schema::regular;

use crate::log::CURRENT;
use crate::log::age::Now;
use crate::log::names::{retain, rotated, rotated_path};

/// The files of one instance's log.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    spec: LogSpec,
    file: Option<File>,
    size: u64,
    /// The time since boot at which the current file is rotated whatever its size;
    /// only with `max_age`.
    stale: Option<Duration>,
    /// The clocks.
    pub(super) now: fn() -> Now,
    /// Number of the last rotated file, once it is known.
    last: Option<u64>,
    /// Lines dropped so far.
    pub(super) lost: u64,
    /// Why the last one was.
    pub(super) error: Option<String>,
}

impl Files {
    /// The log in `dir`. Files are opened with the first line.
    pub(super) fn new(dir: &Path, spec: LogSpec) -> Self {
        Self {
            dir: dir.to_owned(),
            spec,
            file: None,
            size: 0,
            stale: None,
            now: Now::read,
            last: None,
            lost: 0,
            error: None,
        }
    }

    /// Writes whole lines, into as many files as it takes. What cannot be
    /// written is dropped and counted.
    pub(super) fn write(&mut self, mut lines: &[u8]) {
        while !lines.is_empty() {
            match self.write_some(lines) {
                Ok(bytes) => lines = &lines[bytes..],
                Err((bytes, error)) => {
                    let lost = memchr::memchr_iter(b'\n', &lines[bytes..]).count();
                    self.lost += lost as u64;
                    self.error = Some(format!("{}: {error}", self.dir.join(CURRENT).display()));
                    // Opened anew with the next line: it may have been removed, or the disk be back.
                    self.file = None;
                    break;
                }
            }
        }
    }

    /// Writes lines into the current file and tells how many bytes; 0 after a
    /// rotation, which made room. With an error come the bytes of those lines that stand there.
    fn write_some(&mut self, lines: &[u8]) -> Result<usize, (usize, io::Error)> {
        if self.file.is_none() {
            self.open().map_err(|error| (0, error))?;
        }
        if self.size > 0 && self.stale.is_some_and(|stale| stale <= (self.now)().up) {
            self.rotate().map_err(|error| (0, error))?;
            return Ok(0);
        }
        let room = self.spec.max_bytes.saturating_sub(self.size);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let end = if lines.len() <= room {
            lines.len()
        } else if let Some(last) = memchr::memrchr(b'\n', &lines[..room]) {
            last + 1
        } else if self.size > 0 {
            self.rotate().map_err(|error| (0, error))?;
            return Ok(0);
        } else {
            // One line longer than a whole file.
            memchr::memchr(b'\n', lines).map_or(lines.len(), |last| last + 1)
        };
        let Some(file) = &mut self.file else {
            return Ok(0);
        };
        let (written, result) = write_all(file, &lines[..end]);
        match result {
            Ok(()) => {
                self.size += end as u64;
                Ok(end)
            }
            Err(error) => {
                // The whole lines among it stay; half a one would be counted and be there too.
                let whole = memchr::memrchr(b'\n', &lines[..written]).map_or(0, |last| last + 1);
                let _ = file.set_len(self.size + whole as u64);
                Err((whole, error))
            }
        }
    }

    fn open(&mut self) -> io::Result<()> {
        let path = self.dir.join(CURRENT);
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let mut file = regular::open_linked(&path, &mut options)?;
        let metadata = file.metadata()?;
        self.size = metadata.len();
        if self.size > 0 && ends_within_a_line(&path, self.size) {
            // A shim was killed, or the host died, in the middle of a write.
            file.write_all(b"\n")?;
            self.size += 1;
        }
        let age = self.spec.max_age_ms.map(Duration::from_millis);
        self.stale = age.map(|age| {
            let now = (self.now)();
            // Where the file system does not keep it, the time at which this shim met the
            // file. The wall clock is asked once; it may be set.
            let old = metadata
                .created()
                .map_or(Duration::ZERO, |at| now.since(at));
            now.up.saturating_add(age.saturating_sub(old))
        });
        self.file = Some(file);
        Ok(())
    }

    /// The current file gets its number; what is beyond the files kept goes.
    fn rotate(&mut self) -> io::Result<()> {
        let current = self.dir.join(CURRENT);
        let moved = if self.spec.max_files == 0 {
            std::fs::remove_file(&current)
        } else {
            let number = match self.last {
                Some(last) => last,
                None => rotated(&self.dir)?.last().map_or(0, |file| file.number),
            } + 1;
            self.last = Some(number);
            std::fs::rename(&current, rotated_path(&self.dir, number, ""))
        };
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = None;
        self.size = 0;
        // What could not be removed now is with the next rotation.
        let _ = retain(&self.dir, &self.spec, None);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn replace(&mut self, file: File) {
        self.file = Some(file);
    }
}

/// As `write_all`, but tells how far it got.
fn write_all(file: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn ends_within_a_line(path: &Path, size: u64) -> bool {
    let mut last = [b'\n'];
    let read = regular::open_linked(path, OpenOptions::new().read(true))
        .and_then(|file| file.read_at(&mut last, size - 1));
    matches!(read, Ok(1)) && last != [b'\n']
}
