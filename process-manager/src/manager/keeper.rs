//! Keeps a fork server alive.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::facts::Fact;
use crate::launch::{Launcher, chain};

/// Waits between two attempts to start a fork server: the first, doubled up to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Starts the fork server, and starts it again when it dies.
pub(super) async fn keep(launcher: Arc<Launcher>, facts: mpsc::Sender<Fact>) {
    let mut wait = RETRY.0;
    loop {
        let problem = match launcher.fork_server(true).await {
            Ok(_) => None,
            Err(error) => Some(format!("no service can be started: {}", chain(&error))),
        };
        let failed = problem.is_some();
        if let Some(problem) = &problem {
            tracing::error!(problem, retry_ms = wait.as_millis() as u64, "fork server");
        }
        if facts.send(Fact::ForkServer { problem }).await.is_err() {
            return;
        }
        if failed {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        } else {
            wait = RETRY.0;
            launcher.fork_server_gone().await;
            tracing::warn!("the fork server is gone: starting another one");
        }
    }
}
