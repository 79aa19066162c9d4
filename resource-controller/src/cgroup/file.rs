//! Reading and writing of the kernel's files, with errors that name the file.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// What failed on which file.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A system call failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, for instance `read` or `write "100" to`.
        operation: String,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file holds something else than what the kernel's documentation says.
    #[error("{} holds {text:?}, which is not understood", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its text.
        text: String,
    },
}

impl CgroupError {
    pub(super) fn new(operation: impl Into<String>, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation: operation.into(),
            path: path.to_owned(),
            source,
        }
    }

    /// The system's error, where it is one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Format { .. } => None,
        }
    }

    /// Whether the system said this.
    pub fn is(&self, errno: Errno) -> bool {
        self.io().and_then(io::Error::raw_os_error) == Some(errno.raw_os_error())
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The whole file as text. The kernel's files are small and ASCII but for paths.
pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(source) => Err(CgroupError::new("read", path, source)),
    }
}

/// Reads and parses.
pub(super) fn read_as<T>(path: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<T, CgroupError> {
    let text = read(path)?;
    parse(&text).ok_or_else(|| CgroupError::Format {
        path: path.to_owned(),
        text: text.trim().chars().take(80).collect(),
    })
}

/// Writes in one call, into a file that exists: control files take a value a
/// write, and a missing one must be told apart from a forbidden one. (They
/// ignore the truncation, which is for plain files in tests.)
pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::new(format!("write {value:?} to"), path, source))
}

/// Makes a directory; one that is there is fine. True when it was made.
pub(super) fn make_dir(path: &Path) -> Result<bool, CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(CgroupError::new("make", path, source)),
    }
}

/// Removes a directory; one that is gone is fine.
pub(super) fn remove_dir(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CgroupError::new("remove", path, source)),
    }
}

/// The directories directly below `path`; none where it cannot be read.
pub(super) fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The processes in a group (not in groups below it); none where it is gone.
pub(super) fn processes(group: &Path) -> Vec<u32> {
    read(&group.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default()
}

/// Whether groups can be made below `base`, or below what is there of it.
pub(super) fn writable(mount: &Path, base: &Path) -> Result<(), String> {
    let nearest = base
        .ancestors()
        .take_while(|dir| dir.starts_with(mount))
        .find(|dir| dir.exists())
        .unwrap_or(mount);
    rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK)
        .map_err(|errno| hint(&CgroupError::new("write to", nearest, errno.into())))
}

/// An error with what to do about it.
pub(super) fn hint(error: &CgroupError) -> String {
    let text = chain(error);
    if error.is(Errno::ACCESS) || error.is(Errno::PERM) {
        format!("{text} (run as root, or in a cgroup that is delegated to this user)")
    } else if error.is(Errno::ROFS) {
        format!("{text} (the hierarchy is mounted read-only, as in a container)")
    } else {
        text
    }
}
