//! Finding a time in a log.

use super::parse::{Parsed, stamp_ns};
use super::{LogError, LogFiles, Position};

/// A stretch shorter than this is read line by line.
const NEAR: u64 = 64 * 1024;

impl LogFiles {
    /// Where the first line stands that is not older than `since` (Unix
    /// nanoseconds); the end when all are older.
    ///
    /// Found by halving, so that gigabytes cost a few reads. That relies on
    /// times that rise: after a clock was set back it may begin too late or too
    /// early, within what was written around that moment.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn at_time(&self, since: u64) -> Result<Position, LogError> {
        let mut file = self.last();
        while file > 0 {
            let first = self.first_time(Position { file, offset: 0 }, self.size(file))?;
            if first.is_some_and(|(_, time)| time < since) {
                break;
            }
            file -= 1;
        }
        let end = self.size(file);
        // All before `low` is older, the line at or after `high` is not (or is the end).
        let (mut low, mut high) = (0, end);
        while high.saturating_sub(low) > NEAR {
            let middle = low + (high - low) / 2;
            let Some(line) = self.line_after(Position {
                file,
                offset: middle,
            })?
            else {
                high = middle;
                continue;
            };
            match self.first_time(Position { file, offset: line }, high)? {
                Some((after, time)) if time < since => low = after,
                _ => high = middle,
            }
        }
        let mut at = Position { file, offset: low };
        loop {
            let page = self.page(at, super::PAGE_BYTES)?;
            for line in &page.lines {
                let older = Parsed::time(line)
                    .and_then(stamp_ns)
                    .is_none_or(|time| time < since);
                if !older {
                    return Ok(at);
                }
                at.offset += line.len() as u64 + 1;
            }
            if page.next == at || page.next.file != at.file {
                return Ok(page.next);
            }
            at = page.next;
        }
    }

    /// The first line with a time, from a line's beginning on and before `until`:
    /// where it ends, and its time.
    fn first_time(&self, from: Position, until: u64) -> Result<Option<(u64, u64)>, LogError> {
        let mut at = from;
        let mut head = [0; 64];
        while at.offset < until {
            let read = self.read_at(at, &mut head)?;
            let time = Parsed::time(&head[..read]).and_then(stamp_ns);
            let Some(after) = self.line_after(at)? else {
                return Ok(None);
            };
            if let Some(time) = time {
                return Ok(Some((after, time)));
            }
            at.offset = after;
        }
        Ok(None)
    }
}
