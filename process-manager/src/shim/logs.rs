//! The service's output: from its pipes into rotated files.
//!
//! One line of a file is `<time> <instance> <out|err> <F|P> <text>`: UTC with
//! microseconds, `F` for a whole line, `P` for a piece of an endless one. All
//! lines of one read carry the time of that read and go out with one write(2).
//! Nothing here ever fails towards the service: what cannot be written is
//! dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::LogSpec;

/// Longest piece of a line, in bytes.
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// Bytes taken from a pipe at once: all that a pipe holds by default.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// Bytes collected before they are written. A read of nothing but newlines
/// grows fiftyfold; this bounds the memory.
const BATCH: usize = 256 * 1024;

const NAME: &str = "log";

/// One of the two streams of a service, and its last line while it is not ended.
#[derive(Debug)]
pub(crate) struct Stream {
    name: &'static str,
    pending: Vec<u8>,
}

impl Stream {
    /// `out` or `err`.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            pending: Vec::new(),
        }
    }
}

/// The files of one instance's log.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    instance: String,
    limits: LogSpec,
    file: Option<File>,
    size: u64,
    batch: Vec<u8>,
    /// Lines dropped so far.
    pub(crate) lost: u64,
    /// Why the last one was.
    pub(crate) error: Option<String>,
}

impl Log {
    /// The log in `dir`. Files are opened with the first line.
    pub(crate) fn new(dir: &Path, instance: &InstanceName, limits: LogSpec) -> Self {
        Self {
            dir: dir.to_owned(),
            instance: instance.to_string(),
            limits,
            file: None,
            size: 0,
            batch: Vec::new(),
            lost: 0,
            error: None,
        }
    }

    /// Takes what was read from a stream.
    pub(crate) fn take(&mut self, stream: &mut Stream, mut data: &[u8]) {
        let head = self.head(stream);
        while !data.is_empty() {
            let start = self.batch.len();
            self.batch.extend_from_slice(head.as_bytes());
            self.batch.extend_from_slice(&stream.pending);
            let room = data.len().min(MAX_LINE - stream.pending.len());
            let mut part = &data[..room];
            // Cannot fail: it reads from memory.
            let taken = part.read_until(b'\n', &mut self.batch).unwrap_or(room);
            if self.batch.last() != Some(&b'\n') {
                if stream.pending.len() + taken < MAX_LINE {
                    // The end of what was read, not of the line.
                    self.batch.truncate(start);
                    stream.pending.extend_from_slice(&data[..taken]);
                    break;
                }
                self.batch[start + head.len() - 2] = b'P';
                self.batch.push(b'\n');
            }
            stream.pending.clear();
            data = &data[taken..];
            if self.batch.len() > BATCH {
                self.flush();
            }
        }
        self.flush();
    }

    /// The stream has ended: what stands there without a newline is a line.
    pub(crate) fn finish(&mut self, stream: &mut Stream) {
        if !stream.pending.is_empty() {
            let head = self.head(stream);
            self.batch.extend_from_slice(head.as_bytes());
            self.batch.append(&mut stream.pending);
            self.batch.push(b'\n');
            self.flush();
        }
    }

    fn head(&self, stream: &Stream) -> String {
        let now = jiff::Timestamp::now();
        format!("{now:.6} {} {} F ", self.instance, stream.name)
    }

