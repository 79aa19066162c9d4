//! `blackhole doctor`: checks this host and says what to do about what is wrong.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::dirs::{Dirs, MAX_SOCKET_PATH};
use blackhole_bus_schema::names::Component;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::client::{self, Overview};
use crate::context::Context;
use crate::error::{Error, Exit};
use crate::host::{self, Hierarchy};
use crate::out::{self, Tone};
use crate::table::{Table, plain, toned};
use crate::view::component::{Found, Presence};
use crate::view::keeper::{self, Keeper, State};
use crate::view::place::Misplaced;
use crate::view::problem;
use crate::{human, keeper_file, offline};

use super::orphans::orphans;

/// Below this much room a state directory is worth a warning, bytes.
const LITTLE_ROOM: u64 = 512 * 1024 * 1024;
/// Below this much room logs and records will soon be lost, bytes.
const NO_ROOM: u64 = 16 * 1024 * 1024;
/// Descriptors one instance needs in the process-manager, generously.
const DESCRIPTORS: u64 = 8;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    grade: Grade,
    what: String,
    found: String,
    /// What to do about it.
    advice: Option<String>,
}

#[derive(Serialize)]
struct Document {
    checks: Vec<Check>,
}

fn ok(what: &str, found: impl Into<String>) -> Check {
    Check {
        grade: Grade::Ok,
        what: what.to_owned(),
        found: found.into(),
        advice: None,
    }
}

fn warn(what: &str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        grade: Grade::Warn,
        what: what.to_owned(),
        found: found.into(),
        advice: Some(advice.into()),
    }
}

fn fail(what: &str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        grade: Grade::Fail,
        ..warn(what, found, advice)
    }
}

pub(super) async fn run(context: &Context) -> Result<(), Error> {
    let dirs = &context.dirs;
    let root = rustix::process::geteuid().is_root();
    let (config, config_check) = config(context);
    let mut checks = vec![
        config_check,
        directory("run directory", &dirs.run),
        socket_length(dirs),
    ];
    checks.push(directory("state directory", &dirs.state));
    checks.push(room(&dirs.state));
    checks.extend(cgroups(&host::own_hierarchies(), root));
    checks.push(rights(root));
    checks.push(open_files(config.as_ref().map(|(_, config)| config)));
    if let Some((path, config)) = &config {
        checks.extend(directories(&Context::misplaced(path, config)));
        checks.push(isolation(
            config,
            &std::fs::read_to_string("/etc/passwd").unwrap_or_default(),
        ));
        checks.extend(programs(config));
    }
    let overview = Overview::open(dirs, context.timeout(client::WAIT)).await?;
    let found = overview.who().await;
    checks.extend(daemons(&found, offline::live(dirs).await.len()));
    checks.extend(keeper(keeper_file::find(dirs), &found));
    checks.push(stale(dirs));
    checks.extend(orphans(dirs).into_iter().map(|(name, instances)| {
        let names: Vec<String> = instances.iter().map(ToString::to_string).collect();
        let text = format!(
            "{} run on, and nobody can stop or watch them",
            human::list(&names, 6)
        );
        let who = Component::ProcessManager(Some(name.clone()));
        let advice =
            format!("`blackhole up` starts it, or: blackhole-process-manager --name {name}");
        fail(&format!("services of the {who}"), text, advice)
    }));
    let document = Document { checks };
    out::document(context.format, &document, || {
        table(context, &document.checks)
    })?;
    let worst = document
        .checks
        .iter()
        .map(|check| check.grade)
        .max()
        .unwrap_or(Grade::Ok);
    if worst == Grade::Fail {
        Err(Error::Shown(Exit::Failed))
    } else {
        Ok(())
    }
}

fn table(context: &Context, checks: &[Check]) -> String {
    let mut table = Table::new(context.style, &["", "CHECK", "FOUND", "TO DO"], &[]);
    for check in checks {
        let (word, tone) = match check.grade {
            Grade::Ok => ("OK", Tone::Good),
            Grade::Warn => ("WARN", Tone::Warn),
            Grade::Fail => ("FAIL", Tone::Bad),
        };
        table.row(vec![
            toned(word, tone),
            plain(&check.what),
            plain(&check.found),
            plain(check.advice.clone().unwrap_or_default()),
        ]);
    }
    table.render()
}

