//! Whatever is lost on the way, a subscriber ends with its owner's state.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::*;
use crate::bus::link::life::SILENCE;
use crate::message::Message;

/// What owner and subscriber know: a generation of each instance.
type View = BTreeMap<String, u64>;

/// One life of a process-manager that serves a view of its own.
struct Owner {
    server: Server,
    view: Arc<Mutex<View>>,
    task: JoinHandle<()>,
}

impl Owner {
    /// `after_page` is called with the number of pages answered and the owner's
    /// server and view, after each page; `false` ends this life.
    async fn start<F, Fut>(dirs: &Dirs, incarnation: u64, view: View, mut after_page: F) -> Self
    where
        F: FnMut(u32, Server, Arc<Mutex<View>>) -> Fut + Send + 'static,
        Fut: Future<Output = bool> + Send,
    {
        let manager = Component::ProcessManager(None);
        let (server, mut commands) = Server::bind(dirs, manager, incarnation).await.unwrap();
        let view = Arc::new(Mutex::new(view));
        let (own, state) = (server.clone(), view.clone());
        let task = tokio::spawn(async move {
            let mut pages = 0;
            while let Some(incoming) = commands.recv().await {
                if incoming.kind != ListProcesses::KIND {
                    incoming.unknown().await;
                    continue;
                }
                let command = match incoming.parse::<ListProcesses>() {
                    Ok(command) => command,
                    Err(status) => {
                        incoming.fail(status).await;
                        continue;
                    }
                };
                let page = {
                    let view = state.lock().unwrap();
                    let all = view
                        .iter()
                        .map(|(name, generation)| (name.clone(), record(name, *generation)));
                    own.snapshot(topic::PROCESS, all, command.after.as_deref())
                };
                incoming.reply::<ListProcesses>(Ok(page)).await;
                pages += 1;
                if !after_page(pages, own.clone(), state.clone()).await {
                    return;
                }
            }
        });
        Self { server, view, task }
    }

    async fn plain(dirs: &Dirs, incarnation: u64, view: View) -> Self {
        Self::start(dirs, incarnation, view, |_, _, _| async { true }).await
    }

    fn view(&self) -> View {
        self.view.lock().unwrap().clone()
    }

    /// Ends without a word.
    async fn die(self) -> View {
        self.task.abort();
        let _ = self.task.await;
        self.view.lock().unwrap().clone()
    }
}

/// Changes an instance and tells.
async fn change(server: &Server, view: &Mutex<View>, name: &str) {
    let generation = {
        let mut view = view.lock().unwrap();
        let generation = view.entry(name.to_owned()).or_insert(0);
        *generation += 1;
        *generation
    };
    let changed = ProcessChanged {
        from: None,
        record: record(name, generation),
    };
    let topic = Topic::process(&name.parse().unwrap());
    server.publish(topic, &changed, None).await;
}

fn apply(view: &mut View, event: LinkEvent) {
    match event {
        LinkEvent::Snapshot { items, .. } => {
            *view = items
                .into_iter()
                .map(|value| item::<InstanceRecord>(value).unwrap())
                .map(|record| (record.instance.to_string(), record.generation.0))
                .collect();
        }
        LinkEvent::Event(received) => {
            let record = received.parse::<ProcessChanged>().unwrap().record;
            view.insert(record.instance.to_string(), record.generation.0);
        }
        LinkEvent::Up(_) | LinkEvent::Down | LinkEvent::Lagged { .. } => {}
    }
}

/// Takes in events until the view is the one wanted and nothing more is there.
async fn until_equal(view: &mut View, events: &mut mpsc::Receiver<LinkEvent>, wanted: &View) {
    let reached = tokio::time::timeout(LONG, async {
        loop {
            while let Ok(event) = events.try_recv() {
                apply(view, event);
            }
            if view == wanted {
                return;
            }
            apply(view, events.recv().await.expect("a link"));
        }
    });
    if reached.await.is_err() {
        let differs: Vec<_> = wanted
            .iter()
            .filter(|(name, generation)| view.get(*name) != Some(generation))
            .take(5)
            .collect();
        panic!(
            "{} known of {}, for instance not {differs:?}",
            view.len(),
            wanted.len()
        );
    }
}

