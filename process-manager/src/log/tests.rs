use std::path::Path;

use blackhole_bus_schema::process::{LogChunk, LogCursor, ReadLog};
use proptest::prelude::*;

use super::*;

fn read(directory: &Path, lines: u32, cursor: Option<LogCursor>) -> Result<LogChunk, LogError> {
    super::read(
        directory,
        &ReadLog {
            instance: "web.1".parse().unwrap(),
            lines,
            cursor,
            since: None,
            max_bytes: None,
        },
    )
}

fn write(directory: &Path, name: &str, lines: &[Vec<u8>]) {
    let mut content = Vec::new();
    for line in lines {
        content.extend_from_slice(line);
        content.push(b'\n');
    }
    std::fs::write(directory.join(name), content).unwrap();
}

fn numbered(range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range
        .map(|number| format!("line {number}").into_bytes())
        .collect()
}

fn append(directory: &Path, name: &str, bytes: &[u8]) {
    use std::io::Write;
    let path = directory.join(name);
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap()
        .write_all(bytes)
        .unwrap();
}

/// Reads on until nothing more stands there.
fn all_from(directory: &Path, mut chunk: LogChunk) -> Vec<Vec<u8>> {
    let mut lines = std::mem::take(&mut chunk.lines);
    while chunk.more {
        chunk = read(directory, 0, chunk.cursor).unwrap();
        assert!(!chunk.gap);
        lines.append(&mut chunk.lines);
    }
    lines
}

#[test]
fn a_log_that_is_not_there_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path(), &directory.path().join("missing")] {
        let chunk = read(path, 10, None).unwrap();
        assert_eq!(
            chunk,
            LogChunk {
                lines: vec![],
                cursor: None,
                more: false,
                gap: false
            }
        );
    }
    let chunk = read(
        directory.path(),
        10,
        Some(LogCursor {
            inode: 1,
            offset: 0,
        }),
    )
    .unwrap();
    assert!(chunk.gap);
}

#[test]
fn the_tail_goes_back_into_rotated_files() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "log.00000001", &numbered(0..10));
    write(directory.path(), "log.00000002", &numbered(10..20));
    write(directory.path(), "log", &numbered(20..23));
    for lines in [1, 2, 3, 4, 12, 13, 14, 23, 24, 1000] {
        let chunk = read(directory.path(), lines, None).unwrap();
        assert_eq!(chunk.lines, numbered(23 - lines.min(23)..23), "{lines}");
        assert!(!chunk.more && !chunk.gap);
    }
    let chunk = read(directory.path(), 0, None).unwrap();
    assert!(chunk.lines.is_empty() && !chunk.more);
    append(directory.path(), "log", b"line 23\n");
    assert_eq!(
        read(directory.path(), 0, chunk.cursor).unwrap().lines,
        numbered(23..24)
    );
}

#[test]
fn an_unfinished_line_waits_for_its_end() {
    let directory = tempfile::tempdir().unwrap();
    append(directory.path(), "log", b"one\ntw");
    let chunk = read(directory.path(), 5, None).unwrap();
    assert_eq!(chunk.lines, [b"one".to_vec()]);
    let again = read(directory.path(), 5, chunk.cursor).unwrap();
    assert!(again.lines.is_empty() && !again.more && !again.gap);
    append(directory.path(), "log", b"o\n");
    assert_eq!(
        read(directory.path(), 5, again.cursor).unwrap().lines,
        [b"two".to_vec()]
    );
    // Alone in the file it is no line either.
    append(directory.path(), "other", b"");
    std::fs::write(directory.path().join("log"), "x").unwrap();
    assert!(read(directory.path(), 5, None).unwrap().lines.is_empty());
}

#[test]
fn a_cursor_follows_its_file_through_a_rotation() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    write(directory.path(), "log", &numbered(0..3));
    let cursor = read(directory.path(), 1, None).unwrap().cursor;
    append(directory.path(), "log", b"line 3\n");
    std::fs::rename(path("log"), path("log.00000002")).unwrap();
    write(directory.path(), "log", &numbered(4..6));
    let chunk = read(directory.path(), 1, cursor).unwrap();
    assert_eq!(chunk.lines, numbered(3..6));
    assert!(!chunk.gap);
}

#[test]
fn what_was_rotated_away_is_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    write(directory.path(), "log", &numbered(0..3));
    let cursor = read(directory.path(), 1, None).unwrap().cursor;
    // Kept open elsewhere, so that its inode number is not given to the next file.
    std::fs::rename(path("log"), path("gone")).unwrap();
    write(directory.path(), "log.00000002", &numbered(7..8));
    write(directory.path(), "log", &numbered(8..9));
    let chunk = read(directory.path(), 1, cursor).unwrap();
    assert!(chunk.gap);
    assert_eq!(chunk.lines, numbered(7..9));
}

#[test]
fn a_place_inside_a_line_or_past_the_end_is_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "log", &numbered(0..3));
    let cursor = read(directory.path(), 1, None).unwrap().cursor.unwrap();
    for offset in [cursor.offset - 1, cursor.offset + 1, u64::MAX] {
        let chunk = read(directory.path(), 1, Some(LogCursor { offset, ..cursor })).unwrap();
        assert!(chunk.gap, "{offset}");
        assert_eq!(chunk.lines, numbered(0..3));
    }
}

