//! `store`: values and job queues in memory, over HTTP; `migrate`: the one-shot
//! that fills it.
//!
//! | request | answer |
//! |---|---|
//! | `GET /values/<key>` | the value, or 404 |
//! | `PUT /values/<key>` | sets it |
//! | `POST /queues/<name>` | appends a job |
//! | `GET /queues/<name>/next` | takes the oldest job, waits for one at most 5 s (then 204) |
//! | `GET /health` | 200 |

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use hyper::{Method, StatusCode};
use tokio::sync::Notify;

use crate::http::{self, Answer, Asked};
use crate::signals::Stop;

/// Most values, and most jobs in a queue; one more is answered with 507. What
/// is kept is kept in memory.
const MAX_ENTRIES: usize = 100_000;

/// How long a `next` without a job is held open.
const WAIT_FOR_JOB: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Store {
    inner: Mutex<Inner>,
    /// Wakes those that wait for a job when one came.
    came: Notify,
}

#[derive(Default)]
struct Inner {
    values: HashMap<String, String>,
    queues: HashMap<String, VecDeque<String>>,
}

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, queue: &str, job: String) -> Answer {
        let mut inner = self.inner();
        let jobs = inner.queues.entry(queue.to_owned()).or_default();
        if jobs.len() >= MAX_ENTRIES {
            return full();
        }
        jobs.push_back(job);
        self.came.notify_waiters();
        Answer(StatusCode::ACCEPTED, "queued\n".to_owned())
    }

    fn pop(&self, queue: &str) -> Option<String> {
        self.inner().queues.get_mut(queue)?.pop_front()
    }

    async fn next(&self, queue: &str) -> Answer {
        let waited = tokio::time::timeout(WAIT_FOR_JOB, async {
            loop {
                // Registered before the look, so that a job that comes in between wakes it.
                let came = self.came.notified();
                if let Some(job) = self.pop(queue) {
                    return job;
                }
                came.await;
            }
        });
        match waited.await {
            Ok(job) => Answer::ok(job),
            Err(_) => Answer(StatusCode::NO_CONTENT, String::new()),
        }
    }

    fn set(&self, key: &str, value: String) -> Answer {
        let mut inner = self.inner();
        if inner.values.len() >= MAX_ENTRIES && !inner.values.contains_key(key) {
            return full();
        }
        inner.values.insert(key.to_owned(), value);
        Answer::ok("set\n")
    }

    async fn answer(&self, asked: Asked) -> Answer {
        let (method, path) = asked.route();
        let body = || String::from_utf8_lossy(&asked.body).into_owned();
        match (method, path.as_slice()) {
            ("GET", ["health"]) => Answer::ok("ok\n"),
            ("GET", ["values", key]) => match self.inner().values.get(*key) {
                Some(value) => Answer::ok(value.clone()),
                None => Answer::not_found(),
            },
            ("PUT", ["values", key]) => self.set(key, body()),
            ("POST", ["queues", queue]) => self.push(queue, body()),
            ("GET", ["queues", queue, "next"]) => self.next(queue).await,
            _ => Answer::not_found(),
        }
    }
}

fn full() -> Answer {
    Answer(StatusCode::INSUFFICIENT_STORAGE, "full\n".to_owned())
}

/// Serves until SIGTERM.
pub(crate) async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let listener = http::bind(listen).await?;
    println!("store listens on {listen}");
    let store = Arc::new(Store::default());
    let serving = http::serve(listener, move |asked| {
        let store = Arc::clone(&store);
        async move { store.answer(asked).await }
    });
    tokio::select! {
        result = serving => result,
        () = stop.requested() => {
            println!("store ends");
            Ok(())
        }
    }
}

/// Reads a value.
pub(crate) async fn get(store: SocketAddr, key: &str) -> anyhow::Result<Option<String>> {
    let path = format!("/values/{key}");
    match http::request(store, Method::GET, &path, "").await? {
        (StatusCode::OK, value) => Ok(Some(value)),
        (StatusCode::NOT_FOUND, _) => Ok(None),
        (status, text) => anyhow::bail!("the store answered {path} with {status}: {text}"),
    }
}

/// Sets a value.
pub(crate) async fn put(store: SocketAddr, key: &str, value: &str) -> anyhow::Result<()> {
    let path = format!("/values/{key}");
    let (status, text) = http::request(store, Method::PUT, &path, value.to_owned()).await?;
    anyhow::ensure!(
        status.is_success(),
        "the store answered {path} with {status}: {text}"
    );
    Ok(())
}

/// What `migrate` writes: the schema's version and the words the greeter uses.
const SEED: [(&str, &str); 3] = [
    ("schema", "1"),
    (
        "greeting",
        "Hello, {name}! The migration wrote these words.",
    ),
    ("completed", "0"),
];

/// Fills the store once; a second run over the same store changes nothing.
pub(crate) async fn migrate(store: SocketAddr) -> anyhow::Result<()> {
    if let Some(version) = get(store, "schema")
        .await
        .context("cannot read the schema's version")?
    {
        println!("the store has schema {version} already");
        return Ok(());
    }
    // The version goes last: a run that is cut short is repeated.
    for (key, value) in SEED.iter().rev() {
        put(store, key, value).await?;
        println!("wrote {key} = {value}");
    }
    Ok(())
}