    /// Writes the batch, at line ends, into as many files as it takes.
    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let written = self.write_some(rest);
            match written {
                Ok(0) => {}
                Ok(bytes) => rest = &rest[bytes..],
                Err(error) => {
                    let lines = rest.iter().filter(|byte| **byte == b'\n').count();
                    self.lost += lines as u64;
                    self.error = Some(format!("{}: {error}", self.dir.join(NAME).display()));
                    // Opened anew with the next line: it may have been removed, or the disk be back.
                    self.file = None;
                    break;
                }
            }
        }
        self.batch = batch;
        self.batch.clear();
        // A burst of short lines must not stay in memory for ever.
        self.batch.shrink_to(READ_BYTES);
    }

    /// Writes whole lines of `lines` into the current file and tells how many
    /// bytes; 0 after a rotation, which made room.
    fn write_some(&mut self, lines: &[u8]) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(self.dir.join(NAME))?;
                self.size = file.metadata()?.len();
                self.file.insert(file)
            }
        };
        let room =
            usize::try_from(self.limits.max_bytes.saturating_sub(self.size)).unwrap_or(usize::MAX);
        let end = if lines.len() <= room {
            lines.len()
        } else if let Some(last) = lines[..room].iter().rposition(|byte| *byte == b'\n') {
            last + 1
        } else if self.size > 0 {
            self.rotate()?;
            return Ok(0);
        } else {
            // One line longer than a whole file.
            lines
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(lines.len(), |last| last + 1)
        };
        match file.write_all(&lines[..end]) {
            Ok(()) => {
                self.size += end as u64;
                Ok(end)
            }
            Err(error) => {
                // Half a line, or half a batch: what is counted as lost is not there either.
                let _ = file.set_len(self.size);
                Err(error)
            }
        }
    }

    /// `log` becomes `log.1`, that `log.2`, and so on; what is beyond the number
    /// of files kept goes. Compressed files move along.
    fn rotate(&mut self) -> io::Result<()> {
        let name = |number: u32, suffix: &str| self.dir.join(format!("{NAME}.{number}{suffix}"));
        for suffix in ["", ".gz"] {
            // More than one where fewer files are kept than before.
            let mut beyond = self.limits.max_files.max(1);
            while std::fs::remove_file(name(beyond, suffix)).is_ok() {
                beyond += 1;
            }
            for number in (1..self.limits.max_files).rev() {
                match std::fs::rename(name(number, suffix), name(number + 1, suffix)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        let current = self.dir.join(NAME);
        let moved = if self.limits.max_files == 0 {
            std::fs::remove_file(&current)
        } else {
            std::fs::rename(&current, name(1, ""))
        };
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = None;
        self.size = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(dir: &Path, max_bytes: u64, max_files: u32) -> Log {
        Log::new(
            dir,
            &"web.1".parse().unwrap(),
            LogSpec {
                max_bytes,
                max_files,
            },
        )
    }

    fn read(dir: &Path, name: &str) -> Vec<u8> {
        std::fs::read(dir.join(name)).unwrap_or_default()
    }

    /// Undoes the format: the text of each line, pieces joined; and every head is checked.
    fn text(bytes: &[u8], stream: &str) -> Vec<u8> {
        let mut text = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut words = line.splitn(5, |byte| *byte == b' ');
            let time = std::str::from_utf8(words.next().unwrap()).unwrap();
            assert_eq!(time.len(), "2026-11-22T23:05:30.123456Z".len(), "{time}");
            time.parse::<jiff::Timestamp>().unwrap();
            assert_eq!(words.next().unwrap(), b"web.1");
            assert_eq!(words.next().unwrap(), stream.as_bytes());
            let kind = words.next().unwrap();
            let rest = words.next().unwrap();
            text.extend_from_slice(match kind {
                b"F" => rest,
                b"P" => &rest[..rest.len() - 1],
                other => panic!("{other:?}"),
            });
        }
        text
    }

    #[test]
    fn lines_have_time_instance_stream_and_kind() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = log(temp.path(), 1 << 20, 2);
        let mut err = Stream::new("err");
        log.take(&mut err, b"one\ntwo ");
        log.take(&mut err, b"halves\n\nlast");
        log.finish(&mut err);
        assert_eq!(
            text(&read(temp.path(), "log"), "err"),
            b"one\ntwo halves\n\nlast\n"
        );
        assert_eq!(log.lost, 0);
    }

    #[test]
    fn an_endless_line_comes_in_pieces() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = log(temp.path(), 1 << 30, 2);
        let mut out = Stream::new("out");
        let endless = vec![b'x'; 100_000];
        log.take(&mut out, &endless[..60_000]);
        log.take(&mut out, &endless[60_000..]);
        assert!(out.pending.len() < MAX_LINE);
        log.take(&mut out, b"\n");
        let bytes = read(temp.path(), "log");
        assert_eq!(bytes.split_inclusive(|byte| *byte == b'\n').count(), 7);
        assert_eq!(text(&bytes, "out"), [endless, b"\n".to_vec()].concat());
    }

    #[test]
    fn files_rotate_by_size_and_number() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = log(temp.path(), 1000, 2);
        let mut out = Stream::new("out");
        std::fs::write(temp.path().join("log.3"), "from a time when more were kept").unwrap();
        for number in 0..200 {
            log.take(&mut out, format!("line {number}\n").as_bytes());
        }
        let mut names: Vec<_> = std::fs::read_dir(temp.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let kept: Vec<u8> = ["log.2", "log.1", "log"]
            .iter()
            .flat_map(|name| read(temp.path(), name))
            .collect();
        for name in names {
            let size = read(temp.path(), &name).len();
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
    fn a_line_longer_than_a_file_and_no_files_kept() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = log(temp.path(), 10, 0);
        log.take(&mut Stream::new("out"), b"a long line\nanother\n");
        assert_eq!(text(&read(temp.path(), "log"), "out"), b"another\n");
        assert_eq!(log.lost, 0);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_writing_goes_on_later() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("gone");
        let mut log = log(&dir, 1 << 20, 2);
        let mut out = Stream::new("out");
        log.take(&mut out, b"1\n2\n3");
        assert_eq!(log.lost, 2);
        assert!(
            log.error.as_ref().unwrap().contains("gone"),
            "{:?}",
            log.error
        );
        std::fs::create_dir(&dir).unwrap();
        log.take(&mut out, b"\n4\n");
        assert_eq!(text(&read(&dir, "log"), "out"), b"3\n4\n");
        assert_eq!(log.lost, 2);
    }

    #[test]
    fn a_full_disk_drops_lines_and_leaves_none_cut() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = log(temp.path(), 1 << 20, 2);
        let mut out = Stream::new("out");
        log.take(&mut out, b"before\n");
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let good = log.file.replace(full).unwrap();
        log.take(&mut out, b"1\n2\n");
        assert_eq!(log.lost, 2);
        drop(good);
        log.take(&mut out, b"after\n");
        assert_eq!(text(&read(temp.path(), "log"), "out"), b"before\nafter\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_bytes_in_any_reads_come_back(
            bytes in proptest::collection::vec(
                prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..1500),
            cuts in proptest::collection::vec(1..9000_usize, 1..20),
            repeat in 1..40_usize,
        ) {
            let temp = tempfile::tempdir().unwrap();
            let mut log = log(temp.path(), 1 << 30, 2);
            let mut out = Stream::new("out");
            let bytes = bytes.repeat(repeat);
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (part, more) = rest.split_at((*cut).min(rest.len()));
                log.take(&mut out, part);
                rest = more;
            }
            log.finish(&mut out);
            let mut expected = bytes;
            let written = text(&read(temp.path(), "log"), "out");
            if written.len() > expected.len() {
                expected.push(b'\n');
            }
            prop_assert_eq!(written, expected);
        }
    }
}
