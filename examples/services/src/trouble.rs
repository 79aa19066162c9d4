//! Services that misbehave in one way each, for the tests and the tour.

use std::hint::black_box;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::notify;
use crate::signals::Stop;

/// Does nothing until it is asked to end.
pub(crate) async fn idle(linger_ms: u64) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    println!("idle");
    stop.requested().await;
    tokio::time::sleep(Duration::from_millis(linger_ms)).await;
    println!("ends");
    Ok(())
}

/// Exits with a code after some time.
pub(crate) fn exit(code: u8, after_ms: u64) -> ! {
    println!("will exit with {code} in {after_ms} ms");
    std::thread::sleep(Duration::from_millis(after_ms));
    eprintln!("exits with {code}");
    std::process::exit(code.into())
}

/// Ignores SIGTERM and SIGINT, and so do its descendants. Each descendant
/// leaves its parent's session and process group, so that a signal to the
/// group misses it.
pub(crate) async fn stubborn(generations: u32) -> anyhow::Result<()> {
    // A caught signal without a reaction is as good as an ignored one, and it
    // is not inherited by a child's exec: each generation does it for itself.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Fails for a group leader (the service itself); that one may stay where it is.
    let _ = rustix::process::setsid();
    println!(
        "stubborn {} with {generations} below it",
        std::process::id()
    );
    if generations > 0 {
        let program = std::env::current_exe().context("cannot find this program's own path")?;
        Command::new(&program)
            .args(["stubborn", "--generations", &(generations - 1).to_string()])
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
    }
    loop {
        tokio::select! {
            // Cancel safe, and there is nothing to lose.
            _ = terminate.recv() => println!("{} ignores SIGTERM", std::process::id()),
            _ = interrupt.recv() => println!("{} ignores SIGINT", std::process::id()),
        }
    }
}

/// Burns all CPU it can get.
pub(crate) fn hog(threads: usize) -> anyhow::Result<()> {
    println!("burns CPU in {threads} threads");
    for _ in 1..threads {
        std::thread::spawn(burn);
    }
    burn()
}

fn burn() -> ! {
    let mut number = 1_u64;
    loop {
        number = black_box(
            number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1),
        );
    }
}

/// Fills memory page by page, then waits for its end.
pub(crate) fn greedy(memory_mb: usize) -> anyhow::Result<()> {
    const MIB: usize = 1024 * 1024;
    let mut held = Vec::new();
    for filled in 1..=memory_mb {
        // A value other than zero: pages of zeroes need not be backed by memory.
        held.push(black_box(vec![1_u8; MIB]));
        if filled % 16 == 0 {
            println!("holds {filled} MiB");
        }
    }
    notify::ready("holds all it wanted");
    println!("holds {} MiB and waits", held.len());
    wait_for_ever()
}

/// Writes numbered lines, then waits for its end.
pub(crate) fn chatter(lines: u64, bytes: usize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for number in 1..=lines {
        let text = format!("line {number} ");
        let rest = bytes.saturating_sub(text.len());
        writeln!(out, "{text}{}", "x".repeat(rest))?;
    }
    writeln!(out, "said all")?;
    out.flush()?;
    wait_for_ever()
}

/// Prints its environment, its working directory and its limits, then waits for its end.
pub(crate) fn environment() -> anyhow::Result<()> {
    for (name, value) in std::env::vars_os() {
        println!("env {}={}", name.to_string_lossy(), value.to_string_lossy());
    }
    println!("cwd {}", std::env::current_dir()?.display());
    for file in ["limits", "cgroup"] {
        let path = format!("/proc/self/{file}");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        for line in text.lines() {
            println!("{file} {line}");
        }
    }
    let descriptors = std::fs::read_dir("/proc/self/fd").context("cannot read /proc/self/fd")?;
    for entry in descriptors.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        println!(
            "fd {} {}",
            entry.file_name().to_string_lossy(),
            target.display()
        );
    }
    println!("said all");
    wait_for_ever()
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}
