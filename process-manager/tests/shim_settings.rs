//! Settings of a service's process: what it finds, and what is told where they
//! cannot be had.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use blackhole_bus_schema::process::{
    Capabilities, ExitResult, Rlimit, RlimitValue, SpawnSpec, SpawnStep,
};
use shim_support::{Rig, line_of};

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("not checked: only root can");
    }
    root
}

async fn output(rig: &Rig, spec: &SpawnSpec) -> Vec<String> {
    let mut running = rig.spawn(spec).await;
    let exit = running.exited().await;
    let log = rig.log(spec);
    assert_eq!(exit.result, ExitResult::Success, "{log}");
    log.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn masks_limits_niceness_and_input_are_as_asked() {
    let rig = Rig::new().await;
    let mut spec =
        rig.script("umask; nice; ulimit -Sc; ulimit -Sn; ulimit -Hn; read -r line; echo $line");
    let input = rig.path("input");
    fs::write(&input, "first\nsecond\n").unwrap();
    spec.settings.umask = Some(0o027);
    spec.settings.nice = Some(7);
    spec.settings.stdin = Some(input.display().to_string());
    let value = |soft, hard| RlimitValue { soft, hard };
    spec.settings
        .rlimits
        .insert(Rlimit::Core, value(Some(0), Some(0)));
    let files = value(Some(77), Some(88));
    spec.settings.rlimits.insert(Rlimit::Nofile, files);
    let lines = output(&rig, &spec).await;
    assert_eq!(lines, ["0027", "7", "0", "77", "88", "first"]);
}

#[tokio::test]
async fn nothing_gains_privileges_where_that_is_asked_for() {
    let rig = Rig::new().await;
    let mut spec = rig.script("grep NoNewPrivs /proc/self/status");
    assert_eq!(output(&rig, &spec).await, ["NoNewPrivs:\t0"]);
    spec.generation = spec.generation.next();
    spec.settings.no_new_privs = true;
    assert_eq!(
        output(&rig, &spec).await,
        ["NoNewPrivs:\t0", "NoNewPrivs:\t1"]
    );
}

#[tokio::test]
async fn a_fifo_as_input_holds_nothing_up() {
    let rig = Rig::new().await;
    let fifo = rig.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let said = rig.path("said");
    let mut spec = rig.script(&format!("echo $$ > {0}; exec cat >> {0}", said.display()));
    spec.settings.stdin = Some(fifo.display().to_string());
    let mut running = rig.spawn(&spec).await;
    // Without a writer there is an end at once, as read(2) has it for a FIFO.
    assert_eq!(running.exited().await.result, ExitResult::Success);
    assert_eq!(line_of(&said).await, running.started.pid.to_string());
}

#[tokio::test]
async fn what_cannot_be_had_is_named() {
    let rig = Rig::new().await;
    let mut spec = rig.script("true");
    spec.settings.stdin = Some("/no/such/file".into());
    let failure = rig.fail(&spec).await;
    assert_eq!(
        (failure.step, failure.errno),
        (SpawnStep::PrepareEnvironment, libc::ENOENT)
    );
    assert_eq!(failure.operation, "open /no/such/file as standard input");
    assert!(failure.hint.contains("correct `stdin`"), "{failure}");

    let mut spec = rig.script("true");
    spec.settings.groups = vec!["no-such-group".into()];
    let failure = rig.fail(&spec).await;
    assert_eq!(failure.operation, "look up group no-such-group");
    assert!(failure.hint.contains("`groups`"), "{failure}");

    let mut spec = rig.script("true");
    spec.settings.capabilities = Some(Capabilities::Drop(vec!["of_a_later_day".into()]));
    let failure = rig.fail(&spec).await;
    assert!(failure.operation.contains("of_a_later_day"), "{failure}");

    // Above what the kernel allows anybody.
    let mut spec = rig.script("true");
    let limit = RlimitValue {
        soft: None,
        hard: None,
    };
    spec.settings.rlimits.insert(Rlimit::Nofile, limit);
    let failure = rig.fail(&spec).await;
    assert_eq!(
        (failure.step, failure.errno),
        (SpawnStep::ApplyLimits, libc::EPERM)
    );
    assert_eq!(failure.operation, "limit nofile to unlimited:unlimited");
    assert!(failure.hint.contains("fs.nr_open"), "{failure}");
}

#[tokio::test]
async fn groups_come_on_top_of_those_of_the_user() {
    if !is_root() {
        return;
    }
    let rig = Rig::new().await;
    let mut spec = rig.script("id -u; id -g; id -G");
    spec.user = Some("54321".into());
    spec.group = Some("54322".into());
    spec.settings.groups = vec!["54323".into(), "54322".into()];
    assert_eq!(output(&rig, &spec).await, ["54321", "54322", "54322 54323"]);
    // Without another user.
    let mut spec = rig.script("id -u; id -G");
    spec.generation = spec.generation.next();
    spec.settings.groups = vec!["54323".into()];
    let lines = output(&rig, &spec).await;
    assert_eq!(lines[3..], ["0", "0 54323"], "{lines:?}");
}

/// CapInh, CapPrm, CapEff, CapBnd, CapAmb.
const SHOW: &str = "grep ^Cap /proc/self/status";

fn sets(lines: &[String]) -> Vec<u64> {
    let hex = |line: &String| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
    lines.iter().map(hex).collect()
}

#[tokio::test]
async fn a_user_has_the_capabilities_that_are_kept_and_no_way_to_others() {
    if !is_root() {
        return;
    }
    let rig = Rig::new().await;
    let mut spec = rig.script(SHOW);
    spec.user = Some("54321".into());
    spec.group = Some("54321".into());
    spec.settings.capabilities = Some(Capabilities::Keep(vec![
        "net_bind_service".into(),
        "kill".into(),
    ]));
    let kept = (1 << 10) | (1 << 5);
    assert_eq!(sets(&output(&rig, &spec).await), [kept; 5]);
}

#[tokio::test]
async fn root_has_what_is_left() {
    if !is_root() {
        return;
    }
    let rig = Rig::new().await;
    let mut spec = rig.script(SHOW);
    let before = sets(&output(&rig, &spec).await);
    spec.generation = spec.generation.next();
    spec.settings.capabilities = Some(Capabilities::Drop(vec!["chown".into(), "mknod".into()]));
    let after = sets(&output(&rig, &spec).await[5..]);
    let dropped = 1_u64 | (1 << 27);
    for set in [1, 2, 3] {
        assert_eq!(after[set], before[set] & !dropped);
    }
    spec.generation = spec.generation.next();
    spec.settings.capabilities = Some(Capabilities::Keep(Vec::new()));
    let none = sets(&output(&rig, &spec).await[10..]);
    assert_eq!(none, [0; 5]);
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    if !is_root() {
        return;
    }
    // As an ordinary user's fork server would: without the right to.
    let rig = Rig::new().await;
    let file = rig.path("secret");
    fs::write(&file, "x").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut spec = rig.script("true");
    spec.user = Some("54321".into());
    spec.group = Some("54321".into());
    spec.settings.stdin = Some(file.display().to_string());
    let failure = rig.fail(&spec).await;
    assert_eq!(failure.errno, libc::EACCES);
    assert_eq!(failure.hint, "user 54321 may not read it");
}
