//! The smallest service, and the FIFO that it tells the time of its first instruction to.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

/// How long the first instruction of a service may be waited for.
const PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// What a service says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First {
    /// The monotonic clock at its first instruction.
    pub at: Duration,
    /// Its process.
    pub pid: u32,
}

/// The monotonic clock, as the service reads it.
pub fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

/// The program and its FIFO, in a directory of somebody's.
#[derive(Debug)]
pub struct Tiny {
    program: PathBuf,
    path: PathBuf,
    fifo: File,
}

impl Tiny {
    /// Compiles the program into `directory` and makes the FIFO.
    ///
    /// # Panics
    /// When either fails: a benchmark without its subject has nothing to say.
    pub fn new(directory: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny/tiny.rs");
        let program = directory.join("tiny");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let status = Command::new(rustc)
            .args([
                "--edition",
                "2024",
                "-C",
                "opt-level=2",
                "-C",
                "panic=abort",
            ])
            .args(["-C", "debuginfo=0", "-C", "strip=symbols"])
            .args([
                "-C",
                "relocation-model=static",
                "-C",
                "target-feature=+crt-static",
            ])
            .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
            .args(["-C", "link-arg=-static", "-o"])
            .arg(&program)
            .arg(source)
            .status();
        if !status.is_ok_and(|status| status.success()) {
            panic!("the smallest service cannot be compiled");
        }
        let path = directory.join("first");
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        );
        // Both ends, so that it never ends; a writer that finds it full goes on.
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(&path);
        match (made, fifo) {
            (Ok(()), Ok(fifo)) => Self {
                program,
                path,
                fifo,
            },
            (made, fifo) => panic!("{}: {made:?} {fifo:?}", path.display()),
        }
    }

    /// Program and argument.
    pub fn command(&self) -> [&Path; 2] {
        [&self.program, &self.path]
    }

    /// The same as a list in YAML.
    pub fn yaml(&self) -> String {
        format!("[{:?}, {:?}]", self.program, self.path)
    }

    /// What the next service says.
    ///
    /// # Panics
    /// When none says anything in a minute.
    pub fn first(&mut self) -> First {
        let mut bytes = [0; 16];
        loop {
            let mut fds = [PollFd::new(&self.fifo, PollFlags::IN)];
            if poll(&mut fds, Some(&PATIENCE)) == Ok(0) {
                panic!("no service came to its first instruction in a minute");
            }
            // Each service writes its 16 bytes at once, so they are never mixed.
            if self.fifo.read_exact(&mut bytes).is_ok() {
                let (at, pid) = bytes.split_at(8);
                let number =
                    |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
                return First {
                    at: Duration::from_nanos(number(at)),
                    pid: u32::try_from(number(pid)).unwrap_or(0),
                };
            }
        }
    }

    /// Forgets what has been said and not been read.
    pub fn clear(&mut self) {
        let mut bytes = [0; 4096];
        while self.fifo.read(&mut bytes).is_ok_and(|count| count > 0) {}
    }
}
