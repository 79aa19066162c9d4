//! The owner of all groups of one deployment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blackhole_bus_schema::limits::{CgroupDir, CgroupVersion, JoinMethod, LimitGrant, Limits};
use blackhole_bus_schema::names::InstanceName;
use rustix::io::Errno;

use super::apply::{Place, Places, apply};
use super::capacity::{self, HostCapacity};
use super::delegate::{self, Delegation};
use super::detect::Controller;
use super::file::{self, chain, hint, writable};
use super::group::{self, Dirs};
use super::io_effect::IoEffect;
use super::layout::Layout;
use super::outcome::{Prepared, ReleaseError};
use super::record::Record;
use super::sample::{CounterDirs, Counters, Descriptors, Reading};

/// Schedulers of disks change seldom; they are looked at again after this time.
const IO_EFFECT_AGE: Duration = Duration::from_secs(10);

/// Whose groups, and where.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Name of the subtree; unique for a deployment.
    pub subtree: String,
    /// `cgroup_parent` of the configuration; `None` is the own cgroup.
    pub parent: Option<String>,
    /// Where to keep what has to be known after a restart; `None` keeps nothing.
    pub record: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Instance {
    dirs: Dirs,
    /// Opened at the first reading, closed when a directory is made anew.
    counters: Option<Counters>,
}

/// Makes, limits, measures and removes groups. Every failure to enforce is a
/// line in a report: a host without cgroups gives an engine that works and says so.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    layout: Layout,
    delegation: Option<Delegation>,
    /// Directories above the subtrees that were made for a configured parent.
    made: Vec<PathBuf>,
    instances: BTreeMap<InstanceName, Instance>,
    descriptors: Descriptors,
    buffer: Vec<u8>,
    io_effect: Option<(Instant, IoEffect)>,
}

impl Engine {
    /// Looks at the host and takes over the groups that an earlier process left,
    /// with the processes in them; nothing is moved but Blackhole's own daemons
    /// on v2 (see the table in [`crate::cgroup`]).
    pub fn open(settings: Settings) -> Self {
        let now = Layout::of_this_process(settings.parent.as_deref());
        let record = settings
            .record
            .as_deref()
            .map(Record::load)
            .unwrap_or_default();
        let earlier = record.layout(&now);
        let mut engine = Self::at(settings, earlier, &record);
        if engine.layout != now {
            if engine.instances.is_empty() {
                engine.tidy();
                engine = Self::at(engine.settings, now, &Record::default());
            } else {
                tracing::info!("going on below the cgroups of an earlier start");
            }
        }
        engine.delegate();
        engine.save();
        engine
    }

    /// An engine over a layout, with the instances found there.
    fn at(settings: Settings, layout: Layout, record: &Record) -> Self {
        let delegation = layout.v2_tree().map(|index| {
            let tree = &layout.trees[index];
            let mut groups = match settings.parent {
                Some(_) => below(&tree.mount, &tree.base),
                None => vec![tree.base.clone()],
            };
            groups.push(tree.base.join(&settings.subtree));
            Delegation::new(groups, record.enabled())
        });
        let mut instances: BTreeMap<InstanceName, Instance> = BTreeMap::new();
        for (index, tree) in layout.trees.iter().enumerate() {
            for path in file::children(&tree.base.join(&settings.subtree)) {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(Ok(instance)) = name.map(str::parse) {
                    instances
                        .entry(instance)
                        .or_default()
                        .dirs
                        .insert(index, path);
                }
            }
        }
        Self {
            settings,
            layout,
            delegation,
            made: record.made.clone(),
            instances,
            descriptors: Descriptors::half_of_limit(),
            buffer: Vec::new(),
            io_effect: None,
        }
    }

    /// The interface of the host; `None` where no group can be made.
    pub fn version(&self) -> Option<CgroupVersion> {
        let usable = self
            .layout
            .trees
            .iter()
            .any(|tree| writable(&tree.mount, &tree.base).is_ok());
        if usable { self.layout.version() } else { None }
    }

