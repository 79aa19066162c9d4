//! The bus: a command and its answer, an event to many subscribers, a snapshot
//! of a thousand instances, each beside bare sockets that move the same bytes.
//!
//! Both sides run on threads of their own, each with a current-thread runtime,
//! as the daemons do.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use blackhole_benches::runtime;
use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, Server};
use blackhole_bus_schema::component::Ping;
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::message::Snapshot;
use blackhole_bus_schema::names::{ClientName, Component, Generation, InstanceName};
use blackhole_bus_schema::process::{InstanceRecord, ListProcesses, ProcessState};
use blackhole_bus_schema::registry::RegistryChanged;
use blackhole_bus_schema::topic::{self, Topic};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use omq_tokio::{Message, Options, Socket, SocketType};
use tokio::sync::{mpsc, oneshot};

const BUDGET: Duration = Duration::from_secs(10);
const SUBSCRIBERS: [usize; 3] = [1, 10, 100];
const INSTANCES: u32 = 1000;

fn dirs(root: &Path) -> Dirs {
    let dirs = Dirs {
        run: root.join("r"),
        state: root.join("s"),
    };
    dirs.create().unwrap();
    dirs
}

/// A thread that runs `work` until the guard is dropped.
struct Side {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Side {
    fn start<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! {
                    () = work() => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

fn bare_options() -> Options {
    Options::new().send_hwm(16_384).recv_hwm(16_384)
}

async fn bound(kind: SocketType, path: &Path) -> Socket {
    let socket = Socket::new(kind, bare_options());
    let endpoint = format!("ipc://{}", path.display());
    socket.bind(endpoint.as_str()).await.unwrap();
    socket
}

async fn connected(kind: SocketType, path: &Path) -> Socket {
    let socket = Socket::new(kind, bare_options());
    let endpoint = format!("ipc://{}", path.display());
    socket.connect(endpoint.as_str()).await.unwrap();
    if kind == SocketType::Sub {
        socket.subscribe("").await.unwrap();
    }
    socket
}

/// A request of 128 bytes over a Unix socket, answered by so many.
fn unix_socket(c: &mut Criterion, group: &str, name: &str, answer: usize) {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut question, answer) = ([0_u8; 128], vec![7; answer]);
        while there.read_exact(&mut question).is_ok() && there.write_all(&answer).is_ok() {}
    });
    c.benchmark_group(group).bench_function(name, |b| {
        let mut buffer = vec![0; answer];
        b.iter(|| {
            here.write_all(&[7; 128]).unwrap();
            here.read_exact(&mut buffer).unwrap();
        });
    });
    drop(here);
    thread.join().unwrap();
}

fn command(c: &mut Criterion) {
    unix_socket(c, "command", "floor: Unix socket, 128 B", 128);

    let temp = tempfile::tempdir().unwrap();
    let (there, back) = (temp.path().join("there"), temp.path().join("back"));
    let paths = (there.clone(), back.clone());
    let answering = Side::start(move || async move {
        let commands = bound(SocketType::Sub, &paths.0).await;
        commands.subscribe("").await.unwrap();
        let replies = bound(SocketType::Pub, &paths.1).await;
        loop {
            let message = commands.recv().await.unwrap();
            replies.send(message).await.unwrap();
        }
    });
    let local = runtime();
    let (commands, replies) = local.block_on(async {
        while !back.exists() {
            tokio::task::yield_now().await;
        }
        let commands = connected(SocketType::Pub, &there).await;
        let replies = connected(SocketType::Sub, &back).await;
        // Whoever publishes learns of a subscription in its own time.
        loop {
            commands.send(message()).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(20), replies.recv());
            if answer.await.is_ok() {
                break;
            }
        }
        while replies.try_recv().is_ok() {}
        (commands, replies)
    });
    c.benchmark_group("command")
        .bench_function("floor: bare PUB and SUB, there and back", |b| {
            b.iter_custom(|times| {
                local.block_on(async {
                    let begin = Instant::now();
                    for _ in 0..times {
                        commands.send(message()).await.unwrap();
                        replies.recv().await.unwrap();
                    }
                    begin.elapsed()
                })
            });
        });
    drop((commands, replies, answering));

    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(temp.path());
    let server_dirs = dirs.clone();
    let server = Side::start(move || async move {
        let bound = Server::bind(&server_dirs, Component::Bridge, 1).await;
        std::future::pending::<()>().await;
        drop(bound);
    });
    let local = runtime();
    let link = local.block_on(async {
        let (link, _) = open(&dirs, Component::Bridge, Interest::none()).await;
        link
    });
    c.benchmark_group("command")
        .bench_function("a command on the bus", |b| {
            b.iter_custom(|times| {
                local.block_on(async {
                    let begin = Instant::now();
                    for _ in 0..times {
                        link.request(&Ping {}, BUDGET).await.unwrap();
                    }
                    begin.elapsed()
                })
            });
        });
    drop((link, local, server));
}

