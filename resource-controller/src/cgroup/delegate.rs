//! Passing controllers on to the services on v2.
//!
//! A v2 group other than the hierarchy's root that passes controllers on to its
//! children must hold no process itself ("no internal processes", cgroup-v2.rst).
//! The daemons and shims usually start in the very group that is the base, so
//! they are moved to the leaf `<base>/<subtree>/_control`, beside the services:
//! every process of the base whose program is `blackhole` or `blackhole-…`, and
//! no other. Whatever they start later is born in the leaf. Should a foreign
//! process (a login shell) be in the base too, nothing is forced: the limits
//! are reported as not enforced, with the process named and what to do about it.
//!
//! When the last deployment below the base goes, [`Delegation::undo`] takes
//! the controllers back and returns the daemons to the base.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::detect::Controller;
use super::file::{self, CgroupError, chain};
use super::layout::CONTROL_LEAF;

/// The v2 tree's way from the base to the services.
#[derive(Debug)]
pub(super) struct Delegation {
    /// Groups that have to pass controllers on, outermost first; the last is the subtree.
    groups: Vec<PathBuf>,
    /// What came of it, by controller.
    state: BTreeMap<Controller, Result<(), String>>,
    /// What this program switched on and has to switch off again.
    pub(super) enabled: Vec<(PathBuf, Controller)>,
}

impl Delegation {
    /// `groups`: from the outermost group that may need a change to the subtree.
    pub(super) fn new(groups: Vec<PathBuf>, enabled: Vec<(PathBuf, Controller)>) -> Self {
        Self {
            groups,
            state: BTreeMap::new(),
            enabled,
        }
    }

    /// Whether the services' groups have this controller, else why not.
    pub(super) fn of(&self, controller: Controller) -> Result<(), String> {
        self.state
            .get(&controller)
            .cloned()
            .unwrap_or_else(|| Err(format!("{} was not asked for", controller.v1_name())))
    }

    /// Whether every controller is passed on.
    pub(super) fn complete(&self) -> bool {
        Controller::V2
            .iter()
            .all(|c| matches!(self.state.get(c), Some(Ok(()))))
    }

    /// The subtree could not be made: nothing is passed on.
    pub(super) fn failed(&mut self, reason: &str) {
        for controller in Controller::V2 {
            self.state.insert(controller, Err(reason.to_owned()));
        }
    }

    /// Passes on what can be passed on. Asked again it does only what is missing.
    /// The groups must exist. True when something was switched on.
    pub(super) fn ensure(&mut self) -> bool {
        let before = self.enabled.len();
        for controller in Controller::V2 {
            if !matches!(self.state.get(&controller), Some(Ok(()))) {
                let result = self.pass_on(controller);
                self.state.insert(controller, result);
            }
        }
        self.enabled.len() > before
    }

    fn pass_on(&mut self, controller: Controller) -> Result<(), String> {
        let name = controller.v2_name().unwrap_or_default();
        for group in self.groups.clone() {
            let list = |file: &str| {
                file::read(&group.join(file)).map(|text| Controller::parse_v2_list(&text))
            };
            let text = |error: CgroupError| chain(&error);
            if !list("cgroup.controllers")
                .map_err(text)?
                .contains(&controller)
            {
                return Err(format!(
                    "{} does not have the {name} controller",
                    group.display()
                ));
            }
            if list("cgroup.subtree_control")
                .map_err(text)?
                .contains(&controller)
            {
                continue;
            }
            self.switch_on(&group, name)?;
            self.enabled.push((group, controller));
        }
        Ok(())
    }

    /// The kernel does not refuse everything that breaks the rule: `+cpu` and
    /// `+pids` in a group with processes turn it into the root of a threaded
    /// subtree, in which no domain controller works any more. So the group is
    /// cleared first, and left alone where it cannot be.
    fn switch_on(&self, group: &Path, name: &str) -> Result<(), String> {
        // The hierarchy's root has no such file, and may hold processes.
        let is_root = !group.join("cgroup.type").exists();
        if !is_root && !file::processes(group).is_empty() {
            self.clear(group)?;
            let others = file::processes(group);
            if !others.is_empty() {
                return Err(format!(
                    "{} holds processes that are not Blackhole's ({}), so it cannot pass its \
                     controllers on: start in a group of its own (systemd-run --scope -p \
                     Delegate=yes …, or a unit with Delegate=yes), or set \
                     runtime.orchestrator.cgroup_parent",
                    group.display(),
                    named(&others)
                ));
            }
        }
        file::write(&group.join("cgroup.subtree_control"), &format!("+{name}"))
            .map_err(|error| chain(&error))
    }

    /// Moves Blackhole's own processes from `group` to the leaf.
    fn clear(&self, group: &Path) -> Result<(), String> {
        let Some(subtree) = self.groups.last() else {
            return Ok(());
        };
        let leaf = subtree.join(CONTROL_LEAF);
        file::make_dir(&leaf).map_err(|error| chain(&error))?;
        for pid in file::processes(group) {
            if is_blackhole(pid) {
                join(&leaf, pid).map_err(|error| chain(&error))?;
            }
        }
        Ok(())
    }

