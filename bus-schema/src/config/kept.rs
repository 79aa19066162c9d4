//! What a daemon was started with: `<state>/config/<component>.json`. By it others
//! see that the file was edited since, which no daemon reads again by itself.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::ConfigError;
use super::model::{Document, RestartPolicy};
use crate::dirs::{Dirs, hex};
use crate::names::{Component, ServiceName};

/// Longest file that is read: a hundred thousand services.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// A configuration as a daemon took it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The daemon's life; one that has gone on to another has written another file.
    pub incarnation: u64,
    /// Digests of two versions cannot be compared.
    version: String,
    /// The file, absolute.
    pub path: PathBuf,
    /// Digest of the file's bytes.
    text: String,
    /// The environment variables that stood above the file.
    variables: BTreeMap<String, String>,
    /// Digest of what is said below `runtime` and not in the services' own settings.
    runtime: String,
    /// The services' effective settings.
    services: BTreeMap<ServiceName, Print>,
}

/// The settings of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Print {
    digest: String,
    /// Whether a life before was started with others.
    changed: bool,
}

/// How a file differs from what a daemon was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Not at all, or in nothing that has an effect.
    None,
    /// It cannot be read, or is wrong: the daemon could not be started with it.
    Wrong(String),
    /// It has other settings.
    Settings(Changed),
}

/// What a file has that a daemon has not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// Whether something below `runtime` differs that is no service's setting.
    pub runtime: bool,
    /// Services with other settings.
    pub services: Vec<ServiceName>,
    /// Services that are new.
    pub added: Vec<ServiceName>,
    /// Services that have gone.
    pub removed: Vec<ServiceName>,
}

impl Changed {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Document {
    /// [`Document::load`], and what is to be kept of it by [`Kept::write`].
    ///
    /// # Errors
    /// As [`Document::load`].
    pub fn load_to_keep(path: &Path) -> Result<(Self, Kept), ConfigError> {
        let prefix = super::environment::PREFIX;
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let value = value.into_string().ok()?;
            name.starts_with(prefix).then_some((name, value))
        });
        Kept::take(path, variables.collect())
    }
}

impl Kept {
    fn take(
        path: &Path,
        variables: BTreeMap<String, String>,
    ) -> Result<(Document, Self), ConfigError> {
        let text = super::read(path)?;
        let absolute = std::path::absolute(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let dir = absolute.parent().unwrap_or(Path::new("/"));
        let above = variables.clone();
        let document = Document::parse_in(&text, &path.display().to_string(), dir, above)?;
        // Each service has its own policy already.
        let mut orchestrator = document.config.orchestrator.clone();
        orchestrator.restart_policy = RestartPolicy::default();
        let services = document.config.services.iter().map(|(name, service)| {
            let digest = digest(service);
            (
                name.clone(),
                Print {
                    digest,
                    changed: false,
                },
            )
        });
        let kept = Self {
            incarnation: 0,
            version: crate::VERSION.to_owned(),
            text: digest_of(text.as_bytes()),
            variables,
            runtime: digest(&(orchestrator, document.listen)),
            services: services.collect(),
            path: absolute,
        };
        Ok((document, kept))
    }

    fn file(dirs: &Dirs, component: &Component) -> PathBuf {
        let name = format!("{component}.json");
        dirs.state.join("config").join(name)
    }

    /// Keeps it as what this life of the component was started with.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn write(
        mut self,
        dirs: &Dirs,
        component: &Component,
        incarnation: u64,
    ) -> std::io::Result<()> {
        self.incarnation = incarnation;
        if let Some(before) = Self::read(dirs, component) {
            self.follow(&before);
        }
        let path = Self::file(dirs, component);
        let temporary = path.with_extension("new");
        crate::regular::write(&temporary, &serde_json::to_vec(&self)?)?;
        std::fs::rename(&temporary, &path)
    }

    /// Takes over which settings have changed.
    fn follow(&mut self, before: &Self) {
        for (name, print) in &mut self.services {
            if let Some(earlier) = before.services.get(name) {
                print.changed = earlier.changed || print.digest != earlier.digest;
            }
        }
    }

