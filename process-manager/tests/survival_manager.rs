//! A manager that is killed at any step of a spawn or of a stop: the next one
//! finds each instance in a state that has a name, never two lives of one, and
//! each end is told once.
//!
//! Several commands are sent a fraction of a millisecond apart, so that one
//! death meets instances at different steps; steps that leave a sign (a file, a
//! lock, a process) are waited for in turn.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use blackhole_bus_schema::bus::RequestError;
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    ExitResult, Forget, InstanceRecord, Spawn, SpawnSpec, StateName,
};
use blackhole_process_manager::shim::client::{instance_lock_held, read_record};
use support::*;
use tokio::task::JoinHandle;

use StateName::{Failed, Running, Terminated};

/// Asked for one after the other.
const ALL: [&str; 6] = ["web.1", "web.2", "web.3", "web.4", "web.5", "web.6"];

/// The one whose signs are waited for.
const WATCHED: &str = "web.4";

/// Between two commands: a spawn takes some two milliseconds in all.
const APART: Duration = Duration::from_micros(300);

/// When the manager is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// It takes in none of the commands.
    Before,
    /// So long after the last command was sent.
    After(Duration),
    /// When this shows of the watched one.
    Seen(Sign),
}

/// What shows from outside how far a spawn or a stop has come.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// The instance's folder is there.
    Folder,
    /// A shim holds it.
    Held,
    /// Its process is there.
    Process,
    /// The record tells of this generation.
    Recorded,
    /// The stop signal has arrived.
    Signalled,
    /// Its process has ended.
    Ended,
    /// The record has the end.
    EndRecorded,
    /// The manager has noted that it has told the end.
    NotedAsTold,
}

fn moments(signs: &[Sign]) -> Vec<Moment> {
    let times = [0, 1_500, 3_000].map(|us| Moment::After(Duration::from_micros(us)));
    let signs = signs.iter().map(|sign| Moment::Seen(*sign));
    let known = [Moment::Before].into_iter().chain(times);
    known.chain(signs).collect()
}

/// Where the watched one shows its signs.
struct Watched {
    folder: PathBuf,
    run: PathBuf,
    signalled: PathBuf,
    generation: Generation,
    pid: Option<u32>,
}

impl Watched {
    fn shows(&self, sign: Sign) -> bool {
        let ours = || {
            let record = read_record(&self.folder).ok().flatten();
            record.filter(|record| record.generation == self.generation)
        };
        match sign {
            Sign::Folder => self.folder.exists(),
            Sign::Held => instance_lock_held(&self.folder).unwrap().is_some(),
            Sign::Process => !members(&self.run, WATCHED).is_empty(),
            Sign::Recorded => ours().is_some_and(|record| record.started.is_some()),
            Sign::Signalled => self.signalled.exists(),
            Sign::Ended => self.pid.is_some_and(|pid| !runs(pid)),
            Sign::EndRecorded => ours().is_some_and(|record| record.exit.is_some()),
            Sign::NotedAsTold => {
                let told = std::fs::read_to_string(self.folder.join("told")).unwrap_or_default();
                told.trim() == self.generation.to_string()
            }
        }
    }
}

type Asked = BTreeMap<&'static str, JoinHandle<Result<InstanceRecord, RequestError>>>;

struct Case {
    bench: Bench,
    generation: u64,
    /// Of each instance, while it runs.
    pids: BTreeMap<&'static str, u32>,
    /// What had been told when this generation began.
    from: usize,
    context: String,
}

impl Case {
    async fn new() -> Self {
        Self {
            bench: Bench::start().await,
            generation: 0,
            pids: BTreeMap::new(),
            from: 0,
            context: String::new(),
        }
    }

    fn next(&mut self, moment: Moment) {
        self.generation += 1;
        self.from = self.bench.history.len();
        self.context = format!("{moment:?}, generation {}", self.generation);
    }

    fn mark(&self, instance: &str) -> PathBuf {
        self.bench.path(&format!("{instance}.signalled"))
    }

    /// One that notes its stop signal, and takes a moment to end.
    fn service(&self, instance: &str) -> SpawnSpec {
        let text = format!(
            "trap 'touch {0}; sleep 0.005; exit 0' TERM; touch {0}.up; while :; do sleep 0.005; done",
            self.mark(instance).display()
        );
        script(instance, self.generation, &text)
    }

