//! The bus, recorded: what the process-manager and the supervisor published,
//! each event with its publisher's own time stamp. A test waits for an event
//! and not for time, and reads intervals from the events themselves.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::process::{ExitRecord, ProcessChanged, ProcessState};
use blackhole_bus_schema::supervision::SupervisionChanged;
use blackhole_bus_schema::topic;
use tokio::sync::oneshot;

use crate::wait::HANG;

/// One event.
#[derive(Debug, Clone)]
pub enum Event {
    /// A process changed its state.
    Process(Box<ProcessChanged>),
    /// The supervisor's picture of an instance changed.
    Supervision(Box<SupervisionChanged>),
}

impl Event {
    /// The instance it is about.
    pub fn instance(&self) -> String {
        match self {
            Self::Process(changed) => changed.record.instance.to_string(),
            Self::Supervision(changed) => changed.status.instance.to_string(),
        }
    }
}

/// Records from its start to its end, in a thread of its own.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    record: Mutex<Record>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Record {
    /// Publishers whose path is proven now.
    up: usize,
    events: Vec<Event>,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, update: impl FnOnce(&mut Record)) {
        update(&mut self.record());
        self.changed.notify_all();
    }
}

impl Recorder {
    /// Begins to record. Returns when both publishers are heard, so that no
    /// event after it is missed.
    ///
    /// # Panics
    /// When one of them is not there.
    #[track_caller]
    pub fn start(dirs: Dirs) -> Self {
        let shared = Arc::new(Shared::default());
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.expect("a runtime").block_on(async move {
                    let process = listen(
                        &dirs,
                        Component::ProcessManager(None),
                        topic::PROCESS,
                        Arc::clone(&shared),
                    );
                    let supervision = listen(
                        &dirs,
                        Component::Supervisor,
                        topic::SUPERVISION,
                        Arc::clone(&shared),
                    );
                    tokio::select! {
                        // Both run for ever; the end may come at any time.
                        () = process => {}
                        () = supervision => {}
                        _ = ended => {}
                    }
                });
            }
        });
        let recorder = Self {
            shared,
            end: Some(end),
            thread: Some(thread),
        };
        recorder.wait("both publishers", |record| (record.up == 2).then_some(()));
        recorder
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        self.shared.record().events.clone()
    }

    /// Waits until the events so far give a value.
    ///
    /// # Panics
    /// When they do not in time; the message has the last events.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, find: impl Fn(&[Event]) -> Option<T>) -> T {
        self.wait(what, |record| find(&record.events))
    }

    #[track_caller]
    fn wait<T>(&self, what: &str, find: impl Fn(&Record) -> Option<T>) -> T {
        let start = Instant::now();
        let mut record = self.shared.record();
        loop {
            if let Some(found) = find(&record) {
                return found;
            }
            let left = HANG.saturating_sub(start.elapsed());
            let last = record.events.len().saturating_sub(10);
            assert!(
                left > Duration::ZERO,
                "waited {HANG:?} in vain for {what}; the last events:\n{:#?}",
                &record.events[last..]
            );
            let waited = self.shared.changed.wait_timeout(record, left);
            record = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(dirs: &Dirs, to: Component, prefix: &'static str, shared: Arc<Shared>) {
    let me = ClientName::fresh("recorder");
    let (_link, mut events) = Link::open(dirs, me, to, Interest::none().prefix(prefix))
        .await
        .expect("a link");
    while let Some(event) = events.recv().await {
        match event {
            LinkEvent::Up(_) => shared.update(|record| record.up += 1),
            LinkEvent::Down => shared.update(|record| record.up = record.up.saturating_sub(1)),
            LinkEvent::Event(received) => {
                let event = match received.kind() {
                    ProcessChanged::KIND => received
                        .parse()
                        .map(|changed| Event::Process(Box::new(changed))),
                    SupervisionChanged::KIND => received
                        .parse()
                        .map(|changed| Event::Supervision(Box::new(changed))),
                    _ => continue,
                };
                let event = event.expect("an event of this version");
                shared.update(|record| record.events.push(event));
            }
            LinkEvent::Snapshot { .. } => {}
            LinkEvent::Lagged { dropped } => panic!("the recorder lost {dropped} events"),
        }
    }
}

/// The lives of an instance's processes: start, and end where it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Process id.
    pub pid: u32,
    /// Start, Unix time in nanoseconds.
    pub started_at: u64,
    /// Its end.
    pub exit: Option<ExitRecord>,
}

/// The lives of one instance, in order, as the process-manager told of them.
pub fn lives(events: &[Event], instance: &str) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    for event in events {
        let Event::Process(changed) = event else {
            continue;
        };
        if changed.record.instance.to_string() != instance {
            continue;
        }
        let state = &changed.record.state;
        if let ProcessState::Running { pid, started_at } = state
            && !lives
                .iter()
                .any(|life| life.pid == *pid && life.started_at == *started_at)
        {
            lives.push(Life {
                pid: *pid,
                started_at: *started_at,
                exit: None,
            });
        }
        if let Some(exit) = state.exit() {
            let known = lives
                .iter_mut()
                .find(|life| life.started_at == exit.started_at);
            match known {
                Some(life) => life.exit = Some(exit.clone()),
                // A restart by permit: its RUNNING may have come and gone in one report.
                None => lives.push(Life {
                    pid: exit.pid,
                    started_at: exit.started_at,
                    exit: Some(exit.clone()),
                }),
            }
        }
    }
    lives
}

/// Times between each end and the start that followed it.
pub fn gaps(lives: &[Life]) -> Vec<Duration> {
    lives
        .windows(2)
        .filter_map(|pair| {
            let ended = pair[0].exit.as_ref()?.ended_at;
            Some(Duration::from_nanos(
                pair[1].started_at.saturating_sub(ended),
            ))
        })
        .collect()
}
