//! What is published next of a followed log.

use std::path::Path;

use blackhole_bus_schema::process::LogCursor;

use crate::log::read::is_text;
use crate::log::{LogError, LogFiles, Position};

/// Most bytes of lines in one batch: ten thousand short lines travel in one message.
const BATCH_BYTES: usize = 128 * 1024;
/// A follower further behind than this is carried ahead …
const MAX_BEHIND: u64 = 2 * 1024 * 1024;
/// … to this far from the end.
const CARRIED_TO: u64 = 256 * 1024;

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At the beginning: there was no log yet.
    Beginning,
    /// At this place.
    At(LogCursor),
}

/// A batch of lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) lines: Vec<Vec<u8>>,
    /// Where its last line ends; `None` when there is no log.
    pub(super) end: Option<LogCursor>,
    /// Where to go on.
    pub(super) next: Start,
    /// Lines left out before it. Where a whole file is gone they cannot be
    /// counted: then it is one more than is known.
    pub(super) dropped: u64,
    /// More stands there already.
    pub(super) more: bool,
}

/// Where a follower begins: at `cursor`, else at the end. One who joins others
/// that are at `known` takes them back to an earlier place; lines that they
/// have seen come again for all.
pub(super) fn place(
    folder: &Path,
    cursor: Option<LogCursor>,
    known: Option<Start>,
) -> Result<Start, LogError> {
    let files = LogFiles::open(folder)?;
    let at = match (cursor, known) {
        (None, Some(known)) => return Ok(known),
        (None, None) if files.is_empty() => return Ok(Start::Beginning),
        (None, None) => files.tail(0)?,
        (Some(cursor), _) => files
            .find(cursor)
            .unwrap_or(Position { file: 0, offset: 0 }),
    };
    let at = match known {
        Some(Start::Beginning) => Position { file: 0, offset: 0 },
        Some(Start::At(known)) => files.find(known).map_or(at, |known| known.min(at)),
        None => at,
    };
    Ok(files.cursor(at).map_or(Start::Beginning, Start::At))
}

/// Reads what comes after `from`.
pub(super) fn next_batch(folder: &Path, from: Start) -> Result<Batch, LogError> {
    let files = LogFiles::open(folder)?;
    let first = Position { file: 0, offset: 0 };
    let (mut at, mut dropped) = match from {
        Start::Beginning => (first, 0),
        Start::At(cursor) => match files.find(cursor) {
            Some(at) => (at, 0),
            None => (first, u64::from(!files.is_empty())),
        },
    };
    if behind(&files, at) > MAX_BEHIND {
        let ahead = near_end(&files)?;
        dropped += files.count_lines(at, ahead)?;
        at = ahead;
    }
    loop {
        let mut page = files.page(at, BATCH_BYTES)?;
        page.lines.retain(|line| is_text(line));
        let moved = page.next != at;
        if page.lines.is_empty() && moved {
            at = page.next;
            continue;
        }
        // Said of the file that the lines are from, though reading goes on in the next one.
        let end = match page.next.file == at.file {
            true => page.next,
            false => Position {
                file: at.file,
                offset: files.size(at.file),
            },
        };
        let next = files.cursor(page.next).map_or(from, Start::At);
        return Ok(Batch {
            lines: page.lines,
            end: files.cursor(end),
            next,
            dropped,
            more: moved,
        });
    }
}

fn behind(files: &LogFiles, at: Position) -> u64 {
    let later: u64 = (at.file + 1..=files.last())
        .map(|file| files.size(file))
        .sum();
    later + files.size(at.file).saturating_sub(at.offset)
}

/// The beginning of a line near the end of the log.
fn near_end(files: &LogFiles) -> Result<Position, LogError> {
    let mut file = files.last();
    let mut missing = CARRIED_TO;
    while file > 0 && files.size(file) < missing {
        missing -= files.size(file);
        file -= 1;
    }
    let offset = files.size(file).saturating_sub(missing);
    match files.line_after(Position { file, offset })? {
        Some(offset) => Ok(Position { file, offset }),
        None => Ok(Position {
            file,
            offset: files.size(file),
        }),
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
