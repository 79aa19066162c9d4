//! Python programs that speak to the daemons by libzmq.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use blackhole_tests::{Deployment, binaries, wait_for};
use serde_json::Value;

/// The Python with pyzmq and msgpack that `.config/python-clients` has made.
///
/// # Panics
/// When there is none, with what to do.
#[track_caller]
pub fn interpreter() -> PathBuf {
    let target = binaries::directory();
    let made = target.ancestors().map(|above| above.join("python"));
    for venv in made {
        if venv.join("complete").is_file() {
            return venv.join("bin/python");
        }
    }
    panic!(
        "no Python with pyzmq and msgpack: run .config/python-clients, which makes one in the target \
         directory (nextest does so by itself). It needs python3 with venv and an index of packages, or \
         pyzmq and msgpack installed; on Debian: apt-get install python3-venv, or python3-zmq python3-msgpack"
    );
}

/// Where the programs are, and the client that they use.
fn scripts() -> PathBuf {
    binaries::repository().join("tests/conformance")
}

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Python {
    name: String,
    child: Child,
    output: PathBuf,
    errors: PathBuf,
    /// Lines that were waited for already.
    taken: usize,
}

impl Python {
    /// Starts `tests/conformance/<script>` in a deployment's environment.
    #[track_caller]
    pub fn start(deployment: &Deployment, script: &str, arguments: &[&str]) -> Self {
        let name =
            |number: u32, end: &str| deployment.path().join(format!("{script}.{number}.{end}"));
        let number = (0..1000)
            .find(|number| !name(*number, "out").exists())
            .expect("a free name");
        let (output, errors) = (name(number, "out"), name(number, "err"));
        let create = |path: &Path| File::create(path).expect("a file for a program's output");
        let mut command = deployment.command(&interpreter());
        let child = Self::prepare(&mut command)
            .arg(scripts().join(script))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(create(&output))
            .stderr(create(&errors))
            .spawn()
            .expect("python starts");
        Self {
            name: script.to_owned(),
            child,
            output,
            errors,
            taken: 0,
        }
    }

    fn prepare(command: &mut Command) -> &mut Command {
        command
            .env("PYTHONPATH", binaries::repository().join("examples/python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn order(&mut self, order: &Value) {
        let input = self.child.stdin.as_mut().expect("its standard input");
        writeln!(input, "{order}").expect("it reads");
    }

    /// All that it has told so far.
    pub fn told(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        // The last line may be half written.
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for the next thing it tells that fulfils a condition; those before it are passed over.
    ///
    /// # Panics
    /// When it does not come, or the program has ended without it.
    #[track_caller]
    pub fn wait(&mut self, what: &str, fulfilled: impl Fn(&Value) -> bool) -> Value {
        let name = self.name.clone();
        wait_for(&format!("{name} to tell {what}"), || {
            let ended = self.child.try_wait().ok().flatten();
            let told = self.told();
            let found = told.iter().skip(self.taken).position(&fulfilled);
            if let Some(position) = found {
                self.taken += position + 1;
                return Ok(told[self.taken - 1].clone());
            }
            let errors = fs::read_to_string(&self.errors).unwrap_or_default();
            assert!(
                ended.is_none(),
                "{name} ended with {ended:?}:\n{told:#?}\n{errors}"
            );
            Err(format!("{told:#?}\n{errors}"))
        })
    }

    /// The same by the field `what`.
    #[track_caller]
    pub fn wait_what(&mut self, what: &str) -> Value {
        self.wait(what, |told| told["what"] == what)
    }

    /// Waits for its end; its exit code.
    #[track_caller]
    pub fn end(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), || {
            match self.child.try_wait() {
                Ok(Some(status)) => Ok(status.code()),
                _ => Err(format!("{:#?}", self.told())),
            }
        })
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let read = |path| fs::read_to_string(path).unwrap_or_default();
            eprintln!(
                "--- {}\n{}{}",
                self.name,
                read(&self.output),
                read(&self.errors)
            );
        }
    }
}
