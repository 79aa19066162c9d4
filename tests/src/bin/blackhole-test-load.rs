//! A caller that calls without pause, for the end-to-end tests:
//! `blackhole-test-load SERVICE METHOD IN_FLIGHT BUDGET_MS DIRECTORY`.
//!
//! Each call has a payload of its own and ends with an answer that contains it,
//! or with a status; nothing is repeated. `DIRECTORY/calls` holds, replaced
//! after each call, `<answered> <failed> <in flight>`; `DIRECTORY/failures` gets a line
//! for each call that did not end with its answer. A call that is not over long
//! after its budget is a `HANG`. Once `DIRECTORY/enough` is there no call is begun
//! any more, and when all are over `DIRECTORY/over` is.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blackhole_bus_schema::rpc::Client;
use tokio::signal::unix::{SignalKind, signal};

/// Beyond its budget: no call may take this long, however busy the host is.
const HANG: Duration = Duration::from_secs(30);

struct Tally {
    directory: PathBuf,
    failures: File,
    answered: u64,
    failed: u64,
    in_flight: u64,
}

impl Tally {
    fn open(directory: &Path) -> std::io::Result<Self> {
        let failures = File::options()
            .create(true)
            .append(true)
            .open(directory.join("failures"))?;
        Ok(Self {
            directory: directory.to_owned(),
            failures,
            answered: 0,
            failed: 0,
            in_flight: 0,
        })
    }

    fn begun(&mut self) {
        self.in_flight += 1;
    }

    fn ended(&mut self, result: Result<(), String>) -> std::io::Result<()> {
        self.in_flight -= 1;
        match result {
            Ok(()) => self.answered += 1,
            Err(why) => {
                self.failed += 1;
                writeln!(self.failures, "{why}")?;
            }
        }
        let text = format!("{} {} {}", self.answered, self.failed, self.in_flight);
        // Whole or not at all.
        let new = self.directory.join("calls.new");
        fs::write(&new, text)?;
        fs::rename(new, self.directory.join("calls"))
    }
}

struct Job {
    client: Client,
    service: String,
    method: String,
    budget: Duration,
    tally: Mutex<Tally>,
}

impl Job {
    fn tally<T>(&self, with: impl FnOnce(&mut Tally) -> T) -> T {
        with(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn call(&self, payload: &str) -> Result<(), String> {
        let call = self
            .client
            .call(&self.service, &self.method, payload.to_owned(), self.budget);
        match tokio::time::timeout(self.budget + HANG, call).await {
            Ok(Ok(answer)) => {
                let answer = String::from_utf8_lossy(&answer);
                // Another call's answer would be worse than none.
                match answer.split_whitespace().any(|word| word == payload) {
                    true => Ok(()),
                    false => Err(format!("WRONG {payload}: {answer}")),
                }
            }
            Ok(Err(status)) => Err(format!("{} {payload}: {}", status.code, status.message)),
            Err(_) => Err(format!("HANG {payload}")),
        }
    }

    async fn work(self: Arc<Self>, worker: u32) -> std::io::Result<()> {
        let enough = self.tally(|tally| tally.directory.join("enough"));
        for number in 0_u64.. {
            if enough.exists() {
                break;
            }
            self.tally(Tally::begun);
            let result = self.call(&format!("{worker}-{number}")).await;
            let failed = result.is_err();
            self.tally(|tally| tally.ended(result))?;
            if failed {
                // Not as fast as it can where nobody answers.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }
}

async fn run(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [service, method, in_flight, budget_ms, directory] = arguments else {
        return Err("usage: SERVICE METHOD IN_FLIGHT BUDGET_MS DIRECTORY".into());
    };
    let mut end = signal(SignalKind::terminate())?;
    let job = Arc::new(Job {
        client: Client::from_env().await?,
        service: service.clone(),
        method: method.clone(),
        budget: Duration::from_millis(budget_ms.parse()?),
        tally: Mutex::new(Tally::open(Path::new(directory))?),
    });
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..in_flight.parse()? {
        workers.spawn(Arc::clone(&job).work(worker));
    }
    tokio::select! {
        // Cancel safe: what is under way is given up, the test looks no more.
        _ = end.recv() => Ok(()),
        ended = async {
            while let Some(ended) = workers.join_next().await {
                ended??;
            }
            Ok(File::create(Path::new(directory).join("over")).map(drop)?)
        } => ended,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&arguments))
}