    /// Why limits cannot be enforced here, where some cannot. For a person.
    pub fn problem(&self) -> Option<String> {
        let mut problems = self.layout.problems.clone();
        let refused: Vec<_> = self
            .layout
            .trees
            .iter()
            .filter_map(|tree| {
                writable(&tree.mount, &tree.base)
                    .err()
                    .map(|why| (tree, why))
            })
            .collect();
        if let Some((_, why)) = refused.first() {
            let dirs: Vec<_> = refused
                .iter()
                .map(|(tree, _)| tree.base.display().to_string())
                .collect();
            problems.push(format!(
                "no groups can be made in {}: {why}",
                dirs.join(", ")
            ));
        }
        for controller in Controller::V2 {
            if self.layout.v1_tree(controller).is_none()
                && self.layout.version().is_some()
                && let Err(reason) = self.v2_has(controller)
                && !problems.contains(&reason)
            {
                problems.push(reason);
            }
        }
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    /// What there is to give.
    pub fn capacity(&self) -> HostCapacity {
        capacity::read(&self.layout)
    }

    /// The instances that have groups.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceName> {
        self.instances.keys()
    }

    /// Whether a process is in the instance's groups.
    pub fn populated(&self, instance: &InstanceName) -> bool {
        self.instances
            .get(instance)
            .is_some_and(|instance| !instance.dirs.processes().is_empty())
    }

    /// Makes the instance's groups where they are missing, applies the limits
    /// and reads them back. For groups with processes the limits change under
    /// them; no process is moved. Lowering a memory limit below what is in use
    /// waits for the kernel to reclaim, and can end in an OOM kill on v2.
    pub fn prepare(
        &mut self,
        instance: &InstanceName,
        limits: &Limits,
        oom_score_adj: Option<i32>,
    ) -> Prepared {
        self.delegate();
        let (fresh, failed) = self.make_groups(instance);
        let dirs = self
            .instances
            .get(instance)
            .map(|known| known.dirs.clone())
            .unwrap_or_default();
        let place = |controller| self.place(&dirs, controller, &failed);
        let places = Places {
            cpu: place(Controller::Cpu),
            memory: place(Controller::Memory),
            io: place(Controller::Io),
            pids: place(Controller::Pids),
        };
        let oom_file = match &places.memory {
            Place::V1(dir) => existing(dir, "memory.oom_control"),
            Place::V2(dir) => existing(dir, "memory.events"),
            Place::Missing(_) => None,
        };
        let kill_cgroup = self
            .layout
            .v2_tree()
            .and_then(|tree| dirs.get(tree))
            .filter(|dir| dir.join("cgroup.kill").exists())
            .map(text);
        let freezer_cgroup = self
            .layout
            .v1_tree(Controller::Freezer)
            .and_then(|tree| dirs.get(tree))
            .map(text);
        let cgroups: Vec<_> = dirs
            .iter()
            .map(|(tree, path)| CgroupDir {
                path: text(path),
                join: if self.layout.trees[tree].v2 {
                    JoinMethod::V2
                } else {
                    JoinMethod::V1Tasks
                },
            })
            .collect();
        // The next tick shows the new limits, whether it does anything or not.
        let known = self.instances.get_mut(instance);
        if let Some(counters) = known.and_then(|known| known.counters.as_mut()) {
            counters.forget();
        }
        let report = apply(&places, limits, self.io_effect(limits.io_weight.is_some()));
        let grant = LimitGrant {
            version: if cgroups.is_empty() {
                None
            } else {
                self.layout.version()
            },
            cgroups,
            kill_cgroup,
            freezer_cgroup,
            oom_file,
            oom_score_adj,
            report,
        };
        Prepared { grant, fresh }
    }

    /// Removes the instance's groups (and those its service made below them)
    /// and gives back the last reading. An instance without groups is done
    /// already. After an error it may be called again.
    pub fn release(&mut self, instance: &InstanceName) -> Result<Option<Reading>, ReleaseError> {
        let Some(known) = self.instances.get(instance) else {
            return Ok(None);
        };
        let populated = |processes: &[u32]| ReleaseError::Populated {
            instance: instance.clone(),
            processes: if processes.is_empty() {
                "the last one is just ending".to_owned()
            } else {
                delegate::named(processes)
            },
        };
        let processes = known.dirs.processes();
        if !processes.is_empty() {
            return Err(populated(&processes));
        }
        let reading = self.read(instance);
        let dirs = self
            .instances
            .get(instance)
            .map(|known| known.dirs.clone())
            .unwrap_or_default();
        for (_, dir) in dirs.iter() {
            match group::remove(dir) {
                Ok(true) => {}
                Ok(false) => return Err(populated(&dirs.processes())),
                Err(source) => {
                    return Err(ReleaseError::Cgroup {
                        instance: instance.clone(),
                        source,
                    });
                }
            }
        }
        if let Some(counters) = self
            .instances
            .remove(instance)
            .and_then(|known| known.counters)
        {
            counters.close(&mut self.descriptors);
        }
        Ok(reading)
    }

