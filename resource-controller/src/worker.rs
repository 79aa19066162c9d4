//! The thread that owns the [`Engine`]: a write to a control file can block
//! while the kernel reclaims memory, and must not hold up heartbeats then.

use std::io;

use tokio::sync::{mpsc, oneshot};

use crate::cgroup::{Engine, Settings};

/// Jobs that wait for the thread. The only sender is the command loop, which
/// waits for each answer; the rest is room for the closing job. When full the
/// sender waits.
const JOBS: usize = 8;

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// The thread has ended: a job of it panicked.
#[derive(Debug, thiserror::Error)]
#[error("the thread that works on cgroups has died")]
pub struct WorkerGone;

/// Handle of the thread; it ends when the handle is closed or dropped.
#[derive(Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
    closed: oneshot::Receiver<bool>,
}

impl Worker {
    /// Starts the thread, which opens the engine first. Jobs wait for that.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(JOBS);
        let (close, closed) = oneshot::channel();
        std::thread::Builder::new()
            .name("cgroups".to_owned())
            .spawn(move || {
                let mut engine = Engine::open(settings);
                while let Some(job) = queue.blocking_recv() {
                    job(&mut engine);
                }
                let _ = close.send(engine.close());
            })?;
        Ok(Self { jobs, closed })
    }

    /// Runs a job and waits for its result. A wait that is given up does not
    /// take the job back.
    ///
    /// # Errors
    /// When the thread has died.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            let _ = answer.send(job(engine));
        });
        self.jobs.send(job).await.map_err(|_| WorkerGone)?;
        result.await.map_err(|_| WorkerGone)
    }

    /// Ends the engine in order, see [`Engine::close`]. True when no group is left.
    ///
    /// # Errors
    /// When the thread has died.
    pub async fn close(self) -> Result<bool, WorkerGone> {
        drop(self.jobs);
        self.closed.await.map_err(|_| WorkerGone)
    }
}
