//! What the checks of a configuration are about: the file, the places of its
//! keys, and what the process-managers see.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::config::{Document, Places, ServiceConfig};
use blackhole_bus_schema::names::Component;
use blackhole_process_manager::environment::{Sources, read_secret_file};
use serde::Serialize;

use crate::view::component::Found;

/// Where something stands in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct At {
    /// The file.
    pub(super) file: PathBuf,
    /// Line, from 1; of the nearest key above it where it stands in no place of the file.
    pub(super) line: Option<u64>,
    /// Column, from 1.
    pub(super) column: Option<u64>,
    /// The keys that lead to it, joined with dots.
    pub(super) key: String,
}

impl At {
    /// `blackhole.yaml:12:5: services.web.user`.
    pub(super) fn text(&self) -> String {
        let name = self.file.file_name().unwrap_or(self.file.as_os_str());
        let mut text = name.to_string_lossy().into_owned();
        if let (Some(line), Some(column)) = (self.line, self.column) {
            text.push_str(&format!(":{line}:{column}"));
        }
        format!("{text}: {}", self.key)
    }
}

/// A configuration that is checked against this host.
pub(super) struct Subject<'a> {
    pub(super) path: &'a Path,
    pub(super) document: &'a Document,
    /// `None` where the file was changed meanwhile and is no YAML any more.
    places: Option<Places>,
    /// The environments of the process-managers that run.
    environments: BTreeMap<Component, BTreeMap<OsString, OsString>>,
}

impl<'a> Subject<'a> {
    pub(super) fn new(path: &'a Path, document: &'a Document, found: &[Found]) -> Self {
        let managers = found
            .iter()
            .filter(|found| matches!(found.component, Component::ProcessManager(_)));
        let environments = managers
            .filter_map(|found| {
                let pid = found.info()?.pid;
                Some((found.component.clone(), environment_of(pid)?))
            })
            .collect();
        Self {
            path,
            document,
            places: Places::load(path).ok(),
            environments,
        }
    }

    /// Where a key stands.
    pub(super) fn at(&self, keys: &[&str]) -> At {
        let place = self.places.as_ref().and_then(|places| places.of(keys));
        At {
            file: self.path.to_owned(),
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
            key: keys.join("."),
        }
    }

    /// Where a key of a service stands.
    pub(super) fn of_service(&self, service: &str, keys: &[&str]) -> At {
        self.at(&[&["services", service], keys].concat())
    }

    /// What the service's process-manager takes references from: its own
    /// environment where it runs, else this process's.
    pub(super) fn sources(&self, service: &ServiceConfig) -> Seen<'_> {
        let manager = Component::ProcessManager(service.manager.clone());
        Seen(self.environments.get(&manager))
    }
}

/// The host, with the environment of a process-manager where one runs.
pub(super) struct Seen<'a>(Option<&'a BTreeMap<OsString, OsString>>);

impl Seen<'_> {
    /// Whose environment it is, for a person.
    pub(super) fn whose(&self) -> &'static str {
        match self.0 {
            Some(_) => "the process-manager",
            None => "this shell, whose environment `blackhole up` would give it,",
        }
    }
}

impl Sources for Seen<'_> {
    fn variable(&self, name: &str) -> Option<OsString> {
        match self.0 {
            Some(all) => all.get(OsStr::new(name)).cloned(),
            None => std::env::var_os(name),
        }
    }

    fn file(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        read_secret_file(path)
    }
}

/// The environment that a process was started with, see proc_pid_environ(5).
fn environment_of(pid: u32) -> Option<BTreeMap<OsString, OsString>> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let all = bytes.split(|byte| *byte == 0).filter_map(|assignment| {
        let at = assignment.iter().position(|byte| *byte == b'=')?;
        let (name, value) = assignment.split_at(at);
        let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        Some((text(name), text(&value[1..])))
    });
    Some(all.collect())
}
