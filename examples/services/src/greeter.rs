//! `greeter`: answers RPC. `greet` takes `{"name": …}` and gives back
//! `{"greeting": …, "by": …}`; `ping` gives back what it was sent.
//!
//! The words come from the store, where the migration wrote them: without the
//! migration there is nothing to say.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use blackhole_bus_schema::rpc::{Methods, Request};
use serde::{Deserialize, Serialize};

use crate::rpc;
use crate::signals::Stop;
use crate::store;

/// What `greet` is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Greet {
    pub(crate) name: String,
}

/// What `greet` answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Greeting {
    pub(crate) greeting: String,
    /// The instance that answered.
    pub(crate) by: String,
}

/// How long its clients wait: long enough for a restart of the greeter, during
/// which the bridge parks their calls.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM.
pub(crate) async fn serve(store: SocketAddr) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let words = store::get(store, "greeting")
        .await?
        .context("the store holds no greeting: has the migration run?")?;
    let me = std::env::var("BLACKHOLE_INSTANCE").unwrap_or_else(|_| "greeter".to_owned());
    let greet = move |request: Request| {
        let (words, me) = (words.clone(), me.clone());
        async move {
            let Greet { name } = rpc::decode(&request.payload)?;
            rpc::encode(&Greeting {
                greeting: words.replace("{name}", &name),
                by: me,
            })
        }
    };
    let ping = |request: Request| async move { Ok(request.payload) };
    rpc::serve(
        Methods::new().on("greet", greet).on("ping", ping),
        &mut stop,
    )
    .await?;
    println!("greeter ends");
    Ok(())
}
