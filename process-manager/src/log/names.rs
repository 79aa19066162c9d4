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
use super::age::{Ages, Now};

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
/// with the time since boot at which the next file gets too old. By age only where
/// `ages` are known: that is not the shim's.
pub(crate) fn retain(
    directory: &Path,
    spec: &LogSpec,
    ages: Option<(&mut Ages, Now)>,
) -> io::Result<(Vec<Rotated>, Option<Duration>)> {
    let files = rotated(directory)?;
    let max_age = spec.max_age_ms.map(Duration::from_millis);
    let mut aging = ages.zip(max_age);
    // The current file may grow to its largest.
    let total = spec
        .max_total_bytes
        .map(|total| total.saturating_sub(spec.max_bytes));
    let most = usize::try_from(spec.max_files).unwrap_or(usize::MAX);
    let mut first = files.len().saturating_sub(most);
    if aging.is_some() || total.is_some() {
        let measured: Vec<_> = files.iter().map(|file| file.measure(directory)).collect();
        let mut bytes = 0_u64;
        for (index, (size, _)) in measured.iter().enumerate().skip(first).rev() {
            bytes = bytes.saturating_add(*size);
            if total.is_some_and(|total| bytes > total) {
                first = index + 1;
                break;
            }
        }
        if let Some(((ages, now), max_age)) = &mut aging {
            // Whatever the clock was when they were written: none goes before an older one.
            let mut latest = Duration::ZERO;
            let mut next = None;
            for (index, (_, last)) in measured.iter().enumerate().skip(first) {
                // One that has just gone has none. Each is asked for: its age counts from now on.
                let Some(last) = *last else { continue };
                let number = files[index].number;
                latest = latest.max(ages.expires(number, last, *max_age, *now));
                match (latest > now.up, next) {
                    (true, None) => next = Some(latest),
                    (true, Some(_)) => {}
                    (false, _) => first = index + 1,
                }
            }
            let stay = &files[first..];
            ages.keep(|number| stay.iter().any(|file| file.number == number));
            return remove_up_to(directory, &files, first).map(|stay| (stay, next));
        }
    }
    remove_up_to(directory, &files, first).map(|stay| (stay, None))
}

