//! Making and removing the directories of groups.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::file::{self, CgroupError};

/// The directories of one instance, one a hierarchy where one could be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dirs {
    /// By the index of the tree in the layout.
    by_tree: Vec<(usize, PathBuf)>,
}

impl Dirs {
    pub(super) fn insert(&mut self, tree: usize, path: PathBuf) {
        if self.get(tree).is_none() {
            self.by_tree.push((tree, path));
            self.by_tree.sort();
        }
    }

    pub(super) fn get(&self, tree: usize) -> Option<&Path> {
        self.by_tree
            .iter()
            .find(|(index, _)| *index == tree)
            .map(|(_, path)| path.as_path())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Path)> {
        self.by_tree
            .iter()
            .map(|(tree, path)| (*tree, path.as_path()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_tree.is_empty()
    }

    /// The processes in any of them and in groups below them, without doubles.
    pub(super) fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self
            .iter()
            .flat_map(|(_, path)| processes_below(path))
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// The processes of a group and of all groups below it.
pub(super) fn processes_below(group: &Path) -> Vec<u32> {
    let mut pids = file::processes(group);
    for child in file::children(group) {
        pids.extend(processes_below(&child));
    }
    pids
}

/// Makes `levels` one below the other, outermost first. When one fails, those
/// made by this call are removed again.
pub(super) fn make(levels: &[PathBuf]) -> Result<Vec<PathBuf>, CgroupError> {
    let mut made: Vec<PathBuf> = Vec::new();
    for level in levels {
        match file::make_dir(level) {
            Ok(true) => made.push(level.clone()),
            Ok(false) => {}
            Err(error) => {
                unmake(&made);
                return Err(error);
            }
        }
    }
    Ok(made)
}

/// Removes what [`make`] made, innermost first, as far as it is empty.
pub(super) fn unmake(made: &[PathBuf]) {
    for level in made.iter().rev() {
        if let Err(error) = file::remove_dir(level) {
            tracing::debug!(error = file::chain(&error), "a group stays");
        }
    }
}

/// Removes a group and the groups that its service made below it. `Ok(false)`
/// while the kernel still holds a process there: the last ones may be dying.
pub(super) fn remove(group: &Path) -> Result<bool, CgroupError> {
    match file::remove_dir(group) {
        Ok(()) => return Ok(true),
        Err(error) if error.is(Errno::BUSY) || error.is(Errno::NOTEMPTY) => {}
        Err(error) => return Err(error),
    }
    for child in file::children(group) {
        if !remove(&child)? {
            return Ok(false);
        }
    }
    match file::remove_dir(group) {
        Ok(()) => Ok(true),
        Err(error) if error.is(Errno::BUSY) || error.is(Errno::NOTEMPTY) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("a/b"));
        std::fs::write(dir.path().join("file"), "").unwrap();
        let blocked = dir.path().join("file/c");
        let error = make(&[a.clone(), b.clone(), blocked.clone()]).unwrap_err();
        assert!(error.to_string().contains(blocked.to_str().unwrap()));
        assert!(!a.exists());

        assert_eq!(
            make(&[a.clone(), b.clone()]).unwrap(),
            [a.clone(), b.clone()]
        );
        assert_eq!(
            make(&[a.clone(), b.clone()]).unwrap(),
            Vec::<PathBuf>::new()
        );
        // What was there before is not removed.
        make(&[a.clone(), blocked]).unwrap_err();
        assert!(b.exists());
        assert!(remove(&a).unwrap());
        assert!(!a.exists());
        assert!(remove(&a).unwrap());
    }
}
