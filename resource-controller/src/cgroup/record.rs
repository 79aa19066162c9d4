//! What has to be known after a restart: below which bases the running
//! instances' groups are, and what was changed outside of them.
//!
//! A controller that is started again from another login session has another
//! own cgroup; without the record it would make a second set of groups and
//! lose sight of the first. Kept as `<state>/cgroups.json`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::detect::Controller;
use super::file::CgroupError;
use super::layout::{Layout, Tree};

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// The bases in use.
    pub(super) trees: Vec<RecordedTree>,
    /// v2 groups whose `cgroup.subtree_control` was changed, with the controller's name.
    pub(super) enabled: Vec<(PathBuf, String)>,
    /// Directories above the subtree that were made for a configured parent.
    pub(super) made: Vec<PathBuf>,
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordedTree {
    v2: bool,
    controllers: Vec<String>,
    mount: PathBuf,
    base: PathBuf,
}

impl Record {
    pub(super) fn of(layout: &Layout, enabled: &[(PathBuf, Controller)], made: &[PathBuf]) -> Self {
        let trees = layout.trees.iter().map(|tree| RecordedTree {
            v2: tree.v2,
            controllers: tree
                .controllers
                .iter()
                .map(|c| c.v1_name().to_owned())
                .collect(),
            mount: tree.mount.clone(),
            base: tree.base.clone(),
        });
        let enabled = enabled
            .iter()
            .map(|(dir, c)| (dir.clone(), c.v1_name().to_owned()));
        Self {
            trees: trees.collect(),
            enabled: enabled.collect(),
            made: made.to_vec(),
        }
    }

    /// The layout as it was, as far as the same hierarchies are still mounted
    /// at the same places.
    pub(super) fn layout(&self, now: &Layout) -> Layout {
        let trees = now.trees.iter().map(|tree| {
            let recorded = self.trees.iter().find(|recorded| {
                recorded.mount == tree.mount
                    && recorded.v2 == tree.v2
                    && tree
                        .controllers
                        .iter()
                        .map(|c| c.v1_name())
                        .eq(&recorded.controllers)
                    && recorded.base.starts_with(&recorded.mount)
            });
            let base = recorded.map_or_else(|| tree.base.clone(), |tree| tree.base.clone());
            Tree {
                base,
                ..tree.clone()
            }
        });
        Layout {
            trees: trees.collect(),
            problems: now.problems.clone(),
        }
    }

    /// What was switched on.
    pub(super) fn enabled(&self) -> Vec<(PathBuf, Controller)> {
        let known = |name: &str| Controller::V2.into_iter().find(|c| c.v1_name() == name);
        self.enabled
            .iter()
            .filter_map(|(dir, name)| Some((dir.clone(), known(name)?)))
            .collect()
    }

    /// The record; empty where there is none or it is damaged, which costs
    /// nothing but the knowledge of an earlier base.
    pub(super) fn load(path: &Path) -> Self {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "record of cgroups is damaged");
                Self::default()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "record of cgroups unreadable");
                }
                Self::default()
            }
        }
    }

    /// Replaces the file, readable by the owner only.
    pub(super) fn save(&self, path: &Path) -> Result<(), CgroupError> {
        let new = path.with_extension("json.new");
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(|source| CgroupError::new("replace", path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::detect::{mounts, own_cgroups};

    fn layout(own: &str) -> Layout {
        let mountinfo =
            "1 0 0:1 / /m/cpu rw - cgroup cgroup rw,cpu\n2 0 0:2 / /m/u rw - cgroup2 c rw\n";
        Layout::new(
            &mounts(mountinfo),
            &own_cgroups(&format!("1:cpu:{own}\n0::{own}\n")),
            None,
        )
    }

    #[test]
    fn a_record_brings_back_the_earlier_bases() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cgroups.json");
        let enabled = vec![(PathBuf::from("/m/u/a"), Controller::Io)];
        let record = Record::of(&layout("/a"), &enabled, &[PathBuf::from("/m/u/made")]);
        record.save(&path).unwrap();
        let loaded = Record::load(&path);
        assert_eq!(loaded, record);
        assert_eq!(loaded.layout(&layout("/b")), layout("/a"));
        assert_eq!(loaded.enabled(), enabled);
    }

    #[test]
    fn a_damaged_or_foreign_record_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cgroups.json");
        assert_eq!(Record::load(&path), Record::default());
        std::fs::write(&path, "{\"trees\": 3").unwrap();
        assert_eq!(Record::load(&path), Record::default());
        let mut record = Record::of(&layout("/a"), &[], &[]);
        record.trees[0].mount = PathBuf::from("/elsewhere");
        record.trees[1].base = PathBuf::from("/etc");
        assert_eq!(record.layout(&layout("/b")), layout("/b"));
    }
}