fn message() -> Message {
    Message::multipart([Bytes::from_static(&[7; 24]), Bytes::from_static(&[7; 128])])
}

async fn open(dirs: &Dirs, to: Component, interest: Interest) -> (Link, mpsc::Receiver<LinkEvent>) {
    let client = ClientName::fresh("bench");
    let (link, events) = Link::open(dirs, client, to, interest).await.unwrap();
    link.ready(BUDGET).await.unwrap();
    (link, events)
}

/// From the wish to publish until the last of all subscribers has the event.
fn fan_out(c: &mut Criterion) {
    for subscribers in SUBSCRIBERS {
        bare_fan_out(c, subscribers);
        bus_fan_out(c, subscribers);
    }
}

fn measured(
    c: &mut Criterion,
    name: &str,
    subscribers: usize,
    local: &tokio::runtime::Runtime,
    wish: &mpsc::UnboundedSender<()>,
    got: &mut mpsc::UnboundedReceiver<()>,
) {
    let mut group = c.benchmark_group("fan-out");
    group.throughput(Throughput::Elements(subscribers as u64));
    group.bench_function(BenchmarkId::new(name, subscribers), |b| {
        b.iter_custom(|times| {
            local.block_on(async {
                let begin = Instant::now();
                for _ in 0..times {
                    wish.send(()).unwrap();
                    for _ in 0..subscribers {
                        got.recv().await.unwrap();
                    }
                }
                begin.elapsed()
            })
        });
    });
}

/// Publishes until all have heard one, then forgets what is left over.
async fn warm_up(
    subscribers: usize,
    wish: &mpsc::UnboundedSender<()>,
    got: &mut mpsc::UnboundedReceiver<()>,
) {
    let quiet = Duration::from_millis(100);
    loop {
        wish.send(()).unwrap();
        let mut heard = 0;
        while let Ok(Some(())) = tokio::time::timeout(quiet, got.recv()).await {
            heard += 1;
        }
        if heard >= subscribers {
            return;
        }
    }
}

fn bare_fan_out(c: &mut Criterion, subscribers: usize) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("events");
    let (wish, mut wishes) = mpsc::unbounded_channel::<()>();
    let publisher_path = path.clone();
    let publisher = Side::start(move || async move {
        let socket = bound(SocketType::Pub, &publisher_path).await;
        while wishes.recv().await.is_some() {
            socket.send(message()).await.unwrap();
        }
    });
    let (have, mut got) = mpsc::unbounded_channel();
    let local = runtime();
    local.block_on(async {
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        for _ in 0..subscribers {
            let socket = connected(SocketType::Sub, &path).await;
            let have = have.clone();
            tokio::spawn(
                async move { while socket.recv().await.is_ok() && have.send(()).is_ok() {} },
            );
        }
        warm_up(subscribers, &wish, &mut got).await;
    });
    let name = "floor: bare PUB and SUBs";
    measured(c, name, subscribers, &local, &wish, &mut got);
    drop((local, publisher));
}

