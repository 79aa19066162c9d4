//! What hundreds of spawns and ends leave behind: nothing.
//!
//! Several instances fail all the time, some restarted by permit, some by the
//! supervisor, and others are restarted by command. Before and after, at rest
//! with the same services running, the deployment holds the same processes,
//! descriptors, locks, cgroups and files, and its daemons' own memory grew by
//! less than [`MAX_GROWTH_KIB`] each, however many spawns there were.
//!
//! ```text
//! BLACKHOLE_LEAK_SPAWNS=10000   how many spawns (300 unless told)
//! BLACKHOLE_LEAK_SPAWNS=10000 cargo nextest run -p blackhole-tests --test leaks --no-capture
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use blackhole_bus_schema::process::ProcessState;
use blackhole_tests::deployment::DAEMONS;
use blackhole_tests::events::{Event, Recorder};
use blackhole_tests::wait::{wait_at_most, wait_for};
use blackhole_tests::{Deployment, cgroup, observe};

/// The instances that fail all the time, and one beside them that does not.
const SYSTEM: &str = r#"
runtime:
  orchestrator:
    restart_burst: 100000
    restart_policy: {max_attempts: 10000, initial_backoff: 10ms, backoff_multiplier: 1, max_backoff: 10ms, reset_after: 100ms}
services:
  steady: {command: [blackhole-example, idle]}
  permit:
    command: [blackhole-example, exit, --code, "1", --after-ms, "250"]
    autostart: false
    replicas: 3
  waits:
    command: [blackhole-example, exit, --code, "1", --after-ms, "50"]
    autostart: false
    replicas: 3
    restart: {reset_after: 1d}
  command: {command: [blackhole-example, idle], autostart: false, replicas: 2}
"#;

/// Ended and started again by whom.
const CHURN: [&str; 3] = ["permit", "waits", "command"];

/// A daemon's own memory may grow by so much, for all spawns together: the answers
/// that are kept for repeated commands fill 3 MiB in the course of some thousand
/// commands and then no more, and an allocator keeps what a burst needed. One KiB
/// lost with each of the long version's spawns is more.
const MAX_GROWTH_KIB: u64 = 6 * 1024;

/// Descriptors more than before that are no leak: a connection of the command
/// line that asked for the status may not be closed yet.
const SPARE_DESCRIPTORS: usize = 2;

/// Protection against a hang: this and a part of a second for each spawn.
const HANG: Duration = Duration::from_secs(120);

/// What is held at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    daemons: BTreeMap<String, u32>,
    processes: usize,
    descriptors: BTreeMap<String, usize>,
    resident_kib: BTreeMap<String, u64>,
    cgroups: Vec<PathBuf>,
    files: Vec<PathBuf>,
    locks: Vec<PathBuf>,
}

struct Case {
    deployment: Deployment,
    recorder: Recorder,
}

/// Starts heard of: all, and those that a shim made by permit.
#[derive(Debug, Clone, Copy, Default)]
struct Starts {
    all: usize,
    by_permit: usize,
    by_command: usize,
}

impl Case {
    fn starts(&self) -> Starts {
        let mut seen = BTreeSet::new();
        let mut starts = Starts::default();
        for event in self.recorder.events() {
            let Event::Process(changed) = event else {
                continue;
            };
            let record = &changed.record;
            let name = record.instance.to_string();
            let is_new = matches!(record.state, ProcessState::Running { .. })
                && seen.insert((name.clone(), record.generation.0));
            if is_new {
                starts.all += 1;
                starts.by_permit += usize::from(record.previous_exit.is_some());
                starts.by_command += usize::from(name.starts_with("command."));
            }
        }
        starts
    }

    /// So many spawns more, several at a time; then only `steady` runs.
    #[track_caller]
    fn churn(&self, spawns: usize) {
        let before = self.starts().all;
        for service in CHURN {
            // The one that fails may never be seen ready.
            self.deployment.cli(&["start", service]);
        }
        let limit = HANG + Duration::from_millis(200) * u32::try_from(spawns).unwrap_or(u32::MAX);
        wait_at_most(limit, &format!("{spawns} spawns"), &mut || {
            self.deployment.cli(&["restart", "command"]).ok();
            match self.starts().all - before {
                enough if enough >= spawns => Ok(()),
                count => Err(format!("{count} of them")),
            }
        });
        for service in CHURN {
            self.deployment.cli(&["stop", service]).ok();
        }
    }

