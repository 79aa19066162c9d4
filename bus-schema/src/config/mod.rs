//! `blackhole.yaml`: what a person writes, checked, with every default filled in.
//!
//! ```text
//! file ──read (4 MiB at most)──► text ──tree──► places and values
//!        environment variables ──────────────────────┤
//!                              runtime, services ◄───┘ section: typed getters
//!                                      └─ graph: dependencies ──► Config
//! ```
//!
//! There is one error at a time, the first that is found, with file, line,
//! column and the path of keys ([`ConfigError`]); [`Document::mistakes`] finds
//! them all. Precedence: a daemon's flags,
//! `BLACKHOLE_RUNTIME_…` variables, the file, defaults.
//!
//! Paths: `working_dir` and a program with a slash in it (`./worker`,
//! `bin/worker`) are taken from the directory of the configuration file; a
//! program without one is looked up in `PATH` at the spawn. `${config_dir}`
//! stands for that directory in commands, `exec` probes, `working_dir`, `stdin`,
//! `env_files` and `env`. See [`mod@reference`] for what else `env` can refer to.

mod all;
mod environment;
mod error;
mod graph;
mod kept;
mod limits;
mod listen;
mod managers;
mod model;
mod notes;
mod orchestrator;
mod places;
mod probe;
pub mod reference;
mod section;
mod service;
mod settings;
mod tree;
mod turns;
mod units;

use std::io::Read;
use std::path::Path;

pub use error::{ConfigError, Invalid};
pub use kept::{Changed, Difference, Kept};
pub use listen::Listen;
pub use model::{
    Condition, Config, Dependency, Document, Orchestrator, Priority, RestartMode, RestartPolicy,
    ServiceConfig,
};
pub use notes::{Note, STANDBY_PIDS};
pub use places::Places;

use section::Field;

/// Largest configuration, in bytes: a thousand services take some 400 KiB.
pub const MAX_BYTES: u64 = 4 * 1024 * 1024;

impl Config {
    /// Reads a file, with the process's environment variables over it.
    ///
    /// # Errors
    /// When it cannot be read, is too large, is not text, or is wrong; nothing
    /// larger than [`MAX_BYTES`] is read into memory.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Document::load(path)?.config)
    }

    /// [`Config::load`] with these environment variables instead of the process's own.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with(
        path: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Ok(Document::load_with(path, variables)?.config)
    }

    /// Parses a text; `name` is what errors call it. Without environment
    /// variables; relative paths are taken from the current directory.
    ///
    /// # Errors
    /// When something in it is wrong.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        Ok(Document::parse(text, name)?.config)
    }

    /// Parses a text whose relative paths are taken from `dir`, with
    /// environment variables over it.
    ///
    /// # Errors
    /// When something in it, or in a variable, is wrong.
    pub fn parse_in(
        text: &str,
        name: &str,
        dir: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Ok(Document::parse_in(text, name, dir, variables)?.config)
    }
}

impl Document {
    /// Reads a file, with the process's environment variables over it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::load_with(path, variables)
    }

    /// [`Document::load`] with these environment variables instead of the process's own.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with(
        path: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let absolute = std::path::absolute(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let dir = absolute.parent().unwrap_or(Path::new("/"));
        Self::parse_in(&text, &path.display().to_string(), dir, variables)
    }

    /// Parses a text, see [`Config::parse`].
    ///
    /// # Errors
    /// When something in it is wrong.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let dir = std::env::current_dir().map_err(|source| ConfigError::Read {
            path: name.into(),
            source,
        })?;
        Self::parse_in(text, name, &dir, [])
    }

    /// Parses a text, see [`Config::parse_in`].
    ///
    /// # Errors
    /// When something in it, or in a variable, is wrong.
    pub fn parse_in(
        text: &str,
        name: &str,
        dir: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let located = |problem: error::Problem| problem.locate(name, text);
        if text.len() as u64 > MAX_BYTES {
            return Err(too_large(Path::new(name), text.as_bytes()));
        }
        let mut root = tree::parse(text).map_err(located)?;
        environment::apply(&mut root, variables).map_err(located)?;
        Self::read(&root, dir).map_err(located)
    }

    /// What a tree says.
    fn read(root: &tree::Node, dir: &Path) -> Result<Self, error::Problem> {
        let top = Field::new(root, "").section(&["runtime", "services"])?;
        let runtime = top
            .read("runtime", orchestrator::runtime)?
            .unwrap_or_default();
        let services = top
            .read("services", |field| service::services(field, &runtime, dir))?
            .unwrap_or_default();
        Ok(Self {
            listen: runtime.listen,
            descriptions: services.descriptions,
            config: Config {
                orchestrator: runtime.orchestrator,
                services: services.services,
            },
        })
    }
}

/// Reads at most [`MAX_BYTES`] of UTF-8 text.
/// A text that is too large, with the place where it becomes so.
fn too_large(path: &Path, bytes: &[u8]) -> ConfigError {
    let (line, column) = place(bytes, usize::try_from(MAX_BYTES).unwrap_or(usize::MAX));
    ConfigError::TooLarge {
        path: path.to_owned(),
        line,
        column,
        limit: MAX_BYTES,
    }
}

/// Line and column in bytes, both from 1, of the byte at `offset`.
fn place(bytes: &[u8], offset: usize) -> (u64, u64) {
    let before = bytes.get(..offset).unwrap_or(bytes);
    let line = before.iter().filter(|byte| **byte == b'\n').count();
    let start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    (line as u64 + 1, (before.len() - start) as u64 + 1)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(ConfigError::Directory {
            path: path.to_owned(),
        });
    }
    let expected = metadata.len().min(MAX_BYTES + 1);
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    // A device or a growing file may hold more than it says.
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(too_large(path, &bytes));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let (line, column) = place(bytes, at);
        ConfigError::NotText {
            path: path.to_owned(),
            line,
            column,
            byte: bytes.get(at).copied().unwrap_or_default(),
        }
    })
}