fn bus_fan_out(c: &mut Criterion, subscribers: usize) {
    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(temp.path());
    let (wish, mut wishes) = mpsc::unbounded_channel::<()>();
    let server_dirs = dirs.clone();
    let publisher = Side::start(move || async move {
        let (server, _commands) = Server::bind(&server_dirs, Component::Bridge, 1)
            .await
            .unwrap();
        let instance: InstanceName = "web.1".parse().unwrap();
        let topic = Topic::registry(instance.service());
        let changed = RegistryChanged {
            instance,
            registration: None,
        };
        while wishes.recv().await.is_some() {
            server.publish(topic.clone(), &changed, None).await;
        }
    });
    let (have, mut got) = mpsc::unbounded_channel();
    let local = runtime();
    local.block_on(async {
        for _ in 0..subscribers {
            let interest = Interest::none().prefix(topic::REGISTRY);
            let (link, mut events) = open(&dirs, Component::Bridge, interest).await;
            let have = have.clone();
            tokio::spawn(async move {
                let _link = link;
                while let Some(event) = events.recv().await {
                    if matches!(event, LinkEvent::Event(_)) && have.send(()).is_err() {
                        return;
                    }
                }
            });
        }
        warm_up(subscribers, &wish, &mut got).await;
    });
    let name = "an event on the bus";
    measured(c, name, subscribers, &local, &wish, &mut got);
    drop((local, publisher));
}

/// All pages of a snapshot of a thousand instances, decoded.
fn snapshot(c: &mut Criterion) {
    let mut records: Vec<(String, InstanceRecord)> = (1..=INSTANCES).map(record).collect();
    records.sort_by(|a, b| a.0.cmp(&b.0));
    let bytes = serialized(&records);
    let name = format!("floor: Unix socket, {bytes} B");
    unix_socket(c, "snapshot of 1000 instances", &name, bytes);

    let temp = tempfile::tempdir().unwrap();
    let dirs = dirs(temp.path());
    let server_dirs = dirs.clone();
    let manager = Component::ProcessManager(None);
    let to = manager.clone();
    let server = Side::start(move || async move {
        let (server, mut commands) = Server::bind(&server_dirs, manager, 1).await.unwrap();
        while let Some(incoming) = commands.recv().await {
            let page = incoming.parse::<ListProcesses>().map(|command| {
                let all = records.iter().cloned();
                server.snapshot(topic::PROCESS, all, command.after.as_deref())
            });
            incoming.reply::<ListProcesses>(page).await;
        }
    });
    let local = runtime();
    let link = local.block_on(async { open(&dirs, to, Interest::none()).await.0 });
    c.benchmark_group("snapshot of 1000 instances")
        .bench_function("all pages over the bus", |b| {
            b.iter_custom(|times| {
                local.block_on(async {
                    let begin = Instant::now();
                    for _ in 0..times {
                        assert_eq!(pages(&link).await, INSTANCES as usize);
                    }
                    begin.elapsed()
                })
            });
        });
    drop((link, local, server));
}

async fn pages(link: &Link) -> usize {
    let (mut items, mut after) = (0, None);
    loop {
        let command = ListProcesses {
            after,
            ..ListProcesses::default()
        };
        let page: Snapshot<InstanceRecord> = link.request(&command, BUDGET).await.unwrap();
        items += page.items.len();
        match page.next {
            Some(next) => after = Some(next),
            None => return items,
        }
    }
}

fn record(index: u32) -> (String, InstanceRecord) {
    let instance: InstanceName = format!("web-{index}.1").parse().unwrap();
    let record = InstanceRecord {
        instance: instance.clone(),
        generation: Generation(7),
        state: ProcessState::Running {
            pid: 1000 + index,
            started_at: 1_700_000_000_000_000_000,
        },
        notify: Default::default(),
        steps: Vec::new(),
        grant: None,
        adopted: false,
        lost_log_lines: 0,
        previous_exit: None,
        restarts: 0,
    };
    (instance.to_string(), record)
}

/// Bytes of the records as they travel.
fn serialized(records: &[(String, InstanceRecord)]) -> usize {
    let each =
        |(_, record): &(String, InstanceRecord)| rmp_serde::to_vec_named(record).unwrap().len();
    records.iter().map(each).sum()
}

criterion_group!(benches, command, fan_out, snapshot);
criterion_main!(benches);
