//! Checks of what the host lets a deployment do: control groups, rights, open files.

use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::limits::Limits;
use rustix::process::{Resource, getrlimit};

use super::{Check, Grade, fail, ok, warn};
use crate::host::{self, Hierarchy};

/// Descriptors one instance needs in the process-manager, generously.
const DESCRIPTORS: u64 = 8;

pub(super) fn cgroups(all: &[Hierarchy], root: bool) -> Vec<Check> {
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

/// Services that will not be started, since they require limits of which `checks` say that they
/// cannot be enforced here.
pub(super) fn refused(config: &Config, checks: &[Check]) -> Option<Check> {
    let none = checks
        .iter()
        .any(|check| check.what == "cgroups" && check.grade != Grade::Ok);
    let missing = |limit: &str| {
        let what = format!("limit {limit}");
        none || checks
            .iter()
            .any(|check| check.what == what && check.grade != Grade::Ok)
    };
    let is_refused = |limits: &Limits| {
        limits.required
            && [
                (
                    "cpu_percent",
                    limits.cpu_percent.is_some() || weighs(limits.cpu_weight),
                ),
                ("memory_mb", limits.memory_bytes.is_some()),
                ("io_weight", weighs(limits.io_weight)),
                ("pids", limits.pids.is_some()),
            ]
            .into_iter()
            .any(|(limit, set)| set && missing(limit))
    };
    let services = config.services.iter();
    let refused = services.filter(|(_, service)| is_refused(&service.limits));
    let names: Vec<&str> = refused.map(|(name, _)| name.as_str()).collect();
    (!names.is_empty()).then(|| {
        fail(
            "required limits",
            format!(
                "cannot be enforced here, so these are not started: {}",
                names.join(", ")
            ),
            "see the limits above, or write `limits: best-effort` there",
        )
    })
}

/// Services whose I/O weight is taken by the kernel and has no effect, where `count` says so of
/// this host.
pub(super) fn weights(config: &Config, count: bool) -> Option<Check> {
    let services = config.services.iter();
    let weighted = services.filter(|(_, service)| weighs(service.limits.io_weight));
    let names: Vec<&str> = weighted.map(|(name, _)| name.as_str()).collect();
    (!count && !names.is_empty()).then(|| {
        warn(
            "I/O weights",
            format!(
                "no disk is scheduled by weight: without effect for {}",
                names.join(", ")
            ),
            "write bfq to /sys/block/DISK/queue/scheduler, or switch io.cost on (io.cost.qos, v2)",
        )
    })
}

/// Whether a weight asks for anything: 100 is the normal one.
fn weighs(weight: Option<u32>) -> bool {
    weight.is_some_and(|weight| weight != 100)
}

pub(super) fn rights(root: bool) -> Check {
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

pub(super) fn open_files(config: Option<&Config>) -> Check {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_requires_what_cannot_be_had_is_named() {
        let text = "services:\n  strict: {command: [a], resources: {limits: required, memory_mb: 64}}\n  \
                    weighty: {command: [a], resources: {limits: required, io_weight: 100}}\n  \
                    loose: {command: [a], resources: {memory_mb: 64}}\n";
        let config = Config::parse(text, "blackhole.yaml").unwrap();
        let named = |checks: &[Check]| refused(&config, checks).map(|check| check.found);
        let here = [ok("cgroups", "v2"), ok("limit memory_mb", "can be used")];
        assert_eq!(named(&here), None);
        let not = [
            ok("cgroups", "v2"),
            warn("limit memory_mb", "not writable", ""),
        ];
        let found = named(&not).unwrap();
        assert!(found.ends_with(": strict"), "{found}");
        assert!(
            named(&[warn("cgroups", "none", "")])
                .unwrap()
                .ends_with(": strict")
        );
    }

    #[test]
    fn weights_without_effect_are_told_where_there_are_any() {
        let text = "services:\n  heavy: {command: [a], resources: {io_weight: 400}}\n  \
                    normal: {command: [a], resources: {io_weight: 100}}\n  plain: {command: [a]}\n";
        let config = Config::parse(text, "blackhole.yaml").unwrap();
        let check = weights(&config, false).unwrap();
        assert_eq!(check.grade, Grade::Warn);
        assert!(check.found.ends_with("for heavy"), "{}", check.found);
        assert!(weights(&config, true).is_none());
        let plain = Config::parse("services: {plain: {command: [a]}}\n", "blackhole.yaml").unwrap();
        assert!(weights(&plain, false).is_none());
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
}
