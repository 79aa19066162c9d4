//! What a deployment leaves when its daemons could not clear it away
//! themselves: sockets, locks, control groups.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blackhole_bus_schema::dirs::{Dirs, Lock};
use blackhole_process_manager::shim::client::read_record;

use crate::error::Error;
use crate::keeper_file::KeeperFile;
use crate::{client, host, human, offline};

use super::stray;

/// A group counts as in use for a moment after its last process has ended;
/// v1 has no event for it. So often, and after such a wait, it is tried again.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Removes what only means something while somebody is there.
pub(super) async fn clean(dirs: &Dirs) {
    for component in client::components(dirs) {
        let path = dirs.lock(&component.to_string());
        // Free locks only: dropping one removes its file.
        if path.exists() && !matches!(Lock::try_take(&path), Ok(Some(_))) {
            return;
        }
    }
    if !offline::live(dirs).await.is_empty() {
        return;
    }
    for folder in ["bus", "rpc", "i", "fs"] {
        for entry in std::fs::read_dir(dirs.run.join(folder))
            .into_iter()
            .flatten()
            .flatten()
        {
            // What somebody listens on is the only trace of them, where there is no lock.
            if !stray::is_in_use(&entry.path()).await {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    for _ in 0..TRIES {
        let groups = cgroups(dirs);
        if groups.is_empty() {
            break;
        }
        for group in groups {
            remove_groups(&group, 4);
        }
        tokio::time::sleep(PAUSE).await;
    }
    KeeperFile::remove(dirs);
}

/// Removes a group and the groups in it; those with processes stay.
fn remove_groups(group: &Path, depth: u32) {
    if depth > 0 {
        for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_groups(&entry.path(), depth - 1);
            }
        }
    }
    // Not `remove_dir_all`: the kernel's files in it cannot be removed one by one.
    let _ = std::fs::remove_dir(group);
}

/// Says what could not be ended.
///
/// # Errors
/// When something is left.
pub(super) async fn check(dirs: &Dirs) -> Result<(), Error> {
    let mut left: Vec<String> = offline::live(dirs)
        .await
        .iter()
        .map(ToString::to_string)
        .collect();
    for component in client::components(dirs) {
        if client::is_locked(&dirs.lock(&component.to_string())) {
            left.push(component.to_string());
        }
    }
    left.extend(
        cgroups(dirs)
            .iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::Failed {
        message: format!(
            "not everything could be ended, left: {}",
            human::list(&left, 8)
        ),
        hint: "`blackhole --offline status` shows what lives; `blackhole down` tries again"
            .to_owned(),
    })
}

/// This deployment's groups that exist: below the own group of each hierarchy,
/// and wherever the instances' records say that they were.
fn cgroups(dirs: &Dirs) -> BTreeSet<PathBuf> {
    let name = dirs.cgroup_name();
    let own = host::own_cgroups().into_iter().map(|own| own.join(&name));
    let recorded = offline::instances(dirs).into_iter().flat_map(|instance| {
        let grant = read_record(&dirs.instance(&instance))
            .ok()
            .flatten()
            .and_then(|record| record.grant);
        let paths = grant.map(|grant| {
            let joined = grant.cgroups.into_iter().map(|group| group.path);
            joined
                .chain(grant.kill_cgroup)
                .chain(grant.freezer_cgroup)
                .collect::<Vec<_>>()
        });
        paths
            .unwrap_or_default()
            .into_iter()
            .filter_map(|path| subtree(Path::new(&path), &name))
    });
    own.chain(recorded).filter(|path| path.is_dir()).collect()
}

/// The part of a group's path that ends with the deployment's own name.
fn subtree(path: &Path, name: &str) -> Option<PathBuf> {
    path.ancestors()
        .find(|one| one.file_name().is_some_and(|last| last == name))
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_subtree_is_meant() {
        let path = Path::new("/sys/fs/cgroup/cpu/a/blackhole-12345678/web.1");
        assert_eq!(
            subtree(path, "blackhole-12345678"),
            Some("/sys/fs/cgroup/cpu/a/blackhole-12345678".into())
        );
        assert_eq!(subtree(path, "blackhole"), None);
        assert_eq!(subtree(path, "blackhole-99999999"), None);
    }

    #[test]
    fn folders_within_folders_are_removed_and_those_in_use_stay() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("blackhole-1");
        std::fs::create_dir_all(root.join("a.1/inner")).unwrap();
        std::fs::create_dir_all(root.join("b.1")).unwrap();
        // A plain file keeps its folder, as a process keeps its group.
        std::fs::write(root.join("b.1/busy"), "").unwrap();
        remove_groups(&root, 4);
        assert!(!root.join("a.1").exists() && root.join("b.1").exists());
    }
}
