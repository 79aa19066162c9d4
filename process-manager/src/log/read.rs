//! Pages of whole lines.

use std::path::Path;

use blackhole_bus_schema::process::{LogChunk, ReadLog};

use super::files::FILLER;
use super::{LogError, LogFiles, Position};

/// Most bytes of lines in one answer: far below the transport's 16 MiB, and
/// short enough on the wire that an event behind it does not wait.
pub const PAGE_BYTES: usize = 256 * 1024;

/// Least bytes of a page: more than the longest line that a shim writes.
const MIN_PAGE_BYTES: usize = 128 * 1024;

/// Lines from one file.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// Whole lines without their newline.
    pub lines: Vec<Vec<u8>>,
    /// Where to go on.
    pub next: Position,
    /// Whether the page ended because it was full.
    pub full: bool,
}

impl LogFiles {
    /// Whole lines from `from` on, out of one file, at most `limit` bytes
    /// (newlines included). At the end of a rotated file `next` is the
    /// beginning of the following one.
    ///
    /// A line still being written is left for later. Of one longer than `limit`
    /// (no shim writes such) the rest is left out.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn page(&self, from: Position, limit: usize) -> Result<Page, LogError> {
        let mut buffer = vec![0; limit];
        let read = self.read_at(from, &mut buffer)?;
        buffer.truncate(read);
        let size = self.size(from.file);
        let rotated = from.file < self.last();
        let mut end = from.offset + read as u64;
        if !(end >= size && rotated) {
            match buffer.iter().rposition(|byte| *byte == b'\n') {
                Some(newline) => {
                    buffer.truncate(newline + 1);
                    end = from.offset + newline as u64 + 1;
                }
                None => match self.line_after(Position {
                    file: from.file,
                    offset: end,
                })? {
                    Some(after) => end = after,
                    None if rotated => end = size,
                    None => {
                        buffer.clear();
                        end = from.offset;
                    }
                },
            }
        }
        let mut lines: Vec<Vec<u8>> = buffer
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        if buffer.last().is_none_or(|byte| *byte == b'\n') {
            lines.pop();
        }
        let next = if end >= size && rotated {
            Position {
                file: from.file + 1,
                offset: 0,
            }
        } else {
            Position {
                file: from.file,
                offset: end,
            }
        };
        Ok(Page {
            lines,
            next,
            full: read == limit && next != from && end < size,
        })
    }

    /// Where the line after the one at `from` begins; `None` when it has no end yet.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn line_after(&self, from: Position) -> Result<Option<u64>, LogError> {
        let mut buffer = vec![0; PAGE_BYTES];
        let mut at = from;
        loop {
            let read = self.read_at(at, &mut buffer)?;
            if read == 0 {
                return Ok(None);
            }
            if let Some(index) = buffer[..read].iter().position(|byte| *byte == b'\n') {
                return Ok(Some(at.offset + index as u64 + 1));
            }
            at.offset += read as u64;
        }
    }

    /// Counts the lines between two places, for what is skipped.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn count_lines(&self, from: Position, to: Position) -> Result<u64, LogError> {
        let mut count = 0;
        let mut buffer = vec![0; PAGE_BYTES];
        for file in from.file..=to.file {
            let mut offset = if file == from.file { from.offset } else { 0 };
            let end = if file == to.file {
                to.offset
            } else {
                self.size(file)
            };
            while offset < end {
                let wanted = buffer
                    .len()
                    .min(usize::try_from(end - offset).unwrap_or(usize::MAX));
                let read = self.read_at(Position { file, offset }, &mut buffer[..wanted])?;
                if read == 0 {
                    break;
                }
                count += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
                offset += read as u64;
            }
        }
        Ok(count)
    }
}

/// Whether a line is not what is left of one in a damaged file.
pub(super) fn is_text(line: &[u8]) -> bool {
    line.first() != Some(&FILLER)
}

/// Answers one `process.read_log` from the files in `directory`: from the
/// cursor on, else from a time on, else the last lines. What does not fit in a
/// page ([`PAGE_BYTES`], or what the request says) is left for the next one.
///
/// # Errors
/// When the log is there but cannot be read.
pub fn read(directory: &Path, request: &ReadLog) -> Result<LogChunk, LogError> {
    let files = LogFiles::open(directory)?;
    let mut chunk = LogChunk {
        lines: Vec::new(),
        cursor: None,
        more: false,
        gap: false,
    };
    if files.is_empty() {
        chunk.gap = request.cursor.is_some();
        return Ok(chunk);
    }
    let first = Position { file: 0, offset: 0 };
    let mut at = match (request.cursor, request.since) {
        (Some(cursor), _) => files.find(cursor).unwrap_or_else(|| {
            chunk.gap = true;
            first
        }),
        (None, Some(0)) => first,
        (None, Some(since)) => files.at_time(since)?,
        (None, None) => files.tail(request.lines)?,
    };
    let wanted = request.max_bytes.map_or(PAGE_BYTES, |bytes| {
        usize::try_from(bytes).unwrap_or(PAGE_BYTES)
    });
    let page_bytes = wanted.clamp(MIN_PAGE_BYTES, PAGE_BYTES);
    let mut room = page_bytes;
    loop {
        let page = files.page(at, room)?;
        let bytes: usize = page.lines.iter().map(|line| line.len() + 1).sum();
        let moved = page.next != at;
        chunk
            .lines
            .extend(page.lines.into_iter().filter(|line| is_text(line)));
        at = page.next;
        room = room.saturating_sub(bytes);
        if page.full {
            chunk.more = true;
            break;
        }
        if !moved {
            break;
        }
        if room < page_bytes / 4 || room < MIN_PAGE_BYTES {
            // Not worth another read; whether anything stands there is soon known.
            chunk.more = files.page(at, MIN_PAGE_BYTES)?.next != at;
            break;
        }
    }
    chunk.cursor = files.cursor(at);
    Ok(chunk)
}
