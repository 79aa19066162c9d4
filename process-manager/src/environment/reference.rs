//! What `${env:NAME}` and `${file:PATH}` inside the values of an environment
//! stand for. Their syntax is that of [`blackhole_bus_schema::config::reference`].

use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::config::reference::{Part, ReferenceError as SyntaxError, parse};
use rustix::fs::{Mode, OFlags};

use super::Sources;

/// Longest file a reference may name: a value must fit in one argument of
/// execve(2), which takes 128 KiB (`MAX_ARG_STRLEN`).
pub const MAX_FILE_BYTES: u64 = 128 * 1024 - 1;

/// Why a value cannot be had. Never holds one.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A reference is malformed.
    #[error("a reference that is not understood")]
    Syntax(#[source] SyntaxError),
    /// `${config_dir}`, which is filled in when a configuration is read.
    #[error("${{config_dir}} stands for something only in a configuration file")]
    ConfigDir,
    /// The manager's environment lacks the variable.
    #[error("${{env:{0}}}: the process-manager has no such variable")]
    Unset(String),
    /// The file cannot be read.
    #[error("${{file:{}}}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not an absolute path: the manager's working directory means nothing.
    #[error("${{file:{0}}}: the path must be absolute")]
    Relative(String),
    /// A NUL byte, which no variable can hold.
    #[error("{0}: the value holds a NUL byte")]
    Nul(String),
    /// Bytes that are no UTF-8.
    #[error("{0}: the value is not UTF-8 text")]
    NotText(String),
}

impl ReferenceError {
    /// The error number of errno(3), 0 where there is none.
    pub fn errno(&self) -> i32 {
        match self {
            Self::File { source, .. } => source.raw_os_error().unwrap_or(libc::EINVAL),
            _ => 0,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        let text = match self {
            Self::Syntax(error) => return error.to_string(),
            Self::ConfigDir => "write the whole path",
            Self::Unset(_) => "set it where the process-manager is started, or write the value",
            Self::File { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => "create the file",
                std::io::ErrorKind::PermissionDenied => {
                    "the process-manager's user must be able to read it"
                }
                _ => "it must be a regular file of less than 128 KiB",
            },
            Self::Relative(_) => "write the whole path",
            Self::Nul(_) => "an environment variable is text",
            Self::NotText(_) => "encode binary values, for instance as base64",
        };
        text.to_owned()
    }
}

/// Replaces every reference in `text`, once: what a reference stands for is
/// not looked into again.
///
/// # Errors
/// The first reference that is malformed or has no value.
pub fn resolve(text: &str, sources: &dyn Sources) -> Result<String, ReferenceError> {
    if text.contains('\0') {
        return Err(ReferenceError::Nul("the value as written".to_owned()));
    }
    let mut out = String::with_capacity(text.len());
    for part in parse(text).map_err(ReferenceError::Syntax)? {
        match part {
            Part::Text(text) => out.push_str(&text),
            Part::Env(name) => out.push_str(&variable(&name, sources)?),
            Part::File(path) => out.push_str(&file(&path, sources)?),
            Part::ConfigDir => return Err(ReferenceError::ConfigDir),
        }
    }
    Ok(out)
}

fn variable(name: &str, sources: &dyn Sources) -> Result<String, ReferenceError> {
    let value = sources
        .variable(name)
        .ok_or_else(|| ReferenceError::Unset(name.to_owned()))?;
    text_of(value.into_vec(), || format!("${{env:{name}}}"))
}

fn text_of(value: Vec<u8>, what: impl Fn() -> String) -> Result<String, ReferenceError> {
    if value.contains(&0) {
        return Err(ReferenceError::Nul(what()));
    }
    // The error's own text would show the value.
    String::from_utf8(value).map_err(|_| ReferenceError::NotText(what()))
}

fn file(name: &str, sources: &dyn Sources) -> Result<String, ReferenceError> {
    let path = Path::new(name);
    if !path.is_absolute() {
        return Err(ReferenceError::Relative(name.to_owned()));
    }
    let mut value = sources.file(path).map_err(|source| ReferenceError::File {
        path: path.to_owned(),
        source,
    })?;
    // Editors and `echo` end a file with a newline that is no part of the secret.
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    text_of(value, || format!("${{file:{name}}}"))
}

/// Reads a whole regular file of at most [`MAX_FILE_BYTES`]. Blocks.
///
/// Opened without blocking, so that a FIFO in its place cannot hang a spawn.
///
/// # Errors
/// As open(2) and read(2); `InvalidInput` for what is no regular file,
/// `FileTooLarge` past the limit.
pub fn read_secret_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
    let file = std::fs::File::from(descriptor);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    }
    let mut value = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut value)?;
    if value.len() as u64 > MAX_FILE_BYTES {
        return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge));
    }
    Ok(value)
}
