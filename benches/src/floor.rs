//! What the kernel takes for the same without anybody's help.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::tiny::{Tiny, monotonic};

/// How a child is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// posix_spawn(3): vfork(2) and exec.
    Vfork,
    /// fork(2) and exec.
    Fork,
}

/// Starts the smallest service.
///
/// # Panics
/// When it cannot be started.
pub fn start(tiny: &Tiny, way: Way) -> Child {
    let [program, argument] = tiny.command();
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null());
    if way == Way::Fork {
        // SAFETY: it does nothing; that there is one keeps posix_spawn from being used.
        unsafe { command.pre_exec(|| Ok(())) };
    }
    match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!("{}: {error}", program.display()),
    }
}

/// From before the call to the child's first instruction.
///
/// # Panics
/// When it cannot be started.
pub fn latency(tiny: &mut Tiny, way: Way) -> Duration {
    let begin = monotonic();
    let mut child = start(tiny, way);
    let first = tiny.first();
    let _ = child.kill();
    let _ = child.wait();
    first.at.saturating_sub(begin)
}

/// From before the first call to the last first instruction of `count`, one after the other.
///
/// # Panics
/// When one cannot be started.
pub fn latency_of(tiny: &mut Tiny, count: usize) -> Duration {
    let begin = monotonic();
    let mut children: Vec<Child> = (0..count).map(|_| start(tiny, Way::Vfork)).collect();
    let last = (0..count).map(|_| tiny.first().at).max();
    for child in &mut children {
        let _ = child.kill();
    }
    for mut child in children {
        let _ = child.wait();
    }
    last.unwrap_or(begin).saturating_sub(begin)
}
