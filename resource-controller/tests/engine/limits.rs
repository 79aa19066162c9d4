//! Limits, measured by the groups' own accounting.

use std::os::unix::process::ExitStatusExt;

use blackhole_bus_schema::limits::{Enforcement, LimitKind, Limits};

use crate::support::{Host, wait_for};

/// A tenth of a core: however long the wall clock says it took, the group's CPU
/// time is measured against its own bandwidth periods of 100 ms.
#[test]
fn a_cpu_hog_gets_a_tenth_of_a_core() {
    let Some(mut host) = Host::able() else { return };
    let limits = Limits {
        cpu_percent: Some(10),
        ..Limits::default()
    };
    let grant = host.prepare("hog.1", &limits).grant;
    assert!(grant.fully_enforced(), "{:?}", grant.report);
    assert_eq!(grant.report[0].actual, Some(10));

    let pid = host.spawn(&grant, "while :; do :; done");
    let first = wait_for("the hog is throttled", || {
        let reading = host.reading("hog.1");
        if reading.throttled_periods > 0 {
            Ok(reading)
        } else {
            Err(format!("{reading:?}"))
        }
    });
    let last = wait_for("20 periods later", || {
        let reading = host.reading("hog.1");
        if reading.periods >= first.periods + 20 {
            Ok(reading)
        } else {
            Err(format!("{reading:?}"))
        }
    });
    host.kill(pid);

    let periods = last.periods - first.periods;
    let used = last.cpu_usec.unwrap() - first.cpu_usec.unwrap();
    let percent = used as f64 / (periods as f64 * 100_000.0) * 100.0;
    assert!(
        (7.0..=13.0).contains(&percent),
        "{percent:.1} % in {periods} periods ({used} µs)"
    );
    assert!(
        last.throttled_periods >= first.throttled_periods + 15,
        "{first:?} {last:?}"
    );
    assert!(last.throttled_usec > first.throttled_usec);
    host.release("hog.1");
    assert!(host.left().is_empty());
}

#[test]
fn an_allocation_beyond_the_limit_is_killed_in_its_own_group() {
    let Some(mut host) = Host::able() else { return };
    let limits = Limits {
        memory_bytes: Some(32 << 20),
        ..Limits::default()
    };
    let grant = host.prepare("eater.1", &limits).grant;
    assert!(grant.fully_enforced(), "{:?}", grant.report);
    let bystander = host.prepare("bystander.1", &limits).grant;
    let other = host.spawn(&bystander, "exec sleep 1000");

    let before = host.reading("eater.1");
    assert_eq!(before.oom_kills, Some(0));
    assert_eq!(before.memory_limit_bytes, Some(32 << 20));
    // dd fills one block of 200 MB at once.
    let pid = host.spawn(
        &grant,
        "exec dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null",
    );
    let status = host.wait(pid);
    assert_eq!(status.signal(), Some(9), "{status:?}");

    // v2 counts the first victim twice: as the choice, and as one of its group.
    let after = wait_for("the kill is counted", || {
        let reading = host.reading("eater.1");
        match reading.oom_kills {
            Some(1..=2) => Ok(reading),
            _ => Err(format!("{reading:?}")),
        }
    });
    assert!(after.memory_peak_bytes.unwrap() <= 32 << 20);
    let line = format!("oom_kill {}", after.oom_kills.unwrap());
    let file = std::fs::read_to_string(grant.oom_file.unwrap()).unwrap();
    assert!(file.lines().any(|found| found == line), "{file}");

    assert_eq!(host.reading("bystander.1").oom_kills, Some(0));
    assert_eq!(host.reading("bystander.1").pids, Some(1));
    host.kill(other);
    host.release("eater.1");
    host.release("bystander.1");
}

#[test]
fn a_fork_beyond_the_number_of_processes_fails() {
    let Some(mut host) = Host::able() else { return };
    let limits = Limits {
        pids: Some(3),
        ..Limits::default()
    };
    let grant = host.prepare("forker.1", &limits).grant;
    assert!(grant.fully_enforced(), "{:?}", grant.report);
    // The shell and two children are three; the third child is refused, which
    // ends the shell.
    const THREE: &str = "sleep 1000 & sleep 1000 & ( : ) 2>/dev/null";
    let pid = host.spawn(&grant, THREE);
    let status = host.wait(pid);
    assert_ne!(status.code(), Some(0), "a fourth process was made");
    assert_ne!(status.code(), Some(99), "it did not join");
    host.kill_all(&grant);

    // With room for it, the same succeeds: the limit changes in place.
    let grant = host
        .prepare(
            "forker.1",
            &Limits {
                pids: Some(4),
                ..Limits::default()
            },
        )
        .grant;
    assert_eq!(grant.report[0].actual, Some(4));
    wait_for("the first ones are gone", || {
        let reading = host.reading("forker.1");
        if reading.pids == Some(0) {
            Ok(())
        } else {
            Err(reading.pids)
        }
    });
    let pid = host.spawn(&grant, THREE);
    assert_eq!(host.wait(pid).code(), Some(0));
    host.kill_all(&grant);
    host.release("forker.1");
}

