//! Without rights: everything is said, nothing fails, nothing is left.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use blackhole_bus_schema::limits::{Enforcement, Limits};

use crate::support::{Host, instance};

const AS_NOBODY: &str = "BLACKHOLE_TEST_AS_NOBODY";

fn all_limits() -> Limits {
    Limits {
        cpu_percent: Some(10),
        cpu_weight: Some(200),
        memory_bytes: Some(32 << 20),
        io_weight: Some(200),
        pids: Some(10),
        ..Limits::default()
    }
}

/// As root this test runs itself again as the user nobody.
#[test]
fn without_rights_each_limit_is_reported_with_the_reason() {
    if rustix::process::geteuid().is_root() {
        run_as_nobody("unprivileged::without_rights_each_limit_is_reported_with_the_reason");
        return;
    }
    let mut host = Host::new();
    if host.engine().problem().is_none() {
        assert!(
            std::env::var_os(AS_NOBODY).is_none(),
            "nobody can make groups here"
        );
        eprintln!("skipped: this user's cgroup is delegated");
        return;
    }
    let prepared = host.prepare("web.1", &all_limits());
    assert_eq!(prepared.grant.report.len(), 5);
    let reasons = prepared.not_enforced().unwrap();
    for line in &prepared.grant.report {
        let Enforcement::NotEnforced { reason } = &line.enforcement else {
            panic!("enforced without rights: {line:?}")
        };
        assert!(!reason.is_empty());
        assert_eq!(line.actual, None);
        assert!(reasons.contains(reason.as_str()));
    }
    assert!(prepared.grant.report[0].enforcement != Enforcement::Enforced);
    assert_eq!(prepared.grant.cgroups, []);
    assert_eq!(prepared.grant.version, None);
    assert!(!prepared.fresh);
    assert_eq!(host.engine().version(), None);
    let problem = host.engine().problem().unwrap();
    assert!(
        problem.contains("run as root") || problem.contains("read-only"),
        "{problem}"
    );
    assert_eq!(host.engine().instances().count(), 0);
    host.engine_mut().release(&instance("web.1")).unwrap();
    // What there is to give is known all the same.
    assert!(host.engine().capacity().cpu_percent >= 1);
    assert!(host.close());
}

fn run_as_nobody(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ])
        .arg(&program)
        .args(["--exact", test, "--nocapture"])
        .env(AS_NOBODY, "1")
        .env("TMPDIR", "/tmp")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}
