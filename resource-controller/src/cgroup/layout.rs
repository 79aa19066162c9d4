//! Where the groups go: for each hierarchy a base directory (the own cgroup,
//! or the configured parent), below it the subtree, below that one group an
//! instance. Pure apart from [`Layout::of_this_process`].

use std::path::{Component as PathPart, Path, PathBuf};

use blackhole_bus_schema::limits::CgroupVersion;

use super::detect::{CgroupMount, Controller, MountKind, OwnCgroups, mounts, own_cgroups};
use super::file;

/// Name of the leaf beside the services that holds the daemons and shims on v2.
/// No instance has such a name: names do not begin with an underscore.
pub const CONTROL_LEAF: &str = "_control";

/// One hierarchy in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Whether it is the v2 tree.
    pub v2: bool,
    /// v1: the controllers mounted here. v2: empty; what is there is asked of
    /// the base's `cgroup.controllers`.
    pub controllers: Vec<Controller>,
    /// The mount point.
    pub mount: PathBuf,
    /// The directory below which the subtree goes.
    pub base: PathBuf,
}

/// The hierarchies of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// v1 hierarchies in the order of the mounts, then the v2 tree.
    pub trees: Vec<Tree>,
    /// Hierarchies that cannot be used and why, for a person.
    pub problems: Vec<String>,
}

impl Layout {
    /// Reads `/proc` and lays out; a host without cgroups gives an empty layout
    /// with the problem in it.
    pub fn of_this_process(parent: Option<&str>) -> Self {
        let read = |path: &str| file::read(Path::new(path));
        match (read("/proc/self/mountinfo"), read("/proc/self/cgroup")) {
            (Ok(mountinfo), Ok(cgroup)) => {
                Self::new(&mounts(&mountinfo), &own_cgroups(&cgroup), parent)
            }
            (Err(error), _) | (_, Err(error)) => Self {
                trees: Vec::new(),
                problems: vec![file::chain(&error)],
            },
        }
    }

    /// Lays out what was parsed. `parent` is relative to the root of each
    /// hierarchy as it is mounted; `None` takes the own cgroup.
    pub fn new(mounts: &[CgroupMount], own: &OwnCgroups, parent: Option<&str>) -> Self {
        let mut layout = Self::default();
        let parent = match parent.map(relative).transpose() {
            Ok(parent) => parent,
            Err(problem) => {
                layout.problems.push(problem);
                return layout;
            }
        };
        for mount in mounts {
            let (v2, controllers, own_path) = match &mount.kind {
                MountKind::V1(controllers) => {
                    let new: Vec<_> = controllers
                        .iter()
                        .copied()
                        .filter(|c| layout.v1_tree(*c).is_none())
                        .collect();
                    let Some(first) = new.first().copied() else {
                        continue;
                    };
                    (false, new, own.v1.get(&first).cloned())
                }
                MountKind::V2 if layout.v2_tree().is_some() => continue,
                MountKind::V2 => (
                    true,
                    Vec::new(),
                    own.v2.as_deref().map(without_control_leaf),
                ),
            };
            let base = match (&parent, own_path) {
                (Some(parent), _) => Ok(mount.point.join(parent)),
                (None, Some(own)) => own_directory(mount, &own),
                (None, None) => Err(format!(
                    "{} is mounted, but /proc/self/cgroup has no line for it",
                    mount.point.display()
                )),
            };
            match base {
                Ok(base) if base.to_str().is_some() => layout.trees.push(Tree {
                    v2,
                    controllers,
                    mount: mount.point.clone(),
                    base,
                }),
                Ok(base) => layout
                    .problems
                    .push(format!("{} is not UTF-8", base.display())),
                Err(problem) => layout.problems.push(problem),
            }
        }
        layout.trees.sort_by_key(|tree| tree.v2);
        if layout.trees.is_empty() && layout.problems.is_empty() {
            layout
                .problems
                .push("no cgroup hierarchy is mounted".to_owned());
        }
        layout
    }

    /// The interface of the host; `None` where there is no hierarchy.
    pub fn version(&self) -> Option<CgroupVersion> {
        let v1 = self.trees.iter().any(|tree| !tree.v2);
        match (v1, self.v2_tree().is_some()) {
            (true, true) => Some(CgroupVersion::Hybrid),
            (true, false) => Some(CgroupVersion::V1),
            (false, true) => Some(CgroupVersion::V2),
            (false, false) => None,
        }
    }

    /// Index of the v1 hierarchy that has this controller.
    pub fn v1_tree(&self, controller: Controller) -> Option<usize> {
        self.trees
            .iter()
            .position(|tree| !tree.v2 && tree.controllers.contains(&controller))
    }

    /// Index of the v2 tree.
    pub fn v2_tree(&self) -> Option<usize> {
        self.trees.iter().position(|tree| tree.v2)
    }
}

/// The configured parent, checked and without its leading slash.
fn relative(parent: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(parent.trim_start_matches('/'));
    if path
        .components()
        .all(|part| matches!(part, PathPart::Normal(_) | PathPart::CurDir))
    {
        Ok(path)
    } else {
        Err(format!(
            "cgroup_parent {parent:?} leads out of the hierarchy"
        ))
    }
}

/// The directory of the own cgroup `own` in `mount`. Both paths are relative to
/// the cgroup namespace's root; a path with `..` lies outside of the namespace
/// and has no known directory here (cgroup_namespaces(7)).
fn own_directory(mount: &CgroupMount, own: &Path) -> Result<PathBuf, String> {
    let outside = |path: &Path| path.components().any(|part| part == PathPart::ParentDir);
    match own.strip_prefix(&mount.root) {
        Ok(rest) if !outside(own) && !outside(&mount.root) => Ok(if rest.as_os_str().is_empty() {
            mount.point.clone()
        } else {
            mount.point.join(rest)
        }),
        _ => Err(format!(
            "the own cgroup {} is not visible in {}, which shows {}",
            own.display(),
            mount.point.display(),
            mount.root.display()
        )),
    }
}

/// A daemon that was moved to the leaf of this or another deployment, or was
/// started by one that was, works below the same base as before.
fn without_control_leaf(own: &Path) -> PathBuf {
    let is_subtree = |name: &str| {
        name == "blackhole"
            || name.strip_prefix("blackhole-").is_some_and(|hash| {
                hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
    };
    let name = |path: &Path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .map(str::to_owned)
    };
    if name(own).as_deref() == Some(CONTROL_LEAF)
        && let Some(subtree) = own.parent()
        && name(subtree).is_some_and(|name| is_subtree(&name))
        && let Some(base) = subtree.parent()
    {
        return base.to_owned();
    }
    own.to_owned()
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
