//! Limits hold by the kernel's own account, not by Blackhole's: every number
//! here is read from the cgroup's files. Without root there is nothing to test;
//! that this is said clearly is tested in `unprivileged.rs`.

use std::time::Instant;

use blackhole_tests::{Deployment, cgroup, is_root, skip, wait_for};

#[test]
fn a_cpu_hog_uses_a_tenth_of_a_core() {
    if !is_root() {
        return skip("a_cpu_hog_uses_a_tenth_of_a_core", "limits need root");
    }
    let deployment = Deployment::new(
        r#"
services:
  hog:
    command: [blackhole-example, hog, --threads, "2"]
    resources: {cpu_percent: 10}
"#,
    );
    deployment.up();
    let subtree = deployment.cgroup();
    let used = || cgroup::cpu_usec(&subtree, "hog.1").expect("the account of CPU time");
    let throttled = || cgroup::throttled_periods(&subtree, "hog.1").expect("the throttled periods");

    // The kernel hands the time out in periods of 100 ms and takes it away
    // when it is spent: thirty periods that ended so make three seconds or more.
    let (start, used_before, throttled_before) = (Instant::now(), used(), throttled());
    wait_for("thirty throttled periods", || {
        match throttled() - throttled_before {
            30.. => Ok(()),
            few => Err(format!("{few}, used {} µs", used() - used_before)),
        }
    });
    let (spent, periods) = (used() - used_before, throttled() - throttled_before);
    let share = spent as f64 / start.elapsed().as_micros() as f64;
    eprintln!(
        "{spent} µs of CPU in {:?}: {:.1} %",
        start.elapsed(),
        share * 100.0
    );
    // Above: what was handed out before the first look, and the last slice
    // (5 ms a CPU, sched_cfs_bandwidth_slice_us). Below: each of these periods
    // was spent whole, 10 ms, whatever else the machine did.
    assert!(share < 0.12, "{:.1} % of a core", share * 100.0);
    assert!(
        spent >= periods * 10_000 * 8 / 10,
        "{spent} µs in {periods} spent periods"
    );

    // What people are shown is the same.
    wait_for("the usage to be shown", || {
        let hog = deployment.try_status()?.instance("hog.1");
        match hog.0["cpu_percent"].as_f64() {
            Some(percent) if percent > 0.0 && percent < 20.0 => Ok(()),
            _ => Err(format!("{hog:?}")),
        }
    });
    deployment.down();
}

#[test]
fn an_allocation_beyond_its_memory_is_killed_in_its_own_cgroup_and_told_so() {
    if !is_root() {
        return skip("an_allocation_beyond_its_memory…", "limits need root");
    }
    let deployment = Deployment::new(
        r#"
services:
  greedy:
    command: [blackhole-example, greedy, --memory-mb, "200"]
    autostart: false
    # Restarted at once, then not within this test: its cgroup stays to be read.
    restart: {policy: always, initial_backoff: 60s}
    resources: {cpu_percent: none, memory_mb: 64}
  modest:
    command: [blackhole-example, greedy, --memory-mb, "32"]
    resources: {cpu_percent: none, memory_mb: 64}
"#,
    );
    deployment.up();
    let subtree = deployment.cgroup();
    let modest = deployment.status().instance("modest.1").pid();
    assert_eq!(cgroup::memory_limit(&subtree, "modest.1"), Some(64 << 20));
    assert_eq!(cgroup::oom_kills(&subtree, "modest.1"), Some(0));

    deployment.cli(&["start", "greedy"]);
    let status = deployment.wait_until("the second failure", |status| {
        status.is("greedy.1", "FAILED") && status.is_in("greedy.1", "backing_off")
    });
    let greedy = status.instance("greedy.1");
    assert_eq!(greedy.0["last_exit"]["result"], "oom_kill", "{greedy:?}");
    assert_eq!(greedy.restarts(), Some(1), "{greedy:?}");
    // By the cgroup's own account: a kill for each of its two lives. A v2 group is killed
    // whole, with a successor that waits, and the kernel counts each process, the first one twice.
    let kills = cgroup::oom_kills(&subtree, "greedy.1");
    match cgroup::read(&subtree, "greedy.1", "memory.oom_control") {
        Some(_) => assert_eq!(kills, Some(2)),
        None => assert!(kills >= Some(2), "{kills:?}"),
    }
    assert_eq!(cgroup::memory_limit(&subtree, "greedy.1"), Some(64 << 20));

    // Told in words as well; and nobody else was hit.
    let shown = deployment.cli(&["status"]).ok();
    assert!(shown.stdout.contains("out of memory"), "{shown:#?}");
    let status = deployment.status();
    assert_eq!(status.instance("modest.1").pid(), modest, "{status:?}");
    assert_eq!(cgroup::oom_kills(&subtree, "modest.1"), Some(0));
    deployment.down();
}

#[test]
fn weights_pids_and_open_files_are_what_was_asked_for() {
    if !is_root() {
        return skip("weights_pids_and_open_files…", "limits need root");
    }
    let deployment = Deployment::new(
        r#"
services:
  limited:
    command: [blackhole-example, environment]
    priority: critical
    resources: {cpu_percent: 250, memory_mb: 100, io_weight: 200, pids: 17, open_files: 123}
"#,
    );
    deployment.up();
    let subtree = deployment.cgroup();
    let read = |file: &str| {
        cgroup::read(&subtree, "limited.1", file)
            .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(read("pids.max").as_deref(), Some("17"));
    assert_eq!(cgroup::memory_limit(&subtree, "limited.1"), Some(100 << 20));
    let quota = read("cpu.max").or_else(|| {
        Some(format!(
            "{} {}",
            read("cpu.cfs_quota_us")?,
            read("cpu.cfs_period_us")?
        ))
    });
    assert_eq!(quota.as_deref(), Some("250000 100000"));

    let log = wait_for("the service to say its limits", || {
        let log = deployment.cli(&["logs", "limited"]).ok().stdout;
        if log.contains("said all") {
            Ok(log)
        } else {
            Err(log)
        }
    });
    let files = log
        .lines()
        .find(|line| line.contains("Max open files"))
        .expect("RLIMIT_NOFILE");
    let words: Vec<&str> = files.split_whitespace().collect();
    assert!(
        words.windows(2).any(|pair| pair == ["123", "123"]),
        "{files}"
    );
    // Nothing of the daemons is left open in a service.
    let descriptors: Vec<&str> = log.lines().filter(|line| line.contains(" fd ")).collect();
    assert!(
        descriptors
            .iter()
            .all(|line| !line.contains("/bus/") && !line.contains("lock")),
        "{descriptors:#?}"
    );

    // Each limit is shown as enforced, or with a reason why not.
    let status = deployment.cli(&["status"]).ok();
    assert!(
        status.stdout.contains("yes") || status.stdout.contains("partly"),
        "{status:#?}"
    );
    deployment.down();
}

/// The time from one tick of usage to the next is the only clock here.
#[test]
fn usage_is_sampled_and_shown() {
    if !is_root() {
        return skip("usage_is_sampled_and_shown", "cgroups need root");
    }
    let deployment = Deployment::new(
        "services: {modest: {command: [blackhole-example, greedy, --memory-mb, \"32\"], resources: {cpu_percent: none}}}",
    );
    deployment.up();
    deployment.wait_until("32 MiB to be shown", |status| {
        let modest = status.instance("modest.1");
        modest.0["memory_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 32 << 20)
    });
    let shown = deployment.cli(&["monitor", "--once"]).ok();
    assert!(shown.stdout.contains("modest.1"), "{shown:#?}");
    deployment.down();
}
