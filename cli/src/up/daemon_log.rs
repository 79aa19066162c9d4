//! The daemons' standard error: a file each, kept from growing for ever.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::Error;
use crate::human;

/// At a start, a log larger than this becomes `<name>.log.1`, bytes.
const LARGE: u64 = 4 * 1024 * 1024;
/// How much of the end of a log is looked at for its last lines, bytes.
const TAIL: u64 = 16 * 1024;

/// Opens a daemon's log for appending, after rotating it when it is large.
///
/// # Errors
/// When it cannot be opened.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > LARGE) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        // A log that stays large is no reason not to start.
        let _ = std::fs::rename(path, old);
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::io("open", path, source))
}

/// Length of a log now, to tell later lines from earlier ones.
pub(super) fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

/// The last lines written after `from`, printable, at most `most`.
pub(super) fn last_lines(path: &Path, from: u64, most: usize) -> Vec<String> {
    let Ok(mut file) = File::open(path) else {
        return Vec::new();
    };
    let end = file.metadata().map_or(0, |meta| meta.len());
    let begin = from.min(end).max(end.saturating_sub(TAIL));
    let mut bytes = Vec::new();
    if file
        .seek(SeekFrom::Start(begin))
        .and_then(|_| file.take(TAIL).read_to_end(&mut bytes))
        .is_err()
    {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(human::printable)
        .collect();
    lines[lines.len().saturating_sub(most)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_large_log_is_put_aside_at_the_start() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("bridge.log");
        open(&path).unwrap().write_all(b"first\n").unwrap();
        open(&path).unwrap().write_all(b"second\n").unwrap();
        assert_eq!(last_lines(&path, 0, 9), ["first", "second"]);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(LARGE + 1)
            .unwrap();
        drop(open(&path).unwrap());
        assert_eq!(length(&path), 0);
        assert!(temp.path().join("bridge.log.1").exists());
    }

    #[test]
    fn only_the_end_of_what_is_new_is_shown() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x.log");
        let mut file = open(&path).unwrap();
        file.write_all(b"old\n").unwrap();
        let mark = length(&path);
        file.write_all(b"a\nb\n\x1b[2Jc\n").unwrap();
        assert_eq!(last_lines(&path, mark, 2), ["b", "\\u{1b}[2Jc"]);
        assert_eq!(last_lines(&path, mark, 9).len(), 3);
        assert!(last_lines(&temp.path().join("none"), 0, 9).is_empty());
    }
}
