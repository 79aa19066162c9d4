//! `worker`: takes jobs (names) from the store's queue, has the greeter greet
//! each by RPC, and writes the greeting and the number made back to the store.

use std::net::SocketAddr;

use anyhow::Context;
use hyper::{Method, StatusCode};

use crate::greeter::{Greet, Greeting, PATIENCE};
use crate::rpc::Caller;
use crate::signals::Stop;
use crate::{http, notify, store};

/// Works until SIGTERM. An error ends it: its restart is Blackhole's affair.
pub(crate) async fn work(store: SocketAddr) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let rpc = Caller::connect().await?;
    notify::ready("waiting for jobs");
    println!("worker waits for jobs");
    loop {
        // `one` is cancelled only here. A job taken and not finished is lost then:
        // this example's queue has no acknowledgements.
        tokio::select! {
            result = one(store, &rpc) => result?,
            () = stop.requested() => {
                notify::stopping();
                println!("worker ends");
                return Ok(());
            }
        }
    }
}

async fn one(store: SocketAddr, rpc: &Caller) -> anyhow::Result<()> {
    let (status, name) = http::request(store, Method::GET, "/queues/jobs/next", "").await?;
    if status == StatusCode::NO_CONTENT {
        return Ok(());
    }
    anyhow::ensure!(status.is_success(), "the store answered {status}: {name}");
    let Greeting { greeting, by } = rpc
        .call("greeter", "greet", &Greet { name: name.clone() }, PATIENCE)
        .await?;
    let completed: u64 = store::get(store, "completed")
        .await?
        .unwrap_or_else(|| "0".to_owned())
        .parse()
        .context("the store's count of completed jobs is no number")?;
    store::put(store, "last", &greeting).await?;
    store::put(store, "completed", &(completed + 1).to_string()).await?;
    println!("greeted {name} with the help of {by}");
    Ok(())
}