#[test]
fn weights_are_read_back_from_the_kernel() {
    let Some(mut host) = Host::able() else { return };
    for weight in [1, 50, 100, 500, 1000] {
        let limits = Limits {
            cpu_weight: Some(weight),
            io_weight: Some(weight),
            ..Limits::default()
        };
        let report = host.prepare("weighty.1", &limits).grant.report;
        assert_eq!(report.len(), 2);
        assert_eq!(report[0].limit, LimitKind::CpuWeight);
        assert_eq!(report[0].enforcement, Enforcement::Enforced);
        assert_eq!(report[0].actual, Some(weight.into()));
        assert_eq!(report[1].limit, LimitKind::IoWeight);
        if report[1].actual.is_none() {
            // v1 without the BFQ scheduler's module.
            let text = format!("{:?}", report[1].enforcement);
            assert!(text.contains("the kernel has neither"), "{text}");
            continue;
        }
        // Set in any case; whether a disk's scheduler looks at it depends on the host.
        assert_eq!(report[1].actual, Some(weight.into()), "{report:?}");
        if let Enforcement::Partly { reason } = &report[1].enforcement {
            assert!(reason.contains("without effect"), "{reason}");
        }
    }
    host.release("weighty.1");
}

/// Kernel rounding to pages counts as enforced, and limits change under a live process.
#[test]
fn limits_change_in_place_and_can_be_lifted() {
    let Some(mut host) = Host::able() else { return };
    let odd = Limits {
        memory_bytes: Some((64 << 20) + 123),
        ..Limits::default()
    };
    let first = host.prepare("live.1", &odd);
    assert!(first.fresh);
    assert_eq!(first.grant.report[0].enforcement, Enforcement::Enforced);
    assert_eq!(first.grant.report[0].actual, Some(64 << 20));
    let pid = host.spawn(&first.grant, "exec sleep 1000");
    wait_for("it joined", || match host.reading("live.1").pids {
        Some(1) => Ok(()),
        other => Err(other),
    });

    for bytes in [128u64 << 20, 16 << 20, 256 << 20] {
        let limits = Limits {
            memory_bytes: Some(bytes),
            cpu_percent: Some(70),
            pids: Some(9),
            ..Limits::default()
        };
        let again = host.prepare("live.1", &limits);
        assert!(!again.fresh);
        assert!(again.grant.fully_enforced(), "{:?}", again.grant.report);
        assert_eq!(again.grant.cgroups, first.grant.cgroups);
        assert_eq!(host.reading("live.1").memory_limit_bytes, Some(bytes));
        assert_eq!(host.reading("live.1").pids, Some(1), "nothing was moved");
    }
    let lifted = host.prepare("live.1", &Limits::default());
    assert_eq!(lifted.grant.report, []);
    assert_eq!(host.reading("live.1").memory_limit_bytes, None);
    host.kill(pid);
    host.release("live.1");
}

#[test]
fn counters_show_what_a_process_did() {
    let Some(mut host) = Host::able() else { return };
    let grant = host.prepare("worker.1", &Limits::default()).grant;
    let before = host.reading("worker.1");
    assert_eq!(before.pids, Some(0));
    let pid = host.spawn(
        &grant,
        "dd if=/dev/zero of=/dev/null bs=32M count=20 2>/dev/null; exec sleep 1000",
    );
    let after = wait_for("it worked and rests", || {
        // First that it rests, then what it did: the other way round the
        // reading could be one of its work.
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let reading = host.reading("worker.1");
        if comm.trim() == "sleep" {
            Ok(reading)
        } else {
            Err(format!("{comm} {reading:?}"))
        }
    });
    assert!(after.memory_peak_bytes.unwrap() > 32 << 20);
    assert!(after.cpu_usec.unwrap() > before.cpu_usec.unwrap());
    assert!(after.memory_bytes.unwrap() < after.memory_peak_bytes.unwrap());
    assert!(after.at > before.at);
    host.kill(pid);
    host.release("worker.1");
}