fn config(context: &Context) -> (Option<(PathBuf, Config)>, Check) {
    const WHAT: &str = "configuration";
    match context.config() {
        Ok((path, config)) => {
            let found = format!(
                "{}, {}",
                path.display(),
                human::count(config.services.len(), "service")
            );
            (Some((path, config)), ok(WHAT, found))
        }
        Err(error @ Error::NoConfig { .. }) => (
            None,
            warn(
                WHAT,
                error.to_string(),
                "name one with -c FILE, to check what it needs of this host",
            ),
        ),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().to_owned();
            (
                None,
                fail(WHAT, first, "`blackhole config validate` shows where"),
            )
        }
    }
}

/// The nearest existing directory on the way to `path`.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|one| one.exists())
        .unwrap_or(Path::new("/"))
}

fn directory(what: &str, path: &Path) -> Check {
    let shown = path.display();
    let Ok(meta) = std::fs::metadata(path) else {
        let parent = existing(path);
        return if host::writable(parent) {
            ok(what, format!("{shown} will be made"))
        } else {
            fail(
                what,
                format!(
                    "{shown} cannot be made: {} is not writable",
                    parent.display()
                ),
                "choose another with --run-dir and --state-dir, or run as root",
            )
        };
    };
    let found = format!(
        "{shown}, mode {:o}, user {}",
        meta.mode() & 0o7777,
        meta.uid()
    );
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_dir() {
        fail(
            what,
            format!("{shown} is not a directory"),
            "remove it or choose another",
        )
    } else if meta.uid() != me {
        fail(
            what,
            found,
            format!("it must belong to the user who runs Blackhole (user {me})"),
        )
    } else if meta.mode() & 0o022 != 0 {
        fail(
            what,
            found,
            format!("others can write to it: `chmod go-w {shown}`"),
        )
    } else if !host::writable(path) {
        fail(what, found, "it is not writable")
    } else {
        ok(what, found)
    }
}

fn socket_length(dirs: &Dirs) -> Check {
    const WHAT: &str = "socket paths";
    let longest = dirs
        .bus_evt(&Component::ResourceController)
        .as_os_str()
        .len();
    // `Dirs::resolve` has refused what is too long; this tells how near it is.
    ok(WHAT, format!("{longest} of {MAX_SOCKET_PATH} bytes used"))
}

fn room(path: &Path) -> Check {
    const WHAT: &str = "disk";
    let Ok(stat) = rustix::fs::statvfs(existing(path)) else {
        return warn(WHAT, "free space is unknown", "");
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} free for {}", human::bytes(free), path.display());
    if free < NO_ROOM || stat.f_files > 0 && stat.f_favail == 0 {
        fail(
            WHAT,
            found,
            "free some: logs, exit records and desired state cannot be kept",
        )
    } else if free < LITTLE_ROOM {
        warn(
            WHAT,
            found,
            "logs take max_size × (max_files + 1) for each instance",
        )
    } else {
        ok(WHAT, found)
    }
}

fn cgroups(all: &[Hierarchy], root: bool) -> Vec<Check> {
    const WHAT: &str = "cgroups";
    let v1 = all.iter().filter(|one| !one.v2).count();
    let v2 = all.iter().find(|one| one.v2);
    let kind = match (v1, v2) {
        (0, None) => {
            return vec![warn(
                WHAT,
                "none are mounted",
                "limits cannot be enforced: mount cgroup2 on /sys/fs/cgroup, or run where they are",
            )];
        }
        (0, Some(_)) => "v2",
        (_, Some(_)) => "hybrid: v1 controllers and a v2 tree",
        (_, None) => "v1",
    };
    let mut checks = vec![ok(WHAT, kind)];
    for (name, limit) in [
        ("cpu", "cpu_percent"),
        ("memory", "memory_mb"),
        ("io", "io_weight"),
        ("pids", "pids"),
    ] {
        checks.push(controller(all, name, limit, root));
    }
    checks
}

/// Whether a limit can be enforced: by a v1 hierarchy that this user may make
/// groups in, or by the v2 tree that has the controller.
fn controller(all: &[Hierarchy], name: &str, limit: &str, root: bool) -> Check {
    let what = format!("limit {limit}");
    let old = if name == "io" { "blkio" } else { name };
    let holder = all
        .iter()
        .find(|one| one.controllers.iter().any(|controller| controller == old))
        .or_else(|| {
            all.iter().find(|one| {
                one.v2
                    && std::fs::read_to_string(one.own.join("cgroup.controllers")).is_ok_and(
                        |text| text.split_whitespace().any(|controller| controller == name),
                    )
            })
        });
    match holder {
        None => warn(
            &what,
            format!("no {name} controller here"),
            "it is not enforced; everything else works",
        ),
        Some(one) if !host::writable(&one.own) => warn(
            &what,
            format!("{} is not writable", one.own.display()),
            if root {
                "it is not enforced: is /sys/fs/cgroup mounted read-only?"
            } else {
                "it is not enforced: run as root, or have the group delegated (systemd: Delegate=yes)"
            },
        ),
        Some(one) => ok(&what, format!("{} can be used", one.own.display())),
    }
}