/// A small generator of its own: the same losses for the same seed.
fn random(state: &AtomicU64) -> u64 {
    let mut z = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What happens to an owner.
#[derive(Debug, Clone)]
enum Step {
    /// So many changes of one instance at once.
    Change { instance: u8, times: u8 },
    /// The owner dies and comes back with what it knew, or with half of it.
    Restart { forgets: bool },
    /// Others get a turn.
    Turn,
}

#[derive(Debug, Clone)]
struct Plan {
    steps: Vec<Step>,
    /// Of a hundred messages so many are lost, of all kinds.
    lost_percent: u64,
    seed: u64,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let step = prop_oneof![
        8 => (0..20_u8, 1..6_u8).prop_map(|(instance, times)| Step::Change { instance, times }),
        1 => any::<bool>().prop_map(|forgets| Step::Restart { forgets }),
        4 => Just(Step::Turn),
    ];
    let steps = proptest::collection::vec(step, 1..60);
    let plan = (steps, 0..45_u64, any::<u64>()).prop_map(|(steps, lost_percent, seed)| Plan {
        steps,
        lost_percent,
        seed,
    });
    proptest::collection::vec(plan, 12)
}

async fn carry_out(plan: Plan) {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let mut owner = Owner::plain(&dirs, 1, View::new()).await;
    let state = AtomicU64::new(plan.seed);
    let percent = plan.lost_percent;
    let interest = Interest::none()
        .stream::<ListProcesses>(topic::PROCESS)
        .lossy(move |_, _| random(&state) % 100 < percent);
    let manager = Component::ProcessManager(None);
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
        .await
        .unwrap();
    link.ready(LONG).await.unwrap();
    let mut view = View::new();
    let mut incarnation = 1;
    for step in &plan.steps {
        match step {
            Step::Change { instance, times } => {
                for _ in 0..*times {
                    let name = format!("i{}.1", instance % 20);
                    change(&owner.server, &owner.view, &name).await;
                }
            }
            Step::Restart { forgets } => {
                let mut known = owner.die().await;
                if *forgets {
                    let half = known.len() / 2;
                    known = known.into_iter().take(half).collect();
                }
                incarnation += 1;
                owner = Owner::plain(&dirs, incarnation, known).await;
            }
            Step::Turn => tokio::task::yield_now().await,
        }
        while let Ok(event) = events.try_recv() {
            apply(&mut view, event);
        }
    }
    until_equal(&mut view, &mut events, &owner.view()).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    /// Messages of any kind lost at random, owners that die and forget. Twelve
    /// deployments at a time, since each has to wait for a heartbeat or two.
    #[test]
    fn a_subscriber_ends_with_its_owners_state(plans in plans()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut all = tokio::task::JoinSet::new();
            for plan in plans {
                all.spawn(carry_out(plan));
            }
            while let Some(one) = all.join_next().await {
                if let Err(error) = one {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        });
    }
}

/// 1,500 items, in six pages; between the pages things change that stand on
/// pages before and after, and new ones appear.
#[tokio::test]
async fn events_that_flow_between_the_pages_of_a_snapshot_are_not_lost() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let view: View = (1..=1500)
        .map(|index| (format!("web.{index}"), 1))
        .collect();
    let owner = Owner::start(&dirs, 1, view, |pages, server, view| async move {
        for index in [1, 700, 1500, 2000 + pages] {
            change(&server, &view, &format!("web.{index}")).await;
            change(&server, &view, &format!("a{pages}.1")).await;
        }
        true
    })
    .await;
    let manager = Component::ProcessManager(None);
    let interest = Interest::none().stream::<ListProcesses>(topic::PROCESS);
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
        .await
        .unwrap();
    link.ready(LONG).await.unwrap();
    let mut view = View::new();
    let mut snapshots = 0;
    while snapshots == 0 {
        let event = events.recv().await.unwrap();
        snapshots += u32::from(matches!(event, LinkEvent::Snapshot { .. }));
        apply(&mut view, event);
    }
    assert!(view.len() >= 1500, "{}", view.len());
    until_equal(&mut view, &mut events, &owner.view()).await;
    assert_eq!(link.counters()["link.snapshots"], 1, "one was enough");
    assert_eq!(link.counters()["link.gaps"], 0);
}

