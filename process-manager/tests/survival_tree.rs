//! Nothing of a service survives it, whatever its processes do to get away, and
//! whatever the host has to find them by: a v2 tree, a v1 freezer, or no cgroup.
//!
//! Whoever got away is recognised by a path in its arguments: environments are
//! cleaned, sessions and parents left.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod group_support;
mod shim_support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::process::{ExitResult, ExitStatus, SpawnSpec};
use group_support::{Group, grant, group, members};
use rustix::process::Signal;
use shim_support::{Rig, end, spec, until};

/// By what a tree is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    V2,
    Freezer,
    None,
}

/// A grant by which a tree is killed in this way; `None` where the host has no such.
fn by(way: Way, name: &str) -> Option<(LimitGrant, Vec<Group>)> {
    let text = |group: &Group| Some(group.dir.to_str().unwrap().to_owned());
    match way {
        Way::None => Some((LimitGrant::default(), Vec::new())),
        Way::V2 => {
            let v2 = group("", &format!("tree-{name}"))?;
            let made = LimitGrant {
                kill_cgroup: text(&v2),
                ..grant(&[&v2])
            };
            Some((made, vec![v2]))
        }
        Way::Freezer => {
            let freezer = group("freezer", &format!("tree-{name}"))?;
            let made = LimitGrant {
                freezer_cgroup: text(&freezer),
                ..grant(&[&freezer])
            };
            Some((made, vec![freezer]))
        }
    }
}

/// All processes that have a path in their arguments but shims and their server.
fn with_argument(path: &Path) -> Vec<u32> {
    let needle = path.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            words.contains(needle) && !words.contains("blackhole-shim")
        })
        .collect()
}

/// A service whose processes do all they can to be left alone. `tail -f FILE` is
/// one that stays. Ready when it has many.
async fn runaways(
    rig: &Rig,
    grant: LimitGrant,
    on_term: &str,
) -> (SpawnSpec, shim_support::Running) {
    let quiet = rig.path("quiet");
    fs::write(&quiet, "").unwrap();
    let mut spec = rig.script(&format!(
        r#"trap '{on_term}' TERM
        # Ignores what can be ignored.
        sh -c 'trap "" TERM HUP INT QUIT; tail -f {quiet} & wait' &
        # Forks twice, has its own session and nothing in its environment.
        env -i /usr/bin/setsid /bin/sh -c '(/usr/bin/setsid /bin/sh -c "exec /usr/bin/tail -f {quiet}" &); exit' &
        # Never stays one process: each makes the next one and ends.
        env -i PATH=$PATH setsid sh -c 'hop() {{ (sleep 0.003; hop) & exit; }}; : {quiet}; hop' &
        # Makes others for as long as it lives.
        setsid sh -c 'n=0; while [ $n -lt 200 ]; do n=$((n+1)); setsid tail -f {quiet} & sleep 0.01; done; wait' &
        while :; do tail -f {quiet} & wait $!; done"#,
        quiet = quiet.display()
    ));
    spec.grant = Some(grant);
    let running = rig.spawn(&spec).await;
    until("many processes", || {
        (with_argument(&quiet).len() > 15).then_some(())
    })
    .await;
    (spec, running)
}

async fn nobody_gets_away(way: Way) {
    let Some((grant, groups)) = by(way, "away") else {
        return;
    };
    let rig = Rig::new().await;
    let quiet = rig.path("quiet");
    let nobody = |what: &str| {
        assert_eq!(with_argument(&quiet), Vec::<u32>::new(), "{way:?}: {what}");
        for group in &groups {
            assert_eq!(members(group), Vec::<String>::new(), "{way:?}: {what}");
        }
    };

    let (_, mut running) = runaways(&rig, grant.clone(), "").await;
    running.handle.kill(false).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
    nobody("a kill");

    let (_, mut running) = runaways(&rig, grant.clone(), "").await;
    running.stop(Duration::from_millis(100)).await;
    assert_eq!(running.exited().await.result, ExitResult::StopTimeout);
    nobody("a stop whose grace is over");

    let (_, mut running) = runaways(&rig, grant.clone(), "exit 3").await;
    running.stop(Duration::from_secs(600)).await;
    let exit = running.exited().await;
    assert_eq!(exit.status, ExitStatus::Exited { code: 3 });
    assert_eq!(exit.result, ExitResult::Stopped);
    nobody("a stop within the grace");

    let (_, mut running) = runaways(&rig, grant, "").await;
    end(running.started.pid, Signal::KILL);
    assert_eq!(running.exited().await.result, ExitResult::Signal);
    nobody("a crash");
}

#[tokio::test]
async fn nobody_gets_away_from_a_v2_tree() {
    nobody_gets_away(Way::V2).await;
}

#[tokio::test]
async fn nobody_gets_away_from_a_v1_freezer() {
    nobody_gets_away(Way::Freezer).await;
}

#[tokio::test]
async fn nobody_gets_away_without_cgroups() {
    nobody_gets_away(Way::None).await;
}

/// Processes that a bomb may have.
const MOST: usize = 60;

/// A bomb that fills its `pids` limit is killed whole, in every way.
async fn a_bomb_is_killed(way: Way) {
    let Some((mut grant, groups)) = by(way, "bomb") else {
        return;
    };
    // On v2 the limit is that of the group itself.
    let own = groups
        .iter()
        .find(|group| group.dir.join("pids.max").exists());
    let pids = match own {
        Some(_) => None,
        None => group("pids", &format!("bomb-{way:?}")),
    };
    let Some(limited) = own.or(pids.as_ref()) else {
        println!("skipped: nothing limits the number of processes here");
        return;
    };
    if !Path::new("/usr/bin/perl").exists() {
        println!("skipped: no perl here");
        return;
    }
    fs::write(limited.dir.join("pids.max"), MOST.to_string()).unwrap();
    if let Some(pids) = &pids {
        grant.cgroups.extend(group_support::grant(&[pids]).cgroups);
    }
    let rig = Rig::new().await;
    for ending in ["kill", "crash"] {
        // A shell that cannot fork ends; this goes on.
        let bomb = "$SIG{TERM} = $SIG{HUP} = $SIG{CHLD} = 'IGNORE';
             while (1) { fork // select(undef, undef, undef, 0.001) }";
        let mut spec = spec("web.1", &["/usr/bin/perl", "-e", bomb]);
        spec.grant = Some(grant.clone());
        let mut running = rig.spawn(&spec).await;
        until("the bomb to go off", || {
            (members(limited).len() + 1 >= MOST).then_some(())
        })
        .await;
        match ending {
            "kill" => running.handle.kill(false).await.unwrap(),
            _ => end(running.started.pid, Signal::KILL),
        }
        let exit = running.exited().await;
        let expected = match ending {
            "kill" => ExitResult::Stopped,
            _ => ExitResult::Signal,
        };
        assert_eq!(exit.result, expected, "{way:?}");
        assert_eq!(members(limited), Vec::<String>::new(), "{way:?} {ending}");
    }
}

#[tokio::test]
async fn a_bomb_is_killed_in_a_v2_tree() {
    a_bomb_is_killed(Way::V2).await;
}

#[tokio::test]
async fn a_bomb_is_killed_by_a_v1_freezer() {
    a_bomb_is_killed(Way::Freezer).await;
}

#[tokio::test]
async fn a_bomb_is_killed_without_cgroups_to_find_it_by() {
    a_bomb_is_killed(Way::None).await;
}
