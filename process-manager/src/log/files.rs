//! The files of one log, held open together so that a rotation meanwhile
//! neither hides one nor shows one twice.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use blackhole_bus_schema::process::LogCursor;
use blackhole_bus_schema::regular;

use super::gzip::Compressed;
use super::names::rotated;
use super::{CURRENT, LogError};

/// Bytes read at one time when lines are counted backwards.
const BLOCK: usize = 64 * 1024;

/// A byte in the files of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Index of the file, the oldest is 0.
    pub file: usize,
    /// Offset in it.
    pub offset: u64,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    content: Content,
    identity: u64,
    size: u64,
}

#[derive(Debug)]
enum Content {
    Plain(File),
    Compressed(Box<Compressed>),
    /// A rotated file that cannot be opened: only what is said of it.
    Missing(Vec<u8>),
}

/// What fills the place of text that is damaged. No line that a shim writes begins with it.
pub(super) const FILLER: u8 = 0;

impl Open {
    /// Opens a file as it stands there; `None` when it is not there or no log.
    fn at(path: PathBuf, compressed: bool) -> Result<Option<Self>, LogError> {
        let failed = |operation| {
            let path = path.clone();
            move |source| LogError {
                operation,
                path,
                source,
            }
        };
        let file = match regular::open_linked(&path, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            // Nobody's log.
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(None),
            Err(error) => return Err(failed("open")(error)),
        };
        let metadata = file.metadata().map_err(failed("stat"))?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let (identity, size, content) = if compressed {
            let Some(compressed) = Compressed::open(file).map_err(failed("read"))? else {
                return Ok(None);
            };
            let (identity, size) = (compressed.identity(), compressed.size());
            (identity, size, Content::Compressed(Box::new(compressed)))
        } else {
            (identity(&metadata), metadata.len(), Content::Plain(file))
        };
        Ok(Some(Self {
            path,
            content,
            identity,
            size,
        }))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.content {
            Content::Plain(file) => file.read_at(buffer, offset),
            Content::Compressed(file) => match file.read_at(buffer, offset) {
                Ok(0) | Err(_) if offset < self.size => {
                    let (from, to) = file.stretch(offset);
                    let text = self.damaged(from, to);
                    let end = usize::try_from(to - offset).unwrap_or(usize::MAX);
                    let count = buffer.len().min(end);
                    for (at, byte) in (offset - from..).zip(&mut buffer[..count]) {
                        let said = usize::try_from(at).ok().and_then(|at| text.get(at));
                        *byte = said.copied().unwrap_or(FILLER);
                    }
                    Ok(count)
                }
                other => other,
            },
            Content::Missing(text) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = text.get(from..).unwrap_or_default();
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
        }
    }

    /// What is said in the place of text that cannot be had any more; it is as long as that
    /// was, so that all places in the file stay true.
    fn damaged(&self, from: u64, to: u64) -> Vec<u8> {
        let name = self.path.file_name().unwrap_or_default();
        let bytes = to - from;
        // Before it may stand the beginning of a line.
        let text = format!(
            "{}{} is damaged: {bytes} bytes of text are left out\n",
            if from == 0 { "" } else { "\n" },
            name.display()
        );
        match text.len() as u64 <= bytes {
            true => text.into_bytes(),
            false => Vec::new(),
        }
    }

    /// A rotated file that is there and cannot be opened.
    fn missing(path: PathBuf, error: &LogError) -> Self {
        let name = path.file_name().unwrap_or_default();
        let source = &error.source;
        let text = format!(
            "{} cannot be read and is left out: {source}\n",
            name.display()
        );
        let metadata = std::fs::symlink_metadata(&path);
        Self {
            identity: metadata.map_or(0, |metadata| identity(&metadata)),
            size: text.len() as u64,
            content: Content::Missing(text.into_bytes()),
            path,
        }
    }
}

/// The files of one log, oldest first, as large as they were when opened.
#[derive(Debug)]
pub struct LogFiles {
    files: Vec<Open>,
}

impl LogFiles {
    /// Opens what is there of the log in `directory`; nothing is a log without files.
    ///
    /// The current file is opened first: when it is rotated meanwhile it is met
    /// twice and kept once. One that is compressed meanwhile is there in its
    /// other form. Compressed files that are not of this program are left out. Where
    /// a rotated file cannot be read, or a part of it, a line says so in its place.
    ///
    /// # Errors
    /// When the directory or the current file is there but cannot be opened.
    pub fn open(directory: &Path) -> Result<Self, LogError> {
        let current = Open::at(directory.join(CURRENT), false)?;
        let listed = rotated(directory).map_err(|source| LogError {
            operation: "list",
            path: directory.to_owned(),
            source,
        })?;
        let mut files: Vec<Open> = Vec::with_capacity(listed.len() + 1);
        for file in listed {
            let (plain, compressed) = (file.plain_path(directory), file.compressed_path(directory));
            // The trouble of one file is not that of the others.
            let open = match Open::at(plain.clone(), false) {
                Ok(None) => match Open::at(compressed.clone(), true) {
                    Err(error) => Some(Open::missing(compressed, &error)),
                    Ok(open) => open,
                },
                Err(error) => Some(Open::missing(plain, &error)),
                Ok(open) => open,
            };
            files.extend(open);
        }
        if let Some(current) = current {
            // What was rotated after it was opened is for the next time.
            match files
                .iter()
                .position(|file| file.identity == current.identity)
            {
                Some(index) => {
                    files.truncate(index);
                    files.push(current);
                }
                None => files.push(current),
            }
        }
        Ok(Self { files })
    }

