//! The service's output: from its pipes into rotated files.
//!
//! | file | what it holds |
//! |---|---|
//! | this | the pipes: reading both, cutting lines, batches |
//! | `line` | the form of a line |
//! | `files` | the current file, rotation, losses |
//! | `buffer` | memory that exists while output flows |
//!
//! One line of a file is `<time> <instance> <out|err> <F|P> <text>`: UTC with
//! microseconds, `F` for a whole line, `P` for a piece of an endless one (16 KiB
//! each); or, with `format: json`, one JSON object.
//!
//! **Order.** Lines of one stream stand in the order in which they were written.
//! Of two streams the kernel does not tell which was written to first: each time
//! the shim wakes, it reads standard output until it is empty, then standard
//! error, and what it reads at once has one time, that of the reading. So lines
//! of both streams that were written while the shim slept or was busy
//! (microseconds; longer on a busy host) may stand out of order, those written
//! further apart never do.
//!
//! **Speed.** A read takes all that a pipe holds; the time is asked once a read;
//! what came of a wake-up goes out with one write(2), or with one for each
//! 384 KiB in a flood. A service that fills its pipe gets a bigger one (1 MiB) for
//! as long as its flood lasts.
//!
//! **Nothing here ever fails towards the service.** What cannot be written (full
//! disk, quota, read-only) is dropped and counted, line by line. A disk that is
//! merely slow slows the service down, as a full pipe does: nothing is lost.

mod buffer;
mod files;
mod line;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::LogSpec;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

use buffer::Buffer;
use files::Files;
use line::{Heads, MAX_LINE, MAX_TEXT, Stamp};

/// Most bytes read at once.
const READ: usize = 256 * 1024;
/// Bytes of lines that are written at once; a batch may be larger by one line.
const BATCH: usize = 384 * 1024;
/// Reads of each pipe in one go, so that a flood does not keep the shim from its other duties.
const ROUNDS: usize = 8;
/// Reads of each pipe after the end: more than a pipe holds at its largest
/// (1 MiB). Somebody outside the tree may have it open and write without end.
const LAST_READS: usize = 32;
/// Size of the pipe of a service that floods, in bytes. The kernel refuses it to
/// ordinary users above `/proc/sys/fs/pipe-max-size`, and when the pipes of the
/// user have more than `pipe-user-pages-soft` pages, see pipe(7).
const FLOOD_PIPE: usize = 1024 * 1024;
/// A pipe as it is made.
const USUAL_PIPE: usize = 64 * 1024;
/// Memory is given back when there was no output for this long.
const PAUSE: Duration = Duration::from_secs(1);
/// Touched memory that is not worth a wake-up to be given back, bytes of each buffer.
const LITTLE: usize = 4096;

/// The pipes of a service's standard output and error.
#[derive(Debug)]
pub(crate) struct Pipes {
    /// Ends to read from without waiting.
    pub(crate) read: [OwnedFd; 2],
    /// Ends to write to, held open here so that the service's end does not wake
    /// the shim for each pipe that it closes, while it is still ending.
    pub(crate) write: Option<[OwnedFd; 2]>,
}

impl Pipes {
    /// For each stream both ends.
    fn streams(self) -> [(OwnedFd, Option<OwnedFd>); 2] {
        let [out, err] = self.read;
        let (to_out, to_err) = match self.write {
            Some([out, err]) => (Some(out), Some(err)),
            None => (None, None),
        };
        [(out, to_out), (err, to_err)]
    }
}

/// One of the two streams of a service.
#[derive(Debug)]
struct Stream {
    pipe: Option<OwnedFd>,
    /// Its other end, while it is held open here.
    held: Option<OwnedFd>,
    /// Its last line while it is not ended; shorter than [`MAX_TEXT`].
    pending: Vec<u8>,
    heads: Heads,
    /// What the pipe holds; `None` until it was full for the first time.
    capacity: Option<usize>,
}

