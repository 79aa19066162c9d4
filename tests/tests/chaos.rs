//! Whatever dies, services that were not hit go on, and what was hit comes back.
//!
//! Daemons, shims, the fork server and services are killed with SIGKILL, and
//! daemons stopped and continued, at random; after each action the deployment
//! comes to rest, and the design's invariants are checked against `/proc`.
//!
//! ```text
//! BLACKHOLE_CHAOS_SECONDS=300   how long (40 unless told)
//! BLACKHOLE_CHAOS_SEED=17       repeats the actions of a run, which prints its seed
//! BLACKHOLE_CHAOS_SECONDS=300 cargo nextest run -p blackhole-tests --test chaos --no-capture
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blackhole_bus_schema::process::ProcessState;
use blackhole_tests::attack::random::Random;
use blackhole_tests::deployment::DAEMONS;
use blackhole_tests::events::{Event, Recorder};
use blackhole_tests::observe::{self, Member, Watcher};
use blackhole_tests::wait::wait_for;
use blackhole_tests::{Daemon, Deployment, Status, cgroup, is_root, processes};
use rustix::process::Signal;

/// No circuit opens and no storm is held back: whatever is hit comes back. Some
/// restart by permit (a failure after a stable run), `waits` by the supervisor.
const SYSTEM: &str = r#"
runtime:
  orchestrator:
    restart_burst: 100000
    restart_policy: {max_attempts: 10000, initial_backoff: 50ms, backoff_multiplier: 1, max_backoff: 50ms, reset_after: 200ms}
services:
  plain: {command: [blackhole-example, idle], replicas: 2}
  waits: {command: [blackhole-example, idle], restart: {reset_after: 1d}}
  tree: {command: [blackhole-example, stubborn, --generations, "2"], stop: {grace: 200ms}}
  forks:
    command: [sh, -c, "setsid sleep 100000 & (setsid sleep 100000 &); exec sleep 100000"]
  said: {command: [blackhole-example, ticker], health: {readiness: {notify: true}}}
  after: {command: [blackhole-example, idle], depends_on: {said: ready}}
"#;

/// Each with the number of its processes.
const INSTANCES: [(&str, usize); 7] = [
    ("after.1", 1),
    ("forks.1", 3),
    ("plain.1", 1),
    ("plain.2", 1),
    ("said.1", 1),
    ("tree.1", 3),
    ("waits.1", 1),
];

/// What an operator restarts, who begins to count anew …
const RESTARTED: [&str; 3] = ["forks", "tree", "waits"];
/// … and of what each failure is counted.
const NEVER_RESTARTED: [&str; 4] = ["after.1", "plain.1", "plain.2", "said.1"];

/// Groups of generations that may stay behind a lost shim, until the next orderly
/// end: one in which somebody was still dying when it was swept.
const LEFT_BY_A_LOST_SHIM: usize = 1;

/// Idle shims beyond which something is wrong: the pool, and those being made.
const MAX_IDLE: usize = 16;

/// The shim whose successor by permit this is: before exec it looks like the shim itself.
fn successor_of(pid: u32) -> Option<u32> {
    let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let parent = processes::parent(pid)?;
    let shim = program(pid).filter(|path| path.ends_with("blackhole-shim"))?;
    (program(parent)? == shim).then_some(parent)
}

/// A pid and its start.
type Life = (u32, Option<u64>);

/// The service's own process of each instance.
type Lives = BTreeMap<String, Life>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    KillDaemon,
    KillDaemons,
    StopDaemon,
    KillService,
    KillShim,
    KillForkServer,
    Restart,
}

const ACTIONS: [Action; 7] = [
    Action::KillDaemon,
    Action::KillDaemons,
    Action::StopDaemon,
    Action::KillService,
    Action::KillShim,
    Action::KillForkServer,
    Action::Restart,
];