    /// Asks for something of all of them, a little apart, and kills the manager.
    async fn ask_and_kill<F>(
        &mut self,
        moment: Moment,
        ask: impl Fn(&Self, &'static str) -> F,
    ) -> Asked
    where
        F: Future<Output = Result<InstanceRecord, RequestError>> + Send + 'static,
    {
        let mut asked = Asked::new();
        if let Moment::Before = moment {
            self.bench.pause_manager();
        }
        for instance in ALL {
            asked.insert(instance, tokio::spawn(ask(self, instance)));
            // Both the command's task and the bus's have their turn.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            spin(APART);
        }
        match moment {
            Moment::Before => {}
            Moment::After(time) => {
                tokio::task::yield_now().await;
                spin(time);
            }
            Moment::Seen(sign) => {
                let watched = Watched {
                    folder: self.bench.dirs.instance(&name(WATCHED)),
                    run: self.bench.dirs.run.clone(),
                    signalled: self.mark(WATCHED),
                    generation: Generation(self.generation),
                    pid: self.pids.get(WATCHED).copied(),
                };
                let what = self.context.clone();
                until(&what, || watched.shows(sign).then_some(())).await;
            }
        }
        self.bench.kill_manager();
        asked
    }

    /// An instance is as its record says: one first process or none.
    fn assert_true(&self, instance: &str, shown: Option<&InstanceRecord>) {
        let members = members(&self.bench.dirs.run, instance);
        let parent = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let rest = stat.rsplit(") ").next().unwrap_or_default().to_owned();
            rest.split(' ')
                .nth(1)
                .and_then(|parent| parent.parse().ok())
        };
        let first = |pid: &&u32| parent(pid).is_some_and(|parent| !members.contains(&parent));
        let firsts: Vec<u32> = members.iter().filter(first).copied().collect();
        let pid: Vec<u32> = shown.and_then(|one| one.state.pid()).into_iter().collect();
        let (context, words) = (&self.context, self.bench.words());
        assert_eq!(firsts, pid, "{context}: {instance} {shown:#?}\n{words}");
    }

    /// Ends of an instance in this generation, as told.
    fn ends(&self, instance: &str) -> Vec<StateName> {
        let ours = |record: &InstanceRecord| {
            record.instance == name(instance) && record.generation == Generation(self.generation)
        };
        let told = self.bench.history[self.from..].iter();
        told.filter_map(|told| match told {
            Told::Changed(changed, _) if ours(&changed.record) => Some(changed.record.state.name()),
            _ => None,
        })
        .filter(|state| [Failed, Terminated].contains(state))
        .collect()
    }

    /// Stops one and looks that nothing of it is left.
    async fn stop(&self, instance: &'static str) {
        let ended = self.bench.stop(instance, self.generation).await.unwrap();
        let exit = ended.state.exit().unwrap();
        assert_eq!(exit.result, ExitResult::Stopped, "{}", self.context);
        self.assert_true(instance, Some(&ended));
    }

    /// Each sign shows anew in the next round.
    async fn forget(&self, instance: &str) {
        let folder = self.bench.dirs.instance(&name(instance));
        let what = format!("{}: nobody to hold {instance}", self.context);
        until(&what, || {
            instance_lock_held(&folder).unwrap().is_none().then_some(())
        })
        .await;
        self.assert_true(instance, None);
        let instance = name(instance);
        // It is not known where it was never begun.
        let _ = self.bench.request(&Forget { instance }).await;
        let _ = std::fs::remove_dir_all(folder);
    }
}

const OF_A_SPAWN: [Sign; 4] = [Sign::Folder, Sign::Held, Sign::Process, Sign::Recorded];

fn spawn(
    case: &Case,
    instance: &str,
) -> impl Future<Output = Result<InstanceRecord, RequestError>> + Send + 'static + use<> {
    let (link, spec) = (case.bench.link.clone(), sleeper(instance, case.generation));
    async move { link.request(&Spawn { spec }, LIMIT).await }
}

