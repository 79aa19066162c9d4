//! Commands and their answers.

use blackhole_bus_schema::limits::Limits;
use blackhole_bus_schema::reply::Code;
use blackhole_bus_schema::resource::GetCapacity;

use crate::support::{Setup, code};

fn asking(cpu: u32, mib: u64) -> Limits {
    Limits {
        cpu_request_percent: Some(cpu),
        memory_request_bytes: Some(mib << 20),
        ..Limits::default()
    }
}

#[tokio::test]
async fn requests_are_admitted_until_the_capacity_is_reached() {
    let Some(mut setup) = Setup::able("") else {
        return;
    };
    setup.start(&[]);
    let client = setup.client().await;
    let capacity = client.ask(&GetCapacity {}).await.unwrap();
    assert!(capacity.cpu_percent >= 1);
    assert_eq!(capacity.problem, None);
    assert!(
        ["v1", "hybrid", "v2"].contains(&capacity.cgroups.as_str()),
        "{}",
        capacity.cgroups
    );
    let all = u32::try_from(capacity.cpu_percent).unwrap();

    let grant = client.prepare("big.1", asking(all, 1)).await.unwrap();
    setup.keep(grant);
    assert_eq!(client.reserved().await, (u64::from(all), 1 << 20, 1));
    let (refused, text) = code(client.prepare("small.1", asking(1, 0)).await);
    assert_eq!(refused, Code::ResourceExhausted);
    assert!(
        text.contains("asks for 1 %") && text.contains(&format!("{all} of {all} %")),
        "{text}"
    );
    let mib = capacity.memory_bytes >> 20;
    let (refused, text) = code(client.prepare("small.1", asking(0, mib)).await);
    assert_eq!(refused, Code::ResourceExhausted);
    assert!(text.contains(&format!("1 of {mib} MiB")), "{text}");
    // What was refused has no group and no reservation.
    assert_eq!(client.reserved().await.2, 1);
    assert!(
        setup
            .subtrees_left()
            .iter()
            .all(|dir| !dir.join("small.1").exists())
    );

    // Repeated it counts once; smaller it leaves room.
    client.prepare("big.1", asking(all, 1)).await.unwrap();
    client.prepare("big.1", asking(all - 1, 1)).await.unwrap();
    client.prepare("small.1", asking(1, 0)).await.unwrap();
    client.release("small.1").await.unwrap();
    client.release("big.1").await.unwrap();
    client.release("big.1").await.unwrap();
    assert_eq!(client.reserved().await, (0, 0, 0));
    setup.stop().await;
    assert_eq!(setup.subtrees_left(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_release_waits_for_dying_processes_and_refuses_for_living_ones() {
    let Some(mut setup) = Setup::able("") else {
        return;
    };
    setup.start(&[]);
    let client = setup.client().await;
    let limits = Limits {
        pids: Some(10),
        cpu_request_percent: Some(5),
        ..Limits::default()
    };
    let grant = setup.keep(client.prepare("busy.1", limits.clone()).await.unwrap());
    assert!(grant.fully_enforced(), "{:?}", grant.report);
    let pid = setup.spawn_resting(&grant).await;
    let (refused, text) = code(client.release("busy.1").await);
    assert_eq!(refused, Code::FailedPrecondition);
    assert!(
        text.contains("busy.1") && text.contains(&pid.to_string()),
        "{text}"
    );
    assert!(setup.runs(pid));
    assert_eq!(client.reserved().await.2, 1, "the reservation stays");

    // Asked while it still runs, answered when it is gone.
    let waiting = tokio::spawn({
        let link = client.link.clone();
        async move {
            let release = blackhole_bus_schema::resource::Release {
                instance: crate::support::name("busy.1"),
            };
            link.request(&release, crate::support::PATIENCE).await
        }
    });
    setup.kill_child(pid).await;
    waiting.await.unwrap().unwrap();
    assert!(!std::path::Path::new(&grant.cgroups[0].path).exists());
    assert_eq!(client.reserved().await.2, 0);
}

#[tokio::test]
async fn a_new_prepare_outranks_a_release_that_still_waits() {
    let Some(mut setup) = Setup::able("") else {
        return;
    };
    setup.start(&[]);
    let client = setup.client().await;
    let grant = setup.keep(client.prepare("again.1", Limits::default()).await.unwrap());
    let pid = setup.spawn_resting(&grant).await;
    let release = blackhole_bus_schema::resource::Release {
        instance: crate::support::name("again.1"),
    };
    let prepare = blackhole_bus_schema::resource::Prepare {
        instance: crate::support::name("again.1"),
        limits: Limits::default(),
        oom_score_adj: None,
    };
    // In order on one path: the release begins to wait, then comes the prepare.
    let (released, prepared) = tokio::join!(
        biased;
        client.link.request(&release, crate::support::PATIENCE),
        client.link.request(&prepare, crate::support::PATIENCE),
    );
    assert_eq!(prepared.unwrap().cgroups, grant.cgroups);
    assert_eq!(released.unwrap_err().code(), Code::Aborted);
    assert!(setup.runs(pid));
    setup.kill_child(pid).await;
    client.release("again.1").await.unwrap();
}

#[tokio::test]
async fn a_second_one_stands_by_and_takes_over() {
    let Some(mut setup) = Setup::able("") else {
        return;
    };
    setup.start(&[]);
    let client = setup.client().await;
    let first = client.link.info().unwrap();
    let mut second = Setup::new("");
    second.dirs = setup.dirs.clone();
    second.start(&[]);
    setup.kill().await;
    let taken_over = tokio::time::timeout(crate::support::PATIENCE, async {
        loop {
            let info = client.link.ready(crate::support::PATIENCE).await.unwrap();
            if info.pid == second.pid() {
                return info;
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(taken_over.await.unwrap().incarnation > first.incarnation);
}
