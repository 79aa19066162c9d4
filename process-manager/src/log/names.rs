//! The files of a log on disk, and which of them stay.
//!
//! The current file is `log`. A rotation renames it to `log.00000001`, the next
//! one to `log.00000002`, and so on: names are given once and never move (as
//! with svlogd and s6-log), so that whoever reads, compresses or ships a file
//! needs no agreement with whoever rotates. A compressed file has `.gz` behind its
//! number; while it is made it is `.gz.part`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use blackhole_bus_schema::process::LogSpec;

use super::CURRENT;

/// Suffix of a compressed file.
pub(crate) const COMPRESSED: &str = ".gz";
/// Suffix of a file that is being made.
pub(crate) const UNFINISHED: &str = ".gz.part";

/// What is there of one rotated file. Both forms are there for a moment, when a
/// compressed one has just been finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotated {
    pub(crate) number: u64,
    pub(crate) plain: bool,
    pub(crate) compressed: bool,
}

impl Rotated {
    pub(crate) fn plain_path(&self, directory: &Path) -> PathBuf {
        rotated_path(directory, self.number, "")
    }

    pub(crate) fn compressed_path(&self, directory: &Path) -> PathBuf {
        rotated_path(directory, self.number, COMPRESSED)
    }

    /// Bytes on disk, and when the last line was written.
    fn measure(&self, directory: &Path) -> (u64, Option<SystemTime>) {
        let (mut bytes, mut last) = (0, None);
        for (there, path) in [
            (self.plain, self.plain_path(directory)),
            (self.compressed, self.compressed_path(directory)),
        ] {
            if let Some(metadata) = there.then(|| path.metadata().ok()).flatten() {
                bytes += metadata.len();
                last = metadata.modified().ok().max(last);
            }
        }
        (bytes, last)
    }

