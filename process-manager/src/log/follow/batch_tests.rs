use super::*;

fn write(folder: &Path, name: &str, lines: std::ops::Range<u32>) {
    let text: String = lines.map(|number| format!("line {number:06}\n")).collect();
    std::fs::write(folder.join(name), text).unwrap();
}

/// Bytes of one line of [`write`].
const LINE: u64 = 12;

fn all(folder: &Path, mut from: Start) -> (Vec<String>, u64, Start) {
    let (mut lines, mut dropped) = (Vec::new(), 0);
    loop {
        let batch = next_batch(folder, from).unwrap();
        dropped += batch.dropped;
        from = batch.next;
        lines.extend(
            batch
                .lines
                .into_iter()
                .map(|line| String::from_utf8(line).unwrap()),
        );
        if !batch.more {
            return (lines, dropped, from);
        }
    }
}

#[test]
fn a_batch_is_from_one_file_and_its_cursor_tells_where_it_began() {
    let temp = tempfile::tempdir().unwrap();
    write(temp.path(), "log.00000002", 0..10);
    write(temp.path(), "log", 10..15);
    let mut from = Start::Beginning;
    let mut began = Vec::new();
    for _ in 0..2 {
        let batch = next_batch(temp.path(), from).unwrap();
        let bytes: u64 = batch.lines.iter().map(|line| line.len() as u64 + 1).sum();
        let end = batch.end.unwrap();
        began.push((end.offset - bytes, batch.lines.len()));
        from = batch.next;
    }
    assert_eq!(began, [(0, 10), (0, 5)]);
}

#[test]
fn who_is_far_behind_is_carried_ahead_and_what_is_left_out_is_counted() {
    let temp = tempfile::tempdir().unwrap();
    const MANY: u32 = 300_000;
    write(temp.path(), "log.00000001", 0..100_000);
    write(temp.path(), "log.00000002", 100_000..200_000);
    write(temp.path(), "log", 200_000..MANY);
    let (lines, dropped, _) = all(temp.path(), Start::Beginning);
    assert_eq!(lines.len() as u64 + dropped, u64::from(MANY));
    assert!(lines.len() as u64 * LINE <= CARRIED_TO);
    assert_eq!(lines.last().unwrap(), "line 299999");
    let first = u64::from(MANY) - lines.len() as u64;
    assert_eq!(lines[0], format!("line {first:06}"));
}

#[test]
fn joining_takes_others_back_and_never_ahead() {
    let temp = tempfile::tempdir().unwrap();
    write(temp.path(), "log", 0..10);
    let end = place(temp.path(), None, None).unwrap();
    let Start::At(cursor) = end else {
        panic!("{end:?}")
    };
    assert_eq!(cursor.offset, 10 * LINE);
    let early = LogCursor {
        offset: 3 * LINE,
        ..cursor
    };
    let back = place(temp.path(), Some(early), Some(end)).unwrap();
    assert_eq!(back, Start::At(early));
    assert_eq!(place(temp.path(), Some(cursor), Some(back)).unwrap(), back);
    assert_eq!(place(temp.path(), None, Some(back)).unwrap(), back);
    assert_eq!(
        place(temp.path(), Some(cursor), Some(Start::Beginning)).unwrap(),
        {
            Start::At(LogCursor {
                offset: 0,
                ..cursor
            })
        }
    );
}

#[test]
fn a_log_that_begins_later_is_followed_from_its_beginning() {
    let temp = tempfile::tempdir().unwrap();
    let start = place(temp.path(), None, None).unwrap();
    assert_eq!(start, Start::Beginning);
    let (lines, dropped, start) = all(temp.path(), start);
    assert_eq!((lines.len(), dropped, start), (0, 0, Start::Beginning));
    write(temp.path(), "log", 0..3);
    let (lines, dropped, _) = all(temp.path(), start);
    assert_eq!((lines.len(), dropped), (3, 0));
}

#[test]
fn what_was_rotated_away_counts_as_dropped() {
    let temp = tempfile::tempdir().unwrap();
    write(temp.path(), "log", 0..3);
    let place = place(temp.path(), None, None).unwrap();
    std::fs::rename(temp.path().join("log"), temp.path().join("away")).unwrap();
    write(temp.path(), "log", 7..9);
    let (lines, dropped, _) = all(temp.path(), place);
    assert_eq!((lines.len(), dropped), (2, 1));
}