#[tokio::test]
async fn killed_at_each_step_of_a_spawn_whose_client_waits() {
    let mut case = Case::new().await;
    for moment in moments(&OF_A_SPAWN) {
        case.next(moment);
        let asked = case.ask_and_kill(moment, spawn).await;
        case.bench.start_manager().await;
        for (instance, asked) in asked {
            // The command is repeated to the next manager, and takes effect once.
            let record = asked.await.unwrap().unwrap();
            assert_eq!(
                record.state.name(),
                Running,
                "{}: {record:#?}",
                case.context
            );
            case.assert_true(instance, Some(&record));
            case.stop(instance).await;
        }
        case.bench.settle().await;
        for instance in ALL {
            assert_eq!(case.ends(instance), [Terminated], "{}", case.context);
            case.forget(instance).await;
        }
    }
}

#[tokio::test]
async fn killed_at_each_step_of_a_spawn_whose_client_is_gone_too() {
    let mut case = Case::new().await;
    let (mut ran, mut not) = (0, 0);
    for moment in moments(&OF_A_SPAWN) {
        case.next(moment);
        let asked = case.ask_and_kill(moment, spawn).await;
        for (_, asked) in asked {
            asked.abort();
            let _ = asked.await;
        }
        let records = case.bench.start_manager().await;
        for instance in ALL {
            // A shim that had the request and was not so far yet is found by its lock:
            // the scan waits for it. What is not shown is not there, and will not be.
            let shown = records.iter().find(|one| {
                one.instance == name(instance) && one.generation == Generation(case.generation)
            });
            match shown.map(|record| record.state.name()) {
                Some(Running) => {
                    case.assert_true(instance, shown);
                    case.stop(instance).await;
                    ran += 1;
                }
                Some(Failed) | None => {
                    case.assert_true(instance, None);
                    not += 1;
                }
                other => panic!("{}: {other:?}", case.context),
            }
        }
        for instance in ALL {
            case.forget(instance).await;
        }
    }
    // By the first moment and by the last sign; how many of the others is up to the host.
    assert!(ran > 0 && not > 0, "{ran} ran, {not} did not");
}

async fn stops(client_waits: bool) {
    let mut case = Case::new().await;
    let signs = [
        Sign::Signalled,
        Sign::Ended,
        Sign::EndRecorded,
        Sign::NotedAsTold,
    ];
    for moment in moments(&signs) {
        case.next(moment);
        for instance in ALL {
            let mark = case.mark(instance);
            let up = case.bench.path(&format!("{instance}.signalled.up"));
            for file in [&mark, &up] {
                let _ = std::fs::remove_file(file);
            }
            let record = case.bench.run(&case.service(instance)).await;
            case.pids.insert(instance, record.state.pid().unwrap());
            until("the trap", || up.exists().then_some(())).await;
        }
        let asked = case
            .ask_and_kill(moment, |case, instance| {
                let (link, stop) = (case.bench.link.clone(), stop(instance, case.generation));
                async move { link.request(&stop, LIMIT).await }
            })
            .await;
        if !client_waits {
            asked.values().for_each(JoinHandle::abort);
        }
        let records = case.bench.start_manager().await;
        for (instance, asked) in asked {
            let shown = records.iter().find(|one| one.instance == name(instance));
            let shown = shown.unwrap().state.name();
            let ended = match asked.await {
                Ok(ended) => ended.unwrap(),
                // Nobody waits: where it has not come to the shim it is asked for anew.
                Err(_) => case.bench.stop(instance, case.generation).await.unwrap(),
            };
            let exit = ended.state.exit().unwrap();
            assert_eq!(
                (exit.result, exit.pid, ended.state.name()),
                (ExitResult::Stopped, case.pids[instance], Terminated),
                "{}: {shown}",
                case.context
            );
            case.assert_true(instance, Some(&ended));
            let record = read_record(&case.bench.dirs.instance(&name(instance)));
            let recorded = record.unwrap().unwrap().exit;
            assert_eq!(recorded.as_ref(), Some(exit), "{}", case.context);
        }
        case.bench.settle().await;
        for instance in ALL {
            // A manager that dies between telling and noting that it has told leaves
            // its successor to tell it again; never another end.
            let told = case.ends(instance);
            assert!(
                told.len() <= 2 && told.iter().all(|state| *state == Terminated),
                "{}: {told:?}",
                case.context
            );
        }
    }
}

#[tokio::test]
async fn killed_at_each_step_of_a_stop_whose_client_waits() {
    stops(true).await;
}

#[tokio::test]
async fn killed_at_each_step_of_a_stop_whose_client_is_gone_too() {
    stops(false).await;
}
