//! What is published.

use blackhole_bus_schema::bus::LinkEvent;
use blackhole_bus_schema::component::Heartbeat;
use blackhole_bus_schema::limits::Limits;
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::resource::{ListUsage, OomKilled, UsageTick};

use crate::support::{Setup, name};

#[tokio::test]
async fn one_batch_a_tick_with_shares_of_the_cpu() {
    let Some(mut setup) = Setup::able("usage_interval: 100ms") else {
        return;
    };
    setup.start(&[]);
    let mut client = setup.client().await;
    let limits = Limits {
        cpu_percent: Some(20),
        memory_bytes: Some(64 << 20),
        ..Limits::default()
    };
    let grant = setup.keep(client.prepare("hog.1", limits).await.unwrap());
    setup.keep(client.prepare("idle.1", Limits::default()).await.unwrap());
    let pid = setup.spawn(&grant, "while :; do :; done");
    // The second tick for both is the first with shares.
    let tick = client
        .event(|tick: &UsageTick| {
            tick.usage.len() == 2
                && tick.usage.iter().all(|usage| usage.cpu_percent.is_some())
                && tick.usage[0].cpu_percent > Some(1.0)
                && tick.usage[0].throttled_usec > 0
        })
        .await;
    let hog = &tick.usage[0];
    assert_eq!(hog.instance, name("hog.1"));
    assert!(tick.interval_ms >= 50, "{}", tick.interval_ms);
    assert_eq!(hog.memory_limit_bytes, Some(64 << 20));
    assert_eq!(hog.pids, Some(1));
    assert!(hog.memory_bytes.is_some() && hog.io_read_bytes.is_some());
    assert_eq!(hog.oom_kills, 0);
    let idle = &tick.usage[1];
    assert_eq!(idle.cpu_usec, 0);
    assert_eq!(idle.cpu_percent, Some(0.0));

    let page = client.ask(&ListUsage::default()).await.unwrap();
    let names: Vec<_> = page
        .items
        .iter()
        .map(|usage| usage.instance.to_string())
        .collect();
    assert_eq!(names, ["hog.1", "idle.1"]);
    assert!(page.items[0].cpu_usec >= hog.cpu_usec);
    assert_eq!(page.next, None);
    assert!(
        page.watermarks
            .iter()
            .any(|(topic, seq)| topic == "evt.resource." && *seq > 0)
    );
    setup.kill_child(pid).await;
    client.release("hog.1").await.unwrap();
    client.release("idle.1").await.unwrap();
}

/// An instance is on the list as soon as it has groups, before any tick: who
/// clears up finds it there.
#[tokio::test]
async fn a_new_instance_is_listed_at_once() {
    let Some(mut setup) = Setup::able("usage_interval: 1h") else {
        return;
    };
    setup.start(&[]);
    let client = setup.client().await;
    let names = async || -> Vec<String> {
        let page = client.ask(&ListUsage::default()).await.unwrap();
        page.items
            .iter()
            .map(|usage| usage.instance.to_string())
            .collect()
    };
    setup.keep(client.prepare("a.1", Limits::default()).await.unwrap());
    setup.keep(client.prepare("a.2", Limits::default()).await.unwrap());
    assert_eq!(names().await, ["a.1", "a.2"]);
    setup.kill().await;
    setup.start(&[]);
    client.link.ready(crate::support::PATIENCE).await.unwrap();
    tokio::time::timeout(crate::support::PATIENCE, async {
        while names().await != ["a.1", "a.2"] {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    client.release("a.1").await.unwrap();
    assert_eq!(names().await, ["a.2"]);
    client.release("a.2").await.unwrap();
}

#[tokio::test]
async fn an_oom_kill_is_one_event() {
    let Some(mut setup) = Setup::able("usage_interval: 100ms") else {
        return;
    };
    setup.start(&[]);
    let mut client = setup.client().await;
    let limits = Limits {
        memory_bytes: Some(32 << 20),
        ..Limits::default()
    };
    let grant = setup.keep(client.prepare("eater.1", limits).await.unwrap());
    const EAT: &str = "exec dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null";
    let pid = setup.spawn(&grant, EAT);
    assert!(!setup.wait(pid).await.success());
    let killed = client.event(|_: &OomKilled| true).await;
    assert_eq!(killed.instance, name("eater.1"));
    // v2 counts the first victim twice: as the choice, and as one of its group.
    assert!((1..=2).contains(&killed.kills), "{killed:?}");
    let before = killed.kills;
    assert_eq!(killed.memory_limit_bytes, Some(32 << 20));

    // A kill right before the release is not lost, whether a tick saw it or the release.
    let pid = setup.spawn(&grant, EAT);
    assert!(!setup.wait(pid).await.success());
    client.release("eater.1").await.unwrap();
    let killed = client
        .event(|killed: &OomKilled| killed.kills > before)
        .await;
    assert!(killed.kills <= 2 * (before + 1), "{killed:?}");
}

/// Nothing is published while there is no instance: ten heartbeats' worth of
/// intervals pass in three heartbeats, and no tick comes.
#[tokio::test]
async fn silence_without_instances() {
    let Some(mut setup) = Setup::able("usage_interval: 100ms") else {
        return;
    };
    setup.start(&[]);
    let mut client = setup.client().await;
    let mut beats = 0;
    while beats < 3 {
        if let LinkEvent::Event(received) = client.next().await {
            assert_ne!(received.kind(), UsageTick::KIND);
            beats += u32::from(received.kind() == Heartbeat::KIND);
        }
    }
}

#[tokio::test]
async fn many_instances_come_in_pages() {
    let Some(mut setup) = Setup::able("usage_interval: 1s") else {
        return;
    };
    setup.start(&[]);
    let mut client = setup.client().await;
    for index in 1..=300 {
        let grant = client
            .prepare(&format!("many.{index}"), Limits::default())
            .await
            .unwrap();
        setup.keep(grant);
    }
    // Ticks of fewer instances came while they were made.
    let mut first = client.event(|_: &UsageTick| true).await;
    let second = loop {
        let tick = client.event(|_: &UsageTick| true).await;
        if first.usage.len() == 256 && tick.usage.len() == 44 {
            break tick;
        }
        first = tick;
    };
    assert_eq!(first.interval_ms, second.interval_ms);
    assert!(
        first
            .usage
            .iter()
            .all(|usage| usage.instance < second.usage[0].instance)
    );
    let page = client.ask(&ListUsage::default()).await.unwrap();
    assert_eq!(page.items.len(), 256);
    let rest = client.ask(&ListUsage { after: page.next }).await.unwrap();
    assert_eq!(rest.items.len(), 44);
    assert_eq!(rest.next, None);
    for index in 1..=300 {
        client.release(&format!("many.{index}")).await.unwrap();
    }
    setup.stop().await;
    assert!(setup.subtrees_left().is_empty());
}