struct Chaos {
    deployment: Deployment,
    daemons: BTreeMap<&'static str, Daemon>,
    random: Random,
    watcher: Watcher,
    recorder: Recorder,
    lives: Lives,
    /// How often each was done, and each daemon killed.
    done: BTreeMap<Action, u64>,
    killed: BTreeMap<&'static str, u64>,
    /// Failures of each instance, as many as have to be counted as restarts.
    failures: BTreeMap<String, u64>,
    /// Shims killed, of each instance.
    lost: BTreeMap<String, u64>,
    /// What is said of a failure: the seed and the actions so far.
    story: String,
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a whole number"))
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let deployment = Deployment::new(SYSTEM);
        let daemons: BTreeMap<&'static str, Daemon> = DAEMONS
            .iter()
            .map(|one| (*one, deployment.daemon(one)))
            .collect();
        let recorder = Recorder::start(deployment.dirs());
        let mut chaos = Self {
            watcher: Watcher::start(processes::mark(deployment.path())),
            deployment,
            daemons,
            random: Random::new(seed),
            recorder,
            lives: Lives::new(),
            done: BTreeMap::new(),
            killed: BTreeMap::new(),
            failures: BTreeMap::new(),
            lost: BTreeMap::new(),
            story: format!("BLACKHOLE_CHAOS_SEED={seed}"),
        };
        chaos.lives = chaos.quiet();
        chaos
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())]
    }

    fn tell(&mut self, what: &str) {
        eprintln!("{what}");
        self.story.push('\n');
        self.story.push_str(what);
    }

    fn pick_instance(&mut self) -> &'static str {
        self.pick(&INSTANCES).0
    }

    /// Kills the service's own process; gives back its instance.
    fn kill_service(&mut self) -> &'static str {
        let instance = self.pick_instance();
        let (pid, _) = self.lives[instance];
        self.tell(&format!("  kill service {instance}, pid {pid}"));
        self.deployment.kill(pid);
        *self.failures.entry(instance.to_owned()).or_default() += 1;
        instance
    }

    /// Kills daemons, lets a service die in their absence or not, starts them again.
    fn kill_daemons(&mut self, which: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
        for component in which {
            self.tell(&format!("  kill {component}"));
            if let Some(daemon) = self.daemons.remove(component) {
                daemon.kill();
            }
            *self.killed.entry(component).or_default() += 1;
        }
        let mut hit = BTreeSet::new();
        if self.random.below(2) == 0 {
            hit.insert(self.kill_service());
        }
        for component in which {
            let daemon = self.deployment.daemon(component);
            self.daemons.insert(component, daemon);
        }
        hit
    }

    /// One action. Gives back the instances that have to live anew after it.
    fn act(&mut self, action: Action) -> BTreeSet<&'static str> {
        *self.done.entry(action).or_default() += 1;
        self.tell(&format!("{action:?}"));
        match action {
            Action::KillDaemon => {
                let which = BTreeSet::from([self.pick(&DAEMONS)]);
                self.kill_daemons(&which)
            }
            Action::KillDaemons => {
                let count = 2 + self.random.below(3);
                let mut which = BTreeSet::new();
                while which.len() < count {
                    which.insert(self.pick(&DAEMONS));
                }
                self.kill_daemons(&which)
            }
            Action::StopDaemon => self.stop_daemon(),
            Action::KillService => BTreeSet::from([self.kill_service()]),
            Action::KillShim => {
                let instance = self.pick_instance();
                let (pid, _) = self.lives[instance];
                let shim = processes::parent(pid).expect("the parent of a service");
                let shims = observe::shims(&self.deployment.processes());
                assert!(shims.contains(&shim), "{shim} is no shim\n{}", self.story);
                self.tell(&format!("  kill the shim {shim} of {instance}, pid {pid}"));
                self.deployment.kill(shim);
                *self.lost.entry(instance.to_owned()).or_default() += 1;
                *self.failures.entry(instance.to_owned()).or_default() += 1;
                BTreeSet::from([instance])
            }
            Action::KillForkServer => {
                let run = self.deployment.dirs().run;
                let pid = wait_for("a fork server", || {
                    observe::fork_server(&run).ok_or_else(|| "none".to_owned())
                });
                self.tell(&format!("  kill the fork server {pid}"));
                self.deployment.kill(pid);
                // One that is needed at once, or one that is not.
                match self.random.below(2) {
                    0 => BTreeSet::from([self.kill_service()]),
                    _ => BTreeSet::new(),
                }
            }
            Action::Restart => {
                let service = self.pick(&RESTARTED);
                self.tell(&format!("  restart {service}"));
                self.deployment.cli(&["restart", service]).ok();
                let of = |instance: &str| instance.split_once('.').map(|(of, _)| of == service);
                let all = INSTANCES.iter().map(|(instance, _)| *instance);
                all.filter(|one| of(one) == Some(true)).collect()
            }
        }
    }

    /// Stops a daemon, kills a service meanwhile or not, and lets it go on when
    /// others have seen that it is away, or before they could.
    fn stop_daemon(&mut self) -> BTreeSet<&'static str> {
        let component = self.pick(&DAEMONS);
        self.tell(&format!("  stop {component}"));
        let pid = self.daemons[component].pid();
        assert!(processes::kill(pid, Signal::STOP, |_| true), "{component}");
        wait_for(&format!("{component} to be stopped"), || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            match status.contains("State:\tT") {
                true => Ok(()),
                false => Err(status),
            }
        });
        let mut hit = BTreeSet::new();
        if self.random.below(2) == 0 {
            hit.insert(self.kill_service());
        }
        // `status` asks the supervisor and the process-manager and would wait for them.
        if self.random.below(2) == 0 && ["bridge", "resource-controller"].contains(&component) {
            self.tell("  until it is missed");
            self.deployment.wait_until("it to be missed", |status| {
                let state = status.component(component).map(|one| one["state"].clone());
                state != Some("RUNNING".into())
            });
        }
        self.tell(&format!("  continue {component}"));
        assert!(processes::kill(pid, Signal::CONT, |_| true), "{component}");
        hit
    }

    /// Whether everything runs, the status and `/proc` say the same, and nobody
    /// is there who should not be. What is not so yet may become so.
    fn look(&self) -> Result<Lives, String> {
        let status = self.deployment.try_status()?;
        let lives = self.compare(&status)?;
        for (component, daemon) in &self.daemons {
            let shown = status.component(component);
            let running = shown.is_some_and(|one| one["state"] == "RUNNING");
            if !running || status.component_pid(component) != Some(daemon.pid()) {
                return Err(format!("{component}, pid {}: {shown:?}", daemon.pid()));
            }
        }
        self.nobody_else(&lives)?;
        self.groups()?;
        // Nothing moved while all of this was looked at.
        match self.compare(&self.deployment.try_status()?)? == lives {
            true => Ok(lives),
            false => Err("processes change".to_owned()),
        }
    }

    /// Status and `/proc`.
    fn compare(&self, status: &Status) -> Result<Lives, String> {
        let members = observe::members(&processes::mark(self.deployment.path()));
        let mut lives = Lives::new();
        let shown = status.instances();
        if shown.len() != INSTANCES.len() {
            return Err(format!("{} instances: {shown:#?}", shown.len()));
        }
        for (name, count) in INSTANCES {
            let of: Vec<&Member> = members.iter().filter(|one| one.instance == name).collect();
            let tokens: BTreeSet<&str> = of.iter().map(|one| one.token.as_str()).collect();
            let Some(one) = status.find(name) else {
                return Err(format!("no {name}"));
            };
            let main = of.iter().find(|member| Some(member.pid) == one.pid());
            let (Some(main), Some("RUNNING"), Some("ready")) = (main, one.state(), one.phase())
            else {
                return Err(format!("{one:?} but in /proc {of:#?}"));
            };
            if of.len() != count || tokens.len() != 1 {
                return Err(format!("{name} has {count} processes, not {of:#?}"));
            }
            lives.insert(name.to_owned(), (main.pid, main.started));
        }
        if members.len() != INSTANCES.iter().map(|(_, count)| count).sum::<usize>() {
            return Err(format!("processes of no instance: {members:#?}"));
        }
        Ok(lives)
    }

    /// No process but daemons, services, their shims, a successor by permit for each of
    /// them, the fork server and its pool.
    fn nobody_else(&self, lives: &Lives) -> Result<(), String> {
        let all = self.deployment.processes();
        let members = observe::members(&processes::mark(self.deployment.path()));
        let shims = observe::shims(&all);
        let server = observe::fork_server(&self.deployment.dirs().run)
            .ok_or_else(|| "no fork server".to_owned())?;
        let holding: BTreeSet<u32> = lives
            .values()
            .filter_map(|(pid, _)| processes::parent(*pid))
            .collect();
        if holding.len() != INSTANCES.len() || !holding.iter().all(|pid| shims.contains(pid)) {
            return Err(format!(
                "not each service has a shim of its own: {holding:?}"
            ));
        }
        let mut idle = 0;
        let mut successors = BTreeMap::new();
        for process in &all {
            let pid = process.pid;
            if let Some(of) = successor_of(pid).filter(|of| holding.contains(of)) {
                // With the process that it was made by.
                let count = successors.entry(of).or_insert(0);
                *count += 1;
                if *count > 2 {
                    return Err(format!("shim {of} has two successors: {all:#?}"));
                }
                continue;
            }
            let known = self.daemons.values().any(|daemon| daemon.pid() == pid)
                || members.iter().any(|member| member.pid == pid)
                || holding.contains(&pid)
                || pid == server;
            // All others wait for work, below the fork server that lives.
            let waits = shims.contains(&pid) && processes::parent(pid) == Some(server);
            if !known && !waits {
                let parent = processes::parent(pid);
                return Err(format!("an orphan: {process:?}, child of {parent:?}"));
            }
            idle += usize::from(!known);
        }
        if idle > MAX_IDLE {
            return Err(format!("{idle} idle shims: {all:#?}"));
        }
        let parents: BTreeSet<u32> = all.iter().map(|process| process.pid).collect();
        match observe::zombies(&parents).as_slice() {
            [] => Ok(()),
            zombies => Err(format!("not waited for: {zombies:?}")),
        }
    }

    /// Each service in its own cgroup and nobody else; no groups of earlier generations.
    fn groups(&self) -> Result<(), String> {
        if !is_root() {
            return Ok(());
        }
        let subtree = self.deployment.cgroup();
        let members = observe::members(&processes::mark(self.deployment.path()));
        let bases = cgroup::subtrees(&subtree);
        for directory in observe::directories(&bases) {
            let base = bases.iter().find(|base| directory.starts_with(base));
            let below = base.and_then(|base| directory.strip_prefix(base).ok());
            let mut parts = below.into_iter().flat_map(|below| below.components());
            let name = parts.next().map(|part| part.as_os_str().to_string_lossy());
            let name = name.unwrap_or_default().into_owned();
            if name == "_control" {
                continue;
            }
            if !INSTANCES.iter().any(|(instance, _)| *instance == name) {
                return Err(format!("{} is nobody's", directory.display()));
            }
            let procs = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|line| line.parse::<u32>().ok()) {
                // Or a successor by permit, beside the service of its shim.
                let shim = successor_of(pid);
                let own = |one: &&Member| {
                    one.instance == name
                        && (one.pid == pid || shim.is_some() && processes::parent(one.pid) == shim)
                };
                if members.iter().find(own).is_none() {
                    return Err(format!("{pid} is not of {}", directory.display()));
                }
            }
            // One that is lived in, and one made ahead for a restart by permit.
            let generations = observe::directories(std::slice::from_ref(&directory)).len();
            let lost = self.lost.get(&name).copied().unwrap_or(0) as usize;
            if generations > 2 + lost * LEFT_BY_A_LOST_SHIM {
                return Err(format!("{generations} groups in {}", directory.display()));
            }
        }
        Ok(())
    }

    /// Waits until the deployment is at rest.
    #[track_caller]
    fn quiet(&self) -> Lives {
        wait_for(&format!("rest after\n{}", self.story), || self.look())
    }

    /// One generation has one process, and a later process a later generation.
    #[track_caller]
    fn assert_generations_rise(&self) -> usize {
        let mut last: BTreeMap<String, (u64, u32)> = BTreeMap::new();
        let mut starts = 0;
        for event in self.recorder.events() {
            let Event::Process(changed) = event else {
                continue;
            };
            let record = &changed.record;
            let ProcessState::Running { pid, .. } = record.state else {
                continue;
            };
            let now = (record.generation.0, pid);
            let before = last.insert(record.instance.to_string(), now);
            let rises = before.is_none_or(|before| before == now || before.0 < now.0);
            let instance = &record.instance;
            assert!(rises, "{instance}: {before:?} {now:?}\n{}", self.story);
            starts += usize::from(before != Some(now));
        }
        starts
    }

    /// One action and what has to hold after it.
    #[track_caller]
    fn round(&mut self, action: Action) {
        let hit = self.act(action);
        self.settle(&hit);
    }

    /// What was hit lives anew, all others as before.
    #[track_caller]
    fn settle(&mut self, hit: &BTreeSet<&'static str>) {
        let before = &self.lives;
        let after = wait_for(&format!("rest after\n{}", self.story), || {
            let lives = self.look()?;
            match hit.iter().find(|one| lives[**one] == before[**one]) {
                Some(one) => Err(format!("{one} was hit and is as before: {lives:?}")),
                None => Ok(lives),
            }
        });
        for (instance, life) in before {
            if !hit.contains(instance.as_str()) {
                let now = &after[instance];
                assert_eq!(now, life, "{instance} was not hit\n{}", self.story);
            }
        }
        let doubles = self.watcher.doubles();
        assert!(doubles.is_empty(), "{doubles:#?}\n{}", self.story);
        self.assert_generations_rise();
        self.lives = after;
    }

    /// Nothing above was passed over: each kind of action happened, was counted
    /// as what it is, and was looked at.
    #[track_caller]
    fn assert_happened(&self) {
        let story = &self.story;
        eprintln!(
            "done: {:?}; killed: {:?}; failures: {:?}; looks: {}",
            self.done,
            self.killed,
            self.failures,
            self.watcher.looks()
        );
        assert!(
            ACTIONS.iter().all(|one| self.done.contains_key(one)),
            "{story}"
        );
        assert!(
            DAEMONS.iter().all(|one| self.killed.contains_key(one)),
            "{story}"
        );
        assert!(self.failures.values().sum::<u64>() >= 2, "{story}");
        assert!(self.watcher.looks() > 100, "{story}");
        // Some starts were told while nobody was connected; most were heard.
        let starts = self.assert_generations_rise();
        assert!(
            starts > INSTANCES.len(),
            "{starts} starts heard of\n{story}"
        );
        let status = self.deployment.status();
        for instance in NEVER_RESTARTED {
            let failures = self.failures.get(instance).copied().unwrap_or(0);
            let counted = status.instance(instance).restarts().unwrap_or(0);
            let right = failures == counted;
            eprintln!("{instance}: {failures} failures, {counted} restarts");
            assert!(
                right,
                "{instance}: {failures} failures, {status:?}\n{story}"
            );
        }
    }
}

#[test]
fn whatever_dies_the_rest_goes_on_and_the_dead_come_back() {
    let seconds = number("BLACKHOLE_CHAOS_SECONDS").unwrap_or(40);
    let seed = number("BLACKHOLE_CHAOS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| u64::from(now.subsec_nanos()))
    });
    eprintln!("BLACKHOLE_CHAOS_SEED={seed}");
    let mut chaos = Chaos::new(seed);
    let start = Instant::now();
    // Each kind once, and each daemon, however slow the machine is; then for the time given.
    for action in ACTIONS {
        chaos.round(action);
    }
    for component in DAEMONS {
        let hit = chaos.kill_daemons(&BTreeSet::from([component]));
        chaos.settle(&hit);
    }
    while start.elapsed() < Duration::from_secs(seconds) {
        let action = chaos.pick(&ACTIONS);
        chaos.round(action);
    }
    chaos.assert_happened();
    // Ends the daemons as well; what of them is this test's child is a zombie until then.
    chaos.deployment.down();
}