#[test]
fn long_logs_come_in_pages_and_endless_lines_get_on() {
    let directory = tempfile::tempdir().unwrap();
    let long: Vec<Vec<u8>> = (0..100u8)
        .map(|number| vec![b'a' + number % 26; 16 * 1024])
        .collect();
    write(directory.path(), "log.00000002", &long[..40]);
    write(directory.path(), "log", &long[40..]);
    let first = read(directory.path(), 90, None).unwrap();
    assert!(first.more);
    assert!(first.lines.iter().map(|line| line.len() + 1).sum::<usize>() <= PAGE_BYTES);
    assert_eq!(all_from(directory.path(), first), long[10..]);

    // A line without end is cut, one that is not through yet is waited for.
    write(
        directory.path(),
        "log",
        &[vec![b'x'; PAGE_BYTES * 3], b"after".to_vec()],
    );
    let start = read(directory.path(), 2, None).unwrap();
    let lines = all_from(directory.path(), start);
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (lines[0].len(), lines[1].as_slice()),
        (PAGE_BYTES, b"after".as_slice())
    );
    append(directory.path(), "log", &vec![b'y'; PAGE_BYTES * 2]);
    assert_eq!(
        read(directory.path(), 1, None).unwrap().lines,
        [b"after".to_vec()]
    );
}

#[test]
fn other_files_in_the_directory_are_no_log() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "log", &numbered(1..2));
    for name in [
        "log.x",
        "log.",
        "log.gz",
        "log.00000001.gz",
        "log.00000001.gz.part",
        "logs.1",
        "record",
        "log.1",
    ] {
        write(directory.path(), name, &numbered(7..9));
    }
    std::fs::create_dir(directory.path().join("log.00000002")).unwrap();
    assert_eq!(
        read(directory.path(), 9, None).unwrap().lines,
        numbered(1..2)
    );
}

#[test]
fn skipped_lines_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "log.00000002", &numbered(0..10));
    write(directory.path(), "log", &numbered(10..15));
    let files = LogFiles::open(directory.path()).unwrap();
    let from = files.tail(13).unwrap();
    let to = files.tail(2).unwrap();
    assert_eq!(files.count_lines(from, to).unwrap(), 11);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tail_and_any_pages_give_the_lines_written(
        split in proptest::collection::vec(0usize..30, 1..4),
        lengths in proptest::collection::vec(0usize..5000, 90),
        wanted in 0u32..100,
        limit in 5001usize..20_000,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for (index, length) in lengths.iter().take(split.iter().sum()).enumerate() {
            lines.push(vec![b'a' + (index % 26) as u8; *length]);
        }
        let mut begin = 0;
        for (index, count) in split.iter().enumerate() {
            let last = index + 1 == split.len();
            let name = if last { CURRENT.to_owned() } else { format!("{CURRENT}.{:08}", index + 1) };
            write(directory.path(), &name, &lines[begin..begin + count]);
            begin += count;
        }
        let expected = &lines[lines.len() - lines.len().min(wanted as usize)..];
        let first = read(directory.path(), wanted, None).unwrap();
        prop_assert_eq!(&all_from(directory.path(), first), expected);

        let files = LogFiles::open(directory.path()).unwrap();
        let mut at = Position { file: 0, offset: 0 };
        let mut seen = Vec::new();
        loop {
            let page = files.page(at, limit).unwrap();
            if page.next == at {
                break;
            }
            seen.extend(page.lines);
            at = page.next;
        }
        prop_assert_eq!(seen, lines);
    }
}

/// One member of three is damaged, or all from the middle on is gone.
#[test]
fn what_is_damaged_is_a_gap_that_is_said() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(Damage, &str); 2] = [
        (|bytes| *bytes = bytes[..bytes.len() / 2].to_vec(), "cut"),
        (
            |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle..middle + 64].fill(0xff);
            },
            "flipped",
        ),
    ];
    for (damage, what) in cases {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let many = numbered(0..250_000);
        write(directory.path(), "log.00000001", &many[..10]);
        write(directory.path(), "plain", &many[10..]);
        let source = std::fs::File::open(at("plain")).unwrap();
        let mut target = std::fs::File::create(at("log.00000002.gz")).unwrap();
        assert!(gzip::compress(&source, &mut target, 77, || true).unwrap());
        std::fs::remove_file(at("plain")).unwrap();
        let mut bytes = std::fs::read(at("log.00000002.gz")).unwrap();
        damage(&mut bytes);
        std::fs::write(at("log.00000002.gz"), bytes).unwrap();
        write(directory.path(), "log.00000003", &[b"behind".to_vec()]);
        write(directory.path(), "log", &[b"the last".to_vec()]);

        let all = read(directory.path(), u32::MAX, None).unwrap();
        let lines = all_from(directory.path(), all);
        assert_eq!(lines[..10], many[..10], "{what}");
        let text = |line: &Vec<u8>| String::from_utf8_lossy(line).into_owned();
        let said: Vec<_> = lines.iter().map(text).collect();
        let notes: Vec<_> = said
            .iter()
            .filter(|line| line.contains("damaged"))
            .collect();
        // One for the member that the cut goes through, one for those behind it.
        let most = if what == "cut" { 2 } else { 1 };
        assert!((1..=most).contains(&notes.len()), "{what}: {notes:?}");
        assert!(notes[0].starts_with("log.00000002.gz is damaged: "));
        assert_eq!(said[said.len() - 2..], ["behind", "the last"], "{what}");
        // What is before it is there, and what is behind it where there is something.
        assert!(
            lines.len() > 90_000 && lines.len() < 249_000,
            "{what}: {}",
            lines.len()
        );
        assert_eq!(
            said.iter().any(|line| line == "line 249999"),
            what == "flipped"
        );
        // Nothing but whole lines, but for the one that the gap begins in.
        let odd = said.iter().filter(|line| !line.starts_with("line "));
        assert!(odd.count() <= notes.len() + 2, "{what}");
        // The last ones are found from behind.
        let tail = read(directory.path(), 2, None).unwrap();
        assert_eq!(tail.lines, [b"behind".to_vec(), b"the last".to_vec()]);
    }
}
