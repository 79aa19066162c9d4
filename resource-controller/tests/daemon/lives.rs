//! Deaths and returns of the daemon. Services do not notice.

use blackhole_bus_schema::limits::Limits;
use blackhole_bus_schema::resource::{ListUsage, UsageTick};

use crate::support::{Setup, name};

fn limits() -> Limits {
    Limits {
        memory_bytes: Some(64 << 20),
        pids: Some(10),
        cpu_request_percent: Some(50),
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_killed_one_comes_back_to_the_same_groups() {
    let Some(mut setup) = Setup::able("usage_interval: 100ms") else {
        return;
    };
    setup.start(&[]);
    let client = setup.client().await;
    let grant = setup.keep(client.prepare("web.1", limits()).await.unwrap());
    let pid = setup.spawn_resting(&grant).await;
    setup.kill().await;
    assert!(setup.runs(pid));
    let groups = || std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let before = groups();

    setup.start(&[]);
    let mut client = setup.client().await;
    // Found, sampled, and limited as before, without anyone asking.
    let tick = client
        .event(|tick: &UsageTick| tick.usage.iter().any(|usage| usage.pids == Some(1)))
        .await;
    assert_eq!(tick.usage[0].instance, name("web.1"));
    assert_eq!(tick.usage[0].memory_limit_bytes, Some(64 << 20));
    assert_eq!(client.reserved().await, (0, 0, 0));
    // The supervisor repeats its request; nothing is moved.
    assert_eq!(client.prepare("web.1", limits()).await.unwrap(), grant);
    assert_eq!(client.reserved().await, (50, 0, 1));
    assert_eq!(groups(), before);
    assert!(setup.runs(pid));

    // An orderly end leaves the groups of what runs, too.
    setup.stop().await;
    assert_eq!(groups(), before);
    assert!(!setup.subtrees_left().is_empty());
    setup.start(&[]);
    let client = setup.client().await;
    setup.kill_child(pid).await;
    client.release("web.1").await.unwrap();
    assert_eq!(client.ask(&ListUsage::default()).await.unwrap().items, []);
    setup.stop().await;
    assert!(setup.subtrees_left().is_empty());
}

/// An instance whose process runs is taken in whatever the sums say; one that
/// only has an old group is not.
#[tokio::test]
async fn what_runs_is_admitted_after_a_restart() {
    let Some(mut setup) = Setup::able("") else {
        return;
    };
    setup.start(&[]);
    let client = setup.client().await;
    let capacity = client
        .ask(&blackhole_bus_schema::resource::GetCapacity {})
        .await
        .unwrap();
    let all = u32::try_from(capacity.cpu_percent).unwrap();
    let asking = Limits {
        cpu_request_percent: Some(all),
        ..Limits::default()
    };
    let runs = setup.keep(client.prepare("runs.1", asking.clone()).await.unwrap());
    let pid = setup.spawn_resting(&runs).await;
    setup.kill().await;
    setup.start(&[]);
    let client = setup.client().await;
    setup.keep(client.prepare("first.1", asking.clone()).await.unwrap());
    client.prepare("runs.1", asking.clone()).await.unwrap();
    assert_eq!(client.reserved().await.0, 2 * u64::from(all));
    assert!(client.prepare("second.1", asking).await.is_err());
    client.release("first.1").await.unwrap();
    setup.kill_child(pid).await;
    client.release("runs.1").await.unwrap();
}