/// The owner answers the first page and dies; the next one knows half of it.
#[tokio::test]
async fn pages_of_two_lives_of_an_owner_are_never_put_together() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let view: View = (1..=1000)
        .map(|index| (format!("web.{index}"), 1))
        .collect();
    let first = Owner::start(&dirs, 1, view, |_, _, _| async { false }).await;
    let manager = Component::ProcessManager(None);
    let interest = Interest::none().stream::<ListProcesses>(topic::PROCESS);
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
        .await
        .unwrap();
    link.ready(LONG).await.unwrap();
    let Owner { server, view, task } = first;
    task.await.unwrap();
    drop((server, view));

    let view: View = (500..=1200)
        .map(|index| (format!("web.{index}"), 2))
        .collect();
    let second = Owner::plain(&dirs, 2, view).await;
    let mut seen = View::new();
    loop {
        let event = tokio::time::timeout(LONG, events.recv()).await;
        let event = event.expect("a snapshot").expect("a link");
        let whole = matches!(event, LinkEvent::Snapshot { .. });
        apply(&mut seen, event);
        if whole {
            break;
        }
    }
    assert_eq!(seen, second.view());
}

/// One that hangs sends nothing; its socket stays open.
#[tokio::test]
async fn silence_means_missing_and_its_end_means_there_again() {
    assert!(
        SILENCE < Duration::from_secs(3),
        "shown within three seconds"
    );
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let owner = Owner::plain(&dirs, 1, View::from([("web.1".to_owned(), 1)])).await;
    let hangs = Arc::new(AtomicBool::new(false));
    let losing = hangs.clone();
    let interest = Interest::none()
        .stream::<ListProcesses>(topic::PROCESS)
        .lossy(move |_, _| losing.load(Ordering::Relaxed));
    let manager = Component::ProcessManager(None);
    let (link, mut events) = Link::open(&dirs, ClientName::fresh("test"), manager, interest)
        .await
        .unwrap();
    link.ready(LONG).await.unwrap();
    let mut view = View::new();
    until_equal(&mut view, &mut events, &owner.view()).await;

    hangs.store(true, Ordering::Relaxed);
    loop {
        match tokio::time::timeout(LONG, events.recv()).await.unwrap() {
            Some(LinkEvent::Down) => break,
            Some(event) => apply(&mut view, event),
            None => panic!("the link ended"),
        }
    }
    assert!(link.info().is_none());
    change(&owner.server, &owner.view, "web.1").await;
    hangs.store(false, Ordering::Relaxed);
    link.ready(LONG).await.unwrap();
    until_equal(&mut view, &mut events, &owner.view()).await;
    assert_eq!(link.counters()["link.reconnects"], 1);
}

