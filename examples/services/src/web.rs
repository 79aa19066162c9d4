//! `web`: the HTTP front of the self-contained example.
//!
//! | request | answer |
//! |---|---|
//! | `GET /hello/<name>` | a greeting, from the greeter by RPC |
//! | `POST /jobs` with a name as body | queues a greeting to be made by the worker |
//! | `GET /jobs/completed` | how many the worker has made |
//! | `GET /health` | 200 while the store answers |

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Method;

use crate::greeter::{Greet, Greeting, PATIENCE};
use crate::http::{self, Answer, Asked};
use crate::rpc::Caller;
use crate::signals::Stop;
use crate::{notify, store};

struct Front {
    store: SocketAddr,
    rpc: Caller,
}

impl Front {
    async fn answer(&self, asked: Asked) -> Answer {
        let (method, path) = asked.route();
        let result = match (method, path.as_slice()) {
            ("GET", ["hello", name]) => self.hello(name).await,
            ("POST", ["jobs"]) => self.queue(&asked).await,
            ("GET", ["jobs", "completed"]) => self.completed().await,
            ("GET", ["health"]) => self.health().await,
            _ => return Answer::not_found(),
        };
        result.unwrap_or_else(|error| Answer::unavailable(&error))
    }

    async fn hello(&self, name: &str) -> anyhow::Result<Answer> {
        let asked = Greet {
            name: name.to_owned(),
        };
        let Greeting { greeting, by } = self.rpc.call("greeter", "greet", &asked, PATIENCE).await?;
        Ok(Answer::ok(format!("{greeting} ({by})\n")))
    }

    async fn queue(&self, asked: &Asked) -> anyhow::Result<Answer> {
        let (status, text) =
            http::request(self.store, Method::POST, "/queues/jobs", asked.body.clone()).await?;
        Ok(Answer(status, text))
    }

    async fn completed(&self) -> anyhow::Result<Answer> {
        let completed = store::get(self.store, "completed").await?;
        Ok(Answer::ok(
            completed.unwrap_or_else(|| "0".to_owned()) + "\n",
        ))
    }

    async fn health(&self) -> anyhow::Result<Answer> {
        let (status, text) = http::request(self.store, Method::GET, "/health", "").await?;
        Ok(Answer(status, text))
    }
}

/// Serves until SIGTERM.
pub(crate) async fn serve(listen: SocketAddr, store: SocketAddr) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let front = Arc::new(Front {
        store,
        rpc: Caller::connect().await?,
    });
    let listener = http::bind(listen).await?;
    println!("web listens on http://{listen}/");
    notify::ready("listening");
    let serving = http::serve(listener, move |asked| {
        let front = Arc::clone(&front);
        async move { front.answer(asked).await }
    });
    tokio::select! {
        result = serving => result,
        () = stop.requested() => {
            notify::stopping();
            println!("web ends");
            Ok(())
        }
    }
}
