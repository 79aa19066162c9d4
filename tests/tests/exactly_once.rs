//! Supervisor and process-manager are killed, again and again, while several
//! clients command: each command takes effect exactly once or is reported
//! failed, no spawn happens twice, no two processes of an instance live at once,
//! and who listens throughout ends with what the owners hold.
//!
//! Each process of a service appends the generation that it was started as to a
//! file, after it has taken a lock that it keeps until it ends: a second live
//! process is told by the lock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use blackhole_bus_schema::bus::{self, Interest, Link, LinkEvent, Paged, RequestError};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::message::{Command, Message, Snapshot};
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::process::{InstanceRecord, ListProcesses, ProcessChanged};
use blackhole_bus_schema::supervision::{
    InstanceStatus, ListStatus, Outcome, RestartServices, StartServices, StopServices,
    SupervisionChanged, Target,
};
use blackhole_bus_schema::topic;
use blackhole_tests::{Daemon, Deployment, wait_for};
use tokio::sync::oneshot;

/// Kills of either daemon.
const KILLS: usize = 20;

/// Clients, each with services of its own.
const CLIENTS: usize = 4;

/// Time for a command: it waits for daemons that are being started on a busy host.
const BUDGET: Duration = Duration::from_secs(90);

fn yaml() -> String {
    let mut yaml = "services:\n".to_owned();
    for client in 0..CLIENTS {
        yaml.push_str(&format!(
            "  own{client}:
    command: [sh, -c, 'exec 9>>$0.lock; flock -n 9 || echo double >>$0; echo ${{BLACKHOLE_TOKEN%%.*}} >>$0; exec sleep 100000', own{client}.starts]
    working_dir: .
    stop: {{grace: 20s}}
"
        ));
    }
    yaml
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

/// A small generator (xorshift): the order of kills and commands is arbitrary,
/// and the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What a service wrote: one generation a line.
fn starts(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// One client's account of its service.
#[derive(Debug)]
struct Account {
    service: String,
    file: PathBuf,
    /// Starts that took effect for certain.
    least: usize,
    /// And those that may have.
    most: usize,
    /// Whether it runs; `None` after a command that failed.
    up: Option<bool>,
    failed: Vec<String>,
}

impl Account {
    /// Books a command's result and holds it against what the service wrote.
    fn book(&mut self, command: &str, result: Result<Outcome, RequestError>) {
        let starts_now = match (command, self.up) {
            ("stop", _) | ("start", Some(true)) => Some(0),
            ("start", Some(false)) | ("restart", Some(_)) => Some(1),
            _ => None,
        };
        match (&result, starts_now) {
            (Ok(_), Some(new)) => {
                self.least += new;
                self.most += new;
            }
            _ => self.most += 1,
        }
        match result {
            Ok(_) => self.up = Some(command != "stop"),
            Err(error) => {
                self.failed.push(format!("{command}: {error:?}"));
                self.up = None;
            }
        }
        if self.up.is_none() {
            return;
        }
        // A service that is reported to run has perhaps not written yet.
        let (least, file) = (self.least, self.file.clone());
        wait_for(&format!("{least} starts of {}", self.service), || {
            let starts = starts(&file);
            if starts.len() >= least {
                Ok(())
            } else {
                Err(format!("{starts:?} after {command}"))
            }
        });
        self.check();
    }

    fn check(&self) {
        let starts = starts(&self.file);
        assert!(
            (self.least..=self.most).contains(&starts.len()),
            "{starts:?} {self:#?}"
        );
        let mut generations: Vec<u64> = starts
            .iter()
            .map(|line| {
                let generation = line.parse::<u64>();
                assert!(generation.is_ok(), "{line} in {self:#?}");
                generation.unwrap_or_default()
            })
            .collect();
        let in_order = generations.clone();
        generations.sort_unstable();
        generations.dedup();
        assert_eq!(generations, in_order, "no generation twice: {self:#?}");
    }
}

/// Commands without a pause until it is told that it is enough.
fn client(
    number: usize,
    directory: PathBuf,
    dirs: Dirs,
    enough: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> JoinHandle<Account> {
    std::thread::spawn(move || {
        let service = format!("own{number}");
        let mut account = Account {
            file: directory.join(format!("{service}.starts")),
            least: 1,
            most: 1,
            up: Some(true),
            failed: Vec::new(),
            service,
        };
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1));
        on_a_runtime(async {
            let me = ClientName::fresh("cli");
            let (link, _) = Link::open(&dirs, me, Component::Supervisor, Interest::none())
                .await
                .expect("a link");
            while !enough.load(Ordering::Relaxed) {
                let target = || Target::Services(vec![account.service.parse().expect("a name")]);
                // After a failure nothing is known but what a stop makes sure of.
                let which = match account.up {
                    None => 0,
                    Some(_) => dice.below(4),
                };
                let (command, result) = match which {
                    0 => {
                        let stop = StopServices {
                            target: target(),
                            transient: false,
                        };
                        ("stop", link.request(&stop, BUDGET).await)
                    }
                    1 => {
                        let start = StartServices { target: target() };
                        ("start", link.request(&start, BUDGET).await)
                    }
                    _ => {
                        let restart = RestartServices { target: target() };
                        ("restart", link.request(&restart, BUDGET).await)
                    }
                };
                account.book(command, result);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        account
    })
}

/// A subscriber's picture of what one owner holds.
type Picture<T> = Arc<Mutex<BTreeMap<String, T>>>;

struct Subscriber<T> {
    picture: Picture<T>,
    _end: oneshot::Sender<()>,
}

/// Listens from now on, over one link, through all deaths of its owner.
fn subscribe<C, M>(
    dirs: Dirs,
    owner: Component,
    prefix: &'static str,
    name: fn(&C::Item) -> String,
    item: fn(M) -> C::Item,
) -> Subscriber<C::Item>
where
    C: Paged,
    M: Message,
{
    let picture: Picture<C::Item> = Arc::default();
    let (end, mut ended) = oneshot::channel();
    let kept = picture.clone();
    std::thread::spawn(move || {
        on_a_runtime(async {
            let me = ClientName::fresh("cli");
            let interest = Interest::none().stream::<C>(prefix);
            let (_link, mut events) = Link::open(&dirs, me, owner, interest)
                .await
                .expect("a link");
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    _ = &mut ended => None,
                };
                let Some(event) = event else { return };
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    LinkEvent::Snapshot { items, .. } => {
                        let items = items.into_iter().map(bus::item::<C::Item>);
                        *kept = items
                            .map(|item| item.expect("an item of this version"))
                            .map(|item| (name(&item), item))
                            .collect();
                    }
                    LinkEvent::Event(received) if received.kind() == M::KIND => {
                        let item = item(received.parse().expect("an event of this version"));
                        kept.insert(name(&item), item);
                    }
                    _ => {}
                }
            }
        });
    });
    Subscriber { picture, _end: end }
}

/// What the owner says when it is asked afresh.
fn fresh<C>(
    dirs: &Dirs,
    owner: Component,
    name: fn(&C::Item) -> String,
) -> BTreeMap<String, C::Item>
where
    C: Paged + Command<Reply = Snapshot<C::Item>>,
{
    on_a_runtime(async {
        let me = ClientName::fresh("cli");
        let (link, _) = Link::open(dirs, me, owner, Interest::none())
            .await
            .expect("a link");
        let mut all = BTreeMap::new();
        let mut after = None;
        loop {
            let page = link
                .request(&C::page(after), BUDGET)
                .await
                .expect("a page of the owner's state");
            all.extend(page.items.into_iter().map(|item| (name(&item), item)));
            after = page.next;
            if after.is_none() {
                return all;
            }
        }
    })
}

#[track_caller]
fn assert_same<C>(
    dirs: &Dirs,
    owner: Component,
    name: fn(&C::Item) -> String,
    subscriber: &Subscriber<C::Item>,
) where
    C: Paged,
    C::Item: PartialEq + std::fmt::Debug + Clone,
{
    wait_for(&format!("the same picture of {owner}"), || {
        let held = fresh::<C>(dirs, owner.clone(), name);
        let seen = subscriber
            .picture
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if held == seen && held.len() == CLIENTS {
            Ok(())
        } else {
            Err(format!("held: {held:#?}\nseen: {seen:#?}"))
        }
    });
}

fn status_name(status: &InstanceStatus) -> String {
    status.instance.to_string()
}

fn record_name(record: &InstanceRecord) -> String {
    record.instance.to_string()
}

#[test]
fn every_command_takes_effect_once_or_is_reported_failed() {
    let deployment = Deployment::new(&yaml());
    let mut daemons = deployment.daemons();
    deployment.wait_until("all to run", |status| {
        (0..CLIENTS).all(|number| status.is_in(&format!("own{number}.1"), "ready"))
    });
    let dirs = deployment.dirs();
    let manager = Component::ProcessManager(None);
    let statuses = subscribe::<ListStatus, SupervisionChanged>(
        dirs.clone(),
        Component::Supervisor,
        topic::SUPERVISION,
        status_name,
        |changed| changed.status,
    );
    let records = subscribe::<ListProcesses, ProcessChanged>(
        dirs.clone(),
        manager.clone(),
        topic::PROCESS,
        record_name,
        |changed| changed.record,
    );

    let enough = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let directory = deployment.path().to_owned();
            client(
                number,
                directory,
                dirs.clone(),
                enough.clone(),
                done.clone(),
            )
        })
        .collect();
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for _ in 0..KILLS {
        // In the middle of whatever they are at: some commands later.
        let from = done.load(Ordering::Relaxed);
        let more = 1 + dice.below(3) as usize;
        wait_for(&format!("{more} more commands"), || {
            let now = done.load(Ordering::Relaxed);
            let alive = clients.iter().all(|client| !client.is_finished());
            assert!(alive, "a client ended before its time");
            if now >= from + more {
                Ok(())
            } else {
                Err(format!("{now} after {from}: {:?}", deployment.try_status()))
            }
        });
        let victims: &[&str] = match dice.below(3) {
            0 => &["supervisor"],
            1 => &["process-manager"],
            _ => &["supervisor", "process-manager"],
        };
        for victim in victims {
            kill(&mut daemons, victim);
        }
        for victim in victims {
            daemons.push(deployment.daemon(victim));
        }
    }
    enough.store(true, Ordering::Relaxed);
    let mut failed = 0;
    for client in clients {
        let account = client.join().expect("a client whose accounts are right");
        account.check();
        failed += account.failed.len();
        eprintln!("{account:#?}");
    }
    let commands = done.load(Ordering::Relaxed);
    eprintln!("{commands} commands over {KILLS} kills, {failed} of them reported failed");
    assert!(failed < commands, "something went well");

    assert_same::<ListStatus>(&dirs, Component::Supervisor, status_name, &statuses);
    assert_same::<ListProcesses>(&dirs, manager, record_name, &records);
}

fn kill(daemons: &mut Vec<Daemon>, component: &str) {
    let at = daemons
        .iter()
        .position(|one| one.component() == component)
        .expect("it runs");
    daemons.remove(at).kill();
}
