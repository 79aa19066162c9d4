use std::fs::OpenOptions;
use std::io::Write;

use blackhole_bus_schema::process::LogFormat;
use proptest::prelude::*;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::log::Parsed;
use crate::log::age::Now;

/// A log and the ends of its pipes that a service would have.
struct Bench {
    output: Output,
    writers: [std::fs::File; 2],
}

fn bench_with(dir: &Path, spec: LogSpec) -> Bench {
    let pipe = || {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setfl(&read, OFlags::NONBLOCK).unwrap();
        (read, std::fs::File::from(write))
    };
    let ((out, out_write), (err, err_write)) = (pipe(), pipe());
    Bench {
        output: Output::new(
            dir,
            &"web.1".parse().unwrap(),
            spec,
            Pipes {
                read: [out, err],
                write: None,
            },
        ),
        writers: [out_write, err_write],
    }
}

fn bench(dir: &Path, max_bytes: u64, max_files: u32) -> Bench {
    bench_with(
        dir,
        LogSpec {
            max_bytes,
            max_files,
            ..LogSpec::default()
        },
    )
}

impl Bench {
    fn out(&mut self, bytes: &[u8]) {
        self.say(0, bytes);
    }

    /// What fits in a pipe at once is written at once.
    fn say(&mut self, stream: usize, bytes: &[u8]) {
        for part in bytes.chunks(USUAL_PIPE) {
            self.writers[stream].write_all(part).unwrap();
            self.output.pump([stream == 0, stream == 1]);
        }
    }
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap_or_default()
}

/// Undoes the format: the text of each line, pieces joined; and every head is checked.
fn text(bytes: &[u8], stream: &str) -> Vec<u8> {
    let mut text = Vec::new();
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "a line is cut");
    for raw in bytes.split_inclusive(|byte| *byte == b'\n') {
        let line = Parsed::of(&raw[..raw.len() - 1]);
        let time = line.at.unwrap_or_else(|| panic!("{raw:?}"));
        time.parse::<jiff::Timestamp>().unwrap();
        assert_eq!(line.err, stream == "err");
        text.extend_from_slice(&line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    text
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn lines_have_time_instance_stream_and_kind() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 1 << 20, 2);
    bench.say(1, b"one\ntwo ");
    bench.say(1, b"halves\n\nlast");
    bench.output.finish();
    let bytes = read(temp.path(), "log");
    assert_eq!(text(&bytes, "err"), b"one\ntwo halves\n\nlast\n");
    assert!(
        String::from_utf8(bytes)
            .unwrap()
            .contains("Z web.1 err F two halves\n")
    );
    assert_eq!(bench.output.lost(), 0);
}

#[test]
fn both_pipes_are_drained_in_one_go_standard_output_first() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 1 << 20, 2);
    bench.writers[1].write_all(b"c\nd\n").unwrap();
    bench.writers[0].write_all(b"a\nb\n").unwrap();
    bench.output.pump([true, true]);
    let lines = String::from_utf8(read(temp.path(), "log")).unwrap();
    let short: Vec<&str> = lines.lines().map(|line| &line[34..]).collect();
    assert_eq!(short, ["out F a", "out F b", "err F c", "err F d"]);
}

#[test]
fn an_endless_line_comes_in_pieces() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 1 << 30, 2);
    let endless = vec![b'x'; 100_000];
    bench.out(&endless[..60_000]);
    bench.out(&endless[60_000..]);
    assert!(bench.output.streams[0].pending.len() <= MAX_TEXT);
    bench.out(b"\n");
    let bytes = read(temp.path(), "log");
    assert_eq!(bytes.split_inclusive(|byte| *byte == b'\n').count(), 7);
    assert_eq!(text(&bytes, "out"), [endless, b"\n".to_vec()].concat());
}

#[test]
fn a_line_of_just_the_longest_text_is_whole() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 1 << 30, 2);
    let mut line = vec![b'x'; MAX_TEXT];
    bench.out(&line);
    bench.out(b"\n");
    line.push(b'\n');
    bench.out(&line);
    let bytes = read(temp.path(), "log");
    assert_eq!(bytes.split_inclusive(|byte| *byte == b'\n').count(), 2);
    assert!(!bytes.windows(3).any(|part| part == b" P "));
}

