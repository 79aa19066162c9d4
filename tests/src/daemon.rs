//! One daemon in the foreground, as a person would start it in a terminal.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::process::Signal;

use crate::deployment::Deployment;
use crate::processes;
use crate::wait::wait_for;

/// A daemon with its output. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    component: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    #[track_caller]
    pub(crate) fn start(deployment: &Deployment, component: &str) -> Self {
        let log = deployment
            .path()
            .join(format!("{component}.foreground.log"));
        Self::start_into(deployment, component, log.clone(), log)
    }

    /// The same with its output in the file `sink`; what it has said is looked for in `log`.
    #[track_caller]
    pub(crate) fn start_into(
        deployment: &Deployment,
        component: &str,
        sink: PathBuf,
        log: PathBuf,
    ) -> Self {
        let file = || {
            File::options()
                .create(true)
                .append(true)
                .open(&sink)
                .expect("a file for a daemon's output")
        };
        let program = deployment.binaries().join(format!("blackhole-{component}"));
        let child = deployment
            .command(&program)
            .arg("-c")
            .arg(deployment.config())
            .stdin(Stdio::null())
            .stdout(file())
            .stderr(file())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Self {
            component: component.to_owned(),
            child,
            log,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Which component it is.
    pub fn component(&self) -> &str {
        &self.component
    }

    /// What it has said so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has said something that contains all of these words, in
    /// one line.
    ///
    /// # Panics
    /// When it does not in time, or has ended.
    #[track_caller]
    pub fn wait_for_line(&mut self, words: &[&str]) -> String {
        let component = self.component.clone();
        wait_for(&format!("{component} to say {words:?}"), || {
            let output = self.output();
            let line = output
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)));
            match line {
                Some(line) => Ok(line.to_owned()),
                None => {
                    let ended = self.child.try_wait().ok().flatten();
                    assert!(
                        ended.is_none(),
                        "{component} ended with {ended:?}:\n{output}"
                    );
                    Err(output)
                }
            }
        })
    }

    /// SIGKILL; returns when it is dead and reaped.
    pub fn kill(mut self) {
        self.end(Signal::KILL);
    }

    /// SIGTERM; returns its exit code when it has ended.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn terminate(mut self) -> Option<i32> {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> Option<i32> {
        processes::kill(self.child.id(), signal, |_| true);
        let component = self.component.clone();
        wait_for(&format!("the end of {component}"), || {
            match self.child.try_wait() {
                Ok(Some(status)) => Ok(status.code()),
                _ => Err(self.output()),
            }
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