    /// What a component keeps; `None` where there is nothing, or nothing that can be read.
    pub fn read(dirs: &Dirs, component: &Component) -> Option<Self> {
        let bytes = crate::regular::read(&Self::file(dirs, component), MOST_BYTES).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Forgets it: the component was started without a configuration.
    pub fn remove(dirs: &Dirs, component: &Component) {
        let _ = std::fs::remove_file(Self::file(dirs, component));
    }

    /// Whether a service may still run with what was said before: its settings were
    /// others in an earlier life of the component.
    pub fn has_changed(&self, service: &ServiceName) -> bool {
        self.services
            .get(service)
            .is_some_and(|print| print.changed)
    }

    /// What the file says now.
    ///
    /// # Errors
    /// As [`Document::load`].
    pub fn document(&self) -> Result<Document, ConfigError> {
        Document::load_with(&self.path, self.variables.clone())
    }

    /// How the file differs now.
    pub fn difference(&self) -> Difference {
        let now = match Self::take(&self.path, self.variables.clone()) {
            Ok((_, now)) => now,
            Err(error) => {
                let mut text = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    text = format!("{text}: {source}");
                }
                let first = text.lines().next().unwrap_or_default();
                return Difference::Wrong(first.to_owned());
            }
        };
        if now.text == self.text || now.version != self.version {
            return Difference::None;
        }
        let mut changed = Changed {
            runtime: now.runtime != self.runtime,
            ..Changed::default()
        };
        for (name, print) in &now.services {
            match self.services.get(name) {
                None => changed.added.push(name.clone()),
                Some(before) if before.digest != print.digest => {
                    changed.services.push(name.clone())
                }
                Some(_) => {}
            }
        }
        let gone = self
            .services
            .keys()
            .filter(|name| !now.services.contains_key(*name));
        changed.removed = gone.cloned().collect();
        match changed.is_empty() {
            true => Difference::None,
            false => Difference::Settings(changed),
        }
    }
}

fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)[..8])
}

/// A digest of all fields of a value.
fn digest(value: &impl Debug) -> String {
    struct Into(Sha256);
    impl std::fmt::Write for Into {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.update(text.as_bytes());
            Ok(())
        }
    }
    let mut into = Into(Sha256::new());
    // Neither this writer nor a derived `Debug` fails.
    let _ = write!(into, "{value:?}");
    hex(&into.0.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "
runtime: {orchestrator: {resource_limits: {default_memory_mb: 100}}}
services:
  web: {command: [web]}
  db: {command: [db], resources: {memory_mb: 5}}
  old: {command: [old], resources: {memory_mb: 5}}
";

    fn names(names: &[&str]) -> Vec<ServiceName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn what_an_edit_changes_is_told_by_service() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("b.yaml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(BEFORE);
        let (_, kept) = Kept::take(&path, BTreeMap::new()).unwrap();
        let settings = |changed| Difference::Settings(changed);
        assert_eq!(kept.difference(), Difference::None);
        write(&format!("# a comment\n{BEFORE}"));
        assert_eq!(kept.difference(), Difference::None);
        // A default reaches the service that has no value of its own.
        write(&BEFORE.replace("default_memory_mb: 100", "default_memory_mb: 200"));
        let changed = Changed {
            services: names(&["web"]),
            ..Changed::default()
        };
        assert_eq!(kept.difference(), settings(changed));
        write(&BEFORE.replace("old: {command: [old]", "new: {command: [old]"));
        let changed = Changed {
            added: names(&["new"]),
            removed: names(&["old"]),
            ..Changed::default()
        };
        assert_eq!(kept.difference(), settings(changed));
        write(&BEFORE.replace("{orchestrator: {", "{orchestrator: {restart_burst: 3, "));
        let changed = Changed {
            runtime: true,
            ..Changed::default()
        };
        assert_eq!(kept.difference(), settings(changed));
        write("services: [");
        assert!(matches!(kept.difference(), Difference::Wrong(text) if text.contains("b.yaml:1:")));
        std::fs::remove_file(&path).unwrap();
        assert!(
            matches!(kept.difference(), Difference::Wrong(text) if text.contains("No such file"))
        );
    }

    #[test]
    fn that_settings_have_changed_outlives_starts_that_change_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
        dirs.create().unwrap();
        let path = temp.path().join("b.yaml");
        let component = Component::Supervisor;
        let start = |text: &str, incarnation| {
            std::fs::write(&path, text).unwrap();
            let (_, kept) = Kept::take(&path, BTreeMap::new()).unwrap();
            kept.write(&dirs, &component, incarnation).unwrap();
            Kept::read(&dirs, &component).unwrap()
        };
        let changed = |kept: &Kept| {
            let names = names(&["web", "db", "old"]).into_iter();
            names
                .filter(|name| kept.has_changed(name))
                .collect::<Vec<_>>()
        };
        assert_eq!(changed(&start(BEFORE, 1)), []);
        let edited = BEFORE.replace("[web]", "[web, now]");
        assert_eq!(changed(&start(&edited, 2)), names(&["web"]));
        let third = start(&edited, 3);
        assert_eq!((changed(&third), third.incarnation), (names(&["web"]), 3));
        Kept::remove(&dirs, &component);
        assert_eq!(Kept::read(&dirs, &component), None);
    }
}