#[test]
fn files_rotate_by_size_and_number() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 1000, 2);
    std::fs::write(temp.path().join("log.00000003"), "older").unwrap();
    for number in 0..200 {
        bench.out(format!("line {number}\n").as_bytes());
    }
    let names = names(temp.path());
    assert_eq!(
        names.len(),
        3,
        "two rotated files beside the current one: {names:?}"
    );
    assert_eq!(names[0], "log");
    assert!(names[1].as_str() > "log.00000003");
    let kept: Vec<u8> = [&names[1], &names[2], &names[0]]
        .iter()
        .flat_map(|name| read(temp.path(), name))
        .collect();
    for name in &names {
        let size = read(temp.path(), name).len();
        assert!(
            size <= 1000 && (name == "log" || size > 900),
            "{name} has {size} bytes"
        );
    }
    let text = String::from_utf8(text(&kept, "out")).unwrap();
    let first = text.lines().next().unwrap()[5..].parse::<u32>().unwrap();
    let expected: String = (first..200)
        .map(|number| format!("line {number}\n"))
        .collect();
    assert_eq!(
        text, expected,
        "nothing between the oldest line kept and the last is missing"
    );
}

#[test]
fn a_flood_rotates_within_one_batch_and_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 10_000, 1000);
    let lines: String = (0..30_000).map(|number| format!("{number}\n")).collect();
    bench.out(lines.as_bytes());
    let mut names = names(temp.path());
    names.rotate_left(1);
    let all: Vec<u8> = names
        .iter()
        .flat_map(|name| read(temp.path(), name))
        .collect();
    assert_eq!(text(&all, "out"), lines.as_bytes());
    assert!(names.len() > 100, "{}", names.len());
}

#[test]
fn a_line_longer_than_a_file_and_no_files_kept() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 10, 0);
    bench.out(b"a long line\nanother\n");
    assert_eq!(text(&read(temp.path(), "log"), "out"), b"another\n");
    assert_eq!(names(temp.path()), ["log"]);
    assert_eq!(bench.output.lost(), 0);
}

#[test]
fn a_file_that_is_too_old_is_rotated_with_the_next_line() {
    let temp = tempfile::tempdir().unwrap();
    let spec = LogSpec {
        max_age_ms: Some(3_600_000),
        ..LogSpec::default()
    };
    let mut first = bench_with(temp.path(), spec.clone());
    first.out(b"one\ntwo\n");
    assert_eq!(names(temp.path()), ["log"]);
    drop(first);
    // As if an hour had passed since its first line.
    let mut second = bench_with(
        temp.path(),
        LogSpec {
            max_age_ms: Some(0),
            ..spec
        },
    );
    second.out(b"three\n");
    assert_eq!(text(&read(temp.path(), "log"), "out"), b"three\n");
    assert_eq!(
        names(temp.path()),
        ["log", "log.00000001"],
        "what is too old is the manager's to remove"
    );
}

thread_local! {
    /// What the clocks of [`moved`] are ahead, in seconds: the one that can be set, and the other.
    static AHEAD: std::cell::Cell<(i64, u64)> = const { std::cell::Cell::new((0, 0)) };
}

fn moved() -> Now {
    let (wall, up) = AHEAD.get();
    let now = Now::read();
    let jump = Duration::from_secs(wall.unsigned_abs());
    Now {
        wall: if wall < 0 {
            now.wall - jump
        } else {
            now.wall + jump
        },
        up: now.up + Duration::from_secs(up),
    }
}

#[test]
fn a_clock_that_jumps_neither_rotates_nor_keeps_it_from_that() {
    const YEARS: i64 = 20 * 365 * 86_400;
    for jump in [YEARS, -YEARS] {
        AHEAD.set((0, 0));
        let temp = tempfile::tempdir().unwrap();
        let spec = LogSpec {
            max_age_ms: Some(3_600_000),
            ..LogSpec::default()
        };
        let mut bench = bench_with(temp.path(), spec.clone());
        bench.output.files.now = moved;
        bench.out(b"one\n");
        AHEAD.set((jump, 0));
        bench.out(b"two\n");
        assert_eq!(names(temp.path()), ["log"], "{jump}");
        AHEAD.set((jump, 3_601));
        bench.out(b"three\n");
        assert_eq!(names(temp.path()), ["log", "log.00000001"], "{jump}");
        // Another shim opens a file of another time: it lives no longer than others.
        drop(bench);
        let mut bench = bench_with(temp.path(), spec);
        bench.output.files.now = moved;
        bench.out(b"four\n");
        AHEAD.set((jump, 2 * 3_601));
        bench.out(b"five\n");
        assert_eq!(text(&read(temp.path(), "log"), "out"), b"five\n", "{jump}");
        assert!(names(temp.path()).len() >= 3, "{jump}");
    }
}

