//! The environment of a service: a minimal base, what the files of its
//! configuration assign, what that asks for itself with references resolved, and the `BLACKHOLE_…` variables on top.
//!
//! Values may be secrets. They live only in an [`Environment`], whose `Debug`
//! shows keys alone, and errors name a key and a reference but no value.

mod file;
mod reference;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use blackhole_bus_schema::process::{EnvFile, SpawnFailure, SpawnSpec, SpawnStep};

pub use file::FileError;
pub use reference::{MAX_FILE_BYTES, ReferenceError, read_secret_file, resolve};

/// `PATH` of a service where neither its configuration nor the manager has one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where references take their values from. A seam, so that the rules are
/// tested without touching this process's own environment.
pub trait Sources {
    /// A variable of the manager's own environment.
    fn variable(&self, name: &str) -> Option<OsString>;
    /// The whole of a file. Blocks; never called on the runtime's thread.
    ///
    /// # Errors
    /// Whatever the file system says; `InvalidInput` for what is no regular file.
    fn file(&self, path: &Path) -> std::io::Result<Vec<u8>>;
}

/// The host: this process's environment and the file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

impl Sources for Host {
    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn file(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        read_secret_file(path)
    }
}

/// What the environment of one spawn is made of.
#[derive(Debug, Clone)]
pub struct Recipe<'a> {
    /// `env` of its configuration, references unresolved.
    pub env: &'a BTreeMap<String, String>,
    /// `env_files` of its configuration: below `env`, the later over the earlier.
    pub files: &'a [EnvFile],
    /// The `BLACKHOLE_…` variables, over everything else.
    pub blackhole: &'a [(&'static str, String)],
}

/// Keys and values, each key once. `Debug` shows no value.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of it, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Keys and values, for a spawn request.
    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why an environment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// A key that environ(7) does not allow.
    #[error("environment variable {0:?}: a name must not be empty nor hold '=' or NUL")]
    Key(String),
    /// One of `env_files` cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A reference that cannot be resolved.
    #[error("environment variable {key}")]
    Reference {
        /// Which variable.
        key: String,
        /// What went wrong with it.
        #[source]
        source: ReferenceError,
    },
}

impl EnvironmentError {
    /// The same as the failure of a spawn, naming key and reference.
    pub fn into_failure(self) -> SpawnFailure {
        let (operation, errno, hint) = match &self {
            Self::Key(_) => (self.to_string(), libc::EINVAL, String::new()),
            Self::File(error) => (error.to_string(), error.errno(), error.hint().to_owned()),
            Self::Reference { key, source } => (
                format!("environment variable {key}: {source}"),
                source.errno(),
                source.hint(),
            ),
        };
        SpawnFailure {
            step: SpawnStep::PrepareEnvironment,
            operation,
            errno,
            hint,
        }
    }
}

/// Makes the environment of one spawn. Blocks where a file is referred to.
///
/// # Errors
/// The first file that is wrong, or the first key or reference, in the order of the keys.
pub fn build(recipe: &Recipe<'_>, sources: &dyn Sources) -> Result<Environment, EnvironmentError> {
    let mut all = BTreeMap::new();
    let inherited = |name: &str, default: &str| {
        sources
            .variable(name)
            .and_then(|value| value.into_string().ok())
            .filter(|value| !value.is_empty())
            .unwrap_or_else(|| default.to_owned())
    };
    all.insert("PATH".to_owned(), inherited("PATH", DEFAULT_PATH));
    all.insert("LANG".to_owned(), inherited("LANG", "C.UTF-8"));
    for file in recipe.files {
        all.extend(file::read(file, sources)?);
    }
    for (key, text) in recipe.env {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(EnvironmentError::Key(key.clone()));
        }
        let value = resolve(text, sources).map_err(|source| EnvironmentError::Reference {
            key: key.clone(),
            source,
        })?;
        all.insert(key.clone(), value);
    }
    for (key, value) in recipe.blackhole {
        all.insert((*key).to_owned(), value.clone());
    }
    Ok(Environment(all))
}

/// Whether making the environment of a spawn reads files, and so may block.
pub fn reads_files(spec: &SpawnSpec) -> bool {
    !spec.settings.env_files.is_empty() || spec.env.values().any(|value| value.contains("${file:"))
}

#[cfg(test)]
mod tests;