fn rights(root: bool) -> Check {
    const WHAT: &str = "rights";
    if root {
        return ok(WHAT, "root: limits, users and OOM scores can be set");
    }
    warn(
        WHAT,
        format!("user {}", rustix::process::geteuid().as_raw()),
        "services run as this user, their OOM score cannot be lowered, limits need delegated cgroups",
    )
}

fn open_files(config: Option<&Config>) -> Check {
    const WHAT: &str = "open files";
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let instances = config.map_or(0, |config| config.instances().count() as u64);
    let needed = 256 + instances * DESCRIPTORS;
    let shown = if hard == u64::MAX {
        "unlimited".to_owned()
    } else {
        hard.to_string()
    };
    let found = format!("hard limit {shown}, about {needed} needed for {instances} instances");
    if hard >= needed {
        ok(WHAT, found)
    } else {
        fail(
            WHAT,
            found,
            "raise it: `ulimit -Hn`, LimitNOFILE= in the unit, or limits.conf(5)",
        )
    }
}

/// Services that run as one user can read each other's memory and tokens.
fn isolation(config: &Config, passwd: &str) -> Check {
    const WHAT: &str = "isolation";
    let me = rustix::process::geteuid().as_raw();
    let mut users: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, service) in &config.services {
        match service
            .user
            .as_deref()
            .map(|user| (user, host::uid_of(passwd, user)))
        {
            None => users.entry(me).or_default().push(name.to_string()),
            Some((_, Some(uid))) => users.entry(uid).or_default().push(name.to_string()),
            Some((user, None)) => unknown.push(format!("{name} ({user})")),
        }
    }
    if !unknown.is_empty() {
        return fail(
            WHAT,
            format!("no such user: {}", human::list(&unknown, 4)),
            "create it, or correct `user:`",
        );
    }
    let shared: Vec<String> = users
        .iter()
        .filter(|(_, names)| names.len() > 1)
        .map(|(uid, names)| format!("{} run as user {uid}", human::list(names, 4)))
        .collect();
    if shared.is_empty() {
        ok(WHAT, "each service has its own user")
    } else {
        warn(
            WHAT,
            shared.join("; "),
            "they are not isolated from each other (memory, RPC tokens): give each its own `user:`",
        )
    }
}

/// Arguments that are no file where the service runs.
fn directories(misplaced: &[Misplaced]) -> Vec<Check> {
    let check = |one: &Misplaced| {
        warn(
            "working directory",
            format!(
                "{} runs in {}, where there is no {}",
                one.service,
                one.working_dir.display(),
                one.argument
            ),
            one.text(),
        )
    };
    misplaced.iter().map(check).collect()
}

/// Programs that a service names by path and that are not there.
fn programs(config: &Config) -> Option<Check> {
    let missing: Vec<String> = config
        .services
        .iter()
        .filter_map(|(name, service)| {
            let program = service.command.first()?;
            (!found(program)).then(|| format!("{name} ({program})"))
        })
        .collect();
    (!missing.is_empty()).then(|| {
        fail(
            "programs",
            format!("not found: {}", human::list(&missing, 4)),
            "install or build them, or correct `command:`",
        )
    })
}