#[test]
fn all_files_together_have_a_limit() {
    let temp = tempfile::tempdir().unwrap();
    let spec = LogSpec {
        max_bytes: 1000,
        max_files: 100,
        max_total_bytes: Some(3500),
        ..LogSpec::default()
    };
    let mut bench = bench_with(temp.path(), spec);
    for number in 0..1000 {
        bench.out(format!("line {number}\n").as_bytes());
        let bytes: usize = names(temp.path())
            .iter()
            .map(|name| read(temp.path(), name).len())
            .sum();
        assert!(bytes <= 3500, "{bytes}");
    }
    assert_eq!(names(temp.path()).len(), 3);
}

#[test]
fn what_cannot_be_written_is_counted_and_writing_goes_on_later() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("gone");
    let mut bench = bench(&dir, 1 << 20, 2);
    bench.out(b"1\n2\n3");
    assert_eq!(bench.output.lost(), 2);
    assert!(bench.output.error().unwrap().contains("gone"));
    std::fs::create_dir(&dir).unwrap();
    bench.out(b"\n4\n");
    assert_eq!(text(&read(&dir, "log"), "out"), b"3\n4\n");
    assert_eq!(bench.output.lost(), 2);
}

#[test]
fn a_full_disk_drops_lines_and_leaves_none_cut() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 1 << 20, 2);
    bench.out(b"before\n");
    bench
        .output
        .files
        .replace(OpenOptions::new().append(true).open("/dev/full").unwrap());
    bench.out(b"1\n2\n");
    assert_eq!(bench.output.lost(), 2);
    bench.out(b"after\n");
    assert_eq!(text(&read(temp.path(), "log"), "out"), b"before\nafter\n");
}

#[test]
fn half_a_line_of_a_shim_that_was_killed_stays_alone() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("log"), "2026-11-22T23:05").unwrap();
    let mut bench = bench(temp.path(), 1 << 20, 2);
    bench.out(b"next\n");
    let bytes = read(temp.path(), "log");
    let rest = bytes.strip_prefix(b"2026-11-22T23:05\n").unwrap();
    assert_eq!(text(rest, "out"), b"next\n");
}

#[test]
fn memory_is_given_back_when_the_output_has_paused() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 1 << 30, 2);
    bench.out(b"a little\n");
    assert_eq!(bench.output.due(), None, "not worth a wake-up");
    bench.out(&b"much more\n".repeat(20_000));
    let due = bench.output.due().unwrap();
    bench.output.on_deadline(due);
    assert_eq!(bench.output.due(), None, "and no second one");
    assert!(
        bench
            .output
            .input
            .iter()
            .chain(bench.output.batch.iter())
            .all(|byte| *byte == 0)
    );
    bench.out(b"again\n");
    let log = text(&read(temp.path(), "log"), "out");
    assert!(log.starts_with(b"a little\nmuch more\n") && log.ends_with(b"much more\nagain\n"));
}

#[test]
fn the_rest_is_taken_at_the_end_and_closed_pipes_are_not_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let mut bench = bench(temp.path(), 1 << 30, 2);
    bench.writers[0]
        .write_all(&b"line\n".repeat(10_000))
        .unwrap();
    bench.writers[1].write_all(b"no newline").unwrap();
    bench.output.finish();
    drop(bench.writers);
    bench.output.pump([true, true]);
    assert!(bench.output.pipes().iter().all(Option::is_none));
    let log = read(temp.path(), "log");
    assert_eq!(log.iter().filter(|byte| **byte == b'\n').count(), 10_001);
    assert!(log.ends_with(b" err F no newline\n"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_bytes_in_any_reads_come_back(
        bytes in proptest::collection::vec(
            prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..1500),
        cuts in proptest::collection::vec(1..9000_usize, 1..20),
        repeat in 1..40_usize,
        json in any::<bool>(),
    ) {
        let temp = tempfile::tempdir().unwrap();
        let format = if json { LogFormat::Json } else { LogFormat::Text };
        let mut bench = bench_with(temp.path(), LogSpec { format, ..LogSpec::default() });
        let bytes = bytes.repeat(repeat);
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (part, more) = rest.split_at((*cut).min(rest.len()));
            bench.out(part);
            rest = more;
        }
        bench.output.finish();
        let mut expected = bytes;
        let written = text(&read(temp.path(), "log"), "out");
        if written.len() > expected.len() {
            expected.push(b'\n');
        }
        prop_assert_eq!(written, expected);
    }
}