    /// Switches off what this program switched on, moves the leaf's processes
    /// back to `base` and removes the leaf. Where others still need the
    /// controllers the kernel refuses, and leaf and setting stay.
    pub(super) fn undo(&mut self, base: &Path) {
        while let Some((group, controller)) = self.enabled.last() {
            let value = format!("-{}", controller.v2_name().unwrap_or_default());
            match file::write(&group.join("cgroup.subtree_control"), &value) {
                Ok(()) => {}
                Err(error) if error.is(Errno::NOENT) => {}
                Err(error) => {
                    tracing::debug!(error = chain(&error), "controllers stay passed on");
                    return;
                }
            }
            self.enabled.pop();
        }
        self.state.clear();
        let Some(leaf) = self.groups.last().map(|subtree| subtree.join(CONTROL_LEAF)) else {
            return;
        };
        for pid in file::processes(&leaf) {
            if let Err(error) = join(base, pid) {
                tracing::debug!(error = chain(&error), "a process stays in the leaf");
                return;
            }
        }
        if let Err(error) = file::remove_dir(&leaf) {
            tracing::debug!(error = chain(&error), "the leaf stays");
        }
    }
}

/// Puts a process (with all its threads) into a group. A process that is gone is fine.
fn join(group: &Path, pid: u32) -> Result<(), CgroupError> {
    match file::write(&group.join("cgroup.procs"), &pid.to_string()) {
        Err(error) if error.is(Errno::SRCH) => Ok(()),
        result => result,
    }
}

/// Whether a process is a daemon, a shim or the command line tool, or this process.
fn is_blackhole(pid: u32) -> bool {
    if pid == std::process::id() {
        return true;
    }
    let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else {
        return false;
    };
    program
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(is_blackhole_program)
}

/// The kernel appends ` (deleted)` when the file was replaced by an upgrade.
fn is_blackhole_program(name: &str) -> bool {
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    name == "blackhole" || name.starts_with("blackhole-")
}

/// `1234 bash, 1240 vim and 3 more`.
pub(super) fn named(pids: &[u32]) -> String {
    let mut text = pids
        .iter()
        .take(4)
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{pid} {}", name.trim()).trim_end().to_owned()
        })
        .collect::<Vec<_>>()
        .join(", ");
    if pids.len() > 4 {
        text.push_str(&format!(" and {} more", pids.len() - 4));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_programs_are_known_by_name() {
        for name in [
            "blackhole",
            "blackhole-shim",
            "blackhole-supervisor (deleted)",
        ] {
            assert!(is_blackhole_program(name), "{name}");
        }
        for name in ["bash", "blackholed", "my-blackhole"] {
            assert!(!is_blackhole_program(name), "{name}");
        }
        assert!(is_blackhole(std::process::id()));
        assert!(!is_blackhole(1) || std::process::id() == 1);
    }

    /// A directory of plain files stands for the tree: shows what is asked of the kernel.
    fn group(path: &Path, controllers: &str, subtree_control: &str) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.controllers"), controllers).unwrap();
        fs::write(path.join("cgroup.subtree_control"), subtree_control).unwrap();
    }

    #[test]
    fn only_what_is_there_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let (base, subtree) = (dir.path().to_owned(), dir.path().join("blackhole"));
        group(&base, "cpuset cpu memory pids\n", "\n");
        group(&subtree, "pids cpu\n", "\n");
        let mut delegation = Delegation::new(vec![base.clone(), subtree.clone()], Vec::new());
        assert!(delegation.ensure());
        assert_eq!(delegation.of(Controller::Pids), Ok(()));
        assert_eq!(delegation.of(Controller::Cpu), Ok(()));
        let missing = delegation.of(Controller::Io).unwrap_err();
        assert!(
            missing.contains("does not have the io controller"),
            "{missing}"
        );
        // The base got it, but the (plain file) subtree did not see it arrive.
        let missing = delegation.of(Controller::Memory).unwrap_err();
        assert!(missing.contains("memory"), "{missing}");
        assert!(!delegation.complete());
    }

    #[test]
    fn only_what_was_switched_on_is_switched_off() {
        let dir = tempfile::tempdir().unwrap();
        let (base, subtree) = (dir.path().to_owned(), dir.path().join("blackhole"));
        let all = "cpu memory io pids\n";
        group(&base, all, all);
        group(&subtree, all, "cpu memory io\n");
        let mut delegation = Delegation::new(vec![base.clone(), subtree.clone()], Vec::new());
        assert!(delegation.ensure());
        assert!(delegation.complete());
        assert_eq!(delegation.enabled, [(subtree.clone(), Controller::Pids)]);
        assert!(!delegation.ensure(), "nothing is left to do");
        delegation.undo(&base);
        assert_eq!(delegation.enabled, []);
        let control = |dir: &Path| fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap();
        assert_eq!(control(&subtree), "-pids");
        assert_eq!(control(&base), all);
    }
}