fn found(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn daemons(found: &[Found], live: usize) -> Vec<Check> {
    if found
        .iter()
        .all(|one| matches!(one.presence, Presence::Missing { lock_held: false }))
    {
        return vec![if live == 0 {
            ok("daemons", "none run")
        } else {
            warn(
                "daemons",
                format!(
                    "none run, and {} on without them",
                    if live == 1 {
                        "1 instance lives".to_owned()
                    } else {
                        format!("{live} instances live")
                    }
                ),
                "`blackhole up` takes them over, `blackhole down` ends them",
            )
        }];
    }
    let mut checks: Vec<Check> = found
        .iter()
        .map(|one| {
            let what = one.component.to_string();
            match &one.presence {
                Presence::Running(info) => {
                    ok(&what, format!("pid {}, version {}", info.pid, info.version))
                }
                Presence::NotAsked { .. } => ok(&what, "runs"),
                Presence::Missing { lock_held: true } => fail(
                    &what,
                    "holds its lock and does not answer",
                    "is it stopped in a debugger? `blackhole up` restarts one that hangs",
                ),
                Presence::Missing { lock_held: false } => warn(
                    &what,
                    "does not run",
                    format!(
                        "{}; `blackhole up` starts it",
                        problem::consequence(&one.component)
                    ),
                ),
            }
        })
        .collect();
    checks.extend(
        problem::of_components(found)
            .into_iter()
            .filter(|problem| problem.tone == Tone::Warn)
            .map(|problem| warn("daemons", problem.text, "")),
    );
    checks
}

/// Whether somebody restarts the daemons; nothing where no `up` did that, or none runs.
fn keeper(keeper: Option<Keeper>, found: &[Found]) -> Option<Check> {
    const WHAT: &str = "keeper";
    if keeper::problem(keeper, found).is_some() {
        return Some(warn(
            WHAT,
            "does not run: nobody starts a daemon again that ends",
            "`blackhole up -d` takes the daemons over, services go on",
        ));
    }
    let pid = keeper.filter(|keeper| keeper.state == State::Running)?.pid;
    let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    Some(ok(WHAT, format!("pid {pid}")))
}

/// Sockets of daemons that do not live. They do no harm: the next daemon replaces them.
fn stale(dirs: &Dirs) -> Check {
    const WHAT: &str = "stale sockets";
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(dirs.run.join("bus"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .rsplit_once('.')
            .map_or(name.as_str(), |(owner, _)| owner);
        let owner: Result<Component, _> = owner.parse();
        if !owner.is_ok_and(|owner| client::lives(dirs, &owner)) {
            stale.push(name);
        }
    }
    for instance in offline::instances(dirs) {
        if dirs.shim_socket(&instance).exists() && !offline::is_held(dirs, &instance) {
            stale.push(instance.to_string());
        }
    }
    if stale.is_empty() {
        ok(WHAT, "none")
    } else {
        warn(
            WHAT,
            format!("left by what was killed: {}", human::list(&stale, 4)),
            "harmless: the next start replaces them, `blackhole down` removes them",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_that_others_can_write_to_fails() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(directory("d", temp.path()).grade, Grade::Ok);
        std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let check = directory("d", temp.path());
        assert_eq!(check.grade, Grade::Fail);
        assert!(check.advice.unwrap().contains("chmod go-w"));
        assert_eq!(directory("d", &temp.path().join("new/er")).grade, Grade::Ok);
    }

    #[test]
    fn services_of_one_user_are_not_isolated() {
        let shared = "services: {a: {command: [x]}, b: {command: [x]}}";
        let check = isolation(&Config::parse(shared, "t").unwrap(), "");
        assert_eq!(check.grade, Grade::Warn);
        assert!(check.found.contains("a, b run as user"), "{}", check.found);
        let apart = "services: {a: {command: [x], user: 4001}, b: {command: [x], user: 4002}}";
        assert_eq!(
            isolation(&Config::parse(apart, "t").unwrap(), "").grade,
            Grade::Ok
        );
        let nobody = "services: {a: {command: [x], user: ghost}}";
        assert_eq!(
            isolation(&Config::parse(nobody, "t").unwrap(), "").grade,
            Grade::Fail
        );
    }

    #[test]
    fn a_limit_without_its_controller_is_a_warning() {
        assert_eq!(
            controller(&[], "cpu", "cpu_percent", true).grade,
            Grade::Warn
        );
        let temp = tempfile::tempdir().unwrap();
        let one = Hierarchy {
            controllers: vec!["blkio".into()],
            mount: temp.path().into(),
            own: temp.path().into(),
            v2: false,
        };
        assert_eq!(
            controller(std::slice::from_ref(&one), "io", "io_weight", true).grade,
            Grade::Ok
        );
        let v2 = Hierarchy {
            controllers: vec![],
            v2: true,
            ..one
        };
        std::fs::write(temp.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        let all = [v2];
        assert_eq!(
            controller(&all, "memory", "memory_mb", true).grade,
            Grade::Ok
        );
        assert_eq!(controller(&all, "pids", "pids", true).grade, Grade::Warn);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let config = Config::parse(
            "services: {a: {command: [/nonexistent/x]}, b: {command: [sh]}}",
            "t",
        )
        .unwrap();
        let check = programs(&config).unwrap();
        assert!(
            check.found.contains("a (/nonexistent/x)") && !check.found.contains("b ("),
            "{}",
            check.found
        );
    }
}
