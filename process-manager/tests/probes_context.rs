//! What a probe by `exec` runs with: all that its service runs with.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod group_support;
mod support;

use std::os::unix::fs::PermissionsExt;

use blackhole_bus_schema::health::{ProbeCheck, Probes};
use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::process::{Capabilities, Rlimit, RlimitValue};
use group_support::{grant, group, members};
use support::*;

fn readiness(script: &str) -> Probes {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let mut once = probe(ProbeCheck::Exec(command));
    once.interval_ms = 3_600_000;
    Probes {
        readiness: Some(once),
        ..Probes::default()
    }
}

/// All that a process is made with, in lines; not what the kernel counts, nor what belongs to
/// the service's first process alone.
const ALL: &str = "grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Sig(Blk|Ign|Cgt|Pnd))' /proc/self/status; \
    cat /proc/self/limits /proc/self/oom_score_adj; nice; pwd; \
    env | grep -vE '^(NOTIFY_SOCKET|WATCHDOG_[A-Z]*|_)=' | sort";

#[tokio::test]
async fn it_is_the_same_as_that_of_the_service() {
    let mut bench = Bench::start().await;
    std::fs::set_permissions(bench.path(""), PermissionsExt::from_mode(0o777)).unwrap();
    let (own, probed) = (bench.path("own"), bench.path("probed"));
    let into = |file: &std::path::Path| {
        let file = file.display();
        format!("({ALL}) > {file}.new; mv {file}.new {file}")
    };
    let mut service = script("web.1", 1, &format!("{}; exec sleep 100000", into(&own)));
    service.working_dir = Some("/usr".to_owned());
    service.open_files = Some(77);
    service.env.insert("GREETING".into(), "hello  there".into());
    let settings = &mut service.settings;
    settings.umask = Some(0o027);
    settings.nice = Some(7);
    settings.no_new_privs = true;
    let value = |soft, hard| RlimitValue { soft, hard };
    for (limit, value) in [
        (Rlimit::Core, value(Some(0), Some(0))),
        (Rlimit::Fsize, value(Some(1 << 30), Some(1 << 31))),
    ] {
        settings.rlimits.insert(limit, value);
    }
    service.grant = Some(LimitGrant {
        oom_score_adj: Some(300),
        ..LimitGrant::default()
    });
    if rustix::process::geteuid().is_root() {
        service.user = Some("nobody".to_owned());
        let settings = &mut service.settings;
        settings.groups = vec!["54321".to_owned()];
        settings.capabilities = Some(Capabilities::Keep(vec!["net_bind_service".to_owned()]));
    }
    service.probes = readiness(&into(&probed));
    bench.run(&service).await;
    let result = bench.probe("a result", 0, |_| true).await;
    assert_eq!(result.error, None);
    let own = until("the service's own word", || {
        std::fs::read_to_string(&own).ok()
    })
    .await;
    let probed = std::fs::read_to_string(&probed).unwrap();
    assert_eq!(probed, own);
    for line in [
        "Umask:\t0027",
        "NoNewPrivs:\t1",
        "7",
        "300",
        "/usr",
        "GREETING=hello  there",
    ] {
        assert!(
            probed.lines().any(|found| found == line),
            "{line}: {probed}"
        );
    }
    if rustix::process::geteuid().is_root() {
        assert!(probed.contains("54321"), "{probed}");
        assert!(probed.contains("CapAmb:\t0000000000000400"), "{probed}");
    }
}

#[tokio::test]
async fn it_is_in_a_group_below_the_services_and_leaves_nothing() {
    let Some(v2) = group("", "probe") else { return };
    let mut bench = Bench::start().await;
    let seen = bench.path("seen");
    let mut service = sleeper("web.1", 1);
    service.grant = Some(LimitGrant {
        kill_cgroup: Some(v2.dir.to_str().unwrap().into()),
        ..grant(&[&v2])
    });
    // What it leaves behind has a session of its own and no environment.
    let text = format!(
        "env -i setsid sleep 100000 & cat /proc/self/cgroup > {0}.new; mv {0}.new {0}",
        seen.display()
    );
    service.probes = readiness(&text);
    let pid = bench.run(&service).await.state.pid().unwrap();
    let result = bench.probe("a result", 0, |_| true).await;
    assert_eq!(result.error, None);
    let seen = std::fs::read_to_string(&seen).unwrap();
    let name = v2.dir.file_name().unwrap().to_str().unwrap();
    assert!(
        seen.lines()
            .any(|line| line.contains(&format!("/{name}/p1."))),
        "{seen}"
    );
    assert_eq!(members(&v2), [pid.to_string()], "nothing but the service");
    let groups = || {
        let below = std::fs::read_dir(&v2.dir).unwrap().flatten();
        let names = below.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('p')).count()
    };
    assert_eq!(groups(), 0, "its groups are gone");
    bench.stop("web.1", 1).await.unwrap();
}

#[tokio::test]
async fn it_does_not_outlive_its_process_manager() {
    let mut bench = Bench::start().await;
    let file = bench.path("child");
    let mut service = sleeper("web.1", 1);
    service.probes = readiness(&format!(
        "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 100000",
        file.display()
    ));
    service.probes.readiness.as_mut().unwrap().timeout_ms = 3_600_000;
    let pid = bench.run(&service).await.state.pid().unwrap();
    let child = until("the probe's word", || std::fs::read_to_string(&file).ok()).await;
    bench.kill_manager();
    gone(child.trim().parse().unwrap()).await;
    assert!(runs(pid));
}

#[tokio::test]
async fn it_ends_with_a_process_manager_that_ends_in_order() {
    let mut bench = Bench::start().await;
    let file = bench.path("child");
    let mut service = sleeper("web.1", 1);
    service.probes = readiness(&format!(
        "trap '' TERM; echo $$ > {0}.new; mv {0}.new {0}; sleep 100000 & wait",
        file.display()
    ));
    service.probes.readiness.as_mut().unwrap().timeout_ms = 3_600_000;
    bench.run(&service).await;
    let child = until("the probe's word", || std::fs::read_to_string(&file).ok()).await;
    assert!(bench.end_manager().success());
    gone(child.trim().parse().unwrap()).await;
}
