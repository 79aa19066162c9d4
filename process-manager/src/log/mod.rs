//! Reading the logs that the shims write.
//!
//! A log is `log` (the current file) and `log.00000001`, `log.00000002.gz` …
//! (rotated, the higher the newer) in the instance's directory. Everything here blocks on
//! the disk and is called from the blocking pool, never from the runtime's
//! thread.

pub(crate) mod age;
mod files;
mod follow;
mod gzip;
mod keep;
pub(crate) mod names;
mod parse;
mod read;
mod seek;

pub use files::{LogFiles, Position};
pub use follow::Follower;
pub use keep::Keeper;
pub use parse::{Parsed, base64, stamp_ns};
pub use read::{PAGE_BYTES, Page, read};

/// Name of the current log file in an instance's directory.
pub const CURRENT: &str = "log";

/// An operation on an instance's log that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct LogError {
    /// `open`, `read`, `list` …
    pub operation: &'static str,
    /// Which file or directory.
    pub path: std::path::PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

#[cfg(test)]
mod tests;
