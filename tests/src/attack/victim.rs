//! A bridge that is attacked: what it uses, what it says, and that it lives.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link};
use blackhole_bus_schema::component::ComponentInfo;
use blackhole_bus_schema::names::{ClientName, Component, Generation};
use blackhole_bus_schema::rpc::Key;

use super::zmtp::Raw;
use crate::deployment::Deployment;
use crate::wait::{HANG, wait_for};

/// A bridge, alone in its deployment, that logs what it logs by default.
#[derive(Debug)]
pub struct Victim {
    deployment: Deployment,
    child: Child,
    log: PathBuf,
    key: Key,
    born: ComponentInfo,
}

impl Victim {
    /// Starts it with these services in its configuration, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start(services: &[&str]) -> Self {
        let mut yaml = String::from("services:\n");
        for service in services {
            yaml.push_str(&format!("  {service}: {{command: [/bin/true]}}\n"));
        }
        let deployment = Deployment::new(&yaml);
        let log = deployment.path().join("victim.log");
        let file = || {
            let file = File::options().create(true).append(true).open(&log);
            file.expect("a file for the bridge's output")
        };
        let child = deployment
            .command(&deployment.binaries().join("blackhole-bridge"))
            .arg("-c")
            .arg(deployment.config())
            .env("BLACKHOLE_LOG", "info")
            .stdin(Stdio::null())
            .stdout(file())
            .stderr(file())
            .spawn()
            .expect("a bridge");
        wait_for("the bridge's socket", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.contains("carrying calls").then_some(()).ok_or(text)
        });
        let key = Key::load_or_create(&deployment.dirs()).expect("the key of the tokens");
        let born = info(&deployment).expect("the bridge answers on the bus");
        assert_eq!(born.pid, child.id());
        Self {
            deployment,
            child,
            log,
            key,
            born,
        }
    }

    /// Where it lives.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// The ROUTER's socket.
    pub fn socket(&self) -> PathBuf {
        self.deployment.dirs().rpc_socket()
    }

    /// One of its sockets of the bus.
    pub fn bus_evt(&self) -> PathBuf {
        self.deployment.dirs().bus_evt(&Component::Bridge)
    }

    /// The other one.
    pub fn bus_cmd(&self) -> PathBuf {
        self.deployment.dirs().bus_cmd(&Component::Bridge)
    }

    /// The token of an instance's first spawn.
    pub fn token(&self, instance: &str) -> String {
        let instance = instance.parse().expect("the name of an instance");
        self.key.token(&instance, Generation(1))
    }

    /// A service's connection that can say anything.
    ///
    /// # Panics
    /// When it is not admitted.
    #[track_caller]
    pub fn raw(&self, instance: &str) -> Raw {
        let raw = Raw::dealer(&self.socket(), instance, &self.token(instance));
        raw.unwrap_or_else(|error| panic!("{instance} is not admitted: {error}"))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn status(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let text = text.expect("the bridge lives");
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let line = line.unwrap_or_else(|| panic!("{field} in {text}"));
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u64>().expect("kB in /proc, see proc(5)") * 1024
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Its resident memory now; from here on [`Victim::peak`] counts anew.
    pub fn begin_to_measure(&self) -> u64 {
        // proc(5): 5 resets the peak of the resident set.
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("its own child");
        self.memory()
    }

    /// The most resident memory since [`Victim::begin_to_measure`], in bytes.
    pub fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Asserts that no more than `bound` bytes were ever added since
    /// [`Victim::begin_to_measure`] said `before`.
    ///
    /// # Panics
    /// When there were.
    #[track_caller]
    pub fn assert_grew_at_most(&self, before: u64, bound: u64) {
        let grown = self.peak().saturating_sub(before);
        eprintln!("the bridge grew by {grown} bytes, {bound} are allowed");
        assert!(grown <= bound, "the bridge grew by {grown} bytes");
    }

    /// Its open files.
    pub fn files(&self) -> usize {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid()));
        entries.expect("the bridge lives").count()
    }

    /// Waits until it has as many open files as before, or fewer.
    ///
    /// # Panics
    /// When it keeps more.
    #[track_caller]
    pub fn wait_for_files(&self, before: usize) {
        wait_for("the bridge to close its files", || {
            let now = self.files();
            if now <= before {
                Ok(())
            } else {
                Err(format!("{now} files, {before} before"))
            }
        });
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How many lines of its log have this word in them.
    pub fn lines_with(&self, word: &str) -> usize {
        self.log()
            .lines()
            .filter(|line| line.contains(word))
            .count()
    }

    /// Waits until it has logged a line with this word.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_for_line(&self, word: &str) {
        wait_for(&format!("the bridge to log {word:?}"), || {
            let seen = self.lines_with(word) > 0;
            seen.then_some(()).ok_or_else(|| self.log())
        });
    }

    /// Asserts that it is the process that was started, in its first life, and
    /// answers on the bus; and that it has logged at most so many lines.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_unharmed(&mut self, lines: usize) {
        let ended = self.child.try_wait().expect("a child's status");
        assert!(
            ended.is_none(),
            "the bridge ended: {ended:?}\n{}",
            self.log()
        );
        let now = info(&self.deployment).expect("the bridge answers on the bus");
        let lives = |info: &ComponentInfo| (info.pid, info.incarnation);
        assert_eq!(lives(&now), lives(&self.born));
        let log = self.log();
        assert!(!log.contains("panicked"), "{log}");
        let logged = log.lines().count();
        assert!(logged <= lines, "{logged} lines in the log:\n{log}");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            for line in tail.into_iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

fn info(deployment: &Deployment) -> Result<ComponentInfo, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let me = ClientName::fresh("attack");
        let dirs = deployment.dirs();
        let (link, _events) = Link::open(&dirs, me, Component::Bridge, Interest::none())
            .await
            .map_err(|error| error.to_string())?;
        // Proven anew by an echo: a link that was just opened has no other way up.
        let within: Duration = HANG;
        link.ready(within).await.map_err(|error| error.to_string())
    })
}