    /// Removes it in every form.
    fn remove(&self, directory: &Path) -> io::Result<()> {
        for suffix in ["", COMPRESSED, UNFINISHED] {
            match std::fs::remove_file(rotated_path(directory, self.number, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The path of a rotated file.
pub(crate) fn rotated_path(directory: &Path, number: u64, suffix: &str) -> PathBuf {
    directory.join(format!("{CURRENT}.{number:08}{suffix}"))
}

/// Reads a name: number and suffix.
pub(crate) fn parse(name: &str) -> Option<(u64, &str)> {
    let rest = name.strip_prefix(CURRENT)?.strip_prefix('.')?;
    let digits = rest
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(rest.len());
    // Shorter ones are somebody else's, or their number could be written in two ways.
    if digits < 8 {
        return None;
    }
    Some((rest[..digits].parse().ok()?, &rest[digits..]))
}

/// The rotated files of a log, oldest first. A directory that is not there has none.
pub(crate) fn rotated(directory: &Path) -> io::Result<Vec<Rotated>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files: Vec<Rotated> = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some((number, suffix)) = name.to_str().and_then(parse) else {
            continue;
        };
        let (plain, compressed) = (suffix.is_empty(), suffix == COMPRESSED);
        if plain || compressed {
            files.push(Rotated {
                number,
                plain,
                compressed,
            });
        }
    }
    files.sort_by_key(|file| file.number);
    files.dedup_by(|later, first| {
        let same = later.number == first.number;
        if same {
            first.plain |= later.plain;
            first.compressed |= later.compressed;
        }
        same
    });
    Ok(files)
}

/// Removes what is kept no longer, the oldest first, and returns what stays,
/// with the time at which the next file gets too old.
pub(crate) fn retain(
    directory: &Path,
    spec: &LogSpec,
    now: SystemTime,
) -> io::Result<(Vec<Rotated>, Option<SystemTime>)> {
    let files = rotated(directory)?;
    let limited = spec.max_age_ms.is_some() || spec.max_total_bytes.is_some();
    // The current file may grow to its largest.
    let total = spec
        .max_total_bytes
        .map(|total| total.saturating_sub(spec.max_bytes));
    let max_age = spec.max_age_ms.map(Duration::from_millis);
    let (mut kept, mut bytes, mut next) = (0, 0_u64, None);
    for file in files.iter().rev() {
        if kept >= usize::try_from(spec.max_files).unwrap_or(usize::MAX) {
            break;
        }
        if limited {
            let (size, last) = file.measure(directory);
            bytes = bytes.saturating_add(size);
            let expires = last
                .zip(max_age)
                .and_then(|(last, age)| last.checked_add(age));
            if total.is_some_and(|total| bytes > total)
                || expires.is_some_and(|expires| expires <= now)
            {
                break;
            }
            next = match (next, expires) {
                (Some(one), Some(other)) => Some(std::cmp::min::<SystemTime>(one, other)),
                (one, other) => one.or(other),
            };
        }
        kept += 1;
    }
    let (gone, stay) = files.split_at(files.len() - kept);
    let removed = gone.iter().try_for_each(|file| file.remove(directory));
    removed.map(|()| (stay.to_vec(), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(max_files: u32) -> LogSpec {
        LogSpec {
            max_bytes: 100,
            max_files,
            ..LogSpec::default()
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn write(directory: &Path, name: &str, bytes: usize, age: Duration) {
        let file = std::fs::File::create(directory.join(name)).unwrap();
        file.set_len(bytes as u64).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    const NEW: Duration = Duration::ZERO;

    #[test]
    fn names_are_read_as_they_are_written() {
        for number in [1, 42, 99_999_999, 100_000_000, 12_345_678_901] {
            for suffix in ["", COMPRESSED, UNFINISHED] {
                let path = rotated_path(Path::new("/x"), number, suffix);
                let name = path.file_name().unwrap().to_str().unwrap();
                assert_eq!(parse(name), Some((number, suffix)));
            }
        }
        for other in [
            "log",
            "log.",
            "log.1",
            "log.1.gz",
            "logs.00000001",
            "record",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn as_many_rotated_files_are_kept_as_asked_for_in_whatever_form() {
        let temp = tempfile::tempdir().unwrap();
        for name in [
            "log",
            "log.00000003",
            "log.00000004",
            "log.00000004.gz",
            "log.00000005.gz",
            "log.00000006",
            "log.00000003.gz.part",
            "log.1",
        ] {
            write(temp.path(), name, 10, NEW);
        }
        let (stay, next) = retain(temp.path(), &spec(2), SystemTime::now()).unwrap();
        assert_eq!(
            stay.iter().map(|file| file.number).collect::<Vec<_>>(),
            [5, 6]
        );
        assert_eq!(next, None);
        assert_eq!(
            names(temp.path()),
            ["log", "log.00000005.gz", "log.00000006", "log.1"]
        );
        retain(temp.path(), &spec(0), SystemTime::now()).unwrap();
        assert_eq!(names(temp.path()), ["log", "log.1"]);
    }

    #[test]
    fn all_files_together_stay_below_the_total() {
        let temp = tempfile::tempdir().unwrap();
        for number in 1..=9 {
            write(temp.path(), &format!("log.0000000{number}"), 90, NEW);
        }
        let spec = LogSpec {
            max_total_bytes: Some(100 + 3 * 90),
            ..spec(100)
        };
        let (stay, _) = retain(temp.path(), &spec, SystemTime::now()).unwrap();
        assert_eq!(
            stay.iter().map(|file| file.number).collect::<Vec<_>>(),
            [7, 8, 9]
        );
    }

    #[test]
    fn old_files_go_and_the_next_one_is_announced() {
        let temp = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        write(temp.path(), "log.00000001", 1, 5 * hour);
        write(temp.path(), "log.00000002.gz", 1, 3 * hour);
        write(temp.path(), "log.00000003", 1, hour);
        let spec = LogSpec {
            max_age_ms: Some(4 * 3_600_000),
            ..spec(100)
        };
        let now = SystemTime::now();
        let (stay, next) = retain(temp.path(), &spec, now).unwrap();
        assert_eq!(
            stay.iter().map(|file| file.number).collect::<Vec<_>>(),
            [2, 3]
        );
        let due = next.unwrap();
        assert!(due > now && due <= now + hour, "{due:?}");
        retain(temp.path(), &spec, due).unwrap();
        assert_eq!(names(temp.path()), ["log.00000003"]);
        assert_eq!(
            retain(&temp.path().join("missing"), &spec, due).unwrap(),
            (vec![], None)
        );
    }
}
