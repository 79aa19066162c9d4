//! Which process-managers a deployment has, and whose an instance is, where
//! several share its directories.

use std::collections::BTreeSet;
use std::path::Path;

use crate::config::Config;
use crate::dirs::Dirs;
use crate::names::{Component, InstanceName, ManagerName};
use crate::regular;

/// The manager whose instances bear no name.
pub const UNNAMED: &str = "process-manager";

/// File in an instance's folder that names its manager; absent: the one without a name.
pub const OWNER: &str = "owner";

/// Longest text in such a file, in bytes: more than any name has.
const MOST_OWNER: u64 = 4096;

/// The process-manager that started the instance in `folder` last; the one
/// without a name where that cannot be read. Blocks for one small read.
pub fn owner(folder: &Path) -> String {
    let bytes = regular::read(&folder.join(OWNER), MOST_OWNER).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.map_or_else(|| UNNAMED.to_owned(), |text| text.trim().to_owned())
}

/// The instances that named process-managers started last, in no order. Blocks
/// for a look into each instance's folder.
pub fn owned(dirs: &Dirs) -> Vec<(InstanceName, ManagerName)> {
    let folders = std::fs::read_dir(dirs.state.join("instances"));
    folders
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let instance = entry.file_name().to_str()?.parse().ok()?;
            match owner(&entry.path()).parse() {
                Ok(Component::ProcessManager(Some(name))) => Some((instance, name)),
                _ => None,
            }
        })
        .collect()
}

/// The named process-managers that have sockets, ordered by name. Blocks for
/// one directory.
pub fn bound(dirs: &Dirs) -> BTreeSet<ManagerName> {
    let sockets = std::fs::read_dir(dirs.run.join("bus"));
    let names = sockets.into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name();
        match name.to_str()?.strip_suffix(".cmd")?.parse() {
            Ok(Component::ProcessManager(name)) => name,
            _ => None,
        }
    });
    names.collect()
}

/// All process-managers that somebody may have to talk to: the one without a
/// name, those of the configuration, those that have sockets, and those that
/// started an instance which has not been forgotten. Blocks.
pub fn known(dirs: &Dirs, config: Option<&Config>) -> BTreeSet<Option<ManagerName>> {
    let mut all: BTreeSet<_> = bound(dirs).into_iter().map(Some).collect();
    all.insert(None);
    all.extend(
        config
            .into_iter()
            .flat_map(|one| one.orchestrator.managers()),
    );
    all.extend(owned(dirs).into_iter().map(|(_, name)| Some(name)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_may_be_there_are_known() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            run: temp.path().join("r"),
            state: temp.path().join("s"),
        };
        assert_eq!(known(&dirs, None), BTreeSet::from([None]));
        dirs.create().unwrap();
        let name = |text: &str| Some(text.parse::<ManagerName>().unwrap());
        std::fs::write(dirs.run.join("bus/process-manager.gpu.cmd"), "").unwrap();
        std::fs::write(dirs.run.join("bus/process-manager.cmd"), "").unwrap();
        let folder = dirs.instance(&"web.1".parse().unwrap());
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(owner(&folder), UNNAMED);
        std::fs::write(folder.join(OWNER), "process-manager.old\n").unwrap();
        let mut config = Config::default();
        let declared = &mut config.orchestrator.process_managers;
        declared.insert("batch".parse().unwrap(), 5);
        let all = [None, name("batch"), name("gpu"), name("old")];
        assert_eq!(known(&dirs, Some(&config)), BTreeSet::from(all));
    }
}