fn remove_up_to(directory: &Path, files: &[Rotated], first: usize) -> io::Result<Vec<Rotated>> {
    let (gone, stay) = files.split_at(first);
    gone.iter().try_for_each(|file| file.remove(directory))?;
    Ok(stay.to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::age::PATIENCE;
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
        let (stay, next) = retain(temp.path(), &spec(2), None).unwrap();
        assert_eq!(
            stay.iter().map(|file| file.number).collect::<Vec<_>>(),
            [5, 6]
        );
        assert_eq!(next, None);
        assert_eq!(
            names(temp.path()),
            ["log", "log.00000005.gz", "log.00000006", "log.1"]
        );
        retain(temp.path(), &spec(0), None).unwrap();
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
        let (stay, _) = retain(temp.path(), &spec, None).unwrap();
        assert_eq!(
            stay.iter().map(|file| file.number).collect::<Vec<_>>(),
            [7, 8, 9]
        );
    }

    const HOUR: Duration = Duration::from_secs(3600);

    /// Three files, written until 5, 2½ and 1 hours ago, and what keeps 4 hours.
    fn aged() -> (tempfile::TempDir, LogSpec, Now) {
        let temp = tempfile::tempdir().unwrap();
        write(temp.path(), "log.00000001", 1, 5 * HOUR);
        write(temp.path(), "log.00000002.gz", 1, 5 * HOUR / 2);
        write(temp.path(), "log.00000003", 1, HOUR);
        let spec = LogSpec {
            max_age_ms: Some(4 * 3_600_000),
            ..spec(100)
        };
        (temp, spec, Now::read())
    }

    fn numbers(stay: &[Rotated]) -> Vec<u64> {
        stay.iter().map(|file| file.number).collect()
    }

    /// Later by both clocks, but for a jump of the one that can be set.
    fn later(now: Now, by: Duration, jump_hours: i64) -> Now {
        let jump = HOUR * u32::try_from(jump_hours.abs()).unwrap();
        Now {
            wall: match jump_hours < 0 {
                true => now.wall + by - jump,
                false => now.wall + by + jump,
            },
            up: now.up + by,
        }
    }

    #[test]
    fn old_files_go_and_the_next_one_is_announced() {
        let (temp, spec, now) = aged();
        let mut ages = Ages::default();
        let mut at = |now| retain(temp.path(), &spec, Some((&mut ages, now))).unwrap();
        // What was too old at first sight has an hour.
        let (stay, next) = at(now);
        assert_eq!((numbers(&stay), next), (vec![1, 2, 3], Some(now.up + HOUR)));
        let (stay, next) = at(later(now, HOUR, 0));
        assert_eq!(numbers(&stay), [2, 3]);
        let due = next.unwrap() - now.up;
        assert!(due > HOUR && due <= 3 * HOUR / 2, "{due:?}");
        assert_eq!(numbers(&at(later(now, HOUR + HOUR, 0)).0), [3]);
        let (stay, next) = at(later(now, 4 * HOUR, 0));
        assert_eq!((numbers(&stay), next), (vec![], None));
        assert!(ages.is_empty());
        assert_eq!(names(temp.path()), Vec::<String>::new());
        let missing = temp.path().join("missing");
        let none = retain(&missing, &spec, Some((&mut ages, now))).unwrap();
        assert_eq!(none, (vec![], None));
    }

    #[test]
    fn a_shim_leaves_ages_alone() {
        let (temp, spec, _) = aged();
        assert_eq!(
            numbers(&retain(temp.path(), &spec, None).unwrap().0),
            [1, 2, 3]
        );
    }

    #[test]
    fn a_clock_that_jumps_takes_nothing_away_and_keeps_nothing() {
        const YEARS: i64 = 20 * 8766;
        for jump in [YEARS, -YEARS] {
            let (temp, spec, now) = aged();
            let mut ages = Ages::default();
            let mut at = |now| retain(temp.path(), &spec, Some((&mut ages, now))).unwrap();
            at(now);
            let minute = Duration::from_secs(60);
            assert_eq!(
                numbers(&at(later(now, minute, jump)).0),
                [1, 2, 3],
                "{jump}"
            );
            // All go when it is their time, as if nothing had been.
            for (after, left) in [(HOUR, vec![2, 3]), (2 * HOUR, vec![3]), (4 * HOUR, vec![])] {
                assert_eq!(numbers(&at(later(now, after, jump)).0), left, "{jump}");
            }
        }
    }

    /// As after a start of the manager, when it knows nothing of before.
    #[test]
    fn a_clock_that_had_jumped_can_be_put_right_before_all_is_gone() {
        const YEARS: i64 = 20 * 8766;
        let (temp, spec, now) = aged();
        let forward = later(now, Duration::ZERO, YEARS);
        let mut ages = Ages::default();
        let (stay, next) = retain(temp.path(), &spec, Some((&mut ages, forward))).unwrap();
        assert_eq!(
            (numbers(&stay), next),
            (vec![1, 2, 3], Some(now.up + PATIENCE))
        );
        // Nobody has: they are too old as far as anybody can tell.
        let after = later(forward, PATIENCE, 0);
        let (stay, _) = retain(temp.path(), &spec, Some((&mut ages, after))).unwrap();
        assert_eq!(numbers(&stay), Vec::<u64>::new());

        let (temp, spec, now) = aged();
        let back = later(now, Duration::ZERO, -YEARS);
        let mut ages = Ages::default();
        let mut at = |now| retain(temp.path(), &spec, Some((&mut ages, now))).unwrap();
        // From the future: as if written just now, and no longer.
        assert_eq!(at(back).1, Some(now.up + 4 * HOUR));
        assert_eq!(numbers(&at(later(back, 4 * HOUR, 0)).0), Vec::<u64>::new());
    }

    /// The clock was wrong for one of them only: it stays as long as those before it.
    #[test]
    fn none_goes_before_an_older_one() {
        let (temp, spec, now) = aged();
        write(temp.path(), "log.00000004", 1, 24 * 365 * HOUR);
        let mut ages = Ages::default();
        let mut at = |now| retain(temp.path(), &spec, Some((&mut ages, now))).unwrap();
        at(now);
        assert_eq!(numbers(&at(later(now, 2 * HOUR, 0)).0), [3, 4]);
        assert_eq!(numbers(&at(later(now, 4 * HOUR, 0)).0), Vec::<u64>::new());
    }
}