    fn held(&self) -> Result<Held, String> {
        let deployment = &self.deployment;
        let status = deployment.try_status()?;
        let running: Vec<String> = status.running().into_keys().collect();
        if running != ["steady.1"] {
            return Err(format!("{running:?} run"));
        }
        let mut daemons = BTreeMap::new();
        for component in DAEMONS {
            let pid = status.component_pid(component);
            daemons.insert(component.to_owned(), pid.ok_or("a daemon is away")?);
        }
        let keeper = status.0["keeper"]["pid"].as_u64().ok_or("no keeper")?;
        daemons.insert("keeper".to_owned(), u32::try_from(keeper).unwrap_or(0));
        let dirs = deployment.dirs();
        let server = observe::fork_server(&dirs.run).ok_or("no fork server")?;
        daemons.insert("fork server".to_owned(), server);
        let of = |what: &dyn Fn(u32) -> usize| -> BTreeMap<String, usize> {
            let each = daemons.iter();
            each.map(|(name, pid)| (name.clone(), what(*pid))).collect()
        };
        let mut files = observe::files(&dirs.run);
        files.extend(observe::files(&dirs.state));
        // From an instance's second spawn on, two records take turns.
        files.retain(|file| file.file_name().is_none_or(|name| name != "record.new"));
        let mut locks = observe::locks(&dirs.state);
        locks.extend(observe::locks(&dirs.run));
        Ok(Held {
            processes: deployment.processes().len(),
            descriptors: of(&observe::descriptors),
            resident_kib: daemons
                .iter()
                .map(|(name, pid)| (name.clone(), observe::resident_kib(*pid)))
                .collect(),
            cgroups: observe::directories(&cgroup::subtrees(&deployment.cgroup())),
            files,
            locks: locks.into_iter().map(|(path, _)| path).collect(),
            daemons,
        })
    }
}

/// Entries of `after` that are not in `before`, each as often as it is there.
fn more(before: &[PathBuf], after: &[PathBuf]) -> Vec<PathBuf> {
    let mut left = before.to_vec();
    let mut new = after.to_vec();
    new.retain(|path| match left.iter().position(|one| one == path) {
        Some(at) => {
            left.swap_remove(at);
            false
        }
        None => true,
    });
    new
}

/// Everything that is more than before.
fn grown(before: &Held, after: &Held) -> Vec<String> {
    let mut grown = Vec::new();
    if after.processes > before.processes {
        grown.push(format!(
            "{} processes, {} before",
            after.processes, before.processes
        ));
    }
    for (name, count) in &after.descriptors {
        let old = before.descriptors.get(name).copied().unwrap_or(0);
        if *count > old + SPARE_DESCRIPTORS {
            grown.push(format!("{name}: {count} descriptors, {old} before"));
        }
    }
    for (name, kib) in &after.resident_kib {
        let old = before.resident_kib.get(name).copied().unwrap_or(0);
        if *kib > old + MAX_GROWTH_KIB {
            grown.push(format!("{name}: {kib} KiB, {old} before"));
        }
    }
    for (what, before, after) in [
        ("cgroups", &before.cgroups, &after.cgroups),
        ("files", &before.files, &after.files),
        ("locks", &before.locks, &after.locks),
    ] {
        let new = more(before, after);
        if !new.is_empty() {
            grown.push(format!("new {what}: {new:?}"));
        }
    }
    grown
}

#[test]
fn hundreds_of_spawns_leave_nothing_behind() {
    let spawns: usize = std::env::var("BLACKHOLE_LEAK_SPAWNS")
        .map_or(300, |text| text.parse().expect("a whole number"));
    let deployment = Deployment::new(SYSTEM);
    deployment.up();
    let recorder = Recorder::start(deployment.dirs());
    let case = Case {
        deployment,
        recorder,
    };
    // Buffers, pools and tables have their size after the first ones.
    case.churn(60);
    let before = wait_for("rest before", || {
        let first = case.held()?;
        let second = case.held()?;
        let same = first.processes == second.processes && first.files == second.files;
        match same {
            true => Ok(second),
            false => Err(format!("{first:#?}\n{second:#?}")),
        }
    });
    let warm = case.starts();
    case.churn(spawns);
    let after = wait_for("everything to be given back", || {
        let after = case.held()?;
        match grown(&before, &after).as_slice() {
            [] => Ok(after),
            grown => Err(grown.join("\n")),
        }
    });
    let starts = case.starts();
    for (name, kib) in &after.resident_kib {
        eprintln!(
            "{name}: {} KiB, then {kib} KiB; descriptors {}, then {}",
            before.resident_kib[name], before.descriptors[name], after.descriptors[name]
        );
    }
    eprintln!(
        "{warm:?}, then {starts:?}; {} processes, then {}; {} cgroups, {} files, {} locks",
        before.processes,
        after.processes,
        after.cgroups.len(),
        after.files.len(),
        after.locks.len()
    );
    // It was the same daemons all the time, and all ways of a restart were gone.
    assert_eq!(before.daemons, after.daemons);
    let (all, by_permit, by_command) = (
        starts.all - warm.all,
        starts.by_permit - warm.by_permit,
        starts.by_command - warm.by_command,
    );
    assert!(all >= spawns, "{all}");
    assert!(by_permit > 10, "{by_permit} of {all}");
    assert!(by_command > 4, "{by_command} of {all}");
    assert!(
        all - by_permit - by_command > 10,
        "by the supervisor: {starts:?}"
    );
    case.deployment.down();
}