/// Both streams of an instance and the log that they go to.
#[derive(Debug)]
pub(crate) struct Output {
    streams: [Stream; 2],
    files: Files,
    stamp: Stamp,
    input: Buffer,
    batch: Buffer,
    batched: usize,
    /// Whether more than a little memory is in use.
    swollen: bool,
    quiet_at: Option<Instant>,
}

impl Output {
    /// The log in `dir`, fed by the pipes of standard output and error.
    pub(crate) fn new(dir: &Path, instance: &InstanceName, spec: LogSpec, pipes: Pipes) -> Self {
        let instance = instance.to_string();
        let format = spec.format;
        let [out, err] = pipes.streams();
        let stream = |name, (pipe, held)| Stream {
            pipe: Some(pipe),
            held,
            pending: Vec::new(),
            heads: Heads::new(format, &instance, name),
            capacity: None,
        };
        Self {
            streams: [stream("out", out), stream("err", err)],
            files: Files::new(dir, spec),
            stamp: Stamp::new(),
            input: Buffer::new(READ),
            batch: Buffer::new(BATCH + MAX_LINE),
            batched: 0,
            swollen: false,
            quiet_at: None,
        }
    }

    /// The pipes to wait for; `None` is one that has ended.
    pub(crate) fn pipes(&self) -> [Option<BorrowedFd<'_>>; 2] {
        self.streams
            .each_ref()
            .map(|stream| stream.pipe.as_ref().map(AsFd::as_fd))
    }

    /// Ends to write to the pipes with, for another process than the service. A
    /// pipe that has ended is made anew.
    pub(crate) fn writers(&mut self) -> io::Result<[OwnedFd; 2]> {
        let [out, err] = &mut self.streams;
        Ok([writer(out)?, writer(err)?])
    }

    /// Lines dropped so far.
    pub(crate) fn lost(&self) -> u64 {
        self.files.lost
    }

    /// Why the last one was dropped.
    pub(crate) fn error(&self) -> Option<&String> {
        self.files.error.as_ref()
    }