/// What a link and a server count is what happened.
#[tokio::test]
async fn losses_repetitions_and_strangers_are_counted() {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(&temp);
    let owner = Owner::plain(&dirs, 1, View::new()).await;
    let lose_next = Arc::new(AtomicBool::new(false));
    let losing = lose_next.clone();
    let interest = Interest::none()
        .stream::<ListProcesses>(topic::PROCESS)
        .lossy(move |topic, _| {
            topic.starts_with(topic::PROCESS) && losing.swap(false, Ordering::Relaxed)
        });
    let manager = Component::ProcessManager(None);
    let (link, mut events) =
        Link::open(&dirs, ClientName::fresh("test"), manager.clone(), interest)
            .await
            .unwrap();
    link.ready(LONG).await.unwrap();
    let mut view = View::new();
    change(&owner.server, &owner.view, "web.1").await;
    until_equal(&mut view, &mut events, &owner.view()).await;

    let before = link.counters();
    lose_next.store(true, Ordering::Relaxed);
    change(&owner.server, &owner.view, "web.1").await;
    change(&owner.server, &owner.view, "web.1").await;
    until_equal(&mut view, &mut events, &owner.view()).await;
    let counted = link.counters();
    let some = |name: &str| counted[name] - before[name];
    assert_eq!((some("link.gaps"), some("link.healed")), (1, 1));
    assert_eq!(some("link.snapshots"), 1);
    // The one that showed the gap was in the snapshot already.
    assert_eq!(some("link.discarded"), 1);

    // A stranger on the command socket: another version, no envelope at all,
    // a command that nobody knows, the same command twice, and one too late.
    let (other, _events) = Link::open(
        &dirs,
        ClientName::fresh("x"),
        manager.clone(),
        Interest::none(),
    )
    .await
    .unwrap();
    other.ready(LONG).await.unwrap();
    let before = owner.server.counters();
    let socket = crate::transport::PubSocket::connect(&dirs.bus_cmd(&manager))
        .await
        .unwrap();
    let topic = || bytes::Bytes::from(Topic::command(&manager).as_str().to_owned());
    let envelope = |v: u16, id: uuid::Uuid, kind: &str, budget_ms: u64| {
        let body = ListProcesses::page(None);
        let source = crate::envelope::Source {
            component: "x".into(),
            instance: "1".into(),
            incarnation: 0,
        };
        let reply_to: ClientName = "x".parse().unwrap();
        let whole = crate::envelope::Outgoing {
            v,
            id,
            at: 0,
            source: &source,
            seq: 0,
            cause: None,
            reply_to: Some(&reply_to),
            budget_ms: Some(budget_ms),
            kind,
            body: &body,
        };
        bytes::Bytes::from(whole.encode().unwrap())
    };
    let known = uuid::Uuid::now_v7();
    let counted = |name: &str| owner.server.counters()[name] - before[name];
    // Until the path is there nothing arrives: the first is repeated until it has.
    while counted("commands.wrong_version") == 0 {
        let body = envelope(99, uuid::Uuid::now_v7(), ListProcesses::KIND, 1000);
        socket.send(topic(), body).await.unwrap();
        tokio::task::yield_now().await;
    }
    for body in [
        bytes::Bytes::from_static(b"\xc1 nothing"),
        envelope(1, uuid::Uuid::now_v7(), "process.dance", 1000),
        envelope(1, known, "process.leap", 1000),
        envelope(1, known, "process.leap", 1000),
        envelope(1, uuid::Uuid::now_v7(), ListProcesses::KIND, 0),
    ] {
        socket.send(topic(), body).await.unwrap();
    }
    let wait = async {
        while counted("commands.expired") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("all of them");
    assert_eq!(counted("commands.undecodable"), 1);
    assert_eq!(counted("commands.unknown_kind"), 2);
    assert_eq!(counted("commands.repeated"), 1);
    assert_eq!(counted("commands.taken"), 3);
    owner.server.count("calls.refused", 2);
    assert_eq!(owner.server.info().counters["calls.refused"], 2);
    // The links' own numbers are part of what the process shows.
    assert!(owner.server.counters()["link.gaps"] >= 1);
}

/// Waits of those that lost the same component spread.
#[test]
fn waits_are_jittered() {
    let second = Duration::from_secs(1);
    let waits: std::collections::BTreeSet<Duration> = (0..200)
        .map(|_| crate::bus::link::jittered(second))
        .collect();
    assert!(waits.len() > 50, "{} of 200 differ", waits.len());
    let (least, most) = (waits.first().unwrap(), waits.last().unwrap());
    assert!(*least >= second * 8 / 10 && *most <= second * 12 / 10);
    assert!(*most - *least > second / 5, "{least:?} to {most:?}");
}