    /// Reads the counters of all instances, in the order of their names.
    pub fn sample(&mut self) -> Vec<(InstanceName, Reading)> {
        let names: Vec<_> = self.instances.keys().cloned().collect();
        names
            .into_iter()
            .filter_map(|instance| {
                let (counters, buffer) = self.counters(&instance)?;
                let reading = counters.tick(buffer);
                Some((instance, reading))
            })
            .collect()
    }

    /// Ends the work. Groups of instances stay, with all above them, since their
    /// services run on; without any, everything that was made or switched on
    /// is undone. True when nothing is left.
    pub fn close(mut self) -> bool {
        let names: Vec<InstanceName> = self.instances.keys().cloned().collect();
        // Made ahead and used by nobody: without any service nothing is to stay.
        if !names.iter().any(|name| self.populated(name)) {
            for name in names {
                if let Err(error) = self.release(&name) {
                    tracing::debug!(instance = %name, error = chain(&error), "its groups stay");
                }
            }
        }
        if !self.instances.is_empty() {
            self.save();
            return false;
        }
        self.tidy();
        let left = self
            .layout
            .trees
            .iter()
            .any(|tree| tree.base.join(&self.settings.subtree).exists());
        if left {
            self.save();
        } else if let Some(path) = &self.settings.record
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "record of cgroups stays");
        }
        !left
    }

    /// Removes what stands around instances, as far as nobody is in it.
    fn tidy(&mut self) {
        if let (Some(delegation), Some(tree)) = (&mut self.delegation, self.layout.v2_tree()) {
            delegation.undo(&self.layout.trees[tree].base);
        }
        for tree in &self.layout.trees {
            if let Err(error) = file::remove_dir(&tree.base.join(&self.settings.subtree))
                && !error.is(Errno::NOTEMPTY)
            {
                tracing::debug!(error = chain(&error), "a subtree stays");
            }
        }
        group::unmake(&self.made);
        self.made.retain(|dir| dir.exists());
    }

    fn save(&self) {
        let Some(path) = &self.settings.record else {
            return;
        };
        let enabled = self
            .delegation
            .as_ref()
            .map_or(&[][..], |known| &known.enabled);
        let record = Record::of(&self.layout, enabled, &self.made);
        if let Err(error) = record.save(path) {
            tracing::warn!(
                error = chain(&error),
                "a restart elsewhere would lose the cgroups"
            );
        }
    }

    /// Directories between the mount point (without) and the subtree (with).
    fn levels(&self, tree: usize) -> Vec<PathBuf> {
        let tree = &self.layout.trees[tree];
        let mut levels = match self.settings.parent {
            Some(_) => below(&tree.mount, &tree.base).split_off(1),
            None => Vec::new(),
        };
        levels.push(tree.base.join(&self.settings.subtree));
        levels
    }

    /// v2: passes the controllers on, as far as that was not done.
    fn delegate(&mut self) {
        let Some(index) = self.layout.v2_tree() else {
            return;
        };
        let base = &self.layout.trees[index].base;
        // With a configured parent the group may not be there yet; its mount is.
        let nearest = base.ancestors().find(|dir| dir.exists()).unwrap_or(base);
        let offers = file::read(&nearest.join("cgroup.controllers"))
            .is_ok_and(|text| !Controller::parse_v2_list(&text).is_empty());
        if self.delegation.as_ref().is_none_or(Delegation::complete) {
            return;
        }
        if offers && let Err(reason) = self.make_levels(index) {
            if let Some(delegation) = &mut self.delegation {
                delegation.failed(&reason);
            }
            return;
        }
        if self.delegation.as_mut().is_some_and(Delegation::ensure) {
            self.save();
        }
    }

    /// Makes what is above the instances' groups, and remembers a parent's directories.
    fn make_levels(&mut self, tree: usize) -> Result<Vec<PathBuf>, String> {
        let levels = self.levels(tree);
        let mut made = group::make(&levels).map_err(|error| hint(&error))?;
        let all = made.clone();
        made.retain(|dir| Some(dir) != levels.last());
        if !made.is_empty() {
            self.made.extend(made);
            self.save();
        }
        Ok(all)
    }

    /// Makes the groups of an instance; those that failed with their reasons.
    fn make_groups(&mut self, instance: &InstanceName) -> (bool, BTreeMap<usize, String>) {
        let fresh = !self.instances.contains_key(instance);
        let mut failed = BTreeMap::new();
        let mut dirs = Dirs::default();
        let mut changed = false;
        for tree in 0..self.layout.trees.len() {
            let above = match self.make_levels(tree) {
                Ok(above) => above,
                Err(reason) => {
                    failed.insert(tree, reason);
                    continue;
                }
            };
            let tree_dir = &self.layout.trees[tree];
            let path = tree_dir
                .base
                .join(&self.settings.subtree)
                .join(instance.to_string());
            match file::make_dir(&path) {
                Ok(made) => {
                    changed |= made;
                    dirs.insert(tree, path);
                }
                Err(error) => {
                    group::unmake(&above);
                    self.made.retain(|dir| dir.exists());
                    failed.insert(tree, hint(&error));
                }
            }
        }
        if dirs.is_empty() {
            return (false, failed);
        }
        let known = self.instances.entry(instance.clone()).or_default();
        known.dirs = dirs;
        if changed && let Some(counters) = known.counters.take() {
            counters.close(&mut self.descriptors);
        }
        (fresh, failed)
    }

    /// Whether v2 groups have a controller.
    fn v2_has(&self, controller: Controller) -> Result<(), String> {
        match &self.delegation {
            Some(delegation) => delegation.of(controller),
            None => Err(format!(
                "no hierarchy has the {} controller",
                controller.v1_name()
            )),
        }
    }

    fn place(
        &self,
        dirs: &Dirs,
        controller: Controller,
        failed: &BTreeMap<usize, String>,
    ) -> Place {
        let v1 = self.layout.v1_tree(controller);
        let Some(tree) = v1.or(self.layout.v2_tree()) else {
            let none = || format!("no hierarchy has the {} controller", controller.v1_name());
            let problem = self.layout.problems.first().cloned();
            return Place::Missing(problem.unwrap_or_else(none));
        };
        if let Some(reason) = failed.get(&tree) {
            return Place::Missing(reason.clone());
        }
        let Some(dir) = dirs.get(tree) else {
            return Place::Missing("no group was made".to_owned());
        };
        match v1.map_or_else(|| self.v2_has(controller), |_| Ok(())) {
            Ok(()) if v1.is_some() => Place::V1(dir.to_owned()),
            Ok(()) => Place::V2(dir.to_owned()),
            Err(reason) => Place::Missing(reason),
        }
    }

    fn io_effect(&mut self, needed: bool) -> &IoEffect {
        let v2 = self
            .layout
            .v2_tree()
            .map(|tree| self.layout.trees[tree].mount.clone());
        let stale = self
            .io_effect
            .as_ref()
            .is_none_or(|(at, _)| at.elapsed() > IO_EFFECT_AGE);
        if needed && stale {
            self.io_effect = None;
        }
        let entry = self
            .io_effect
            .get_or_insert_with(|| (Instant::now(), IoEffect::of_this_host(v2.as_deref())));
        &entry.1
    }

    /// Reads one instance's counters; `None` where it has no groups.
    pub fn read(&mut self, instance: &InstanceName) -> Option<Reading> {
        let (counters, buffer) = self.counters(instance)?;
        Some(counters.read(buffer))
    }

    /// One instance's counters, and what to read them into.
    fn counters(&mut self, instance: &InstanceName) -> Option<(&mut Counters, &mut Vec<u8>)> {
        let layout = &self.layout;
        let known = self.instances.get_mut(instance)?;
        let dirs = &known.dirs;
        let v1 = |controller| layout.v1_tree(controller).and_then(|tree| dirs.get(tree));
        let counters = known.counters.get_or_insert_with(|| {
            let dirs = CounterDirs {
                cpu_v1: v1(Controller::Cpu),
                cpuacct_v1: v1(Controller::Cpuacct),
                memory_v1: v1(Controller::Memory),
                io_v1: v1(Controller::Io),
                pids_v1: v1(Controller::Pids),
                v2: layout.v2_tree().and_then(|tree| dirs.get(tree)),
            };
            Counters::new(&dirs, &mut self.descriptors)
        });
        Some((counters, &mut self.buffer))
    }
}

/// `mount`, then each directory on the way down to `base`, both included.
fn below(mount: &Path, base: &Path) -> Vec<PathBuf> {
    let mut way: Vec<_> = base
        .ancestors()
        .take_while(|dir| dir.starts_with(mount))
        .map(Path::to_owned)
        .collect();
    way.reverse();
    way
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn existing(dir: &Path, name: &str) -> Option<String> {
    let path = dir.join(name);
    path.exists().then(|| text(&path))
}