    /// When [`on_deadline`](Self::on_deadline) wants to be called: once after
    /// much output, never again while there is none.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.quiet_at
    }

    /// Gives memory back when the output has paused.
    pub(crate) fn on_deadline(&mut self, now: Instant) {
        if self.quiet_at.is_none_or(|quiet| quiet > now) {
            return;
        }
        self.quiet_at = None;
        self.swollen = false;
        self.input.release();
        self.batch.release();
        for stream in &mut self.streams {
            if stream.pending.is_empty() {
                stream.pending = Vec::new();
            }
            let Some(pipe) = &stream.pipe else { continue };
            if stream.capacity.is_some_and(|bytes| bytes > USUAL_PIPE) {
                // Refused while more is in it than would fit: then it is busy again.
                let _ = fcntl_setpipe_size(pipe, USUAL_PIPE);
            }
            stream.capacity = None;
        }
    }

    /// Takes what stands in the pipes that are ready, and writes it. After a
    /// flood there may be more: the pipes are still ready then.
    pub(crate) fn pump(&mut self, mut ready: [bool; 2]) {
        if !ready.contains(&true) {
            return;
        }
        for _ in 0..ROUNDS {
            for index in [0, 1] {
                if ready[index] {
                    ready[index] = self.read(index);
                }
            }
            if !ready.contains(&true) {
                break;
            }
        }
        self.flush();
        if self.swollen {
            self.quiet_at = Instant::now().checked_add(PAUSE);
        }
    }

    /// The service has ended: takes what is left, and unfinished lines as lines.
    pub(crate) fn finish(&mut self) {
        for index in [0, 1] {
            for _ in 0..LAST_READS {
                if !self.read(index) {
                    break;
                }
            }
            self.end_line(index);
        }
        self.flush();
    }

    /// The same where a successor runs already: what is left was written before
    /// `ended_at` (Unix time in nanoseconds), and bears no later time.
    pub(crate) fn finish_before(&mut self, ended_at: u64) {
        let ended_at = UNIX_EPOCH + Duration::from_nanos(ended_at);
        self.stamp.until(Some(ended_at));
        self.finish();
        self.stamp.until(None);
    }

    /// A successor writes to these pipes; what the ones before held is finished.
    /// The same log goes on.
    pub(crate) fn follow(&mut self, pipes: Pipes) {
        for (stream, (pipe, held)) in self.streams.iter_mut().zip(pipes.streams()) {
            (stream.pipe, stream.held) = (Some(pipe), held);
            stream.capacity = None;
        }
    }

    /// Reads a pipe once, and tells whether it may hold more.
    fn read(&mut self, index: usize) -> bool {
        let stream = &mut self.streams[index];
        let Some(pipe) = &stream.pipe else {
            return false;
        };
        match rustix::io::read(pipe, &mut self.input[..]) {
            Ok(0) => {
                stream.pipe = None;
                self.end_line(index);
                false
            }
            Ok(bytes) => {
                self.swollen |= bytes > LITTLE;
                if bytes >= USUAL_PIPE && stream.capacity.is_none() {
                    stream.capacity = Some(grow(pipe));
                }
                self.take(index, bytes);
                bytes == self.input.len()
            }
            Err(error) => error == Errno::INTR,
        }
    }

    /// Cuts the first `bytes` of the input into lines.
    fn take(&mut self, index: usize, bytes: usize) {
        self.stamp.update();
        let stream = &mut self.streams[index];
        stream.heads.stamp(&self.stamp);
        let mut data = &self.input[..bytes];
        while !data.is_empty() {
            let room = data.len().min(MAX_TEXT - stream.pending.len());
            let (text, partial, taken) = match memchr::memchr(b'\n', &data[..room]) {
                Some(end) => (&data[..end], false, end + 1),
                // A newline behind a text of just the full length ends it.
                None if data.get(room) == Some(&b'\n') => (&data[..room], false, room + 1),
                None if stream.pending.len() + room == MAX_TEXT && data.len() > room => {
                    (&data[..room], true, room)
                }
                None => {
                    // The end of what was read, not of the line.
                    stream.pending.extend_from_slice(&data[..room]);
                    break;
                }
            };
            let to = &mut self.batch[self.batched..];
            self.batched += stream.heads.write(to, &stream.pending, text, partial);
            stream.pending.clear();
            data = &data[taken..];
            if self.batch.len() - self.batched < MAX_LINE {
                self.files.write(&self.batch[..self.batched]);
                self.batched = 0;
                self.swollen = true;
            }
        }
    }

    /// What stands there without a newline is a line.
    fn end_line(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        if stream.pending.is_empty() {
            return;
        }
        self.stamp.update();
        stream.heads.stamp(&self.stamp);
        let to = &mut self.batch[self.batched..];
        self.batched += stream.heads.write(to, &stream.pending, &[], false);
        stream.pending = Vec::new();
        self.flush();
    }

    fn flush(&mut self) {
        self.files.write(&self.batch[..self.batched]);
        self.swollen |= self.batched > LITTLE;
        self.batched = 0;
    }
}

/// A new end to write to a stream's pipe with.
fn writer(stream: &mut Stream) -> io::Result<OwnedFd> {
    if let Some(held) = &stream.held {
        return held.try_clone();
    }
    if let Some(pipe) = &stream.pipe {
        // A pipe is opened like a FIFO by way of its link, see proc_pid_fd(5).
        let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        let file = std::fs::File::options().write(true).open(path)?;
        return Ok(file.into());
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
    stream.pipe = Some(read);
    stream.capacity = None;
    Ok(write)
}

/// Makes a pipe as large as it may be, and tells how large it is.
fn grow(pipe: &OwnedFd) -> usize {
    let mut wanted = FLOOD_PIPE;
    while wanted > USUAL_PIPE {
        if fcntl_setpipe_size(pipe, wanted).is_ok() {
            break;
        }
        wanted /= 2;
    }
    fcntl_getpipe_size(pipe).unwrap_or(USUAL_PIPE)
}

#[cfg(test)]
mod tests;
