use std::io::Write;

use blackhole_bus_schema::process::{LogCursor, ReadLog};

use super::*;
use crate::log::{LogFiles, Position, read};

const LINES: u32 = 40_000;

/// Lines of a log, each with its number and a time of its own, a millisecond after the line before.
fn lines(range: std::ops::Range<u32>) -> String {
    range
        .map(|number| {
            let at = jiff::Timestamp::from_millisecond(i64::from(number) + 1).unwrap();
            format!("{at:.6} web.1 out F line {number}\n")
        })
        .collect()
}

fn write(folder: &Path, name: &str, text: &str) {
    let mut file = File::create(folder.join(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// All lines from a place on.
fn all(folder: &Path, cursor: Option<LogCursor>, since: Option<u64>) -> String {
    let mut request = ReadLog {
        instance: "web.1".parse().unwrap(),
        lines: 0,
        cursor,
        since,
        max_bytes: None,
    };
    let mut text = Vec::new();
    loop {
        let chunk = read(folder, &request).unwrap();
        assert!(!chunk.gap);
        for line in chunk.lines {
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        if !chunk.more {
            return String::from_utf8(text).unwrap();
        }
        request.cursor = chunk.cursor;
    }
}

fn log() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    write(temp.path(), "log.00000007", &lines(0..LINES));
    write(temp.path(), "log.00000008", &lines(LINES..LINES + 10));
    write(temp.path(), "log", &lines(LINES + 10..LINES + 20));
    temp
}

fn kept(folder: &Path) -> Option<Duration> {
    keep(folder, &LogSpec::default(), &mut Ages::default(), &|| true).unwrap()
}

#[test]
fn rotated_files_are_compressed_and_read_as_before() {
    let temp = log();
    let files = LogFiles::open(temp.path()).unwrap();
    let places: Vec<LogCursor> = [1, 5, 11, 500, LINES]
        .iter()
        .filter_map(|tail| files.cursor(files.tail(*tail).unwrap()))
        .collect();
    let before: Vec<String> = places
        .iter()
        .map(|place| all(temp.path(), Some(*place), None))
        .collect();
    let modified = temp
        .path()
        .join("log.00000007")
        .metadata()
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(kept(temp.path()), None);
    assert_eq!(
        names(temp.path()),
        ["log", "log.00000007.gz", "log.00000008.gz"]
    );
    let made = temp.path().join("log.00000007.gz").metadata().unwrap();
    assert_eq!(
        made.modified().unwrap(),
        modified,
        "its age is that of its last line"
    );
    assert!(made.len() * 4 < lines(0..LINES).len() as u64);
    assert_eq!(all(temp.path(), None, Some(0)), lines(0..LINES + 20));
    for (place, before) in places.iter().zip(before) {
        assert_eq!(
            all(temp.path(), Some(*place), None),
            before,
            "a place stays good"
        );
    }
    let files = LogFiles::open(temp.path()).unwrap();
    assert_eq!(
        files.tail(LINES + 20).unwrap(),
        Position { file: 0, offset: 0 }
    );
}

#[test]
fn a_time_is_found_in_files_of_both_forms() {
    for compress in [false, true] {
        let temp = log();
        if compress {
            kept(temp.path());
        }
        for first in [
            0,
            1,
            17,
            LINES / 2,
            LINES - 1,
            LINES,
            LINES + 9,
            LINES + 10,
            LINES + 19,
        ] {
            // Between the line before and this one.
            let since = (u64::from(first) + 1) * 1_000_000 - 500_000;
            assert_eq!(
                all(temp.path(), None, Some(since)),
                lines(first..LINES + 20),
                "{first}"
            );
        }
        let late = u64::from(LINES + 21) * 1_000_000;
        assert_eq!(all(temp.path(), None, Some(late)), "");
    }
}

#[test]
fn what_was_interrupted_is_done_again_or_cleared() {
    let temp = log();
    write(temp.path(), "log.00000007.gz.part", "half");
    write(
        temp.path(),
        "log.00000003.gz.part",
        "of a file that is gone",
    );
    kept(temp.path());
    assert_eq!(
        names(temp.path()),
        ["log", "log.00000007.gz", "log.00000008.gz"]
    );
    assert_eq!(all(temp.path(), None, Some(0)), lines(0..LINES + 20));
    // Ended between the renaming and the removal: both are there, and read once.
    write(temp.path(), "log.00000008", &lines(LINES..LINES + 10));
    assert_eq!(all(temp.path(), None, Some(0)), lines(0..LINES + 20));
    kept(temp.path());
    assert_eq!(
        names(temp.path()),
        ["log", "log.00000007.gz", "log.00000008.gz"]
    );
    assert_eq!(all(temp.path(), None, Some(0)), lines(0..LINES + 20));
}

#[test]
fn what_the_shim_removes_meanwhile_is_given_up() {
    let temp = log();
    let file = Rotated {
        number: 7,
        plain: true,
        compressed: false,
    };
    let removed = std::cell::Cell::new(false);
    let wanted = || {
        if !removed.replace(true) {
            std::fs::remove_file(temp.path().join("log.00000007")).unwrap();
        }
        true
    };
    compress(temp.path(), &file, &wanted).unwrap();
    assert_eq!(names(temp.path()), ["log", "log.00000008"]);
}

#[test]
fn only_one_at_a_time_compresses_a_file() {
    let temp = log();
    let other = File::open(temp.path().join("log.00000008")).unwrap();
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    kept(temp.path());
    assert_eq!(names(temp.path()), ["log", "log.00000007", "log.00000008"]);
    drop(other);
    kept(temp.path());
    assert_eq!(
        names(temp.path()),
        ["log", "log.00000007.gz", "log.00000008.gz"]
    );
}

#[test]
fn nothing_is_compressed_that_is_not_to_be() {
    let temp = log();
    let spec = LogSpec {
        compress: false,
        ..LogSpec::default()
    };
    keep(temp.path(), &spec, &mut Ages::default(), &|| true).unwrap();
    assert_eq!(names(temp.path()), ["log", "log.00000007", "log.00000008"]);
}

#[test]
fn a_disk_that_takes_nothing_costs_no_line() {
    let temp = log();
    // In the way of the file that would be made.
    std::fs::create_dir(temp.path().join("log.00000008.gz.part")).unwrap();
    keep(
        temp.path(),
        &LogSpec::default(),
        &mut Ages::default(),
        &|| true,
    )
    .unwrap_err();
    assert_eq!(all(temp.path(), None, Some(0)), lines(0..LINES + 20));
}