    /// Whether there is no file at all.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Index of the file that is written to now.
    pub fn last(&self) -> usize {
        self.files.len().saturating_sub(1)
    }

    /// Size of a file when it was opened; 0 for one that is not there.
    pub fn size(&self, file: usize) -> u64 {
        self.files.get(file).map_or(0, |open| open.size)
    }

    /// The place to give to a client.
    pub fn cursor(&self, position: Position) -> Option<LogCursor> {
        let inode = self.files.get(position.file)?.identity;
        Some(LogCursor {
            inode,
            offset: position.offset,
        })
    }

    /// Finds a client's place again. `None` when it is gone: the file was
    /// rotated away or cut (then the place is not the beginning of a line).
    pub fn find(&self, cursor: LogCursor) -> Option<Position> {
        let file = self
            .files
            .iter()
            .position(|open| open.identity == cursor.inode)?;
        let offset = cursor.offset;
        if offset > self.size(file) {
            return None;
        }
        if offset > 0 {
            let mut before = [0];
            let read = self.files.get(file)?.read_at(&mut before, offset - 1);
            if !matches!(read, Ok(1)) || before != [b'\n'] {
                return None;
            }
        }
        Some(Position { file, offset })
    }

    /// Reads up to `buffer.len()` bytes at a place, as far as the file went when opened.
    pub(super) fn read_at(&self, position: Position, buffer: &mut [u8]) -> Result<usize, LogError> {
        let Some(open) = self.files.get(position.file) else {
            return Ok(0);
        };
        let rest = usize::try_from(open.size.saturating_sub(position.offset)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(rest);
        let mut filled = 0;
        while filled < wanted {
            let at = position.offset + filled as u64;
            match open.read_at(&mut buffer[filled..wanted], at) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(LogError {
                        operation: "read",
                        path: open.path.clone(),
                        source,
                    });
                }
            }
        }
        Ok(filled)
    }

    /// Where the last `lines` whole lines begin.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn tail(&self, lines: u32) -> Result<Position, LogError> {
        let mut missing = u64::from(lines);
        let mut buffer = vec![0; BLOCK];
        for file in (0..self.files.len()).rev() {
            let end = self.end_of_lines(file, &mut buffer)?;
            if missing == 0 {
                return Ok(Position { file, offset: end });
            }
            if end == 0 {
                continue;
            }
            // The newline at `end - 1` ends the last line; each one before it begins a later line.
            let mut upper = end - 1;
            while upper > 0 {
                let lower = upper.saturating_sub(BLOCK as u64);
                let block = &mut buffer[..(upper - lower) as usize];
                let read = self.read_at(
                    Position {
                        file,
                        offset: lower,
                    },
                    block,
                )?;
                for index in (0..read).rev().filter(|index| block[*index] == b'\n') {
                    missing -= 1;
                    if missing == 0 {
                        return Ok(Position {
                            file,
                            offset: lower + index as u64 + 1,
                        });
                    }
                }
                upper = lower;
            }
            missing -= 1;
            if missing == 0 {
                return Ok(Position { file, offset: 0 });
            }
        }
        Ok(Position { file: 0, offset: 0 })
    }

    /// Where the whole lines of a file end. A rotated file gets no more, so all of it counts.
    fn end_of_lines(&self, file: usize, buffer: &mut [u8]) -> Result<u64, LogError> {
        let size = self.size(file);
        if file != self.last() {
            return Ok(size);
        }
        let mut upper = size;
        while upper > 0 {
            let lower = upper.saturating_sub(buffer.len() as u64);
            let block = &mut buffer[..(upper - lower) as usize];
            let read = self.read_at(
                Position {
                    file,
                    offset: lower,
                },
                block,
            )?;
            if let Some(index) = block[..read].iter().rposition(|byte| *byte == b'\n') {
                return Ok(lower + index as u64 + 1);
            }
            upper = lower;
        }
        Ok(0)
    }
}

/// What a cursor calls a file. A file system gives the inode number of a
/// removed file to the next one at once, which with rotation is the next log:
/// so the time of birth, where the file system keeps it, is part of it.
pub(super) fn identity(metadata: &Metadata) -> u64 {
    let born = metadata
        .created()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let nanoseconds = born.map_or(0, |born| born.as_nanos() as u64);
    metadata.ino() ^ nanoseconds.rotate_left(24)
}
